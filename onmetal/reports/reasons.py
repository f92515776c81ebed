"""Lists why candidates were not chosen; reasons that differ only in numbers share a line."""

import re
from collections.abc import Sequence

from onmetal.records import LEFT_OUT, NO_DATA
from onmetal.reports.record import Candidate
from onmetal.reports.setting import Setting
from onmetal.texts.terminal import Screen, clean


def reasons(candidates: Sequence[Candidate], setting: Setting, screen: Screen) -> list[str]:
    """Lines about why candidates were not chosen, with reasons that differ only in numbers on one
    line, and about how many were never possible."""
    grouped: dict[str, list[Candidate]] = {}
    impossible_count = 0
    rank = {"over-budget": 0, "failed": 1, "ok": 2}
    for candidate in sorted(candidates, key=lambda c: rank.get(c.status, 3)):
        if not candidate.reason or candidate.status == "chosen" or candidate.reason == LEFT_OUT:
            continue  # users know what they left out
        if candidate.name in setting.impossible and not _asks_for_data(candidate.reason):
            impossible_count += 1
            continue
        grouped.setdefault(NUMBER.sub("#", candidate.reason), []).append(candidate)
    lines = []
    for group in grouped.values():
        names = ", ".join(clean(candidate.name) for candidate in group)
        reason = together([candidate.reason or "" for candidate in group])
        lines += screen.prose(f"{names}: {clean(reason)}", "  ")
    lines = ["", "Not chosen:", *lines] if lines else []
    if impossible_count:
        noun = "candidate is" if impossible_count == 1 else "candidates are"
        sentence = (
            f"{impossible_count} more {noun} not possible here; --dry-run and --json say why."
        )
        lines += ["", *screen.prose(sentence)]
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
    extremes: list[tuple[str, str]] = [
        (min(column, key=float), max(column, key=float)) for column in numbers
    ]
    spans = iter(extremes)

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
