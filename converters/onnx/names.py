"""Names of constants with which ONNX Runtime cannot open a file.

Its MatMulAddFusion (1.32) names the shapes that it adds `gemm_input_shape` and the like, without
checking whether the graph has such a constant already, and then cannot open the file ("Attempt to
replace the existing tensor"). So a graph that was optimized and saved once fails when it is
optimized again. https://github.com/microsoft/onnxruntime, core/optimizer/matmul_add_fusion.cc
"""

import re
from collections.abc import Sequence

import onnx

from onmetal.converters.onnx import checks

_FUSED = re.compile(r"gemm_(input|output)_(shape|reshape)\w*")


def collisions(model: onnx.ModelProto) -> list[str]:
    """The constants that have such a name."""
    return [tensor.name for tensor in model.graph.initializer if _FUSED.fullmatch(tensor.name)]


def rename_constants(model: onnx.ModelProto, names: Sequence[str]) -> bool:
    """Give initializers new names that are not in use; those that are outputs keep their names.

    -> whether any was renamed.
    """
    nodes = list(checks.nodes(model.graph))
    output_names = {value.name for graph in checks.graphs(model.graph) for value in graph.output}
    used_names = {name for node in nodes for name in (*node.input, *node.output)} | output_names
    used_names |= {tensor.name for tensor in model.graph.initializer}
    fresh: dict[str, str] = {}
    for number, name in enumerate(name for name in names if name not in output_names):
        new = f"folded.{number}"
        while new in used_names:
            new += "_"
        used_names.add(new)
        fresh[name] = new
    for entry in (*model.graph.initializer, *model.graph.value_info, *model.graph.input):
        entry.name = fresh.get(entry.name, entry.name)
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = fresh.get(name, name)
    return bool(fresh)
