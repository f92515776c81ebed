"""TFLite graphs written as ONNX, and what ONNX Runtime makes of them beside LiteRT."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from onmetal.converters.tflite.net import Net, Tensor, signature_names
from onmetal.converters.tflite.reference import Exposed
from onmetal.converters.tflite.to_onnx.convert import to_onnx
from onmetal.converters.tflite.writing import write
from tests.tflite_kinds import Arrays

CLOSE = 1e-5
"""The greatest difference of floats, in parts of the greatest value."""


def converted(net: Net, folder: Path) -> Any:
    """By way of the file."""
    path = folder / "given.tflite"
    path.write_bytes(write(net))
    return to_onnx(path)


def session(model: Any, optimized: bool = False) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def by_onnx(model: Any, feed: Arrays, optimized: bool = False) -> Arrays:
    names = [entry.name for entry in model.graph.output]
    taken = {entry.name: feed[entry.name] for entry in model.graph.input}
    return dict(zip(names, session(model, optimized).run(names, taken), strict=True))


def by_litert(net: Net, feed: Arrays, reference: bool = False) -> Arrays:
    names = signature_names(net)[1]
    found = Exposed(net, names, reference).run(feed)
    return {name: found[name] for name in names}


def operators(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def differ(tensor: Tensor, wanted: np.ndarray, found: np.ndarray, close: float) -> str:
    """What is wrong with an output; empty where nothing is. Quantized ones may be `close` steps
    apart, floats by `close` of the greatest value; all others must be equal."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return f"{found.dtype} {found.shape}, not {wanted.dtype} {wanted.shape}"
    if wanted.dtype.kind != "f":
        steps = close if tensor.scale is not None else 0
        gap = np.abs(found.astype(np.int64) - wanted.astype(np.int64)).max(initial=0)
        return f"{gap} steps apart" if gap > steps else ""
    finite = np.isfinite(wanted)
    if not np.array_equal(found[~finite], wanted[~finite], equal_nan=True):
        return "other infinities"
    size = float(np.abs(wanted[finite]).max(initial=0)) or 1.0
    error = float(np.abs(found[finite] - wanted[finite]).max(initial=0)) / size
    return f"{error} apart" if not error <= close else ""


def agrees(
    net: Net, feed: Arrays, folder: Path, close: float = CLOSE, reference: bool = False
) -> Any:
    """The model, whose results are those of LiteRT."""
    net.names = signature_names(net)
    model = converted(net, folder)
    assert [entry.name for entry in model.graph.input] == net.names[0]
    wanted, found = by_litert(net, feed, reference), by_onnx(model, feed)
    assert list(found) == list(wanted)
    for (name, array), tensor in zip(wanted.items(), net.outputs, strict=True):
        problem = differ(tensor, array, found[name], close)
        assert not problem, f"{name}: {problem}; of {sorted({op.kind for op in net.ops})}"
    return model
