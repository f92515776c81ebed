"""Makes a private copy of an untrusted folder, so that the bytes that were hashed are the bytes
that are used, even where the folder is changed meanwhile. Only regular files are opened, no
symbolic link is followed, and sizes are checked first.

Hard links are copied like any other file.
"""

import contextlib
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onmetal.errors import UsageError

MOST_FILES = 10_000
MOST_DEPTH = 32
PIECE_BYTES = 1 << 20
SPARE_BYTES = 64 << 20
"""The bytes of the disk that are left free."""

Folder = int
"""A descriptor of a folder: files opened relative to it are in that folder, even where the path of
the folder was replaced."""

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Folder]:
    """A descriptor of the folder. Raises OSError where it is no folder, or cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def inside(folder: Folder) -> dict[str, os.stat_result]:
    """Path in the folder -> its state, of everything that is no folder, and of empty folders.

    Raises OSError where it cannot be listed, ValueError where it holds too much.
    """
    entries: dict[str, os.stat_result] = {}
    _list(folder, "", 0, entries)
    return entries


def _list(folder: Folder, prefix: str, depth: int, entries: dict[str, os.stat_result]) -> None:
    if depth > MOST_DEPTH:
        raise ValueError(f"its folders are more than {MOST_DEPTH} deep")
    with os.scandir(folder) as scan:
        for entry in scan:
            name, state = prefix + entry.name, entry.stat(follow_symlinks=False)
            before = len(entries)
            if stat.S_ISDIR(state.st_mode):
                inner = os.open(entry.name, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
                try:
                    _list(inner, f"{name}/", depth + 1, entries)
                finally:
                    os.close(inner)
            if len(entries) == before:
                entries[name] = state
            if len(entries) > MOST_FILES:
                raise ValueError(f"it holds more than {MOST_FILES} files")


def read(folder: Folder, name: str, most: int) -> bytes:
    """A small file. Raises OSError, also where it is no regular file or longer than `most`."""
    with _open(folder, name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"it is longer than {most} bytes")
    return content


def check_room(entries: dict[str, os.stat_result], place: Path) -> None:
    """Raises UsageError where the disk has no room for a copy of the regular files."""
    needed_bytes = sum(state.st_size for state in entries.values() if stat.S_ISREG(state.st_mode))
    free = shutil.disk_usage(place).free - SPARE_BYTES
    if needed_bytes > free:
        raise UsageError(
            f"its files take {needed_bytes} bytes, and a copy of them is checked, for which the "
            f"disk of the cache has {max(0, free)}: make room there, or set "
            "ONMETAL_HOME to another disk"
        )


def copied(folder: Folder, name: str, size_bytes: int, target: Path) -> str:
    """Copy a regular file. -> SHA-256 of the bytes that were copied.

    Raises OSError where it cannot be read, is no regular file, or is longer than `size_bytes`.
    """
    digest, bytes_left = hashlib.sha256(), size_bytes
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    private = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(private, "wb") as copy, _open(folder, name) as file:
        while piece := file.read(PIECE_BYTES):
            bytes_left -= len(piece)
            if bytes_left < 0:
                raise OSError("it grew while it was read")
            digest.update(piece)
            copy.write(piece)
    return digest.hexdigest()


def _open(folder: Folder, name: str) -> BinaryIO:
    *parents, last = name.split("/")
    with contextlib.ExitStack() as stack:
        for parent in parents:
            folder = os.open(parent, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
            stack.callback(os.close, folder)
        _check_regular(os.stat(last, dir_fd=folder, follow_symlinks=False))
        descriptor = os.open(last, _FLAGS | os.O_NONBLOCK, dir_fd=folder)
    try:
        _check_regular(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        raise OSError("it is not a regular file")
