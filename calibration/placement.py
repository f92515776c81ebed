"""Which operators of a graph run in 8 bits and which tensors are quantized for it, by a format.

Nothing is written here: `place` reads a float graph and a format and returns a `Placement`.
The rules, in order:

1. Conv, ConvTranspose, Gemm and MatMul by a constant run in 8 bits wherever the format lists them.
   Their input is quantized whatever operator produces it. A MatMul of two computed tensors
   quantizes both.
2. Any other listed operator runs in 8 bits only if every computed input is quantized already, or if
   it only moves values and its output leads to an operator of rule 1.
3. A Relu or Clip that is the only consumer of such an operator belongs to it: the output of the
   Relu or Clip is quantized.
4. Operators of `same_scale` have outputs in the scale of their inputs.
5. Operators that only move values and have no consumer in 8 bits stay float. So does the output of
   a Gemm or MatMul without a consumer in 8 bits: float is more exact there, and no slower.
6. Post-processing stays float (converters.decoding): what follows the last products and leads to
   NonMaxSuppression, TopK or ArgMax, or to a Concat of parts that are computed differently, as
   boxes and scores are, or follows these. So does the product by which YOLO averages the bins of
   a distribution.
7. Tensors whose values one scale cannot represent stay float (converters.unlike): parts of an
   output whose ranges differ much, and masks together with the values that they mask.

Operators that only move values have no QuantizeLinear after them: their output is on the grid.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import onnx
from msgspec import Struct

from onmetal.converters import decoding, unlike
from onmetal.converters.onnx.graph import Graph, attribute
from onmetal.ranges import Range
from onmetal.targets import Format

MATRIX = ("Gemm", "MatMul")
WEIGHTED = ("Conv", "ConvTranspose", *MATRIX)
PAIRED = ("Add", "Sub", "Mul", "Div", "Concat")
MOVERS = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "Gather"}
    | {"MaxPool", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Resize"}
)
"""Operators that only move values: each output value is an input value or zero, so the output fits
in the range of the input."""
SELECTORS = frozenset({"NonMaxSuppression", "TopK", "ArgMax", "ArgMin"})
UNARY = MOVERS | {"AveragePool", "GlobalAveragePool", "ReduceMean", "Sigmoid", "Tanh", "LeakyRelu"}
UNARY |= {"HardSigmoid", "HardSwish", "Elu", "Softmax"}
WIDEST_MASK = 2.0
"""A mask that is added to attention's scores may be this many times as wide as the scores and still
share a grid with them."""
_ROLES: dict[str, unlike.Role] = {
    **dict.fromkeys(MOVERS - {"MaxPool"}, "move"),
    **dict.fromkeys(("GatherElements", "GatherND", "Identity", "ReverseSequence"), "move"),
    "Concat": "join",
    **dict.fromkeys(("Abs", "Cast", "Clip", "Elu", "Exp", "Gelu", "HardSigmoid"), "each"),
    **dict.fromkeys(("HardSwish", "LeakyRelu", "Mish", "Neg", "PRelu", "Relu", "Selu"), "each"),
    **dict.fromkeys(("Sigmoid", "Softplus", "Softsign", "Swish", "Tanh"), "each"),
    **dict.fromkeys(("Add", "Sub", "Sum", "Where"), "sum"),
    **dict.fromkeys(("Div", "Mul"), "product"),
    **dict.fromkeys(("Max", "Min"), "bound"),
    **dict.fromkeys(("LogSoftmax", "Softmax"), "softmax"),
    **dict.fromkeys(("Ceil", "Floor", "Mod", "Round"), "whole"),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), "compare"),
    **dict.fromkeys(WEIGHTED, "heavy"),
}


class Placement(Struct, frozen=True):
    integer: frozenset[str]
    """Names of the nodes that run in 8 bits."""
    roots: dict[str, str]
    """Quantized tensor -> the tensor whose range it takes; itself where it has its own."""
    after: dict[str, str]
    """Node in 8 bits -> the Relu or Clip after it that belongs to it."""
    raw: frozenset[str]
    """Outputs of nodes in 8 bits that are not quantized."""

    derived: frozenset[str]
    """Quantized tensors that need no range of their own: outputs of operators of `same_scale` that
    only move values."""

    def groups(self) -> dict[str, list[str]]:
        """Root -> the tensors of its group that have ranges of their own."""
        members: dict[str, list[str]] = defaultdict(list)
        for name, root in self.roots.items():
            if name not in self.derived:
                members[root].append(name)
        return members


def place(
    graph: Graph,
    form: Format,
    keep_float: frozenset[str] = frozenset(),
    not_finite: frozenset[str] = frozenset(),
    extremes: Mapping[str, Range] | None = None,
) -> Placement:
    """`keep_float`: names of nodes that must not run in 8 bits; `not_finite`: tensors that were NaN
    or infinite in calibration; `extremes`: the full range in calibration of the other tensors, as
    far as it is known."""
    extremes = extremes or {}
    not_finite |= {
        n for n, bounds in extremes.items() if 0.0 < unlike.width(bounds) < unlike.LEAST_WIDTH
    }
    steps = [_step(graph, node, extremes) for node in graph.nodes]
    keep_float |= decoding.post_processing(_decoding_node(graph, node) for node in graph.nodes)
    keep_float |= unlike.stay_float(steps, graph.outputs, extremes, WIDEST_MASK)
    listed = {
        node.name: node
        for node in graph.nodes
        if node.op_type in form.operators
        and node.domain in ("", "ai.onnx")
        and node.name not in keep_float
    }
    after = {name: follower for name in listed if (follower := _follower(graph, listed[name]))}
    for name, node in list(listed.items()):
        if not_finite & {*activations(node, graph), *result(node, graph, after)}:
            del listed[name]
    heavy = {name for name, node in listed.items() if _weighted(graph, node)}
    integer = _trimmed(graph, _forward(graph, form, listed, heavy, after))
    after = {name: follower for name, follower in after.items() if name in integer}
    raw = _raw(graph, integer, after)
    roots, derived = _roots(graph, form, integer, after, raw)
    return Placement(frozenset(integer), roots, after, frozenset(raw), frozenset(derived))


def _step(graph: Graph, node: onnx.NodeProto, extremes: Mapping[str, Range]) -> unlike.Step:
    """What a node does to values, for converters.unlike."""
    role = _ROLES.get(node.op_type, "other") if node.domain in ("", "ai.onnx") else "other"
    first = 1 if node.op_type in ("Where", "Compress") else 0
    names = [name for name in node.input[first:] if name]
    if role in ("move", "each", "softmax"):
        names = names[:1]  # the others are shapes, indices, bounds
    constants = [array for name in names if (array := graph.constant(name)) is not None]
    if node.op_type == "Pad" and len(node.input) > 2 and node.input[2]:
        fill = graph.constant(node.input[2])
        if fill is None or fill.any():
            role = "join"
            constants = [] if fill is None else [fill]
    if node.op_type == "Cast" and not graph.is_float(node.output[0]):
        role = "whole"
    if node.op_type == "Div" and graph.constant(node.input[0]) is not None:
        role = "other"
    return unlike.Step(
        node.name,
        role,
        tuple(name for name in names if graph.constant(name) is None),
        tuple(name for name in node.output if name),
        tuple(array for array in constants if array.dtype.kind == "f"),
        _channels(graph, node, extremes),
        node.op_type == "Div",
    )


def _decoding_node(graph: Graph, node: onnx.NodeProto) -> decoding.Node:
    """What a node does after the last products, for converters.decoding."""
    names = tuple(name for name in node.input if name)
    if node.attribute and any(entry.g.node or entry.graphs for entry in node.attribute):
        names += tuple(graph.inner)  # a subgraph may read any tensor of the graph
    return decoding.Node(
        node.name,
        names,
        tuple(name for name in node.output if name),
        node.op_type in WEIGHTED,
        node.op_type in SELECTORS or _averages(graph, node),
        node.op_type == "Concat",
        "" if _ROLES.get(node.op_type) in ("move", "join") else node.op_type,
    )


def _averages(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a convolution gives the mean of the bins of a distribution: one output channel with
    the weights 0, 1, 2 …, behind a Softmax."""
    weight = graph.constant(node.input[1]) if node.op_type == "Conv" else None
    if weight is None or not np.array_equal(weight.ravel(), np.arange(weight.size)):
        return False
    source = graph.producer.get(node.input[0])
    while source is not None and source.op_type in MOVERS:
        source = graph.producer.get(source.input[0])
    return weight.shape[0] == 1 and source is not None and source.op_type == "Softmax"


def _channels(
    graph: Graph, node: onnx.NodeProto, extremes: Mapping[str, Range]
) -> tuple[float, ...]:
    """About how large each output channel of a convolution is; empty for other operators (the
    output of a last Gemm or MatMul stays float anyway)."""
    if node.op_type not in ("Conv", "ConvTranspose") or node.input[0] not in extremes:
        return ()
    weight = graph.constant(node.input[1])
    bias = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if weight is None or (node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1):
        return ()
    axis = 0 if node.op_type == "Conv" else 1
    return unlike.channels(weight, axis, bias, extremes[node.input[0]])


def activations(node: onnx.NodeProto, graph: Graph) -> list[str]:
    """The inputs of a node that are computed values, not weights, bounds, shapes or indices."""
    if node.op_type in MATRIX:
        names = list(node.input[:2])
    elif node.op_type in PAIRED:
        names = list(node.input)
    else:
        names = list(node.input[:1])
    return [name for name in dict.fromkeys(names) if name and graph.constant(name) is None]


def _weighted(graph: Graph, node: onnx.NodeProto) -> bool:
    """Rule 1: whether the node is a product that can run in 8 bits."""
    if node.op_type not in WEIGHTED:
        return False
    if not all(graph.is_float(name) for name in node.input if name):
        return False
    computed = activations(node, graph)
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and graph.constant(bias) is None:
        return False
    if node.op_type == "MatMul":
        return bool(computed)
    if graph.constant(node.input[0]) is not None or graph.constant(node.input[1]) is None:
        return False
    if node.op_type == "Gemm":
        unscaled = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        bias_shape = graph.shape(bias) if bias else None
        flat = not bias or (bias_shape is not None and len(bias_shape) == 1)
        return unscaled and flat and not attribute(node, "transA", 0)
    return True


def _follower(graph: Graph, node: onnx.NodeProto) -> str | None:
    """Rule 3: the name of the Relu or Clip that belongs to the node."""
    if node.op_type in MOVERS or len(node.output) != 1:
        return None
    taker = graph.only_consumer(node.output[0])
    if taker is None or taker.domain not in ("", "ai.onnx"):
        return None
    if taker.op_type == "Relu":
        return str(taker.name)
    bounds = [name for name in taker.input[1:] if name]
    if taker.op_type == "Clip" and all(graph.constant(name) is not None for name in bounds):
        return str(taker.name)
    return None


def result(node: onnx.NodeProto, graph: Graph, after: dict[str, str]) -> list[str]:
    """The names of a node's outputs, or of those of the Relu or Clip that belongs to it."""
    if follower := after.get(node.name):
        taker = graph.consumers[node.output[0]][0]
        assert taker.name == follower
        return list(taker.output)
    return [name for name in node.output if name]


def _forward(
    graph: Graph,
    form: Format,
    listed: dict[str, onnx.NodeProto],
    heavy: set[str],
    after: dict[str, str],
) -> set[str]:
    """Apply rules 1 and 2 in the order of computation. -> names of nodes in 8 bits."""
    integer: set[str] = set()
    available: set[str] = set()
    for node in graph.nodes:
        if node.name not in listed:
            continue
        needs = activations(node, graph)
        if node.name not in heavy and not _between(graph, form, node, needs, available):
            if not (node.op_type in MOVERS and _leads(graph, node, listed, heavy, set())):
                continue
            if not all(graph.is_float(name) for name in needs) or not _movable(graph, node):
                continue
        integer.add(node.name)
        available |= set(needs) | set(result(node, graph, after))
    return integer


def _between(
    graph: Graph, form: Format, node: onnx.NodeProto, needs: list[str], available: set[str]
) -> bool:
    """Rule 2: whether every computed input of the node is quantized already."""
    if node.op_type in WEIGHTED or not needs or not set(needs) <= available:
        return False
    if node.op_type in PAIRED:
        names = [name for name in node.input if name]
        if node.op_type in form.same_scale and len(set(names)) > len(needs):
            return False  # a constant need not fit in the range of what is computed
        return all(graph.is_float(n) for n in names) and all(graph.is_float(n) for n in node.output)
    return _movable(graph, node)


def _movable(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node of an operator that may run in 8 bits between others can do so with its
    attributes and inputs."""
    if not all(graph.is_float(name) for name in node.output if name):
        return (
            node.op_type == "MaxPool" and graph.is_float(node.output[0]) and len(node.output) == 1
        )
    if node.op_type == "Pad":
        mode = attribute(node, "mode", b"constant")
        value = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        has_value = len(node.input) > 2 and bool(node.input[2])
        return mode != b"constant" or not has_value or (value is not None and not value.any())
    if node.op_type == "Resize":
        return bool(attribute(node, "mode", b"nearest") == b"nearest")
    if node.op_type == "Gather":
        return graph.constant(node.input[0]) is None
    return True


def _leads(
    graph: Graph,
    node: onnx.NodeProto,
    listed: dict[str, onnx.NodeProto],
    heavy: set[str],
    visited: set[str],
) -> bool:
    """Whether the output of a node that only moves values leads, through such nodes alone, to an
    operator of rule 1."""
    for name in node.output:
        for taker in graph.consumers.get(name, []):
            if taker.name in heavy and name in activations(taker, graph):
                return True
            if taker.name in visited or taker.name not in listed or taker.op_type not in MOVERS:
                continue
            visited.add(taker.name)
            if taker.input[0] == name and _leads(graph, taker, listed, heavy, visited):
                return True
    return False


def _trimmed(graph: Graph, integer: set[str]) -> set[str]:
    """Rule 5: the nodes in 8 bits without those that only move values and have no consumer in 8
    bits."""
    remaining = set(integer)
    for node in reversed(graph.nodes):
        if node.name in remaining and node.op_type in MOVERS:
            takers = [t for name in node.output for t in graph.consumers.get(name, [])]
            if not any(taker.name in remaining for taker in takers):
                remaining.remove(node.name)
    return remaining


def _raw(graph: Graph, integer: set[str], after: dict[str, str]) -> set[str]:
    """Rule 5: the outputs of Gemm and MatMul that stay float."""
    raw: set[str] = set()
    for node in graph.nodes:
        if node.name in integer and node.op_type in MATRIX:
            results = result(node, graph, after)
            takers = [taker for name in results for taker in graph.consumers.get(name, [])]
            if not any(taker.name in integer for taker in takers):
                raw |= set(results)
    return raw


def _roots(
    graph: Graph, form: Format, integer: set[str], after: dict[str, str], raw: set[str]
) -> tuple[dict[str, str], set[str]]:
    """Rule 4: quantized tensors in groups of one scale, each called after its first."""
    roots: dict[str, str] = {}
    derived: set[str] = set()

    def root(name: str) -> str:
        while roots[name] != name:
            name = roots[name]
        return name

    for node in graph.nodes:
        if node.name not in integer:
            continue
        inputs = [name for name in activations(node, graph) if name not in raw]
        results = [name for name in result(node, graph, after) if name not in raw]
        for name in inputs + results:
            roots.setdefault(name, name)
        if node.op_type in form.same_scale and inputs:
            first = root(inputs[0])
            for name in inputs[1:] + results:
                roots[root(name)] = first
            derived |= set(results) if node.op_type in MOVERS else set()
    return {name: root(name) for name in roots}, derived
