"""Intervals of the drop in accuracy, and fidelity, against SciPy and known truths."""

import importlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from onmetal.calibration.accuracy import clopper_pearson, judge, paired_interval
from onmetal.calibration.fidelity import PERFECT_DB, sqnr_db
from onmetal.calibration.metric_table import Metric
from onmetal.calibration.metrics import Scorer, choose
from onmetal.files import stored as outputs
from onmetal.records import Tensor

stats: Any = importlib.import_module("scipy.stats")
some = settings(max_examples=60, deadline=None)


def flags(count: int, samples: int, start: int = 0) -> np.ndarray:
    found = np.zeros(samples, np.bool_)
    found[start : start + count] = True
    return found


def pair(lost: int, won: int, samples: int) -> tuple[float, float]:
    return paired_interval(flags(lost, samples), flags(won, samples, lost))


def scorer(name: str, outputs: np.ndarray, labels: np.ndarray, **keywords: Any) -> Scorer:
    tensor = Tensor("out", outputs.dtype.name, outputs.shape)
    metric = replace(choose(name, tensor, outputs.shape[1:], labels), **keywords)
    return Scorer(metric, {"out": outputs}, "out", labels)


def votes(predicted: np.ndarray) -> np.ndarray:
    return np.asarray(np.eye(10, dtype=np.float32)[predicted])


@some
@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@example((0, 1))
@example((1, 1))
@example((99_999, 100_000))
def test_clopper_pearson(counts: tuple[int, int]) -> None:
    hits, tries = counts
    expected = stats.binomtest(hits, tries).proportion_ci(0.95, "exact")
    assert clopper_pearson(hits, tries) == pytest.approx(tuple(expected), abs=1e-7)


@some
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 500))
@example(6, 0, 100)
@example(5, 0, 100)
@example(0, 6, 0)
def test_the_interval_excludes_zero_where_mcnemars_exact_test_does(
    lost: int, won: int, agreed: int
) -> None:
    if not lost + won + agreed:
        return
    low, high = pair(lost, won, lost + won + agreed)
    significant = lost + won > 0 and stats.binomtest(lost, lost + won).pvalue < 0.05
    assert (low > 0 or high < 0) == significant


@some
@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 500))
def test_the_interval_holds_its_point_and_mirrors(lost: int, won: int, agreed: int) -> None:
    samples = lost + won + agreed
    low, high = pair(lost, won, samples)
    assert -1 <= low <= (lost - won) / samples <= high <= 1
    assert pair(won, lost, samples) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize("samples", [1, 10, 360, 50_000])
def test_where_no_sample_differs_the_rule_of_three_holds(samples: int) -> None:
    bound = 1 - 0.025 ** (1 / samples)
    assert pair(0, 0, samples) == pytest.approx((-bound, bound))


def test_more_samples_narrow_the_interval() -> None:
    widths = [np.diff(pair(5 * k, 3 * k, 100 * k))[0] for k in (1, 4, 16)]
    assert widths[0] > 1.7 * widths[1] > 1.7 * 1.7 * widths[2]


@pytest.mark.parametrize(
    ("lost", "won", "samples"),
    [(0.05, 0.05, 200), (0.05, 0.0, 200), (0.05, 0.01, 200), (0.02, 0.0, 500), (0.0, 0.02, 500)],
)
def test_the_interval_of_the_drop_covers_the_truth(lost: float, won: float, samples: int) -> None:
    hits, runs = 0, 150
    for seed in range(runs):
        drawn = np.random.default_rng(seed).random(samples)
        low, high = paired_interval(drawn < lost, drawn > 1 - won)
        hits += low <= lost - won <= high
    assert hits / runs >= 0.92


LABELS = np.arange(300) % 10
RIGHT = votes(LABELS)
WRONG = votes((LABELS + (np.arange(300) < 30)) % 10)


def test_the_drop_is_how_far_it_is_below_the_reference() -> None:
    found = judge(scorer("top1", WRONG, LABELS), scorer("top1", RIGHT, LABELS))
    assert (found.metric, found.samples) == ("top1", 300)
    assert found.value == pytest.approx(0.9)
    assert found.drop == pytest.approx(0.1)
    assert found.drop_ci95 == pair(30, 0, 300)


def test_a_better_candidate_has_a_negative_drop() -> None:
    found = judge(scorer("top1", RIGHT, LABELS), scorer("top1", WRONG, LABELS))
    assert found.drop == pytest.approx(-0.1)
    assert found.drop_ci95
    assert found.drop_ci95[1] < 0


def test_the_reference_itself_drops_by_nothing() -> None:
    own = scorer("top1", WRONG, LABELS)
    found = judge(own, own)
    assert (found.drop, found.drop_ci95) == (0.0, (0.0, 0.0))


def test_without_a_reference_there_is_no_drop() -> None:
    found = judge(scorer("top1", WRONG, LABELS), None)
    assert found.value == pytest.approx(0.9)
    assert (found.drop, found.drop_ci95) == (None, None)


def test_of_an_error_higher_is_worse() -> None:
    labels = np.linspace(0, 1, 300)
    near, far = scorer("rmse", labels + 0.1, labels), scorer("rmse", labels - 0.3, labels)
    found = judge(far, near)
    assert found.value == pytest.approx(0.3)
    assert found.drop == pytest.approx(0.2)
    assert found.drop_ci95 == pytest.approx((0.2, 0.2))
    assert judge(near, far).drop == pytest.approx(-0.2)


def noisy_scores(kind: str, seed: int) -> tuple[Scorer, Scorer]:
    """(a candidate, the reference it is a little worse than)"""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, 300) if kind == "f1" else random.normal(size=300)
    if kind == "rmse":
        better = labels + random.normal(0, 0.2, 300)
        return scorer(kind, better + random.normal(0, 0.1, 300), labels, resamples=300), scorer(
            kind, better, labels, resamples=300
        )
    better = votes(labels) + random.normal(0, 0.4, (300, 10)).astype(np.float32)
    worse = better + random.normal(0, 0.2, (300, 10)).astype(np.float32)
    return scorer(kind, worse, labels, resamples=300), scorer(kind, better, labels, resamples=300)


@pytest.mark.parametrize("kind", ["f1", "rmse"])
def test_the_bootstraps_interval_holds_its_point_and_is_the_same_every_time(kind: str) -> None:
    found, reference = noisy_scores(kind, 0)
    first = judge(found, reference)
    assert first == judge(found, reference)
    assert first.drop is not None
    assert first.drop_ci95
    assert first.drop_ci95[0] < first.drop < first.drop_ci95[1]
    assert judge(reference, found).drop == pytest.approx(-first.drop)


def test_the_bootstraps_interval_covers_the_truth() -> None:
    truth = math.sqrt(0.2**2 + 0.1**2) - 0.2
    hits = 0
    for seed in range(60):
        interval = judge(*noisy_scores("rmse", seed)).drop_ci95
        assert interval
        hits += interval[0] <= truth <= interval[1]
    assert hits >= 52


def test_the_bootstrap_is_paired() -> None:
    random = np.random.default_rng(1)
    labels = random.normal(size=200)
    reference = labels + random.normal(0, 5, 200)
    found = judge(
        scorer("rmse", reference * 1.0001, labels), scorer("rmse", reference, labels)
    ).drop_ci95
    assert found
    assert found[1] - found[0] < 0.01


def test_a_users_metric_that_is_never_a_number_has_no_interval() -> None:
    def never(outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
        return math.nan

    metric = Metric("own", lambda a, b: a, lambda a, b: 0.0, resamples=20, function=never)
    one, other = (Scorer(metric, {"out": RIGHT}, "out", LABELS) for _ in range(2))
    found = judge(one, other)
    assert found.drop is not None
    assert math.isnan(found.drop)
    assert found.drop_ci95 is None


def test_fidelity_of_a_known_distance() -> None:
    signal = np.ones((4, 5), np.float32)
    assert sqnr_db(signal, signal * 1.1) == pytest.approx(20, abs=1e-4)
    assert sqnr_db(signal, signal * 1.01) == pytest.approx(40, abs=1e-3)
    assert sqnr_db(signal, signal * 0) == pytest.approx(0)
    assert sqnr_db(signal, -signal * 9) == pytest.approx(-20)


def test_fidelity_of_the_same_is_perfect() -> None:
    signal = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    assert sqnr_db(signal, signal.copy()) == PERFECT_DB
    assert sqnr_db(np.arange(5), np.arange(5)) == PERFECT_DB
    assert sqnr_db(np.zeros((3, 2)), np.zeros((3, 2))) == PERFECT_DB


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_fidelity_where_both_are_not_finite(value: float) -> None:
    signal = np.array([[1.0, value], [2.0, 3.0]])
    assert sqnr_db(signal, signal.copy()) == PERFECT_DB


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_fidelity_where_one_is_not_finite(value: float) -> None:
    signal, broken = np.array([[1.0, 2.0]]), np.array([[1.0, value]])
    assert sqnr_db(signal, broken) == -PERFECT_DB
    assert sqnr_db(broken, signal) == -PERFECT_DB


def test_fidelity_where_infinities_differ() -> None:
    assert sqnr_db(np.array([1.0, np.inf]), np.array([1.0, -np.inf])) == -PERFECT_DB


def test_fidelity_to_silence() -> None:
    assert sqnr_db(np.zeros((3, 2)), np.ones((3, 2))) == -PERFECT_DB


def test_fidelity_of_integers_does_not_overflow() -> None:
    assert sqnr_db(np.array([255, 0], np.uint8), np.array([0, 255], np.uint8)) == pytest.approx(
        -10 * math.log10(2)
    )


def test_fidelity_of_large_numbers_does_not_overflow() -> None:
    signal = np.full(4, 1e200)
    assert sqnr_db(signal, signal * 1.1) == pytest.approx(20)


@some
@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**32 - 1), st.integers(1, 400))
def test_fidelity_in_parts_is_fidelity_at_once(rows: int, width: int, seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    signal = random.normal(size=(rows, width) if width else rows)
    found = signal + random.normal(0, 0.1, signal.shape)
    whole = sqnr_db(signal, found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "CHUNK_BYTES", size)
        assert sqnr_db(signal, found) == pytest.approx(whole)
