"""A user's linked image under qemu-system-arm: a board that is emulated, spoken to over a socket.

It computes what a board computes, to the bit. Its time is not a board's: with `-icount shift=0` the
emulator's clock moves one nanosecond an instruction (qemu, docs/devel/tcg-icount.rst), so that the
firmware's timer counts instructions, the same in every run. They are not cycles, and are never
reported as milliseconds.

Semihosting is on, as images that are linked for it need: such an image may use the files of this
machine, so it must be one's own.
"""

import contextlib
import ctypes
import functools
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from onmetal.errors import DeviceError, UsageError
from onmetal.files.reading import open_regular
from onmetal.profilers.devices.board.link import received, sent
from onmetal.profilers.output import Tail, collect

PROGRAM = "qemu-system-arm"
MACHINE = "mps3-an547"
START_S = 30.0
_ARM = 40
"""e_machine in an ELF header."""

T = TypeVar("T")


class Machine(Struct, frozen=True):
    """A board that qemu emulates."""

    name: str
    description: str
    """qemu's description, which names the board's core."""


def check_image(image: Path) -> None:
    """Raises UsageError where the file is no ELF image for a 32-bit ARM core."""
    try:
        with open_regular(image) as file:
            head = file.read(20)
    except OSError as error:
        raise UsageError(
            f"--device qemu:{image}: the image cannot be read ({error.strerror})"
        ) from None
    machine = struct.unpack("<H", head[18:20])[0] if len(head) == 20 else 0
    if head[:4] != b"\x7fELF" or head[4] != 1 or machine != _ARM:
        raise UsageError(
            f"--device qemu:{image}: this is not a linked ELF image for a 32-bit ARM core; "
            "the firmware of a bundle, built for a board that qemu emulates, makes one"
        )


def machine(name: str) -> Machine:
    """Raises UsageError where qemu has no such board with a Cortex-M, DeviceError without qemu."""
    boards = _machines(_program())
    if name not in boards:
        raise UsageError(
            f"?machine={name}: qemu has no such board with a Cortex-M; it has: {', '.join(boards)}"
        )
    return boards[name]


def _program() -> str:
    path = shutil.which(PROGRAM)
    if path is None:
        raise DeviceError(f"there is no {PROGRAM}: `apt install qemu-system-arm`")
    return path


@functools.lru_cache(maxsize=1)
def _machines(program: str) -> dict[str, Machine]:
    """The boards with a Cortex-M, as qemu itself lists them."""
    try:
        listing = collect([program, "-M", "help"], 30, f"`{PROGRAM} -M help`")
    except OSError as error:
        raise DeviceError(f"`{PROGRAM} -M help` failed: {error}") from None
    text = listing.out.decode(errors="replace")
    lines = [line.split(None, 1) for line in text.splitlines() if "Cortex-M" in line]
    return {words[0]: Machine(words[0], words[-1].strip()) for words in lines}


class Qemu:
    """A running emulator, which is a Link (profilers/devices/board/link.py) by its first UART."""

    how = "qemu with -icount shift=0, where an instruction takes 1 ns of its clock"

    def __init__(self, image: Path, name: str = MACHINE) -> None:
        """Raises UsageError where there is no such image or board, DeviceError where qemu does not
        start."""
        check_image(image)
        self.machine = machine(name)
        self.name = f"qemu ({self.machine.name})"
        self._log: Tail | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="onmetal-")
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        try:
            self._start(image)
        except BaseException:
            self.close()
            raise

    def _start(self, image: Path) -> None:
        # A socket in a private folder: one of the loopback is open to every user of the machine.
        place = f"{self._folder.name}/uart"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(place)
            listener.listen(1)
            listener.settimeout(0.2)
            self._process = subprocess.Popen(
                [
                    *(_program(), "-M", self.machine.name, "-nographic", "-monitor", "none"),
                    *("-kernel", str(image.absolute()), "-icount", "shift=0"),
                    *("-semihosting-config", "enable=on,target=native"),
                    *("-serial", f"unix:{place}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # ^C at the terminal is for the parent, which ends its children.
                start_new_session=True,
                preexec_fn=_dies_with_parent(),
            )
            assert self._process.stdout
            # An image may print without end: semihosting writes to the emulator's own output.
            self._log = Tail(self._process.stdout)
            for _ in range(int(START_S / 0.2)):
                with contextlib.suppress(TimeoutError):
                    self._line = listener.accept()[0]
                    return
                if self._process.poll() is not None:
                    raise self._death()
        raise DeviceError(f"{PROGRAM} did not open its serial line within {START_S:.0f} s")

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def read(self, timeout_s: float) -> bytes:
        return self._with_line(lambda line: received(line, timeout_s, self.name))

    def write(self, data: bytes) -> None:
        self._with_line(lambda line: sent(line, data, self.name))

    def _with_line(self, do: Callable[[socket.socket], T]) -> T:
        if self._line is None or self._process is None:
            raise DeviceError(f"{self.name} was ended before it was asked")
        try:
            return do(self._line)
        except DeviceError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
                raise self._death() from None
            raise

    def _death(self) -> DeviceError:
        """The error that says why the emulator ended."""
        assert self._process
        code = self._process.returncode
        why = f"ended with code {code}"
        if code < 0:
            why = f"was ended by {signal.Signals(-code).name}"
        assert self._log
        lines = self._log.text(1)[-2000:].strip().splitlines()
        last_output = " / ".join(re.sub(r"\s+", " ", line) for line in lines[:2])
        return DeviceError(f"{self.name} {why}" + (f": {last_output[:300]}" if last_output else ""))

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
        self._folder.cleanup()


def _dies_with_parent() -> Callable[[], None] | None:
    """Linux: the function that a child calls before it becomes qemu, so that the kernel ends it
    when its parent is killed."""
    if sys.platform != "linux":
        return None
    # Looked up in the parent: after a fork little may be done.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def before() -> None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)  # the parent had ended before prctl was called

    return before
