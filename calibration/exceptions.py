"""Operators that a runtime computes wrong in 8 bits, and that stay float there.

Each rule was seen by trial: QuantizeLinear and DequantizeLinear around the one operator, as the
quantizer writes them, against float (tests/test_qdq_sweep.py, which says what it covers).
"""

from collections.abc import Callable

import onnx
from msgspec import Struct

from onmetal.calibration.graph import Graph, attribute


class Rule(Struct, frozen=True):
    runtime: str
    operators: tuple[str, ...]
    applies: Callable[[onnx.NodeProto, Graph], bool]
    reason: str


def kept_float(graph: Graph, runtime: str) -> list[str]:
    """Names of the nodes that must not run in 8 bits there."""
    rules = [rule for rule in RULES if rule.runtime == runtime]
    return sorted(
        node.name
        for node in graph.nodes
        if node.domain in ("", "ai.onnx")
        and any(node.op_type in rule.operators and rule.applies(node, graph) for rule in rules)
    )


def _counts_beyond(node: onnx.NodeProto, graph: Graph) -> bool:
    return bool(attribute(node, "ceil_mode", 0) and attribute(node, "count_include_pad", 0))


def _dilated(node: onnx.NodeProto, graph: Graph) -> bool:
    return any(step != 1 for step in attribute(node, "dilations", ()))


def _of_a_vector(node: onnx.NodeProto, graph: Graph) -> bool:
    shapes = [graph.shape(name) for name in node.input]
    return any(shape is not None and len(shape) == 1 for shape in shapes)


RULES = (
    Rule(
        "onnxruntime",
        ("AveragePool",),
        _counts_beyond,
        "with ceil_mode and count_include_pad the 8-bit kernel divides the windows at the end by "
        "another count than the float one",
    ),
    Rule(
        "onnxruntime",
        ("AveragePool",),
        _dilated,
        "the 8-bit operator has no dilations: the file cannot be opened",
    ),
    Rule(
        "openvino",
        ("MatMul",),
        _of_a_vector,
        "a quantized product with a vector keeps the axis that the vector does not have",
    ),
)
