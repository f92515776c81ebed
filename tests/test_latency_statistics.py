"""Figures and verdicts from raw samples, on samples whose truth is known."""

import importlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onmetal.profilers import intervals
from onmetal.records import Latency, Rounds

stats: Any = importlib.import_module("scipy.stats")
few = settings(max_examples=15, deadline=None)

Key = tuple[int, int]


def grid(blocks: int, rounds: int) -> list[Key]:
    return [(block, number) for block in range(blocks) for number in range(rounds)]


def of(samples: dict[Key, np.ndarray]) -> Rounds:
    return Rounds({key: found.astype(np.int64) for key, found in samples.items()}, (1.0,))


def noisy(
    seed: int,
    *,
    blocks: int = 5,
    rounds: int = 6,
    process: float = 0.005,
    noise: float = 0.02,
    factor: float = 1.0,
    drift: dict[Key, float] | None = None,
) -> Rounds:
    """A millisecond times `factor`, times what the process, the round and the moment add."""
    random = np.random.default_rng(seed)
    offsets = random.normal(0, process, blocks)
    samples = {}
    for key in grid(blocks, rounds):
        middle = math.exp(offsets[key[0]] + random.normal(0, noise)) * factor
        middle *= (drift or {}).get(key, 1.0)
        samples[key] = 1e6 * middle * random.normal(1, 0.01, 25)
    return of(samples)


measured = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.lists(st.integers(1_000, 10**9), min_size=1, max_size=8).map(np.array),
    min_size=1,
    max_size=8,
).map(of)


def interval(found: Latency) -> tuple[float, float]:
    """Of the median; what was measured has one."""
    assert found.p50_ci95
    return found.p50_ci95


@few
@given(measured)
def test_percentiles_are_of_all_raw_samples(rounds: Rounds) -> None:
    everything = np.concatenate(list(rounds.samples_ns.values()))
    found = intervals.latency(rounds)
    assert found.p50 == pytest.approx(np.percentile(everything, 50) / 1e6)
    assert found.p90 == pytest.approx(np.percentile(everything, 90) / 1e6)
    assert (found.samples, found.rounds) == (len(everything), len(rounds.samples_ns))


@few
@given(measured)
def test_intervals_hold_their_point_and_lie_within_the_samples(rounds: Rounds) -> None:
    everything = np.concatenate(list(rounds.samples_ns.values())) / 1e6
    found = intervals.latency(rounds)
    for point, (low, high) in (
        (found.p50, interval(found)),
        (found.p90, found.p90_ci95 or (0.0, 0.0)),
    ):
        assert everything.min() * (1 - 1e-9) <= low <= point <= high
        assert high <= everything.max() * (1 + 1e-9)


def test_many_samples_in_few_different_rounds_say_little() -> None:
    values = np.linspace(1e6, 2e6, 1200)
    apart = of(dict(zip(grid(2, 3), np.split(values, 6), strict=True)))
    evenly = of({key: values[number::6] for number, key in enumerate(grid(2, 3))})
    width = []
    for rounds in (apart, evenly):
        found = intervals.latency(rounds)
        assert found.p50 == pytest.approx(1.5, rel=1e-3)
        width.append(interval(found)[1] - interval(found)[0])
    assert width[0] > 0.5
    assert width[1] < 0.05


def test_more_samples_in_the_same_rounds_do_not_narrow_the_interval() -> None:
    rounds = noisy(1)
    doubled = of({key: np.repeat(found, 10) for key, found in rounds.samples_ns.items()})
    narrow, wide = interval(intervals.latency(doubled)), interval(intervals.latency(rounds))
    assert narrow[1] - narrow[0] == pytest.approx(wide[1] - wide[0], rel=0.1)


def test_blocks_that_differ_widen_the_interval() -> None:
    def width(process: float) -> float:
        low, high = interval(intervals.latency(noisy(3, process=process, noise=0.005)))
        return high - low

    assert width(0.1) > 5 * width(0.0)


def test_the_interval_of_the_median_covers_it() -> None:
    hits = 0
    for seed in range(25):
        low, high = interval(intervals.latency(noisy(seed, blocks=8, process=0.005)))
        hits += low <= 1.0 <= high
    assert hits >= 21


def test_throughput_is_the_batch_over_the_mean() -> None:
    samples = {(0, 0): np.array([1e6, 3e6]), (0, 1): np.array([2e6]), (1, 0): np.array([2e6, 2e6])}
    found = intervals.throughput(of(samples), 4)
    assert found.value == pytest.approx(4 * 5 / 0.010)
    assert found.samples == 5
    assert found.basis == "measured"


@few
@given(measured)
def test_the_interval_of_the_throughput_holds_its_point(rounds: Rounds) -> None:
    found = intervals.throughput(rounds, 1)
    assert found.ci95
    assert found.ci95[0] * (1 - 1e-9) <= found.value <= found.ci95[1] * (1 + 1e-9)


def test_identical_rounds_are_inconclusive() -> None:
    rounds = noisy(0)
    found = intervals.compare(rounds, rounds)
    assert (found.speedup, found.verdict) == (1.0, "inconclusive")
    assert found.ci95[0] < 1 < found.ci95[1]


@pytest.mark.parametrize("mean", [False, True])
def test_five_percent_are_found(mean: bool) -> None:
    for seed in range(5):
        base = noisy(seed, noise=0.01)
        slow = noisy(100 + seed, noise=0.01, factor=1.05)
        found = intervals.compare(base, slow, mean=mean)
        assert found.verdict == "slower"
        assert found.ci95[0] <= 1 / 1.05 <= found.ci95[1]
        assert intervals.compare(slow, base, mean=mean).verdict == "faster"


def test_half_a_percent_is_never_called() -> None:
    base = noisy(0, process=0.0, noise=0.0)
    exactly = of({key: found * 1.005 for key, found in base.samples_ns.items()})
    assert intervals.compare(base, exactly).verdict == "inconclusive"
    assert intervals.compare(exactly, base).verdict == "inconclusive"


def test_what_slows_both_does_not_matter() -> None:
    drift = {key: 1.3 for key in grid(5, 6) if (key[0] + key[1]) % 3 == 0}
    calm = intervals.compare(noisy(1, noise=0.01), noisy(2, noise=0.01, factor=1.05))
    stormy = intervals.compare(
        noisy(1, noise=0.01, drift=drift), noisy(2, noise=0.01, factor=1.05, drift=drift)
    )
    assert stormy.verdict == calm.verdict == "slower"
    assert stormy.speedup == pytest.approx(calm.speedup, rel=1e-4)
    assert stormy.ci95 == pytest.approx(calm.ci95, rel=1e-4)


@few
@given(measured, measured)
def test_the_other_way_round_is_the_inverse(one: Rounds, other: Rounds) -> None:
    there, back = intervals.compare(one, other), intervals.compare(other, one)
    if math.isnan(there.speedup):
        assert there.verdict == back.verdict == "inconclusive"
        return
    assert there.speedup * back.speedup == pytest.approx(1)
    assert there.ci95[0] * back.ci95[1] == pytest.approx(1)
    assert there.ci95[1] * back.ci95[0] == pytest.approx(1)
    opposite = {"faster": "slower", "slower": "faster", "inconclusive": "inconclusive"}
    assert back.verdict == opposite[there.verdict]


@few
@given(measured, measured)
def test_the_verdict_is_what_the_interval_says(one: Rounds, other: Rounds) -> None:
    found = intervals.compare(one, other)
    low, high = found.ci95
    assert math.isnan(found.speedup) or low < found.speedup < high
    assert found.verdict == ("faster" if low > 1 else "slower" if high < 1 else "inconclusive")


def test_only_rounds_that_both_have_count() -> None:
    base, slow = noisy(1, noise=0.01), noisy(2, noise=0.01, factor=1.2)
    more = dict(slow.samples_ns)
    more |= {key: found // 9 for key, found in noisy(3, blocks=9).samples_ns.items() if key[0] > 4}
    assert intervals.compare(base, Rounds(more, ())) == intervals.compare(base, slow)


def test_without_common_rounds_nothing_is_known() -> None:
    one, other = of({(0, 0): np.array([1e6])}), of({(0, 1): np.array([9e6])})
    found = intervals.compare(one, other)
    assert math.isnan(found.speedup)
    assert found.ci95 == (0.0, math.inf)
    assert found.verdict == "inconclusive"


def test_the_same_samples_give_the_same_figures() -> None:
    first, second = (noisy(7), noisy(8)), (noisy(7), noisy(8))
    assert intervals.latency(first[0]) == intervals.latency(second[0])
    assert intervals.throughput(first[0], 2) == intervals.throughput(second[0], 2)
    assert intervals.compare(*first) == intervals.compare(*second)


def test_the_order_in_which_rounds_arrived_does_not_matter() -> None:
    rounds = noisy(7)
    backwards = Rounds(dict(reversed(rounds.samples_ns.items())), rounds.load_ms)
    assert intervals.latency(rounds) == intervals.latency(backwards)
    assert intervals.compare(rounds, noisy(8)) == intervals.compare(backwards, noisy(8))


def false_alarms(count: int, blocks: int, rounds: int) -> float:
    verdicts = []
    for seed in range(0, 2 * count, 2):
        pair = (noisy(seed + side, blocks=blocks, rounds=rounds) for side in (0, 1))
        verdicts.append(intervals.compare(*pair).verdict)
    return sum(verdict != "inconclusive" for verdict in verdicts) / count


def test_equal_candidates_are_rarely_called_different() -> None:
    assert false_alarms(300, 5, 6) <= 0.05


def test_equal_candidates_are_rarely_called_different_after_a_quick_look() -> None:
    assert false_alarms(100, 3, 5) <= 0.05


def test_one_block_of_processes_cannot_tell_processes_from_candidates() -> None:
    verdicts = set()
    for seed in range(20):
        one = noisy(2 * seed, blocks=1, process=0.02, noise=0.002)
        other = noisy(2 * seed + 1, blocks=1, process=0.02, noise=0.002)
        verdicts.add(intervals.compare(one, other).verdict)
    assert verdicts == {"inconclusive"}


def test_the_table_of_students_t_is_right() -> None:
    wanted = [stats.t.ppf(0.975, freedom) for freedom in range(1, len(intervals.T975) + 1)]
    assert list(intervals.T975) == pytest.approx(wanted, abs=5e-4)
