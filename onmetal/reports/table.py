"""The table for people: the candidates that were tried to the end, as wide as the screen."""

import math
from collections.abc import Sequence
from statistics import median

from msgspec import Struct

from onmetal import costs
from onmetal.calibration.fidelity import PERFECT_DB
from onmetal.costs import Cost
from onmetal.reports.record import Candidate
from onmetal.reports.sentence import changed, signed, times
from onmetal.reports.setting import Setting
from onmetal.texts.terminal import Screen, clean, pad, pieces, width
from onmetal.texts.units import milliseconds

OTHER_TIME = 0.05
"""From this relative difference of the baseline's latency on, the machine was slower or faster when
it was measured again."""
P90_PLACE, SPEED_UP_PLACE = 3, 4
"""The places of two more columns among those of the table of costs, counted from the left."""
P90_LEAVES, CHANGE_LEAVES = 2, 5
"""The order in which a narrow terminal leaves out two more columns, as `leaves` of Column."""


class Column(Struct, frozen=True):
    title: str
    unit: str
    cells: tuple[str, ...]
    leaves: int | None = None
    """A narrow terminal leaves out columns, the one with the least number first; None: never."""

    @property
    def width(self) -> int:
        return max(map(width, (self.title, self.unit, *self.cells)))


ORDER = {"chosen": 0, "ok": 1, "over-budget": 2}
MARKS = {"chosen": "*", "over-budget": "!"}
LEGEND = {"*": "chosen", "!": "over the budget"}
LONGEST_TITLE = 12


def table(
    candidates: Sequence[Candidate], base: Candidate | None, setting: Setting, screen: Screen
) -> list[str]:
    """Every candidate that was tried to the end, the chosen one first. No line is wider than the
    screen: a name that leaves too little room stands on a line of its own."""
    rows = [candidate for candidate in candidates if candidate.status in ORDER]
    if not rows:
        return ["Nothing could be measured."]
    rows.sort(key=lambda row: (ORDER[row.status], _timed(row, costs.LATENCY) or 0.0, row.name))
    columns, dropped = _fitting(_columns(rows, setting), screen.columns)
    marks = [_mark(row, base) for row in rows]
    names = [clean(row.name) for row in rows]
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
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        cells = [column.cells[number] for column in columns]
        name_lines = []
        if width(name) > first:
            cut = pieces(name, screen.columns - 3)
            name_lines = [f"{marks[number]:<3}{cut[0]}", *(f"   {piece}" for piece in cut[1:])]
        shown = _line(
            "" if name_lines else marks[number],
            "" if name_lines else name,
            first,
            cells,
            columns,
            gap,
        )
        lines += [_painted(line, row, screen) for line in [*name_lines, shown]]
    legend = _legend(rows, marks, base, setting, dropped)
    return lines + (screen.prose(", ".join(legend)) if legend else [])


def _legend(
    rows: list[Candidate],
    marks: list[str],
    base: Candidate | None,
    setting: Setting,
    dropped: list[str],
) -> list[str]:
    legend = [
        f"{mark} {LEGEND[mark]}" for mark in LEGEND if any(mark in row_marks for row_marks in marks)
    ]
    if base is not None and any("=" in row_marks for row_marks in marks):
        legend.append(f"= the baseline, {clean(base.name)}")
    elif base is not None:
        legend.append(f"the baseline, {clean(base.name)}, is run as the reference only")
    legend += _at_another_time(rows, base, setting)
    if dropped:
        legend.append(f"{' and '.join(dropped)}: in --json, for which there is no room here")
    return legend


def _at_another_time(rows: list[Candidate], base: Candidate | None, setting: Setting) -> list[str]:
    """A note on the baseline's latency when the chosen candidate was measured again, where it
    differs from the one in the table. The table shows the chosen candidate's figures of that time,
    so that the note makes the speed-up clear."""
    chosen = next((row for row in rows if row.status == "chosen"), None)
    remeasured_ms = setting.baseline_again_ms
    if not (chosen and base and base.latency_ms and remeasured_ms) or chosen.name == base.name:
        return []
    if abs(remeasured_ms / base.latency_ms.p50 - 1) < OTHER_TIME:
        return []
    latency_text = milliseconds(remeasured_ms)
    return [f"{clean(chosen.name)} was measured again, when {clean(base.name)} took {latency_text}"]


def _fitting(columns: list[Column], most: int) -> tuple[list[Column], list[str]]:
    """-> the columns that fit into `most` characters; the titles of those that were left out, the
    least important first."""
    dropped: list[str] = []
    for number in sorted(column.leaves for column in columns if column.leaves is not None):
        if 3 + sum(1 + column.width for column in columns) <= most:
            break
        dropped += [column.title for column in columns if column.leaves == number]
        columns = [column for column in columns if column.leaves != number]
    return columns, dropped


def _line(
    mark: str, name: str, first: int, cells: Sequence[str], columns: list[Column], gap: int
) -> str:
    right = [
        " " * gap + pad(cell, column.width, right=True)
        for cell, column in zip(cells, columns, strict=True)
    ]
    return (f"{mark:<3}{pad(name, first)}" + "".join(right)).rstrip()


def _painted(line: str, row: Candidate, screen: Screen) -> str:
    if row.status == "chosen":
        return screen.paint(line, "green")
    return screen.paint(line, "dim") if row.status == "over-budget" else line


def _mark(row: Candidate, base: Candidate | None) -> str:
    baseline = "=" if base is not None and base.name == row.name else ""
    return baseline + MARKS.get(row.status, "")


# --- the columns


def _columns(rows: list[Candidate], setting: Setting) -> list[Column]:
    placed = {SPEED_UP_PLACE: Column("speed-up", "[95 %]", tuple(map(_speed_up, rows)))}
    if setting.p90:
        placed[P90_PLACE] = _p90(rows)
    for cost in costs.COSTS:
        if cost.column and (not cost.column.only_if_minimized or setting.decided_by == cost.name):
            placed[cost.column.place] = _of_cost(cost, cost.column, rows)
    columns = [*_judged(rows, setting), *(placed[place] for place in sorted(placed))]
    return [column for column in columns if any(cell != "-" for cell in column.cells)]


def _of_cost(cost: Cost, column: costs.Column, rows: list[Candidate]) -> Column:
    on_chips = bool(column.chip_title) and any(row.embedded for row in rows)
    title = column.chip_title if on_chips else column.title
    values = [_timed(row, cost) if cost.paired else row.value(cost) for row in rows]
    prefixes = [_prefix(row) if cost.paired else "" for row in rows]
    return _scaled(title, values, column.scales, prefixes, column.leaves)


def _p90(rows: list[Candidate]) -> Column:
    latencies = [row.latency_ms for row in rows]
    p90s = [
        row_latency.p90 if row_latency and row_latency.basis != "emulated" else None
        for row_latency in latencies
    ]
    assert costs.LATENCY.column
    scales = costs.LATENCY.column.scales
    return _scaled("p90", p90s, scales, list(map(_prefix, rows)), P90_LEAVES)


def _judged(rows: list[Candidate], setting: Setting) -> list[Column]:
    if setting.metric is None:
        return [Column("fidelity", "dB", tuple(map(_decibels, rows)))]
    title = clean(setting.metric)
    if width(title) > LONGEST_TITLE:
        title = "metric"
    values = [row.accuracy.value if row.accuracy else None for row in rows]
    if setting.proportion:
        shown = ["-" if value is None else f"{100 * value:.1f}" for value in values]
    else:
        shown = ["-" if value is None else f"{value:.4g}" for value in values]
    changes = [changed(row.accuracy, setting) if row.accuracy else None for row in rows]
    unit = next((change[1].strip() for change in changes if change), "")
    cells = ["-" if change is None else signed(change[0]) for change in changes]
    return [
        Column(title, "%" if setting.proportion else "", tuple(shown)),
        Column("change", unit, tuple(cells), CHANGE_LEAVES),
    ]


def _decibels(row: Candidate) -> str:
    """The cell of the fidelity in dB of the worst output."""
    worst = row.fidelity.least_db if row.fidelity else None
    if worst is None:
        return "-"
    return "equal" if worst >= PERFECT_DB else f"{worst:.0f}"


def _scaled(
    title: str,
    values: list[float | None],
    scales: Sequence[tuple[str, float]],
    prefixes: list[str],
    leaves: int | None,
) -> Column:
    """The column of all values in one unit, the largest in which their median is 1 or more."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    middle = median(known) if known else 1.0
    unit, scale = next((pair for pair in scales if middle >= pair[1]), scales[-1])
    cells = [
        "-" if value is None else mark + figures(value / scale)
        for mark, value in zip(prefixes, values, strict=True)
    ]
    return Column(title, unit, tuple(cells), leaves)


def figures(value: float) -> str:
    """Three figures, without an exponent.

    >>> [figures(value) for value in (0.01234, 1.2345, 12.345, 1234.5)]
    ['0.0123', '1.23', '12.3', '1234']
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(6, max(0, digits))}f}"


def _timed(row: Candidate, cost: Cost) -> float | None:
    """The value of a timed cost; None on an emulated device, whose timings mean nothing."""
    latency = row.latency_ms
    return None if latency is None or latency.basis == "emulated" else row.value(cost)


def _prefix(row: Candidate) -> str:
    return "~" if row.latency_ms and row.latency_ms.basis == "modelled" else ""


def _speed_up(row: Candidate) -> str:
    versus = row.versus_baseline
    if versus is None or versus.speedup is None:
        return "-"
    low, high = (math.nan if end is None else end for end in versus.ci95)
    shown = times(versus.speedup, low, high)
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"
