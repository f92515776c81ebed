"""Arrays of many samples, inputs and outputs, kept on disk and read a part at a time.

They are read, not memory-mapped: the pages of a mapped file count as memory of the process, which
would then grow with the number of samples.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_BYTES = 1 << 22


class StoredArray:
    """An .npy file, first axis = samples. Slices and arrays of sample numbers give arrays in
    memory, of those samples alone."""

    def __init__(
        self, path: Path, shape: tuple[int, ...], dtype: "np.dtype[Any]", offset: int
    ) -> None:
        """`offset`: where the values begin in the file, in bytes."""
        self.path, self.shape, self.dtype, self._offset = path, shape, dtype, offset
        self._row_items = math.prod(self.shape[1:])

    @classmethod
    def at(cls, path: Path) -> "StoredArray":
        """The array of an .npy file that onmetal wrote."""
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran_order, dtype = read_header(file)
            assert not fortran_order
            return cls(path, shape, dtype, file.tell())

    def __len__(self) -> int:
        return int(self.shape[0])

    @property
    def row_bytes(self) -> int:
        return int(self._row_items * self.dtype.itemsize)

    @property
    def nbytes(self) -> int:
        return self.row_bytes * len(self)

    def __getitem__(self, picked: slice | np.ndarray) -> np.ndarray:
        if isinstance(picked, slice):
            start, stop, step = picked.indices(len(self))
            if step == 1:
                return self._read(start, max(0, stop - start))
            picked = np.arange(start, stop, step)
        rows = np.empty((len(picked), *self.shape[1:]), self.dtype)
        for row, index in enumerate(picked):
            rows[row] = self._read(int(index), 1)[0]
        return rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self._read(0, len(self))
        return whole if dtype is None else whole.astype(dtype)

    def _read(self, start: int, count: int) -> np.ndarray:
        with self.path.open("rb") as file:
            file.seek(self._offset + start * self.row_bytes)
            values = np.fromfile(file, self.dtype, count * self._row_items)
        return values.reshape(count, *self.shape[1:])


class StoredRows(StoredArray):
    """Some samples of a StoredArray, in another order or not, read as they are needed."""

    def __init__(self, whole: StoredArray, places: np.ndarray) -> None:
        """`places`: [n] int, the samples' indices in `whole`."""
        shape = (len(places), *whole.shape[1:])
        super().__init__(whole.path, shape, whole.dtype, whole._offset)
        self._places = places

    def __getitem__(self, picked: slice | np.ndarray) -> np.ndarray:
        return super().__getitem__(self._places[picked])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype)


Outputs = StoredArray | np.ndarray
"""An output of many samples, first axis = samples."""


def chunks(array: Outputs) -> Iterator[slice]:
    """Slices along the first axis of at most 4 MiB each, or of one sample."""
    row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    step = max(1, CHUNK_BYTES // max(1, row_bytes))
    for start in range(0, len(array), step):
        yield slice(start, start + step)
