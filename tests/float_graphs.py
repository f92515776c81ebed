"""Small float graphs, and what a session that optimizes nothing gives."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto

from tests.onnx_models import build, constant, node, value, weights

INT64, BOOL, F16 = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plainly(model: Any) -> Any:
    """A session that optimizes nothing, of a model or a file."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, settings, providers=["CPUExecutionProvider"])


def branches() -> Any:
    """Two float inputs and one of indices; an output of one number beside one of scores."""
    return build(
        [
            node("MatMul", "left wl", "a"),
            node("Relu", "a", "b"),
            node("Gemm", "right wr offset", "c"),
            node("Sigmoid", "c", "d"),
            node("Mul", "b d", "e"),
            node("Gather", "table ids", "f"),
            node("ReduceMean", "f", "g", axes=[1], keepdims=0),
            node("Concat", "e g", "h", axis=1),
            node("MatMul", "h last", "scores"),
            node("ReduceMax", "h", "peak", keepdims=0),
        ],
        [value("left", ["N", 6]), value("right", ["N", 5]), value("ids", ["N", 2], INT64)],
        [value("scores", ["N", 3]), value("peak", [])],
        [
            weights("wl", 6, 4),
            weights("wr", 5, 4),
            weights("offset", 4),
            weights("table", 9, 7),
            weights("last", 11, 3),
        ],
    )


def branch_data(count: int) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(1).integers(0, 9, (count, 2))
    return {"left": floats(count, 6), "right": floats(count, 5, seed=1), "ids": ids}


def roots() -> Any:
    """Square roots and inverses of `x`; beside them a part that is always finite."""
    return build(
        [
            node("Sqrt", "x", "root"),
            node("MatMul", "root w", "y"),
            node("Reciprocal", "x", "inverse"),
            node("MatMul", "inverse w", "z"),
            node("Relu", "x", "positive"),
            node("MatMul", "positive w", "u"),
        ],
        [value("x", ["N", 40])],
        [value("y", ["N", 3]), value("z", ["N", 3]), value("u", ["N", 3])],
        [weights("w", 40, 3)],
    )


def kinds(model: Any) -> list[str]:
    return [entry.op_type for entry in model.graph.node]


def run(model: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    found: list[np.ndarray] = plainly(model).run(None, feed)
    return found


NORM = [
    weights("gamma", 4),
    weights("beta.", 4),
    weights("mean", 4),
    constant("variance", [0.5, 1, 2, 3]),
]


def norm(source: str, target: str, **attributes: Any) -> Any:
    names = f"{source} gamma beta. mean variance"
    return node("BatchNormalization", names, target, **attributes)


def convolution(kind: str = "Conv", *, bias: bool = True, **keywords: Any) -> Any:
    """Conv or ConvTranspose, BatchNormalization, Relu."""
    shape = (4, 3, 3, 3) if kind == "Conv" else (3, 4, 3, 3)
    return build(
        [
            node(kind, "x kernel offset" if bias else "x kernel", "c", pads=[1, 1, 1, 1]),
            norm("c", "n"),
            node("Relu", "n", "y"),
        ],
        [value("x", [1, 3, 6, 6])],
        [value("y", [1, 4, 6, 6])],
        [weights("kernel", *shape), *([weights("offset", 4)] if bias else []), *NORM],
        **keywords,
    )


def root() -> Any:
    return build(
        [node("Sqrt", "x", "root"), node("MatMul", "root w", "y")],
        [value("x", ["N", 4])],
        [value("y", ["N", 3])],
        [weights("w", 4, 3)],
    )


def table(rows: int = 7) -> Any:
    """A product of what is looked up by `ids`."""
    return build(
        [node("Gather", "table ids", "g"), node("MatMul", "g w", "y")],
        [value("ids", ["N", 2], INT64)],
        [value("y", ["N", 2, 3])],
        [weights("table", rows, 3), weights("w", 3, 3)],
    )
