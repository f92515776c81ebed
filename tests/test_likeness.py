"""Whether outputs are the model's: in the whole, slice by slice, and what follows for a trial."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from onmetal.calibration import collapse
from onmetal.calibration.fidelity import PERFECT_DB, compare, extent, sqnr_db
from onmetal.deploy import likeness
from onmetal.files import stored as outputs
from onmetal.files.stored import StoredArray
from onmetal.records import Model, Tensor, Trial
from onmetal.runtimes import fit
from onmetal.targets import Recipe
from tests.trials import MODEL, trial

TARGET = fit.load_target("x86-64")
RANDOM = np.random.default_rng(7)
BOXES = RANDOM.uniform(0, 640, (40, 4, 16)).astype(np.float32)
SCORES = RANDOM.uniform(0, 1, (40, 6, 16)).astype(np.float32)
HEAD = np.concatenate([BOXES, SCORES], axis=1)
"""Boxes in pixels beside scores, as a detector gives them in one output."""


def rounded(values: np.ndarray, step: float) -> np.ndarray:
    return (np.rint(values / step) * step).astype(np.float32)


def test_a_dead_part_of_an_output_is_seen_whatever_the_whole_says() -> None:
    one_scale = rounded(HEAD, 640 / 255)
    found = compare(HEAD, one_scale)
    assert found.sqnr_db is not None and found.sqnr_db > 40
    assert found.worst_slice is not None and found.worst_slice.sqnr_db < 10
    assert found.worst_slice.axis == 0 and found.worst_slice.index >= 4
    assert found.least_db == found.worst_slice.sqnr_db
    scales = np.array([640.0] * 4 + [1.0] * 6).reshape(10, 1) / 255
    apart = compare(HEAD, (np.rint(HEAD / scales) * scales).astype(np.float32))
    assert apart.least_db is not None and apart.least_db > 30


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_slices_are_looked_at_along_every_axis(axis: int) -> None:
    head = np.moveaxis(HEAD[:, None], 2, axis)
    found = compare(head, rounded(head, 640 / 255))
    assert found.worst_slice is not None
    assert found.worst_slice.axis == axis - 1
    assert found.worst_slice.sqnr_db < 10


def test_slices_of_like_ranges_are_judged_in_the_whole() -> None:
    values = HEAD[:, 4:]
    found = compare(values, rounded(values, 1 / 255))
    assert found.worst_slice is None
    assert (
        found.least_db == found.sqnr_db == pytest.approx(sqnr_db(values, rounded(values, 1 / 255)))
    )


def test_shares_of_one_whole_are_judged_in_the_whole() -> None:
    """A class that no sample is of has a softmax near nothing, which 8 bits give as nothing."""
    logits = RANDOM.normal(size=(200, 12)) * 3
    logits[:, 3] -= 8
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shares = shares.astype(np.float32)
    found = compare(shares, rounded(shares, 1 / 256))
    assert found.worst_slice is None and not found.dead_slices
    apart = compare(shares * 2, rounded(shares * 2, 1 / 128))
    assert apart.worst_slice is not None and apart.worst_slice.index == 3


def test_rounding_of_the_largest_is_no_noise_of_a_small_slice() -> None:
    values = np.stack([RANDOM.normal(size=100), RANDOM.normal(size=100) * 1e-7], axis=1)
    found = compare(values, values + RANDOM.normal(size=values.shape) * 1e-7)
    assert found.least_db is not None and found.least_db > 100


def test_a_slice_of_zeros_that_gets_noise_is_seen() -> None:
    values = np.stack([RANDOM.normal(size=100), RANDOM.normal(size=100) * 1e-3], axis=1)
    values[:, 1] = 0
    values = np.concatenate([values, values[:, :1] * 1e-3], axis=1)
    noisy = values + np.array([0, 1e-2, 0])
    found = compare(values, noisy)
    assert found.worst_slice is not None and found.worst_slice.index == 1
    assert found.worst_slice.sqnr_db == -PERFECT_DB


def test_a_slice_that_never_changes_is_dead() -> None:
    logits = RANDOM.normal(size=(100, 50)).astype(np.float32)
    after = logits.copy()
    after[:, 7] = 0.25
    found = compare(logits, after)
    assert found.sqnr_db is not None and found.sqnr_db > 15
    assert [entry.index for entry in found.dead_slices] == [7]
    (reason,) = collapse.collapsed("y", logits, after)
    assert "dead in slice 7 of axis 0" in reason
    small = logits.copy()
    small[:, 7] /= 1000
    after[:, 7] = 0
    assert not compare(small, after).dead_slices  # 8 bits cannot show it beside the others
    assert not compare(logits[:1], after[:1]).dead_slices  # of one sample nothing is known


def test_what_is_not_finite_is_seen_anywhere() -> None:
    values = RANDOM.normal(size=(700, 3)).astype(np.float32)
    after = values.copy()
    after[501, 1] = np.nan
    assert compare(values, after).invalid
    assert "NaN" in collapse.collapsed("y", values, after)[0]
    both = values.copy()
    both[501, 1] = np.nan
    assert not compare(both, after).invalid
    assert compare(both, both).sqnr_db == PERFECT_DB


@pytest.mark.parametrize("shape", [(5, 0), (5, 4, 0), (5, 0, 4)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_an_output_that_holds_nothing_is_followed(shape: tuple[int, ...], dtype: str) -> None:
    empty = np.zeros(shape, dtype)
    found = compare(empty, empty.copy(), extent(empty))
    assert (found.sqnr_db, found.equal) == ((PERFECT_DB, None) if dtype == "float32" else (None, 1))
    assert collapse.collapsed("y", empty, empty.copy()) == []


def test_what_is_not_finite_is_seen_in_a_single_sample() -> None:
    one = np.ones((1, 4), np.float32)
    (reason,) = collapse.collapsed("y", one, np.where(np.arange(4) == 2, np.nan, one))
    assert "NaN" in reason


def test_a_constant_that_varies_by_rounding_is_not_dead() -> None:
    """Such as the sum of a softmax, which another runtime may give as 1 throughout."""
    sums = np.where(np.arange(60).reshape(30, 2) % 3, 1.0, 1 - 2**-24).astype(np.float32)
    assert collapse.collapsed("y", sums, np.ones_like(sums)) == []
    beside = np.stack([sums[:, 0], sums[:, 0] * 0 + 1 - 2**-24], axis=1)
    assert collapse.collapsed("y", sums, beside) == []
    assert collapse.collapsed("y", sums, sums * np.float32(1.01)) == []
    twins = np.repeat(RANDOM.normal(size=(30, 1)), 2, axis=1).astype(np.float32)
    other = np.nextafter(twins, np.where(RANDOM.random(twins.shape) < 0.5, -9, 9), dtype=np.float32)
    assert collapse.collapsed("y", other, twins) == []
    counts = np.where(np.arange(60).reshape(30, 2) % 3, 10**7, 10**7 + 1)
    assert "dead" in collapse.collapsed("y", counts, np.full_like(counts, 10**7))[0]


def test_whole_numbers_are_counted() -> None:
    before = RANDOM.integers(0, 9, (50, 4))
    after = before.copy()
    after[0, 0] += 1
    found = compare(before, after)
    assert found.sqnr_db is None
    assert found.equal == pytest.approx(1 - 1 / 200)
    assert compare(before > 4, before > 4).equal == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_in_parts_it_is_the_same_as_at_once(rows: int, chunk_bytes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = (random.normal(size=(rows, 3, 4)) * np.array([1, 50, 3000]).reshape(3, 1)).astype("f4")
    after = values + random.normal(size=values.shape).astype("f4") * 0.01
    at_once = compare(values, after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "CHUNK_BYTES", chunk_bytes)
        in_parts = compare(values, after, extent(values))
    assert in_parts.sqnr_db == pytest.approx(at_once.sqnr_db)
    assert (in_parts.worst_slice is None) == (at_once.worst_slice is None)
    if at_once.worst_slice and in_parts.worst_slice:
        assert in_parts.worst_slice.sqnr_db == pytest.approx(at_once.worst_slice.sqnr_db)


# --- what follows for a trial


def judged(
    recipe: str,
    after: dict[str, np.ndarray],
    before: dict[str, np.ndarray],
    *,
    read: tuple[str, ...] = (),
    model: Model = MODEL,
) -> Trial:
    known = trial(f"{recipe}@onnxruntime")
    assert known.candidate
    known = replace(known, candidate=replace(known.candidate, model=model))
    extents = {name: extent(array) for name, array in before.items()}
    which: Recipe = TARGET.recipe(recipe)
    return likeness.compared(known, which, after, before, extents, read)


def noisy(values: np.ndarray, decibels: float) -> np.ndarray:
    """With noise of just so much less power."""
    noise = RANDOM.normal(size=values.shape)
    power = np.mean(values.astype(np.float64) ** 2) / np.mean(noise**2)
    after: np.ndarray = values + noise * np.sqrt(power / 10 ** (decibels / 10))
    return after.astype(values.dtype)


LOGITS = {"y": RANDOM.normal(size=(60, 8)).astype(np.float32)}


@pytest.mark.parametrize(
    ("recipe", "decibels", "holds"),
    [
        ("fp32", -3.7, False),
        ("fp32", 59, False),
        ("fp32", 61, True),
        ("bf16", 19, False),
        ("bf16", 21, True),
        ("fp16", 19, False),
        ("fp16", 21, True),
    ],
)
@pytest.mark.parametrize("read", [(), ("y",)])
def test_a_float_candidate_whose_outputs_are_not_the_models_has_failed(
    recipe: str, decibels: float, holds: bool, read: tuple[str, ...]
) -> None:
    found = judged(recipe, {"y": noisy(LOGITS["y"], decibels)}, LOGITS, read=read)
    assert (found.failure is None) == holds
    if not holds:
        assert found.status == "failed"
        assert "'y'" in str(found.reason)
        assert "are not the model's" in str(found.reason)


def test_a_source_that_rounds_needs_less_of_fp32() -> None:
    after = {"y": noisy(LOGITS["y"], 35)}
    half = replace(MODEL, inputs=(Tensor("x", "float16", (1, 8)),))
    assert judged("fp32", after, LOGITS).failure
    for model in (half, replace(MODEL, quantized=4)):
        assert judged("fp32", after, LOGITS, model=model).failure is None
        assert judged("fp32", {"y": noisy(LOGITS["y"], 28)}, LOGITS, model=model).failure


def test_an_inexact_candidate_follows_every_output_that_no_metric_reads() -> None:
    before = {"y": LOGITS["y"], "z": LOGITS["y"] * 3}
    after = {"y": noisy(before["y"], 15), "z": noisy(before["z"], 25)}
    (reason,) = judged("int8-s8s8", after, before).unlike
    assert "'y'" in reason and "15.0 dB" in reason and "--data" in reason
    assert judged("int8-s8s8", after, before, read=("y",)).unlike == ()
    (reason,) = judged("int8-s8s8", after, before, read=("z",)).unlike
    assert "'y'" in reason and "does not read" in reason
    assert judged("int8-s8s8", after, before).failure is None


def test_dead_scores_of_a_detector_are_rejected_without_labels() -> None:
    found = judged("int8-s8s8", {"y": rounded(HEAD, 640 / 255)}, {"y": HEAD})
    assert found.sqnr_db["y"] > 40
    assert "slice" in found.unlike[0]
    assert found.slices["y"].sqnr_db < 10


def test_whole_numbers_of_float_candidates_are_equal() -> None:
    before = {"y": RANDOM.integers(0, 5, (100, 4))}
    few, many = before["y"].copy(), before["y"].copy()
    few[0, :3] += 1
    many[:2, :3] += 1
    assert judged("fp32", {"y": few}, before).failure is None
    assert "98.5 %" in str(judged("bf16", {"y": many}, before).reason).replace("%", " %")
    assert judged("int8-s8s8", {"y": many}, before).unlike == ()
    assert judged("int8-s8s8", {"y": many}, before).equal == {"y": 0.985}


@pytest.mark.parametrize("recipe", ["fp32", "bf16", "int8-s8s8"])
def test_outputs_keep_their_shapes_and_dtypes(recipe: str) -> None:
    for other, what in ((LOGITS["y"][:, :7], "shape"), (LOGITS["y"].astype("f8"), "dtype")):
        found = judged(recipe, {"y": other}, LOGITS)
        assert found.failure == "conversion"
        assert f"has the {what}" in str(found.reason)
    assert "its outputs are q" in str(judged(recipe, {"q": LOGITS["y"]}, LOGITS).reason)


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8-s8s8"])
def test_nan_and_collapse_reject_any_precision(recipe: str) -> None:
    nan = LOGITS["y"].copy()
    nan[3, 3] = np.nan
    for broken, word in ((nan, "NaN"), (np.zeros_like(nan), "dead")):
        found = judged(recipe, {"y": broken}, LOGITS, read=("y",))
        assert any(word in text for text in (*found.collapsed, str(found.reason)))
        assert found.collapsed


# --- stored outputs


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 3), (7, 0), (0, 4)])
@pytest.mark.parametrize("dtype", ["<f4", "<i8", "|b1", "<f2"])
def test_stored_outputs_read_as_numpy_does(
    shape: tuple[int, ...], dtype: str, tmp_path: Path
) -> None:
    values = (RANDOM.normal(size=shape) * 9).astype(dtype)
    np.save(tmp_path / "y.npy", values)
    stored = StoredArray.at(tmp_path / "y.npy")
    assert (stored.shape, stored.dtype, len(stored)) == (shape, values.dtype, shape[0])
    picks: list[Any] = [slice(None), slice(2, 5), slice(5, 99), slice(1, 6, 2)]
    picks += [np.array([0, 0, 5])] if shape[0] else []
    for pick in picks:
        np.testing.assert_array_equal(stored[pick], values[pick])
    np.testing.assert_array_equal(np.asarray(stored), values)


SCRIPT = """
import resource, sys
import numpy as np
from pathlib import Path
from onmetal.calibration import collapse
from onmetal.calibration.fidelity import compare, extent
from onmetal.files import stored
from onmetal.files.stored import StoredArray
stored.CHUNK_BYTES = 1 << 19
collapse.MOST_BYTES = 1 << 20
before, after = (StoredArray.at(Path(path)) for path in sys.argv[1:3])
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = compare(before, after, extent(before))
collapse.collapsed("y", before, after, found)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


def test_memory_of_comparing_does_not_grow_with_the_samples(tmp_path: Path) -> None:
    peaks = []
    for count in (40, 160):
        paths = []
        for name in ("a", "b"):
            path = tmp_path / f"{name}{count}.npy"
            store = np.lib.format.open_memmap(path, "w+", "f4", (count, 21, 64, 64))
            for number in range(count):
                store[number] = RANDOM.normal(size=(21, 64, 64))
            store.flush()
            paths.append(str(path))
        words = [sys.executable, "-c", SCRIPT, *paths]
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=600)
        peaks.append(int(done.stdout))
    grown_kib, more_samples_kib = peaks[1] - peaks[0], 120 * 21 * 64 * 64 * 4 // 1024
    assert grown_kib < more_samples_kib / 4
