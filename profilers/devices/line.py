"""A process that is asked by lines of text and answers by lines of JSON: a worker on this machine,
or one on a device at the other end of adb or ssh.

An answer is {"result": …}, or {"error": name of an exception, "message": …}; before it there may be
any number of {"progress": [done, total]}. Where the caller states the type of the result, the
answer is read as that type and nothing else; only onmetal's own workers are asked without a type.
"""

import contextlib
import json
import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from onmetal.errors import BY_NAME, DeviceError
from onmetal.files.reading import decode
from onmetal.profilers.output import (
    LINE_BYTES,
    PIECE_BYTES,
    Lines,
    Tail,
    megabytes,
    quoted,
    too_much,
)
from onmetal.progress import OnCount

T = TypeVar("T")

CHATTER_BYTES, CHATTER_LINES = 2 * LINE_BYTES, 100_000
"""Most bytes and lines that may come until an answer is complete: the answer, what a shell prints,
and a line of progress every half second."""
DYING_S = 1.0
"""How long to wait for the end of a process whose answer is damaged, which may have died."""
MESSAGE = 2000
"""Most characters of a device's error: native/runner.c has as many."""


class _Ended(Exception):
    """The process closed its output."""


Progress = Annotated[int, Meta(ge=0, le=1 << 50)]


class Envelope(Struct, frozen=True):
    """A line of JSON from a device, its result not yet read."""

    result: msgspec.Raw = msgspec.Raw()
    error: str | None = None
    message: str = ""
    progress: tuple[Progress, Progress] | None = None


class Line:
    """One such process. The end of its standard error is kept, and quoted where it dies."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str] | None, who: str) -> None:
        """`environment`: None is this process's own. `who`: its name in errors."""
        self.who = who
        # A session of its own: ^C at the terminal is for the parent, which ends its children.
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stderr
        os.set_blocking(self._process.stdin.fileno(), False)
        self._log = Tail(self._process.stderr)
        self._lines = Lines()
        self._room, self._passed = CHATTER_BYTES, 0
        self._late = False
        self.closed = False

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(
        self,
        request: bytes,
        what: str,
        *,
        timeout_s: float,
        progress: OnCount | None = None,
        silence_s: float | None = None,
        kind: Any = None,
    ) -> Any:
        """Send a line and wait for its answer; `what` names it in errors, `kind` is the type of
        its result.

        Raises the error that was answered; DeviceError where the process died, sent what is no
        answer, took longer than `timeout_s`, or reported no progress for `silence_s`. The process
        has ended then.
        """
        if self.closed:
            raise DeviceError(f"{self.who} was ended before it was asked for {what}")
        deadline = time.monotonic() + timeout_s
        self._room, self._passed = CHATTER_BYTES, 0
        self._send(request + b"\n", deadline, what)
        while True:
            silent = math.inf if silence_s is None else time.monotonic() + silence_s
            line = self._object(min(deadline, silent), what)
            try:
                reply = _local_answer(line) if kind is None else decode(line, Envelope)
                if reply.error is None and reply.progress is None:
                    return reply.result if kind is None else decode(reply.result, kind)
            except ValueError as error:
                raise self._damaged_answer_error(what, str(error)) from None
            if reply.error is not None:
                message = reply.message if kind is None else reply.message[:MESSAGE]
                raise BY_NAME.get(reply.error, DeviceError)(message)
            if progress and reply.progress:
                progress(*reply.progress)

    def answer(self, timeout_s: float, what: str, kind: type[T]) -> T:
        """The next line of JSON, of this type; it was not asked for."""
        self._room, self._passed = CHATTER_BYTES, 0
        line = self._object(time.monotonic() + timeout_s, what)
        try:
            return decode(line, kind)
        except ValueError as error:
            raise self._damaged_answer_error(what, str(error)) from None

    def overheard(self, line: bytes) -> None:
        """Called with each line that is no answer."""

    def _object(self, deadline: float, what: str) -> bytes:
        """The next line that is an object of JSON, or begins as one; others, which a shell or a
        linker may print, are passed."""
        while True:
            try:
                line = self._line(deadline, what)
            except _Ended:
                raise self.death() from None
            self._passed += 1
            if self._passed > CHATTER_LINES:
                self.close()
                raise too_much(f"{self.who}, asked for {what},", f"{CHATTER_LINES} lines")
            if line.startswith(b'{"'):
                return line
            self.overheard(line)

    def _damaged_answer_error(self, what: str, why: str) -> DeviceError:
        """The error for a damaged answer: where the process died meanwhile, that of its death."""
        if self.drain(DYING_S):
            return self.death()
        self.close()
        return DeviceError(f"{self.who} answered {what} with {why}, and was ended")

    def _send(self, request: bytes, deadline: float, what: str) -> None:
        """Write in pieces: a pipe holds 64 KiB, and a process that hangs does not empty it."""
        assert self._process.stdin
        descriptor = self._process.stdin.fileno()
        unsent = memoryview(request)
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_WRITE)
            while unsent:
                self._wait(selector, deadline, what)
                try:
                    unsent = unsent[os.write(descriptor, unsent) :]
                except BrokenPipeError:
                    raise self.death() from None

    def _wait(self, selector: selectors.BaseSelector, deadline: float, what: str) -> None:
        """Wait until the pipe is ready. Checked once after the deadline too, since a busy machine
        may be late to see what came in time."""
        ready = selector.select(max(0.0, deadline - time.monotonic()))
        late, self._late = self._late, time.monotonic() > deadline
        if not ready or (late and self._late):
            self.close()
            raise DeviceError(f"{self.who} did not finish {what} in time and was ended")

    def _line(self, deadline: float, what: str) -> bytes:
        assert self._process.stdout
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while (line := self._lines.next()) is None:
                self._wait(selector, deadline, what)
                piece = os.read(descriptor, PIECE_BYTES)
                if not piece:
                    raise _Ended
                self._room -= len(piece)
                self._lines.add(piece)
                if self._room < 0 or len(self._lines.part) > LINE_BYTES:
                    self.close()
                    limit = CHATTER_BYTES if self._room < 0 else LINE_BYTES
                    raise too_much(f"{self.who}, asked for {what},", megabytes(limit))
        return line

    def drain(self, timeout_s: float) -> bool:
        """Pass the remaining lines of a process that ended to `overheard`, of CHATTER_BYTES at
        most. -> whether the end of its output was reached."""
        assert self._process.stdout
        descriptor, end = self._process.stdout.fileno(), time.monotonic() + timeout_s
        room = CHATTER_BYTES
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while room > 0 and selector.select(max(0.0, end - time.monotonic())):
                piece = os.read(descriptor, PIECE_BYTES)
                if not piece:
                    return True
                room -= len(piece)
                self._lines.add(piece)
                for line in self._lines.take():
                    self.overheard(line)
                if time.monotonic() > end:
                    break
        return False

    def death(self) -> DeviceError:
        """The error that says why the process is gone."""
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.close()
            return DeviceError(f"{self.who} closed its output, went on, and was ended")
        why = f"ended with code {code}"
        if code < 0:
            why = f"was ended by {_signal(-code)}"
            if -code == signal.SIGKILL:
                why += " (out of memory?)"
        said = self.said()
        return DeviceError(f"{self.who} {why}" + (f": {said}" if said else ""))

    def said(self) -> str:
        """The last lines that it printed to standard error."""
        return quoted(self._log.text(1)[-2000:], 3)

    def hang_up(self, grace_s: float) -> None:
        """Close its standard input and wait for it to end by itself; then it is killed."""
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)

    def kill(self) -> None:
        """End the process, from any thread; a thread that waits for its answer gets the error."""
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.closed = True
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._log.close()


class _LocalAnswer(Struct, frozen=True):
    """An answer of a worker on this machine. `result`: any JSON."""

    result: Any = None
    error: str | None = None
    message: str = ""
    progress: tuple[int, int] | None = None


def _local_answer(line: bytes) -> _LocalAnswer:
    """An answer, read by Python's own reader of JSON: results of workers on this machine may be
    NaN, which is not in JSON. Raises ValueError as `decode`."""
    try:
        reply = json.loads(line.decode(errors="replace"))
        if not reply.keys() & {"result", "error", "progress"}:
            raise ValueError("it is no answer")
        fields = {name: value for name, value in reply.items() if name != "result"}
        return msgspec.structs.replace(
            msgspec.convert(fields, _LocalAnswer), result=reply.get("result")
        )
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    except (msgspec.ValidationError, ValueError) as error:
        raise ValueError(f"JSON of another form ({error})") from None


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
