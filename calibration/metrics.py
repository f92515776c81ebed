"""How good a model is at its task, from its outputs and the labels.

A metric first reduces outputs to a few numbers a sample (streamed, so that outputs may be larger
than memory), then scores those. Scoring is cheap, so that a bootstrap can repeat it.
"""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from msgspec import Struct

from onmetal.calibration.samples import import_callable
from onmetal.errors import UsageError
from onmetal.records import Shape, Tensor
from onmetal.suggest import did_you_mean

CHUNK_BYTES = 1 << 24

Reduce = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(outputs [n, ...], labels [n, ...]) -> [n] or [n, k] float64"""
Score = Callable[[np.ndarray, np.ndarray], float]
"""(reduced [n, ...], labels [n]) -> the metric"""


class Metric(Struct, frozen=True):
    name: str
    reduce: Reduce
    score: Score
    higher_is_better: bool = True
    proportion: bool = True
    """Whether it lies in [0, 1], so that a percentage of it means points."""
    mean: bool = False
    """Whether the score is the plain mean of what `reduce` gives, each 0 or 1."""
    resamples: int = 2000
    function: Any = None
    """A user's own metric, in place of `reduce` and `score`: it sees whole outputs."""


# --- what each metric keeps of a sample, and how it scores


def _hit(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(_predicted(outputs) == labels, np.float64)


def _hit5(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    best = np.argsort(-outputs, axis=1, kind="stable")[:, :5]
    return np.asarray((best == labels[:, None]).any(axis=1) & ~_undefined(outputs), np.float64)


def _equal(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    same = _predicted(outputs).reshape(len(labels), -1) == labels.reshape(len(labels), -1)
    return np.asarray(same.all(axis=1), np.float64)


def _predicted(outputs: np.ndarray) -> np.ndarray:
    """Class numbers: of integers themselves, of scores the largest, of one probability over 0.5.

    -1, which no label is, where a score is NaN: argmax would say the place of the first NaN.
    """
    if outputs.dtype.kind in "iub":
        return outputs
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        found = outputs.argmax(axis=1)
    else:
        found = np.asarray(outputs.reshape(len(outputs)) > 0.5, np.int64)
    return np.where(_undefined(outputs), -1, found)


def _undefined(outputs: np.ndarray) -> np.ndarray:
    """[n] bool: samples of whose scores any is NaN."""
    return np.asarray(np.isnan(outputs).reshape(len(outputs), -1).any(axis=1))


def _class(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return _predicted(outputs).reshape(len(labels)).astype(np.float64)


def _squared(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    gap = outputs.astype(np.float64).reshape(len(labels), -1)
    gap = gap - labels.reshape(len(labels), -1)
    found: np.ndarray = np.mean(gap**2, axis=1)
    return found


def _scores(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return outputs.astype(np.float64).reshape(len(labels), -1)


def _mean(reduced: np.ndarray, labels: np.ndarray) -> float:
    return float(reduced.mean())


def _root_mean(reduced: np.ndarray, labels: np.ndarray) -> float:
    return math.sqrt(float(reduced.mean()))


def _counts(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class that occurs in either: true positives, predicted, labelled."""
    predicted = predicted.astype(np.int64)
    kinds, codes = np.unique(np.concatenate([predicted, labels]), return_inverse=True)
    size, half = len(kinds), len(predicted)
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
    hits, found, _ = _counts(predicted, labels)
    return _ratio(hits, found)


def _recall(predicted: np.ndarray, labels: np.ndarray) -> float:
    hits, _, there = _counts(predicted, labels)
    return _ratio(hits, there)


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    hits, found, there = _counts(predicted, labels)
    return _ratio(2 * hits, found + there)


def _auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve by the Mann-Whitney statistic, ties counted half.

    One column: the score of class 1. Two: their difference. More: macro average, one class against
    the rest, over the classes that occur.
    """
    if scores.shape[1] == 1:
        return _binary_auc(scores[:, 0], labels == 1)
    if scores.shape[1] == 2:
        return _binary_auc(scores[:, 1] - scores[:, 0], labels == 1)
    kinds = [kind for kind in np.unique(labels) if not (labels == kind).all()]
    if not kinds:
        return math.nan
    return float(np.mean([_binary_auc(scores[:, int(kind)], labels == kind) for kind in kinds]))


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


_KNOWN = {
    "top1": Metric("top1", _hit, _mean, mean=True),
    "top5": Metric("top5", _hit5, _mean, mean=True),
    "accuracy": Metric("accuracy", _equal, _mean, mean=True),
    "precision": Metric("precision", _class, _precision),
    "recall": Metric("recall", _class, _recall),
    "f1": Metric("f1", _class, _f1),
    "auc": Metric("auc", _scores, _auc, resamples=1000),
    "rmse": Metric("rmse", _squared, _root_mean, higher_is_better=False, proportion=False),
}
NAMES = tuple(_KNOWN)


def known(asked: str | None) -> Metric | None:
    """The built-in metric of that name, in any case."""
    return _KNOWN.get((asked or "").casefold())


def choose(asked: str | None, output: Tensor, shape: Shape, labels: np.ndarray) -> Metric:
    """The metric asked for, or the usual one for such labels and such an output; checked to fit.

    `shape`: what one sample gives of the output.
    Raises UsageError where labels, output and metric do not go together.
    """
    integer_labels = labels.dtype.kind in "iub"
    if asked is None:
        if not integer_labels:
            asked = "rmse"
        elif np.dtype(output.dtype).kind in "iub" and not _stored_scores(output, shape, labels):
            asked = "accuracy"
        else:
            asked = "top1"
    elif ":" in asked:
        return _custom(asked)
    asked = asked.casefold()
    if asked not in _KNOWN:
        raise UsageError(
            f"--metric {asked}: unknown{did_you_mean(asked, NAMES)}; there are {', '.join(NAMES)} "
            "and MODULE:FUNCTION"
        )
    _fits(asked, output, shape, labels, integer_labels)
    return _KNOWN[asked]


def _stored_scores(output: Tensor, shape: Shape, labels: np.ndarray) -> bool:
    """Whether whole numbers are scores as a quantized model stores them: several for one label."""
    small = np.dtype(output.dtype).name in ("int8", "uint8", "int16")
    return small and labels.ndim == 1 and math.prod(shape) > 1


def _fits(
    name: str, output: Tensor, shape: tuple[int, ...], labels: np.ndarray, integer_labels: bool
) -> None:
    def refuse(why: str) -> None:
        raise UsageError(
            f"--metric {name} on output {output.name!r} (a sample gives {output.dtype}"
            f"{list(shape)}) with labels {labels.dtype}{list(labels.shape[1:])}: {why}; "
            "choose another --metric or --output, or give MODULE:FUNCTION"
        )

    if name == "rmse":
        if math.prod(shape) != math.prod(labels.shape[1:]):
            refuse("each label must have as many numbers as the output")
        return
    if not integer_labels:
        refuse("the labels must be integers (class numbers)")
    scores = np.dtype(output.dtype).kind == "f" or _stored_scores(output, shape, labels)
    if name == "accuracy" and not scores:
        if math.prod(shape) != math.prod(labels.shape[1:]):
            refuse("each label must have as many numbers as the output")
        return
    if labels.ndim != 1:
        refuse("there must be one label for each sample")
    if name in ("top1", "top5", "auc") and not scores:
        refuse("the output must be scores")
    if name in ("top1", "top5") and (len(shape) != 1 or shape[0] < 2):
        refuse("the output must be one score per class")
    if len(shape) > 1 or (not scores and math.prod(shape) != 1):
        refuse("the output must be one score per class, or one class number")
    if scores:
        classes = shape[0] if shape and shape[0] > 1 else 2
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            refuse(
                f"the labels go from {low} to {high}, the output knows classes 0 to {classes - 1}"
            )
    if name == "auc" and len(np.unique(labels)) < 2:
        refuse("AUC needs samples of two classes")


def _custom(asked: str) -> Metric:
    """A user's `f(outputs: dict[str, ndarray], labels: ndarray) -> float`."""
    function = import_callable(asked, "--metric")
    if not callable(function):
        raise UsageError(f"--metric {asked}: it is not a function")
    better = bool(getattr(function, "higher_is_better", True))
    return Metric(asked, _equal, _mean, better, proportion=False, resamples=200, function=function)


class Scorer:
    """The metric over any of the samples: `scorer(sample numbers)`, or `scorer(None)` for all."""

    def __init__(
        self, metric: Metric, outputs: dict[str, np.ndarray], name: str, labels: np.ndarray
    ) -> None:
        """`outputs`: every output by name, first axis = samples; `name`: the one judged."""
        self.metric, self.outputs, self.labels = metric, outputs, labels
        self.kept = np.zeros(0)
        if metric.function is None:
            judged = outputs[name]
            self.kept = np.concatenate(
                [metric.reduce(np.asarray(judged[part]), labels[part]) for part in chunks(judged)]
            )

    def __call__(self, picked: np.ndarray | None) -> float:
        chosen: slice | np.ndarray = slice(None) if picked is None else picked
        if self.metric.function is None:
            return self.metric.score(self.kept[chosen], self.labels[chosen])
        seen = {name: np.asarray(output[chosen]) for name, output in self.outputs.items()}
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
                return float(self.metric.function(seen, self.labels[chosen]))
        except Exception as error:
            raise UsageError(
                f"--metric {self.metric.name}: it failed with {type(error).__name__}: {error}"
            ) from None


def chunks(array: np.ndarray) -> Iterator[slice]:
    """Slices along the first axis of at most 16 MiB each."""
    row = max(1, array[:1].nbytes)
    step = max(1, CHUNK_BYTES // row)
    for start in range(0, len(array), step):
        yield slice(start, start + step)
