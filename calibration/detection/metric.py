"""The metric `map`: COCO's average precision of a detector's outputs against boxes."""

from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.calibration.detection import heads, reading
from onmetal.calibration.detection.average_precision import Matches, match, need_library
from onmetal.calibration.detection.heads import Head
from onmetal.calibration.metric_table import METRICS, Metric
from onmetal.errors import UsageError
from onmetal.files.stored import Outputs, chunks
from onmetal.records import Model
from onmetal.samples import Samples

CHANNELS = (1, 3, 4)
NOTHING = 0.01
"""A float model whose average precision is smaller finds hardly anything."""


class Detection(Struct, frozen=True):
    """How boxes of one model are judged."""

    head: Head

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(self.head.outputs.values())

    def summarize(self, outputs: Mapping[str, Outputs], labels: Outputs) -> Matches:
        """Labels: [samples, most, 5 or 6] (x1, y1, x2, y2, class, crowd), class -1: none."""
        largest = max((outputs[name] for name in self.reads), key=lambda output: output.nbytes)
        found: list[np.ndarray] = []
        for part in chunks(largest):
            arrays = {name: np.asarray(outputs[name][part]) for name in self.reads}
            found += reading.detections(self.head, arrays)
        return match(found, boxes_of(np.asarray(labels)))


def boxes_of(labels: np.ndarray) -> list[np.ndarray]:
    """Of each image [n, 6] float64: the rows that are boxes."""
    rows = np.zeros((*labels.shape[:2], 6))
    rows[:, :, : labels.shape[2]] = labels
    return [of_image[of_image[:, 4] >= 0] for of_image in rows]


def metric(model: Model, output: str | None, data: Samples) -> Metric:
    """The metric `map` for a model, whose head must be settled yet (reading.settle).

    `output`: the one that --output names. Raises UsageError where pycocotools is missing, and where
    labels are no boxes or the outputs are of no known head.
    """
    need_library()
    _check_labels(data)
    names = data.preprocessing.classes if data.preprocessing else None
    known = data.task.class_numbers == "order" and names
    head = heads.find(model, output, data.task, input_size(model, data), len(known or ()) or None)
    if isinstance(head, str):
        shown = ", ".join(f"{t.name!r} {list(model.sample_shape(t))}" for t in model.outputs)
        told = f" ({len(known)} classes in the labels)" if known else ""
        raise UsageError(
            f"--metric map: how to read detections from the outputs {shown}{told} is not known: "
            f"{head}; {heads.SUPPORTED}"
        )
    _check_classes(data, head)
    return replace(METRICS["map"], whole=Detection(head))


def _check_labels(data: Samples) -> None:
    labels = data.label_array()

    def refuse(reason: str) -> UsageError:
        return UsageError(
            f"--metric map with labels {labels.dtype}{list(labels.shape[1:])} of {data.source}: "
            f"{reason}; labels are a COCO file in a folder of images, or in an .npz file `y` "
            "[samples, most, 5]: x1, y1, x2, y2 in pixels of the input, class; rows of class -1 "
            "are padding"
        )

    if labels.ndim != 3 or labels.shape[2] not in (5, 6):
        raise refuse("they are no boxes")
    rows = labels.reshape(-1, labels.shape[2]).astype(np.float64)
    if not np.array_equal(rows[:, 4], np.rint(rows[:, 4])) or rows[:, 4].min(initial=0) < -1:
        raise refuse("classes must be whole numbers from -1 on")
    rows = rows[rows[:, 4] >= 0]
    if not len(rows):
        raise refuse("there is no box in them")
    if (rows[:, 2:4] < rows[:, :2]).any():
        row = rows[int(np.argmax((rows[:, 2:4] < rows[:, :2]).any(axis=1)))]
        raise refuse(f"the box {row[:4].tolist()} ends before it begins")


def _check_classes(data: Samples, head: Head) -> None:
    labels = data.label_array()
    largest = int(labels[:, :, 4].max(initial=-1))
    if head.classes is not None and largest >= head.classes:
        raise UsageError(
            f"{data.source}: a box has the class {largest}, and the model's are 0 to "
            f"{head.classes - 1}"
        )


def input_size(model: Model, data: Samples) -> tuple[int, int]:
    """Width and height of the input that is an image. Raises UsageError where none is."""
    for tensor in model.inputs:
        shape = model.sample_shape(tensor)
        if len(shape) != 3:
            continue
        last = shape[2] in CHANNELS and shape[0] not in CHANNELS
        if data.preprocessing is not None:
            last = data.preprocessing.layout == "NHWC"
        return (shape[1], shape[0]) if last else (shape[2], shape[1])
    raise UsageError("--metric map: no input of the model is an image of three axes")


def settled(metric: Metric, outputs: Mapping[str, np.ndarray]) -> tuple[Metric, list[str]]:
    """The metric with what only values tell: outputs of the original model on a few samples."""
    detection: Detection = metric.whole
    head, notes = reading.settle(detection.head, outputs)
    return replace(metric, whole=Detection(head)), notes


def warning(value: float) -> str | None:
    """A warning where the float model finds hardly anything."""
    if not value < NOTHING:
        return None
    return (
        f"the float model finds hardly anything: its map is {value:.3g}; are the inputs prepared "
        "as in training, and are `boxes`, `normalized`, `classes` and `class_numbers` in data.toml "
        "as the model has them?"
    )
