"""Operators that OpenVINO computes wrong in 8 bits."""

import onnx

from onmetal.converters.onnx.graph import Graph
from onmetal.converters.onnx.rules import Rule


def _of_a_vector(node: onnx.NodeProto, graph: Graph) -> bool:
    shapes = [graph.shape(name) for name in node.input]
    return any(shape is not None and len(shape) == 1 for shape in shapes)


RULES = (
    Rule(
        ("MatMul",),
        _of_a_vector,
        "a quantized product with a vector keeps the axis that the vector does not have",
    ),
)
