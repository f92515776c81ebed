"""Weights that an ONNX model keeps in files beside it. Where they lie is a stranger's word: nothing
outside of the model's folder is opened, and no more is read than a tensor's shape asks for.
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
"""How often the bytes of the files may be asked for: those of tied weights are, a few times."""
SPARE_BYTES = 256 << 20
"""More than SHARED times what is asked for: files that several models share, or with gaps."""
_NUMBER = re.compile(r"\d{1,18}", re.ASCII)


class Place(NamedTuple):
    """Where a tensor's data lies."""

    tensor: onnx.TensorProto
    location: str
    offset: int
    size_bytes: int
    checksum: str
    """SHA-1 of the whole file, as the format has it; empty: none was given."""


def take_in(model: onnx.ModelProto, source: Path, digest: Any) -> int | None:
    """Read the data of all tensors into the model, and the files, whole, into the digest.

    -> how many bytes the files have; None: there are none. Raises UsageError where one is missing,
    cut off, no regular file, or not in the folder of the model.
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
        whole, asked = sum(sizes.values()), sum(place.size_bytes for place in places)
        if asked > SHARED * whole:
            raise UsageError(
                f"{source}: its tensors ask for {asked} bytes of external data, and the files have "
                f"{whole}: damaged"
            )
        if whole > SHARED * asked + SPARE_BYTES:
            raise UsageError(
                f"{source}: its files of external data have {whole} bytes, of which its tensors "
                f"ask for {asked}: give the model files of its own"
            )
        limits.widen_reading(max(whole, asked))
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
    return whole


def check(model: onnx.ModelProto, source: Path) -> None:
    """Whether all of it can be taken in. Raises UsageError as `take_in`; nothing is read."""
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
    wanted = checks.size_bytes(tensor, source)
    offset, length = entries.get("offset") or "0", entries.get("length") or str(wanted)
    if not (_NUMBER.fullmatch(offset) and _NUMBER.fullmatch(length)):
        raise UsageError(f"{source}: {tensor.name!r} has a damaged data offset or length")
    if int(length) not in (0, wanted):  # 0: up to the end, in some writers
        raise UsageError(
            f"{source}: the tensor {tensor.name!r} of shape {list(tensor.dims)} is said to lie in "
            f"{length} bytes of external data instead of {wanted}: damaged"
        )
    return Place(tensor, location, int(offset), wanted, entries.get("checksum", ""))


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
    why = getattr(error, "strerror", None) or "links in a circle"
    return UsageError(f"{source}: cannot read its external data {location[:300]!r} ({why})")


def _check_end(place: Place, size_bytes: int, source: Path) -> None:
    end = place.offset + place.size_bytes
    if end > size_bytes:
        raise UsageError(
            f"{source}: its external data {place.location!r} is cut off: {place.tensor.name!r} "
            f"lies at bytes {place.offset} to {end} of {size_bytes}"
        )


def _hashed(file: io.BufferedReader, digest: Any) -> str:
    """The whole file goes into the digest. -> its own SHA-1."""
    own = hashlib.sha1(usedforsecurity=False)
    file.seek(0)
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        own.update(piece)
    return own.hexdigest()
