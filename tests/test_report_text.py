"""The text for people: the sentence of the decision, a table that fits, the reasons that matter."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from onmetal.calibration.fidelity import PERFECT_DB
from onmetal.records import LEFT_OUT, NO_DATA, Figure, Latency, Lineage
from onmetal.reports import reasons, sentence, table
from onmetal.reports import text as summary
from onmetal.reports.chip_record import (
    Arena,
    ArenaPlan,
    Chip,
    Embedded,
    Flash,
    HostArena,
    LiteRtAgreement,
    Npu,
    OnCpu,
)
from onmetal.reports.record import Accuracy, Candidate, Fidelity, Versus
from onmetal.reports.setting import Setting
from onmetal.runtimes import RUNTIMES
from onmetal.texts import terminal
from onmetal.texts.terminal import PLAIN, Screen, rendered

TERMINAL = Screen(80, colour=True, terminal=True)
TOP1 = Setting(metric="top1", original_size_bytes=400_000)
UNTIMED = replace(TOP1, decided_by="size")


def figure(value: float, basis: Any = "measured") -> Figure:
    return Figure(value, None, 1, basis, "read")


def trial(name: str, **fields: Any) -> Candidate:
    """The record of a candidate with every figure; `fields` replace them."""
    recipe, _, runtime = name.rpartition("/")[2].partition("@")
    usual: dict[str, Any] = {
        **dict.fromkeys(Candidate.__struct_fields__),
        "name": name,
        "recipe": recipe,
        "runtime": runtime,
        "model": name.rpartition("/")[0] or "net",
        "status": "ok",
        "warnings": [],
        "details": {},
        "missing": {},
        "lineage": Lineage(),
        "size_bytes": 400_000,
        "accuracy": Accuracy("top1", 0.95, 0.0, (0.0, 0.0), 900),
        "fidelity": fidelity(logits=90.0),
        "latency_ms": Latency(2.0, 2.5, (1.9, 2.1), (2.4, 2.6), 900, 30),
        "throughput_per_s": figure(500.0),
        "peak_memory_bytes": figure(20e6),
        "versus_baseline": Versus(1.0, (0.99, 1.01), "inconclusive"),
    }
    return Candidate(**{**usual, **fields})


def fidelity(**sqnr_db: float) -> Fidelity:
    return Fidelity(dict(sqnr_db), {}, {})


BASE = trial("fp32@openvino", reason="slower than int8-u8s8@openvino: 0.43x its speed")
FAST = trial(
    "int8-u8s8@openvino",
    status="chosen",
    size_bytes=108_108,
    accuracy=Accuracy("top1", 0.946, 0.004, (-0.003, 0.011), 900),
    latency_ms=Latency(0.87, 0.9, (0.86, 0.88), (0.89, 0.91), 900, 30),
    versus_baseline=Versus(2.3, (2.2, 2.4), "faster"),
)


def said(chosen: Candidate, base: Candidate | None, setting: Setting) -> str:
    return sentence.sentence(chosen, base, setting)


# --- the decision


def test_the_decision_is_one_sentence_with_its_intervals() -> None:
    assert said(FAST, BASE, TOP1) == (
        "int8-u8s8 on OpenVINO: 2.3x faster than fp32 on OpenVINO [2.2, 2.4], 3.7x smaller, "
        "top1 -0.4 points [-1.1, 0.3]."
    )
    first = summary.text([BASE, FAST], BASE, FAST, TOP1, PLAIN)[0]
    assert first.startswith("int8-u8s8 on OpenVINO: ")


@pytest.mark.parametrize(
    ("versus", "shown"),
    [
        (Versus(0.77, (0.7, 0.8), "slower"), "1.30x slower than fp32 on OpenVINO [1.25, 1.43]"),
        (
            Versus(1.02, (0.97, 1.06), "inconclusive"),
            "as fast within the noise as fp32 on OpenVINO (1.02x [0.97, 1.06])",
        ),
        (Versus(31.4, (29.0, 33.0), "faster"), "31x faster than fp32 on OpenVINO [29, 33]"),
        (Versus(0.5, (0.0, 0.9), "slower"), "2.0x slower than fp32 on OpenVINO [1.1, inf]"),
    ],
)
def test_how_much_faster_is_said_by_the_verdict(versus: Versus, shown: str) -> None:
    assert shown in said(replace(FAST, versus_baseline=versus), BASE, TOP1)


def test_sizes_are_compared_with_the_baseline() -> None:
    same = trial("bf16@openvino", status="chosen")
    assert ", the same size, " in said(same, BASE, TOP1)
    larger = trial("bf16@openvino", status="chosen", size_bytes=500_000)
    assert ", 1.2x larger, " in said(larger, BASE, TOP1)


def test_without_a_baseline_the_size_is_compared_with_the_models_file() -> None:
    chosen = trial(
        "int8@tflm",
        status="chosen",
        size_bytes=100_000,
        latency_ms=None,
        versus_baseline=None,
        accuracy=Accuracy("top1", 0.95, -0.002, (-0.01, 0.01), 900),
    )
    assert said(chosen, None, UNTIMED) == (
        "int8 on TFLite Micro: 4.0x smaller than the model's file, top1 +0.2 points [-1.0, 1.0]."
    )
    several = replace(UNTIMED, original_size_bytes=None, several_models=True)
    assert said(chosen, None, several).startswith("int8 of net on TFLite Micro: 100 kB, top1")


def test_the_baseline_itself_is_said_to_be_it() -> None:
    chosen = replace(BASE, status="chosen", reason=None)
    assert said(chosen, chosen, TOP1) == (
        "fp32 on OpenVINO, the baseline itself: p50 2 ms [1.9, 2.1], 400 kB, top1 95.0 %."
    )


def test_changes_of_other_metrics_are_percent_of_the_float_models_value() -> None:
    setting = replace(TOP1, metric="rmse", proportion=False, higher_is_better=False)
    worse = replace(FAST, accuracy=Accuracy("rmse", 2.1, 0.1, (-0.02, 0.2), 900))
    assert "rmse +5.0 % [-1.0, 10.0]" in said(worse, BASE, setting)
    custom = replace(setting, metric="m:score", higher_is_better=True)
    worse = replace(FAST, accuracy=Accuracy("m:score", -55.0, 5.0, None, 900))
    assert "m:score -10.0 %." in said(worse, BASE, custom)
    nothing = replace(FAST, accuracy=Accuracy("rmse", 0.25, 0.25, None, 900))
    assert "rmse +0.2." in said(nothing, BASE, setting)  # of a float value of 0 there is no percent


@pytest.mark.parametrize("drop", [None, math.nan])
def test_a_drop_that_is_not_known_is_said(drop: float | None) -> None:
    chosen = replace(FAST, accuracy=Accuracy("top1", 0.9, drop, None, 900))
    assert "top1 90.0 %, its drop is not known." in said(chosen, BASE, TOP1)


@pytest.mark.parametrize(
    ("decibels", "shown"),
    [
        ({"a": 34.2, "b": 51.0}, "fidelity 34 dB (no task metric was measured)."),
        ({"a": math.inf}, "its outputs are those of the original model."),
        ({"a": PERFECT_DB}, "its outputs are those of the original model."),
        ({}, "3.7x smaller."),
    ],
)
def test_without_labels_fidelity_is_said(decibels: dict[str, float], shown: str) -> None:
    chosen = replace(FAST, accuracy=None, fidelity=fidelity(**decibels))
    assert said(chosen, BASE, replace(TOP1, metric=None)).endswith(shown)


@pytest.mark.parametrize(
    ("goal", "start"),
    [
        ("latency", "2.3x faster than fp32 on OpenVINO [2.2, 2.4], 3.7x"),
        ("throughput", "2.00x the throughput of fp32 on OpenVINO [1.98, 2.02] (1,000 infer"),
        ("energy", "2.0x less energy than fp32 on OpenVINO (1.5 mJ an inference), 2.3x faster [2"),
        ("memory", "1.60x less memory than fp32 on OpenVINO (peak memory 12.5 MB), 2.3x faster"),
        ("size", "3.7x smaller than fp32 on OpenVINO, 2.3x faster [2.2, 2.4], top1 -0.4"),
        ("accuracy-drop", "top1 -0.4 points [-1.1, 0.3], 2.3x faster than fp32 on OpenVINO [2.2"),
    ],
)
def test_what_was_minimized_comes_first(goal: str, start: str) -> None:
    base = replace(BASE, energy_mj=figure(3.0))
    chosen = replace(
        FAST,
        throughput_per_s=figure(1000.0),
        energy_mj=figure(1.5),
        peak_memory_bytes=figure(12.5e6),
    )
    twice = Versus(2.0, (1.98, 2.02), "faster")
    setting = replace(TOP1, decided_by=goal, minimize=goal, throughput=twice)
    assert said(chosen, base, setting).startswith(f"int8-u8s8 on OpenVINO: {start}")
    assert summary.replaced(setting, None) == ""


def test_a_goal_that_was_replaced_is_named_with_the_reason() -> None:
    text = "\n".join(summary.text([FAST], None, FAST, UNTIMED, PLAIN))
    assert "no device was given: decided by size instead of latency" in text
    assert "within 2 %" in text
    emulated = replace(UNTIMED, emulated=True, minimize="throughput")
    text = "\n".join(summary.text([FAST], None, FAST, emulated, PLAIN))
    assert "The device is emulated" in text
    assert "decided by size instead of throughput" in text


def test_a_modelled_latency_is_said_to_be_one() -> None:
    chosen = replace(
        FAST, latency_ms=Latency(1.5, 1.5, None, None, 0, 0, "modelled"), versus_baseline=None
    )
    assert "1.5 ms by a model of the hardware, not measured" in said(chosen, None, UNTIMED)
    text = "\n".join(summary.text([chosen], None, chosen, UNTIMED, PLAIN))
    assert "~1.50" in text
    assert "not measured" in text


def test_timings_of_an_emulator_are_not_shown() -> None:
    latency = Latency(123.0, 456.0, (1, 2), (1, 2), 3, 1, "emulated")
    chosen = replace(FAST, latency_ms=latency, versus_baseline=None)
    text = "\n".join(summary.text([chosen], None, chosen, replace(UNTIMED, emulated=True), PLAIN))
    assert "123" not in text and "p50" not in text
    assert "The device is emulated" in text


# --- the table


def shown(trials: list[Candidate], base: Candidate | None = BASE, **fields: Any) -> list[str]:
    return table.table(trials, base, replace(TOP1, **fields), PLAIN)


def row(lines: list[str], name: str) -> str:
    return next(line for line in lines if name in line and not line.startswith(("*  c", "* c")))


def test_the_table_marks_what_was_chosen_the_baseline_and_what_is_over_the_budget() -> None:
    over = trial("bf16@openvino", status="over-budget", reason="size")
    lines = shown([BASE, over, FAST])
    assert row(lines, FAST.name).startswith("*  int8")
    assert row(lines, over.name).startswith("!  bf16")
    assert row(lines, "=  ").startswith("=  fp32")
    assert lines[-1] == "* chosen, ! over the budget, = the baseline, fp32@openvino"
    itself = replace(BASE, status="chosen")
    assert row(shown([itself], itself), itself.name).startswith("=* fp32")


@pytest.mark.parametrize(
    ("ms", "said"),
    [(2.9, ", int8-u8s8@openvino was measured again, when fp32@openvino took 2.9 ms"), (2.02, "")],
)
def test_the_baseline_of_when_the_chosen_one_was_measured_again(ms: float, said: str) -> None:
    """A speed-up that the figures of the table do not give: the machine was slower by then."""
    setting = replace(TOP1, baseline_again_ms=ms)
    legend = table.table([BASE, FAST], BASE, setting, PLAIN)[-1]
    assert legend == f"* chosen, = the baseline, fp32@openvino{said}"


def test_the_chosen_one_comes_first_then_by_speed_then_what_is_over_the_budget() -> None:
    def at(name: str, p50: float, status: Any) -> Candidate:
        return trial(name, latency_ms=Latency(p50, p50, None, None, 1, 1), status=status)

    trials = [at("d@x", 0.1, "over-budget"), at("c@x", 9.0, "ok"), at("b@x", 3.0, "ok")]
    lines = shown([*trials, at("a@x", 20.0, "chosen")], None)
    assert [line[3] for line in lines[3:7]] == ["a", "b", "c", "d"]


def test_figures_of_a_column_share_a_unit() -> None:
    lines = shown([BASE, FAST])
    assert lines[0].split() == ["candidate", "top1", "change", "size", "p50", "speed-up", "memory"]
    assert lines[1].split() == ["%", "points", "kB", "ms", "[95", "%]", "MB"]
    assert row(lines, FAST.name).split()[2:6] == ["94.6", "-0.4", "108", "0.870"]
    assert row(lines, "=  ").split()[2:6] == ["95.0", "±0.0", "400", "2.00"]


def test_what_nobody_has_is_no_column() -> None:
    bare = replace(
        BASE, latency_ms=None, versus_baseline=None, peak_memory_bytes=None, accuracy=None
    )
    assert shown([bare], None, metric=None)[0].split() == ["candidate", "fidelity", "size"]


def test_p90_is_shown_where_the_budget_limits_it() -> None:
    assert "p90" not in shown([BASE])[0]
    assert "p90" in shown([BASE], p90=True)[0]


def test_what_failed_is_no_row() -> None:
    failed = trial("bf16@openvino", status="failed", reason="it crashed")
    assert not any(failed.name in line for line in shown([BASE, failed]))
    assert shown([failed]) == ["Nothing could be measured."]


LONG = "a-model-whose-name-is-as-long-as-people-make-them-efficientnet-lite4-quantized-v2-final"
NAMES = [
    [f"{r}@{e}" for r in ("fp32", "int8-u8s8-rr", "int8-dynamic") for e in RUNTIMES],
    [f"{model}/int8-u8s8-rr@onnxruntime" for model in ("resnet50", LONG, "模型" * 30, "e\u0301")],
    ["prune-channels-50+distill+int8-s8s8@openvino", "fp32@openvino"],
]


@pytest.mark.parametrize("names", NAMES, ids=["recipes", "models", "steps"])
@pytest.mark.parametrize("columns", [80, 60, 132])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"p90": True, "decided_by": "throughput", "minimize": "throughput"},
        {"metric": "my_long_package.metrics:mean_average_precision", "proportion": False},
        {"metric": None},
    ],
    ids=["plain", "wide", "custom", "fidelity"],
)
def test_no_line_of_the_table_is_wider_than_the_terminal(
    names: list[str], columns: int, fields: dict[str, Any]
) -> None:
    trials = [
        trial(
            name,
            energy_mj=figure(12.3),
            versus_baseline=Versus(10.25, (1.25, 20.25), "faster"),
            size_bytes=10**5 * 7**number,
            latency_ms=Latency(0.01 * 9**number, 1.0, None, None, 1, 1, "modelled"),
        )
        for number, name in enumerate(names)
    ]
    trials[0] = replace(trials[0], status="chosen")
    screen = Screen(columns, colour=False, terminal=True)
    setting = replace(TOP1, **fields)
    lines = summary.text(trials, trials[-1], trials[0], setting, screen)
    wide = [line for line in lines if terminal.width(line) > columns]
    assert wide == []
    text = "".join(line.strip() for line in lines)
    for name in names:
        assert name in text or name[:30] in text


def test_what_a_microcontroller_takes_fits_too() -> None:
    npu = Npu(
        vela="5",
        accelerator="Ethos_U55_128",
        system_config="",
        memory_mode="",
        clock_mhz=500.0,
        cycles={"total": 238258},
        inferences_per_s=None,
        inference_ms=0.4,
        memory_bytes={},
        macs=1,
        utilisation=None,
        layers=[],
        on_cpu=[OnCpu("SOFTMAX", "x" * 99, "unsupported " * 20)],
        cpu_operators=1,
        basis="modelled",
    )
    embedded = Embedded(
        arena=Arena(HostArena(1, 1, 0, {}), None),
        flash=Flash(92848, 1, 2, 218280, "modelled", [], True),
        plan=ArenaPlan(1, None, [], ""),
        agreement_with_litert=LiteRtAgreement(missing="not run"),
        npu=npu,
        chip=Chip("cortex-m55", 500, 1024, 256, 0, 0),
    )
    memory = Figure(20976.0, None, 1, "modelled", "the arena, the larger of two figures " * 5)
    chosen = trial(
        "int8@tflm",
        status="chosen",
        embedded=embedded,
        peak_memory_bytes=memory,
        latency_ms=None,
        versus_baseline=None,
    )
    screen = Screen(80, terminal=True)
    lines = summary.text([chosen], None, chosen, UNTIMED, screen)
    assert [line for line in lines if terminal.width(line) > 80] == []
    assert any(line.endswith(", RAM 21 kB.") for line in lines)
    assert any(line.startswith("int8@tflm: RAM 20,976 of 262,144 bytes: ") for line in lines)
    assert lines[-1].endswith("unsupported")


@settings(max_examples=30, deadline=None)
@given(
    names=st.lists(
        st.text("ab-@/語", min_size=1, max_size=120), min_size=1, max_size=4, unique=True
    ),
    values=st.lists(st.floats(1e-9, 1e12), min_size=4, max_size=4),
    columns=st.integers(80, 200),
)
def test_whatever_the_figures_the_table_fits(
    names: list[str], values: list[float], columns: int
) -> None:
    trials = [
        trial(
            name,
            size_bytes=int(values[0]) + 1,
            latency_ms=Latency(values[1], values[1], None, None, 1, 1),
            peak_memory_bytes=figure(values[2]),
            versus_baseline=Versus(2.0, (1.9, 2.1), "faster"),
        )
        for name in names
    ]
    lines = table.table(trials, trials[0], TOP1, Screen(columns))
    assert [line for line in lines[:-1] if terminal.width(line) > columns] == []


# --- the reasons


def test_reasons_that_differ_in_numbers_alone_are_said_once() -> None:
    others = [
        trial(f"int8-{form}@onnxruntime", status="skipped", reason=f"{ratio} times as slow as x8@y")
        for form, ratio in (("u8s8", "1.29"), ("s8s8", "13.6"), ("u8u8", "2.45"))
    ]
    lines = reasons.reasons([FAST, BASE, *others], TOP1, PLAIN)
    assert lines == [
        "",
        "Not chosen:",
        "  fp32@openvino: slower than int8-u8s8@openvino: 0.43x its speed",
        "  int8-u8s8@onnxruntime, int8-s8s8@onnxruntime, int8-u8u8@onnxruntime: "
        "1.29 to 13.6 times as slow as x8@y",
    ]


def test_numbers_in_names_are_not_mixed() -> None:
    texts = ["slower than fp16@openvino: 0.5x its speed", "slower than fp32@openvino: 0.5x"]
    assert reasons.NUMBER.findall(texts[0]) == ["0.5"]
    trials = [trial(f"{number}@x", reason=why) for number, why in enumerate(texts)]
    assert len(reasons.reasons(trials, TOP1, PLAIN)) == 4


def test_what_was_never_possible_is_one_line_in_all() -> None:
    never = [
        trial(f"{name}@litert", status="skipped", reason="litert does not run it", size_bytes=None)
        for name in ("wi8", "int8-nncf", "int8-u8u8")
    ]
    left = trial("fp16@litert", status="skipped", reason=LEFT_OUT)
    names = frozenset(t.name for t in (*never, left))
    lines = reasons.reasons([FAST, *never, left], replace(TOP1, impossible=names), PLAIN)
    assert lines == ["", "3 more candidates are not possible here; --dry-run and --json say why."]


def test_reasons_that_ask_for_data_are_said() -> None:
    skipped = trial("int8@litert", status="skipped", reason=NO_DATA)
    setting = replace(TOP1, impossible=frozenset([skipped.name]))
    assert any(NO_DATA in line for line in reasons.reasons([skipped], setting, PLAIN))


def test_without_a_choice_the_table_comes_all_the_same() -> None:
    over = replace(BASE, status="over-budget", reason="size 400000 bytes is over 3000")
    text = "\n".join(summary.text([over], over, None, TOP1, PLAIN))
    assert text.startswith("No candidate meets the budget.")
    untimed = "\n".join(summary.text([over], over, None, replace(TOP1, decided_by="size"), PLAIN))
    assert "Nothing was timed" in untimed and "decided by" not in untimed  # nothing was
    assert "=! fp32@openvino" in text
    assert "is over 3000" not in text  # the error says it


# --- what a terminal is sent


def test_names_do_not_command_the_terminal() -> None:
    evil = trial("\x1b[2Jnet\r\n/fp32@openvino", status="chosen")
    lines = summary.text([evil], None, evil, TOP1, PLAIN)
    text = "".join(lines)
    assert "\x1b" not in text and "\r" not in text and "\n" not in text
    assert "\\x1b[2Jnet" in text


def test_colours_are_for_terminals_and_change_no_word() -> None:
    plain = Screen(80, colour=False, terminal=True)
    lines = summary.text([BASE, FAST], BASE, FAST, TOP1, TERMINAL)
    coloured = "\n".join(rendered(line, colour=True) for line in lines)
    assert "\x1b[" in coloured
    for code in ("1", "2", "32", "0"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == "\n".join(summary.text([BASE, FAST], BASE, FAST, TOP1, plain))


def test_a_baseline_that_is_only_the_reference_is_named_below_the_table() -> None:
    reference = replace(BASE, status="skipped", reason=LEFT_OUT)
    lines = table.table([FAST, reference], reference, TOP1, PLAIN)
    assert f"the baseline, {BASE.name}, is run as the reference only" in " ".join(lines)
