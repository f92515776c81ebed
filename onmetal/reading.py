"""Opens files that strangers made: regular files only and, where they are to be small, never more
of them than that. Whoever names a FIFO or a device gets an error, and no command hangs.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

SMALL_BYTES = 64 << 20
"""More than any table of labels, manifest or list of digests holds: a million lines of 64 bytes."""


def open_regular(path: Path) -> BinaryIO:
    """The file for reading. Raises OSError where it cannot be read or is no regular file.

    It is looked at before it is opened, which some devices already act on, and once more when it is
    open: what lies at the path may have been exchanged in between.
    """
    _check_regular(path.stat().st_mode, path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(path, flags)
    try:
        _check_regular(os.fstat(descriptor).st_mode, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_regular(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_bytes(path: Path, most: int = SMALL_BYTES) -> bytes:
    """All of a small file. Raises OSError as `open_regular`, and where it is longer than `most`."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        why = f"it is longer than {most} bytes, the most that such a file may have"
        raise OSError(errno.EFBIG, why, str(path))
    return content


def read_text(path: Path, most: int = SMALL_BYTES) -> str:
    """`read_bytes` as UTF-8. Raises UnicodeDecodeError besides."""
    return read_bytes(path, most).decode()
