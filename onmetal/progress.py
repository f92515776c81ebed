"""What is being done and what remains, on standard error.

A terminal gets one line that is rewritten; a file or a pipe gets a line a step and one every ten
seconds within it. No colour anywhere.
"""

import contextlib
import os
import shutil
import sys
import time
from typing import TextIO


class Progress:
    def __init__(self, steps: int, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.steps, self.step_number = steps, 0
        self.title = ""
        self.began = self.told = time.monotonic()

    def step(self, title: str) -> None:
        """The next of the steps begins."""
        self.step_number += 1
        self.title, self.began = title, time.monotonic()
        self._write(f"[{self.step_number}/{self.steps}] {title}", last=not self.live)
        self.told = time.monotonic()

    def __call__(self, done: float, total: float, what: str) -> None:
        """Within a step: how much of it is done."""
        now = time.monotonic()
        if now - self.told < (0.2 if self.live else 10.0):
            return
        self.told = now
        left = ""
        if done > 0 and total > done and now - self.began > 2:
            left = f", about {_span((now - self.began) * (total - done) / done)} left"
        self._write(f"[{self.step_number}/{self.steps}] {self.title}: {what}{left}", not self.live)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        self._put(f"{text}\n")

    def clear(self) -> None:
        if self.live:
            self._put("\r\x1b[K")

    def _write(self, text: str, last: bool) -> None:
        if self.live:
            text = text[: shutil.get_terminal_size().columns - 1]
            self._put(f"\r\x1b[K{text}")
        elif last:
            self._put(f"{text}\n")

    def _put(self, text: str) -> None:
        """A reader of progress that went away must not end the work."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            silence(self.stream)


def silence(stream: TextIO) -> None:
    """For a stream whose reader went away: Python would write what is left of it when it ends, and
    exit with 120 because it cannot."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
