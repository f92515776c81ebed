"""A .tflite file as ONNX, for the runtimes that read no other graph; in a child process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onmetal.converters import imported
from onmetal.converters.onnx.reference import Reference as OnnxReference
from onmetal.converters.tflite.ends import ends
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reader import count_quantized
from onmetal.converters.tflite.reference import Reference
from onmetal.converters.tflite.to_onnx.convert import to_onnx as converted

BY = "onmetal's own importer of TFLite"


def to_onnx(model: Path, folder: Path) -> dict[str, Any]:
    """As ModelFormat.export. Quantized outputs come as the real numbers that they stand for, as
    from LiteRT; quantized inputs stay as they are."""
    tensors = ends(str(model))
    proto = converted(model)
    _dequantize(proto.graph, tensors["outputs"])
    known = imported.as_graph(proto, BY, folder)
    inputs, outputs = ([tensor["name"] for tensor in tensors[end]] for end in tensors)
    framework = Reference(model, inputs, outputs)
    graph = OnnxReference(folder / "model.onnx", outputs)
    exact = not count_quantized(read(model))
    known["imported"] = {"by": BY, **imported.compared(framework, graph, tensors, exact=exact)}
    return known


def _dequantize(graph: onnx.GraphProto, outputs: Sequence[dict[str, Any]]) -> None:
    """Give the quantized outputs as float32 under their names."""
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    for value, tensor in zip(graph.output, outputs, strict=True):
        dtype = np.dtype(tensor["dtype"])
        if not tensor["scale"] or dtype.itemsize > 2:
            continue
        stored, scale, zero = (
            next(n for n in (f"{value.name}{end}", f"{value.name}{end}_") if n not in taken)
            for end in ("_stored", "_scale", "_zero_point")
        )
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [stored if name == value.name else name for name in names]
        graph.initializer.append(numpy_helper.from_array(np.float32(tensor["scale"]), scale))
        graph.initializer.append(
            numpy_helper.from_array(np.array(tensor["zero_point"], dtype), zero)
        )
        graph.node.append(helper.make_node("DequantizeLinear", [stored, scale, zero], [value.name]))
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
