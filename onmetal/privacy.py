"""What a bundle says of its maker: no more than its reader needs.

A bundle is handed on; `--json` stays here. So of paths only the last part goes into a bundle, and
of a device's address only the transport, with a digest of it. The digest is keyed by a secret of
the user's own, so that nobody can try serial numbers or addresses against it, while bundles of
one user tell whether they were measured on the same device.
"""

import contextlib
import fcntl
import hashlib
import hmac
import os
import platform
import re
import secrets
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from onmetal import cache as caches
from onmetal.errors import UsageError

SECRET = "device-secret"
SECRET_BYTES = 32
DEVICE = "the device"
METER = "the meter"
VERBATIM = frozenset({"run", "inputs", "outputs", "output", "fidelity", "classes"})
"""Keys of a document under which names of tensors and classes stand, which must stay as they are.
"""
_REST = r"(?:/[^\s'\"`,;:()\[\]{}<>]*)*"
"""What of a path may follow a folder, in a sentence."""


class Known(Struct, frozen=True):
    """What is not to be told: paths and folders of this machine, and the device's address."""

    paths: tuple[str, ...] = ()
    address: str = "none"

    def text(self, text: str) -> str:
        """Without it: each path becomes its last part."""
        if self.paths:
            text = self._pattern().sub(lambda match: _last(match[0]), text)
        for part, name in _parts(self.address):
            bounded = rf"(?<![\w.-]){re.escape(part)}(?![\w-]|\.\w)"
            text = re.sub(bounded, lambda _, name=name: name, text)  # type: ignore[misc]
        return text

    def _pattern(self) -> re.Pattern[str]:
        """The longest first, so that one within another's folder is known by its own name."""
        longest = sorted(self.paths, key=len, reverse=True)
        return re.compile(
            rf"(?<![\w.-])(?:{'|'.join(map(re.escape, longest))})(?![\w-]|\.\w){_REST}"
        )

    def document(self, value: Any) -> Any:
        """All texts of a document."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {
                key: inner if key in VERBATIM else self.document(inner)
                for key, inner in value.items()
            }
        return [self.document(inner) for inner in value] if isinstance(value, list) else value


def known(named: Sequence[str | Path | None], address: str) -> Known:
    """`named`: what the user gave by its path, where he did; folders of this machine are added."""
    given = [Path(name) for name in named if name]
    places = [*given, *(path.parent for path in given)]
    places += [Path.cwd(), Path.home(), caches.home(), Path(tempfile.gettempdir())]
    places += [Path(sys.prefix), Path(sys.base_prefix)]
    if address.startswith("qemu:"):
        places.append(Path(address.removeprefix("qemu:").partition("?")[0]))
    texts: dict[str, None] = {}
    for place in places:
        for form in (place, place.absolute(), _resolved(place)):
            if "/" in str(form).strip("/") or (form.is_absolute() and form.name):
                texts[str(form)] = None
    return Known(tuple(texts), address)


def _resolved(path: Path) -> Path:
    with contextlib.suppress(OSError, RuntimeError):
        return path.resolve()
    return path


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _parts(address: str) -> Iterator[tuple[str, str]]:
    """What of an address stands for the device in sentences, the longest first, and what is said
    instead."""
    plain = address.partition("?")[0]
    transport, _, where = plain.partition(":")
    if transport in ("local", "none"):
        return
    if meter := re.search(r"[?&]meter=\w+:([^&]+)", address):
        yield meter[1], METER
    yield address, DEVICE
    yield plain, DEVICE
    if python := re.search(r"[?&]python=([^&]+)", address):
        yield python[1], _last(python[1])
    if transport == "qemu":
        return
    where = where.removeprefix("//").rstrip("/")
    yield where, DEVICE
    if transport in ("ssh", "socket"):
        machine = where.rpartition("@")[2]
        yield machine, DEVICE
        yield re.sub(r":\d+$", "", where), DEVICE
        yield re.sub(r":\d+$", "", machine), DEVICE


def shared(document: dict[str, Any], known: Known, secret: bytes) -> dict[str, Any]:
    """The document as a bundle has it."""
    device = document["device"]
    told: dict[str, Any] = known.document({k: v for k, v in document.items() if k != "device"})
    address = known.address
    own = {"address": address.partition(":")[0]}
    if address != "none":
        own["digest"] = digest(identity(address), secret)
    rest = known.document({key: value for key, value in device.items() if key != "address"})
    return {**told, "device": {**own, **rest}}


def identity(address: str) -> str:
    """What makes a device this one: its address, which has a phone's serial number; of this machine
    what systemd numbers it by, or its name."""
    if address != "local":
        return address.partition("?")[0]
    with contextlib.suppress(OSError):
        return f"local:{Path('/etc/machine-id').read_text().strip()}"
    return f"local:{platform.node()}"


def digest(text: str, secret: bytes) -> str:
    content = text.encode("utf-8", "surrogateescape")
    return f"hmac-sha256:{hmac.new(secret, content, hashlib.sha256).hexdigest()}"


# --- the secret


def folder() -> Path:
    """Beside the user's settings, since caches are cleared; where ONMETAL_HOME names one folder for
    all that onmetal keeps, there."""
    if os.environ.get("ONMETAL_HOME"):
        return caches.home()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser().absolute() / "onmetal"


def secret() -> bytes:
    """The user's, made where there is none. Of several processes that make it at once, all get the
    same."""
    place = folder() / SECRET
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(place.parent):
            return _read(place) or _made(place)
    except OSError as error:
        raise UsageError(
            f"the secret by which bundles name devices cannot be kept in {place} "
            f"({error.strerror}); set XDG_CONFIG_HOME or ONMETAL_HOME to a folder that you may "
            "write to, or give --keep-paths"
        ) from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: go on without
            fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _read(place: Path) -> bytes | None:
    """None where there is none, or none to be trusted: another's, readable by others, damaged."""
    try:
        opened = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(opened, "rb") as file:
        about = os.fstat(opened)
        own = about.st_uid == os.getuid() and not stat.S_IMODE(about.st_mode) & 0o077
        if not own or not stat.S_ISREG(about.st_mode) or about.st_size != SECRET_BYTES:
            return None
        content = file.read(SECRET_BYTES + 1)
    return content if len(content) == SECRET_BYTES else None


def _made(place: Path) -> bytes:
    """Written whole beside its place, then renamed to it."""
    part = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    content = secrets.token_bytes(SECRET_BYTES)
    opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(opened, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(opened)
        part.rename(place)
    finally:
        part.unlink(missing_ok=True)
    return content
