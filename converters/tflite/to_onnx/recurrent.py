"""Recurrent operators over a whole sequence: as LSTM or RNN, or step by step.

TFLite's gates are in the order i, f, c, o; ONNX's in the order i, o, f, c. Step by step is written
what ONNX's LSTM lacks: a limit of the cell state (its `clip` is one of what goes into the gates), a
projection, coupled gates, and integers between the steps.
"""

from typing import NamedTuple

import numpy as np

from onmetal.converters.tflite.net import Op, Tensor
from onmetal.converters.tflite.to_onnx.fused import RELU, TANH
from onmetal.converters.tflite.to_onnx.graph import Graph, Order, is_quantized
from onmetal.converters.tflite.to_onnx.rules import given, refuse, taken, writes

MOST_STEPS = 512
"""The longest sequence that is written step by step."""
NORMALIZATION = range(20, 24)
"""Inputs with coefficients of layer normalization."""


class Cell(NamedTuple):
    """What one direction of an LSTM has. Gates in TFLite's order; i may be None."""

    weights: list[Tensor | None]
    recurrent: list[Tensor | None]
    peepholes: list[Tensor | None]
    """Of i, f and o."""
    biases: list[Tensor | None]
    projection: Tensor | None
    projection_bias: Tensor | None


def _cell(op: Op, first: int) -> Cell:
    """`first`: the place of its first weight among the inputs."""

    def some(offset: int, count: int) -> list[Tensor | None]:
        return [given(op, first + offset + place) for place in range(count)]

    return Cell(some(0, 4), some(4, 4), some(8, 3), some(11, 4), *some(15, 2))


def _stacked(graph: Graph, tensors: list[Tensor | None], directions: bool) -> str:
    """Matrices or vectors of gates below each other, with a scale for each row where they are
    integers. `directions`: with ONNX's axis of directions in front."""
    sources = [graph.aliases.get(t, t) for t in tensors if t is not None]
    arrays = [graph.array(source) for source in sources]
    known = [array for array in arrays if array is not None]
    if len(known) != len(sources):
        raise refuse_computed(sources)
    array = np.concatenate(known)
    array = array[None] if directions else array
    first = sources[0]
    if not is_quantized(first):
        return graph.constant(array, np.float32, f"{first.name}/gates")
    scales = [
        np.broadcast_to(np.asarray(source.scale), known[place].shape[:1])
        for place, source in enumerate(sources)
    ]
    if any(np.any(np.asarray(source.zero_point)) for source in sources):
        raise ValueError("its weights have a zero point other than 0")
    return graph.dequantized_constant(
        array, _symmetric(first), int(directions), np.concatenate(scales)
    )


def refuse_computed(sources: list[Tensor]) -> ValueError:
    return ValueError(f"its weights are computed, not constant: {sources[0].name!r}")


def _symmetric(tensor: Tensor) -> Tensor:
    """The tensor's name and type, with one zero point."""
    return Tensor(
        tensor.name, tensor.shape, tensor.dtype, None, np.ones(1, np.float32), np.zeros(1, np.int64)
    )


def _bias(graph: Graph, source: Tensor, cell: Cell) -> np.ndarray:
    """float32 [gates, cells]; integers are in the scale of the products."""
    rows = []
    for bias, weight in zip(cell.biases, cell.weights, strict=True):
        if weight is None:
            continue
        if bias is None:
            rows.append(np.zeros(weight.shape[0], np.float32))
            continue
        array = graph.array(graph.aliases.get(bias, bias))
        if array is None:
            raise refuse_computed([bias])
        if array.dtype.kind == "i" and source.scale is not None and weight.scale is not None:
            array = array * (source.scale.astype(np.float64) * weight.scale)
        rows.append(array.astype(np.float32))
    return np.stack(rows)


def _by_time(op: Op) -> Order:
    """The order [time, batch, values]."""
    return (0, 1, 2) if op.options.get("timeMajor") else (1, 0, 2)


@writes("UNIDIRECTIONAL_SEQUENCE_LSTM", to="LSTM, or its parts", limits="tanh; no normalization")
def lstm(graph: Graph, op: Op) -> None:
    if any(given(op, place) is not None for place in NORMALIZATION):
        raise refuse(op, "layer normalization is not supported")
    result = _sequence(graph, op, _cell(op, 1), op.outputs[0], backwards=False)
    graph.give(op.outputs[0], result, _by_time(op))


@writes("BIDIRECTIONAL_SEQUENCE_LSTM", to="LSTM, or its parts, Concat", limits="no second input")
def bidirectional(graph: Graph, op: Op) -> None:
    if any(given(op, place) is not None for place in range(39, 48)):
        raise refuse(op, "an auxiliary input is not supported")
    order = _by_time(op)
    merged = bool(op.options.get("mergeOutputs"))
    if merged and not op.options.get("timeMajor") and taken(op, 0).shape[0] > 1:
        raise refuse(op, "mergeOutputs is supported for a batch of 1, or with timeMajor; with "
                     "others LiteRT itself mixes the samples of the batch")  # fmt: skip
    results = []
    for first, backwards in ((1, False), (18, True)):
        out = op.outputs[0 if merged else int(backwards)]
        results.append(_sequence(graph, op, _cell(op, first), out, backwards))
        if not merged:
            graph.give(out, results[-1], order)
    if merged:
        graph.give(op.outputs[0], graph.emit("Concat", results, axis=2), order)


def _sequence(graph: Graph, op: Op, cell: Cell, out: Tensor, backwards: bool) -> str:
    """-> [time, batch, cells]"""
    source, order = taken(op, 0), _by_time(op)
    if op.activation != TANH:
        raise refuse(op, f"the activation {op.activation} is not supported: tanh is")
    steps = source.shape[order[0]]
    limit = float(op.options.get("cellClip", 0.0))
    coupled, projected = cell.weights[0] is None, cell.projection is not None
    # The state grows by at most 1 in a step.
    clipped = 0.0 < limit < steps
    if not (clipped or coupled or projected or is_quantized(out)):
        return _as_lstm(graph, op, cell, backwards)
    if steps > MOST_STEPS:
        raise refuse(
            op, f"a sequence of {steps} steps with a cellClip of {limit:g} is not supported"
        )
    return _Steps(graph, op, cell, out, limit if clipped else 0.0).written(backwards)


def _as_lstm(graph: Graph, op: Op, cell: Cell, backwards: bool) -> str:
    def onnx_order(gates: list[Tensor | None]) -> list[Tensor | None]:
        return [gates[place] for place in (0, 3, 1, 2)]

    source, order = taken(op, 0), _by_time(op)
    bias = _bias(graph, source, cell)[[0, 3, 1, 2]].reshape(1, -1)
    inputs = [
        graph.real(source, order),
        _stacked(graph, onnx_order(cell.weights), True),
        _stacked(graph, onnx_order(cell.recurrent), True),
        graph.constant(np.concatenate([bias, np.zeros_like(bias)], axis=1)),
    ]
    if any(tensor is not None for tensor in cell.peepholes):
        peepholes = [cell.peepholes[place] for place in (0, 2, 1)]
        inputs += ["", "", "", _stacked(graph, peepholes, True)]
    steps, batch = (source.shape[axis] for axis in order[:2])
    assert cell.weights[1] is not None
    cells = cell.weights[1].shape[0]
    direction = "reverse" if backwards else "forward"
    result = graph.emit("LSTM", inputs, hidden_size=cells, direction=direction)
    return graph.emit("Reshape", [result, graph.ints([steps, batch, cells])])


class _Steps:
    """An LSTM step by step. `limit`: of the cell state; 0: none."""

    def __init__(self, graph: Graph, op: Op, cell: Cell, out: Tensor, limit: float) -> None:
        self.graph, self.op, self.cell, self.out, self.limit = graph, op, cell, out, limit
        self.source = taken(op, 0)
        assert cell.weights[1] is not None
        self.cells = cell.weights[1].shape[0]
        self.width = self.cells if cell.projection is None else cell.projection.shape[0]
        self.gates = [0, 1, 3, 2] if cell.weights[0] is not None else [1, 3, 2]
        """i, f, o, c: those with a sigmoid in front."""

    def written(self, backwards: bool) -> str:
        graph, order = self.graph, _by_time(self.op)
        steps, batch = (self.source.shape[axis] for axis in order[:2])
        products = self._input_products(order, steps, batch)
        recurrent = _stacked(graph, [self.cell.recurrent[gate] for gate in self.gates], False)
        hidden, state = "", ""
        results = []
        for product in products[:: -1 if backwards else 1]:
            sums = product
            if hidden:
                sums = graph.emit("Gemm", [hidden, recurrent, product], transB=1)
            hidden, state = self._step(sums, state)
            one = graph.ints([1, batch, self.width])
            results.append(graph.emit("Reshape", [hidden, one]))
        return graph.emit("Concat", results[:: -1 if backwards else 1], axis=0)

    def _input_products(self, order: Order, steps: int, batch: int) -> list[str]:
        """[batch, gates * cells] for each step."""
        graph, depth = self.graph, self.source.shape[2]
        flat = graph.ints([steps * batch, depth])
        rows = graph.emit("Reshape", [graph.real(self.source, order), flat])
        present = [gate for gate in range(4) if self.cell.weights[gate] is not None]
        bias = _bias(graph, self.source, self.cell)
        bias = np.concatenate([bias[present.index(gate)] for gate in self.gates])
        weights = _stacked(graph, [self.cell.weights[gate] for gate in self.gates], False)
        sums = graph.emit("Gemm", [rows, weights, graph.constant(bias)], transB=1)
        if steps == 1:
            return [sums]
        return graph.emit_all("Split", [sums, graph.ints([batch] * steps)], steps, axis=0)

    def _peephole(self, gate: int, sums: str, state: str) -> str:
        vector = self.cell.peepholes[gate]
        if vector is None or not state:
            return sums
        if is_quantized(vector):
            raise ValueError("peepholes of integers are not supported")
        product = self.graph.emit("Mul", [state, self.graph.real(vector)])
        return self.graph.emit("Add", [sums, product])

    def _step(self, sums: str, state: str) -> tuple[str, str]:
        """-> the output and the cell state."""
        graph, count = self.graph, len(self.gates)
        parts = graph.emit_all("Split", [sums, graph.ints([self.cells] * count)], count, axis=1)
        *entry, forget, output, candidate = parts
        forget = graph.emit("Sigmoid", [self._peephole(1, forget, state)])
        if entry:
            begin = graph.emit("Sigmoid", [self._peephole(0, entry[0], state)])
        else:
            begin = graph.emit("Sub", [graph.constant(1.0, np.float32), forget])
        added = graph.emit("Mul", [begin, graph.emit("Tanh", [candidate])])
        if state:
            added = graph.emit("Add", [graph.emit("Mul", [forget, state]), added])
        if self.limit:
            ends = [graph.constant(end, np.float32) for end in (-self.limit, self.limit)]
            added = graph.emit("Clip", [added, *ends])
        output = graph.emit("Sigmoid", [self._peephole(2, output, added)])
        hidden = graph.emit("Mul", [output, graph.emit("Tanh", [added])])
        return self._projected(hidden), added

    def _projected(self, hidden: str) -> str:
        graph, cell = self.graph, self.cell
        if cell.projection is not None:
            bias = [] if cell.projection_bias is None else [graph.real(cell.projection_bias)]
            if bias and cell.projection_bias is not None and cell.projection_bias.dtype.kind == "i":
                raise ValueError("a projection bias of integers is not supported")
            hidden = graph.emit("Gemm", [hidden, graph.weight(cell.projection), *bias], transB=1)
            limit = float(self.op.options.get("projClip", 0.0))
            if limit:
                ends = [graph.constant(end, np.float32) for end in (-limit, limit)]
                hidden = graph.emit("Clip", [hidden, *ends])
        return graph.again(hidden, self.out) if is_quantized(self.out) else hidden


@writes("UNIDIRECTIONAL_SEQUENCE_RNN", to="RNN", limits="tanh or ReLU")
def rnn(graph: Graph, op: Op) -> None:
    """act(W x + R h + b)"""
    names = {RELU: "Relu", TANH: "Tanh"}
    if op.activation not in names:
        raise refuse(op, f"the activation {op.activation} is not supported: tanh and ReLU are")
    source, weight, out = taken(op, 0), taken(op, 1), op.outputs[0]
    if is_quantized(source):
        raise refuse(op, "integers are not supported")
    order, cells = _by_time(op), weight.shape[0]
    bias = graph.array(graph.aliases.get(taken(op, 3), taken(op, 3)))
    if bias is None:
        raise refuse(op, "its bias is computed, not constant")
    row = np.concatenate([bias.astype(np.float32), np.zeros(cells, np.float32)])[None]
    inputs = [
        graph.real(source, order),
        _stacked(graph, [weight], True),
        _stacked(graph, [taken(op, 2)], True),
        graph.constant(row),
    ]
    result = graph.emit("RNN", inputs, hidden_size=cells, activations=[names[op.activation]])
    steps, batch = (source.shape[axis] for axis in order[:2])
    result = graph.emit("Reshape", [result, graph.ints([steps, batch, cells])])
    graph.give(out, result, order)
