"""The host's side of the line protocol that a board's firmware speaks: MLPerf Tiny's, and more.

Commands end in `%`, answers are lines, and the last line of each answer is `m-ready`
(mlcommons/tiny, benchmark/api/internally_implemented.cpp). Firmware of onmetal's bundles
also states which model is compiled in, how long a command may be and how much of its arena is used,
and prints outputs as they are stored; other firmware is used without all that.

Serial lines lose and invent characters: what is no line of the protocol is passed over and kept in
`strange`, and an answer that lacks something is asked for once more.
"""

import re
import time

from msgspec import Struct

from onmetal.errors import DeviceError
from onmetal.profilers.devices.board.exchange import (
    ANSWER_BYTES,
    ANSWER_S,
    QUIET_S,
    READY,
    STARTED,
    Answer,
    Exchange,
    Garbled,
    Silence,
    quote_lines,
)
from onmetal.profilers.devices.board.link import Link

HELLO_S = 1.5
HELLOS = 5
"""How often a board is greeted: opening a port restarts some, which hear nothing for a while."""
DATA_BYTES = 31
"""Bytes of data in a command, unless the firmware states more: MLPerf's commands are 80 characters
long."""
WRAP_US = 1 << 32
"""The board's clock counts microseconds in 32 bits."""
HEARD_BYTES = 1 << 16
"""How many bytes from an unknown sender are kept, to say what it is."""
NAME_LENGTH = 200
"""Most characters of a name that firmware states."""
_PAUSE_S = 0.02

OURS = ("m-sha256-", "m-buffer-", "m-arena-")
"""Lines that firmware of a bundle, and no other, has in its profile: all of them."""
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_REAL = re.compile(r"[+-]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][+-]?[0-9]{1,3})?|nan|inf)", re.I)
_NAME = re.compile(r"m-name-\w+-\[(.*)\]")


class Profile(Struct, frozen=True):
    """The firmware's description of itself; None: the firmware does not state it."""

    name: str
    """The board's name, by its vendor."""
    firmware: str
    model: str
    sha256: str | None = None
    """The digest of the .tflite file that is compiled in."""
    data_bytes: int = DATA_BYTES
    """Most bytes of data in a command."""
    arena_used: int | None = None
    arena_given: int | None = None


class Laps(Struct, frozen=True):
    """A window of inferences, by the board's clock and by this machine's."""

    count: int
    us: int
    host_s: float
    """Time between the arrivals of the begin and of the second time stamp, which enclose the
    window; shorter than the window where lines are delayed on their way."""
    whole_s: float
    """Time from the command to the end of its answer, untimed inferences included."""
    ticks: int | None = None
    """The window in ticks of a finer clock than `us`, where the firmware has one."""
    ticks_per_s: int | None = None
    results: tuple[float, ...] | None = None


class Tiny(Exchange):
    """The commands of MLPerf Tiny, and those of firmware of onmetal's bundles."""

    def __init__(self, link: Link) -> None:
        """Greets the board and asks for its profile. Raises DeviceError where it is no board, or
        its firmware speaks otherwise."""
        super().__init__(link)
        name = self._greet()
        self.said_first = tuple(self.strange)
        """The lines before the board answered: what its firmware prints at its start, or the end of
        an answer to another program."""
        self.profile = self._profile(name)

    def _greet(self) -> str:
        """The board's name, once it answers. It may be starting, or in the middle of a command
        that an earlier program left unfinished: `name` is harmless in all of these."""
        received = self._drain(QUIET_S)[-HEARD_BYTES:]
        for _ in range(HELLOS):
            self._room = ANSWER_BYTES
            self.link.write(b"name%")
            end = time.monotonic() + HELLO_S
            while time.monotonic() < end:
                try:
                    line = self._line(end, "a greeting")
                except Silence:
                    break
                received = (received + line.encode() + b"\n")[-HEARD_BYTES:]
                if name := _NAME.fullmatch(line):
                    # Answers to the greetings before this one may still come.
                    self._drain(QUIET_S)
                    return name[1][:NAME_LENGTH]
                if line not in (READY, STARTED):
                    self._pass_over(line)
            received = (received + self._drain(_PAUSE_S))[-HEARD_BYTES:]
        raise self._unknown_sender_error(received)

    def _unknown_sender_error(self, received: bytes) -> DeviceError:
        """The error where no name came, by what came instead of it."""
        text = received.decode("ascii", "replace").replace("\0", "")
        unprintable = sum(not (c.isprintable() or c.isspace()) or c == "\ufffd" for c in text)
        if not text.strip():
            why = (
                "nothing answers: is the board powered, is this its port, are RX and TX crossed, "
                "and does it run firmware with this protocol?"
            )
        elif unprintable > len(text) / 10:
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
            fields: dict[str, str] = {}
            for match in answer.matching(r"m-(\w+)-\[(.*)\]"):
                fields.setdefault(match[1], match[2])
            if "profile" not in fields or "model" not in fields:
                raise Garbled("its profile or its model is missing")
            digest = fields.get("sha256")
            if digest is None and any(line.startswith(OURS) for line in answer.lines):
                raise Garbled("its digest is missing")
            if digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
                raise Garbled(f"its digest is {digest[:80]!r}")
            arena = re.fullmatch(r"([0-9]{1,10}) ([0-9]{1,10})", fields.get("arena", ""))
            room = fields.get("buffer", "")
            return Profile(
                name,
                fields["profile"][:NAME_LENGTH],
                fields["model"][:NAME_LENGTH],
                digest.lower() if digest else None,
                int(room) if re.fullmatch(r"[1-9]\d{0,6}", room) else DATA_BYTES,
                int(arena[1]) if arena else None,
                int(arena[2]) if arena else None,
            )

        return self._ask_twice("`profile`", once)

    def load(self, data: bytes) -> None:
        """All inputs of one inference, one after another. Raises DeviceError where the firmware
        expects another number of bytes."""
        step = self.profile.data_bytes

        def once() -> None:
            start_answer = self.ask(f"db load {len(data)}")
            if not start_answer.matching(rf"m-\[Expecting {len(data)} bytes\]"):
                reply = quote_lines((*start_answer.errors, *start_answer.strange))
                if start_answer.errors or "exceeds" in reply:
                    raise DeviceError(
                        f"{self.link.name} does not take the {len(data)} bytes of the model's "
                        f"inputs: {reply}; its firmware holds another model, or its buffer is too "
                        "small for this one"
                    )
                raise Garbled("it does not say what it expects")
            for start in range(0, len(data), step):
                piece = data[start : start + step].hex()
                answer = self.ask(f"db {piece}", what="data")
                if answer.errors:
                    raise Garbled(f"a piece of data was refused: {quote_lines(answer.errors)}")
                last = start + step >= len(data)
                if bool(answer.matching("m-load-done")) != last:
                    raise Garbled(
                        f"it {'lacks some of' if last else 'has more than'} {len(data)} bytes"
                    )

        self._ask_twice("`db load`", once)

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
                raise Garbled(f"it has {len(stamps)} times where there are 2")
            begins = [
                at
                for line, at in zip(answer.lines, answer.at, strict=True)
                if line.startswith("m-infer-start-")
            ]
            ticks = answer.matching(r"m-ticks-\[([0-9]{1,18}) ([0-9]{1,12})\]")
            return Laps(
                count,
                (stamps[1][0] - stamps[0][0]) % WRAP_US,
                stamps[1][1] - min([stamps[0][1], *begins]),
                whole_s,
                int(ticks[0][1]) if ticks else None,
                int(ticks[0][2]) if ticks else None,
                _results(answer),
            )

        return self._ask_twice("`infer`", once)

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
            results = _results(answer)
            if results is None:
                raise Garbled("no results are among it")
            return results

        return self._ask_twice("`results`", once)

    def outputs(self, sizes: list[int]) -> list[bytes]:
        """Each output's bytes of the last inference, as the artifact stores them. `sizes`: bytes of
        each output."""

        def once() -> list[bytes]:
            # Twice the time of two digits a byte at 9600 baud, the slowest rate of boards.
            answer = self.ask("output", ANSWER_S + sum(sizes) / 200)
            self._refused(answer, "`output`")
            parts: dict[int, bytearray] = {}
            for match in answer.matching(r"m-output-(\d{1,4})-\[(.*)\]"):
                if not _HEX.fullmatch(match[2]):
                    raise Garbled(f"output {match[1]} has what are no pairs of hex digits")
                parts.setdefault(int(match[1]), bytearray()).extend(bytes.fromhex(match[2]))
            for number, size in enumerate(sizes):
                if len(parts.get(number, b"")) != size:
                    raise Garbled(
                        f"output {number} has {len(parts.get(number, b''))} bytes instead of {size}"
                    )
            return [bytes(parts[number]) for number in range(len(sizes))]

        return self._ask_twice("`output`", once)

    def check(self, timeout_s: float) -> tuple[int, int]:
        """The golden vectors that are compiled in, run on the board. -> passed, of how many."""

        def once() -> tuple[int, int]:
            answer = self.ask("check", timeout_s)
            self._refused(answer, "`check`")
            counts = answer.matching(r"m-check-\[([0-9]{1,6}) of ([0-9]{1,6})\]")
            if not counts:
                raise Garbled("what passed is not among it")
            passed, total = int(counts[0][1]), int(counts[0][2])
            if passed > total:
                raise Garbled(f"{passed} of {total} passed")
            return passed, total

        return self._ask_twice("`check`", once)

    def close(self) -> None:
        self.link.close()


def _results(answer: Answer) -> tuple[float, ...] | None:
    listed = answer.matching(r"m-results-\[(.*)\]")
    words = [word.strip() for word in listed[-1][1].split(",")] if listed else []
    words = [word for word in words if word]
    if not listed or not all(map(_REAL.fullmatch, words)):
        return None
    return tuple(map(float, words))
