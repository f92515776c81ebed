"""Labels that stand for class numbers in another form, and outputs that are scores."""

import math

import numpy as np

from onmetal.records import Shape, Tensor

OF_CLASS_NUMBERS = ("top1", "top5", "accuracy", "precision", "recall", "f1", "auc")
"""Metrics whose labels are class numbers."""
SCORE_DTYPES = ("int8", "uint8", "int16")
"""Types of the whole numbers as which a quantized model may give its scores."""


def scores(output: Tensor, shape: Shape) -> int | None:
    """How many scores a sample gives, one for each class; None where it gives something else."""
    wide = [length for length in shape if length != 1]
    kind = np.dtype(output.dtype)
    if len(wide) > 1 or (kind.kind != "f" and not (kind.name in SCORE_DTYPES and wide)):
        return None
    return math.prod(shape)


def class_labels(
    asked: str | None, output: Tensor, shape: Shape, labels: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Convert labels to class numbers [samples] int64 where they stand for these in another form:
    one-hot rows, a column, whole floats, booleans. -> the labels, unchanged where they are
    something else or the metric needs them as they are, and a warning where their form was changed.
    """
    classes = scores(output, shape)
    of_class_numbers = asked is None or asked.lower() in OF_CLASS_NUMBERS
    if not of_class_numbers or classes is None or not len(labels):
        return labels, []
    flat = labels.reshape(len(labels), -1)
    whole = labels.dtype.kind in "iub" or bool((flat == np.round(flat)).all())
    if whole and classes > 1 and flat.shape[1] == classes:
        return _from_rows(asked, labels, flat)
    if flat.shape[1] != 1 or not whole:
        return labels, []
    if labels.dtype.kind == "f":
        if asked is None and classes == 1:
            return labels, []  # the values that a model with one output number is to predict
        warnings = ["the labels are whole floats and were taken as class numbers"]
        return flat[:, 0].astype(np.int64), warnings
    if labels.ndim == 1 and labels.dtype == np.int64:
        return labels, []
    return flat[:, 0].astype(np.int64), []


def _from_rows(
    asked: str | None, labels: np.ndarray, flat: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Class numbers from rows of whole numbers, as many as the model has scores."""
    binary = bool(((flat == 0) | (flat == 1)).all())
    if binary and (flat.sum(axis=1) == 1).all():
        warning = "the labels are one-hot rows and were taken as class numbers"
        return flat.argmax(axis=1).astype(np.int64), [
            warning
            if asked
            else f"{warning}, judged by top1 (--metric rmse judges them as they are)"
        ]
    if binary and asked is None and labels.dtype.kind == "f":
        several = int((flat.sum(axis=1) > 1).sum())
        return labels, [
            "the labels are rows of 0 and 1, but no one-hot ones "
            f"({several} of {len(flat)} hold several 1, {int((~flat.any(axis=1)).sum())} none), so "
            "they are judged by rmse: for a model of several labels give --metric MODULE:FUNCTION"
        ]
    return labels, []


def stored_scores(output: Tensor, shape: Shape, labels: np.ndarray) -> bool:
    """Whether whole numbers are scores as a quantized model stores them: several for one label."""
    small = np.dtype(output.dtype).name in SCORE_DTYPES
    return small and labels.ndim == 1 and math.prod(shape) > 1
