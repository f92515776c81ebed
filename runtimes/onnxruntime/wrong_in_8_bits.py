"""Operators that ONNX Runtime computes wrong in 8 bits."""

import onnx

from onmetal.converters.onnx.graph import Graph, attribute
from onmetal.converters.onnx.rules import Rule


def _counts_beyond(node: onnx.NodeProto, graph: Graph) -> bool:
    return bool(attribute(node, "ceil_mode", 0) and attribute(node, "count_include_pad", 0))


def _dilated(node: onnx.NodeProto, graph: Graph) -> bool:
    return any(step != 1 for step in attribute(node, "dilations", ()))


RULES = (
    Rule(
        ("AveragePool",),
        _counts_beyond,
        "with ceil_mode and count_include_pad the 8-bit kernel divides the windows at the end by "
        "another count than the float one",
    ),
    Rule(
        ("AveragePool",),
        _dilated,
        "the 8-bit operator has no dilations: the file cannot be opened",
    ),
)
