"""The cache of results that outlive a run: conversions, outputs and unpacked data, under
content-addressed keys.

An entry is a folder that is complete or absent: it is built in another folder, flushed to the disk
and renamed, so that a killed run leaves no incomplete entry, and where two runs build the same
entry, one of the two is used by both. An entry holds its files under `content`, and their digests,
which are checked when a run first uses the entry: a damaged entry is built again. A run that uses
an entry holds a shared lock on its folder; the sweep that keeps the cache within its size removes
only entries that no run holds. Timings are never kept here.

The cache is private: other users may neither read nor write its files.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onmetal.errors import UsageError
from onmetal.files.reading import open_regular, read_bytes
from onmetal.texts import terminal
from onmetal.texts.units import parse_bytes

LIMIT_BYTES = 10 * 10**9
FOLDERS = ("entries", "building", "home", "home/intel", "logs")
CONTENT = "content"
SUMS = "SHA256SUMS"
"""The file of an entry that holds its name, then the digest of every file under `content`."""


def home() -> Path:
    """`$ONMETAL_HOME`, else `onmetal` in the user's cache folder; links are followed."""
    from_environment = os.environ.get("ONMETAL_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        place = Path(from_environment) if from_environment else Path(base) / "onmetal"
        return place.expanduser().resolve()
    except (OSError, RuntimeError) as error:  # links in a circle, a user without a home folder
        raise UsageError(
            f"the cache folder {from_environment or base} cannot be found ({error}); set "
            "ONMETAL_HOME to a folder that you may write to"
        ) from None


def key(**parts: Any) -> str:
    """One digest over everything that an entry depends on; the parts must be JSON values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(*paths: Path) -> str:
    """The digest over the bytes of the files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with open_regular(path) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _check_owner(root: Path) -> None:
    """Raises UsageError where other users could change the cache, whose files are trusted."""
    facts = root.stat()
    advice = "set ONMETAL_HOME to a folder of your own"
    if hasattr(os, "geteuid") and facts.st_uid != os.geteuid():
        raise UsageError(
            f"the cache folder {root} belongs to another user (number {facts.st_uid}), who could "
            f"change what is kept there; {advice}"
        )
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"the cache folder {root} may be written to by other users, who could change what is "
            f"kept there; `chmod go-w {shlex.quote(str(root))}` if all in it is yours, or {advice}"
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(folder: Path, name: str) -> None:
    """Make the built files a complete entry: readable by its user alone, with digests, flushed to
    the disk."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700 | (0o700 if path.is_dir() else 0))
            _flush(path)
    sums = folder / SUMS
    sums.write_text(_sums(folder / CONTENT, name), "utf-8")
    sums.chmod(0o600)
    _flush(sums)
    _flush(folder)


def _sums(content: Path, name: str) -> str:
    """The text of an entry's digests. Raises OSError where something in it cannot be read, or is
    neither file nor folder."""
    lines = [f"# {name}\n"]
    for path in sorted(content.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "it is neither a file nor a folder", str(path))
        if path.is_file():
            lines.append(f"{sha256(path)}  {path.relative_to(content).as_posix()}\n")
    return "".join(lines)


def _intact(folder: Path) -> bool:
    """Whether the files of an entry still have the digests of when it was built."""
    try:
        recorded = read_bytes(folder / SUMS)
        return recorded == _sums(folder / CONTENT, folder.name).encode()
    except (OSError, UnicodeError):
        return False


def _lock(folder: Path, kind: int) -> int | None:
    """A file descriptor that holds a lock on the folder; None if another's lock forbids it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # vanished, or no folder: not ours
        return None
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks: go on without
        return descriptor
    # Between the opening and the lock the sweep may have moved the folder away.
    with contextlib.suppress(FileNotFoundError):
        if folder.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    os.close(descriptor)
    return None


def _to_standard_error(text: str) -> None:
    terminal.write(sys.stderr, [f"warning: {text}"])


class Cache:
    """One run's view of the cache; close it when the run ends, so that its locks are dropped."""

    def __init__(
        self,
        root: Path | None = None,
        limit_bytes: int | None = None,
        say: Callable[[str], object] = _to_standard_error,
    ) -> None:
        """`say` is called with a sentence about each damaged entry. Raises UsageError where the
        folder cannot be written to, or other users can write to it."""
        self.root = (root or home()).resolve()
        self.say = say
        from_environment = os.environ.get("ONMETAL_CACHE_LIMIT")
        if limit_bytes is None and from_environment:
            limit_bytes = parse_bytes(from_environment, "ONMETAL_CACHE_LIMIT")
        self.limit_bytes = LIMIT_BYTES if limit_bytes is None else limit_bytes
        self._held: dict[Path, int] = {}
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self.root)
            for name in FOLDERS:
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
                (self.root / name).chmod(0o700)
        except OSError as error:
            raise UsageError(
                f"cannot write to the cache folder {self.root} ({error.strerror}); "
                "set ONMETAL_HOME to a folder that you may write to"
            ) from None

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()
        self.sweep()

    def find(self, kind: str, digest: str) -> Path | None:
        """The content folder of an entry, locked until the cache is closed; None if there is none.
        A damaged entry is removed and reported by `say`."""
        return self._find(self._place(kind, digest), sealed_here=False)

    def _place(self, kind: str, digest: str) -> Path:
        return self.root / "entries" / f"{kind}-{digest}"

    def _find(self, folder: Path, *, sealed_here: bool) -> Path | None:
        """As `find`. `sealed_here`: this run has just computed the digests, so they are not
        checked."""
        if folder in self._held:
            return folder / CONTENT
        descriptor = _lock(folder, fcntl.LOCK_SH)
        if descriptor is None:
            return None
        if not sealed_here and not _intact(folder):
            self._discard(folder, descriptor)
            return None
        self._held[folder] = descriptor
        with contextlib.suppress(OSError):
            os.utime(folder)  # the sweep takes those unused for longest
        return folder / CONTENT

    def _discard(self, folder: Path, descriptor: int) -> None:
        """Remove a damaged entry, even one that another run holds, since it must not be used. An
        entry without digests is of an older version and is removed without a message."""
        try:
            sealed = (folder / SUMS).exists()
            if folder.stat().st_ino != os.fstat(descriptor).st_ino:
                return  # another run has replaced it
            removed_folder = self.root / "building" / uuid.uuid4().hex
            folder.rename(removed_folder)
            shutil.rmtree(removed_folder, ignore_errors=True)
        except OSError:
            return
        finally:
            os.close(descriptor)
        if sealed:
            self.say(
                f"the cache entry {folder.name} was damaged and is made anew; if this comes again, "
                f"look at the disk of {self.root}"
            )

    def get(self, kind: str, digest: str, build: Callable[[Path], object]) -> Path:
        """The content folder of an entry, which is built first (by `build(empty folder)`) where
        there is none."""
        place = self._place(kind, digest)
        for _ in range(5):  # another run's sweep may take the entry between two steps
            if content := self._find(place, sealed_here=False):
                return content
            with self.scratch() as folder:
                (folder / CONTENT).mkdir()
                build(folder / CONTENT)
                if not any((folder / CONTENT).iterdir()):
                    break  # the files that `build` was to move here no longer exist
                _seal(folder, place.name)
                renamed = False
                with contextlib.suppress(OSError):  # another run was faster: its entry is as good
                    folder.rename(place)
                    renamed = True
                    _flush(place.parent)
            if content := self._find(place, sealed_here=renamed):
                return content
        raise UsageError(
            f"the cache entry {place.name} vanished while it was in use: "
            f"is something else clearing {self.root}?"
        )

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A temporary folder, removed at the end, or by the next sweep if this run is killed."""
        descriptor = None
        while descriptor is None:  # another run's sweep may take it before it is locked
            folder = self.root / "building" / uuid.uuid4().hex
            folder.mkdir(mode=0o700)
            descriptor = _lock(folder, fcntl.LOCK_SH)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)

    def sweep(self) -> None:
        """Remove the folders that killed runs left and, while the cache is over its limit, the
        entries that were unused for longest."""
        for folder in (self.root / "building").iterdir():
            self._remove(folder)
        entries = []
        for folder in (self.root / "entries").iterdir():
            if not (folder / SUMS).exists() and self._remove(folder):  # of an older version
                continue
            with contextlib.suppress(FileNotFoundError):
                content = (folder / CONTENT).rglob("*")
                size = sum(file.stat().st_size for file in content if file.is_file())
                entries.append((folder.stat().st_mtime, size, folder))
        total = sum(size for _, size, _ in entries)
        for _, size, folder in sorted(entries, key=lambda entry: entry[0]):
            if total <= self.limit_bytes:
                break
            if self._remove(folder):
                total -= size

    def _remove(self, folder: Path) -> bool:
        descriptor = _lock(folder, fcntl.LOCK_EX)
        if descriptor is None:
            return False
        try:
            # Out of its place first: a half-removed entry must never be found.
            removed_folder = self.root / "building" / uuid.uuid4().hex
            folder.rename(removed_folder)
            shutil.rmtree(removed_folder, ignore_errors=True)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True
