"""Random nets, quantized."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onmetal.converters.onnx import floats as onnx_float
from onmetal.converters.tflite import convert, io
from onmetal.converters.tflite.check import problems
from onmetal.converters.tflite.grid import Activation
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.quantize import quantize
from onmetal.converters.tflite.reference import interpreter
from onmetal.converters.tflite.specification import WEIGHTED
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from tests.onnx_models import build, node, save, value
from tests.onnx_models import constant as initializer
from tests.tflite_quantized import KERNELS, ROUGH, STEPS, calibrated, outputs, steps_off


class Growing:
    """An ONNX graph of images and what is made of them, that grows by drawn operators."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.random = np.random.default_rng(draw(st.integers(0, 999)))
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.side, self.depth = draw(st.sampled_from([4, 5, 8])), draw(st.sampled_from([1, 2, 3]))
        self.images: dict[str, tuple[int, int]] = {"x": (self.depth, self.side)}
        """Name -> channels and side length."""

    def one(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def weights(self, *shape: int, spread: float = 1.0) -> str:
        name = f"c{len(self.constants)}"
        array = self.random.uniform(-spread, spread, shape)
        self.constants.append(initializer(name, array))
        return name

    def node(self, kind: str, inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(node(kind, inputs, name, **attributes))
        return name

    def conv(self, taken: str) -> str:
        channels, side = self.images[taken]
        size, stride = self.one(1, 3), self.one(1, 2)
        group = self.one(1, channels)
        out = channels if group > 1 else self.one(1, 2, 4)
        pad = size // 2 if self.one(True, False) or side < size else 0
        weight = self.weights(out, channels // group, size, size, spread=1.5 / size)
        name = self.node(
            "Conv",
            f"{taken} {weight} {self.weights(out, spread=0.3)}",
            kernel_shape=[size] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=group,
        )
        self.images[name] = (out, (side + 2 * pad - size) // stride + 1)
        return name

    def pool(self, taken: str) -> str:
        channels, side = self.images[taken]
        if side < 3:
            return self.activation(taken)
        kind = self.one("MaxPool", "AveragePool")
        size, pad = self.one(2, 3), self.one(0, 1)
        name = self.node(kind, taken, kernel_shape=[size] * 2, strides=[2, 2], pads=[pad] * 4)
        self.images[name] = (channels, (side + 2 * pad - size) // 2 + 1)
        return name

    def activation(self, taken: str) -> str:
        kind = self.one("Relu", "Clip", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Softmax")
        if kind == "Clip":
            least, most = self.weights(), self.weights()
            self.constants[-2] = initializer(least, 0.0)
            self.constants[-1] = initializer(most, 6.0)
            name = self.node(kind, f"{taken} {least} {most}")
        elif kind == "Softmax":
            name = self.node(kind, taken, axis=self.one(1, 3))
        else:
            name = self.node(kind, taken)
        self.images[name] = self.images[taken]
        return name

    def joined(self, taken: str) -> str:
        channels, side = self.images[taken]
        kind = self.one("Add", "Mul", "Sub", "Max", "Concat")
        same = kind != "Concat"
        others = [
            other
            for other, shape in self.images.items()
            if shape[1] == side and (not same or shape[0] == channels)
        ]
        other = self.one(*others)
        if kind == "Concat":
            name = self.node(kind, f"{taken} {other}", axis=1)
            self.images[name] = (channels + self.images[other][0], side)
            return name
        if self.one(True, False, False):
            other = self.weights(channels, 1, 1)
        name = self.node(kind, f"{taken} {other}")
        self.images[name] = (channels, side)
        return name

    def padded(self, taken: str) -> str:
        channels, side = self.images[taken]
        pads = f"p{len(self.constants)}"
        self.constants.append(initializer(pads, [0, 0, 1, 1, 0, 0, 1, 1], "int64"))
        mode = self.one("constant", "reflect") if side > 1 else "constant"
        name = self.node("Pad", f"{taken} {pads}", mode=mode)
        self.images[name] = (channels, side + 2)
        return name

    def whole(self) -> Any:
        taken = self.conv("x")
        for _ in range(self.draw(st.integers(1, 6))):
            step = self.one(
                self.conv, self.conv, self.pool, self.activation, self.joined, self.padded
            )
            taken = step(taken if self.one(True, True, False) else self.one(*self.images))
        outputs = [taken]
        channels, side = self.images[taken]
        if self.one(True, False):
            flat = self.node("Flatten", self.node("GlobalAveragePool", taken))
            count = channels
            if self.one(True, False):
                flat, count = self.node("Flatten", taken), channels * side * side
            dense = self.node("Gemm", f"{flat} {self.weights(count, 3)} {self.weights(3)}")
            outputs.append(self.node("Softmax", dense) if self.one(True, False) else dense)
        found = [value(name, None) for name in outputs]
        taken_in = [value("x", [1, self.depth, self.side, self.side])]
        return build(self.nodes, taken_in, found, self.constants)


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    return Growing(draw).whole()


LEAST_SHARE = 0.15
"""Of the largest value of an output: what eight operators of 8 bits may add up to in the mean."""


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(graphs(), st.sampled_from(["s8", "s8", "s16"]), st.integers(0, 2**32), st.booleans())
def test_random_graphs(
    tmp_path: Path, model: Any, activation: Activation, choice: int, all_integer: bool
) -> None:
    """In integers as far as it goes, or with some operators and tensors left in floats."""
    path = save(model, tmp_path / "given.onnx")
    onnx_float.simplify(str(path), str(tmp_path))
    net = convert.lower(tmp_path / "model.onnx")
    random = np.random.default_rng(1)
    name = net.inputs[0].name
    feeds = [{name: random.normal(size=net.inputs[0].shape).astype(np.float32)} for _ in range(3)]
    ranges, keep_float = calibrated(net, feeds), frozenset[str]()
    if not all_integer:
        picked = np.random.default_rng(choice)
        keep_float = frozenset(op.outputs[0].name for op in net.ops if picked.random() < 0.2)
        ranges = {name: found for name, found in ranges.items() if picked.random() < 0.9}
    weighted = any(op.kind in WEIGHTED for op in net.ops)
    try:
        content = write(quantize(net, ranges, activation, keep_float))
    except UnsupportedError:
        assert not (weighted and all_integer)
        return
    assert weighted
    assert write(quantize(net, ranges, activation, keep_float)) == content
    made = read(content)
    assert problems(made) == []
    by_name = {t.name: op for op in made.ops for t in op.outputs if op.kind != "DEQUANTIZE"}
    assert all(name in by_name for name in keep_float)
    outs = [tensor.name for tensor in net.outputs]
    for reference in KERNELS.values():
        for kind, off in steps_off(made, feeds, reference).items():
            assert off <= ROUGH.get((activation, kind), STEPS[activation]), (kind, reference)
        wanted, found = (outputs(n, feeds, reference) for n in (net, made))
        for out in outs:
            left, right = (np.stack([run[out] for run in runs]) for runs in (wanted, found))
            assert np.isfinite(right).all()
            peak = float(np.abs(left).max())
            assert np.abs(left - right).mean() <= LEAST_SHARE * peak + 1e-6, out
    io.integers(made)
    assert problems(read(write(made))) == []
    for reference in KERNELS.values():
        interpreter(write(made), reference).invoke()
