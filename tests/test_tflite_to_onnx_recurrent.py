"""Recurrent operators of TFLite as ONNX, beside LiteRT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onmetal.converters.tflite.net import Net, Op, Tensor, constant
from onmetal.converters.tflite.to_onnx.convert import to_onnx
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from tests.tflite_kinds import F32, Arrays
from tests.tflite_nets import STEPS, WIDTH, lstm
from tests.tflite_quantized import sqnr
from tests.tflite_round_trip import agrees, by_litert, by_onnx, converted, operators

CELLS, BATCH = 6, 2
TANH = 4


@dataclass
class Weights:
    """Random weights of one direction, in TFLite's order of inputs."""

    seed: int
    width: int
    outputs: int = CELLS
    coupled: bool = False
    peephole: bool = False
    projected: bool = False
    spread: float = 0.8

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def floats(self, name: str, *shape: int) -> Tensor:
        values = self.random.normal(0, self.spread, shape)
        return constant(f"{name}{self.seed}", values, np.float32)

    def inputs(self) -> list[Tensor | None]:
        gates = "fco" if self.coupled else "ifco"
        absent: list[Tensor | None] = [None] if self.coupled else []
        found = absent + [self.floats(f"w{gate}", CELLS, self.width) for gate in gates]
        found += absent + [self.floats(f"r{gate}", CELLS, self.outputs) for gate in gates]
        peepholes = [self.floats(f"p{gate}", CELLS) if self.peephole else None for gate in "ifo"]
        found += [None, *peepholes[1:]] if self.coupled else peepholes
        found += absent + [self.floats(f"b{gate}", CELLS) for gate in gates]
        if self.projected:
            return [*found, self.floats("p", self.outputs, CELLS), self.floats("pb", self.outputs)]
        return [*found, None, None]


def state(name: str, size: int) -> Tensor:
    return Tensor(name, (BATCH, size), F32, variable=True)


def options(**more: Any) -> dict[str, Any]:
    settings = {"fusedActivationFunction": TANH, "cellClip": 0.0, "projClip": 0.0}
    return settings | {"timeMajor": False} | more


def sequence(steps: int, width: int, time_major: bool) -> tuple[int, ...]:
    return (steps, BATCH, width) if time_major else (BATCH, steps, width)


def unidirectional(weights: Weights, steps: int = 7, **more: Any) -> Net:
    settings = options(**more)
    major = settings["timeMajor"]
    x = Tensor("x", sequence(steps, weights.width, major), F32)
    y = Tensor("y", sequence(steps, weights.outputs, major), F32)
    inputs = [x, *weights.inputs(), state("h", weights.outputs), state("c", CELLS), *[None] * 4]
    return Net([x], [y], [Op("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [y], settings)])


def fed(net: Net, scale: float = 1.0) -> Arrays:
    random = np.random.default_rng(5)
    return {t.name: (scale * random.normal(size=t.shape)).astype(t.dtype) for t in net.inputs}


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("peephole", [False, True])
def test_an_lstm_is_one_operator(time_major: bool, peephole: bool, tmp_path: Path) -> None:
    net = unidirectional(Weights(1, 5, peephole=peephole), timeMajor=time_major)
    assert operators(agrees(net, fed(net), tmp_path))["LSTM"] == 1


def test_a_limit_that_the_cell_cannot_reach_is_left_out(tmp_path: Path) -> None:
    """It grows by at most 1 in a step."""
    net = unidirectional(Weights(1, 5), steps=7, cellClip=7.0)
    assert operators(agrees(net, fed(net), tmp_path))["LSTM"] == 1


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"peephole": True}, {"coupled": True}, {"projected": True, "outputs": 4}]
)
def test_a_limit_of_the_cell_is_kept(more: Any, time_major: bool, tmp_path: Path) -> None:
    limits = {"cellClip": 0.4, "projClip": 0.3}
    net = unidirectional(Weights(2, 5, **more), 7, timeMajor=time_major, **limits)
    feed = fed(net, 2.0)
    assert "LSTM" not in operators(agrees(net, feed, tmp_path))
    free = unidirectional(Weights(2, 5, **more), timeMajor=time_major)
    limited, whole = by_litert(net, feed)["y"], by_litert(free, feed)["y"]
    assert np.abs(limited - whole).max() > 0.1  # the limit matters here


@pytest.mark.parametrize("more", [{"coupled": True}, {"projected": True, "outputs": 4}])
def test_what_onnx_lacks_is_written_step_by_step(more: Any, tmp_path: Path) -> None:
    net = unidirectional(Weights(3, 4, **more))
    agrees(net, fed(net), tmp_path)


def test_one_step(tmp_path: Path) -> None:
    net = unidirectional(Weights(4, 3), steps=1, cellClip=0.2)
    agrees(net, fed(net), tmp_path)


def bidirectional(merged: bool, major: bool, clip: float) -> Net:
    x = Tensor("x", sequence(6, 5, major), F32)
    widths = [2 * CELLS] if merged else [CELLS, CELLS]
    outputs = [Tensor(f"y{n}", sequence(6, width, major), F32) for n, width in enumerate(widths)]
    inputs = [x, *Weights(5, 5).inputs(), *Weights(6, 5).inputs()]
    inputs += [state(name, CELLS) for name in ("fh", "fc", "bh", "bc")] + [None] * 9
    settings = options(mergeOutputs=merged, cellClip=clip, timeMajor=major)
    return Net([x], outputs, [Op("BIDIRECTIONAL_SEQUENCE_LSTM", inputs, outputs, settings)])


@pytest.mark.parametrize(("merged", "major"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_both_directions(merged: bool, major: bool, clip: float, tmp_path: Path) -> None:
    net = bidirectional(merged, major, clip)
    made = operators(agrees(net, fed(net), tmp_path))
    assert made["LSTM"] == (0 if clip else 2)


@pytest.mark.parametrize("activation", [1, TANH])
@pytest.mark.parametrize("time_major", [False, True])
def test_an_rnn(activation: int, time_major: bool, tmp_path: Path) -> None:
    x = Tensor("x", sequence(6, 5, time_major), F32)
    y = Tensor("y", sequence(6, CELLS, time_major), F32)
    weights = Weights(7, 5, spread=0.4)
    parts = [weights.floats("w", CELLS, 5), weights.floats("r", CELLS, CELLS)]
    inputs: list[Tensor | None] = [x, *parts, weights.floats("b", CELLS), state("h", CELLS)]
    settings = {"fusedActivationFunction": activation, "timeMajor": time_major}
    net = Net([x], [y], [Op("UNIDIRECTIONAL_SEQUENCE_RNN", inputs, [y], settings)])
    assert operators(agrees(net, fed(net), tmp_path))["RNN"] == 1


def test_state_begins_with_zeros_in_every_run(tmp_path: Path) -> None:
    path = lstm(tmp_path / "lstm.tflite")
    model = to_onnx(path)
    x = np.random.default_rng(0).normal(size=(1, STEPS, WIDTH)).astype(np.float32)
    first, second = (by_onnx(model, {"x": x})["y"] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def in_integers(net: Net) -> Net:
    """8-bit weights, activations and output state; 16 bits of the cell state."""
    op = net.ops[0]

    def grid(tensor: Tensor, dtype: Any, scale: float, zero: int = 0) -> Tensor:
        new = Tensor(tensor.name, tensor.shape, np.dtype(dtype), variable=tensor.variable)
        new.scale, new.zero_point = np.array([scale], np.float32), np.array([zero], np.int64)
        if tensor.data is not None:
            new.data = np.round(tensor.data / np.float64(new.scale[0])).astype(dtype)
        return new

    x = grid(net.inputs[0], np.int8, 4 / 127, 3)
    y = grid(net.outputs[0], np.int8, 1 / 127, -1)
    inputs = list(op.inputs)
    inputs[0] = x
    for place in range(1, 9):
        weight = op.inputs[place]
        assert weight is not None and weight.data is not None
        inputs[place] = grid(weight, np.int8, float(np.abs(weight.data).max()) / 127)
    for place in range(12, 16):
        bias, weight = op.inputs[place], inputs[place - 11]
        assert bias is not None and weight is not None and weight.scale is not None
        inputs[place] = grid(bias, np.int32, 4 / 127 * float(weight.scale[0]))
    hidden, cell = op.inputs[18], op.inputs[19]
    assert hidden is not None and cell is not None
    inputs[18], inputs[19] = grid(hidden, np.int8, 1 / 127, -1), grid(cell, np.int16, 2.0**-11)
    unused = [Tensor(f"unused{n}", (0,), F32) for n in range(4)]
    unused.append(grid(Tensor("hidden", (0,), F32), np.int8, 1 / 127, -1))
    made = Op(op.kind, inputs, [y], {**op.options}, intermediates=unused)
    return Net([x], [y], [made])


def test_an_lstm_of_integers(tmp_path: Path) -> None:
    net = in_integers(unidirectional(Weights(8, 5, spread=0.5), steps=12, cellClip=10.0))
    feed = {"x": np.random.default_rng(1).integers(-128, 128, (BATCH, 12, 5)).astype(np.int8)}
    model = converted(net, tmp_path)
    found, wanted = by_onnx(model, feed)["y"], by_litert(net, feed)["y"]
    assert found.dtype == np.int8
    assert sqnr(wanted.astype(float) + 1, found.astype(float) + 1) >= 30


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fusedActivationFunction": 1}, "activation 1"),
        ({"normalized": True}, "layer normalization"),
        ({"cellClip": 10.0, "steps": 600}, "cellClip of 10"),
    ],
)
def test_what_cannot_be_expressed_is_refused(change: Any, text: str, tmp_path: Path) -> None:
    change = dict(change)
    steps, normalized = change.pop("steps", 5), change.pop("normalized", False)
    net = unidirectional(Weights(9, 3), steps=steps, **change)
    if normalized:
        net.ops[0].inputs[20:24] = [constant(f"n{n}", np.ones(CELLS), F32) for n in range(4)]
    path = tmp_path / "given.tflite"
    path.write_bytes(write(net))
    with pytest.raises(UnsupportedError, match=f"UNIDIRECTIONAL_SEQUENCE_LSTM 'y': .*{text}"):
        to_onnx(path)


def test_directions_that_litert_mixes_are_refused(tmp_path: Path) -> None:
    """Beside each other in a batch-major output of several samples."""
    with pytest.raises(UnsupportedError, match="BIDIRECTIONAL_SEQUENCE_LSTM 'y0': mergeOutputs"):
        converted(bidirectional(True, False, 0.0), tmp_path)
