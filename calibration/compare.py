"""Where a quantized artifact leaves its float model: tensor by tensor, in the order of computation.

Runs in a child process. Tensors are matched by name; nothing but sums is kept of a sample.
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
    """Of every tensor that both know: its name, its operator in the float model, its SQNR in dB
    over all samples, and the peaks of both.

    `artifact`: an ONNX or an OpenVINO (.xml) file; `reference`: the float ONNX model. In the order
    of the float model. Raises UnsupportedError where they have no tensor in common.
    """
    data, of = samples, model
    original = onnx.load(reference)
    graph = Graph(onnx.shape_inference.infer_shapes(original))
    known = _inner(artifact).known(artifact)
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
    mine, theirs = (
        _inner(artifact).opened(artifact, names),
        _inner(reference).opened(reference, names),
    )
    sums = Sums(len(names))
    count = max(1, data.count // of.batch)
    for number in range(count):
        progress(number, count)
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


def _inner(path: str) -> Any:
    """The module that looks into files of this kind: a runtime's own, else ONNX's."""
    return runtimes.inner(path) or onnx_inner
