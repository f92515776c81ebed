"""Bytes to a board and back: a serial port through pyserial, a TCP connection.

A link is read in pieces, as they come. It never waits longer than its time limit, and its errors
say what is wrong and what to do.
"""

import contextlib
import errno
import socket
import time
from pathlib import Path
from typing import Any, Protocol

from onmetal.errors import DeviceError

BAUD = 115200
"""The default baud rate; that of MLPerf Tiny's firmware."""
STEP_S = 0.05
"""Time limit of one read of a serial port, which is repeated until the deadline."""
CONNECT_S = 15.0
SEND_S = 10.0


class Link(Protocol):
    """A connection that carries bytes. Every error is a DeviceError that says what to do."""

    name: str
    """In errors: the port or the address."""

    def read(self, timeout_s: float) -> bytes:
        """The bytes that came: at once where there are any, else as soon as some come; empty where
        none came in time. Raises DeviceError where the other end is gone."""

    def write(self, data: bytes) -> None:
        """Raises DeviceError where the other end is gone or takes nothing."""

    def close(self) -> None:
        """May be called twice."""


class Serial:
    """A serial port, 8N1, for this program alone."""

    def __init__(self, path: str, baud: int = BAUD) -> None:
        """Raises DeviceError where the port is missing, busy or forbidden."""
        try:
            import serial
        except ImportError:
            raise DeviceError(
                f"{path} is a serial port, which pyserial opens; "
                "`pip install 'onmetal[devices]'` brings it"
            ) from None
        self.name = path
        # TypeError: pyserial's, where the port is closed from another thread.
        self._lost: tuple[type[Exception], ...] = (serial.SerialException, OSError, TypeError)
        self._slow: type[Exception] = serial.SerialTimeoutException
        try:
            self._port: Any = serial.Serial(
                path, baud, timeout=STEP_S, write_timeout=SEND_S, exclusive=True
            )
        except (OSError, ValueError) as error:
            raise _refused(path, baud, error) from None

    def read(self, timeout_s: float) -> bytes:
        end = time.monotonic() + timeout_s
        try:
            while True:
                waiting = self._port.in_waiting
                if not waiting and time.monotonic() >= end:
                    return b""
                if found := bytes(self._port.read(max(1, waiting))):
                    return found
        except self._lost:
            raise self._gone_error() from None

    def write(self, data: bytes) -> None:
        try:
            self._port.write(data)
        except self._slow:
            raise DeviceError(
                f"{self.name} accepted no data for {SEND_S:.0f} s: is its flow control on?"
            ) from None
        except self._lost:
            raise self._gone_error() from None

    def close(self) -> None:
        with contextlib.suppress(*self._lost):
            self._port.close()

    def _gone_error(self) -> DeviceError:
        return DeviceError(
            f"{self.name} is gone: the board was unplugged, or its USB port was reset; "
            "plug it in again"
        )


def _refused(path: str, baud: int, error: Exception) -> DeviceError:
    """Why a serial port cannot be opened, by the system's error."""
    number = getattr(error, "errno", None)
    if number == errno.ENOENT or not Path(path).exists():
        ports = sorted(
            str(found) for kind in ("ttyACM*", "ttyUSB*") for found in Path("/dev").glob(kind)
        )
        alternatives = f"there are {', '.join(ports)}" if ports else "no board is plugged in by USB"
        return DeviceError(f"there is no serial port {path}; {alternatives}")
    if number in (errno.EACCES, errno.EPERM):
        return DeviceError(
            f"this user may not open {path}: add the user to the group that owns it "
            "(`sudo usermod -aG dialout $USER`) and log in again"
        )
    if number in (errno.EBUSY, errno.EAGAIN) or "lock" in str(error):
        return DeviceError(
            f"{path} is in use by another program (a terminal, a debugger, another run of "
            f"onmetal?): end that one; `fuser {path}` names it"
        )
    if isinstance(error, ValueError) or number == errno.EINVAL:
        return DeviceError(f"{path} cannot be set to {baud} baud: give another with ?baud=")
    return DeviceError(f"{path} cannot be opened as a serial port: {error}")


class Tcp:
    """A TCP connection to a board, to a serial-to-network bridge, or to a program."""

    def __init__(self, host: str, port: int) -> None:
        """Raises DeviceError where nobody listens there."""
        self.name = f"{host}:{port}"
        try:
            self._socket = socket.create_connection((host, port), CONNECT_S)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name that DNS could have
            why = getattr(error, "strerror", None) or error
            raise DeviceError(
                f"{self.name} cannot be reached ({why}): is it switched on, "
                "and does a program listen there?"
            ) from None
        # Commands are short and each waits for its answer.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self, timeout_s: float) -> bytes:
        return received(self._socket, timeout_s, self.name)

    def write(self, data: bytes) -> None:
        sent(self._socket, data, self.name)

    def close(self) -> None:
        self._socket.close()


def received(connection: socket.socket, timeout_s: float, name: str) -> bytes:
    """`Link.read` of a connected socket."""
    connection.settimeout(max(0.0, timeout_s))
    try:
        content = connection.recv(1 << 16)
    except (TimeoutError, BlockingIOError):
        return b""
    except OSError as error:
        raise DeviceError(f"the connection to {name} broke: {error.strerror or error}") from None
    if not content:
        raise DeviceError(f"{name} hung up: what is there ended, or takes one connection at a time")
    return content


def sent(connection: socket.socket, data: bytes, name: str) -> None:
    """`Link.write` to a connected socket."""
    connection.settimeout(SEND_S)
    try:
        connection.sendall(data)
    except TimeoutError:
        raise DeviceError(f"{name} accepted no data for {SEND_S:.0f} s") from None
    except OSError as error:
        raise DeviceError(f"the connection to {name} broke: {error.strerror or error}") from None
