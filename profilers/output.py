"""The output of processes and devices, read with a limit in bytes and a limit in time.

The other end may send without end, so both limits are checked at every piece that comes, not only
while nothing comes.
"""

import contextlib
import functools
import os
import resource
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO

from msgspec import Struct

from onmetal.errors import DeviceError

PIECE_BYTES = 1 << 20
LINE_BYTES = 64 << 20
"""Most of one line. The longest honest one is a round's latencies, 11 bytes of base64 for each: six
million of them in the second that the longest round takes, of 160 ns each, which is less than
calling any runtime takes."""
OUTPUT_BYTES = 8 << 20
"""Most that one command may print. The longest honest one is facts.script: 400 kB on a
server with 256 CPUs, of which /proc/cpuinfo is most, and 100 kB on a phone."""
TAIL_BYTES = 1 << 16
"""How much is kept of what a process prints to standard error; errors quote its last lines."""
QUOTED = 300
"""Most characters of a line that an error quotes."""


class Lines:
    """Bytes as they come -> whole lines, without their ends."""

    def __init__(self) -> None:
        self.part = bytearray()
        """The beginning of a line whose end has not come yet."""
        self._whole: deque[bytes] = deque()

    def add(self, piece: bytes) -> None:
        first, *more = piece.split(b"\n")
        self.part += first
        if more:
            self._whole.append(bytes(self.part))
            self._whole.extend(more[:-1])
            self.part = bytearray(more[-1])

    def next(self) -> bytes | None:
        return self._whole.popleft() if self._whole else None

    def take(self) -> list[bytes]:
        """All complete lines."""
        lines = [*self._whole]
        self._whole.clear()
        return lines


class Tail:
    """Reads a pipe to its end in a thread, so that its writer never waits, and keeps its end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._kept = stream, b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._stream:
            while piece := os.read(self._stream.fileno(), TAIL_BYTES):
                self._kept = (self._kept + piece)[-TAIL_BYTES:]

    def text(self, wait_s: float) -> str:
        """What was kept, once the writer is gone, or after `wait_s`."""
        self._reader.join(wait_s)
        return self._kept.decode(errors="replace")

    def close(self) -> None:
        """Call it once the writer is gone. A process that the writer left behind may hold the pipe
        open; the thread ends with that process."""
        self._reader.join(1)


def quoted(text: str, count: int) -> str:
    """The last lines of what was printed, for an error: " / " between them, and none is long."""
    lines = [line.strip() for line in text[-TAIL_BYTES:].splitlines()]
    return " / ".join(_short(line) for line in [line for line in lines if line][-count:])


def _short(line: str) -> str:
    """A long line without its middle: the reason stands at either end of it."""
    half = QUOTED // 2
    return line if len(line) <= QUOTED else f"{line[:half]} … {line[-half:]}"


class Done(Struct, frozen=True):
    """A process that ended, and what it printed."""

    code: int
    out: bytes
    err: bytes


def collect(
    argv: Sequence[str],
    timeout_s: float,
    who: str,
    *,
    given: int = subprocess.DEVNULL,
    taken: IO[bytes] | None = None,
    most_bytes: int = OUTPUT_BYTES,
    file_bytes: int | None = None,
) -> Done:
    """Run a process to its end; `who` names it in errors.

    `given`: its standard input. `taken`: a file for what it prints to standard output, of which
    `most_bytes` may come. `file_bytes`: no file that it writes itself may become larger.
    Raises DeviceError where it takes longer or prints more, after which it is gone, and OSError
    where it cannot be started.
    """
    end = time.monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            argv,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # it is ended together with what it started
            preexec_fn=_with_files_of(file_bytes),
        )
    except ValueError as error:  # an argument that no program can have, as one with a NUL byte
        raise DeviceError(f"{who} cannot be run: {error}") from None
    pieces: dict[str, list[bytes]] = {"out": [], "err": []}

    def keep(name: str, piece: bytes) -> None:
        if taken is not None and name == "out":
            taken.write(piece)
        else:
            pieces[name].append(piece)

    try:
        _read(process, end, timeout_s, who, most_bytes, keep)
        code = process.wait(max(0.1, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{who} did not answer within {timeout_s:.0f} s") from None
    finally:
        _end(process)
    return Done(code, b"".join(pieces["out"]), b"".join(pieces["err"]))


def _read(
    process: subprocess.Popen[bytes],
    end: float,
    timeout_s: float,
    who: str,
    most_bytes: int,
    keep: Callable[[str, bytes], None],
) -> None:
    assert process.stdout and process.stderr
    budgets = {"out": most_bytes, "err": OUTPUT_BYTES}
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "out")
        selector.register(process.stderr, selectors.EVENT_READ, "err")
        while selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(process.args, timeout_s)
            for key, _ in ready:
                piece = os.read(key.fd, PIECE_BYTES)
                if not piece:
                    selector.unregister(key.fileobj)
                    continue
                budgets[key.data] -= len(piece)
                if budgets[key.data] < 0:
                    most = most_bytes if key.data == "out" else OUTPUT_BYTES
                    raise too_much(who, megabytes(most))
                keep(key.data, piece)


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def too_much(who: str, most: str) -> DeviceError:
    return DeviceError(
        f"{who} sent more than {most}, more than any answer has: the program there is broken, or "
        "is not the one that was expected"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process's group, unless the process ended by itself: adb leaves its server in it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        assert stream
        stream.close()


def _with_files_of(most_bytes: int | None) -> Callable[[], None] | None:
    """The function that a child calls before it becomes the program, so that the kernel refuses it
    files larger than `most_bytes`; None: there is no limit."""
    if most_bytes is None:
        return None
    limit = (most_bytes, most_bytes)
    return functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
