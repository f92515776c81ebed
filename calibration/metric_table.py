"""The built-in metrics: to which numbers each reduces a sample, and how it scores these."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from msgspec import Struct

from onmetal.files.stored import Outputs

Reduce = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(outputs [n, ...], labels [n, ...]) -> [n] or [n, k] float64"""
Score = Callable[[np.ndarray, np.ndarray], float]
"""(reduced [n, ...], labels [n]) -> the metric"""


class Summary(Protocol):
    """What a metric needs of all samples, in memory."""

    def score(self, samples: np.ndarray | None) -> float:
        """The metric over the samples of these numbers, which may repeat; None: over all."""


class Whole(Protocol):
    """A metric of detection or segmentation, which reads one output or several by itself."""

    @property
    def reads(self) -> frozenset[str]:
        """The names of the outputs that it reads."""

    def summarize(self, outputs: Mapping[str, Outputs], labels: Outputs) -> Summary:
        """Reduce outputs and labels, first axis = samples, part by part."""


Chance = Literal["commonest", "five commonest", "classes", "half", "mean"]
"""What a model that ignores its input reaches: the share of the commonest class or of the five
commonest; one by the number of classes; a half; what answering the labels' mean gives."""


class Metric(Struct, frozen=True):
    """One row of METRICS is all that one more metric needs, and its name in the command line's list
    (commands/options.py), which is read without NumPy."""

    name: str
    reduce: Reduce
    score: Score
    higher_is_better: bool = True
    proportion: bool = True
    """Whether it lies in [0, 1], so that a percentage of it means points."""
    labels: Literal["class numbers", "numbers", "boxes", "masks"] = "class numbers"
    """numbers: each label has as many as the output; boxes and masks: as Samples.labels_are."""
    outputs: Literal["classes or scores", "scores", "a score per class", "whole outputs"] = (
        "classes or scores"
    )
    """What it takes; whole outputs: integers of any shape too, each beside its label."""
    two_classes: bool = False
    """Whether the labels must be of two classes at least."""
    chance: Chance | None = None
    """None: it is not known, and no warning is given."""
    mean: bool = False
    """Whether the score is the plain mean of what `reduce` gives, each 0 or 1."""
    resamples: int = 2000
    function: Any = None
    """A user's own metric, in place of `reduce` and `score`: it sees whole outputs."""
    whole: Any = None
    """A `Whole`, in place of `reduce` and `score`: how boxes or masks of this model are judged."""


def _predicted(outputs: np.ndarray) -> np.ndarray:
    """Class numbers: integer outputs themselves, the largest of several scores, or whether a single
    probability is over 0.5.

    -1, which no label is, where a score is NaN: argmax would return the index of the first NaN.
    """
    if outputs.dtype.kind in "iub":
        return outputs
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        classes = outputs.argmax(axis=1)
    else:
        classes = np.asarray(outputs.reshape(len(outputs)) > 0.5, np.int64)
    return np.where(_undefined(outputs), -1, classes)


def _undefined(outputs: np.ndarray) -> np.ndarray:
    """[n] bool: samples with a score that is NaN."""
    return np.asarray(np.isnan(outputs).reshape(len(outputs), -1).any(axis=1))


def equal(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    same = _predicted(outputs).reshape(len(labels), -1) == labels.reshape(len(labels), -1)
    return np.asarray(same.all(axis=1), np.float64)


def _hit(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(_predicted(outputs) == labels, np.float64)


def _hit5(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    best = np.argsort(-outputs, axis=1, kind="stable")[:, :5]
    return np.asarray((best == labels[:, None]).any(axis=1) & ~_undefined(outputs), np.float64)


def _class(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return _predicted(outputs).reshape(len(labels)).astype(np.float64)


def _squared(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    gap = outputs.astype(np.float64).reshape(len(labels), -1)
    gap = gap - labels.reshape(len(labels), -1)
    errors: np.ndarray = np.mean(gap**2, axis=1)
    return errors


def _scores(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return outputs.astype(np.float64).reshape(len(labels), -1)


def mean(reduced: np.ndarray, labels: np.ndarray) -> float:
    return float(reduced.mean())


def _root_mean(reduced: np.ndarray, labels: np.ndarray) -> float:
    return math.sqrt(float(reduced.mean()))


def _counts(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class that occurs in either: true positives, predicted, labelled."""
    predicted = predicted.astype(np.int64)
    classes, codes = np.unique(np.concatenate([predicted, labels]), return_inverse=True)
    size, half = len(classes), len(predicted)
    hits = codes[:half][predicted == labels]
    return (
        np.bincount(hits, minlength=size),
        np.bincount(codes[:half], minlength=size),
        np.bincount(codes[half:], minlength=size),
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> float:
    """Macro average; a class without any predicted or labelled sample scores 0, as is usual."""
    return float(np.mean(np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)))


def _precision(predicted: np.ndarray, labels: np.ndarray) -> float:
    hits, predicted_counts, _ = _counts(predicted, labels)
    return _ratio(hits, predicted_counts)


def _recall(predicted: np.ndarray, labels: np.ndarray) -> float:
    hits, _, labelled_counts = _counts(predicted, labels)
    return _ratio(hits, labelled_counts)


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    hits, predicted_counts, labelled_counts = _counts(predicted, labels)
    return _ratio(2 * hits, predicted_counts + labelled_counts)


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve by the Mann-Whitney statistic, ties counted half.

    One column: the score of class 1. Two: their difference. More: macro average, one class against
    the rest, over the classes that occur.
    """
    if scores.shape[1] == 1:
        return _binary_auc(scores[:, 0], labels == 1)
    if scores.shape[1] == 2:
        return _binary_auc(scores[:, 1] - scores[:, 0], labels == 1)
    classes = [number for number in np.unique(labels) if not (labels == number).all()]
    if not classes:
        return math.nan
    return float(
        np.mean([_binary_auc(scores[:, int(number)], labels == number) for number in classes])
    )


def _binary_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    if np.isnan(scores).any():
        return math.nan
    ups = int(positive.sum())
    downs = len(positive) - ups
    if not ups or not downs:
        return math.nan
    _, codes, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[codes]  # the mean rank of equal scores
    return float((ranks[positive].sum() - ups * (ups + 1) / 2) / (ups * downs))


METRICS = {
    "top1": Metric("top1", _hit, mean, mean=True, outputs="a score per class", chance="commonest"),
    "top5": Metric(
        "top5", _hit5, mean, mean=True, outputs="a score per class", chance="five commonest"
    ),
    "accuracy": Metric(
        "accuracy", equal, mean, mean=True, outputs="whole outputs", chance="commonest"
    ),
    "precision": Metric("precision", _class, _precision, chance="classes"),
    "recall": Metric("recall", _class, _recall, chance="classes"),
    "f1": Metric("f1", _class, _f1, chance="classes"),
    "auc": Metric(
        "auc", _scores, _auc, outputs="scores", two_classes=True, chance="half", resamples=1000
    ),
    "rmse": Metric(
        "rmse",
        _squared,
        _root_mean,
        higher_is_better=False,
        proportion=False,
        labels="numbers",
        chance="mean",
    ),
    # Of these two, `whole` is set for each model (calibration.detection, calibration.segmentation).
    "map": Metric("map", equal, mean, labels="boxes", resamples=400),
    "miou": Metric("miou", equal, mean, labels="masks", resamples=1000),
}
NAMES = tuple(METRICS)


def known(asked: str | None) -> Metric | None:
    """The built-in metric of that name, in any case."""
    return METRICS.get((asked or "").casefold())
