"""Which operators of a graph run in 8 bits and which tensors are quantized for it, by a format.

Nothing is written here: `place` reads a float graph and a format and says what is to be done.
The rules, in order:

1. Conv, ConvTranspose, Gemm and MatMul by a constant run in 8 bits wherever the format lists them.
   Their input is quantized whoever makes it. A MatMul of two computed tensors quantizes both.
2. Any other listed operator runs in 8 bits only between such: every computed input must be
   quantized already, or (where it only moves values) lead to one of rule 1.
3. A Relu or Clip that alone follows such an operator belongs to it: quantized is what it gives.
4. Operators of `same_scale` give values in the scale of what they take.
5. Movers of values at the end, that no operator in 8 bits takes from, stay float. So does what
   a Gemm or MatMul gives where nothing in 8 bits takes it: more exact, and no slower.
6. What one scale cannot hold stays float (calibration.unlike): parts of an output that differ
   much, and masks with what they mask.

Movers of values are followed by no QuantizeLinear of their own: what they give is on the grid.
"""

from collections import defaultdict
from collections.abc import Mapping

import onnx
from msgspec import Struct

from onmetal.converters import unlike
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
"""Give only values that they take (or zero): their output fits in the range of their input."""
UNARY = MOVERS | {"AveragePool", "GlobalAveragePool", "ReduceMean", "Sigmoid", "Tanh", "LeakyRelu"}
UNARY |= {"HardSigmoid", "HardSwish", "Elu", "Softmax"}
FELT = 2.0
"""How many times as wide as attention's scores their mask may be on one grid with them."""
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
    """Quantized tensors that need no range of their own: what a mover of `same_scale` gives."""

    def groups(self) -> dict[str, list[str]]:
        """Root -> the tensors of its group that have ranges of their own."""
        found: dict[str, list[str]] = defaultdict(list)
        for name, root in self.roots.items():
            if name not in self.derived:
                found[root].append(name)
        return found


def place(
    graph: Graph,
    form: Format,
    keep_float: frozenset[str] = frozenset(),
    not_finite: frozenset[str] = frozenset(),
    extremes: Mapping[str, Range] | None = None,
) -> Placement:
    """`keep_float`: names of nodes that must not run in 8 bits; `not_finite`: tensors that no range
    holds; `extremes`: all that calibration saw of the others, as far as it is known."""
    extremes = extremes or {}
    not_finite |= {
        n for n, seen in extremes.items() if 0.0 < unlike.width(seen) < unlike.LEAST_WIDTH
    }
    steps = [_step(graph, node, extremes) for node in graph.nodes]
    keep_float |= unlike.stay_float(steps, graph.outputs, extremes, FELT)
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
    """What a node does to values, for calibration.unlike."""
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


def _channels(
    graph: Graph, node: onnx.NodeProto, extremes: Mapping[str, Range]
) -> tuple[float, ...]:
    """Of a convolution; what a last Gemm or MatMul gives stays float anyway."""
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
    """Rule 1: whether it can run in 8 bits for its own sake."""
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
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        bias_shape = graph.shape(bias) if bias else None
        flat = not bias or (bias_shape is not None and len(bias_shape) == 1)
        return plain and flat and not attribute(node, "transA", 0)
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
    """What a node gives, after the Relu or Clip that belongs to it."""
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
    """Rules 1 and 2, in the order of computation. -> names of nodes in 8 bits."""
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
    """Rule 2: whether all that it computes with is quantized already."""
    if node.op_type in WEIGHTED or not needs or not set(needs) <= available:
        return False
    if node.op_type in PAIRED:
        names = [name for name in node.input if name]
        if node.op_type in form.same_scale and len(set(names)) > len(needs):
            return False  # a constant need not fit in the range of what is computed
        return all(graph.is_float(n) for n in names) and all(graph.is_float(n) for n in node.output)
    return _movable(graph, node)


def _movable(graph: Graph, node: onnx.NodeProto) -> bool:
    """Exceptions of operators that otherwise only move values."""
    if not all(graph.is_float(name) for name in node.output if name):
        return (
            node.op_type == "MaxPool" and graph.is_float(node.output[0]) and len(node.output) == 1
        )
    if node.op_type == "Pad":
        mode = attribute(node, "mode", b"constant")
        value = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        given = len(node.input) > 2 and bool(node.input[2])
        return mode != b"constant" or not given or (value is not None and not value.any())
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
    seen: set[str],
) -> bool:
    """Whether what a mover gives comes, over movers only, to an operator of rule 1."""
    for name in node.output:
        for taker in graph.consumers.get(name, []):
            if taker.name in heavy and name in activations(taker, graph):
                return True
            if taker.name in seen or taker.name not in listed or taker.op_type not in MOVERS:
                continue
            seen.add(taker.name)
            if taker.input[0] == name and _leads(graph, taker, listed, heavy, seen):
                return True
    return False


def _trimmed(graph: Graph, integer: set[str]) -> set[str]:
    """Rule 5, first half."""
    left = set(integer)
    for node in reversed(graph.nodes):
        if node.name in left and node.op_type in MOVERS:
            takers = [t for name in node.output for t in graph.consumers.get(name, [])]
            if not any(taker.name in left for taker in takers):
                left.remove(node.name)
    return left


def _raw(graph: Graph, integer: set[str], after: dict[str, str]) -> set[str]:
    """Rule 5, second half."""
    raw: set[str] = set()
    for node in graph.nodes:
        if node.name in integer and node.op_type in MATRIX:
            given = result(node, graph, after)
            takers = [taker for name in given for taker in graph.consumers.get(name, [])]
            if not any(taker.name in integer for taker in takers):
                raw |= set(given)
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
        taken = [name for name in activations(node, graph) if name not in raw]
        given = [name for name in result(node, graph, after) if name not in raw]
        for name in taken + given:
            roots.setdefault(name, name)
        if node.op_type in form.same_scale and taken:
            first = root(taken[0])
            for name in taken[1:] + given:
                roots[root(name)] = first
            derived |= set(given) if node.op_type in MOVERS else set()
    return {name: root(name) for name in roots}, derived
