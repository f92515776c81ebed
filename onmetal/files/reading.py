"""Opens untrusted files: regular files only and, where a file should be small, reads no more than a
limit. A FIFO or a device gives an error, so that no command hangs."""

import errno
import io
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

FOLLOW = "--follow-links reads what links lead to, wherever it lies"
SMALL_BYTES = 64 << 20
"""More than any table of labels, manifest or list of digests holds: a million lines of 64 bytes."""
PIECE_BYTES = 1 << 20
TOML_BYTES = 1 << 20
TOML_DEPTH = 64
"""The most nested tables of one key: the parser walks through all of them again for every line
below."""

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0)


def open_regular(path: Path, within: Path | None = None) -> io.BufferedReader:
    """The file for reading. Raises OSError where it cannot be read or is no regular file.

    `within`: a folder, resolved, out of which no link may lead; None: links may lead anywhere.

    The type of the file is checked before it is opened, since opening already affects some devices,
    and again after that: the file at the path may have been replaced in between.
    """
    if within is not None:
        return _open_below(within, path)
    _check_regular(path.stat().st_mode, path)
    return _checked(os.open(path, _FLAGS), path)


def _open_below(folder: Path, path: Path) -> io.BufferedReader:
    """Open a file inside of `folder`. The path is resolved first. The resolved path is then opened
    folder by folder, and no part of it may be a link, so that no link can be inserted in the
    meantime."""
    target = Path(os.path.realpath(path, strict=True))
    if not target.is_relative_to(folder):
        raise OSError(errno.EPERM, f"it is a link that leads out of {folder}", str(path))
    *folders, name = target.relative_to(folder).parts or (".",)
    folder_descriptor = os.open(folder, os.O_RDONLY | _FOLDER)
    try:
        for step in folders:
            next_descriptor = os.open(
                step, os.O_RDONLY | _FOLDER | _NO_LINK, dir_fd=folder_descriptor
            )
            os.close(folder_descriptor)
            folder_descriptor = next_descriptor
        _check_regular(os.stat(name, dir_fd=folder_descriptor, follow_symlinks=False).st_mode, path)
        return _checked(os.open(name, _FLAGS | _NO_LINK, dir_fd=folder_descriptor), path)
    finally:
        os.close(folder_descriptor)


def _checked(descriptor: int, path: Path) -> io.BufferedReader:
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
        raise OSError(errno.EINVAL, f"it is not a regular file but {kind(mode)}", str(path))


def kind(mode: int) -> str:
    """The kind of a file that is no regular file, in words, by its mode."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe (FIFO)",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFLNK: "a link",
    }
    return kinds.get(stat.S_IFMT(mode), "of an unknown kind")


def read_bytes(path: Path, most: int = SMALL_BYTES, within: Path | None = None) -> bytes:
    """All of a small file. Raises OSError as `open_regular`, and where it is longer than `most`."""
    pieces, bytes_left = [], most + 1
    with open_regular(path, within) as file:
        while piece := file.read(
            min(bytes_left, PIECE_BYTES)
        ):  # read() allocates as many bytes as requested
            pieces.append(piece)
            bytes_left -= len(piece)
    content = b"".join(pieces)
    if len(content) > most:
        why = f"it is longer than {most} bytes, the most that such a file may have"
        raise OSError(errno.EFBIG, why, str(path))
    return content


def read_text(path: Path, most: int = SMALL_BYTES) -> str:
    """`read_bytes` as UTF-8. Raises UnicodeDecodeError besides."""
    return read_bytes(path, most).decode()


_QUOTED = (
    r'"""(?:\\.|(?!""")[^\\])*+(?:"{3,5})?',
    r"'''(?:(?!''').)*+(?:'{3,5})?",
    r'"(?:\\.|[^"\\\n])*+"?',
    r"'[^'\n]*+'?",
)
"""The patterns also match strings that are not closed, so that each is scanned only once; the
parser fails at them."""
_STRING_OR_COMMENT = re.compile("|".join((*_QUOTED, r"#[^\n]*")), re.DOTALL)
_DEEP_KEY = re.compile(rf"(?:\.[ \t]*[\w-]+[ \t]*){{{TOML_DEPTH + 1}}}")


def parse_toml(text: str) -> dict[str, Any]:
    """Parse an untrusted TOML text. Raises ValueError, saying what is wrong with it."""
    bare = _STRING_OR_COMMENT.sub(lambda match: "" if match[0][0] == "#" else "s", text)
    if deep := _DEEP_KEY.search(bare):
        number = 1 + bare.count("\n", 0, deep.start())
        raise ValueError(f"a key in line {number} is more than {TOML_DEPTH} tables deep")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("its arrays or tables are nested too deep") from None
    values: list[Any] = [table]
    while values:  # the types that are checked later accept integers of any length
        value = values.pop()
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise ValueError("it holds an integer of more than 64 bits")
        if isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value
    return table


def decode(data: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode JSON to this type. Raises ValueError with the problem: nested too deeply, of another
    type, or no JSON."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"JSON of another form ({str(error)[:200]})") from None


def linked(error: OSError) -> str:
    """Advice to end an error message with, where a link was refused; else an empty text."""
    return f"; {FOLLOW}" if error.errno == errno.EPERM else ""
