"""Names of constants that ONNX Runtime trips over.

Its MatMulAddFusion (1.32) calls the shapes that it adds `gemm_input_shape` and the like without
looking whether the graph has such a constant already, and then cannot open the file ("Attempt to
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
    """Give initializers names that nothing else makes up; outputs keep theirs.

    -> whether there were any to rename.
    """
    nodes = list(checks.nodes(model.graph))
    kept = {value.name for graph in checks.graphs(model.graph) for value in graph.output}
    known = {name for node in nodes for name in (*node.input, *node.output)} | kept
    known |= {tensor.name for tensor in model.graph.initializer}
    fresh: dict[str, str] = {}
    for number, name in enumerate(name for name in names if name not in kept):
        new = f"folded.{number}"
        while new in known:
            new += "_"
        known.add(new)
        fresh[name] = new
    for entry in (*model.graph.initializer, *model.graph.value_info, *model.graph.input):
        entry.name = fresh.get(entry.name, entry.name)
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = fresh.get(name, name)
    return bool(fresh)
