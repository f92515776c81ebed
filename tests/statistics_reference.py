"""Statistics of a float graph by an implementation that keeps every tensor of every sample."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from hypothesis import settings
from onnx import TensorProto, helper

from onmetal.calibration import samples, statistics
from onmetal.calibration.statistics import Statistics
from onmetal.converters.onnx.floats import simplify
from onmetal.files.cache import Cache
from onmetal.ranges import BINS, Grid, Seen
from onmetal.records import Model
from onmetal.samples import Samples
from tests.conftest import DIGITS
from tests.float_graphs import plainly
from tests.onnx_models import read

quick = settings(max_examples=40, deadline=None)
GRIDS = [Grid(), Grid(254, True), Grid(127, False), Grid(15, True)]


class Case(NamedTuple):
    """A float graph, its samples, and every float tensor that it takes or computes."""

    graph: Path
    model: Model
    samples: Samples
    arrays: dict[str, np.ndarray]
    tensors: list[str]


def case(built: Any, folder: Path, *, batch: int | None = None, **arrays: np.ndarray) -> Case:
    """`built`: a model, or the path of one."""
    folder.mkdir(exist_ok=True)
    model = read(built, folder, batch=batch)
    found = loaded(model, folder / "data.npz", arrays)
    simplify(str(model.prepared), str(folder))
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(folder / "model.onnx"))).graph
    known = (*graph.input, *graph.value_info, *graph.output)
    tensors = sorted(v.name for v in known if v.type.tensor_type.elem_type == TensorProto.FLOAT)
    return Case(folder / "model.onnx", model, found, arrays, sorted(set(tensors)))


def loaded(model: Model, path: Path, arrays: dict[str, np.ndarray]) -> Samples:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with Cache() as cache:
        return samples.load(str(path), model, cache, option="--data", labelled=False)


def with_data(given: Case, path: Path, **arrays: np.ndarray) -> Case:
    """The same model, other samples."""
    return given._replace(samples=loaded(given.model, path, arrays), arrays=arrays)


def streamed(given: Case, folder: Path, parts: int = 1) -> Path:
    """Both passes over `given.tensors`. -> the folder of statistics."""
    folder.mkdir()
    shared: dict[str, Any] = {
        "path": str(given.graph),
        "tensors": given.tensors,
        "samples": given.samples,
        "model": given.model,
        "parts": parts,
        "folder": str(folder),
    }
    for part in range(parts):
        statistics.extremes(part=part, **shared)
    between = json.loads(json.dumps(statistics.ranges_of(str(folder), parts)))
    for part in range(parts):
        statistics.histograms(part=part, ranges=between, **shared)
    statistics.finish(str(folder), parts, given.tensors, given.samples.count)
    return folder


def batches(given: Case) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of every inference. The last batch is filled up with its last sample."""
    count, size = given.samples.count, given.model.batch
    for start in range(0, count, size):
        places = np.minimum(np.arange(start, start + size), count - 1)
        yield {
            tensor.name: given.arrays[tensor.name][places].reshape(tensor.shape)
            for tensor in given.model.inputs
        }


def kept(given: Case) -> dict[str, list[np.ndarray]]:
    """Keep everything: tensor -> what it was in every batch."""
    graph = onnx.load(str(given.graph))
    computed = [name for name in given.tensors if name not in given.arrays]
    if computed:
        del graph.graph.output[:]
        graph.graph.output.extend(map(helper.make_empty_tensor_value_info, computed))
    session = plainly(graph)
    found: dict[str, list[np.ndarray]] = {name: [] for name in given.tensors}
    for feed in batches(given):
        outputs = dict(zip(computed, session.run(computed or None, feed), strict=bool(computed)))
        for name in given.tensors:
            found[name].append(np.asarray(outputs[name] if name in outputs else feed[name]))
    return found


def values_of(given: Case, rows: list[np.ndarray]) -> np.ndarray:
    """All values of a tensor, without those that only fill the last batch up."""
    size = given.model.batch
    left = given.samples.count - (len(rows) - 1) * size
    last = rows[-1][:left] if rows[-1].shape[:1] == (size,) else rows[-1]
    return np.concatenate([row.ravel() for row in (*rows[:-1], last)])


def moved(counts: np.ndarray, values: np.ndarray, low: float, high: float) -> np.ndarray:
    """From the least value to the greatest: how many bins apart it was counted and belongs."""
    if low == high:
        return np.zeros(1)
    places = (np.sort(values.astype(np.float64)) - low) / (high - low) * BINS
    belongs = np.minimum(places.astype(np.int64), BINS - 1)
    return np.repeat(np.arange(BINS), counts) - belongs


def compare(given: Case, folder: Path) -> Statistics:
    """What was streamed to `folder` equals what `kept` says, for every float tensor."""
    found = Statistics(folder)
    reference = kept(given)
    assert found.seen.keys() | found.not_finite == reference.keys() and reference
    for name, rows in reference.items():
        values = values_of(given, rows)
        assert (name in found.not_finite) == (not np.isfinite(values).all()), name
        assert (name in found.seen) == bool(np.isfinite(values).all()), name
        if name not in found.seen:
            continue
        seen = found.seen[name]
        assert (seen.low, seen.high) == (float(values.min()), float(values.max())), name
        assert seen.counts.sum() == len(values), name
        assert np.abs(moved(seen.counts, values, seen.low, seen.high)).max() <= 1, name
        average = np.array([rows[0].min(), rows[0].max()], np.float64)
        for row in rows[1:]:
            average = 0.99 * average + 0.01 * np.array([row.min(), row.max()], np.float64)
        peak = max(abs(seen.low), abs(seen.high))
        np.testing.assert_allclose(
            [seen.average_low, seen.average_high], average, rtol=1e-5, atol=1e-6 * peak + 1e-44
        )
    return found


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, shared_home: Path) -> Case:
    with np.load(DIGITS / "digits.npz") as stored, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONMETAL_HOME", str(shared_home))
        folder = tmp_path_factory.mktemp("digits")
        return case(DIGITS / "digits_cnn.onnx", folder, image=stored["x"])


@pytest.fixture(scope="module")
def digits_seen(digits: Case, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return Statistics(streamed(digits, tmp_path_factory.mktemp("seen") / "statistics", 2))


@pytest.fixture(scope="module")
def digits_kept(digits: Case) -> dict[str, np.ndarray]:
    return {name: values_of(digits, rows) for name, rows in kept(digits).items()}


def seen_of(values: np.ndarray, share: float = 0.1) -> Seen:
    """What streaming would have seen; the averages lie `share` inside of the extremes."""
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if low < high:
        places = np.minimum(((values - low) / (high - low) * BINS).astype(np.int64), BINS - 1)
    else:
        places = np.zeros(values.size, np.int64)
    inside = (high - low) * share
    return Seen(low, high, low + inside, high - inside, np.bincount(places, minlength=BINS))
