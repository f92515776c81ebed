"""Rules of the operators that a runtime computes wrong in 8 bits, and that stay float there.

Each rule of a runtime's `wrong_in_8_bits` was found by experiment: one operator between
DequantizeLinear and QuantizeLinear, as the quantizer writes them, is compared with float
(tests/test_qdq_sweep.py, which lists what it covers).
"""

from collections.abc import Callable, Sequence

import onnx
from msgspec import Struct

from onmetal.converters.onnx.graph import Graph


class Rule(Struct, frozen=True):
    operators: tuple[str, ...]
    applies: Callable[[onnx.NodeProto, Graph], bool]
    reason: str


def kept_float(graph: Graph, rules: Sequence[Rule]) -> list[str]:
    """Names of the nodes that must not run in 8 bits."""
    return sorted(
        node.name
        for node in graph.nodes
        if node.domain in ("", "ai.onnx")
        and any(node.op_type in rule.operators and rule.applies(node, graph) for rule in rules)
    )
