"""A process that is asked by lines of text and answers by lines of JSON: a worker on this machine,
or one on a device at the other end of adb or ssh.

An answer is {"result": …}, or {"error": name of an exception, "message": …}; before it there may be
any number of {"progress": [done, total]}.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from onmetal.errors import BY_NAME, DeviceError

Told = Callable[[int, int], None]


class _Ended(Exception):
    """The process closed its output."""


class Line:
    """What the process prints to standard error goes to a log of its own, quoted where it dies."""

    def __init__(self, argv: Sequence[str], environment: dict[str, str] | None, who: str) -> None:
        """`environment`: None is this process's own. `who`: its name in errors."""
        self.who = who
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the line
        # A session of its own: ^C at the terminal is for the parent, which ends its children.
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)
        self._buffer = b""

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def closed(self) -> bool:
        return self._log.closed

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ask(
        self, request: bytes, what: str, *, timeout_s: float, progress: Told | None = None
    ) -> Any:
        """Send a line and wait for its answer; `what` names it in errors.

        Raises the error that was answered; DeviceError where the process died or took longer than
        `timeout_s`, after which it is gone.
        """
        if self.closed:
            raise DeviceError(f"{self.who} was ended before it was asked for {what}")
        deadline = time.monotonic() + timeout_s
        self._send(request + b"\n", deadline, what)
        while True:
            answer = self.answer(deadline - time.monotonic(), what)
            if "progress" in answer:
                if progress:
                    progress(*answer["progress"])
                continue
            if "error" in answer:
                raise BY_NAME.get(answer["error"], DeviceError)(answer["message"])
            return answer["result"]

    def answer(self, timeout_s: float, what: str) -> dict[str, Any]:
        """The next line of JSON; other lines, which a shell or a linker may print, are passed."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._line(deadline, what)
            except _Ended:
                raise self.death() from None
            with contextlib.suppress(ValueError):
                found = json.loads(line.decode(errors="replace"))
                if isinstance(found, dict):
                    return found
            self.overheard(line)

    def overheard(self, line: bytes) -> None:
        """A line that is no answer."""

    def _send(self, request: bytes, deadline: float, what: str) -> None:
        """In pieces: a pipe holds 64 KiB, and a process that hangs does not empty it."""
        assert self._process.stdin
        descriptor = self._process.stdin.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_WRITE)
            while request:
                self._wait(selector, deadline, what)
                try:
                    request = request[os.write(descriptor, request) :]
                except BrokenPipeError:
                    raise self.death() from None

    def _wait(self, selector: selectors.BaseSelector, deadline: float, what: str) -> None:
        if not selector.select(max(0.0, deadline - time.monotonic())):
            self.close()
            raise DeviceError(f"{self.who} did not finish {what} in time and was ended")

    def _line(self, deadline: float, what: str) -> bytes:
        assert self._process.stdout
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                self._wait(selector, deadline, what)
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    raise _Ended
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def drain(self, timeout_s: float) -> None:
        """Read what is left of a process that ended, to `overheard`."""
        assert self._process.stdout
        descriptor, end = self._process.stdout.fileno(), time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while selector.select(max(0.0, end - time.monotonic())):
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    break
                self._buffer += piece
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self.overheard(line)

    def death(self) -> DeviceError:
        """Why the process is gone."""
        code = self._process.wait(10)
        why = f"ended with code {code}"
        if code < 0:
            why = f"was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                why += " (out of memory?)"
        said = self.said()
        return DeviceError(f"{self.who} {why}" + (f": {said}" if said else ""))

    def said(self) -> str:
        """The last that it printed to standard error."""
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2000))
        return " / ".join(self._log.read().decode(errors="replace").strip().splitlines()[-3:])

    def hang_up(self, grace_s: float) -> None:
        """Close its standard input and wait for it to end by itself; then it is killed."""
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)

    def kill(self) -> None:
        """End the process, from any thread: who waits for its answer gets the error."""
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._log.close()
