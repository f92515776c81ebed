"""What outlives a run: conversions, outputs and unpacked data, under content-addressed keys.

An entry is a folder that is complete or absent: it is built beside its place and renamed into it,
so that a killed run leaves nothing half done, and of two runs that build the same entry one wins
and both go on. Whoever uses an entry holds a shared lock on its folder; the sweep that keeps the
cache within its size takes only entries that nobody holds. Timings are never kept here.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onmetal.budget import parse_bytes
from onmetal.errors import UsageError

LIMIT_BYTES = 10 * 10**9


def home() -> Path:
    """`$ONMETAL_HOME`, else `onmetal` in the user's cache folder."""
    if asked := os.environ.get("ONMETAL_HOME"):
        return Path(asked).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "onmetal"


def key(**parts: Any) -> str:
    """One digest over everything that an entry depends on; the parts must be JSON values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(*paths: Path) -> str:
    """Over the bytes of the files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def _lock(folder: Path, kind: int) -> int | None:
    """A file descriptor that holds a lock on the folder; None if another's lock forbids it."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # vanished, or no folder: not ours
        return None
    try:
        fcntl.flock(held, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    except OSError:  # a file system without locks: go on without
        return held
    # Between the opening and the lock the sweep may have moved the folder away.
    with contextlib.suppress(FileNotFoundError):
        if folder.stat().st_ino == os.fstat(held).st_ino:
            return held
    os.close(held)
    return None


class Cache:
    """One run's view of the cache; close it when the run ends, so that its locks are dropped."""

    def __init__(self, root: Path | None = None, limit_bytes: int | None = None) -> None:
        self.root = root or home()
        asked = os.environ.get("ONMETAL_CACHE_LIMIT")
        if limit_bytes is None and asked:
            limit_bytes = parse_bytes(asked, "ONMETAL_CACHE_LIMIT")
        self.limit_bytes = LIMIT_BYTES if limit_bytes is None else limit_bytes
        self._held: dict[Path, int] = {}
        try:
            for name in ("entries", "building", "home/intel", "logs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            # OpenVINO's own switch for its telemetry, in the home folder that workers are given.
            (self.root / "home/intel/openvino_telemetry").write_text("0")
        except OSError as error:
            raise UsageError(
                f"cannot write to the cache folder {self.root} ({error.strerror}); "
                "set ONMETAL_HOME to a folder that you may write to"
            ) from None

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *_: object) -> None:
        for held in self._held.values():
            os.close(held)
        self._held.clear()
        self.sweep()

    def find(self, kind: str, digest: str) -> Path | None:
        """The entry's folder, held until the cache is closed; None if there is none."""
        folder = self.root / "entries" / f"{kind}-{digest}"
        if folder in self._held:
            return folder
        held = _lock(folder, fcntl.LOCK_SH)
        if held is None:
            return None
        self._held[folder] = held
        with contextlib.suppress(OSError):
            os.utime(folder)  # the sweep takes those unused for longest
        return folder

    def get(self, kind: str, digest: str, build: Callable[[Path], object]) -> Path:
        """The entry's folder, built first (by `build(empty folder)`) where there is none."""
        place = self.root / "entries" / f"{kind}-{digest}"
        for _ in range(5):  # another run's sweep may take the entry between two steps
            if found := self.find(kind, digest):
                return found
            with self.scratch() as folder:
                build(folder)
                if not any(folder.iterdir()):
                    break  # what was to be moved here is gone
                with contextlib.suppress(OSError):  # another run was faster: its entry is as good
                    folder.rename(place)
            if found := self.find(kind, digest):
                return found
        raise UsageError(
            f"the cache entry {place.name} vanished while it was in use: "
            f"is something else clearing {self.root}?"
        )

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for work that is removed at the end, by the next sweep if this run is killed."""
        held = None
        while held is None:  # another run's sweep may take it before it is locked
            folder = self.root / "building" / uuid.uuid4().hex
            folder.mkdir()
            held = _lock(folder, fcntl.LOCK_SH)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)

    def sweep(self) -> None:
        """Removes what killed runs left, and over the limit the entries unused for longest."""
        for folder in (self.root / "building").iterdir():
            self._remove(folder)
        entries = []
        for folder in (self.root / "entries").iterdir():
            with contextlib.suppress(FileNotFoundError):
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                entries.append((folder.stat().st_mtime, size, folder))
        total = sum(size for _, size, _ in entries)
        for _, size, folder in sorted(entries, key=lambda entry: entry[0]):
            if total <= self.limit_bytes:
                break
            if self._remove(folder):
                total -= size

    def _remove(self, folder: Path) -> bool:
        held = _lock(folder, fcntl.LOCK_EX)
        if held is None:
            return False
        try:
            # Out of its place first: a half-removed entry must never be found.
            doomed = self.root / "building" / uuid.uuid4().hex
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
        except OSError:
            return False
        finally:
            os.close(held)
        return True
