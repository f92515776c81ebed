"""The estimators of a tensor's range: what each promises, and the best by its own measure."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onmetal import ranges
from onmetal.calibration.statistics import Statistics
from onmetal.ranges import BINS, ESTIMATORS, Grid, Seen, estimate
from tests.float_graphs import floats
from tests.statistics_reference import GRIDS, quick, seen_of


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
