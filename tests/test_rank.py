"""The choice among trials whose timings, sizes and accuracies are given."""

import functools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from onmetal import costs
from onmetal.budget import Budget
from onmetal.costs import ENERGY, LATENCY, SIZE, THROUGHPUT
from onmetal.deploy import rank
from onmetal.profilers import intervals
from onmetal.records import Accuracy, Candidate, Figure, Latency, Rounds, Trial
from onmetal.runtimes import fit
from onmetal.targets import Limits
from tests.trials import MODEL, TARGET, figure, known, rounds, trial


def ranked(goal: str, *trials: Trial) -> list[str]:
    return [t.name for t in rank.ranking(list(trials), costs.goal(goal), TARGET)]


def against(trials: list[Trial]) -> list[Trial]:
    return rank.against(trials, rank.baseline(trials, "net"))


def test_the_baseline_is_the_fastest_float_candidate() -> None:
    trials = [
        trial("fp32@onnxruntime", 2.0),
        trial("fp32@openvino", 1.5),
        trial("bf16@openvino", 1),
    ]
    found = rank.baseline(trials, "net")
    assert found
    assert found.name == "fp32@openvino"


def test_the_baseline_is_of_the_reference_model() -> None:
    other = trial("other/fp32@openvino", 0.5, model="other")
    own = trial("net/fp32@openvino", 2.0)
    assert rank.baseline([other, own], "net") == own


def test_the_baseline_was_timed_to_the_end() -> None:
    """What was left behind early may look faster, by the hour at which it was timed."""
    kept, left = trial("fp32@openvino", 1.5), trial("fp32@onnxruntime", 1.4, seed=1)
    assert left.rounds
    early = {key: taken for key, taken in left.rounds.samples_ns.items() if key[0] < 2}
    few = Rounds(early, left.rounds.load_ms[:2])
    left = replace(left, rounds=few, latency_ms=intervals.latency(few))
    assert rank.baseline([left, kept], "net") == kept


def test_a_failed_candidate_is_no_baseline() -> None:
    failed = replace(trial("fp32@openvino", 1.0), failure="device", status="failed")
    slow = trial("fp32@onnxruntime", 2.0)
    assert rank.baseline([failed, slow], "net") == slow
    assert rank.baseline([failed], "net") is None
    assert rank.baseline([trial("bf16@openvino", 1.0)], "net") is None


def test_where_nothing_was_timed_the_first_float_candidate_is_the_baseline() -> None:
    first = trial("fp32@onnxruntime")
    assert rank.baseline([first, trial("fp32@openvino")], "net") == first
    timed = trial("fp32@openvino", 9.0)
    assert rank.baseline([first, timed], "net") == timed


def test_every_timed_candidate_is_compared_with_the_baseline() -> None:
    trials = [
        trial("fp32@onnxruntime", 2.0),
        trial("fp32@openvino", 3.0, seed=1),
        trial("bf16@openvino", 1.0, seed=2),
        trial("fp16@openvino"),
    ]
    verdicts = [t.versus_baseline and t.versus_baseline.verdict for t in against(trials)]
    assert verdicts == ["inconclusive", "slower", "faster", None]
    fast = against(trials)[2].versus_baseline
    assert fast
    assert fast.speedup == pytest.approx(2.0, rel=0.02)


def test_without_a_timed_baseline_nothing_is_compared() -> None:
    trials = [trial("fp32@onnxruntime"), trial("bf16@openvino", 1.0)]
    assert against(trials) == trials
    assert rank.against(trials, None) == trials


def test_the_fastest_wins() -> None:
    fast, middle, slow = (
        trial("bf16@openvino", 1.0),
        trial("fp32@openvino", 2.0, seed=1),
        trial("fp32@onnxruntime", 3.0, seed=2),
    )
    for objective in ("latency", "throughput"):
        assert ranked(objective, slow, fast, middle) == [fast.name, middle.name, slow.name]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_among_equally_fast_ones_the_most_exact_wins(objective: str) -> None:
    inexact, exact = trial("bf16@openvino", 1.0), trial("fp32@openvino", 1.003, seed=1)
    assert inexact.latency_ms
    assert exact.latency_ms
    assert inexact.latency_ms.p50 < exact.latency_ms.p50
    assert ranked(objective, inexact, exact) == [exact.name, inexact.name]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_among_equally_fast_and_exact_ones_plan_order_decides(objective: str) -> None:
    first, second = trial("fp32@onnxruntime", 1.003, seed=1), trial("fp32@openvino", 1.0)
    assert ranked(objective, first, second) == [first.name, second.name]
    assert ranked(objective, second, first) == [second.name, first.name]


def test_a_slower_exact_one_does_not_win() -> None:
    assert ranked("latency", trial("fp32@openvino", 1.1), trial("bf16@openvino", 1.0, seed=1)) == [
        "bf16@openvino",
        "fp32@openvino",
    ]


def spiky(name: str, ms: float) -> Trial:
    """A fifth of its inferences take twenty times as long."""
    taken = rounds(ms)
    for samples in taken.samples_ns.values():
        samples[:4] *= 20
    return replace(
        trial(name, ms),
        rounds=taken,
        latency_ms=intervals.latency(taken),
        figures={"throughput_per_s": intervals.throughput(taken, 1)},
    )


def test_throughput_looks_at_means_and_latency_at_medians() -> None:
    uneven, steady = spiky("fp32@openvino", 1.0), trial("fp32@onnxruntime", 1.5, seed=1)
    assert ranked("latency", steady, uneven) == [uneven.name, steady.name]
    assert ranked("throughput", steady, uneven) == [steady.name, uneven.name]


def test_equal_medians_are_not_equal_throughput() -> None:
    uneven, steady = spiky("fp32@openvino", 1.0), trial("bf16@openvino", 1.0, seed=1)
    assert rank.alike(uneven, steady, LATENCY)
    assert not rank.alike(uneven, steady, THROUGHPUT)
    assert ranked("throughput", uneven, steady) == [steady.name, uneven.name]
    assert rank.why_not(uneven, steady, THROUGHPUT, TARGET).startswith("slower")


def test_the_smallest_wins_and_of_equal_sizes_the_most_exact() -> None:
    half, equal, exact = (
        trial("bf16@openvino", size=500),
        trial("fp16@openvino", size=1000),
        trial("fp32@openvino", size=1000),
    )
    assert ranked("size", equal, exact, half) == [half.name, exact.name, equal.name]


def test_sizes_within_two_percent_are_equal() -> None:
    less, exact = trial("bf16@openvino", size=981), trial("fp32@openvino", size=1000)
    assert ranked("size", exact, less) == [exact.name, less.name]
    smaller = trial("bf16@openvino", size=979)
    assert ranked("size", exact, smaller) == [smaller.name, exact.name]


def test_of_equal_sizes_the_fastest_wins() -> None:
    slow = trial("int8-s8s8@onnxruntime", 1.4, size=500, memory=2e6)
    fast = trial("int8-u8s8@onnxruntime", 1.0, size=500, memory=1e6, seed=1)
    assert TARGET.exactness(slow.recipe) < TARGET.exactness(fast.recipe)
    assert ranked("size", slow, fast)[0] == fast.name


def test_of_equal_sizes_the_smaller_arena_wins_where_nothing_is_timed() -> None:
    chip = fit.load_target("ethos-u55-128")
    wide, narrow = (
        replace(trial("int16x8@tflm", size=9_856, memory=8e4)),
        replace(trial("int8@tflm", size=10_000, memory=4e4)),
    )
    assert next(rank.ranking([wide, narrow], SIZE, chip)).name == narrow.name
    cycles = [
        replace(t, latency_ms=Latency(ms, ms, None, None, 0, 0, "modelled"))
        for t, ms in ((wide, 1.0), (narrow, 1.6))
    ]
    assert next(rank.ranking(cycles, SIZE, chip)).name == wide.name


def test_integers_from_end_to_end_come_before_dynamic_ranges() -> None:
    phone = fit.load_target("android-arm64")
    dynamic, static = trial("int8-dynamic@litert", size=9_900), trial("int8@litert", size=10_000)
    assert phone.exactness(dynamic.recipe) < phone.exactness(static.recipe)
    for trials in ([dynamic, static], [static, dynamic]):
        assert next(rank.ranking(trials, SIZE, phone)).name == static.name
    why = rank.why_not(dynamic, static, SIZE, phone)
    assert "integers from end to end" in why


def test_the_least_memory_wins_unless_noise_could_tell() -> None:
    exact = trial("fp32@openvino", memory=1.01e6)
    assert ranked("memory", trial("bf16@openvino", memory=1.00e6), exact)[0] == exact.name
    assert ranked("memory", trial("bf16@openvino", memory=0.90e6), exact)[0] == "bf16@openvino"


def test_the_least_drop_wins() -> None:
    better = trial("bf16@openvino", drop=-0.03, interval=(-0.05, -0.01))
    exact = trial("fp32@openvino", drop=0.0, interval=(0.0, 0.0))
    assert ranked("accuracy-drop", exact, better) == [better.name, exact.name]


def test_a_lucky_drop_does_not_beat_the_exact_one() -> None:
    lucky = trial("bf16@openvino", drop=-0.002, interval=(-0.01, 0.006))
    exact = trial("fp32@openvino", drop=0.0, interval=(0.0, 0.0))
    assert ranked("accuracy-drop", lucky, exact) == [exact.name, lucky.name]


def test_what_was_not_measured_is_not_ranked() -> None:
    for objective in ("latency", "throughput", "memory", "energy", "accuracy-drop"):
        assert ranked(objective, trial("fp32@openvino")) == []
    assert ranked("latency", trial("fp32@openvino"), trial("bf16@openvino", 1.0)) == [
        "bf16@openvino"
    ]


def test_a_metric_that_is_no_number_is_not_known() -> None:
    undefined = trial("int8-u8s8@openvino", drop=float("nan"), size=500)
    exact = trial("fp32@openvino", drop=0.0)
    assert ranked("accuracy-drop", undefined, exact) == [exact.name]
    assert not rank.dominates(replace(undefined, recipe="fp32"), exact, TARGET)


def test_without_labels_fidelity_stands_for_the_drop() -> None:
    worse = replace(trial("bf16@openvino"), sqnr_db={"a": 90.0, "b": 30.0})
    better = replace(trial("fp16@openvino"), sqnr_db={"a": 50.0, "b": 60.0})
    assert ranked("accuracy-drop", worse, better) == [better.name, worse.name]


def test_alike_is_what_noise_cannot_tell_apart() -> None:
    one, same, slower = (
        trial("fp32@openvino", 1.0),
        trial("fp32@onnxruntime", 1.0, seed=1),
        trial("bf16@openvino", 1.2, seed=2),
    )
    assert rank.alike(one, one, ENERGY)
    assert rank.alike(same, one, LATENCY)
    assert not rank.alike(slower, one, LATENCY)
    assert not rank.alike(trial("bf16@openvino"), one, LATENCY)


def test_the_front_holds_what_nothing_beats() -> None:
    trials = [
        trial("fp32@openvino", 2.0, size=1000, drop=0.0),
        trial("fp32@onnxruntime", 3.0, size=1000, drop=0.0),
        trial("bf16@openvino", 1.0, size=1000, drop=0.01),
        trial("fp16@openvino", 2.5, size=500, drop=0.02),
    ]
    assert rank.pareto(trials, TARGET) == ["fp32@openvino", "bf16@openvino", "fp16@openvino"]


def test_equals_do_not_push_each_other_off_the_front() -> None:
    trials = [trial("fp32@openvino", 2.0, drop=0.0), trial("fp32@onnxruntime", 2.0, drop=0.0)]
    assert len(rank.pareto(trials, TARGET)) == 2


def test_failed_and_skipped_ones_are_not_on_the_front() -> None:
    good = trial("fp32@openvino", 2.0, drop=0.0)
    failed = replace(trial("bf16@openvino", 1.0, drop=0.0), failure="device", status="failed")
    skipped = replace(trial("fp16@openvino", 1.0, drop=0.0), status="skipped")
    assert rank.pareto([failed, good, skipped], TARGET) == [good.name]


def test_an_unknown_latency_pushes_nothing_off_the_front() -> None:
    timed, untimed = trial("fp32@openvino", 2.0, drop=0.0), trial("fp32@onnxruntime", drop=0.0)
    assert timed.name in rank.pareto([untimed, timed], TARGET)


def test_without_any_timing_the_front_is_of_accuracy_and_size() -> None:
    trials = [
        trial("fp32@openvino", size=1000, drop=0.0),
        trial("bf16@openvino", size=1000, drop=0.01),
        trial("fp16@openvino", size=500, drop=0.01),
    ]
    assert rank.pareto(trials, TARGET) == ["fp32@openvino", "fp16@openvino"]


def test_what_the_hardware_has_limits_too() -> None:
    target = replace(TARGET, limits=Limits(storage_kib=1, memory_kib=2))

    def said(size: int, memory: float) -> list[str]:
        found = trial("fp32@openvino", size=size, memory=memory)
        return rank.objections(found, Budget(), target, True)

    assert said(1024, 2048) == []
    assert ["1 KiB" in reason for reason in said(1025, 2048)] == [True]
    assert ["2 KiB" in reason for reason in said(1024, 2049)] == [True]
    assert len(said(1025, 2049)) == 2


def test_the_budget_is_objected_to_as_well() -> None:
    found = trial("bf16@openvino", 3.0, drop=0.02)
    limits = Budget(max_accuracy_drop=0.01, limits={"latency": 2.0})
    assert len(rank.objections(found, limits, TARGET, True)) == 2
    assert len(rank.objections(trial("fp32@openvino", 3.0), limits, TARGET, True)) == 1


def test_why_not_says_how_much_slower() -> None:
    chosen, slow = trial("bf16@openvino", 1.0), trial("fp32@openvino", 2.0, seed=1)
    assert (
        rank.why_not(slow, chosen, LATENCY, TARGET) == "slower than bf16@openvino: 0.50x its speed"
    )


def test_why_not_says_when_noise_cannot_tell() -> None:
    chosen, same = trial("fp32@openvino", 1.0), trial("fp32@onnxruntime", 1.0, seed=1)
    assert "no measurable difference in latency from fp32@openvino" in rank.why_not(
        same, chosen, LATENCY, TARGET
    )


def test_why_not_says_what_is_more() -> None:
    chosen, larger = trial("fp16@openvino", size=500), trial("fp32@openvino", size=1000)
    why = rank.why_not(larger, chosen, SIZE, TARGET)
    assert why == "larger than fp16@openvino: 1 kB against 500 B"
    equal = trial("bf16@openvino", size=500)
    assert "fp16@openvino (500 B against 500 B), which is more exact" in rank.why_not(
        equal, chosen, SIZE, TARGET
    )


def energy(value: float, interval: tuple[float, float] | None = None) -> Figure:
    return Figure(value, interval, 10, "measured", "read")


def test_whether_it_pays_is_judged_by_what_is_minimized() -> None:
    exact = trial("fp32@openvino", 1.0).with_figures(energy_mj=energy(10.0))
    half = trial("int8-u8s8@openvino", 1.0, seed=1).with_figures(energy_mj=energy(5.0))
    assert rank.does_not_pay(half, exact, LATENCY)
    assert rank.does_not_pay(half, exact, ENERGY) is None
    assert ranked("energy", exact, half) == [half.name, exact.name]
    same = half.with_figures(energy_mj=energy(9.9))
    assert rank.does_not_pay(same, exact, ENERGY)
    unsure = half.with_figures(energy_mj=energy(9.0, (8.0, 10.5)))
    assert rank.does_not_pay(unsure, exact.with_figures(energy_mj=energy(10, (9.9, 10.1))), ENERGY)
    fast = trial("int8-u8s8@openvino", 0.5, seed=1).with_figures(energy_mj=energy(11.0))
    assert rank.does_not_pay(fast, exact, LATENCY) is None
    assert "worse" in str(rank.does_not_pay(fast, exact, ENERGY))
    assert rank.does_not_pay(half, exact, SIZE) is None


@pytest.mark.parametrize("again_ms", [0.7, 1.05, 2.0])
def test_what_was_measured_again_on_a_slower_machine_stays_on_the_front(again_ms: float) -> None:
    """Its figures are fresh, and its rounds are those that the others were measured beside."""
    exact, fast = trial("fp32@openvino", 1.0), trial("bf16@openvino", 0.8, seed=1)
    fresh = rounds(again_ms, 5)
    chosen = replace(
        fast,
        status="chosen",
        latency_ms=intervals.latency(fresh),
        figures={"throughput_per_s": intervals.throughput(fresh, 1)},
    )
    assert rank.pareto([exact, chosen], TARGET) == [exact.name, chosen.name]
    slow = replace(chosen, rounds=rounds(1.2, 1))
    assert rank.pareto([exact, slow], TARGET) == [exact.name]


def test_what_is_within_the_budget_is_not_pushed_off_the_front_by_what_is_over_it() -> None:
    small = trial("int8-u8s8@openvino", 2.0, size=900, drop=0.0)
    large = replace(trial("fp32@openvino", 1.0, size=900, drop=0.0), status="over-budget")
    assert small.name in rank.pareto([small, large], TARGET)


NAMES = (
    "fp32@onnxruntime",
    "fp32@openvino",
    "bf16@openvino",
    "fp16@openvino",
    "int8-s8s8@onnxruntime",
    "int8-u8s8@onnxruntime",
    "int8-u8s8@openvino",
    "int8-dynamic@litert",
)
LATENCIES_MS = st.sampled_from([None, 1.0, 1.002, 1.01, 1.02, 1.03, 1.5, 2.0])
SIZES = st.sampled_from([980, 990, 1000, 1010, 1020, 1030, 2000])
COSTS = st.tuples(
    LATENCIES_MS,
    SIZES,
    st.sampled_from([0.0, -0.001, 0.002, 0.005]),
    st.sampled_from([None, 1e6, 1.015e6, 1.03e6, 2e6]),
    st.sampled_from([None, 5.0, 5.05, 5.15, 9.0]),
)


@functools.cache
def timed_once(name: str, ms: float | None) -> Trial:
    """Statistics of rounds take a while."""
    return trial(name, ms, seed=NAMES.index(name))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(COSTS, min_size=1, max_size=len(NAMES)),
    st.sampled_from(["latency", "throughput", "size", "memory", "energy", "accuracy-drop"]),
    st.randoms(use_true_random=False),
)
def test_what_is_chosen_is_never_dominated(
    spent: list[tuple[float | None, int, float, float | None, float | None]],
    objective: str,
    random: Random,
) -> None:
    trials = [
        replace(
            timed_once(name, ms),
            candidate=Candidate(name, "", "", "1", MODEL, (), "", size, {}),
            accuracy=Accuracy("top1", 0.9 - drop, drop, (drop - 1e-3, drop + 1e-3), 100),
        ).with_figures(
            **known(
                peak_memory_bytes=None if ram is None else figure(ram),
                energy_mj=None if mj is None else energy(mj),
            )
        )
        for name, (ms, size, drop, ram, mj) in zip(NAMES, spent, strict=False)
    ]
    random.shuffle(trials)
    pick = next(rank.ranking(trials, costs.goal(objective), TARGET), None)
    if pick:
        assert pick.name in rank.pareto(trials, TARGET)
