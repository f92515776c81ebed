"""How far a quantized artifact is from its float model, tensor by tensor in computation order.

Runs in a child process. Tensors are matched by name; only sums over the samples are kept.
"""

from typing import Any

import numpy as np
import onnx

from onmetal import runtimes
from onmetal.calibration.fidelity import PERFECT_DB
from onmetal.converters.onnx import inner as onnx_inner
from onmetal.converters.onnx.graph import Graph
from onmetal.errors import UnsupportedError
from onmetal.progress import OnCount
from onmetal.records import Model
from onmetal.samples import Samples


def tensors(
    artifact: str,
    reference: str,
    samples: Samples,
    model: Model,
    progress: OnCount = lambda done, total: None,
) -> list[dict[str, Any]]:
    """For every tensor that both files have: its name, its operator in the float model, its SQNR in
    dB over all samples, and its peaks in both.

    `artifact`: an ONNX or an OpenVINO (.xml) file; `reference`: the float ONNX model. In the order
    of the float model. Raises UnsupportedError where they have no tensor in common.
    """
    data, entry = samples, model
    original = onnx.load(reference)
    graph = Graph(onnx.shape_inference.infer_shapes(original))
    artifact_tensors = _inner_module(artifact).known(artifact)
    names = [
        name
        for node in graph.nodes
        for name in node.output
        if name in artifact_tensors and name and (graph.is_float(name) or name in graph.outputs)
    ]
    if not names:
        raise UnsupportedError(
            "the two files have no tensor of the same name: was one made from the other?"
        )
    run_artifact, run_reference = (
        _inner_module(artifact).opened(artifact, names),
        _inner_module(reference).opened(reference, names),
    )
    sums = Sums(len(names))
    count = max(1, data.count // entry.batch)
    for number in range(count):
        progress(number, count)
        start = number * entry.batch
        feed = data.feed(
            entry, [min(start + place, data.count - 1) for place in range(entry.batch)]
        )
        for place, (expected, actual) in enumerate(
            zip(run_reference(feed), run_artifact(feed), strict=True)
        ):
            sums.add(place, expected, actual)
    return [sums.row(place, name, graph.producer[name].op_type) for place, name in enumerate(names)]


class Sums:
    """The sums of signal and noise, and the peaks, of every compared tensor."""

    def __init__(self, count: int) -> None:
        self.sums = np.zeros((count, 2))
        self.peaks = np.zeros((count, 2))

    def add(self, place: int, expected: np.ndarray, actual: np.ndarray) -> None:
        if expected.shape != actual.shape:
            self.sums[place, 1] = np.inf
            return
        with np.errstate(all="ignore"):
            expected_values, actual_values = expected.astype(np.float64), actual.astype(np.float64)
            alike = (expected_values == actual_values) | (
                np.isnan(expected_values) & np.isnan(actual_values)
            )
            self.sums[place, 0] += np.sum(expected_values[np.isfinite(expected_values)] ** 2)
            self.sums[place, 1] += np.sum((expected_values[~alike] - actual_values[~alike]) ** 2)
            self.peaks[place] = np.maximum(
                self.peaks[place],
                [np.abs(expected_values).max(initial=0.0), np.abs(actual_values).max(initial=0.0)],
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


def _inner_module(path: str) -> Any:
    """The module that reads inner tensors of such a file: a runtime's own, else ONNX's."""
    return runtimes.inner(path) or onnx_inner
