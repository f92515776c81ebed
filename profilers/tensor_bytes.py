"""Arrays as the bytes of a device's inputs and outputs: raw tensors one after another, and back.

The conversions of run.py around a TFLite artifact (channels last, quantized integers, types that
the artifact does not have) are done here for the native runner, which moves bytes only.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onmetal.errors import DeviceError, UnsupportedError
from onmetal.profilers.devices.answers import TensorOnDevice
from onmetal.records import Model

NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def order(tensors: Sequence[TensorOnDevice], names: Sequence[str]) -> list[str]:
    """The manifest's name of every tensor: the tensor's own name, or, where the file has other
    names, the name at its place."""
    if len(tensors) != len(names):
        raise DeviceError(
            f"the device sees {len(tensors)} tensors where the model has {len(names)}"
        )
    if {tensor.name for tensor in tensors} == set(names):
        return [tensor.name for tensor in tensors]
    return list(names)


class Edges(NamedTuple):
    """The inputs and outputs that an artifact has in another layout or type than the model."""

    nhwc: frozenset[str] = frozenset()
    float16: frozenset[str] = frozenset()
    """float16 in the model; the artifact has them in float32 or whole numbers."""


def edges(options: dict[str, Any]) -> Edges:
    return Edges(*(frozenset(options.get(name, ())) for name in Edges._fields))


def runtime_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options with which a runtime itself is opened."""
    return {name: value for name, value in options.items() if name not in Edges._fields}


def pack(
    feed: dict[str, np.ndarray],
    tensors: Sequence[TensorOnDevice],
    names: Sequence[str],
    edges: Edges,
) -> bytes:
    """One inference's inputs, by the manifest's names -> the bytes that the runner reads.

    `names`: as `order` gives them. Quantizes as TFLite does: round(x / scale) + zero, clipped.
    """
    pieces = []
    for tensor, name in zip(tensors, names, strict=True):
        array = feed[name].transpose(NHWC) if name in edges.nhwc else feed[name]
        if name in edges.float16:
            array = array.astype(np.float32)
        wanted = np.dtype(tensor.dtype)
        if array.dtype != wanted and tensor.scale:
            limits = np.iinfo(wanted)
            integers = np.rint(array / np.float32(tensor.scale)) + tensor.zero
            array = np.clip(integers, limits.min, limits.max).astype(wanted)
        if array.dtype != wanted or array.nbytes != tensor.bytes:
            raise DeviceError(
                f"input {name!r} is {array.dtype} {list(array.shape)}, but the model on the device "
                f"takes {tensor.dtype} {list(tensor.shape)}"
            )
        pieces.append(array.tobytes())
    return b"".join(pieces)


def unpack(
    content: bytes | memoryview,
    tensors: Sequence[TensorOnDevice],
    names: Sequence[str],
    edges: Edges,
    wanted: Sequence[str],
) -> list[np.ndarray]:
    """One inference's outputs, as the runner wrote them -> arrays in the order of `wanted`."""
    arrays: dict[str, np.ndarray] = {}
    place = 0
    for tensor, name in zip(tensors, names, strict=True):
        flat = np.frombuffer(content[place : place + tensor.bytes], np.dtype(tensor.dtype))
        place += tensor.bytes
        array = flat.reshape(tensor.shape)
        if tensor.scale and tensor.dtype in ("int8", "uint8", "int16"):
            array = (array.astype(np.float32) - np.float32(tensor.zero)) * np.float32(tensor.scale)
        if name in edges.float16:
            array = array.astype(np.float16)
        arrays[name] = np.ascontiguousarray(array.transpose(NCHW)) if name in edges.nhwc else array
    return [arrays[name] for name in wanted]


def read_feeds(path: Path) -> list[dict[str, np.ndarray]]:
    """An .npz with `<number>/<input name>`, as vectors.numbered names them."""
    arrays: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for name in stored.files:
            number, _, tensor = name.partition("/")
            arrays.setdefault(int(number), {})[tensor] = np.asarray(stored[name], order="C")
    return [arrays[number] for number in sorted(arrays)]


class Rows:
    """Every output's rows of many samples, on disk: `<number of the output>.npy`."""

    def __init__(self, folder: Path, model: Model, count: int) -> None:
        self.folder, self.model, self.count = folder, model, count
        self._shapes: list[tuple[int, ...]] = []

    def indices(self, start: int) -> list[int]:
        """The samples of the batch that begins at `start`; the last batch is filled up with its
        last sample, and the outputs of these copies are dropped."""
        return [min(start + place, self.count - 1) for place in range(self.model.batch)]

    def add(self, start: int, outputs: Sequence[np.ndarray]) -> None:
        """Append the outputs of the batch that begins at `start`."""
        rows = [_rows(array, self.model.batch) for array in outputs]
        if not self._shapes:
            self._begin(rows)
        for number, (shape, array) in enumerate(zip(self._shapes, rows, strict=True)):
            if array.shape[1:] != shape:
                raise UnsupportedError(
                    f"output {self.model.outputs[number].name!r} changes its shape from sample to "
                    f"sample ({list(shape)}, then {list(array.shape[1:])}); it cannot be judged; "
                    "export it with a fixed number of detections, or leave out what selects them: "
                    "--cut-at NAME (docs/detection.md)"
                )
            with self._path(number).open("ab") as file:
                file.write(np.ascontiguousarray(array[: self.count - start]).tobytes())

    def _begin(self, rows: list[np.ndarray]) -> None:
        """Rows are appended, not mapped: pages of a mapped file would count as memory."""
        for number, array in enumerate(rows):
            header = np.lib.format.header_data_from_array_1_0(array[:0])
            header |= {"shape": (self.count, *array.shape[1:]), "fortran_order": False}
            with self._path(number).open("wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
            self._shapes.append(array.shape[1:])

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.npy"


def _rows(array: np.ndarray, batch: int) -> np.ndarray:
    """Output of one inference -> [samples in it, ...]."""
    if array.shape[:1] == (batch,):
        return array
    if batch == 1:
        return array[None]
    raise UnsupportedError(
        f"an output has shape {list(array.shape)}: its first axis is not the batch of {batch}, "
        "so its samples cannot be told apart; use --batch 1"
    )
