"""Boards by their address: `serial:///dev/ttyACM0`, `socket://host:port`, `qemu:IMAGE`."""

import contextlib
import re
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from onmetal.errors import UsageError
from onmetal.files.cache import Cache
from onmetal.profilers import meters
from onmetal.profilers.devices.board import link
from onmetal.profilers.devices.board.device import Board
from onmetal.profilers.devices.board.link import Link
from onmetal.profilers.devices.board.protocol import Tiny
from onmetal.profilers.devices.board.qemu import MACHINE, Qemu

SERIAL = "serial:///dev/tty…[?baud=N][&meter=lpm01a:/dev/tty…]"
SOCKET = "socket://host:port[?meter=lpm01a:/dev/tty…]"
QEMU = "qemu:IMAGE[?machine=NAME]"
MOST_BAUD = 20_000_000
_CONTROL, _ODD = re.compile(r"[\x00-\x1f\x7f]"), re.compile(r"[\x00-\x1f\x7f]|\s")
_MACHINE = re.compile(r"[A-Za-z0-9._-]+")


class Place(Struct, frozen=True):
    """An address, parsed: one of `path`, `host` and `image` is set."""

    address: str
    path: str = ""
    baud: int = link.BAUD
    host: str = ""
    port: int = 0
    meter: str = ""
    """KIND:PORT of a meter that feeds the board."""
    image: str = ""
    machine: str = MACHINE


def place(address: str) -> Place | None:
    """An address, parsed; None: it is of another transport. Raises UsageError where malformed."""
    if address.startswith("serial:"):
        return _serial(address)
    if address.startswith("socket:"):
        return _socket(address)
    return _qemu(address) if address.startswith("qemu:") else None


def _serial(address: str) -> Place:
    path, options = _split_options(
        address.removeprefix("serial:"), ("baud", "meter"), address, SERIAL
    )
    baud = options.get("baud", str(link.BAUD))
    valid_baud = re.fullmatch(r"[1-9]\d{0,7}", baud) and int(baud) <= MOST_BAUD
    if not re.fullmatch(r"///[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*", path) or not valid_baud:
        raise _refused(address, SERIAL)
    meter = _meter(options, address, SERIAL)
    if meter.partition(":")[2] == path[2:]:
        raise UsageError(f"--device {address}: the board and its meter are on one port")
    return Place(address, path=path[2:], baud=int(baud), meter=meter)


def _socket(address: str) -> Place:
    where, options = _split_options(address, ("meter",), address, SOCKET)
    port = None
    with contextlib.suppress(ValueError):
        parts = urlsplit(where)
        port = parts.port
    malformed = not port or not parts.hostname or parts.path or parts.fragment or "@" in where
    if malformed or not where.startswith("socket://") or _ODD.search(where):
        raise _refused(address, SOCKET)
    assert port and parts.hostname
    meter = _meter(options, address, SOCKET)
    return Place(address, host=parts.hostname, port=port, meter=meter)


def _qemu(address: str) -> Place:
    image, mark, name = address.removeprefix("qemu:").partition("?machine=")
    malformed = not image or "?machine" in image or _CONTROL.search(image)
    if malformed or (mark and not _MACHINE.fullmatch(name)):
        raise _refused(address, QEMU)
    return Place(address, image=image, machine=name or MACHINE)


def _split_options(
    text: str, option_names: tuple[str, ...], address: str, form: str
) -> tuple[str, dict[str, str]]:
    """The part before the `?`, and the options after it. Raises UsageError for other options."""
    where, mark, query = text.partition("?")
    values: dict[str, str] = {}
    for option in query.split("&") if mark else []:
        name, _, value = option.partition("=")
        if name not in option_names or name in values or not value:
            raise _refused(address, form)
        values[name] = value
    return where, values


def _meter(options: dict[str, str], address: str, form: str) -> str:
    if "meter" not in options:
        return ""
    kind, _, port = options["meter"].partition(":")
    if kind not in meters.named() or not port.startswith("/") or _CONTROL.search(port):
        raise _refused(address, form)
    return options["meter"]


def _refused(address: str, form: str) -> UsageError:
    return UsageError(f"--device {address}: must be {form}")


def reach(where: Place, cache: Cache) -> Board:
    """Opens the line and greets the board; `close` it. Raises UsageError for an image that is
    none, DeviceError where nothing answers as a board does."""
    with contextlib.ExitStack() as cleanup:
        meter, emulator = None, None
        if where.meter:
            # The meter comes first, since it supplies the board.
            kind, _, port = where.meter.partition(":")
            meter = meters.at(kind, port)
            cleanup.callback(meter.close)
        line: Link
        if where.image:
            line = emulator = Qemu(Path(where.image), where.machine)
        elif where.host:
            line = link.Tcp(where.host, where.port)
        else:
            line = link.Serial(where.path, where.baud)
        cleanup.callback(line.close)
        baud = where.baud if where.path else None
        board = Board(where.address, Tiny(line), cache, baud=baud, meter=meter, qemu=emulator)
        cleanup.pop_all()
    return board
