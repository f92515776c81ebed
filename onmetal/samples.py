"""The user's data as a record: samples by number, fed to a model in batches.

Arrays stay on disk (memory-mapped) and images are decoded when they are needed, so that data may be
larger than memory. `Samples` is a plain record, which worker processes receive as JSON.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from msgspec import Struct

from onmetal.errors import UsageError
from onmetal.files import images
from onmetal.files.arrays import ArrayFile
from onmetal.files.preprocessing import Preprocessing
from onmetal.files.stored import Outputs, StoredArray, StoredRows
from onmetal.files.task_settings import TaskSettings
from onmetal.records import Model, Tensor

Part = Literal["all", "training", "calibration", "evaluation"]


class Samples(Struct, frozen=True):
    """Samples by number, 0 to `count` - 1: all that DATA holds, or one part of it."""

    source: str
    digest: str
    count: int
    arrays: dict[str, ArrayFile] = {}
    """Input name -> array, first axis = samples; empty where the samples are images."""
    images: tuple[Path, ...] = ()
    within: Path | None = None
    """The folder of the images, resolved, out of which no link may lead; None: links may."""
    preprocessing: Preprocessing | None = None
    labels: ArrayFile | None = None
    labels_are: Literal["values", "boxes", "masks"] = "values"
    """What a folder of images is labelled with. boxes: [samples, most, 6] (x1, y1, x2, y2, class,
    crowd) in pixels of the input, rows of class -1 being none; masks: [samples, height, width]."""
    task: TaskSettings = TaskSettings()
    """What data.toml says of these labels and of the outputs that are judged by them."""
    warnings: tuple[str, ...] = ()
    part: Part = "all"
    every: int = 0
    """For a part of DATA: the last of every so many samples is for calibration."""
    training: int = 0
    """For a part of DATA: how many of every `every` samples, the first ones, are for training."""

    def place(self, index: int) -> int:
        """The index in DATA of a sample of this part."""
        if self.part == "calibration":
            return index * self.every + self.every - 1
        if self.part == "training":
            group, number = divmod(index, self.training)
            return group * self.every + number
        if self.part == "evaluation":
            group, number = divmod(index, self.every - 1 - self.training)
            return group * self.every + self.training + number
        return index

    def places(self) -> np.ndarray:
        """[count] int64: the index in DATA of every sample of this part."""
        return np.array([self.place(index) for index in range(self.count)], np.int64)

    def feed(self, model: Model, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The inputs of one inference, in the model's own shapes and dtypes.

        `indices` are as many as the model's batch (1 for a model without a batch axis).
        """
        indices = [self.place(index) for index in indices]
        if self.preprocessing:
            image_input = model.inputs[0]
            rows = [images.read(self.images[i], self.preprocessing, self.within) for i in indices]
            return {
                image_input.name: _quantized(np.stack(rows).reshape(image_input.shape), image_input)
            }
        feed_arrays = {}
        for tensor in model.inputs:
            array_file = self.arrays[tensor.name]
            rows = [array_file.row(i) for i in indices]
            feed_arrays[tensor.name] = _quantized(np.stack(rows).reshape(tensor.shape), tensor)
        return feed_arrays

    def spread(self, model: Model, most: int) -> Iterator[dict[str, np.ndarray]]:
        """The inputs of up to `most` inferences, spread evenly over all samples."""
        count = max(1, min(most, self.count // model.batch))
        for number in range(count):
            start = number * self.count // count
            indices = [min(start + place, self.count - 1) for place in range(model.batch)]
            yield self.feed(model, indices)

    def label_array(self) -> np.ndarray:
        """The labels of all samples of this part, first axis = samples."""
        if self.labels is None:
            raise UsageError(f"{self.source}: it has no labels")
        labels = np.asarray(self.labels.open())
        return labels if self.part == "all" else labels[self.places()]

    def label_rows(self) -> Outputs:
        """As `label_array`, but read as they are needed: masks may be larger than memory."""
        if self.labels is None or self.labels.fortran or 0 in self.labels.shape:
            return self.label_array()
        file = self.labels
        whole = StoredArray(file.path, file.shape, np.dtype(file.dtype), file.offset)
        return whole if self.part == "all" else StoredRows(whole, self.places())


def _quantized(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The array in the tensor's dtype; real numbers for a quantized input are quantized by its
    scale and zero point, as in run.py."""
    if array.dtype.kind != "f" or not tensor.scale:
        return array.astype(tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    whole = np.rint(array / np.float32(tensor.scale)) + tensor.zero_point
    quantized_values: np.ndarray = np.clip(whole, limits.min, limits.max).astype(tensor.dtype)
    return quantized_values
