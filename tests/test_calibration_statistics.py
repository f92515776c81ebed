"""Streamed statistics are what an implementation that keeps everything computes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onmetal import ranges
from onmetal.calibration import statistics
from onmetal.calibration.statistics import Binned, Statistics
from onmetal.ranges import BINS, ESTIMATORS, Grid, estimate
from onmetal.records import plain
from tests.conftest import DIGITS
from tests.float_graphs import BOOL, F16, branch_data, branches, floats, roots
from tests.onnx_models import build, constant, dense, node, relu, value, weights
from tests.statistics_reference import (
    Case,
    case,
    compare,
    kept,
    moved,
    quick,
    seen_of,
    streamed,
    with_data,
)


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


MEMORY = """
import json, sys
from pathlib import Path
from onmetal.calibration import statistics
from onmetal.converters.onnx import reference
from onmetal.records import Model, restore
from onmetal.samples import Samples

def memory(field):  # getrusage would tell the parent's peak, which a child starts with
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

given = json.loads(Path(sys.argv[1]).read_text())
given["samples"] = restore(given["samples"], Samples)
given["model"] = restore(given["model"], Model)
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
