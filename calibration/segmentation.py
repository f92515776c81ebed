"""The mean intersection over union of a segmentation: scores or class numbers against masks.

IoU of a class = pixels of both / pixels of either, summed over all samples; the mean is over the
classes that occur in the labels or the predictions (Everingham et al., 2015, section 4.2).
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.calibration.mask_folder import nearest
from onmetal.calibration.metric_table import METRICS, Metric
from onmetal.errors import UsageError
from onmetal.files.stored import Outputs, chunks
from onmetal.records import Model, Tensor
from onmetal.samples import Samples

MOST_CLASSES = 4096
"""Integer outputs with more are no class numbers."""
Form = Literal["channels first", "channels last", "class numbers", "probability"]
"""probability: of class 1, against class 0, in each pixel; over 0.5 it is class 1."""
SLACK = 1e-3


class Counts:
    """Of every sample and class: pixels that are both, that are predicted, that are labelled."""

    def __init__(self, parts: list[np.ndarray]) -> None:
        """`parts`: [samples, 3, classes] each, of any number of classes."""
        most = max(part.shape[2] for part in parts)
        padded = [np.pad(part, ((0, 0), (0, 0), (0, most - part.shape[2]))) for part in parts]
        self.counts = np.concatenate(padded).astype(np.float64)

    def score(self, samples: np.ndarray | None) -> float:
        if samples is None:
            both, predicted, labelled = self.counts.sum(axis=0)
        else:
            times = np.bincount(samples, minlength=len(self.counts)).astype(np.float64)
            both, predicted, labelled = np.tensordot(times, self.counts, axes=1)
        either = predicted + labelled - both
        present = either > 0
        return float(np.mean(both[present] / either[present])) if present.any() else float("nan")


class Segmentation(Struct, frozen=True):
    """How masks of one model are judged."""

    output: str
    form: Form
    shape: tuple[int, int]
    """Of the output: height and width."""
    ignore: int
    grid: tuple[float, int] = (1.0, 0)
    """Scale and zero point of a probability that is stored as a whole number."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.output})

    def summarize(self, outputs: Mapping[str, Outputs], labels: Outputs) -> Counts:
        """Labels: [samples, height, width] class numbers. Where the output has another height and
        width, the mask is sampled to it: each pixel takes the label at its centre."""
        judged = outputs[self.output]
        rows = nearest(labels.shape[1], self.shape[0])
        columns = nearest(labels.shape[2], self.shape[1])
        parts = []
        for part in chunks(judged):
            values = np.asarray(judged[part])
            masks = np.asarray(labels[part])[:, rows][:, :, columns]
            parts.append(count(self._classes(values), masks, self.ignore))
        return Counts(parts)

    def _classes(self, values: np.ndarray) -> np.ndarray:
        """[n, height, width] int64; -1, which no label is, where a score is NaN."""
        if self.form == "class numbers":
            return values.reshape(len(values), *self.shape).astype(np.int64)
        if self.form == "probability":
            shares = self.probabilities(values)
            return np.where(np.isnan(shares), -1, shares > 0.5).astype(np.int64)
        axis = 1 if self.form == "channels first" else 3
        classes = values.argmax(axis=axis)
        if values.dtype.kind == "f":
            classes = np.where(np.isnan(values).any(axis=axis), -1, classes)
        return np.asarray(classes, np.int64)

    def probabilities(self, values: np.ndarray) -> np.ndarray:
        """float64 [n, height, width]"""
        scale, zero = self.grid
        shares = values.reshape(len(values), *self.shape).astype(np.float64)
        return np.asarray((shares - zero) * scale)


def count(predicted: np.ndarray, masks: np.ndarray, ignore: int) -> np.ndarray:
    """[n, 3, classes] int64: for each sample, of pixels whose label is not `ignore`. Predictions
    that are no class number count as wrong."""
    judged = masks != ignore
    valid = (predicted >= 0) & (predicted < MOST_CLASSES)
    largest = max(int(masks[judged].max(initial=0)), int(predicted[judged & valid].max(initial=0)))
    size, samples = largest + 1, len(masks)
    offsets = (np.arange(samples) * size)[:, None, None]

    def per_class(values: np.ndarray, of: np.ndarray) -> np.ndarray:
        codes = (values.astype(np.int64) + offsets)[of]
        return np.bincount(codes, minlength=samples * size).reshape(samples, size)

    return np.stack(
        [
            per_class(predicted, judged & valid & (predicted == masks)),
            per_class(predicted, judged & valid),
            per_class(masks, judged),
        ],
        axis=1,
    )


def metric(model: Model, output: Tensor, data: Samples) -> Metric:
    """The metric `miou` for a model. Raises UsageError where output and masks do not fit."""
    labels = data.label_rows()
    shape = model.sample_shape(output)

    def refuse(reason: str) -> UsageError:
        return UsageError(
            f"--metric miou on output {output.name!r} (a sample gives {output.dtype}{list(shape)}) "
            f"with labels {labels.dtype}{list(labels.shape[1:])}: {reason}"
        )

    if len(labels.shape) != 3 or labels.dtype.kind not in "iu":
        raise refuse("labels must be masks, whole numbers [samples, height, width]")
    form, place = _form(output, shape, labels.shape[1:])
    if form is None:
        raise refuse(
            "the output must be a score per class and pixel, [classes, height, width] or "
            "[height, width, classes], or the probability of class 1 or class numbers, "
            "[height, width]; --output names another"
        )
    if form != "class numbers":
        of_axis = {"channels first": 0, "channels last": 2}
        _check_labels(data, shape[of_axis[form]] if form in of_axis else 2)
    grid = (output.scale, output.zero_point) if output.scale > 0 else (1.0, 0)
    judged = Segmentation(output.name, form, place, data.task.ignore, grid)
    return replace(METRICS["miou"], whole=judged)


def _form(
    output: Tensor, shape: tuple[int, ...], mask: tuple[int, ...]
) -> tuple[Form | None, tuple[int, int]]:
    """-> what the output is, and its height and width. Of scores with three axes, height and width
    are those two that have the mask's proportions."""
    scores = np.dtype(output.dtype).kind == "f" or output.scale > 0
    single: Form = "probability" if scores else "class numbers"
    if len(shape) == 2:
        return single, (shape[0], shape[1])
    if len(shape) != 3:
        return None, (0, 0)
    first, last = (shape[1], shape[2]), (shape[0], shape[1])
    if shape[0] == 1 or shape[2] == 1:
        return single, first if shape[0] == 1 else last
    if not scores and output.dtype not in ("int8", "uint8", "int16"):
        return None, (0, 0)

    def off(place: tuple[int, int]) -> float:
        return abs(place[0] * mask[1] - place[1] * mask[0]) / max(place[0] * mask[1], 1)

    if off(first) == off(last):
        return ("channels first", first) if shape[0] <= shape[2] else ("channels last", last)
    return ("channels first", first) if off(first) < off(last) else ("channels last", last)


def check_probability(metric: Metric, outputs: Mapping[str, np.ndarray]) -> None:
    """Raises UsageError where a probability, in a few outputs of the original model, is none."""
    judged: Segmentation = metric.whole
    if judged.form != "probability":
        return
    shares = judged.probabilities(outputs[judged.output])
    low, high = float(np.nanmin(shares)), float(np.nanmax(shares))
    if low < -SLACK or high > 1 + SLACK:
        raise UsageError(
            f"--metric miou: the output {judged.output!r} has one number a pixel, which is taken "
            f"as the probability of class 1, and goes from {low:.3g} to {high:.3g}: of logits, "
            "take what the Sigmoid gives, or write --metric MODULE:FUNCTION"
        )


def _check_labels(data: Samples, classes: int) -> None:
    labels = data.label_rows()
    for part in chunks(labels):
        masks = np.asarray(labels[part])
        valid = (masks == data.task.ignore) | ((masks >= 0) & (masks < classes))
        if not valid.all():
            value = int(masks[~valid][0])
            where = part.start + int(np.argmin(valid.reshape(len(masks), -1).all(axis=1)))
            raise UsageError(
                f"{data.source}: the mask of sample {where} holds {value}, and the output has "
                f"classes 0 to {classes - 1}; pixels that are not to be judged are "
                f"{data.task.ignore} (`ignore` in data.toml)"
            )
