"""What a run found, for people: the decision in a sentence, the table, the reasons that matter."""

import math
import re
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from msgspec import Struct

from onmetal.calibration.fidelity import PERFECT_DB
from onmetal.profilers import statistics
from onmetal.records import LEFT_OUT, NO_DATA, Accuracy, Figure, Trial, Versus
from onmetal.reports.report import embedded_lines, milliseconds, size
from onmetal.texts.terminal import Screen, clean, pad, pieces, width

RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
    "tflm": "TFLite Micro",
}
"""What their makers call them; a runtime that is not here keeps its own name."""
OTHER_TIME = 0.05
"""By how much the baseline's latency differs where the machine was slower or faster than before."""
ALIKE = 0.01
"""Sizes and memories that differ by less than this part are called the same."""
TIES = (
    "Sizes within 2 % of the smallest count as equal; among those, less memory or fewer modelled "
    "cycles decide, then exactness."
)


class Setting(Struct, frozen=True):
    """What the text needs to know of a run, besides its trials."""

    decided_by: str = "latency"
    minimize: str = "latency"
    """What was asked to be minimized."""
    metric: str | None = None
    higher_is_better: bool = True
    proportion: bool = True
    """Whether the metric lies in [0, 1], so that its changes are told in points."""
    several_models: bool = False
    original_size_bytes: int | None = None
    emulated: bool = False
    p90: bool = False
    """Whether the budget limits it, so that the table shows it."""
    impossible: frozenset[str] = frozenset()
    """Names of candidates that were never to be tried."""


def text(
    trials: list[Trial],
    base: Trial | None,
    chosen: Trial | None,
    setting: Setting,
    screen: Screen,
) -> list[str]:
    """Its lines. Without a choice, the error that follows says each candidate's objections."""
    lines = decision(trials, base, chosen, setting, screen)
    lines += ["", *table(trials, base, setting, screen)]
    lines += notes(trials, screen)
    if chosen:
        lines += reasons(trials, setting, screen)
    return lines


# --- the decision


def decision(
    trials: list[Trial],
    base: Trial | None,
    chosen: Trial | None,
    setting: Setting,
    screen: Screen,
) -> list[str]:
    lines = []
    if chosen:
        said = sentence(chosen, base, setting)
        lines += [screen.paint(line, "bold") for line in screen.prose(said)]
    else:
        lines += screen.prose(screen.paint("No candidate meets the budget.", "bold"))
    if why := replaced(setting, chosen):
        lines += screen.prose(why)
    return lines


def replaced(setting: Setting, chosen: Trial | None) -> str:
    """Which goal replaced the one that was asked for, and why; without a choice, why alone."""
    if setting.decided_by == setting.minimize:
        return ""
    why = (
        "The device is emulated, so its timings mean nothing"
        if setting.emulated
        else "Nothing was timed, because no device was given"
    )
    if chosen is None:
        return f"{why}."
    ties = f" {TIES}" if setting.decided_by == "size" else ""
    return f"{why}: decided by {setting.decided_by} instead of {setting.minimize}.{ties}"


class Clause(Struct, frozen=True):
    """`3.7x smaller`; the interval comes after the baseline, where that is named."""

    head: str
    joint: str | None = "than"
    """The word before the baseline's name; None: nothing is compared."""
    tail: str = ""

    def said(self, of: str | None) -> str:
        named = f" {self.joint} {of}" if of and self.joint else ""
        return f"{self.head}{named}{self.tail}"


def sentence(chosen: Trial, base: Trial | None, setting: Setting) -> str:
    """What was minimized comes first, against the baseline, which it names."""
    if base is not None and base.name == chosen.name:
        return _baseline_itself(chosen, setting)
    by_goal: dict[str, Callable[[], Clause | None]] = {
        "latency": lambda: _speed(chosen, base),
        "throughput": lambda: _throughput(chosen, base),
        "energy": lambda: _energy(chosen, base),
        "memory": lambda: _memory(chosen, base),
        "size": lambda: _size(chosen, base, setting),
        "accuracy-drop": lambda: _quality(chosen, setting),
    }
    order = [setting.decided_by, "latency", "size", "accuracy-drop"]
    if chosen.embedded:
        order.append("memory")
    clauses = [found for goal in dict.fromkeys(order) if (found := by_goal[goal]()) is not None]
    of = called(base, setting) if base else _original(setting)
    said = []
    for clause in clauses:
        said.append(clause.said(of))
        of = None if clause.joint else of
    return f"{called(chosen, setting)}: {', '.join(said)}."


def _baseline_itself(chosen: Trial, setting: Setting) -> str:
    """Nothing is compared: its own figures."""
    said = [
        clause.head + clause.tail
        for clause in (
            _throughput(chosen, None) if setting.decided_by == "throughput" else None,
            _energy(chosen, None) if setting.decided_by == "energy" else None,
            _speed(chosen, None),
            _memory(chosen, None) if setting.decided_by == "memory" else None,
        )
        if clause is not None
    ]
    if chosen.candidate:
        said.append(size(chosen.candidate.size_bytes))
    if chosen.accuracy:
        shown = level(chosen.accuracy.value, setting)
        said.append(f"{clean(chosen.accuracy.metric)} {shown}")
    return f"{called(chosen, setting)}, the baseline itself: {', '.join(said)}."


def called(trial: Trial, setting: Setting) -> str:
    """`int8-u8s8 on OpenVINO`, of which model where there are several."""
    of = f" of {trial.model}" if setting.several_models else ""
    return clean(f"{trial.recipe}{of} on {RUNTIMES.get(trial.runtime, trial.runtime)}")


def _original(setting: Setting) -> str | None:
    return None if setting.original_size_bytes is None else "the model's file"


def _speed(trial: Trial, base: Trial | None) -> Clause | None:
    latency = trial.latency_ms
    if latency is None or latency.basis == "emulated":
        return None
    if latency.basis != "measured":
        return Clause(f"{milliseconds(latency.p50)} by a model of the hardware, not measured", None)
    if base is not None and trial.versus_baseline is not None:
        return _ratio(trial.versus_baseline, "fast", "as fast")
    interval = latency.p50_ci95
    shown = f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else ""
    return Clause(f"p50 {milliseconds(latency.p50)}{shown}", None)


def _ratio(versus: Versus, word: str, alike: str) -> Clause:
    value, (low, high) = versus.speedup, versus.ci95
    if versus.verdict == "inconclusive":
        shown = times(value, low, high)
        return Clause(f"{alike} within the noise", "as", f" ({shown[0]}x [{shown[1]}, {shown[2]}])")
    if versus.verdict == "slower":
        value, low, high, word = 1 / value, 1 / high, 1 / low if low else math.inf, "slow"
    shown = times(value, low, high)
    return Clause(f"{shown[0]}x {word}er", "than", f" [{shown[1]}, {shown[2]}]")


def times(*ratios: float) -> list[str]:
    """As many digits as a ratio near 1 needs, and no more."""
    digits = 2 if min(ratios) < 2 and max(ratios) < 10 else 1 if min(ratios) < 20 else 0
    return [f"{ratio:.{digits}f}" for ratio in ratios]


def _throughput(trial: Trial, base: Trial | None) -> Clause | None:
    figure = trial.figures.get("throughput_per_s")
    if figure is None or figure.basis == "emulated":
        return None
    rate = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"
    own = f"{rate} inferences a second"
    mine, theirs = trial.rounds, base.rounds if base else None
    if base is not None and {trial.name, base.name} <= set(trial.again):
        mine, theirs = trial.again[trial.name], trial.again[base.name]
    if base is None or mine is None or theirs is None:
        return Clause(own, None)
    found = statistics.compare(theirs, mine, mean=True)
    shown = times(found.speedup, *found.ci95)
    return Clause(f"{shown[0]}x the throughput", "of", f" [{shown[1]}, {shown[2]}] ({own})")


def _energy(trial: Trial, base: Trial | None) -> Clause | None:
    mine, theirs = trial.figures.get("energy_mj"), base.figures.get("energy_mj") if base else None
    if mine is None:
        return None
    own = f"{mine.value:.3g} mJ an inference"
    if theirs is None or not mine.value:
        return Clause(own, None)
    return Clause(f"{_more_or_less(theirs.value / mine.value)} energy", "than", f" ({own})")


def _memory(trial: Trial, base: Trial | None) -> Clause | None:
    mine, theirs = (
        trial.figures.get("peak_memory_bytes"),
        base.figures.get("peak_memory_bytes") if base else None,
    )
    if mine is None:
        return None
    own = f"{'RAM' if trial.embedded else 'peak memory'} {size(mine.value)}"
    if theirs is None or not mine.value or trial.embedded:
        return Clause(own, None)
    return Clause(f"{_more_or_less(theirs.value / mine.value)} memory", "than", f" ({own})")


def _more_or_less(ratio: float) -> str:
    if abs(ratio - 1) < ALIKE:
        return "no more"
    return f"{times(ratio)[0]}x less" if ratio > 1 else f"{times(1 / ratio)[0]}x more"


def _size(trial: Trial, base: Trial | None, setting: Setting) -> Clause | None:
    if trial.candidate is None:
        return None
    mine = trial.candidate.size_bytes
    theirs = base.candidate.size_bytes if base and base.candidate else setting.original_size_bytes
    if not theirs or not mine or (base is None and setting.original_size_bytes is None):
        return Clause(size(mine), None)
    ratio = theirs / mine
    if abs(ratio - 1) < ALIKE:
        return Clause("the same size", "as")
    return Clause(f"{_short(ratio)}x smaller" if ratio > 1 else f"{_short(1 / ratio)}x larger")


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 1.1 else f"{ratio:.1f}" if ratio < 20 else f"{ratio:.0f}"


def _quality(trial: Trial, setting: Setting) -> Clause | None:
    accuracy = trial.accuracy
    if accuracy is None:
        return _fidelity(trial)
    change = changed(accuracy, setting)
    if change is None:
        shown = level(accuracy.value, setting)
        return Clause(f"{clean(accuracy.metric)} {shown}, its drop is not known", None)
    value, unit, interval = change
    shown = f" [{signless(interval[0])}, {signless(interval[1])}]" if interval else ""
    return Clause(f"{clean(accuracy.metric)} {signed(value)}{unit}{shown}", None)


def _fidelity(trial: Trial) -> Clause | None:
    if not trial.sqnr_db:
        return None
    worst = min(trial.sqnr_db.values())
    if worst >= PERFECT_DB:
        return Clause("its outputs are those of the original model", None)
    return Clause(f"fidelity {worst:.0f} dB (no task metric was measured)", None)


def changed(
    accuracy: Accuracy, setting: Setting
) -> tuple[float, str, tuple[float, float] | None] | None:
    """By how much the metric differs from the float model's: in points, else in percent of the
    float model's value, and with its sign. None where that is not known."""
    drop = accuracy.drop
    if drop is None or not math.isfinite(drop):
        return None
    sign = -1.0 if setting.higher_is_better else 1.0
    original = accuracy.value - sign * drop
    if setting.proportion:
        scale, unit = 100.0, " points"
    elif original and math.isfinite(original):
        scale, unit = 100.0 / abs(original), " %"
    else:
        scale, unit = 1.0, ""
    ends = None
    if accuracy.drop_ci95 is not None:
        ends = sorted(sign * scale * end for end in accuracy.drop_ci95)
    return sign * scale * drop, unit, (ends[0], ends[1]) if ends else None


def signed(value: float) -> str:
    """
    >>> signed(-0.42), signed(0.0), signed(0.004), signed(12.0)
    ('-0.4', '±0.0', '+0.004', '+12.0')
    """
    text = signless(value)
    if float(text) == 0:
        return "±0.0"
    return text if value < 0 else f"+{text}"


def signless(value: float) -> str:
    """One decimal, or where that would round to nothing, the first digit that there is."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1e-6:
        return "0.0"
    return f"{value:.1f}" if abs(value) >= 0.05 else f"{value:.1g}"


def level(value: float, setting: Setting) -> str:
    return f"{100 * value:.1f} %" if setting.proportion else f"{value:.4g}"


# --- the table


class Column(Struct, frozen=True):
    title: str
    unit: str
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(map(width, (self.title, self.unit, *self.cells)))


ORDER = {"chosen": 0, "ok": 1, "over-budget": 2}
MARKS = {"chosen": "*", "over-budget": "!"}
LEGEND = {"*": "chosen", "!": "over the budget"}
LONGEST_TITLE = 12
LEAST_FIRST = ("memory", "RAM", "p90", "rate", "energy", "change")
"""Columns that a narrow terminal does without, in this order."""


def table(trials: list[Trial], base: Trial | None, setting: Setting, screen: Screen) -> list[str]:
    """Every candidate that was tried to the end, the chosen one first. No line is wider than the
    screen: a name that leaves too little room stands on a line of its own."""
    rows = [trial for trial in trials if trial.status in ORDER]
    if not rows:
        return ["Nothing could be measured."]
    rows.sort(key=lambda t: (ORDER[t.status], _p50(t) or 0.0, t.name))
    columns, dropped = _fitting(_columns(rows, setting), screen.columns)
    marks = [_mark(trial, base) for trial in rows]
    names = [clean(trial.name) for trial in rows]
    gap = 2
    if 3 + max(map(width, names)) + sum(gap + c.width for c in columns) > screen.columns:
        gap = 1
    room = screen.columns - 3 - sum(gap + column.width for column in columns)
    longest = max(width("candidate"), *map(width, names))
    first = longest if longest <= room else max(room, 0)
    lines = []
    for line in ("title", "unit"):
        label = "candidate" if line == "title" and first >= width("candidate") else ""
        cells = [getattr(column, line) for column in columns]
        lines.append(_line("", label, first, cells, columns, gap))
    lines.append("-" * max(map(width, lines)))
    for number, (trial, name) in enumerate(zip(rows, names, strict=True)):
        cells = [column.cells[number] for column in columns]
        own = []
        if width(name) > first:
            cut = pieces(name, screen.columns - 3)
            own = [f"{marks[number]:<3}{cut[0]}", *(f"   {piece}" for piece in cut[1:])]
        shown = _line("" if own else marks[number], "" if own else name, first, cells, columns, gap)
        lines += [_painted(line, trial, screen) for line in [*own, shown]]
    legend = [f"{mark} {LEGEND[mark]}" for mark in LEGEND if any(mark in m for m in marks)]
    if base is not None and any("=" in found for found in marks):
        legend.append(f"= the baseline, {clean(base.name)}")
    elif base is not None:
        legend.append(f"the baseline, {clean(base.name)}, is run as the reference only")
    legend += _at_another_time(rows, base)
    if dropped:
        legend.append(f"{' and '.join(dropped)}: in --json, for which there is no room here")
    return lines + (screen.prose(", ".join(legend)) if legend else [])


def _at_another_time(rows: list[Trial], base: Trial | None) -> list[str]:
    """The chosen one's figures are of when it was measured again: the baseline's of then, where
    they are others, so that the speed-up can be seen in the table."""
    chosen = next((trial for trial in rows if trial.status == "chosen"), None)
    again = chosen.again.get(base.name) if chosen and base else None
    if not (chosen and base and again and base.latency_ms and chosen.name != base.name):
        return []
    then_ms = median(np.concatenate(list(again.samples_ns.values())).tolist()) / 1e6
    if abs(then_ms / base.latency_ms.p50 - 1) < OTHER_TIME:
        return []
    took = milliseconds(then_ms)
    return [f"{clean(chosen.name)} was measured again, when {clean(base.name)} took {took}"]


def _fitting(columns: list[Column], most: int) -> tuple[list[Column], list[str]]:
    """The columns that a line has room for, the least important left out; and which those are."""
    dropped: list[str] = []
    for title in LEAST_FIRST:
        if 3 + sum(1 + column.width for column in columns) <= most:
            break
        dropped += [column.title for column in columns if column.title == title]
        columns = [column for column in columns if column.title != title]
    return columns, dropped


def _line(
    mark: str, name: str, first: int, cells: Sequence[str], columns: list[Column], gap: int
) -> str:
    right = [
        " " * gap + pad(cell, column.width, right=True)
        for cell, column in zip(cells, columns, strict=True)
    ]
    return (f"{mark:<3}{pad(name, first)}" + "".join(right)).rstrip()


def _painted(line: str, trial: Trial, screen: Screen) -> str:
    if trial.status == "chosen":
        return screen.paint(line, "green")
    return screen.paint(line, "dim") if trial.status == "over-budget" else line


def _mark(trial: Trial, base: Trial | None) -> str:
    baseline = "=" if base is not None and base.name == trial.name else ""
    return baseline + MARKS.get(trial.status, "")


def _columns(rows: list[Trial], setting: Setting) -> list[Column]:
    columns = [*_judged(rows, setting)]
    sizes = [float(t.candidate.size_bytes) if t.candidate else None for t in rows]
    columns.append(_scaled("size", sizes, BYTES))
    columns.append(_scaled("p50", [_p50(t) for t in rows], TIMES, [_prefix(t) for t in rows]))
    if setting.p90:
        p90s = [t.latency_ms.p90 if _p50(t) is not None and t.latency_ms else None for t in rows]
        columns.append(_scaled("p90", p90s, TIMES, [_prefix(t) for t in rows]))
    columns.append(Column("speed-up", "[95 %]", tuple(_speed_up(t) for t in rows)))
    if setting.decided_by == "throughput":
        rates = [_value(t.figures.get("throughput_per_s")) for t in rows]
        columns.append(Column("rate", "a second", tuple(map(figures, rates))))
    energies = [_value(t.figures.get("energy_mj")) for t in rows]
    columns.append(Column("energy", "mJ", tuple(map(figures, energies))))
    word = "RAM" if any(t.embedded for t in rows) else "memory"
    columns.append(_scaled(word, [_value(t.figures.get("peak_memory_bytes")) for t in rows], BYTES))
    return [column for column in columns if any(cell != "-" for cell in column.cells)]


def _judged(rows: list[Trial], setting: Setting) -> list[Column]:
    if setting.metric is None:
        worst = [min(t.sqnr_db.values(), default=None) for t in rows]
        shown = [
            "-" if db is None else "equal" if db >= PERFECT_DB else f"{db:.0f}" for db in worst
        ]
        return [Column("fidelity", "dB", tuple(shown))]
    title = clean(setting.metric)
    if width(title) > LONGEST_TITLE:
        title = "metric"
    values = [t.accuracy.value if t.accuracy else None for t in rows]
    if setting.proportion:
        shown = ["-" if value is None else f"{100 * value:.1f}" for value in values]
    else:
        shown = ["-" if value is None else f"{value:.4g}" for value in values]
    changes = [changed(t.accuracy, setting) if t.accuracy else None for t in rows]
    unit = next((found[1].strip() for found in changes if found), "")
    cells = ["-" if found is None else signed(found[0]) for found in changes]
    return [
        Column(title, "%" if setting.proportion else "", tuple(shown)),
        Column("change", unit, tuple(cells)),
    ]


def decibels(worst: float) -> str:
    return "equal" if worst >= PERFECT_DB else f"{worst:.0f}"


BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
TIMES = (("s", 1e3), ("ms", 1.0), ("µs", 1e-3))


def _scaled(
    title: str,
    values: list[float | None],
    units: Sequence[tuple[str, float]],
    prefixes: list[str] | None = None,
) -> Column:
    """All in one unit, in which half of them are 1 or more, so that they compare at a glance."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    middle = median(known) if known else 1.0
    unit, scale = next((pair for pair in units if middle >= pair[1]), units[-1])
    before = prefixes or [""] * len(values)
    cells = [
        "-" if value is None else mark + figures(value / scale)
        for mark, value in zip(before, values, strict=True)
    ]
    return Column(title, unit, tuple(cells))


def figures(value: float | None) -> str:
    """Three figures, without an exponent.

    >>> [figures(v) for v in (None, 0.01234, 1.2345, 12.345, 1234.5)]
    ['-', '0.0123', '1.23', '12.3', '1234']
    """
    if value is None:
        return "-"
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(6, max(0, digits))}f}"


def _p50(trial: Trial) -> float | None:
    """None on an emulated device: its timings mean nothing."""
    latency = trial.latency_ms
    return None if latency is None or latency.basis == "emulated" else latency.p50


def _prefix(trial: Trial) -> str:
    return "~" if trial.latency_ms and trial.latency_ms.basis == "modelled" else ""


def _value(figure: Figure | None) -> float | None:
    return None if figure is None else figure.value


def _speed_up(trial: Trial) -> str:
    versus = trial.versus_baseline
    if versus is None:
        return "-"
    value, low, high = times(versus.speedup, *versus.ci95)
    return f"{value} [{low}, {high}]"


# --- below it


def notes(trials: list[Trial], screen: Screen) -> list[str]:
    """What figures of the table are not, and what of a microcontroller the first one takes."""
    lines: list[str] = []
    rows = sorted((t for t in trials if t.status in ORDER), key=lambda t: ORDER[t.status])
    bases = {t.latency_ms.basis for t in rows if t.latency_ms}
    if "emulated" in bases:
        lines += screen.prose("The device is emulated: its timings mean nothing and are not shown.")
    if "modelled" in bases:
        lines += screen.prose("~ modelled by Vela for the NPU alone; not measured.")
    for trial in rows[:1]:
        for line in embedded_lines(trial):
            lines += screen.prose(clean(line)) if line else [""]
    return lines


def reasons(trials: list[Trial], setting: Setting, screen: Screen) -> list[str]:
    """Why the others were not chosen, reasons that differ in numbers alone together; and how many
    were never possible."""
    grouped: dict[str, list[Trial]] = {}
    never = 0
    rank = {"over-budget": 0, "failed": 1, "ok": 2}
    for trial in sorted(trials, key=lambda t: rank.get(t.status, 3)):
        if not trial.reason or trial.status == "chosen" or trial.reason == LEFT_OUT:
            continue  # what the user left out, he knows
        if trial.name in setting.impossible and not _asks_for_data(trial.reason):
            never += 1
            continue
        grouped.setdefault(NUMBER.sub("#", trial.reason), []).append(trial)
    lines = []
    for alike in grouped.values():
        names = ", ".join(clean(trial.name) for trial in alike)
        reason = together([trial.reason or "" for trial in alike])
        lines += screen.prose(f"{names}: {clean(reason)}", "  ")
    lines = ["", "Not chosen:", *lines] if lines else []
    if never:
        noun = "candidate is" if never == 1 else "candidates are"
        said = f"{never} more {noun} not possible here; --dry-run and --json say why."
        lines += ["", *screen.prose(said)]
    return lines


NUMBER = re.compile(r"(?<![\w.@/-])\d+(?:\.\d+)?(?![\w.@/-]*[@/])")
"""A number that stands for itself: not one in a candidate's name."""
INTERVAL_START = re.compile(r"\[-?$")
INTERVAL_END = re.compile(r"\[[^\[\]]*, -?$")


def together(reasons: list[str]) -> str:
    """Reasons that differ in numbers alone, as one, with the least and the largest of each, and
    of intervals the one that holds them all.

    >>> together(["0.29x its speed", "0.04x its speed"])
    '0.04 to 0.29x its speed'
    >>> together(["0.9x [0.8, 1.1]", "1.0x [0.9, 1.2]"])
    '0.9 to 1.0x [0.8, 1.2]'
    """
    numbers = zip(*(NUMBER.findall(reason) for reason in reasons), strict=True)
    ends: list[tuple[str, str]] = [(min(own, key=float), max(own, key=float)) for own in numbers]
    spans = iter(ends)

    def shown(match: re.Match[str]) -> str:
        low, high = next(spans)
        before, after = reasons[0][: match.start()], reasons[0][match.end() :]
        if INTERVAL_START.search(before) and after.startswith(","):
            return low
        if INTERVAL_END.search(before) and after.startswith("]"):
            return high
        return low if low == high else f"{low} to {high}"

    return NUMBER.sub(shown, reasons[0])


def _asks_for_data(reason: str) -> bool:
    return reason == NO_DATA or "--calibration-data" in reason
