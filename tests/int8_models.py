"""Models that can be quantized, and data whose labels are what they predict."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from tests.int8_runs import Arrays
from tests.onnx_models import build, constant, node, save, value


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def convolutions(opset: int = 17) -> Any:
    """`x` [n, 3, 8, 8] -> `y` [n, 5]: two convolutions with Relu, a pool, a Gemm."""
    return build(
        [
            node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
            node("Relu", "c1", "r1"),
            node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1]),
            node("Relu", "c2", "r2"),
            node("GlobalAveragePool", "r2", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f w3 b3", "y"),
        ],
        [value("x", ["n", 3, 8, 8])],
        [value("y", ["n", 5])],
        [
            constant("w1", random(8, 3, 3, 3, scale=0.2)),
            constant("b1", random(8, seed=1, scale=0.1)),
            constant("w2", random(8, 8, 3, 3, seed=2, scale=0.12)),
            constant("b2", random(8, seed=3, scale=0.1)),
            constant("w3", random(8, 5, seed=4)),
            constant("b3", np.zeros(5)),
        ],
        opset=opset,
        ir=6 if opset < 12 else 8,
    )


def perceptron() -> Any:
    """`x` [n, 128] -> `y` [n, 10] by MatMul and Add, twice.

    Large enough that the products take most of the time, whatever else the machine does.
    """
    return build(
        [
            node("MatMul", "x w1", "m1"),
            node("Add", "m1 b1", "a1"),
            node("Relu", "a1", "r1"),
            node("MatMul", "r1 w2", "m2"),
            node("Add", "m2 b2", "y"),
        ],
        [value("x", ["n", 128])],
        [value("y", ["n", 10])],
        [
            constant("w1", random(128, 2048, scale=0.1)),
            constant("b1", random(2048, seed=1, scale=0.1)),
            constant("w2", random(2048, 10, seed=2, scale=0.02)),
            constant("b2", np.zeros(10)),
        ],
    )


def two_by_two() -> Any:
    """`a` [n, 3, 8, 8] and `b` [n, 2, 8, 8] -> `y` [n, 4, 8, 8] and `z` [n, 6]."""
    return build(
        [
            node("Conv", "a w1", "c1", pads=[1, 1, 1, 1]),
            node("Relu", "c1", "r1"),
            node("Conv", "b w2", "c2"),
            node("Add", "r1 c2", "s"),
            node("Conv", "s w3", "y"),
            node("GlobalAveragePool", "s", "p"),
            node("Flatten", "p", "f"),
            node("Gemm", "f w4", "z"),
        ],
        [value("a", ["n", 3, 8, 8]), value("b", ["n", 2, 8, 8])],
        [value("y", ["n", 4, 8, 8]), value("z", ["n", 6])],
        [
            constant("w1", random(8, 3, 3, 3, scale=0.2)),
            constant("w2", random(8, 2, 1, 1, seed=1)),
            constant("w3", random(4, 8, 1, 1, seed=2, scale=0.3)),
            constant("w4", random(8, 6, seed=3)),
        ],
    )


def shared_scale(ratio: float) -> Any:
    """`x` [n, 1, 8, 8] -> `large` and `small`: two channels of one tensor, of which one is `ratio`
    times the other, so that one scale for both leaves little of the small one."""
    return build(
        [
            node("Conv", "x spread", "both"),
            node("Conv", "both first", "large"),
            node("Conv", "both second", "small"),
        ],
        [value("x", ["n", 1, 8, 8])],
        [value("large", ["n", 1, 8, 8]), value("small", ["n", 1, 8, 8])],
        [
            constant("spread", np.reshape([ratio, 1.0], (2, 1, 1, 1))),
            constant("first", np.reshape([1.0, 0.0], (1, 2, 1, 1))),
            constant("second", np.reshape([0.0, 1.0], (1, 2, 1, 1))),
        ],
    )


def uniform(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def labels_of(path: Path, output: str, feeds: Arrays) -> np.ndarray:
    """What the float model predicts."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run([output], feeds)[0].argmax(-1)
    return found


def labelled(model: Any, folder: Path, output: str, **arrays: np.ndarray) -> tuple[Path, Path]:
    """-> the model's file, and data whose labels are what it predicts."""
    path = save(model, folder / "net.onnx")
    y = labels_of(path, output, arrays)
    np.savez(folder / "net.npz", y=y, **arrays)  # type: ignore[arg-type]
    return path, folder / "net.npz"


def balanced(count: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Inputs of `convolutions` of which it predicts several classes."""
    offsets = np.random.default_rng(seed + 1).choice([-2.0, 0.0, 2.0], size=(count, 3, 1, 1))
    found: np.ndarray = (uniform(count, 3, 8, 8, seed=seed) + offsets) * scale
    return found.astype(np.float32)


def rooted() -> Any:
    """A Sqrt between two convolutions: NaN where an input is negative."""
    return build(
        [
            node("Conv", "x w1", "c1"),
            node("Sqrt", "c1", "root"),
            node("Conv", "root w2", "c2"),
            node("GlobalAveragePool", "c2", "p"),
            node("Flatten", "p", "y"),
        ],
        [value("x", ["n", 3, 8, 8])],
        [value("y", ["n", 4])],
        [
            constant("w1", np.abs(random(4, 3, 1, 1))),
            constant("w2", random(4, 4, 1, 1, seed=1)),
        ],
    )
