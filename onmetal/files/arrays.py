"""Reads arrays from untrusted .npy and .npz files. The header of a file is checked against its real
size before any values are read, so that a false header costs neither memory nor time."""

import contextlib
import hashlib
import io
import math
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from msgspec import Struct

from onmetal.errors import UsageError
from onmetal.files.reading import open_regular
from onmetal.files.stored import StoredArray

PREFIX_BYTES = 12
HEADER_BYTES = 10_000
"""The longest header of an .npy file, which is numpy's own limit for untrusted files."""
CHUNK_BYTES = 1 << 24
DIRECTORY_BYTES = 4 << 20
"""The most bytes of an archive's directory: enough for 10,000 members with names of 300 letters."""
BOMB_BYTES = 4 << 30
BOMB_RATIO = 100
"""An archive that unpacks to more than so many bytes, and to so many times its size, is refused."""
MOST_AXES = 32
MOST_BYTES = 1 << 60
"""The most bytes of one array: more than any machine has, and few enough not to overflow."""
MOST_MEMBERS = 10_000
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The compression methods that numpy writes; others can demand gigabytes of memory."""


class ArrayFile(Struct, frozen=True):
    """An array on disk: where its bytes begin, and how to read them."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    fortran: bool = False

    @property
    def size_bytes(self) -> int:
        """The size of its values, without the header."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def open(self) -> np.ndarray:
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)

    def row(self, index: int) -> np.ndarray:
        """One sample, read and not memory-mapped: pages of a mapped file would count as memory."""
        if self.fortran or 0 in self.shape:
            return np.array(self.open()[index])
        stored = StoredArray(self.path, self.shape, np.dtype(self.dtype), self.offset)
        values: np.ndarray = stored[index : index + 1][0]
        return values


class TextArrayError(UsageError):
    """An array of names or objects, where numbers are wanted."""


def read_header(file: IO[bytes], path: Path, size_bytes: int, label: str) -> ArrayFile:
    """Parse the header of an .npy file. `label`: names the array in errors; `path`: is put into
    the result.

    Raises UsageError where it is no array, or not as long as the `size_bytes` of its file;
    TextArrayError where it holds no numbers.
    """
    head = file.read(PREFIX_BYTES + HEADER_BYTES)
    fixed = {b"\1\0": 10, b"\2\0": 12}.get(head[6:8], 0)  # format version -> where the text begins
    if head[:6] != b"\x93NUMPY" or len(head) < fixed or not fixed:
        raise UsageError(f"{label} is not a readable array (it does not begin as .npy files do)")
    offset = fixed + int.from_bytes(head[8:fixed], "little")
    if offset > len(head):
        raise UsageError(f"{label} is not a readable array (its head is cut short, or too long)")
    dtype, fortran, axes = _parsed(head[fixed:offset], label)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise TextArrayError(f"{label} has dtype {dtype}: only numbers can be given to a model")
    longest = math.prod(max(1, axis) for axis in axes) * dtype.itemsize
    if len(axes) > MOST_AXES or min(axes, default=0) < 0 or longest > MOST_BYTES:
        raise UsageError(f"{label} says that its shape is {str(list(axes))[:200]}: no array has it")
    array = ArrayFile(path, dtype.str, axes, offset, fortran)
    if size_bytes < array.offset + array.size_bytes:
        raise UsageError(f"{label} is cut short")
    if size_bytes > array.offset + array.size_bytes:
        raise UsageError(
            f"{label} holds {size_bytes - offset} bytes, more than the {array.size_bytes} of its "
            "shape and dtype"
        )
    return array


_ITEM = re.compile(
    r"""\s*(?:'|")(descr|fortran_order|shape)(?:'|")\s*:\s*"""
    r"""(?:(?:'|")([^'"]{1,60})(?:'|")|(True|False)|\(([-\d,L\s]*)\)|(\[))\s*(?:,|\Z)?"""
)
_AXIS = re.compile(r"\s*(-?\d{1,20})L?\s*", re.ASCII)


def _parsed(text: bytes, label: str) -> tuple["np.dtype[Any]", bool, tuple[int, ...]]:
    """-> the dtype; whether the first axis varies fastest; the shape. The text is a Python dict in
    one of a few forms; it is matched by a pattern and, unlike in numpy, never evaluated."""
    words = text.decode("latin-1").strip()
    values: dict[str, Any] = {}
    place, end = 1, len(words) - 1
    while (item := _ITEM.match(words, place, end)) and item[1] not in values:
        values[item[1]] = item[2] or (item[3] and item[3] == "True")
        if item[4] is not None:
            parts = item[4].split(",")
            if not parts[-1].strip():
                parts.pop()
            axes = [_AXIS.fullmatch(part) for part in parts]
            bracketed_number = len(axes) == 1 and "," not in item[4]  # a number in brackets
            values[item[1]] = (
                None if bracketed_number or None in axes else tuple(int(a[1]) for a in axes if a)
            )
        if item[5]:
            raise TextArrayError(f"{label} has fields: only numbers can be given to a model")
        place = item.end()
    descr, fortran, shape = (values.get(key) for key in ("descr", "fortran_order", "shape"))
    whole = words[:1] == "{" and words[-1:] == "}" and not words[place:end].strip()
    if not (whole and isinstance(descr, str) and isinstance(fortran, bool) and shape is not None):
        raise UsageError(f"{label} is not a readable array (its head is {words[:100]!r})")
    try:
        return np.dtype(descr), fortran, shape
    except (TypeError, ValueError, SyntaxError):
        raise UsageError(f"{label} has dtype {descr!r}, which is unknown") from None


def stored(path: Path) -> ArrayFile:
    """The header of an .npy file that onmetal wrote."""
    with path.open("rb") as file:
        return read_header(file, path, path.stat().st_size, str(path))


Members = dict[str, ArrayFile]
"""Name of an array -> its header; `path` is the number of its member, such as `0.npy`."""


class Archive(NamedTuple):
    """An open .npz file, whose members were checked."""

    path: Path
    file: io.BufferedReader
    zipped: zipfile.ZipFile
    members: Members

    @property
    def unpacked_bytes(self) -> int:
        return sum(entry.file_size for entry in self.zipped.infolist())

    def sha256(self) -> str:
        """The digest of the open file: another file may be at the path by now."""
        digest, place = hashlib.sha256(), 0
        while piece := os.pread(self.file.fileno(), CHUNK_BYTES, place):  # the file's place stays
            digest.update(piece)
            place += len(piece)
        return digest.hexdigest()

    def unpack(self, folder: Path) -> None:
        """Write every member unchanged to the folder, named by its number: `0.npy`."""
        for number, entry in enumerate(self.zipped.infolist()):
            with _reading(self.path), self.zipped.open(entry) as packed:
                _copy(packed, folder / f"{number}.npy", entry, self.path)


def _copy(packed: IO[bytes], place: Path, entry: zipfile.ZipInfo, source: Path) -> None:
    try:
        with place.open("wb") as plain:
            while piece := packed.read(CHUNK_BYTES):
                plain.write(piece)
            size_bytes = plain.tell()
    except OSError as error:
        raise UsageError(f"{source}: cannot unpack it to {place} ({error.strerror})") from None
    if size_bytes != entry.file_size:
        raise UsageError(f"{source}: member {entry.filename!r} is cut short")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open an .npz file and check its members.

    Raises UsageError, with the path and the problem: no regular file, no archive, members other
    than arrays of numbers, fewer bytes than a header says; and at the end, where the file was
    changed in the meantime.
    """
    try:
        file = open_regular(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot read it ({error.strerror})") from None
    with file:
        before = os.fstat(file.fileno())
        with _reading(path):
            directory = _Directory(io.FileIO(file.fileno(), closefd=False))
            zipped = zipfile.ZipFile(directory)
            directory.most_bytes = None
            members = _members(path, zipped)
        yield Archive(path, file, zipped, members)
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_ctime_ns) != (after.st_size, after.st_ctime_ns):
            raise UsageError(f"{path}: it was changed while it was read; run it again")


class _Directory(io.BufferedReader):
    """A reader that limits the bytes read while zipfile opens an archive: zipfile reads the whole
    directory, whatever length it states, and needs a hundred times its size in memory."""

    most_bytes: int | None = DIRECTORY_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self.most_bytes is None:
            return super().read(size)
        endless = size is None or size < 0 or size > self.most_bytes
        content = super().read(self.most_bytes + 1 if endless else size)
        if len(content) > self.most_bytes:
            raise zipfile.BadZipFile("its directory is too long")
        return content


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn the errors of zipfile, which are of many types, into UsageError."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        why = (isinstance(error, OSError) and error.strerror) or str(error)[:200] or "damaged"
        raise UsageError(f"{path}: not a readable .npz file ({why})") from None


def _members(path: Path, archive: zipfile.ZipFile) -> Members:
    entries = archive.infolist()
    if len(entries) > MOST_MEMBERS:
        raise UsageError(f"{path}: it holds {len(entries)} arrays; the most are {MOST_MEMBERS}")
    unpacked = sum(entry.file_size for entry in entries)
    packed_bytes = sum(entry.compress_size for entry in entries)
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed_bytes:
        raise UsageError(
            f"{path}: its {packed_bytes} bytes unpack to {unpacked}, as those of a file do that is "
            "made to fill disks; if it is meant, save it by numpy.savez, which packs nothing"
        )
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
            label = f"{path}: member {name!r}"
            members[name] = read_header(packed, Path(f"{number}.npy"), entry.file_size, label)
    return members


def heads(path: Path, most_bytes: int) -> Members:
    """The headers of the arrays of an .npz file. Raises UsageError as `read_npz`."""
    with opened(path) as archive:
        _check_total(archive, most_bytes)
        return archive.members


def _check_total(archive: Archive, most_bytes: int) -> None:
    total = sum(array.size_bytes for array in archive.members.values())
    if total > most_bytes:
        raise UsageError(
            f"{archive.path}: its arrays take {total} bytes; the most that they may is {most_bytes}"
        )


def read_npz(path: Path, most_bytes: int) -> dict[str, np.ndarray]:
    """All arrays of a small .npz file, by name. Raises UsageError as `opened`, and where they take
    more than `most_bytes` together."""
    with opened(path) as archive:
        _check_total(archive, most_bytes)
        entries = archive.zipped.infolist()
        with _reading(path):
            return {
                name: _read(archive.zipped, entry, array, f"{path}: member {name!r}")
                for entry, (name, array) in zip(entries, archive.members.items(), strict=True)
            }


def _read(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, array: ArrayFile, label: str
) -> np.ndarray:
    with archive.open(entry) as packed:
        packed.read(array.offset)
        content = packed.read(array.size_bytes)
    if len(content) != array.size_bytes:
        raise UsageError(f"{label} is cut short")
    order: Any = "F" if array.fortran else "C"
    return np.frombuffer(content, array.dtype).reshape(array.shape, order=order)
