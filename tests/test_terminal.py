"""What a person sees: a whole deployment in a terminal of 80 columns, progress, colours."""

import io
import os
import pty
import re
from pathlib import Path

import pytest

from onmetal import progress
from onmetal.deploy import estimate
from onmetal.profilers.measure import MODES, Mode, Schedule
from onmetal.progress import Progress
from onmetal.texts import terminal
from tests.terminals import WORDS, Shown


def test_a_deployment_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    shown = Shown((*WORDS, "--out", "out"), tmp_path)
    assert shown.code == 0, shown.text
    assert [line for line in shown.lines if terminal.width(line) > 80] == []
    assert any(line.startswith("fp32 on ONNX Runtime, the baseline itself") for line in shown.lines)
    assert any(line.startswith("=* fp32@onnxruntime") for line in shown.lines)
    assert any("the whole run takes about" in line for line in shown.lines)
    assert any("s left): " in line or "s left)" in line for line in shown.lines)
    assert re.search(r"\x1b\[[0-9;]+m", shown.text)
    assert "instead of latency" in " ".join(line.strip() for line in shown.lines)


def test_a_table_comes_also_where_nothing_meets_the_budget(tmp_path: Path) -> None:
    shown = Shown((*WORDS, "--max-size", "3k", "--out", "out"), tmp_path, NO_COLOR="1")
    assert shown.code == 5
    assert "No candidate meets the budget." in shown.lines
    assert any(line.startswith("=! fp32@onnxruntime") for line in shown.lines)
    assert any("is over 3000" in line for line in shown.lines)
    assert not re.search(r"\x1b\[[0-9;]+m", shown.text)


@pytest.mark.parametrize(
    ("env", "colour", "rewrites"),
    [
        ({}, True, True),
        ({"NO_COLOR": "1"}, False, True),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": ""}, False, False),
    ],
)
def test_what_a_terminal_is_sent_follows_its_environment(
    env: dict[str, str], colour: bool, rewrites: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb"), os.fdopen(theirs, "w") as stream:
        assert terminal.of(stream).colour is colour
        assert terminal.rewrites(stream) is rewrites
        assert Progress(1, stream).live is rewrites
    assert terminal.of(io.StringIO()) == terminal.PLAIN


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain … text", "plain … text"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("two\nlines", "two\\nlines"),
        ("\u2028", "\\u2028"),
        ("\x9b31m", "\\x9b31m"),
        ("\ufdd3", "\\ufdd3"),
        ("back\rover", "back\\rover"),
        ("\u202eleft", "\\u202eleft"),
        ("\U0001f469\u200d\U0001f4bb \u2764\ufe0f", "\U0001f469\u200d\U0001f4bb \u2764\ufe0f"),
        ("\U0001f469\U0001f3fd\u200d\u2764\ufe0f\u200d\U0001f468", None),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", None),
        ("\u0915\u094d\u200d\u0937", None),
        ("two\u00a0words\u3000three\u202ffour", "two words three four"),
        ("a\u200db", "a\\u200db"),
        ("\u200d\U0001f4bb", "\\u200d\U0001f4bb"),
        ("\u0645\u200c", "\u0645\\u200c"),
        ("\u0645\u200c\u200d\u200c\u0645", "\u0645\\u200c\\u200d\\u200c\u0645"),
        ("\u0645\u200bm\ufeff", "\u0645\\u200bm\\ufeff"),
        ("tag\U000e0041\u2066\x85\ud800\u2029", "tag\\U000e0041\\u2066\\x85\\ud800\\u2029"),
        ("soft\u00adhyphen", "soft-hyphen"),
    ],
)
def test_control_characters_are_spelled(text: str, shown: str | None) -> None:
    """None: as they are."""
    assert terminal.clean(text) == (text if shown is None else shown)


# --- progress


def test_a_file_gets_whole_lines_without_escape_sequences() -> None:
    stream = io.StringIO()
    told = Progress(2, stream)
    told.step("reading")
    told.expect({"judging": 60.0, "measuring": 120.0})
    told.step("judging")
    told.warn("odd\x1b[2J")
    lines = stream.getvalue().splitlines()
    assert lines == [
        "[1/2] reading",
        "the whole run takes about 3 min",
        "[2/2] judging (0 s, about 3 min left)",
        "warning: odd\\x1b[2J",
    ]


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_what_remains_shrinks_by_what_is_done(clock: Clock) -> None:
    told = Progress(3, io.StringIO())
    told.expect({"judging": 60.0, "measuring": 120.0})
    told.step("judging")
    assert told.left_s() == pytest.approx(180)
    clock.now += 20
    assert told.left_s() == pytest.approx(160)
    clock.now += 40
    told.step("measuring")
    assert told.left_s() == pytest.approx(120)
    assert told.total_s() == pytest.approx(180)


def test_a_slow_machine_makes_the_rest_longer_and_that_is_said(clock: Clock) -> None:
    stream = io.StringIO()
    told = Progress(3, stream)
    told.expect({"judging": 60.0, "measuring": 120.0})
    told.step("judging")
    clock.now += 240
    assert told.left_s() > 240  # it is late already: the rest will be, too
    told.step("measuring")
    assert 300 < told.left_s() < 480
    assert "slower than expected: the whole run takes about 11 min" in stream.getvalue()


def test_a_quick_machine_makes_the_rest_shorter(clock: Clock) -> None:
    told = Progress(3, io.StringIO())
    told.expect({"judging": 60.0, "measuring": 120.0})
    told.step("judging")
    clock.now += 6
    told.step("measuring")
    assert 12 < told.left_s() < 60


def test_what_is_left_is_never_beyond_the_time_limit(clock: Clock) -> None:
    told = Progress(2, io.StringIO())
    told.expect({"judging": 60.0, "measuring": 7200.0}, limit_s=90.0)
    told.step("judging")
    clock.now += 30
    assert told.left_s() == pytest.approx(60)


def test_a_step_longer_than_expected_does_not_promise_its_end(clock: Clock) -> None:
    told = Progress(1, io.StringIO())
    told.expect({"judging": 10.0})
    told.step("judging")
    for _ in range(50):
        clock.now += 10
        assert told.left_s() > 0


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_schedule_takes_what_it_says(mode: Mode) -> None:
    plan: Schedule = MODES[mode]
    inferring = plan.blocks * plan.rounds * (plan.round_s + plan.round_warm_s)
    starting = plan.blocks * (1.0 + plan.warm_s)
    assert estimate.measuring_s(plan, 4, 1.0, 1e-6) == pytest.approx(
        4 * (inferring + starting), rel=1e-4
    )
    assert estimate.measuring_s(plan, 4, 1.0, 60.0) > 4 * plan.blocks * plan.rounds * 60.0
    fewer = estimate.measuring_s(plan, 4, 1.0, 1e-6, last=2)
    left_out = 2 * (plan.blocks - (plan.least_blocks or plan.blocks))
    assert fewer == pytest.approx((inferring + starting) * (4 - left_out / plan.blocks), rel=1e-4)
