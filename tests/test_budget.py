"""Limits: how they are written, what they come to, and what does not fit them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from onmetal import cli, costs
from onmetal.budget import Asked, Budget
from onmetal.deploy import rank
from onmetal.errors import UsageError
from onmetal.records import Accuracy, Candidate, Figure, Latency, Model, Trial
from onmetal.runtimes import fit
from onmetal.texts import units
from onmetal.texts.units import Share
from tests.conftest import DIGITS

NAN = float("nan")
PATH = Path("net.onnx")
MODEL = Model(PATH, PATH, "", "onnx", "", 1000, (), (), 0, 500, {}, 1)
CANDIDATE = Candidate("bf16@openvino", "bf16", "openvino", "1", MODEL, (), "", 1000, {})
MEASURED = Trial(
    "bf16@openvino",
    "bf16",
    "openvino",
    "net",
    candidate=CANDIDATE,
    accuracy=Accuracy("top1", 0.90, 0.01, (0.0, 0.02), 100),
    latency_ms=Latency(10.0, 20.0, (9.0, 11.0), (19.0, 21.0), 100, 5),
    figures={
        "peak_memory_bytes": Figure(5000.0, None, 1, "measured", "read"),
        "energy_mj": Figure(3.0, None, 1, "measured", "read"),
    },
)
UNKNOWN = Trial("bf16@openvino", "bf16", "openvino", "net")


def figure(value: float) -> Figure:
    return Figure(value, None, 1, "measured", "read")


def accuracy(value: float, drop: float | None) -> Trial:
    return replace(MEASURED, accuracy=Accuracy("top1", value, drop, None, 100))


def said(limits: Budget, trial: Trial, **keywords: bool) -> str:
    return "; ".join(limits.objections(trial, **keywords))


def limits(**most: Any) -> Budget:
    """By the name of the cost."""
    return Budget(limits=most)


def resolved(asked: Asked, original: Model = MODEL, **keywords: Any) -> Budget:
    usual: dict[str, Any] = {"proportion": True, "float_value": 0.9}
    return asked.resolve(original, **{**usual, **keywords})


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("20ms", 20.0),
        ("1.5s", 1500.0),
        ("250us", 0.25),
        ("250µs", 0.25),
        ("100ns", 1e-4),
        ("30min", 1.8e6),
        ("2h", 7.2e6),
        (" 20 ms ", 20.0),
        (".5s", 500.0),
        ("5.s", 5000.0),
    ],
)
def test_times(text: str, ms: float) -> None:
    assert units.parse_ms(text) == pytest.approx(ms, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1B", 1),
        ("4kB", 4000),
        ("4KB", 4000),
        ("4MB", 4_000_000),
        ("1GB", 10**9),
        ("4KiB", 4096),
        ("4MiB", 4 * 2**20),
        ("1GiB", 2**30),
        ("1.5 MB", 1_500_000),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert units.parse_bytes(text, "--max-size") == count


@pytest.mark.parametrize(
    ("text", "mj"), [("5mJ", 5.0), ("1J", 1000.0), ("7uJ", 0.007), ("7µJ", 0.007)]
)
def test_energies(text: str, mj: float) -> None:
    assert units.parse_mj(text) == pytest.approx(mj, rel=1e-12)


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("50 %", 0.5), ("0%", 0), (".5%", 5e-3)])
def test_percentages(text: str, share: float) -> None:
    assert units.parse_share(text, "--max-macs").value == pytest.approx(share)
    for parse in (units.parse_share_or_number, units.parse_share_or_bytes):
        if share == 0 and parse is units.parse_share_or_bytes:
            continue  # no file has no size
        found = parse(text, "--some")
        assert isinstance(found, Share)
        assert found.value == pytest.approx(share)


def test_what_is_no_percentage_is_a_number_or_bytes() -> None:
    assert units.parse_share_or_number("0.01", "--max-accuracy-drop") == 0.01
    assert units.parse_share_or_number("0", "--max-accuracy-drop") == 0
    assert units.parse_share_or_bytes("4MB", "--max-size") == 4_000_000


HUGE = "9" * 400
TIMES = [
    "",
    "20",
    "ms",
    "-1ms",
    "0ms",
    "20mb",
    "1e3ms",
    "nanms",
    "infs",
    "1,5s",
    "20 m s",
    "1h30min",
]
SIZES = ["", "4", "MB", "-4MB", "0B", "0.5B", "4MBs", "50%", "0x10B"]
ENERGIES = ["", "5", "0mJ", "-5mJ", "5kWh", "5ms", "5%"]
SHARES = ["", "1", "%", "-1%", "1%%", "nan%", "inf%", "1e2%", "none"]
NUMBERS = ["", "nan", "inf", "-0.1", "x", "-1%", "1%%", "1ms"]
REFUSED: list[tuple[Any, str, str]] = [
    *((units.parse_ms, "--max-latency", text) for text in [*TIMES, HUGE + "ms"]),
    *((units.parse_bytes, "--max-memory", text) for text in [*SIZES, HUGE + "MB"]),
    *((units.parse_mj, "--max-energy", text) for text in [*ENERGIES, HUGE + "J"]),
    *((units.parse_share, "--max-macs", text) for text in [*SHARES, HUGE + "%"]),
    *((units.parse_share_or_number, "--min-accuracy", text) for text in [*NUMBERS, HUGE + "%"]),
    *((units.parse_share_or_bytes, "--max-size", text) for text in ["", "4", "-1%", HUGE + "%"]),
]


@pytest.mark.parametrize(
    ("parse", "option", "text"),
    REFUSED,
    ids=[f"{option[2:]} {text[:10]}" for _, option, text in REFUSED],
)
def test_what_is_no_limit_is_refused(parse: Any, option: str, text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(text, option)
    assert option in str(refused.value)
    assert text in str(refused.value)


@given(st.text(max_size=12))
def test_any_text_is_a_positive_number_or_refused(text: str) -> None:
    for parse in (units.parse_ms, units.parse_mj, units.parse_bytes):
        try:
            found = parse(text, "--some")
        except UsageError:
            continue
        assert 0 < found < math.inf


@given(st.integers(0, 10**6), st.integers(0, 999))
@example(1, 1)
def test_thousandths_of_a_kilobyte_are_whole_bytes(whole: int, thousandths: int) -> None:
    if whole or thousandths:
        found = units.parse_bytes(f"{whole}.{thousandths:03}kB", "--max-size")
        assert found == 1000 * whole + thousandths


@given(st.integers(1, 100), st.integers(1, 10**10))
@example(29, 100)
def test_a_percentage_of_the_original_is_rounded_down_and_no_further(part: int, whole: int) -> None:
    share = units.parse_share(f"{part}%", "--max-size")
    original = replace(MODEL, size_bytes=whole, macs=whole)
    found = resolved(Asked(limits={"size": share, "MACs": share}), original)
    assert found.limits == {"size": part * whole // 100, "MACs": part * whole // 100}


def test_by_default_one_percent_of_accuracy_may_be_lost() -> None:
    assert resolved(Asked()) == Budget(max_accuracy_drop=0.01)


def test_a_percentage_of_a_proportion_is_points() -> None:
    found = resolved(Asked(Share(0.02), Share(0.7)), float_value=0.5)
    assert (found.max_accuracy_drop, found.min_accuracy) == (0.02, 0.7)


def test_a_percentage_of_any_other_metric_is_of_the_floats_value() -> None:
    found = resolved(Asked(Share(0.02), Share(0.7)), proportion=False, float_value=-50.0)
    assert found.max_accuracy_drop == pytest.approx(1.0)
    assert found.min_accuracy == pytest.approx(35.0)


@pytest.mark.parametrize("proportion", [True, False])
def test_plain_numbers_stay_as_they_are(proportion: bool) -> None:
    most = {"latency": 20.0, "size": 3000, "memory": 4000, "energy": 5.0}
    asked = Asked(0.5, 0.6, most)
    assert resolved(asked, proportion=proportion) == Budget(0.5, 0.6, most)


def test_uncounted_macs_cannot_be_limited() -> None:
    with pytest.raises(UsageError, match="--max-macs"):
        resolved(Asked(limits={"MACs": Share(0.7)}), replace(MODEL, macs=None))


def test_nothing_limits_nothing() -> None:
    assert resolved(Asked(max_accuracy_drop=None)) == Budget()
    for trial in (MEASURED, UNKNOWN):
        assert said(Budget(), trial) == ""


LIMITS = [
    ("accuracy drop", Budget(max_accuracy_drop=0.01), Budget(max_accuracy_drop=0.009)),
    ("top1", Budget(min_accuracy=0.90), Budget(min_accuracy=0.91)),
    ("latency", limits(latency=20.0), limits(latency=19.9)),
    ("size", limits(size=1000), limits(size=999)),
    ("MACs", limits(MACs=500), limits(MACs=499)),
    ("memory", limits(memory=5000), limits(memory=4999)),
    ("energy", limits(energy=3.0), limits(energy=2.9)),
]
NAMED = pytest.mark.parametrize(("word", "met", "missed"), LIMITS, ids=[row[0] for row in LIMITS])


@NAMED
def test_a_limit_is_met_at_its_value_and_missed_over_it(
    word: str, met: Budget, missed: Budget
) -> None:
    assert said(met, MEASURED) == ""
    assert word in said(missed, MEASURED)
    assert len(missed.objections(MEASURED)) == 1


@NAMED
def test_a_missing_number_never_satisfies_a_budget(word: str, met: Budget, missed: Budget) -> None:
    if word == "accuracy drop":  # without labels fidelity stands for it
        assert rank.objections(UNKNOWN, met, fit.load_target("x86-64"), True)
    else:
        assert said(met, UNKNOWN) != ""


def test_a_missing_number_is_objected_to_with_its_reason() -> None:
    reasons = {"latency_ms": "no clock", "peak_memory_bytes": "no /proc", "energy_mj": "no meter"}
    asked = limits(latency=1, memory=1, energy=1)
    found = said(asked, replace(UNKNOWN, missing=reasons))
    assert all(reason in found for reason in reasons.values())


def test_macs_that_were_not_counted_do_not_fit() -> None:
    candidate = replace(CANDIDATE, model=replace(MODEL, macs=None))
    assert said(limits(MACs=10**9), replace(MEASURED, candidate=candidate)) != ""


@pytest.mark.parametrize(
    ("limits", "trial"),
    [
        (Budget(max_accuracy_drop=1.0), accuracy(0.9, NAN)),
        (Budget(max_accuracy_drop=1.0), accuracy(0.9, None)),
        (Budget(min_accuracy=0.0), accuracy(NAN, 0.0)),
        (
            limits(latency=1e9),
            replace(MEASURED, latency_ms=Latency(1, NAN, (0, 1), (0, 1), 1, 1)),
        ),
        (limits(memory=10**12), MEASURED.with_figures(peak_memory_bytes=figure(NAN))),
        (limits(energy=1e9), MEASURED.with_figures(energy_mj=figure(NAN))),
    ],
)
def test_what_is_not_a_number_does_not_fit(limits: Budget, trial: Trial) -> None:
    assert len(limits.objections(trial)) == 1


def test_a_percentage_of_an_unknown_value_is_still_a_limit() -> None:
    found = resolved(Asked(), proportion=False, float_value=None)
    assert said(found, accuracy(5.0, None)) != ""


def test_latency_is_judged_by_the_90th_percentile() -> None:
    assert "p90" in said(limits(latency=15.0), MEASURED)
    assert MEASURED.latency_ms
    assert MEASURED.latency_ms.p50 < 15.0


def test_accuracy_is_judged_by_its_point_not_by_its_interval() -> None:
    wide = replace(MEASURED, accuracy=Accuracy("top1", 0.9, 0.005, (-0.5, 0.5), 10))
    assert said(Budget(max_accuracy_drop=0.01), wide) == ""
    over = replace(MEASURED, accuracy=Accuracy("top1", 0.9, 0.02, (-0.5, 0.5), 10))
    assert said(Budget(max_accuracy_drop=0.01), over) != ""


def test_a_drop_of_exactly_the_budget_fits_in_spite_of_rounding() -> None:
    drop = 0.91 - 0.90
    assert drop > 0.01
    assert said(Budget(max_accuracy_drop=0.01), accuracy(0.9, drop)) == ""


def test_where_lower_is_better_the_least_accuracy_is_a_ceiling() -> None:
    limits = Budget(min_accuracy=2.0)
    assert said(limits, accuracy(1.9, 0.0), higher_is_better=False) == ""
    assert "over" in said(limits, accuracy(2.1, 0.0), higher_is_better=False)


def test_every_missed_limit_is_said() -> None:
    every = Budget(0.0, 1.0, {cost.name: 1 for cost, _ in costs.LIMITS})
    assert len(every.objections(MEASURED)) == 7


@pytest.mark.parametrize(
    ("drop", "interval", "crossed"),
    [
        (0.005, (0.0, 0.02), True),
        (0.005, (0.0, 0.01), False),
        (0.02, (0.0, 0.03), False),
        (0.91 - 0.90, (0.0, 0.02), True),
        (None, None, False),
        (0.005, None, False),
    ],
)
def test_an_interval_that_reaches_over_the_budget_is_noticed(
    drop: float | None, interval: tuple[float, float] | None, crossed: bool
) -> None:
    trial = replace(MEASURED, accuracy=Accuracy("top1", 0.9, drop, interval, 100))
    assert Budget(max_accuracy_drop=0.01).crossed(trial) is crossed
    assert not Budget().crossed(trial)
    assert not Budget(max_accuracy_drop=0.01).crossed(UNKNOWN)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"max_accuracy_drop": 0.01}),
        (["--max-accuracy-drop", "none"], {}),
        (["--max-accuracy-drop", "2%"], {"max_accuracy_drop": 0.02}),
        (
            ["--max-accuracy-drop", "none", "--max-latency", "2s", "--max-size", "1MiB"],
            {"max_latency_ms": 2000.0, "max_size_bytes": 2**20},
        ),
    ],
)
def test_the_plan_says_the_budget_in_base_units(
    words: list[str], expected: dict[str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(DIGITS / "digits_cnn.onnx"), str(DIGITS / "digits.npz")
    code = cli.main([model, "--target", "x86-64", "--data", data, "--dry-run", "--json", *words])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["budget"] == expected


# --- what was meant


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4mb", 4_000_000),
        ("4Mb", 4_000_000),
        ("4M", 4_000_000),
        ("4m", 4_000_000),
        ("4k", 4000),
        ("4K", 4000),
        ("1g", 10**9),
        ("4kib", 4096),
        ("4Ki", 4096),
        ("4MIB", 4 * 2**20),
        ("7b", 7),
        ("0.5 mb", 500_000),
    ],
)
def test_sizes_are_read_in_any_case_and_without_their_b(text: str, count: int) -> None:
    assert units.parse_bytes(text, "--max-size") == count
    assert units.parse_share_or_bytes(text, "--max-size") == count


@pytest.mark.parametrize(
    ("text", "ms"), [("20 MS", 20.0), ("1.5S", 1500.0), ("2 Min", 1.2e5), ("7\u03bcs", 0.007)]
)
def test_times_are_read_in_any_case(text: str, ms: float) -> None:
    assert units.parse_ms(text) == pytest.approx(ms)


def test_millijoules_are_not_megajoules() -> None:
    assert units.parse_mj("5mj") == units.parse_mj("5 mJ") == 5.0
    with pytest.raises(UsageError, match="megajoules; did you mean 5mJ"):
        units.parse_mj("5 MJ")


@pytest.mark.parametrize(
    ("option", "text", "likely"),
    [
        ("--max-latency", "20", "20ms?"),
        ("--time-limit", "30", "30min or 30s?"),
        ("--max-size", "50", "50% or 50kB?"),
        ("--max-memory", "64", "64MB or 64kB?"),
        ("--max-macs", "70", "70%?"),
        ("--max-energy", "5", "5mJ?"),
    ],
)
def test_a_number_without_a_unit_is_answered_with_likely_ones(
    option: str, text: str, likely: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(DIGITS / "digits_cnn.onnx"), str(DIGITS / "digits.npz")
    assert cli.main([model, "--target", "x86-64", "--data", data, option, text]) == 2
    said = capsys.readouterr().err
    assert f"{option} {text}: it has no unit; did you mean {likely}" in said


MEANT = [
    ("--max-accuracy-drop", "1", "1%"),
    ("--max-accuracy-drop", "1.0", "1%"),
    ("--max-accuracy-drop", "2.5", "2.5%"),
    ("--max-accuracy-drop", "101%", "between 0 and 100 %"),
    ("--max-accuracy-drop", "150", "15000 points"),
    ("--min-accuracy", "70", "70%"),
    ("--min-accuracy", "1.01", "1.01%"),
    ("--min-accuracy", "100.5%", "between 0 and 100 %"),
]


def dry(*words: str | Path) -> int:
    model = str(DIGITS / "digits_cnn.onnx")
    return cli.main([model, "--target", "x86-64", "--dry-run", *map(str, words)])


@pytest.mark.parametrize(("option", "text", "says"), MEANT)
def test_a_limit_that_cannot_be_meant_is_refused_with_the_likely_one(
    option: str, text: str, says: str
) -> None:
    limit = units.parse_share_or_number(text, option)
    asked = Asked(max_accuracy_drop=limit) if "drop" in option else Asked(min_accuracy=limit)
    with pytest.raises(UsageError) as raised:
        asked.check_meant("top1")
    assert option in str(raised.value) and says in str(raised.value)


@pytest.mark.parametrize("metric", [(), ("--metric", "F1")], ids=["by the labels", "named"])
def test_it_is_refused_before_any_long_work(
    metric: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry("--data", DIGITS / "digits.npz", "--max-accuracy-drop", "1", *metric) == 2
    said = capsys.readouterr().err
    assert "--max-accuracy-drop 1" in said and "did you mean 1%?" in said


@pytest.mark.parametrize("text", ["100%", "0%", "0.99", "1e-3"])
def test_drops_that_may_be_meant_are_taken(text: str) -> None:
    Asked(max_accuracy_drop=units.parse_share_or_number(text, "--some")).check_meant("f1")


@pytest.mark.parametrize("text", ["1", "100%", "0.7", "0"])
def test_minima_that_may_be_meant_are_taken(text: str) -> None:
    Asked(min_accuracy=units.parse_share_or_number(text, "--some")).check_meant("f1")


def test_none_is_read_in_any_case() -> None:
    assert dry("--data", DIGITS / "digits.npz", "--max-accuracy-drop", "None") == 0


def test_a_named_metric_is_enough_to_refuse_before_the_data_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dry("--data", "nowhere.npz", "--metric", "top1", "--min-accuracy", "70") == 2
    assert "did you mean 70%?" in capsys.readouterr().err


@pytest.mark.parametrize("metric", ["rmse", "own_metric:negative"])
def test_other_metrics_have_units_of_their_own(
    metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_metric.py").write_text("def negative(outputs, labels):\n    return -250.0\n")
    with np.load(DIGITS / "digits.npz") as found:
        images = found["x"][:200]
    np.savez("data.npz", image=images, y=np.zeros((len(images), 10), np.float32))
    for option, text in (
        ("--max-accuracy-drop", "1"),
        ("--max-accuracy-drop", "150%"),
        ("--min-accuracy", "70"),
    ):
        assert dry("--data", "data.npz", "--metric", metric, option, text) == 0


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--max-size", "0%"),
        ("--max-size", "0.0 %"),
        ("--max-size", "0B"),
        ("--max-size", "0.0001%"),
        ("--max-macs", "0%"),
        ("--max-macs", "0.000001%"),
    ],
)
def test_a_size_or_macs_of_nothing_are_refused(
    option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry("--data", DIGITS / "digits.npz", option, text) == 2
    assert option in capsys.readouterr().err
