"""Arrays in .npy and .npz files that strangers made. What a file says of itself is held against
what is there before anything is read, so that a lie costs neither memory nor time.
"""

import contextlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from msgspec import Struct

from onmetal.calibration.outputs import StoredArray
from onmetal.errors import UsageError
from onmetal.reading import open_regular

HEADER_BYTES = 10_000
"""The longest head of an .npy file that numpy itself takes from a stranger."""
MOST_AXES = 32
MOST_BYTES = 1 << 60
"""Of one array; more has no machine, and less overflows nowhere."""
MOST_MEMBERS = 10_000
DIRECTORY_BYTES = 8 << 20
"""Of a list of that many members."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How numpy packs; other methods may be told to take gigabytes of memory."""


class ArrayFile(Struct, frozen=True):
    """An array on disk: where its bytes begin, and how to read them."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    fortran: bool = False

    @property
    def size_bytes(self) -> int:
        """Of its values alone."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def open(self) -> np.ndarray:
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)

    def row(self, index: int) -> np.ndarray:
        """One sample, read from the file: pages of a mapped file would count as memory."""
        if self.fortran or 0 in self.shape:
            return np.array(self.open()[index])
        stored = StoredArray(self.path, self.shape, np.dtype(self.dtype), self.offset)
        values: np.ndarray = stored[index : index + 1][0]
        return values


class TextArrayError(UsageError):
    """An array of names or objects, where numbers are wanted."""


def read_header(file: IO[bytes], path: Path, size_bytes: int, what: str) -> ArrayFile:
    """What the head of an .npy file says. `what`: the array, in errors; `path` goes to the record.

    Raises UsageError where it is no array, or longer than the `size_bytes` of its file;
    TextArrayError where it holds no numbers.
    """
    head = io.BytesIO(file.read(HEADER_BYTES + 16))
    try:
        version = np.lib.format.read_magic(head)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(head)
    except Exception as error:  # numpy evaluates the head as Python does: any error may come
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UsageError(f"{what} is not a readable array ({why})") from None
    if dtype.hasobject or dtype.kind not in "biuf":
        raise TextArrayError(f"{what} has dtype {dtype}: only numbers can be given to a model")
    axes = tuple(int(axis) for axis in shape)
    longest = math.prod(max(1, axis) for axis in axes) * dtype.itemsize
    if len(axes) > MOST_AXES or min(axes, default=0) < 0 or longest > MOST_BYTES:
        raise UsageError(f"{what} says that its shape is {str(list(axes))[:200]}: no array has it")
    array = ArrayFile(path, dtype.str, axes, head.tell(), bool(fortran))
    if size_bytes < array.offset + array.size_bytes:
        raise UsageError(f"{what} is cut short")
    return array


def stored(path: Path) -> ArrayFile:
    """An .npy file of our own making."""
    with path.open("rb") as file:
        return read_header(file, path, path.stat().st_size, str(path))


class _Frugal(io.BufferedReader):
    """A regular file of which no more is read at once than a list of members may take: zipfile
    reads that as a whole, and takes ten times its size."""

    most = DIRECTORY_BYTES

    def __init__(self, path: Path) -> None:
        file = open_regular(path)
        assert isinstance(file, io.BufferedReader)
        super().__init__(file.detach())

    def read(self, size: int | None = -1, /) -> bytes:
        if (size or 0) > self.most:
            raise ValueError("its list of members is too long")
        return super().read(size)


Members = dict[str, ArrayFile]
"""Name of an array -> what its head says; its path is the number of its member, `0.npy`."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, Members]]:
    """An .npz file, whose members were looked at. Raises UsageError, with the path and what is
    wrong: no regular file, no archive, other members than arrays of numbers, a size that is not
    there.
    """
    try:
        file = _Frugal(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot read it ({error.strerror})") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        try:
            archive = stack.enter_context(zipfile.ZipFile(file))
            file.most = MOST_BYTES
            members = _members(path, archive)
        except UsageError:
            raise
        except Exception as error:  # zipfile's own errors are of many kinds
            raise _unreadable(path, error) from None
        try:
            yield archive, members
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path}: not a readable .npz file ({str(error)[:200]})")


def _members(path: Path, archive: zipfile.ZipFile) -> Members:
    entries = archive.infolist()
    if len(entries) > MOST_MEMBERS:
        raise UsageError(f"{path}: it holds {len(entries)} arrays; the most are {MOST_MEMBERS}")
    members: Members = {}
    for number, entry in enumerate(entries):
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename:
            raise UsageError(f"{path}: {entry.filename!r} in it is no array")
        if name in members:
            raise UsageError(f"{path}: it holds two arrays of the name {name!r}")
        if entry.flag_bits & 1:
            raise UsageError(f"{path}: {name!r} in it is encrypted")
        if entry.compress_type not in METHODS:
            raise UsageError(
                f"{path}: {name!r} in it is packed by a method that numpy does not write; save it "
                "by numpy.savez or numpy.savez_compressed"
            )
        with archive.open(entry) as packed:
            what = f"{path}: member {name!r}"
            members[name] = read_header(packed, Path(f"{number}.npy"), entry.file_size, what)
    return members


def heads(path: Path, most_bytes: int) -> Members:
    """What the arrays of an .npz file say of themselves. Raises UsageError as `read_npz`."""
    with opened(path) as (_, members):
        _check_total(path, members, most_bytes)
        return members


def _check_total(path: Path, members: Members, most_bytes: int) -> None:
    total = sum(array.size_bytes for array in members.values())
    if total > most_bytes:
        raise UsageError(
            f"{path}: its arrays take {total} bytes; the most that they may is {most_bytes}"
        )


def read_npz(path: Path, most_bytes: int) -> dict[str, np.ndarray]:
    """All arrays of a small .npz file, by name. Raises UsageError as `opened`, and where they take
    more than `most_bytes` together."""
    with opened(path) as (archive, members):
        _check_total(path, members, most_bytes)
        entries = archive.infolist()
        return {
            name: _read(archive, entry, array, f"{path}: member {name!r}")
            for entry, (name, array) in zip(entries, members.items(), strict=True)
        }


def _read(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, array: ArrayFile, what: str
) -> np.ndarray:
    with archive.open(entry) as packed:
        packed.read(array.offset)
        content = packed.read(array.size_bytes)
    if len(content) != array.size_bytes:
        raise UsageError(f"{what} is cut short")
    order: Any = "F" if array.fortran else "C"
    return np.frombuffer(content, array.dtype).reshape(array.shape, order=order)
