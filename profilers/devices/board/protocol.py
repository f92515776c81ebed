"""The host's side of the line protocol that a board's firmware speaks: MLPerf Tiny's, and more.

Commands end in `%`, answers are lines, and the last line of each answer is `m-ready`
(mlcommons/tiny, benchmark/api/internally_implemented.cpp). Firmware of onmetal's bundles says
besides what model is compiled in, how long a command may be and what its arena takes, and gives
outputs as they are stored; firmware of others is spoken to without all that.

Serial lines lose and invent characters: what is no line of the protocol is passed over and kept in
`strange`, and an answer that lacks something is asked for once more.
"""

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
"""For an answer that needs no inference."""
HELLO_S = 1.5
HELLOS = 5
"""How often a board is greeted: opening a port restarts some, which hear nothing for a while."""
QUIET_S = 0.1
"""Nothing for this long: what was still on its way has come."""
DATA_BYTES = 31
"""Of data in a command, where the firmware says nothing of it: MLPerf's commands are 80 long."""
WRAP_US = 1 << 32
"""The board's clock counts microseconds in 32 bits."""
LONGEST_LINE = 1 << 20
ANSWER_BYTES, ANSWER_LINES = 32 << 20, 1 << 20
"""Most of one answer: outputs of 16 MB, as two digits a byte; more than a board's memory holds."""
DRAIN_S = 2.0
"""No longer is it waited for silence."""
HEARD_BYTES = 1 << 16
"""Of what a stranger sends, to say what it is."""
NAME_LENGTH = 200
"""Most of a name that firmware tells."""
_PAUSE_S = 0.02

OURS = ("m-sha256-", "m-buffer-", "m-arena-")
"""What firmware of a bundle says besides in its profile: all of it."""
READY, STARTED = "m-ready", "m-init-done"
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_REAL = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,3})?|nan|inf)", re.I)
_NAME = re.compile(r"m-name-\w+-\[(.*)\]")
_KEPT = re.compile(r"(m|e)-\S.*")

T = TypeVar("T")


class Profile(Struct, frozen=True):
    """What firmware says of itself; None: it does not say."""

    name: str
    """Of the board, by its vendor."""
    firmware: str
    model: str
    sha256: str | None = None
    """Of the .tflite file that is compiled in."""
    data_bytes: int = DATA_BYTES
    """Most of data in a command."""
    arena_used: int | None = None
    arena_given: int | None = None


class Laps(Struct, frozen=True):
    """A window of inferences, by the board's clock and by this machine's."""

    count: int
    us: int
    host_s: float
    """Between the arrivals of the begin and of the second time, which enclose the window; less than
    it took where lines are held back on their way."""
    whole_s: float
    """From the command to the end of its answer, warming included."""
    ticks: int | None = None
    """Of a finer clock than `us`, where the firmware has one."""
    ticks_per_s: int | None = None
    results: tuple[float, ...] | None = None


class Answer(Struct, frozen=True):
    """The lines between a command and `m-ready`, and when each came."""

    lines: tuple[str, ...]
    at: tuple[float, ...]
    errors: tuple[str, ...]
    """What the firmware says in `e-[…]`."""
    strange: tuple[str, ...]

    def found(self, pattern: str) -> list[re.Match[str]]:
        return [match for line in self.lines if (match := re.fullmatch(pattern, line))]


class _Garbled(Exception):
    """The answer lacks something that a second one may have."""


class _Silence(DeviceError):
    """Nothing came in time."""


class Tiny:
    """Firmware at the other end of a link. Every wait has an end; errors are DeviceError."""

    def __init__(self, link: Link) -> None:
        """Greets the board and asks for its profile. Raises DeviceError where it is no board, or
        its firmware speaks otherwise."""
        self.link = link
        self.strange: deque[str] = deque(maxlen=50)
        """The last lines that were none of the protocol's, or were left over."""
        self.passed_over = 0
        """How many of these there were in all."""
        self._lines = Lines()
        self._room = ANSWER_BYTES
        """How much more may come until the answer is whole."""
        name = self._greet()
        self.said_first = tuple(self.strange)
        """What came before the board answered: what its firmware says at its start, or the end of
        an answer to somebody else."""
        self.profile = self._profile(name)

    # --- lines

    def _line(self, deadline: float, what: str) -> str:
        while True:
            line, left = self._lines.next(), deadline - time.monotonic()
            if left <= 0:  # also where it keeps sending
                rest = (line or bytes(self._lines.part))[-60:].decode("ascii", "replace").strip()
                came = f"; the last it sent was {rest!r}" if rest else ""
                raise _Silence(
                    f"{self.link.name} did not answer {what} in time{came}: has the firmware "
                    "stopped? Reset the board"
                )
            if line is not None:
                return line.decode("ascii", "replace").strip("\r\0 ")
            piece = self.link.read(left)
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
        """What came without being asked for, until nothing does for the time, or it never stops."""
        pieces = [line + b"\n" for line in self._lines.take()] + [bytes(self._lines.part)]
        left, end = LONGEST_LINE, time.monotonic() + DRAIN_S
        while left > 0 and time.monotonic() < end and (piece := self.link.read(timeout_s)):
            pieces.append(piece)
            left -= len(piece)
        found, self._lines = b"".join(pieces), Lines()
        for line in found.decode("ascii", "replace").splitlines():
            if line.strip("\r\0 ") not in ("", READY, STARTED):
                self._pass_over(line)
        return found

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
        at: list[float] = []
        errors: list[str] = []
        strange: list[str] = []
        while True:
            line = self._line(deadline, what)
            if line.endswith(READY):
                if line != READY:
                    self._pass_over(line)
                return Answer(tuple(lines), tuple(at), tuple(errors), tuple(strange))
            if line.endswith(STARTED):
                raise self._restarted(f"while it was at {what}")
            if line.startswith("e-["):
                errors.append(line.removeprefix("e-[").removesuffix("]"))
            elif _KEPT.fullmatch(line):
                lines.append(line)
                at.append(time.monotonic())
            elif line:
                strange.append(line)
                self._pass_over(line)
            if len(lines) + len(errors) + len(strange) > ANSWER_LINES:
                who = f"{self.link.name}, asked for {what},"
                raise too_much(who, f"{ANSWER_LINES} lines")

    def _restarted(self, when: str) -> DeviceError:
        return DeviceError(
            f"the board at {self.link.name} restarted {when}: a fault of its firmware (is the "
            "stack or the arena too small?), its watchdog, or its power supply"
        )

    def _refused(self, answer: Answer, what: str) -> None:
        if answer.errors:
            raise DeviceError(f"{self.link.name} refuses {what}: {_said(answer.errors)}")

    def _twice(self, what: str, once: Callable[[], T]) -> T:
        try:
            return once()
        except _Garbled:
            self._drain(QUIET_S)
        try:
            return once()
        except _Garbled as error:
            raise DeviceError(
                f"the answer of {self.link.name} to {what} came damaged twice: {error}; check the "
                "cable, or use a lower baud rate (?baud=)"
            ) from None

    # --- what the board is

    def _greet(self) -> str:
        """The board's name, once it answers. It may be starting, or in the middle of a command
        that an earlier program left unfinished: `name` is harmless in all of these."""
        heard = self._drain(QUIET_S)[-HEARD_BYTES:]
        for _ in range(HELLOS):
            self._room = ANSWER_BYTES
            self.link.write(b"name%")
            end = time.monotonic() + HELLO_S
            while time.monotonic() < end:
                try:
                    line = self._line(end, "a greeting")
                except _Silence:
                    break
                heard = (heard + line.encode() + b"\n")[-HEARD_BYTES:]
                if name := _NAME.fullmatch(line):
                    # Answers to the greetings before this one may still come.
                    self._drain(QUIET_S)
                    return name[1][:NAME_LENGTH]
                if line not in (READY, STARTED):
                    self._pass_over(line)
            heard = (heard + self._drain(_PAUSE_S))[-HEARD_BYTES:]
        raise self._stranger(heard)

    def _stranger(self, heard: bytes) -> DeviceError:
        """Why there is no name, by what came instead of it."""
        text = heard.decode("ascii", "replace").replace("\0", "")
        odd = sum(not (c.isprintable() or c.isspace()) or c == "\ufffd" for c in text)
        if not text.strip():
            why = (
                "nothing answers: is the board powered, is this its port, are RX and TX crossed, "
                "and does it run firmware with this protocol?"
            )
        elif odd > len(text) / 10:
            why = "what it sends is not text: probably the baud rate differs; give it with ?baud="
        else:
            last = [line.strip() for line in text.splitlines() if line.strip()][-1]
            why = (
                f"what answers ({last[:80]!r}) speaks another protocol: flash the firmware of a "
                "bundle, or one of MLPerf Tiny"
            )
        return DeviceError(f"{self.link.name}: {why}")

    def _profile(self, name: str) -> Profile:
        def once() -> Profile:
            answer = self.ask("profile")
            said: dict[str, str] = {}
            for match in answer.found(r"m-(\w+)-\[(.*)\]"):
                said.setdefault(match[1], match[2])
            if "profile" not in said or "model" not in said:
                raise _Garbled("its profile or its model is missing")
            digest = said.get("sha256")
            if digest is None and any(line.startswith(OURS) for line in answer.lines):
                raise _Garbled("its digest is missing")
            if digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
                raise _Garbled(f"its digest is {digest[:80]!r}")
            arena = re.fullmatch(r"([0-9]{1,10}) ([0-9]{1,10})", said.get("arena", ""))
            room = said.get("buffer", "")
            return Profile(
                name,
                said["profile"][:NAME_LENGTH],
                said["model"][:NAME_LENGTH],
                digest.lower() if digest else None,
                int(room) if re.fullmatch(r"[1-9]\d{0,6}", room) else DATA_BYTES,
                int(arena[1]) if arena else None,
                int(arena[2]) if arena else None,
            )

        return self._twice("`profile`", once)

    # --- what it does

    def load(self, data: bytes) -> None:
        """All inputs of one inference, one after another. Raises DeviceError where the firmware
        expects another number of bytes."""
        step = self.profile.data_bytes

        def once() -> None:
            begun = self.ask(f"db load {len(data)}")
            if not begun.found(rf"m-\[Expecting {len(data)} bytes\]"):
                said = _said((*begun.errors, *begun.strange))
                if begun.errors or "exceeds" in said:
                    raise DeviceError(
                        f"{self.link.name} does not take the {len(data)} bytes of the model's "
                        f"inputs: {said}; its firmware holds another model, or its buffer is too "
                        "small for this one"
                    )
                raise _Garbled("it does not say what it expects")
            for start in range(0, len(data), step):
                piece = data[start : start + step].hex()
                answer = self.ask(f"db {piece}", what="data")
                if answer.errors:
                    raise _Garbled(f"a piece of data was refused: {_said(answer.errors)}")
                last = start + step >= len(data)
                if bool(answer.found("m-load-done")) != last:
                    raise _Garbled(
                        f"it {'lacks some of' if last else 'has more than'} {len(data)} bytes"
                    )

        self._twice("`db load`", once)

    def infer(self, count: int, warm: int, timeout_s: float) -> Laps:
        """`count` inferences after `warm` untimed ones, on what was loaded."""

        def once() -> Laps:
            began = time.monotonic()
            answer = self.ask(f"infer {count} {warm}", timeout_s)
            whole_s = time.monotonic() - began
            self._refused(answer, f"{count} inferences")
            stamps = [
                (int(match[1]), at)
                for line, at in zip(answer.lines, answer.at, strict=True)
                if (match := re.fullmatch(r"m-lap-us-(\d{1,10})", line))
            ]
            if len(stamps) != 2:
                raise _Garbled(f"it has {len(stamps)} times where there are 2")
            begins = [
                at
                for line, at in zip(answer.lines, answer.at, strict=True)
                if line.startswith("m-infer-start-")
            ]
            ticks = answer.found(r"m-ticks-\[([0-9]{1,18}) ([0-9]{1,12})\]")
            return Laps(
                count,
                (stamps[1][0] - stamps[0][0]) % WRAP_US,
                stamps[1][1] - min([stamps[0][1], *begins]),
                whole_s,
                int(ticks[0][1]) if ticks else None,
                int(ticks[0][2]) if ticks else None,
                _results(answer),
            )

        return self._twice("`infer`", once)

    def infer_untimed(self, count: int, warm: int, timeout_s: float) -> tuple[float, ...] | None:
        """As `infer`, for firmware that pulses a pin for a meter where others print times.
        -> what it prints of the results."""
        answer = self.ask(f"infer {count} {warm}", timeout_s)
        self._refused(answer, f"{count} inferences")
        return _results(answer)

    def results(self) -> tuple[float, ...]:
        """The first output of the last inference as reals, to three decimals."""

        def once() -> tuple[float, ...]:
            answer = self.ask("results")
            self._refused(answer, "`results`")
            found = _results(answer)
            if found is None:
                raise _Garbled("no results are among it")
            return found

        return self._twice("`results`", once)

    def outputs(self, sizes: list[int]) -> list[bytes]:
        """Of the last inference, each output's bytes as the artifact stores them; `sizes`: how
        many of each there are."""

        def once() -> list[bytes]:
            # Twice two digits a byte at 9600 baud, the slowest that boards are driven with.
            answer = self.ask("output", ANSWER_S + sum(sizes) / 200)
            self._refused(answer, "`output`")
            found: dict[int, bytearray] = {}
            for match in answer.found(r"m-output-(\d{1,4})-\[(.*)\]"):
                if not _HEX.fullmatch(match[2]):
                    raise _Garbled(f"output {match[1]} has what are no pairs of hex digits")
                found.setdefault(int(match[1]), bytearray()).extend(bytes.fromhex(match[2]))
            for number, size in enumerate(sizes):
                if len(found.get(number, b"")) != size:
                    raise _Garbled(
                        f"output {number} has {len(found.get(number, b''))} bytes instead of {size}"
                    )
            return [bytes(found[number]) for number in range(len(sizes))]

        return self._twice("`output`", once)

    def check(self, timeout_s: float) -> tuple[int, int]:
        """The golden vectors that are compiled in, run on the board. -> passed, of how many."""

        def once() -> tuple[int, int]:
            answer = self.ask("check", timeout_s)
            self._refused(answer, "`check`")
            found = answer.found(r"m-check-\[([0-9]{1,6}) of ([0-9]{1,6})\]")
            if not found:
                raise _Garbled("what passed is not among it")
            passed, of = int(found[0][1]), int(found[0][2])
            if passed > of:
                raise _Garbled(f"{passed} of {of} passed")
            return passed, of

        return self._twice("`check`", once)

    def close(self) -> None:
        self.link.close()


def _results(answer: Answer) -> tuple[float, ...] | None:
    found = answer.found(r"m-results-\[(.*)\]")
    words = [word.strip() for word in found[-1][1].split(",")] if found else []
    words = [word for word in words if word]
    if not found or not all(map(_REAL.fullmatch, words)):
        return None
    return tuple(map(float, words))


def _said(lines: Sequence[str]) -> str:
    """What firmware said, for an error."""
    return "; ".join(line[:QUOTED] for line in lines[:5])
