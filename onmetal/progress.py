"""Shows progress and the remaining time on standard error.

A terminal gets one line that is rewritten; a file, a pipe or a terminal that cannot rewrite a line
gets a line a step and one every ten seconds within it.

The time of the whole run is estimated once, when the plan is known, and corrected later: the ratio
of the time that finished steps took to their expected time scales the expected time of the others.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from onmetal.texts import terminal

OnProgress = Callable[[float, float, str], None]
"""Called during long work: (amount done, total amount, what is being done)."""
OnCount = Callable[[int, int], None]
"""Called during work on items: (number done, total number)."""

SETTLED_S = 2.0
"""Where nothing was estimated, the pace of a step is extrapolated once it has run for this long."""
FASTEST, SLOWEST = 0.25, 8.0
"""The limits of the factor by which finished steps scale the estimate of the others."""
OVERRUN = 0.1
"""A step that takes longer than expected is assumed to need this part of its time so far in
addition."""
WRONG = 1.5
"""The total time is announced again when it exceeds the announced one by this factor."""
WEIGHT_S = 15.0
"""The weight of the estimate in `pace`: it counts like finished steps of so many seconds that took
as long as expected."""


class Progress:
    def __init__(self, steps: int, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = terminal.rewrites(self.stream)
        self.screen = terminal.of(self.stream)
        self.steps, self.step_number = steps, 0
        self.title = ""
        self.start = self.began = self.reported = time.monotonic()
        self.expected_s: dict[str, float] = {}
        self.took_s: dict[str, float] = {}
        self.limit_s: float | None = None
        self.announced_s: float | None = None

    def expect(self, seconds: Mapping[str, float], limit_s: float | None = None) -> None:
        """Set the expected seconds of each step, by its title; the first call announces the total.
        `limit_s`: the seconds of --time-limit. May be called again when more is known."""
        self.expected_s, self.limit_s = dict(seconds), limit_s
        if self.announced_s is None:
            self._announce("the whole run takes about")

    def step(self, title: str) -> None:
        """Begin the next step."""
        now = time.monotonic()
        self.took_s[self.title] = now - self.began
        self.step_number += 1
        self.title, self.began = title, now
        if self.announced_s is not None and self.total_s() > WRONG * self.announced_s:
            self._announce("slower than expected: the whole run takes about")
        self._write(f"[{self.step_number}/{self.steps}] {title}{self._clock()}", not self.live)
        self.reported = now

    def __call__(self, done: float, total: float, what: str) -> None:
        """Show how much of the current step, or of a part of it, is done."""
        now = time.monotonic()
        if now - self.reported < (0.2 if self.live else 10.0):
            return
        self.reported = now
        head = f"[{self.step_number}/{self.steps}] {self.title}"
        left_text = ""
        if self.announced_s is None and 0 < done < total and now - self.began > SETTLED_S:
            left_text = f", about {span((now - self.began) * (total - done) / done)} left"
        self._write(f"{head}{self._clock()}: {what}{left_text}", not self.live)

    def total_s(self) -> float:
        """The seconds of the whole run: those that have passed and those that remain."""
        return time.monotonic() - self.start + self.left_s()

    def left_s(self) -> float:
        """The seconds that remain of this step and the later ones."""
        spent_s = time.monotonic() - self.began
        this_step_s = self.pace() * self.expected_s.get(self.title, 0.0)
        begun = {*self.took_s, self.title}
        later_s = sum(s for title, s in self.expected_s.items() if title not in begun)
        remaining_s = max(this_step_s - spent_s, OVERRUN * spent_s) + self.pace() * later_s
        if self.limit_s is not None:
            remaining_s = min(remaining_s, max(0.0, self.limit_s - (time.monotonic() - self.start)))
        return remaining_s

    def pace(self) -> float:
        """How many times as long as expected the steps take: the finished ones, and the current one
        as soon as it is late."""
        took_by_step = {title: s for title, s in self.took_s.items() if title in self.expected_s}
        spent_s = time.monotonic() - self.began
        if spent_s > self.expected_s.get(self.title, spent_s):
            took_by_step[self.title] = spent_s
        expected = sum(self.expected_s[title] for title in took_by_step)
        pace = (sum(took_by_step.values()) + WEIGHT_S) / (expected + WEIGHT_S)
        return min(SLOWEST, max(FASTEST, pace))

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._put(text)

    def warn(self, text: str) -> None:
        self.clear()
        self._put(f"{self.screen.paint('warning:', 'yellow')} {text}")

    def clear(self) -> None:
        if self.live:
            self._put("", over=True)

    def _announce(self, what: str) -> None:
        self.announced_s = self.total_s()
        self.say(f"{what} {span(self.announced_s)}")

    def _clock(self) -> str:
        if self.announced_s is None:
            return ""
        spent_s = time.monotonic() - self.start
        elapsed = f"{spent_s:.0f} s" if spent_s < 90 else f"{spent_s / 60:.0f} min"
        return f" ({elapsed}, about {span(self.left_s())} left)"

    def _write(self, text: str, last: bool) -> None:
        if self.live:
            self._put(text, over=True)
        elif last:
            self._put(text)

    def _put(self, text: str, *, over: bool = False) -> None:
        """Write a new line, or replace the current one (`over`). Where the reader of the stream has
        closed it, the work goes on in silence."""
        try:
            if over:
                terminal.rewrite(self.stream, text)
            else:
                terminal.write(self.stream, [text])
            self.stream.flush()
        except OSError:
            silence(self.stream)


def silence(stream: TextIO) -> None:
    """Redirect a stream whose reader has closed it: at its exit Python would fail to flush it, and
    exit with code 120."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def span(seconds: float) -> str:
    """No more precise than an estimate can be.

    >>> [span(s) for s in (3, 47, 100, 130, 2000, 5500, 9000)]
    ['5 s', '50 s', '1.5 min', '2 min', '33 min', '1.5 h', '2.5 h']
    """
    if seconds < 57.5:
        return f"{max(5, 5 * round(seconds / 5)) if seconds < 30 else 10 * round(seconds / 10)} s"
    if seconds < 300:
        return f"{round(seconds / 30) / 2:g} min"
    if seconds < 3300:
        return f"{round(seconds / 60)} min"
    return f"{round(seconds / 1800) / 2:g} h"
