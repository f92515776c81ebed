"""Streaming calibration against an implementation that keeps everything; the float graph it sees.

What is expected is computed here on its own: a plain session gives every tensor of every sample,
all of it is kept, and numpy does the rest.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from onmetal import ranges, targets
from onmetal.calibration import samples, statistics
from onmetal.calibration.calibrated import CalibratedModel
from onmetal.calibration.samples import split
from onmetal.calibration.statistics import Binned, Statistics
from onmetal.converters.onnx.floats import simplify
from onmetal.converters.onnx.graph import Graph, attribute
from onmetal.deploy import model as model_file
from onmetal.errors import UnsupportedError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.ranges import BINS, ESTIMATORS, Grid, Seen, estimate
from onmetal.records import Model, plain, restore
from onmetal.samples import Samples
from tests.conftest import DIGITS
from tests.onnx_models import build, constant, dense, node, read, relu, save, value, weights

quick = settings(max_examples=40, deadline=None)
INT64, BOOL, F16 = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16
GRIDS = [Grid(), Grid(254, True), Grid(127, False), Grid(15, True)]


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- the two implementations


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
        "samples": plain(given.samples),
        "model": plain(given.model),
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


def plainly(model: Any) -> Any:
    """A session that optimizes nothing, of a model or a file."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, settings, providers=["CPUExecutionProvider"])


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


# --- exactness


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


def test_the_example_is_as_if_everything_was_kept(digits: Case, tmp_path: Path) -> None:
    found = compare(digits, streamed(digits, tmp_path / "statistics", 3))
    assert len(found.seen) > 20 and not found.not_finite
    assert found.facts["samples"] == 600


def test_the_example_in_batches_that_do_not_divide_the_samples(tmp_path: Path) -> None:
    with np.load(DIGITS / "digits.npz") as stored:
        given = case(DIGITS / "digits_cnn.onnx", tmp_path, batch=7, image=stored["x"][:100])
    assert given.model.batch == 7
    compare(given, streamed(given, tmp_path / "statistics", 2))


def test_only_values_at_the_edge_of_a_bin_are_counted_beside_it(
    digits_seen: Statistics, digits_kept: dict[str, np.ndarray]
) -> None:
    for name, seen in digits_seen.seen.items():
        expected, edges = np.histogram(
            digits_kept[name].astype(np.float64), BINS, (seen.low, seen.high)
        )
        np.testing.assert_allclose(seen.edges, edges, rtol=1e-12)
        carried = np.abs(np.cumsum(seen.counts - expected))
        assert carried.sum() <= 0.005 * len(digits_kept[name]), name


@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99, 99.999])
def test_percentiles_are_within_a_bin_of_numpys(
    digits_seen: Statistics, digits_kept: dict[str, np.ndarray], percent: float
) -> None:
    for name, seen in digits_seen.seen.items():
        values, cut = digits_kept[name].astype(np.float64), (100 - percent) / 2
        width = (seen.high - seen.low) / BINS * 1.001
        one = 100 / len(values)  # rounding of the share may take the value before or after
        shares = np.clip([100 - cut - one, 100 - cut + one], 0, 100)
        low, high = ranges.percentile(percent)(seen, Grid())
        for found, side in ((high, values), (-low, -values)):
            least, most = np.percentile(side, shares, method="inverted_cdf")
            assert least - width <= found <= most + width, name


def test_percentiles_of_dense_values_are_within_a_bin_of_numpys_own_method() -> None:
    values = np.random.default_rng(0).random(200_000) * 3 - 1
    seen = seen_of(values)
    for percent in (50.0, 90.0, 99.0, 99.9):
        low, high = ranges.percentile(percent)(seen, Grid())
        cut = (100 - percent) / 2
        expected = np.percentile(values, [cut, 100 - cut])
        np.testing.assert_allclose([low, high], expected, atol=1.001 * 3 / BINS)


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


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_a_model_of_several_inputs_and_branches(tmp_path: Path, batch: int) -> None:
    given = case(branches(), tmp_path / "case", batch=batch, **branch_data(23))
    assert {"left", "right", "e", "h", "peak", "scores"} <= set(given.tensors)
    for count in (1, 3, 4, 23):
        given = with_data(given, tmp_path / f"{count}.npz", **branch_data(count))
        for parts in (1, 3):
            compare(given, streamed(given, tmp_path / f"{count} in {parts}", parts))


def test_the_result_does_not_depend_on_the_parts(tmp_path: Path) -> None:
    given = case(branches(), tmp_path / "case", batch=4, **branch_data(19))
    found = set()
    for parts in (1, 2, 3, 4, 5, 9):  # 9 parts of 5 batches: some have none
        folder = streamed(given, tmp_path / str(parts), parts)
        found.add(
            ((folder / "statistics.npz").read_bytes(), (folder / "statistics.json").read_bytes())
        )
    assert len(found) == 1


def test_the_same_inputs_give_the_same_bytes(digits: Case, tmp_path: Path) -> None:
    given = with_data(digits, tmp_path / "few.npz", image=digits.arrays["image"][:100])
    folders = [streamed(given, tmp_path / str(turn), 2) for turn in range(2)]
    for name in ("statistics.npz", "statistics.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_tensors_may_be_asked_for_alone(digits: Case, tmp_path: Path) -> None:
    """A tensor has the same bits whichever others are asked for beside it."""
    image = digits.arrays["image"][:50]
    few = with_data(digits, tmp_path / "few.npz", image=image)
    for tensors in (digits.tensors[3:5], ["image"]):
        alone = few._replace(tensors=tensors)
        compare(alone, streamed(alone, tmp_path / tensors[0].replace("/", " ")))


def test_an_input_that_no_tensor_needs(tmp_path: Path) -> None:
    built = build(
        [node("MatMul", "x w", "y"), node("Neg", "z", "u")],
        [value("x", ["N", 4]), value("z", ["N", 2])],
        [value("y", ["N", 3]), value("u", ["N", 2])],
        [weights("w", 4, 3)],
    )
    given = case(built, tmp_path / "case", x=floats(5, 4), z=floats(5, 2))
    given = given._replace(tensors=["x", "y"])
    compare(given, streamed(given, tmp_path / "statistics"))


def test_booleans_and_half_precision_beside_float(tmp_path: Path) -> None:
    built = build(
        [
            node("Cast", "mask", "m", to=TensorProto.FLOAT),
            node("MatMul", "m w", "a"),
            node("Cast", "half", "h", to=TensorProto.FLOAT),
            node("Add", "a h", "y"),
        ],
        [value("mask", ["N", 4], BOOL), value("half", ["N", 3], F16)],
        [value("y", ["N", 3])],
        [weights("w", 4, 3)],
    )
    given = case(
        built, tmp_path / "case", mask=floats(9, 4) > 0, half=floats(9, 3).astype(np.float16)
    )
    assert given.tensors == ["h", "m", "y"]
    compare(given, streamed(given, tmp_path / "statistics", 2))


def test_a_tensor_whose_shape_depends_on_the_data(tmp_path: Path) -> None:
    built = build(
        [
            node("NonZero", "x", "places"),
            node("Cast", "places", "found", to=TensorProto.FLOAT),
            node("ReduceSum", "found", "sum", keepdims=0),
            node("MatMul", "x w", "y"),
        ],
        [value("x", ["N", 6])],
        [value("y", ["N", 3]), value("sum", [])],
        [weights("w", 6, 3)],
    )
    data = (floats(9, 6) > 0).astype(np.float32)
    data[:, 0] = 1
    given = case(built, tmp_path / "case", x=data)
    assert {"found", "sum", "y"} <= set(given.tensors)
    compare(given, streamed(given, tmp_path / "statistics", 2))


def test_the_first_half_of_the_samples_has_ranges_of_its_own(tmp_path: Path) -> None:
    given = case(dense(), tmp_path / "case", batch=2, x=floats(14, 4))
    folder = streamed(given, tmp_path / "statistics", 3)
    with np.load(folder / "statistics.npz") as stored:
        half = stored["half"]
    for name, (low, high) in zip(given.tensors, half, strict=True):
        first = np.concatenate([row.ravel() for row in kept(given)[name][:4]])
        assert (low, high) == (first.min(), first.max())


# --- values that are not usual


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


def test_a_tensor_that_is_nan_in_some_sample_is_named(tmp_path: Path) -> None:
    data = np.abs(floats(9, 40)) + 0.1
    given = case(roots(), tmp_path / "case", x=data)
    for place in (0, 1, 2, 5, 8, 17, 39):
        for sample in (0, 4, 8):
            odd = data.copy()
            odd[sample, place] = -1.0
            given = with_data(given, tmp_path / "odd.npz", x=odd)
            found = compare(given, streamed(given, tmp_path / f"{place} of {sample}", 2))
            assert found.not_finite == {"root", "y"}


def test_a_tensor_that_is_infinite_in_some_sample_is_named(tmp_path: Path) -> None:
    data = np.abs(floats(9, 40)) + 0.1
    given = case(roots(), tmp_path / "case", x=data)
    for sample in (0, 8):
        odd = data.copy()
        odd[sample, 7] = 0.0
        given = with_data(given, tmp_path / "odd.npz", x=odd)
        found = compare(given, streamed(given, tmp_path / str(sample), 2))
        assert found.not_finite == {"inverse", "z"}


def test_a_nan_far_inside_a_large_tensor_is_found(tmp_path: Path) -> None:
    built = build(
        [node("Sqrt", "x", "root"), node("ReduceMean", "root", "y", keepdims=0)],
        [value("x", [1, statistics.CHUNK + 9])],
        [value("y", [])],
    )
    data = np.abs(floats(2, statistics.CHUNK + 9))
    data[1, -5] = -1
    given = case(built, tmp_path / "case", x=data)
    assert compare(given, streamed(given, tmp_path / "statistics")).not_finite == {"root", "y"}


def test_inputs_of_nothing_but_zeros(tmp_path: Path) -> None:
    given = case(dense(), tmp_path / "case", x=np.zeros((9, 4), np.float32))
    found = compare(given, streamed(given, tmp_path / "statistics", 2))
    for name in ESTIMATORS:
        assert estimate(name, found.seen["x"], Grid()) == (0.0, 0.0)
        assert estimate(name, found.seen["x"], Grid(254, True)) == (0.0, 0.0)


def test_tensors_that_never_change(tmp_path: Path) -> None:
    built = build(
        [
            node("Mul", "x nought", "dead"),
            node("Add", "dead three", "plus"),
            node("Sub", "dead three", "minus"),
            node("MatMul", "plus w", "y"),
            node("MatMul", "minus w", "z"),
        ],
        [value("x", ["N", 4])],
        [value("y", ["N", 3]), value("z", ["N", 3])],
        [constant("nought", 0), constant("three", 3), weights("w", 4, 3)],
    )
    given = case(built, tmp_path / "case", x=floats(9, 4))
    found = compare(given, streamed(given, tmp_path / "statistics", 2))
    for name in ESTIMATORS:
        assert estimate(name, found.seen["dead"], Grid()) == (0.0, 0.0)
        assert estimate(name, found.seen["plus"], Grid()) == (0.0, 3.0)
        assert estimate(name, found.seen["minus"], Grid()) == (-3.0, 0.0)
        assert estimate(name, found.seen["minus"], Grid(254, True)) == (-3.0, 3.0)


@pytest.mark.parametrize("offset", [1e3, -1e4, 1e5, -1e6])
def test_values_far_from_zero(tmp_path: Path, offset: float) -> None:
    built = build(
        [node("Add", "x far", "y")],
        [value("x", [1, 200])],
        [value("y", [1, 200])],
        [constant("far", offset)],
    )
    data = (np.random.default_rng(0).random((60, 200)) * 0.7).astype(np.float32)
    given = case(built, tmp_path / "case", x=data)
    compare(given, streamed(given, tmp_path / "statistics", 2))


@pytest.mark.parametrize("scale", [1e38, 1e-20, 1e-37, 1e-42])
def test_ranges_at_the_ends_of_float(tmp_path: Path, scale: float) -> None:
    built = relu([1, 200])
    built.graph.node[0].op_type = "Neg"
    data = ((np.random.default_rng(0).random((60, 200)) * 6 - 3) * scale).astype(np.float32)
    given = case(built, tmp_path / "case", x=data)
    found = compare(given, streamed(given, tmp_path / "statistics", 2))
    for name in ESTIMATORS:
        low, high = estimate(name, found.seen["y"], Grid())
        assert found.seen["y"].low <= low < 0 < high <= found.seen["y"].high


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=60), st.integers(1, 3))
@example([-3e38, 0.0, 3e38], 1)
@example([0.0, 1e-45], 1)
@example([16777216.0, 16777218.0, 16777220.0], 1)
def test_any_values_are_counted_in_their_bins(listed: list[float], turns: int) -> None:
    values = np.array(listed, np.float32)
    low, high = float(values.min()), float(values.max())
    counts = np.zeros(BINS, np.int64)
    binned = Binned(low, high)
    for _ in range(turns):
        assert binned.add(values, counts)
    assert counts.sum() == turns * len(values)
    repeated = np.repeat(values, turns)
    assert np.abs(moved(counts, repeated, low, high)).max() <= 1
    if low < high:
        assert counts[0] and counts[-1]


@quick
@given(st.integers(0, 4), st.sampled_from([np.nan, -np.nan, np.inf, -np.inf]))
def test_what_is_no_number_is_told(place: int, odd: float) -> None:
    values = np.arange(5, dtype=np.float32)
    values[place] = odd
    for low, high in ((0.0, 4.0), (0.0, 0.0)):
        added = Binned(low, high).add(values, np.zeros(BINS, np.int64))
        assert not added or (np.isinf(odd) and high > low)


def test_more_values_than_are_counted_at_once() -> None:
    values = floats(7, statistics.CHUNK // 2 + 1)
    counts = np.zeros(BINS, np.int64)
    low, high = float(values.min()), float(values.max())
    assert Binned(low, high).add(values, counts)
    assert np.abs(moved(counts, values.ravel(), low, high)).max() <= 1


def test_the_moving_average_forgets_slowly() -> None:
    found = np.zeros((101, 1, 2), np.float32)
    found[0] = [[-1, 1]]
    left = 0.99**100
    expected = np.array([[-left, left]])
    np.testing.assert_allclose(statistics.moving_averages([found]), expected, rtol=1e-5)
    parts = [found[:1], found[1:1], found[1:40], found[40:]]
    np.testing.assert_allclose(statistics.moving_averages(parts), expected, rtol=1e-5)
    found[:] = [[-2, 5]]
    for count in (1, 101):
        np.testing.assert_array_equal(statistics.moving_averages([found[:count]]), [[-2, 5]])


def test_the_moving_average_of_the_largest_numbers_is_finite() -> None:
    found = np.array([[[-3e38, -2e38]], [[2e38, 3e38]]], np.float32)
    expected = np.array([[-2.95e38, -1.95e38]])
    np.testing.assert_allclose(statistics.moving_averages([found]), expected, rtol=1e-5)


# --- memory


MEMORY = """
import json, sys
from pathlib import Path
from onmetal.calibration import statistics
from onmetal.converters.onnx import reference

def memory(field):  # getrusage would tell the parent's peak, which a child starts with
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

given = json.loads(Path(sys.argv[1]).read_text())
before = memory("VmRSS")
statistics.extremes(**given)
ranges = statistics.ranges_of(given["folder"], 1)
statistics.histograms(ranges=ranges, **given)
print(memory("VmHWM") - before)
"""


ROWS, COLUMNS, MADE = 512, 1024, 4


def large() -> Any:
    """MADE activations of ROWS x COLUMNS from an input of ROWS."""
    return build(
        [
            node("Mul", "x row", "a"),
            node("Add", "a row", "b"),
            node("Relu", "b", "c"),
            node("Mul", "c a", "d"),
            node("ReduceMean", "d", "y", axes=[2]),
        ],
        [value("x", [1, ROWS, 1])],
        [value("y", [1, ROWS, 1])],
        [weights("row", COLUMNS)],
    )


def test_memory_is_that_of_one_batch_whatever_the_number_of_samples(tmp_path: Path) -> None:
    grown = []
    for count in (8, 200):
        given = case(large(), tmp_path / str(count), x=floats(count, ROWS, 1))
        arguments = {
            "path": str(given.graph),
            "tensors": given.tensors,
            "samples": plain(given.samples),
            "model": plain(given.model),
            "part": 0,
            "parts": 1,
            "folder": str(tmp_path),
        }
        (tmp_path / "given.json").write_text(json.dumps(arguments))
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, tmp_path / "given.json"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        grown.append(int(done.stdout))
    one_batch = MADE * ROWS * COLUMNS * 4
    assert grown[0] > one_batch  # what is measured is there
    assert grown[1] - grown[0] < one_batch + (8 << 20)


# --- estimators


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


def some(kind: str, seed: int, count: int) -> np.ndarray:
    source = np.random.default_rng(seed)
    values = source.normal(size=count)
    if kind == "relu":
        values = np.maximum(values, 0)
    elif kind == "sparse":
        values = np.maximum(values, 0) * (source.random(count) < 0.1)
    elif kind == "above":
        values = np.abs(values) + 1
    elif kind == "below":
        values = -np.abs(values) - 2
    elif kind == "outliers":
        values[: 1 + count // 1000] *= 100
    elif kind == "steps":
        values = values.round()
    elif kind == "uniform":
        values = source.random(count)
    elif kind == "two":
        values = np.where(values > 0, 3.0, -1.0)
    return values.astype(np.float32).astype(np.float64)


KINDS = ["normal", "relu", "sparse", "above", "below", "outliers", "steps", "uniform", "two"]
VALUES = st.builds(some, st.sampled_from(KINDS), st.integers(0, 1000), st.integers(1, 4000))


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=15, deadline=None)
@given(VALUES, st.sampled_from(GRIDS), st.floats(0, 0.4))
def test_a_range_holds_zero_and_lies_within_what_was_seen(
    name: str, values: np.ndarray, grid: Grid, share: float
) -> None:
    seen = seen_of(values, share)
    low, high = estimate(name, seen, grid)
    assert low <= 0 <= high
    if grid.symmetric:
        assert low == -high
        assert high <= max(abs(seen.low), abs(seen.high))
    else:
        assert min(seen.low, 0) <= low and high <= max(seen.high, 0)
    assert low < high or not values.any()


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=8, deadline=None)
@given(VALUES, st.sampled_from(GRIDS), st.integers(-30, 30))
def test_twice_the_values_have_twice_the_range(
    name: str, values: np.ndarray, grid: Grid, power: int
) -> None:
    found = estimate(name, seen_of(values), grid)
    scaled = estimate(name, seen_of(values * 2.0**power), grid)
    np.testing.assert_allclose(np.array(scaled), np.array(found) * 2.0**power, rtol=1e-9)


@quick
@given(VALUES, st.sampled_from(GRIDS))
def test_all_of_the_percent_are_the_extremes(values: np.ndarray, grid: Grid) -> None:
    seen = seen_of(values)
    assert ranges.percentile(100)(seen, grid) == ranges.minmax(seen, grid) == (seen.low, seen.high)


@quick
@given(VALUES, st.sampled_from([80.0, 99.0, 99.9, 99.99]))
def test_a_percentile_is_within_a_bin_of_the_value_in_its_place(
    values: np.ndarray, percent: float
) -> None:
    seen, ordered = seen_of(values), np.sort(values)
    low, high = ranges.percentile(percent)(seen, Grid())
    width = (seen.high - seen.low) / BINS * 1.001
    cut = int(np.floor(len(ordered) * (100 - percent) / 200))
    for found, exact in ((low, ordered), (high, -ordered[::-1])):
        # Rounding of the share may take the next value in order.
        near = np.abs(exact[max(cut - 1, 0) : cut + 2])
        assert np.abs(near - abs(found)).min() <= width


@quick
@given(VALUES)
def test_a_smaller_percentile_is_no_wider(values: np.ndarray) -> None:
    seen = seen_of(values)
    found = [ranges.percentile(percent)(seen, Grid()) for percent in (99.9, 99.99, 99.999, 100)]
    assert sorted((low for low, _ in found), reverse=True) == [low for low, _ in found]
    assert sorted(high for _, high in found) == [high for _, high in found]


@quick
@given(VALUES, st.sampled_from(GRIDS))
def test_the_range_of_least_squared_error_costs_no_more_than_all_of_it(
    values: np.ndarray, grid: Grid
) -> None:
    """By its own cost, on the values themselves: a twelfth of a squared step where a value is
    rounded (zero is not), the squared distance where one saturates."""
    seen = seen_of(values)
    width = (seen.high - seen.low) / BINS

    def cost(low: float, high: float) -> tuple[float, float]:
        """-> the cost, and how far it may be off where only the bins of values are known."""
        rounding = ((high - low) / grid.levels) ** 2 / 12
        beyond = np.maximum(low - values, 0) + np.maximum(values - high, 0)
        zero = np.abs(values) <= width
        at_the_end = np.minimum(np.abs(values - low), np.abs(values - high)) <= width
        slack = np.where(beyond > 0, beyond * width + width**2, 0)
        slack = slack + np.where(at_the_end | zero, width**2, 0) + at_the_end * rounding
        each = np.where(beyond > 0, beyond**2, np.where(zero, 0, rounding))
        return float(each.sum()), float(slack.sum())

    found, slack = cost(*estimate("mse", seen, grid))
    everything, whole_slack = cost(*estimate("minmax", seen, grid))
    assert found <= (everything + slack + whole_slack) * (1 + 1e-9)


def rounded_error(values: np.ndarray, low: float, high: float, levels: int) -> float:
    """The mean squared error of values that were really quantized."""
    step = (high - low) / levels
    zero = np.round(-low / step)
    found = (np.clip(np.round(values / step) + zero, 0, levels) - zero) * step
    return float(np.mean((found - values) ** 2))


@pytest.mark.parametrize("kind", ["normal", "relu", "sparse", "above", "outliers", "uniform"])
@pytest.mark.parametrize("grid", [Grid(), Grid(254, True)])
def test_the_range_of_least_squared_error_is_found(kind: str, grid: Grid) -> None:
    """Against an exhaustive search over values that are really quantized."""
    values = some(kind, 1, 40_000)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    shares = np.linspace(0.4, 1, 31)
    best = np.inf
    if grid.symmetric or low == 0:
        peak = max(-low, high)
        for share in shares:
            start = -peak * share if grid.symmetric else 0.0
            best = min(best, rounded_error(values, start, peak * share, grid.levels))
    else:
        for left in shares[::3]:
            for right in shares[::3]:
                best = min(best, rounded_error(values, low * left, high * right, grid.levels))
    found = estimate("mse", seen_of(values), grid)
    assert rounded_error(values, *found, grid.levels) <= 1.1 * best


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["mse", "entropy"])
def test_exact_zeros_do_not_move_the_range(name: str, share: float) -> None:
    """A Relu gives them, and 8 bits hold them exactly: what matters is the rest."""
    rest = np.abs(floats(100_000)).astype(np.float64)
    padded = np.concatenate([rest, np.zeros(int(len(rest) * share / (1 - share)))])
    _, expected = estimate(name, seen_of(rest), Grid())
    _, found = estimate(name, seen_of(padded), Grid())
    assert found == pytest.approx(expected, rel=0.1)


def divergence(seen: Seen, low: float, high: float, levels: int) -> float:
    """KL of what was seen, what is cut off put at the ends, from what quantizing leaves of it."""
    step = (high - low) / levels
    kept: dict[int, list[float]] = {}
    before = after = 0.0
    for number, count in enumerate(seen.counts):
        middle = seen.low + (number + 0.5) * (seen.high - seen.low) / BINS
        if middle < low:
            before += float(count)
        elif middle > high:
            after += float(count)
        else:
            kept.setdefault(int((middle - low) // step), []).append(float(count))
    if not any(any(counts) for counts in kept.values()):
        return float("inf")
    p = [count for counts in kept.values() for count in counts]
    q = [
        sum(counts) / sum(map(bool, counts)) if count else 0.0
        for counts in kept.values()
        for count in counts
    ]
    p[0] += before
    p[-1] += after
    total, spread = sum(p), sum(q)
    return sum(
        a / total * math.log((a / total) / max(b / spread, 1e-10))
        for a, b in zip(p, q, strict=True)
        if a
    )


@pytest.mark.parametrize("kind", ["above", "uniform", "below"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_range_of_least_divergence_is_found(kind: str, seed: int) -> None:
    """Against an exhaustive search by another implementation, on values that are never zero."""
    values = some(kind, seed, 5000)
    values = values[np.abs(values) > 0.01] * 1.5
    seen, grid = seen_of(values), Grid()
    shares = [1 - 0.02 * number for number in range(46)]
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    costs = [divergence(seen, low * share, high * share, grid.levels) for share in shares]
    found = estimate("entropy", seen, grid)
    assert divergence(seen, *found, grid.levels) <= min(costs) * (1 + 1e-6) + 1e-12
    assert max(found) - min(found) == pytest.approx(
        (high - low) * shares[int(np.argmin(costs))], rel=1e-6
    )


@pytest.mark.parametrize("grid", [Grid(), Grid(254, True)])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_range_of_least_divergence_is_nearer_than_all_of_it(seed: int, grid: Grid) -> None:
    values = np.random.default_rng(seed).standard_t(4, 20_000)
    seen = seen_of(values)
    found, everything = (estimate(name, seen, grid) for name in ("entropy", "minmax"))
    nearest = divergence(seen, *found, grid.levels)
    assert nearest <= divergence(seen, *everything, grid.levels) * 1.05 + 1e-9
    assert (np.abs(values) > max(found)).mean() < 0.02


def test_no_estimator_ruins_the_example(
    digits_seen: Statistics, digits_kept: dict[str, np.ndarray]
) -> None:
    for name in ESTIMATORS:
        for tensor, seen in digits_seen.seen.items():
            low, high = estimate(name, seen, Grid())
            values = digits_kept[tensor]
            outside = ((values < low) | (values > high)).mean()
            assert outside < (0.2 if name == "moving-average" else 0.02), (name, tensor)


# --- the parts of DATA


def counted(count: int) -> Samples:
    return Samples("made up", f"digest of {count}", count)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6000))
@example(3)
@example(4)
@example(2048)
@example(2049)
@example(100_003)
def test_every_nth_sample_calibrates(count: int) -> None:
    whole = counted(count)
    parts = split(whole)
    if count < 4:
        assert parts is None
        return
    assert parts and parts == split(whole)
    calibration, evaluation = (part.places() for part in parts)
    assert [part.part for part in parts] == ["calibration", "evaluation"]
    assert [len(calibration), len(evaluation)] == [part.count for part in parts]
    assert 1 <= len(calibration) <= min(512, count / 4)
    assert len(set(np.diff(calibration))) <= 1
    assert (np.diff(evaluation) > 0).all()
    np.testing.assert_array_equal(
        np.sort(np.concatenate([calibration, evaluation])), np.arange(count)
    )
    assert len({whole.digest, *(part.digest for part in parts)}) == 3
    for part in parts:
        assert restore(json.loads(json.dumps(plain(part))), Samples) == part
    if count >= 4 * 512:
        assert len(calibration) > 256  # no more are left out than need be


def test_the_parts_of_other_data_are_told_apart() -> None:
    digests = {part.digest for count in range(4, 90) for part in split(counted(count)) or ()}
    assert len(digests) == 2 * 86


def test_inputs_and_labels_follow_their_samples(tmp_path: Path) -> None:
    values, labels = floats(23, 4), np.arange(23) * 10
    np.savez(tmp_path / "data.npz", x=values, y=labels)
    model = read(dense(), tmp_path)
    with Cache() as cache:
        path = str(tmp_path / "data.npz")
        whole = samples.load(path, model, cache, option="--data", labelled=True)
        parts = split(whole)
        assert parts
        for part in parts:
            fed = np.concatenate([part.feed(model, [i])["x"] for i in range(part.count)])
            np.testing.assert_array_equal(fed, values[part.places()])
            np.testing.assert_array_equal(part.label_array(), labels[part.places()])
        assert parts[0].places().tolist() == [3, 7, 11, 15, 19]
        np.testing.assert_array_equal(whole.label_array(), labels)


def test_a_part_is_calibrated_with_alone(tmp_path: Path) -> None:
    whole = case(branches(), tmp_path / "case", batch=4, **branch_data(60))
    parts = split(whole.samples)
    assert parts
    for part in parts:
        arrays = {name: array[part.places()] for name, array in whole.arrays.items()}
        given = whole._replace(samples=part, arrays=arrays)
        compare(given, streamed(given, tmp_path / part.part, 2))


# --- the float graph


def simplified(built: Any, folder: Path) -> Any:
    """The float graph of a model, after every check that holds for all."""
    made = []
    for turn in ("first", "second"):
        (folder / turn).mkdir(parents=True)
        simplify(str(save(built, folder / f"{turn}.onnx")), str(folder / turn))
        made.append((folder / turn / "model.onnx").read_bytes())
    assert made[0] == made[1]
    found = onnx.load_from_string(made[0])
    onnx.checker.check_model(found, full_check=True)
    names = [entry.name for entry in found.graph.node]
    assert all(names) and len(set(names)) == len(names)
    assert [entry.name for entry in found.graph.output] == [o.name for o in built.graph.output]
    constants = {tensor.name for tensor in built.graph.initializer}
    taken = [entry.name for entry in built.graph.input if entry.name not in constants]
    assert [entry.name for entry in found.graph.input] == taken
    opsets = {entry.domain: entry.version for entry in found.opset_import}
    assert opsets[""] >= 13
    return found


def kinds(model: Any) -> list[str]:
    return [entry.op_type for entry in model.graph.node]


def run(model: Any, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    found: list[np.ndarray] = plainly(model).run(None, feed)
    return found


def assert_alike(built: Any, found: Any, **feed: np.ndarray) -> None:
    """Both give the same outputs, but for rounding."""
    for expected, output in zip(run(built, feed), run(found, feed), strict=True):
        assert expected.dtype == output.dtype
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


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


IMAGE = floats(1, 3, 6, 6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_batch_norm_goes_into_a_convolution(tmp_path: Path, kind: str, bias: bool) -> None:
    built = convolution(kind, bias=bias)
    found = simplified(built, tmp_path)
    assert kinds(found) == [kind, "Relu"]
    assert_alike(built, found, x=IMAGE)


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("MatMul", "x weight.", "c")], (5, 4)),
        ([node("Gemm", "x weight.", "c")], (5, 4)),
        ([node("Gemm", "x weight. offset", "c")], (5, 4)),
        ([node("Gemm", "x weight. offset", "c", transB=1)], (4, 5)),
        ([node("MatMul", "x weight.", "b"), node("Add", "b offset", "c")], (5, 4)),
    ],
)
def test_batch_norm_goes_into_a_matrix_product(
    tmp_path: Path, nodes: list[Any], shape: tuple[int, ...]
) -> None:
    built = build(
        [*nodes, norm("c", "n", epsilon=0.01), node("Relu", "n", "y")],
        [value("x", [6, 5])],
        [value("y", [6, 4])],
        [weights("weight.", *shape), weights("offset", 4), *NORM],
    )
    found = simplified(built, tmp_path)
    assert kinds(found) == ["Gemm", "Relu"]
    assert_alike(built, found, x=floats(6, 5))


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        # what is before the norm is needed elsewhere
        ([node("Gemm", "x weight.", "c"), norm("c", "y"), node("Relu", "c", "z")], "y z"),
        ([node("Gemm", "x weight.", "c"), norm("c", "y")], "y c"),
        # nothing before it, or no product by a constant
        ([norm("x", "y"), node("Gemm", "x weight.", "z")], "y z"),
        ([node("MatMul", "x x", "c"), norm("c", "y")], "y"),
        ([node("Gemm", "x weight.", "c", alpha=0.5), norm("c", "y")], "y"),
        ([node("Gemm", "x weight. row", "c", beta=2.0), norm("c", "y")], "y"),
    ],
)
def test_batch_norm_that_goes_nowhere_stays_right(
    tmp_path: Path, nodes: list[Any], outputs: str
) -> None:
    built = build(
        nodes,
        [value("x", [4, 4])],
        [value(name, [4, 4]) for name in outputs.split()],
        [weights("weight.", 4, 4), weights("row", 4), *NORM],
    )
    assert_alike(built, simplified(built, tmp_path), x=floats(4, 4))


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (8, 3), (9, 4), (10, 5), (11, 6), (12, 7)])
def test_lower_opsets_are_raised(tmp_path: Path, opset: int, ir: int) -> None:
    built = convolution(opset=opset, ir=ir)
    if ir == 3:  # weights are listed among the inputs
        for tensor in built.graph.initializer:
            built.graph.input.append(value(tensor.name, list(tensor.dims)))
    found = simplified(built, tmp_path)
    assert kinds(found) == ["Conv", "Relu"]
    assert_alike(built, found, x=IMAGE)


@pytest.mark.parametrize("ir", [4, 8])
def test_weights_that_could_be_overridden_are_constants(tmp_path: Path, ir: int) -> None:
    built = convolution(opset=11 if ir == 4 else 17, ir=ir)
    for tensor in built.graph.initializer:
        built.graph.input.append(value(tensor.name, list(tensor.dims)))
    found = simplified(built, tmp_path)
    assert kinds(found) == ["Conv", "Relu"]
    assert_alike(built, found, x=IMAGE)


@pytest.mark.parametrize(
    ("opset", "nodes", "shape", "tensors"),
    [
        (9, [node("Clip", "x", "y", min=-0.5, max=0.5)], [1, 3, 6, 6], []),
        (11, [node("Squeeze", "x", "y", axes=[0])], [3, 6, 6], []),
        (11, [node("Unsqueeze", "x", "y", axes=[0])], [1, 1, 3, 6, 6], []),
        (11, [node("Softmax", "x", "y", axis=1)], [1, 3, 6, 6], []),
        (11, [node("ReduceSum", "x", "y", axes=[1])], [1, 1, 6, 6], []),
        (11, [node("Pad", "x pads", "y")], [1, 3, 8, 6], [constant("pads", [0] * 8, "int64")]),
        (9, [node("Upsample", "x by", "y")], [1, 3, 12, 12], [constant("by", [1, 1, 2, 2])]),
        (10, [node("Dropout", "x", "y")], [1, 3, 6, 6], []),
    ],
)
def test_operators_that_changed_are_raised(
    tmp_path: Path, opset: int, nodes: list[Any], shape: list[int], tensors: list[Any]
) -> None:
    if nodes[0].op_type == "Pad":
        tensors = [constant("pads", [0, 0, 1, 0, 0, 0, 1, 0], "int64")]
    built = build(
        nodes, [value("x", [1, 3, 6, 6])], [value("y", shape)], tensors, opset=opset, ir=6
    )
    assert_alike(built, simplified(built, tmp_path), x=IMAGE)


def test_a_model_that_cannot_be_raised_says_so(tmp_path: Path) -> None:
    built = build(
        [node("Affine", "x", "y", alpha=2.0)],
        [value("x", [2, 3])],
        [value("y", [2, 3])],
        opset=8,
        ir=3,
    )
    path = save(built, tmp_path / "old.onnx")
    with pytest.raises(UnsupportedError, match=r"opset 8 .*raised to 13.*Affine.*newer opset"):
        simplify(str(path), str(tmp_path))


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (
            build(
                [node("Frob", "x", "y", domain="acme")],
                [value("x", [2, 3])],
                [value("y", [2, 3])],
                domains=["acme"],
            ),
            "Frob",
        ),
        (
            build(
                [node("MatMul", "x w", "y")],
                [value("x", [2, 3])],
                [value("y", [2, 3])],
                [weights("w", 5, 3)],
            ),
            "cannot be prepared for quantization",
        ),
    ],
)
def test_a_model_that_does_not_open_says_why(tmp_path: Path, built: Any, message: str) -> None:
    path = save(built, tmp_path / "odd.onnx")
    with pytest.raises(UnsupportedError, match=message) as caught:
        simplify(str(path), str(tmp_path))
    assert len(str(caught.value)) < 900 and str(caught.value).isprintable()


INTEGERS = np.random.default_rng(3).integers(-127, 128, (4, 3))
STORED = [
    ("per tensor", "int8", "w8 s z", [constant("s", 0.1), constant("z", 3, "int8")], {}),
    ("in vectors", "int8", "w8 s z", [constant("s", [0.1]), constant("z", [3], "int8")], {}),
    ("no zero point", "int8", "w8 s", [constant("s", 0.1)], {}),
    ("zero point left out", "int8", "w8 s -", [constant("s", 0.1)], {}),
    ("unsigned", "uint8", "w8 s z", [constant("s", 0.1), constant("z", 130, "uint8")], {}),
    ("int32", "int32", "w8 s", [constant("s", 0.1)], {}),
    (
        "per row",
        "int8",
        "w8 s z",
        [constant("s", [0.1, 0.2, 0.3, 0.4]), constant("z", [1, 2, 3, 4], "int8")],
        {"axis": 0},
    ),
    (
        "per column",
        "int8",
        "w8 s z",
        [constant("s", [0.1, 0.2, 0.3]), constant("z", [1, -2, 3], "int8")],
        {"axis": 1},
    ),
    ("from the end", "int8", "w8 s", [constant("s", [0.1, 0.2, 0.3])], {"axis": -1}),
    ("by default", "int8", "w8 s", [constant("s", [0.1, 0.2, 0.3])], {}),
]


@pytest.mark.parametrize(
    ("dtype", "names", "tensors", "attributes"), [s[1:] for s in STORED], ids=[s[0] for s in STORED]
)
def test_weights_stored_in_8_bits_become_float(
    tmp_path: Path, dtype: str, names: str, tensors: list[Any], attributes: dict[str, Any]
) -> None:
    integers = INTEGERS + 128 if dtype == "uint8" else INTEGERS
    built = build(
        [node("DequantizeLinear", names, "w", **attributes), node("MatMul", "x w", "y")],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [constant("w8", integers, dtype), *tensors],
    )
    found = simplified(built, tmp_path)
    assert kinds(found) == ["MatMul"]
    (weight,) = (numpy_helper.to_array(tensor) for tensor in found.graph.initializer)
    assert weight.dtype == np.float32
    assert_alike(built, found, x=floats(5, 4))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("QuantizeLinear", "wide s z", "q"), node("DequantizeLinear", "q s z", "w")],
        [node("Transpose", "turned", "q", perm=[1, 0]), node("DequantizeLinear", "q s z", "w")],
        [
            node("Constant", "", "q", value=constant("", INTEGERS, "int8")),
            node("Constant", "", "t", value=constant("", 0.1)),
            node("DequantizeLinear", "q t", "w"),
        ],
    ],
    ids=["float through both", "transposed", "constant nodes"],
)
def test_weights_computed_in_8_bits_become_float(tmp_path: Path, nodes: list[Any]) -> None:
    built = build(
        [*nodes, node("MatMul", "x w", "y")],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [
            weights("wide", 4, 3),
            constant("turned", INTEGERS.T, "int8"),
            constant("s", 0.02),
            constant("z", 1, "int8"),
        ],
    )
    found = simplified(built, tmp_path)
    assert kinds(found) == ["MatMul"]
    assert_alike(built, found, x=floats(5, 4))


def test_half_precision_weights_become_float(tmp_path: Path) -> None:
    halves = [constant(name, floats(4, 4, seed=len(name)), "float16") for name in ("w", "ww")]
    built = build(
        [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b ww", "y")],
        [value("x", [5, 4], F16)],
        [value("y", [5, 4], F16)],
        halves,
    )
    found = simplified(built, tmp_path)
    assert kinds(found) == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]
    half = floats(5, 4).astype(np.float16)
    (expected,), (output,) = run(built, {"x": half}), run(found, {"x": half})
    np.testing.assert_allclose(output, expected, rtol=0.01, atol=0.01)


def test_scales_of_blocks_are_left_alone(tmp_path: Path) -> None:
    built = build(
        [
            node("DequantizeLinear", "w8 s", "w", axis=0, block_size=2),
            node("MatMul", "x w", "y"),
        ],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [constant("w8", INTEGERS, "int8"), constant("s", np.abs(floats(2, 3)))],
        opset=21,
        ir=10,
    )
    assert_alike(built, simplified(built, tmp_path), x=floats(5, 4))


def test_a_model_that_is_quantized_already_is_told(tmp_path: Path) -> None:
    built = build(
        [
            node("QuantizeLinear", "x s z", "q"),
            node("DequantizeLinear", "q s z", "d"),
            node("DequantizeLinear", "w8 s z", "w"),
            node("MatMul", "d w", "y"),
        ],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [constant("w8", INTEGERS, "int8"), constant("s", 0.02), constant("z", 1, "int8")],
    )
    found = simplified(built, tmp_path / "made")
    assert kinds(found) == ["QuantizeLinear", "DequantizeLinear", "MatMul"]
    assert_alike(built, found, x=floats(5, 4))
    path = save(built, tmp_path / "again.onnx")
    assert simplify(str(path), str(tmp_path))["quantized"] == 1
    path = save(dense(5), tmp_path / "float.onnx")
    assert simplify(str(path), str(tmp_path))["quantized"] == 0


def test_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    built = build(
        [
            node("MatMul", "x w", "a", name="n"),
            node("Sigmoid", "a", "b"),
            node("Tanh", "b", "c", name="Sigmoid_1"),
            node("Softmax", "c", "d", name="Sigmoid_1_2"),
            node("Neg", "d", "e"),
            node("Exp", "e", "y", name="Neg_4"),
        ],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [weights("w", 4, 3)],
    )
    found = simplified(built, tmp_path)  # which looks at the names
    assert found.graph.node[0].name == "n"
    assert_alike(built, found, x=floats(5, 4))


def test_constants_are_folded_and_outputs_stay(tmp_path: Path) -> None:
    built = build(
        [
            node("Mul", "w two", "w2"),
            node("MatMul", "x w2", "y"),
            node("Identity", "x", "same"),
            node("Constant", "", "fixed", value=constant("", [1, 2])),
        ],
        [value("x", [5, 4])],
        [value("y", [5, 3]), value("same", [5, 4]), value("fixed", [2])],
        [weights("w", 4, 3), constant("two", 2)],
    )
    found = simplified(built, tmp_path)
    assert sorted(kinds(found)) == ["Identity", "MatMul"]
    assert_alike(built, found, x=floats(5, 4))


def test_the_example_as_a_float_graph(digits: Case) -> None:
    original = onnx.load(str(digits.model.prepared))
    found = onnx.load(str(digits.graph))
    onnx.checker.check_model(found, full_check=True)
    assert_alike(original, found, image=digits.arrays["image"][:1])
    for entry in found.graph.node:
        assert all(name in Graph(found).values for name in entry.output)


# --- a graph that can be asked


def test_a_graph_answers() -> None:
    inside = helper.make_graph([node("Mul", "a b", "m")], "t", [], [value("m", [5, 3])])
    other = helper.make_graph([node("Neg", "a", "o")], "e", [], [value("o", [5, 3])])
    built = build(
        [
            node("MatMul", "x w", "a"),
            node("Relu", "a", "b"),
            node("Constant", "", "k", value=constant("", [1, 2])),
            node("If", "flag", "c", then_branch=inside, else_branch=other),
            node("Add", "c c", "d"),
            node("Sigmoid", "d", "y"),
            node("Tanh", "y", "z"),
        ],
        [value("x", [5, 4]), value("flag", [], BOOL), value("w", [4, 3])],
        [value("y", [5, 3]), value("z", [5, 3])],
        [weights("w", 4, 3), constant("i", [1, 2], "int64")],
    )
    graph = Graph(onnx.shape_inference.infer_shapes(built))
    assert graph.inputs == ["x", "flag"] and graph.outputs == ["y", "z"]
    assert graph.producer["b"].op_type == "Relu" and "x" not in graph.producer
    assert [taker.op_type for taker in graph.consumers["c"]] == ["Add"]
    assert {"a", "b"} <= graph.inner
    weight = graph.constant("w")
    assert weight is not None and weight.shape == (4, 3) and graph.constant("w") is weight
    fixed = graph.constant("k")
    assert fixed is not None and fixed.tolist() == [1, 2]
    assert graph.constant("x") is None and graph.constant("a") is None
    assert graph.is_float("x") and graph.is_float("w") and graph.is_float("a")
    assert not graph.is_float("flag") and not graph.is_float("i") and not graph.is_float("?")
    assert graph.shape("a") == (5, 3) and graph.shape("w") == (4, 3) and graph.shape("?") is None
    assert graph.only_consumer("x") is not None
    assert graph.only_consumer("a") is None  # a branch takes it too
    assert graph.only_consumer("c") is None  # taken twice
    assert graph.only_consumer("y") is None  # an output
    assert attribute(built.graph.node[0], "absent", 7) == 7


def test_a_free_axis_is_no_shape() -> None:
    graph = Graph(dense("N"))
    assert graph.shape("x") is None and graph.is_float("x")


# --- as a deployment does it


def told(done: float, total: float, what: str) -> None:
    assert done <= total and what


TARGET = targets.load("x86-onnxruntime")
FORMATS = [entry.format for entry in TARGET.recipes if entry.method == "static" and entry.format]


def hub(built: Any, folder: Path, cache: Cache, **arrays: Any) -> CalibratedModel:
    folder.mkdir(exist_ok=True)
    path = built if isinstance(built, Path) else save(built, folder / "given.onnx")
    host = Local(cache)
    model = model_file.read(path, {}, None, cache, host)
    np.savez(folder / "data.npz", **arrays)
    data = str(folder / "data.npz")
    found = samples.load(data, model, cache, option="--data", labelled=False)
    return CalibratedModel(model, TARGET, found, host, cache)


def digits_hub(folder: Path, cache: Cache) -> CalibratedModel:
    with np.load(DIGITS / "calibration.npz") as stored:
        return hub(DIGITS / "digits_cnn.onnx", folder, cache, image=stored["x"][:64])


@pytest.fixture(scope="module")
def example_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CalibratedModel]:
    folder = tmp_path_factory.mktemp("hub")
    with Cache(folder / "cache") as cache:
        yield digits_hub(folder, cache)


def test_the_statistics_of_a_deployment_are_exact(
    example_hub: CalibratedModel, tmp_path: Path
) -> None:
    """Made in several processes; the same bytes as in one."""
    folder = example_hub.statistics(told)
    assert example_hub.samples
    tensors = json.loads((folder / "statistics.json").read_text())["tensors"]
    with np.load(DIGITS / "calibration.npz") as stored:
        given = Case(
            example_hub.float_graph(),
            example_hub.model,
            example_hub.samples,
            {"image": stored["x"][:64]},
            tensors,
        )
    assert "image" in tensors and len(tensors) > 10
    compare(given, folder)
    alone = streamed(given, tmp_path / "alone")
    for name in ("statistics.npz", "statistics.json"):
        assert (alone / name).read_bytes() == (folder / name).read_bytes()


def test_one_set_of_statistics_serves_every_format(example_hub: CalibratedModel) -> None:
    made = [example_hub.quantized(form, told) for form in FORMATS]
    assert len({source.sha256 for source in made}) == len(FORMATS)
    in_cache = [path.name for path in (example_hub.cache.root / "entries").iterdir()]
    for kind in ("float", "statistics"):
        assert len([name for name in in_cache if name.startswith(f"{kind}-")]) == 1


def test_what_was_made_is_found_again(example_hub: CalibratedModel) -> None:
    steps: list[str] = []

    def heard(done: float, total: float, what: str) -> None:
        steps.append(what)

    first = example_hub.quantized(FORMATS[0], told)
    again = example_hub.quantized(FORMATS[0], heard)
    assert first == again and not steps
    assert example_hub.float_source().path == example_hub.float_graph()


def test_a_quantized_graph_gives_nearly_what_the_float_one_gives(
    example_hub: CalibratedModel,
) -> None:
    source = example_hub.quantized(FORMATS[0], told)
    graph = onnx.load(str(source.path))
    onnx.checker.check_model(graph, full_check=True)
    assert "QuantizeLinear" in kinds(graph)
    assert source.details["estimator"] in ESTIMATORS
    assert source.details["estimators_sqnr_db"].keys() == ESTIMATORS.keys()
    assert min(source.details["estimators_sqnr_db"].values()) > 10
    with np.load(DIGITS / "digits.npz") as stored:
        rows = stored["x"][:64]
    expected, found = (
        np.concatenate([run(path, {"image": row[None]})[0] for row in rows])
        for path in (example_hub.float_graph(), source.path)
    )
    noise = np.mean((expected - found) ** 2) / np.mean(expected**2)
    assert 0 < noise < 10**-2.5


def test_the_same_inputs_give_the_same_graph_in_another_cache(
    example_hub: CalibratedModel, tmp_path: Path
) -> None:
    with Cache(tmp_path / "cache") as cache:
        other = digits_hub(tmp_path, cache)
        assert other.float_graph().read_bytes() == example_hub.float_graph().read_bytes()
        folders = [entry.statistics(told) for entry in (other, example_hub)]
        for name in ("statistics.npz", "statistics.json"):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
        made = [entry.quantized(FORMATS[0], told) for entry in (other, example_hub)]
        assert made[0].path != made[1].path
        assert made[0].path.read_bytes() == made[1].path.read_bytes()
        assert made[0].details == made[1].details


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


Built = Callable[[], Any]


@pytest.mark.parametrize(
    ("built", "data", "message"),
    [
        (root, {"x": np.full((9, 4), -1, np.float32)}, "NaN or infinite.*'root'"),
        (table, {"ids": np.array([[0, 1], [3, 99]])}, "out of data bounds"),
        (lambda: relu(["N", 4]), {"x": floats(9, 4)}, "nothing in it can be quantized"),
    ],
    ids=["never finite", "fails on a sample", "nothing to quantize"],
)
def test_why_a_model_cannot_be_quantized_is_said(
    tmp_path: Path, built: Built, data: dict[str, Any], message: str
) -> None:
    with Cache(tmp_path / "cache") as cache:
        given = hub(built(), tmp_path, cache, **data)
        with pytest.raises(UnsupportedError, match=message) as caught:
            given.quantized(FORMATS[0], told)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 900


def test_a_format_that_fits_nothing_does_not_stop_the_others(tmp_path: Path) -> None:
    built = build(
        [node("MatMul", "x w", "y")],
        [value("x", ["N", 4])],
        [value("y", ["N", 3])],
        [weights("w", 4, 3)],
    )
    with Cache(tmp_path / "cache") as cache:
        given = hub(built, tmp_path, cache, x=floats(9, 4))
        conv, matmul = (replace(FORMATS[0], operators=(name,)) for name in ("Conv", "MatMul"))
        given.recipes = {"int8-conv": conv, "int8-matmul": matmul}
        with pytest.raises(UnsupportedError, match="nothing in it can be quantized"):
            given.quantized(conv, told)
        assert given.quantized(matmul, told).details["operators_in_8_bits"] == 1


def test_what_is_not_finite_stays_float_and_the_rest_does_not(tmp_path: Path) -> None:
    data = np.abs(floats(9, 40)) + 0.1
    data[4, 1] = -1
    with Cache(tmp_path / "cache") as cache:
        given = hub(roots(), tmp_path, cache, x=data)
        found = Statistics(given.statistics(told))
        assert found.not_finite == {"root", "y"}
        source = given.quantized(FORMATS[0], told)
        graph = onnx.load(str(source.path))
        by_output = {name: entry for entry in graph.graph.node for name in entry.output}
        assert source.details["operators_in_8_bits"] == 2
        assert len(source.details["operators_in_float"]) == 1
        assert list(by_output["y"].input) == ["root", "w"]
        expected, found_rows = (
            run(path, {"x": data[:1]}) for path in (given.float_graph(), source.path)
        )
        for reference, row in zip(expected, found_rows, strict=True):
            np.testing.assert_allclose(row, reference, atol=0.02 * np.abs(reference).max())


def test_a_model_of_dead_ranges_is_quantized(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache") as cache:
        given = hub(convolution(), tmp_path, cache, x=np.zeros((9, 3, 6, 6), np.float32))
        source = given.quantized(FORMATS[0], told)
        feed = {"x": np.zeros((1, 3, 6, 6), np.float32)}
        (expected,), (found,) = (run(p, feed) for p in (given.float_graph(), source.path))
        np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("opset", [8, 11])
def test_a_model_of_a_lower_opset_is_quantized_and_valid(tmp_path: Path, opset: int) -> None:
    built = convolution(opset=opset, ir=3 if opset == 8 else 6)
    if opset == 8:
        for tensor in built.graph.initializer:
            built.graph.input.append(value(tensor.name, list(tensor.dims)))
    with Cache(tmp_path / "cache") as cache:
        given = hub(built, tmp_path, cache, x=floats(9, 3, 6, 6))
        source = given.quantized(FORMATS[0], told)
        onnx.checker.check_model(onnx.load(str(source.path)), full_check=True)
        feed = {"x": floats(9, 3, 6, 6)[:1]}
        (expected,), (found,) = (run(p, feed) for p in (given.float_graph(), source.path))
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())
