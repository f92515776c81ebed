"""Where a quantized artifact leaves its float model: tensor by tensor, in the order of computation.

Runs in a child process. Tensors are matched by name; nothing but sums is kept of a sample.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onmetal.calibration.fidelity import PERFECT_DB
from onmetal.calibration.graph import Graph
from onmetal.calibration.samples import Samples
from onmetal.calibration.statistics import Told
from onmetal.errors import UnsupportedError, UsageError, reason
from onmetal.records import Model, restore

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def tensors(
    artifact: str,
    reference: str,
    samples: dict[str, Any],
    model: dict[str, Any],
    told: Told = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Of every tensor that both know: its name, its operator in the float model, its SQNR in dB
    over all samples, and the peaks of both.

    `artifact`: an ONNX or an OpenVINO (.xml) file; `reference`: the float ONNX model. In the order
    of the float model. Raises UnsupportedError where they have no tensor in common.
    """
    data, of = restore(samples, Samples), restore(model, Model)
    original = onnx.load(reference)
    graph = Graph(onnx.shape_inference.infer_shapes(original))
    known = _known(artifact)
    names = [
        name
        for node in graph.nodes
        for name in node.output
        if name in known and name and (graph.is_float(name) or name in graph.outputs)
    ]
    if not names:
        raise UnsupportedError(
            "the two files have no tensor of the same name: was one made from the other?"
        )
    mine, theirs = _opened(artifact, names), _opened(reference, names)
    sums = Sums(len(names))
    count = max(1, data.count // of.batch)
    for number in range(count):
        told(number, count)
        start = number * of.batch
        feed = data.feed(of, [min(start + place, data.count - 1) for place in range(of.batch)])
        for place, (wanted, given) in enumerate(zip(theirs(feed), mine(feed), strict=True)):
            sums.add(place, wanted, given)
    return [sums.row(place, name, graph.producer[name].op_type) for place, name in enumerate(names)]


class Sums:
    """What is kept of every compared tensor: signal, noise and peaks."""

    def __init__(self, count: int) -> None:
        self.sums = np.zeros((count, 2))
        self.peaks = np.zeros((count, 2))

    def add(self, place: int, wanted: np.ndarray, given: np.ndarray) -> None:
        if wanted.shape != given.shape:
            self.sums[place, 1] = np.inf
            return
        with np.errstate(all="ignore"):
            real, other = wanted.astype(np.float64), given.astype(np.float64)
            alike = (real == other) | (np.isnan(real) & np.isnan(other))
            self.sums[place, 0] += np.sum(real[np.isfinite(real)] ** 2)
            self.sums[place, 1] += np.sum((real[~alike] - other[~alike]) ** 2)
            self.peaks[place] = np.maximum(
                self.peaks[place],
                [np.abs(real).max(initial=0.0), np.abs(other).max(initial=0.0)],
            )

    def row(self, place: int, name: str, operator: str) -> dict[str, Any]:
        return {
            "tensor": name,
            "operator": operator,
            "sqnr_db": round(_db(*self.sums[place]), 2),
            "peak_float": float(self.peaks[place, 0]),
            "peak": float(self.peaks[place, 1]),
        }


def _db(signal: float, noise: float) -> float:
    if noise == 0:
        return PERFECT_DB
    if not np.isfinite(noise) or not np.isfinite(signal) or signal == 0:
        return -PERFECT_DB
    return float(np.clip(10 * np.log10(signal / noise), -PERFECT_DB, PERFECT_DB))


def _known(artifact: str) -> set[str]:
    if not artifact.endswith(".xml"):
        return {name for node in onnx.load(artifact).graph.node for name in node.output}
    openvino = import_module("onmetal.profilers.run_openvino").openvino
    try:
        model = openvino.Core().read_model(artifact)
    except RuntimeError as error:
        raise UsageError(f"{artifact}: OpenVINO cannot read it: {reason(error)}") from None
    return {
        name for node in model.get_ordered_ops() for port in node.outputs() for name in port.names
    }


def _opened(path: str, names: list[str]) -> Run:
    """Run the file, giving the named tensors, by the runtime that its format belongs to."""
    if path.endswith(".xml"):
        return _by_openvino(path, names)
    onnxruntime = import_module("onmetal.profilers.run_onnxruntime").onnxruntime  # no telemetry
    model = onnx.load(path)
    there = {value.name for value in model.graph.output}
    for name in names:
        if name not in there:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise UnsupportedError(f"{Path(path).name}: {reason(error)}") from None
    return lambda feed: session.run(names, feed)


def _by_openvino(path: str, names: list[str]) -> Run:
    openvino = import_module("onmetal.profilers.run_openvino").openvino
    core = openvino.Core()
    model = core.read_model(path)
    given = {name for port in model.outputs for name in port.names}
    model.add_outputs([name for name in names if name not in given])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        request.infer(feed)
        return [request.get_tensor(name).data.copy() for name in names]

    return run
