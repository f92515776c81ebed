"""Removes private facts about the user and the device from the documents of a bundle.

A bundle is passed on to other people, while the output of `--json` stays on this machine. So only
the last part of each path goes into a bundle, and of a device's address only the transport and a
digest. The digest is keyed by a secret of the user, so that nobody can try serial numbers or
addresses against it, while bundles of one user show whether they were measured on the same device.
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
from msgspec.structs import replace

from onmetal import runtimes, targets
from onmetal.errors import UsageError
from onmetal.files import cache as caches
from onmetal.records import shown

SECRET = "device-secret"
SECRET_BYTES = 32
DEVICE = "the device"
METER = "the meter"
SENTENCES = frozenset(
    {"reason", "reasons", "warnings", "notes", "missing", "how", "message", "note", "from"}
    | {"emulated_why", "unmeasured"}
)
"""Keys of a document whose values are sentences. Other values are for programs and stay
unchanged."""
VERBATIM = frozenset(
    {"details", "embedded", "run", "inputs", "outputs", "fidelity", "classes", "preprocessing"}
    | {"digests", "tools", "files"}
)
"""Keys whose values hold only names, types and figures, whatever their inner keys are."""
PATHS = frozenset({("models", "path"), ("data", "source"), ("", "bundle")})
"""Values that are one path: (the key of the object that holds it, its own key)."""
COMMON = frozenset(
    {"accuracy", "amd64", "android", "arm", "arm64", "batch", "battery", "board", "cache", "clock"}
    | {"cortex", "cpu", "data", "device", "disk", "emulator", "error", "file", "float", "host"}
    | {"latency", "linux", "load", "local", "machine", "memory", "meter", "model", "name", "none"}
    | {"operator", "output", "phone", "power", "python", "run", "runtime", "sample", "samples"}
    | {"serial", "server", "size", "ssh", "state", "system", "target", "test", "time", "user"}
    | {"virtual", "x86", "x86-64", "x86_64"}
)
"""Common words of onmetal's own sentences. The name of a device that is one of these words is
replaced only where it is used as an address."""
SEGMENT_LETTERS = 255
"""The length of the longest file name in a file system."""
_LETTERS = r"[^\s'\"`,;:()\[\]{}<>/]"
_REST = re.compile(
    rf"(?:/+{_LETTERS}*(?:(?<!\.\w)(?<!\.\w\w)(?<!\.\w\w\w)(?<!\.\w\w\w\w)(?<!/)"
    rf"(?: (?!-){_LETTERS}+){{1,8}}(?=/))?)*"
)
"""Matches the rest of a path after a folder in a sentence, where no existing file shows where the
path ends. Words are joined over blanks only where a slash follows, and where no file suffix comes
before."""
_BEFORE = r"(?:(?<![\w.-])|(?<=[\s'\"(]-[A-Za-z])|(?<=\A-[A-Za-z])|(?<=-isystem)|(?<=\\[nrt]))"
"""What may precede a path: not a part of another word or path, except a compiler's option."""
_AFTER = r"(?![\w-]|\.\w)"


class Known(Struct, frozen=True):
    """The private facts: paths and folders of this machine, and the device's address."""

    paths: tuple[str, ...] = ()
    address: str = "none"
    names: frozenset[str] = frozenset()
    """Names of tensors, runtimes, recipes and the like, which are never treated as a path or a
    host."""

    def document(self, value: Any, holder: str = "", key: str = "") -> Any:
        """The document without private facts: with changed sentences, and only the last part of
        each path."""
        if isinstance(value, dict):
            return {
                inner: self.sentences(part)
                if inner in SENTENCES
                else part
                if inner in VERBATIM
                else self.document(part, key, inner)
                for inner, part in value.items()
            }
        if isinstance(value, list):
            return [self.document(part, holder, key) for part in value]
        return _last(value) if isinstance(value, str) and (holder, key) in PATHS else value

    def sentences(self, value: Any) -> Any:
        """The sentences without private facts, in the same structure: a text, or dictionaries and
        lists of texts."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {key: self.sentences(inner) for key, inner in value.items()}
        return [self.sentences(inner) for inner in value] if isinstance(value, list) else value

    def text(self, text: str) -> str:
        """A sentence without private facts."""
        for whole in _wholes(self.address):
            text = re.sub(
                rf"(?<![\w.-]){re.escape(whole)}(?:\?[^\s,;)'\"]*[^\s,;:.)'\"])?{_AFTER}",
                DEVICE,
                text,
                flags=re.IGNORECASE,
            )
        text = self._without_paths(text)
        for part, name in _parts(self.address):
            text = self._without_part(text, part, name)
        if self.address.startswith("ssh:"):  # ssh reports the IP address behind a host name
            text = re.sub(r"\bhost \S+ port \d+", f"host {DEVICE}", text)
        return text

    def _without_paths(self, text: str) -> str:
        if not self.paths:
            return text
        pattern, position, pieces = self._pattern(), 0, []
        while match := pattern.search(text, position):
            start, end = match.span()
            if name := self._name_at(text, start):
                end = start + len(name)
                replacement = name
            else:
                end = _end(text, start, end)
                path = text[start:end]
                any_word = "/" not in match[0] and not os.path.lexists(path)
                replacement = path if any_word else _last(path)
                if os.path.normpath(path) == str(Path.home()):
                    replacement = "~"  # not the user's name
            pieces += [text[position:start], replacement]
            position = end
        return "".join([*pieces, text[position:]])

    def _pattern(self) -> re.Pattern[str]:
        """A pattern of all private paths, the longest first, so that a path inside of another one
        is matched as a whole."""
        longest = sorted(self.paths, key=len, reverse=True)
        return re.compile(rf"{_BEFORE}(?:{'|'.join(map(_written, longest))}){_AFTER}")

    def _name_at(self, text: str, start: int) -> str | None:
        """The longest of `names` that contains a slash and begins at `start`; None where there is
        none."""
        fitting = [
            name
            for name in self.names
            if "/" in name
            and text.startswith(name, start)
            and not re.match(r"[\w/-]", text[start + len(name) : start + len(name) + 1])
        ]
        return max(fitting, key=len, default=None)

    def _without_part(self, text: str, part: str, name: str) -> str:
        """The text with `part` of the device's address replaced by `name`. A part that is a common
        word is replaced only after a user name or before a port."""

        def replaced(match: re.Match[str]) -> str:
            is_other_word = match[0].casefold() in self.names or (
                common and not match[1] and not match[2]
            )
            return match[0] if is_other_word else name + (match[2] or "")

        common = part.casefold() in COMMON or part.casefold() in self.names
        before = "(//)?" if part.startswith("/") else r"([\w.-]+@)?"
        pattern = rf"(?<![\w.@-]){before}{re.escape(part)}(:\d+)?{_AFTER}"
        return re.sub(pattern, replaced, text, flags=re.IGNORECASE)


_SLASH = r"/{1,64}(?:\./{1,64}){0,8}"
"""The repetitions are bounded, so that a text of many slashes takes no longer to match."""


def _written(path: str) -> str:
    """A pattern of a path, in which `//` and `/./` match like `/`. A relative path of one word
    matches only before a slash."""
    parts = _SLASH.join(re.escape(part) for part in path.split("/") if part)
    if path.startswith("/"):
        return rf"(?<!/){_SLASH}{parts}"
    return parts if "/" in path else rf"{parts}(?=/)"


def _end(text: str, start: int, end: int) -> int:
    """The position in the text where a path ends, which begins at `start` and reaches to `end` at
    least. File names may contain blanks and other characters that end a word, so existing files are
    looked up."""
    while text.startswith("/", end):
        after = end + 1
        rest = re.split(r"[/\n]", text[after : after + SEGMENT_LETTERS])[0]
        ends = [m.start() for m in re.finditer(r"(?!\w)|(?<!\w)", rest) if m.start()]
        for cut in reversed(ends):
            dots = not rest[:cut].strip(".") and text[after + cut : after + cut + 1] != "/"
            if not dots and os.path.lexists(text[start : after + cut]):
                end = after + cut
                break
        else:
            rest_of_it = _REST.match(text, end)
            return rest_of_it.end() if rest_of_it else end
    return end


def known(named: Sequence[str | Path | None], address: str) -> Known:
    """The private facts of a run. `named`: paths that the user gave, or None; common folders of
    this machine are added."""
    named_paths = [Path(name) for name in named if name]
    places = [*named_paths, *(path.parent for path in named_paths)]
    places += [Path.cwd(), Path.home(), caches.home(), Path(tempfile.gettempdir())]
    places += [Path(sys.prefix), Path(sys.base_prefix)]
    if address.startswith("qemu:"):
        places.append(Path(address.removeprefix("qemu:").partition("?")[0]))
    texts: dict[str, None] = {}
    for place in places:
        for form in (place, place.absolute(), _resolved(place)):
            if form.name and form.name != "..":
                texts[str(form)] = texts[shown(form)] = None
    product_names = frozenset((*runtimes.RUNTIMES, *targets.names()))
    return Known(tuple(texts), address, product_names)


def _resolved(path: Path) -> Path:
    with contextlib.suppress(OSError, RuntimeError):
        return path.resolve()
    return path


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2] or path


def _wholes(address: str) -> Iterator[str]:
    """The forms of the device's address that sentences may contain, the longest first."""
    plain = address.partition("?")[0]
    transport, _, where = plain.partition(":")
    if transport in ("local", "none"):
        return
    yield address
    yield plain
    if transport in ("ssh", "socket"):
        machine = where.removeprefix("//").rstrip("/").rpartition("@")[2]
        yield f"{transport}://{machine}"
        yield f"{transport}://{_without_port(machine)}"


def _parts(address: str) -> Iterator[tuple[str, str]]:
    """(part of the address that names the device in sentences, its replacement), the longest part
    first."""
    transport, _, where = address.partition("?")[0].partition(":")
    if transport in ("local", "none"):
        return
    if meter := re.search(r"[?&]meter=\w+:([^&]+)", address):
        yield meter[1], METER
    if python := re.search(r"[?&]python=([^&]+)", address):
        yield python[1], _last(python[1])
    if transport == "qemu":
        return
    where = where.removeprefix("//").rstrip("/")
    machine = where.rpartition("@")[2]
    host = _without_port(machine)
    parts = [where, machine, _without_port(where), host, host.strip("[]")]
    if transport == "adb" and (wireless := re.match(r"adb-([^-]+)-\w+\.", where)):
        parts.append(wireless[1])  # the serial number
    for part in dict.fromkeys(parts):
        if part:
            yield part, DEVICE


def _without_port(machine: str) -> str:
    return re.sub(r":\d+$", "", machine)


def shared(document: dict[str, Any], known: Known, secret: bytes) -> dict[str, Any]:
    """The document without private facts, as a bundle holds it."""
    device = {key: value for key, value in document["device"].items() if key != "address"}
    known = replace(known, names=known.names | names_in({**document, "device": device}))
    address = known.address
    public_address = {"address": address.partition(":")[0]}
    if address != "none":
        public_address["digest"] = digest(identity(address), secret)
    redacted: dict[str, Any] = known.document({**document, "device": device})
    return {**redacted, "device": {**public_address, **redacted["device"]}}


def names_in(value: Any, holder: str = "", key: str = "") -> frozenset[str]:
    """All texts and keys of a document except sentences and paths, and their words: unchanged and
    in lower case."""
    texts: set[str] = set()
    if isinstance(value, dict):
        for inner, part in value.items():
            texts.add(inner)
            if inner not in SENTENCES:
                texts |= names_in(part, key, inner)
    elif isinstance(value, list):
        for part in value:
            texts |= names_in(part, holder, key)
    elif isinstance(value, str) and (holder, key) not in PATHS:
        texts |= {value, *re.split(r"[^\w.-]+", value)}
    return frozenset(texts | {text.casefold() for text in texts})


def identity(address: str) -> str:
    """The identity of a device: its address, which contains a phone's serial number; for this
    machine, its machine-id of systemd, else its host name."""
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
    """The folder of the secret: in the user's configuration folder, since caches are cleared; or in
    ONMETAL_HOME, where that is set."""
    if os.environ.get("ONMETAL_HOME"):
        return caches.home()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser().absolute() / "onmetal"


def secret() -> bytes:
    """The user's secret, which is created where there is none. Several processes that create it at
    once all get the same one."""
    place = folder() / SECRET
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(place.parent):
            return _read(place) or _create(place)
    except OSError as error:
        raise UsageError(
            f"the secret by which bundles name devices cannot be kept in {place} "
            f"({error.strerror}); set XDG_CONFIG_HOME or ONMETAL_HOME to a folder that you may "
            "write to, or give --keep-paths"
        ) from None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: go on without
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(place: Path) -> bytes | None:
    """The stored secret; None where there is none or it cannot be trusted: it belongs to another
    user, is readable by others or is damaged."""
    try:
        opened = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(opened, "rb") as file:
        status = os.fstat(opened)
        is_private = status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077
        if not is_private or not stat.S_ISREG(status.st_mode) or status.st_size != SECRET_BYTES:
            return None
        content = file.read(SECRET_BYTES + 1)
    return content if len(content) == SECRET_BYTES else None


def _create(place: Path) -> bytes:
    """Create a secret: it is written to a temporary file, which is then renamed to `place`."""
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
