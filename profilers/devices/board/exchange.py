"""Commands to a board's firmware and its answers, over a line that loses and invents characters."""

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from msgspec import Struct

from onmetal.errors import DeviceError
from onmetal.profilers.devices.board.link import Link
from onmetal.profilers.output import QUOTED, Lines, megabytes, too_much

ANSWER_S = 5.0
"""Time limit of an answer that needs no inference."""
QUIET_S = 0.1
"""Where nothing comes for this long, no answer is taken to be on its way."""
LONGEST_LINE = 1 << 20
ANSWER_BYTES, ANSWER_LINES = 32 << 20, 1 << 20
"""Most of one answer: outputs of 16 MB, as two digits a byte; more than a board's memory holds."""
DRAIN_S = 2.0
"""Longest wait for a board to be silent."""
READY, STARTED = "m-ready", "m-init-done"
_KEPT = re.compile(r"(m|e)-\S.*")
T = TypeVar("T")


class Answer(Struct, frozen=True):
    """The lines between a command and `m-ready`, and when each came."""

    lines: tuple[str, ...]
    at: tuple[float, ...]
    errors: tuple[str, ...]
    """The texts of lines `e-[…]`."""
    strange: tuple[str, ...]

    def matching(self, pattern: str) -> list[re.Match[str]]:
        return [match for line in self.lines if (match := re.fullmatch(pattern, line))]


class Garbled(Exception):
    """The answer lacks something that the answer to a second request may have."""


class Silence(DeviceError):
    """Nothing came in time."""


def quote_lines(lines: Sequence[str]) -> str:
    """Lines of the firmware, for an error."""
    return "; ".join(line[:QUOTED] for line in lines[:5])


class Exchange:
    """Firmware at the other end of a link, which is asked one command at a time. Every wait has an
    end; errors are DeviceError."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.strange: deque[str] = deque(maxlen=50)
        """The last lines that are not the protocol's, or were left over from an earlier answer."""
        self.passed_over = 0
        """How many of these there were in all."""
        self._lines = Lines()
        self._room = ANSWER_BYTES
        """How many more bytes the answer may have."""

    def _line(self, deadline: float, what: str) -> str:
        """The next line. Raises Silence where none is there by the deadline."""
        while True:
            line, remaining = self._lines.next(), deadline - time.monotonic()
            if remaining <= 0:  # also where the board keeps sending
                last_sent = (
                    (line or bytes(self._lines.part))[-60:].decode("ascii", "replace").strip()
                )
                ending = f"; the last it sent was {last_sent!r}" if last_sent else ""
                raise Silence(
                    f"{self.link.name} did not answer {what} in time{ending}: has the firmware "
                    "stopped? Reset the board"
                )
            if line is not None:
                return line.decode("ascii", "replace").strip("\r\0 ")
            piece = self.link.read(remaining)
            self._room -= len(piece)
            if self._room < 0:
                raise too_much(f"{self.link.name}, asked for {what},", megabytes(ANSWER_BYTES))
            self._lines.add(piece)
            if len(self._lines.part) > LONGEST_LINE:
                self._pass_over(f"{len(self._lines.part)} bytes without an end")
                self._lines.part.clear()

    def _pass_over(self, line: str) -> None:
        self.passed_over += 1
        self.strange.append(line[:200])

    def _drain(self, timeout_s: float = 0.0) -> bytes:
        """Read what nobody asked for, until nothing comes for `timeout_s`, DRAIN_S at most."""
        pieces = [line + b"\n" for line in self._lines.take()] + [bytes(self._lines.part)]
        remaining, end = LONGEST_LINE, time.monotonic() + DRAIN_S
        while remaining > 0 and time.monotonic() < end and (piece := self.link.read(timeout_s)):
            pieces.append(piece)
            remaining -= len(piece)
        received, self._lines = b"".join(pieces), Lines()
        for line in received.decode("ascii", "replace").splitlines():
            if line.strip("\r\0 ") not in ("", READY, STARTED):
                self._pass_over(line)
        return received

    def ask(self, command: str, timeout_s: float = ANSWER_S, what: str = "") -> Answer:
        """Send a command and read its whole answer; `what` names it in errors.

        Raises DeviceError where the board restarts meanwhile, or `m-ready` does not come in time.
        """
        what = what or f"`{command}`"
        if STARTED.encode() in self._drain():
            raise self._restarted(f"before {what}")
        deadline, self._room = time.monotonic() + timeout_s, ANSWER_BYTES
        self.link.write(f"{command}%".encode())
        lines: list[str] = []
        times: list[float] = []
        errors: list[str] = []
        strange: list[str] = []
        while True:
            line = self._line(deadline, what)
            if line.endswith(READY):
                if line != READY:
                    self._pass_over(line)
                return Answer(tuple(lines), tuple(times), tuple(errors), tuple(strange))
            if line.endswith(STARTED):
                raise self._restarted(f"while it was at {what}")
            if line.startswith("e-["):
                errors.append(line.removeprefix("e-[").removesuffix("]"))
            elif _KEPT.fullmatch(line):
                lines.append(line)
                times.append(time.monotonic())
            elif line:
                strange.append(line)
                self._pass_over(line)
            if len(lines) + len(errors) + len(strange) > ANSWER_LINES:
                sender = f"{self.link.name}, asked for {what},"
                raise too_much(sender, f"{ANSWER_LINES} lines")

    def _restarted(self, when: str) -> DeviceError:
        return DeviceError(
            f"the board at {self.link.name} restarted {when}: a fault of its firmware (is the "
            "stack or the arena too small?), its watchdog, or its power supply"
        )

    def _refused(self, answer: Answer, what: str) -> None:
        if answer.errors:
            raise DeviceError(f"{self.link.name} refuses {what}: {quote_lines(answer.errors)}")

    def _ask_twice(self, what: str, once: Callable[[], T]) -> T:
        """The result of `once`, which is called again where the answer is garbled."""
        try:
            return once()
        except Garbled:
            self._drain(QUIET_S)
        try:
            return once()
        except Garbled as error:
            raise DeviceError(
                f"the answer of {self.link.name} to {what} came damaged twice: {error}; check the "
                "cable, or use a lower baud rate (?baud=)"
            ) from None
