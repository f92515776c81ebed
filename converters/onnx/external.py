"""Weights that an ONNX model keeps in files beside it. The paths come from an untrusted file:
nothing outside of the model's folder is opened, and no more is read than a tensor's shape asks for.
"""

import contextlib
import hashlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from onmetal import limits
from onmetal.converters.onnx import checks
from onmetal.errors import UsageError
from onmetal.files.reading import open_regular

PIECE_BYTES = 1 << 24
SHARED = 4
"""The most times by which the tensors' bytes may exceed the files' (tied weights are read several
times), or the files' bytes the tensors', to which SPARE_BYTES are added."""
SPARE_BYTES = 256 << 20
"""Bytes of files that no tensor asks for: several models share them, or there are gaps."""
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


class Place(NamedTuple):
    """Where a tensor's data lies."""

    tensor: onnx.TensorProto
    location: str
    offset: int
    size_bytes: int
    checksum: str
    """SHA-1 of the whole file, as the format defines it; empty where the model has none."""


def rename(path: Path, copy: Path, data_name: str) -> None:
    """Write a copy of a prepared model, whose weights lie in one file beside it, that looks for
    them in a file called `data_name`."""
    model = onnx.load_model(str(path), load_external_data=False)
    for tensor in checks.tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data_name
    copy.write_bytes(model.SerializeToString(deterministic=True))


def take_in(model: onnx.ModelProto, source: Path, digest: Any) -> int | None:
    """Read the data of all tensors into the model, and add the whole files to the digest.

    -> how many bytes the files have; None where there are no files. Raises UsageError where a file
    is missing, cut off, not regular, or not in the folder of the model.
    """
    external = onnx.TensorProto.EXTERNAL
    tensors = [t for t in checks.tensors(model) if t.data_location == external]
    if not tensors:
        return None
    places = [_place(tensor, source) for tensor in tensors]
    with contextlib.ExitStack() as stack:
        files = {
            location: stack.enter_context(_opened(location, source))
            for location in dict.fromkeys(place.location for place in places)
        }
        sizes = {location: file.seek(0, io.SEEK_END) for location, file in files.items()}
        for place in places:
            _check_end(place, sizes[place.location], source)
        file_bytes, tensor_bytes = sum(sizes.values()), sum(place.size_bytes for place in places)
        if tensor_bytes > SHARED * file_bytes:
            raise UsageError(
                f"{source}: its tensors ask for {tensor_bytes} bytes of external data, and the "
                f"files have {file_bytes}: damaged"
            )
        if file_bytes > SHARED * tensor_bytes + SPARE_BYTES:
            raise UsageError(
                f"{source}: its files of external data have {file_bytes} bytes, of which its "
                f"tensors ask for {tensor_bytes}: give the model files of its own"
            )
        limits.widen_reading(max(file_bytes, tensor_bytes))
        checksums = {location: _hashed(file, digest) for location, file in files.items()}
        for place in places:
            if place.checksum and place.checksum.lower() != checksums[place.location]:
                raise UsageError(
                    f"{source}: its external data {place.location!r} is another file than the one "
                    "that the model was saved with (its SHA-1 differs)"
                )
            files[place.location].seek(place.offset)
            place.tensor.raw_data = files[place.location].read(place.size_bytes)
            place.tensor.data_location = onnx.TensorProto.DEFAULT
            del place.tensor.external_data[:]
    return file_bytes


def check(model: onnx.ModelProto, source: Path) -> None:
    """Check, without reading it, that `take_in` can read all external data. Raises UsageError."""
    for tensor in checks.tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = _place(tensor, source)
            with _opened(place.location, source) as file:
                _check_end(place, file.seek(0, io.SEEK_END), source)


def _place(tensor: onnx.TensorProto, source: Path) -> Place:
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in entries:
            raise UsageError(
                f"{source}: {tensor.name!r} says {entry.key[:100]!r} of its external data twice"
            )
        entries[entry.key] = entry.value
    location = entries.get("location", "")
    parts = Path(location).parts
    if not parts or "\0" in location or Path(location).is_absolute() or ".." in parts:
        raise UsageError(
            f"{source}: the tensor {tensor.name!r} asks for its data at {location[:300]!r}, "
            "outside the model's folder; such a file is not opened"
        )
    expected = checks.size_bytes(tensor, source)
    offset, length = entries.get("offset") or "0", entries.get("length") or str(expected)
    if not (_NUMBER.fullmatch(offset) and _NUMBER.fullmatch(length)):
        raise UsageError(f"{source}: {tensor.name!r} has a damaged data offset or length")
    if int(length) not in (0, expected):  # 0: up to the end, in some writers
        raise UsageError(
            f"{source}: the tensor {tensor.name!r} of shape {list(tensor.dims)} is said to lie in "
            f"{length} bytes of external data instead of {expected}: damaged"
        )
    return Place(tensor, location, int(offset), expected, entries.get("checksum", ""))


def _opened(location: str, source: Path) -> io.BufferedReader:
    home = source.resolve().parent
    try:
        if (home / location).resolve() == source.resolve():
            raise UsageError(f"{source}: its external data {location!r} is the model file itself")
        return open_regular(home / location, home)
    except FileNotFoundError:
        raise UsageError(
            f"{source}: its external data {location!r} is missing; it must lie beside the model, "
            "under this name"
        ) from None
    except PermissionError as error:
        if not (home / location).resolve().is_relative_to(home):
            raise UsageError(
                f"{source}: its data file {location!r} is a link out of the model's folder; "
                "put a copy of the file there"
            ) from None
        raise _unreadable(source, location, error) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise _unreadable(source, location, error) from None


def _unreadable(source: Path, location: str, error: Exception) -> UsageError:
    cause = getattr(error, "strerror", None) or "links in a circle"
    return UsageError(f"{source}: cannot read its external data {location[:300]!r} ({cause})")


def _check_end(place: Place, size_bytes: int, source: Path) -> None:
    end = place.offset + place.size_bytes
    if end > size_bytes:
        raise UsageError(
            f"{source}: its external data {place.location!r} is cut off: {place.tensor.name!r} "
            f"lies at bytes {place.offset} to {end} of {size_bytes}"
        )


def _hashed(file: io.BufferedReader, digest: Any) -> str:
    """Add the whole file to the digest. -> the file's own SHA-1."""
    sha1 = hashlib.sha1(usedforsecurity=False)
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        sha1.update(piece)
    return sha1.hexdigest()
