"""The choice among trials whose timings, sizes and accuracies are given."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal import decide, targets
from onmetal.budget import Budget
from onmetal.decide import Objective
from onmetal.profilers import statistics
from onmetal.records import Accuracy, Candidate, Figure, Model, Rounds, Trial
from onmetal.targets import Limits

TARGET = targets.load("x86-64")
PATH = Path("net.onnx")
MODEL = Model(PATH, PATH, "", "onnx", "", 1000, (), (), 0, 500, {}, 1)


def rounds(ms: float, seed: int = 0) -> Rounds:
    """Rounds around a median, with the noise of the seed; three blocks of four."""
    random = np.random.default_rng(seed)
    return Rounds(
        {
            (block, number): (ms * 1e6 * random.normal(1, 0.003, 20)).astype(np.int64)
            for block in range(3)
            for number in range(4)
        },
        (1.0, 1.0, 1.0),
    )


def trial(
    name: str,
    ms: float | None = None,
    *,
    size: int = 1000,
    drop: float | None = None,
    interval: tuple[float, float] | None = None,
    memory: float | None = None,
    seed: int = 0,
    model: str = "net",
) -> Trial:
    recipe, _, runtime = name.rpartition("/")[2].partition("@")
    taken = None if ms is None else rounds(ms, seed)
    return Trial(
        name,
        recipe,
        runtime,
        model,
        candidate=Candidate(name, recipe, runtime, "1", MODEL, (), "", size, {}),
        accuracy=None if drop is None else Accuracy("top1", 0.9 - drop, drop, interval, 100),
        rounds=taken,
        latency_ms=statistics.latency(taken) if taken else None,
        throughput_per_s=statistics.throughput(taken, 1) if taken else None,
        peak_memory_bytes=None if memory is None else Figure(memory, None, 1, "measured", "read"),
    )


def ranked(objective: Objective, *trials: Trial) -> list[str]:
    return [t.name for t in decide.ranking(list(trials), objective, TARGET.exactness)]


def against(trials: list[Trial]) -> list[Trial]:
    return decide.against(trials, decide.baseline(trials, "net"))


def test_the_baseline_is_the_fastest_float_candidate() -> None:
    trials = [
        trial("fp32@onnxruntime", 2.0),
        trial("fp32@openvino", 1.5),
        trial("bf16@openvino", 1),
    ]
    found = decide.baseline(trials, "net")
    assert found
    assert found.name == "fp32@openvino"


def test_the_baseline_is_of_the_reference_model() -> None:
    other = trial("other/fp32@openvino", 0.5, model="other")
    own = trial("net/fp32@openvino", 2.0)
    assert decide.baseline([other, own], "net") == own


def test_a_failed_candidate_is_no_baseline() -> None:
    failed = replace(trial("fp32@openvino", 1.0), failure="device", status="failed")
    slow = trial("fp32@onnxruntime", 2.0)
    assert decide.baseline([failed, slow], "net") == slow
    assert decide.baseline([failed], "net") is None
    assert decide.baseline([trial("bf16@openvino", 1.0)], "net") is None


def test_where_nothing_was_timed_the_first_float_candidate_is_the_baseline() -> None:
    first = trial("fp32@onnxruntime")
    assert decide.baseline([first, trial("fp32@openvino")], "net") == first
    timed = trial("fp32@openvino", 9.0)
    assert decide.baseline([first, timed], "net") == timed


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
    assert decide.against(trials, None) == trials


def test_the_fastest_wins() -> None:
    fast, middle, slow = (
        trial("bf16@openvino", 1.0),
        trial("fp32@openvino", 2.0, seed=1),
        trial("fp32@onnxruntime", 3.0, seed=2),
    )
    for objective in ("latency", "throughput"):
        assert ranked(objective, slow, fast, middle) == [fast.name, middle.name, slow.name]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_among_equally_fast_ones_the_most_exact_wins(objective: Objective) -> None:
    inexact, exact = trial("bf16@openvino", 1.0), trial("fp32@openvino", 1.003, seed=1)
    assert inexact.latency_ms
    assert exact.latency_ms
    assert inexact.latency_ms.p50 < exact.latency_ms.p50
    assert ranked(objective, inexact, exact) == [exact.name, inexact.name]


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_among_equally_fast_and_exact_ones_plan_order_decides(objective: Objective) -> None:
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
        latency_ms=statistics.latency(taken),
        throughput_per_s=statistics.throughput(taken, 1),
    )


def test_throughput_looks_at_means_and_latency_at_medians() -> None:
    uneven, steady = spiky("fp32@openvino", 1.0), trial("fp32@onnxruntime", 1.5, seed=1)
    assert ranked("latency", steady, uneven) == [uneven.name, steady.name]
    assert ranked("throughput", steady, uneven) == [steady.name, uneven.name]


def test_equal_medians_are_not_equal_throughput() -> None:
    uneven, steady = spiky("fp32@openvino", 1.0), trial("bf16@openvino", 1.0, seed=1)
    assert decide.alike(uneven, steady, "latency")
    assert not decide.alike(uneven, steady, "throughput")
    assert ranked("throughput", uneven, steady) == [steady.name, uneven.name]
    assert decide.why_not(uneven, steady, "throughput").startswith("slower")


def test_the_smallest_wins_and_of_equal_sizes_the_most_exact() -> None:
    half, equal, exact = (
        trial("bf16@openvino", size=500),
        trial("fp16@openvino", size=1000),
        trial("fp32@openvino", size=1000),
    )
    assert ranked("size", equal, exact, half) == [half.name, exact.name, equal.name]


def test_a_byte_less_is_smaller() -> None:
    less, exact = trial("bf16@openvino", size=999), trial("fp32@openvino", size=1000)
    assert ranked("size", exact, less) == [less.name, exact.name]


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
    assert decide.alike(one, one, "energy")
    assert decide.alike(same, one, "latency")
    assert not decide.alike(slower, one, "latency")
    assert not decide.alike(trial("bf16@openvino"), one, "latency")


def test_the_front_holds_what_nothing_beats() -> None:
    trials = [
        trial("fp32@openvino", 2.0, size=1000, drop=0.0),
        trial("fp32@onnxruntime", 3.0, size=1000, drop=0.0),
        trial("bf16@openvino", 1.0, size=1000, drop=0.01),
        trial("fp16@openvino", 2.5, size=500, drop=0.02),
    ]
    assert decide.pareto(trials) == ["fp32@openvino", "bf16@openvino", "fp16@openvino"]


def test_equals_do_not_push_each_other_off_the_front() -> None:
    trials = [trial("fp32@openvino", 2.0, drop=0.0), trial("fp32@onnxruntime", 2.0, drop=0.0)]
    assert len(decide.pareto(trials)) == 2


def test_failed_and_skipped_ones_are_not_on_the_front() -> None:
    good = trial("fp32@openvino", 2.0, drop=0.0)
    failed = replace(trial("bf16@openvino", 1.0, drop=0.0), failure="device", status="failed")
    skipped = replace(trial("fp16@openvino", 1.0, drop=0.0), status="skipped")
    assert decide.pareto([failed, good, skipped]) == [good.name]


def test_an_unknown_latency_pushes_nothing_off_the_front() -> None:
    timed, untimed = trial("fp32@openvino", 2.0, drop=0.0), trial("fp32@onnxruntime", drop=0.0)
    assert timed.name in decide.pareto([untimed, timed])


def test_without_any_timing_the_front_is_of_accuracy_and_size() -> None:
    trials = [
        trial("fp32@openvino", size=1000, drop=0.0),
        trial("bf16@openvino", size=1000, drop=0.01),
        trial("fp16@openvino", size=500, drop=0.01),
    ]
    assert decide.pareto(trials) == ["fp32@openvino", "fp16@openvino"]


def test_what_the_hardware_has_limits_too() -> None:
    target = replace(TARGET, limits=Limits(storage_kib=1, memory_kib=2))

    def said(size: int, memory: float) -> list[str]:
        found = trial("fp32@openvino", size=size, memory=memory)
        return decide.objections(found, Budget(), target, True)

    assert said(1024, 2048) == []
    assert ["1 KiB" in reason for reason in said(1025, 2048)] == [True]
    assert ["2 KiB" in reason for reason in said(1024, 2049)] == [True]
    assert len(said(1025, 2049)) == 2


def test_the_budget_is_objected_to_as_well() -> None:
    found = trial("bf16@openvino", 3.0, drop=0.02)
    limits = Budget(max_accuracy_drop=0.01, max_latency_ms=2.0)
    assert len(decide.objections(found, limits, TARGET, True)) == 2
    assert len(decide.objections(trial("fp32@openvino", 3.0), limits, TARGET, True)) == 1


def test_why_not_says_how_much_slower() -> None:
    chosen, slow = trial("bf16@openvino", 1.0), trial("fp32@openvino", 2.0, seed=1)
    assert decide.why_not(slow, chosen, "latency") == "slower than bf16@openvino: 0.50x its speed"


def test_why_not_says_when_noise_cannot_tell() -> None:
    chosen, same = trial("fp32@openvino", 1.0), trial("fp32@onnxruntime", 1.0, seed=1)
    assert "not to be told from fp32@openvino" in decide.why_not(same, chosen, "latency")


def test_why_not_says_what_is_more() -> None:
    chosen, larger = trial("fp16@openvino", size=500), trial("fp32@openvino", size=1000)
    why = decide.why_not(larger, chosen, "size")
    assert why == "more size than fp16@openvino: 1 kB against 500 B"
    equal = trial("bf16@openvino", size=500)
    assert "no better than fp16@openvino" in decide.why_not(equal, chosen, "size")
