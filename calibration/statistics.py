"""Streaming statistics of a float graph's tensors over calibration samples, a batch in memory.

Pass 1 finds every tensor's range, reduced inside the graph, so that only scalars come back. Pass 2
counts values in bins of that range, batch by batch. Both run in worker processes, each over a part
of the samples; ranges are joined and counts added, so that the result does not depend on the parts.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from onmetal.converters.onnx import reference
from onmetal.converters.onnx.graph import FLOAT, Graph
from onmetal.progress import OnCount
from onmetal.ranges import BINS, Seen
from onmetal.records import Model
from onmetal.samples import Samples

VERSION = 1
CHUNK = 1 << 17
"""Values binned at once: as many as stay in the cache of a core."""
SMOOTHING = 0.01
"""A new batch's weight in the moving average, as in torch.ao's MovingAverageMinMaxObserver."""


def session(model: onnx.ModelProto) -> Any:
    """A session with one thread, since parts run side by side, and with the basic optimizations
    only, so that a tensor has the same bits whichever other tensors are outputs."""
    return reference.opened(model.SerializeToString(), "ORT_ENABLE_BASIC", threads=1)


def _batches(count: int, batch: int, part: int, parts: int) -> list[tuple[list[int], int]]:
    """For every batch of a part: `batch` indices of samples, and how many of them are real. The
    last batch is filled up with the last sample."""
    starts = range(0, count, batch)
    part_starts = list(starts)[part * len(starts) // parts : (part + 1) * len(starts) // parts]
    return [
        ([min(start + place, count - 1) for place in range(batch)], min(batch, count - start))
        for start in part_starts
    ]


def extremes(
    path: str,
    tensors: Sequence[str],
    samples: Samples,
    model: Model,
    part: int,
    parts: int,
    folder: str,
    progress: OnCount = lambda done, total: None,
) -> None:
    """Pass 1: `extremes-<part>.npy` [batches, tensors, 2] float32, the least and greatest value of
    each tensor in each batch. (Reductions may overlook a NaN: pass 2 finds it.)"""
    data, entry = samples, model
    run = _reducing_tflite(path, tensors) if is_tflite(path) else _reducing(path, tensors)
    batches = _batches(data.count, entry.batch, part, parts)
    bounds = np.lib.format.open_memmap(
        Path(folder) / f"extremes-{part}.npy", "w+", np.float32, (len(batches), len(tensors), 2)
    )
    for row, (indices, _) in enumerate(batches):
        progress(row, len(batches))
        bounds[row] = run(data.feed(entry, indices))
    bounds.flush()


Reduced = Callable[[dict[str, np.ndarray]], np.ndarray]


def is_tflite(path: str) -> bool:
    return path.endswith(".tflite")


def _reducing(path: str, tensors: Sequence[str]) -> Reduced:
    """Inputs -> [tensors, 2], reduced inside the graph."""
    graph = onnx.load(path)
    del graph.graph.output[:]
    for number, name in enumerate(tensors):
        for kind in ("Min", "Max"):
            reduced = f"onmetal.{kind}.{number}"
            graph.graph.node.append(
                helper.make_node(f"Reduce{kind}", [name], [reduced], keepdims=0)
            )
            graph.graph.output.append(helper.make_tensor_value_info(reduced, FLOAT, []))
    opened = session(graph)
    return lambda feed: np.array(opened.run(None, feed)).reshape(-1, 2)


def _reducing_tflite(path: str, tensors: Sequence[str]) -> Reduced:
    """Inputs -> [tensors, 2], read from the tensors that LiteRT holds after an inference."""
    from onmetal.converters.tflite.reference import exposed

    run = exposed(path, tensors).run

    def reduced(feed: dict[str, np.ndarray]) -> np.ndarray:
        arrays = run(feed)
        return np.array([(arrays[name].min(), arrays[name].max()) for name in tensors], np.float32)

    return reduced


class _Exposed:
    """A session that writes every tensor to a buffer of its own, which each batch reuses."""

    def __init__(self, path: str, tensors: Sequence[str]) -> None:
        model = onnx.load(path)
        graph = Graph(model)
        self.inputs = [name for name in graph.inputs if name in tensors]
        inner = [name for name in tensors if name not in self.inputs]
        shapes = {name: graph.shape(name) for name in inner}
        del model.graph.output[:]
        for name in inner:
            model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, shapes[name]))
        if not inner:  # a session must give something
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(graph.outputs[0]))
        self.session = session(model)
        self.binding = self.session.io_binding()
        self.buffers: dict[str, np.ndarray] = {}
        for name in inner:
            if shape := shapes[name]:
                buffer = self.buffers[name] = np.empty(shape, np.float32)
                self.binding.bind_output(name, "cpu", 0, np.float32, shape, buffer.ctypes.data)
            else:
                self.binding.bind_output(name)
        if not inner:
            self.binding.bind_output(graph.outputs[0])
        self.free = [name for name in inner if name not in self.buffers]
        self.order = inner or [graph.outputs[0]]

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, array in feed.items():
            self.binding.bind_cpu_input(name, array)
        for name in self.free:  # anew, since what was bound to the last result has its shape
            self.binding.bind_output(name)
        self.session.run_with_iobinding(self.binding)
        arrays = {**self.buffers, **{name: feed[name] for name in self.inputs}}
        if self.free:
            outputs = dict(zip(self.order, self.binding.get_outputs(), strict=True))
            arrays |= {name: outputs[name].numpy() for name in self.free}
        return arrays


def histograms(
    path: str,
    tensors: Sequence[str],
    ranges: Sequence[Sequence[float]],
    samples: Samples,
    model: Model,
    part: int,
    parts: int,
    folder: str,
    progress: OnCount = lambda done, total: None,
) -> None:
    """Pass 2: `counts-<part>.npy` [tensors, BINS] int64, in linear bins between `ranges`; -1 in all
    bins of a tensor that holds a NaN."""
    data, entry = samples, model
    run = _opened_tflite(path, tensors) if is_tflite(path) else _Exposed(path, tensors).run
    counts = np.zeros((len(tensors), BINS), np.int64)
    binned = [Binned(low, high) for low, high in ranges]
    batches = _batches(data.count, entry.batch, part, parts)
    for number, (indices, real) in enumerate(batches):
        progress(number, len(batches))
        arrays = run(data.feed(entry, indices))
        for row, name in enumerate(tensors):
            values = arrays[name]
            if values.shape[:1] == (entry.batch,):
                values = values[:real]
            if counts[row, 0] >= 0 and not binned[row].add(values, counts[row]):
                counts[row] = -1
    np.save(Path(folder) / f"counts-{part}.npy", counts)


def _opened_tflite(
    path: str, tensors: Sequence[str]
) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    from onmetal.converters.tflite.reference import exposed

    return exposed(path, tensors).run


_BUFFERS: dict[Any, np.ndarray] = {
    np.float32: np.empty(CHUNK, np.float32),
    np.float64: np.empty(CHUNK, np.float64),
}
_PLACES = np.empty(CHUNK, np.intp)


class Binned:
    """Counts values in BINS linear bins of [low, high]; the last bin holds `high` too.

    One subtraction (first, since it is exact near `low`), one multiplication and one conversion in
    buffers that are used again, then a bincount in chunks: a third of the time of np.histogram,
    which sorts out every edge case for each value.
    """

    def __init__(self, low: float, high: float) -> None:
        slope = BINS / (high - low) if high > low else 0.0
        # A slope or a width that float32 does not hold is computed with in float64.
        narrow = high - low < 1e38 and slope < 1e38
        self.dtype = np.float32 if narrow else np.float64
        self.low, self.slope = self.dtype(low), self.dtype(slope)
        self.scaled = _BUFFERS[self.dtype]

    def add(self, values: np.ndarray, counts: np.ndarray) -> bool:
        """Add to `counts` [BINS]. -> whether no value is NaN. (Reductions may overlook a NaN; here
        its conversion gives the least integer, which np.bincount refuses.)"""
        flat = values.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            chunk = flat[start : start + CHUNK]
            scaled, places = self.scaled[: chunk.size], _PLACES[: chunk.size]
            with np.errstate(invalid="ignore", over="ignore"):
                np.subtract(chunk, self.low, out=scaled)
                np.multiply(scaled, self.slope, out=scaled)
                np.copyto(places, scaled, casting="unsafe")
            try:
                bin_counts = np.bincount(places, minlength=BINS + 1)
            except ValueError:
                if not np.isfinite(chunk).all():
                    return False
                bin_counts = np.bincount(np.clip(places, 0, BINS), minlength=BINS + 1)
            counts += bin_counts[:BINS]
            counts[-1] += bin_counts[BINS:].sum()
        return True


# --- statistics of all parts together


def extremes_of(folder: Path, parts: int) -> list[np.ndarray]:
    """The file that pass 1 wrote for each part, in the order of the samples: memory-mapped."""
    return [np.load(folder / f"extremes-{part}.npy", mmap_mode="r") for part in range(parts)]


def widest(parts: list[np.ndarray]) -> np.ndarray:
    """[tensors, 2] float32: least and greatest of all batches."""
    low = np.min([part[:, :, 0].min(axis=0) for part in parts if len(part)], axis=0)
    high = np.max([part[:, :, 1].max(axis=0) for part in parts if len(part)], axis=0)
    return np.stack([low, high], axis=1)


def moving_averages(parts: list[np.ndarray]) -> np.ndarray:
    """[tensors, 2] float32: the exponential moving average over the batches."""
    rows = (row for part in parts for row in part)
    average = np.array(next(rows), np.float64)
    with np.errstate(invalid="ignore"):  # of tensors that are infinite, which stay float
        for row in rows:
            average += SMOOTHING * (row - average)
    return average.astype(np.float32)


def first_half(parts: list[np.ndarray]) -> list[np.ndarray]:
    remaining = (sum(map(len, parts)) + 1) // 2
    selected = []
    for part in parts:
        selected.append(part[:remaining])
        remaining -= len(selected[-1])
    return selected


class Statistics:
    """The statistics in calibration of every tensor that may be quantized."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "statistics.json").read_text("utf-8"))
        with np.load(folder / "statistics.npz", allow_pickle=False) as arrays:
            low, high, half = arrays["low"], arrays["high"], arrays["half"]
            average, counts = arrays["average"], arrays["counts"]
        self.seen = {
            name: Seen(
                low=float(low[i]),
                high=float(high[i]),
                average_low=float(average[i, 0]),
                average_high=float(average[i, 1]),
                counts=counts[i],
            )
            for i, name in enumerate(self.facts["tensors"])
            if name not in self.facts["not_finite"]
        }
        self.extremes = {name: (entry.low, entry.high) for name, entry in self.seen.items()}
        """Tensor -> its least and greatest value in all samples, whichever estimator is used."""
        self.not_finite: frozenset[str] = frozenset(self.facts["not_finite"])
        """Tensors that were NaN or infinite in some sample: they stay float."""
        self.half = {
            name: (float(low), float(high))
            for name, (low, high) in zip(self.facts["tensors"], half, strict=True)
        }
        """The ranges over the first half of the samples."""


def ranges_of(folder: str, parts: int) -> list[list[float]]:
    """[tensors, 2] over all batches; a tensor that is not always finite is given as [0, 0]."""
    ranges = widest(extremes_of(Path(folder), parts)).astype(np.float64)
    return [
        [float(low), float(high)] if np.isfinite(low) and np.isfinite(high) else [0.0, 0.0]
        for low, high in ranges
    ]


def finish(folder: str, parts: int, tensors: Sequence[str], count: int) -> None:
    """Join the parts: `statistics.npz` and `statistics.json`."""
    place = Path(folder)
    bounds = extremes_of(place, parts)
    counts = np.stack([np.load(place / f"counts-{part}.npy") for part in range(parts)])
    ranges, half = widest(bounds), widest(first_half(bounds))
    finite = np.isfinite(ranges).all(axis=1) & (counts >= 0).all(axis=(0, 2))
    np.savez(
        place / "statistics.npz",
        low=ranges[:, 0],
        high=ranges[:, 1],
        half=half,
        average=moving_averages(bounds),
        counts=np.where(finite[:, None], counts.sum(axis=0), 0),
    )
    facts = {
        "tensors": list(tensors),
        "not_finite": [name for name, ok in zip(tensors, finite, strict=True) if not ok],
        "samples": count,
    }
    (place / "statistics.json").write_text(json.dumps(facts), "utf-8")
