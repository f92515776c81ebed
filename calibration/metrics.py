"""How good a model is at its task, from its outputs and the labels.

A metric first reduces outputs to a few numbers a sample (streamed, so that outputs may be larger
than memory), then scores those. Scoring is cheap, so that a bootstrap can repeat it.
"""

import contextlib
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from onmetal.calibration.samples import import_callable
from onmetal.errors import UsageError, named
from onmetal.files.stored import Outputs, StoredArray, chunks
from onmetal.records import Shape, Tensor
from onmetal.texts.suggest import did_you_mean

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
CLASSING = ("top1", "top5", "accuracy", "precision", "recall", "f1", "auc")
"""Metrics whose labels are class numbers."""
STORED = ("int8", "uint8", "int16")
"""Whole numbers as which a quantized model may give its scores."""


def known(asked: str | None) -> Metric | None:
    """The built-in metric of that name, in any case."""
    return _KNOWN.get((asked or "").casefold())


def choose(asked: str | None, output: Tensor, shape: Shape, labels: np.ndarray) -> Metric:
    """The metric asked for, or the usual one for such labels and such an output; checked to fit.

    `shape`: what one sample gives of the output; `labels`: as `class_labels` gives them.
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


def scores(output: Tensor, shape: Shape) -> int | None:
    """How many scores a sample gives, one for each class; None where it gives something else."""
    wide = [length for length in shape if length != 1]
    kind = np.dtype(output.dtype)
    if len(wide) > 1 or (kind.kind != "f" and not (kind.name in STORED and wide)):
        return None
    return math.prod(shape)


def class_labels(
    asked: str | None, output: Tensor, shape: Shape, labels: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Labels as class numbers [samples] int64 where they are those in another form: one-hot rows, a
    column, whole floats, booleans. -> the labels, which are as they were where they are something
    else or a metric wants them so, and what is to be said of it.
    """
    classes = scores(output, shape)
    classing = asked is None or asked.lower() in CLASSING
    if not classing or classes is None or not len(labels):
        return labels, []
    flat = labels.reshape(len(labels), -1)
    whole = labels.dtype.kind in "iub" or bool((flat == np.round(flat)).all())
    if whole and classes > 1 and flat.shape[1] == classes:
        return _from_rows(asked, labels, flat)
    if flat.shape[1] != 1 or not whole:
        return labels, []
    if labels.dtype.kind == "f":
        if asked is None and classes == 1:
            return labels, []  # what a model of one number is to predict
        said = ["the labels are whole floats and were taken as class numbers"]
        return flat[:, 0].astype(np.int64), said
    if labels.ndim == 1 and labels.dtype == np.int64:
        return labels, []
    return flat[:, 0].astype(np.int64), []


def _from_rows(
    asked: str | None, labels: np.ndarray, flat: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Of rows of whole numbers, as many as the model has scores."""
    binary = bool(((flat == 0) | (flat == 1)).all())
    if binary and (flat.sum(axis=1) == 1).all():
        said = "the labels are one-hot rows and were taken as class numbers"
        return flat.argmax(axis=1).astype(np.int64), [
            said if asked else f"{said}, judged by top1 (--metric rmse judges them as they are)"
        ]
    if binary and asked is None and labels.dtype.kind == "f":
        several = int((flat.sum(axis=1) > 1).sum())
        return labels, [
            "the labels are rows of 0 and 1, but no one-hot ones "
            f"({several} of {len(flat)} hold several 1, {int((~flat.any(axis=1)).sum())} none), so "
            "they are judged by rmse: for a model of several labels give --metric MODULE:FUNCTION"
        ]
    return labels, []


def _stored_scores(output: Tensor, shape: Shape, labels: np.ndarray) -> bool:
    """Whether whole numbers are scores as a quantized model stores them: several for one label."""
    small = np.dtype(output.dtype).name in STORED
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
            hint = "; if they count from 1, subtract 1" if (low, high) == (1, classes) else ""
            refuse(
                f"the labels go from {low} to {high}, the output knows classes 0 to "
                f"{classes - 1}{hint}"
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


def _call(metric: Metric, outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """What a user's own metric says. Raises UsageError with what went wrong in it, and where."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            value = metric.function(outputs, labels)
    except (Exception, SystemExit) as error:  # the user's own code
        raise UsageError(
            f"--metric {metric.name}: it failed with {named(error)}"
            f"{_where(error)}; it was given the outputs {_listed(outputs)} and the labels "
            f"{labels.dtype}{list(labels.shape)}"
        ) from None
    try:
        if isinstance(value, (str, bytes)) or np.ndim(value) or not hasattr(value, "__float__"):
            kind = f"an array of shape {list(np.shape(value))}" if np.ndim(value) else repr(value)
            raise UsageError(
                f"--metric {metric.name}: it must return one number, and returned {kind[:100]}"
            )
        return float(value)
    except UsageError:
        raise
    except Exception as error:  # of a value of the user's own kind
        raise UsageError(
            f"--metric {metric.name}: what it returned is no number: {named(error)}"
        ) from None


def _where(error: BaseException) -> str:
    """The last place of a user's own file that an error came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if "site-packages" not in f.filename] or frames
    return f" ({own[-1].filename} line {own[-1].lineno}: {own[-1].line})" if own else ""


def _listed(outputs: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name!r} {o.dtype}{list(o.shape)}" for name, o in outputs.items())


def try_custom(metric: Metric, outputs: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """Refuse a user's own metric that fails on a few samples, before anything long begins.

    `outputs`: every output of the original model by name, first axis = samples.
    """
    value = _call(metric, outputs, labels)
    if not math.isfinite(value):
        raise UsageError(
            f"--metric {metric.name}: it returned {value} for the original model's outputs "
            f"{_listed(outputs)} on {len(labels)} samples: it must be a finite number"
        )


class Scorer:
    """The metric over any of the samples: `scorer(sample numbers)`, or `scorer(None)` for all."""

    def __init__(
        self, metric: Metric, outputs: Mapping[str, Outputs], name: str, labels: np.ndarray
    ) -> None:
        """`outputs`: every output by name, first axis = samples; `name`: the one judged."""
        self.metric, self.outputs, self.labels = metric, outputs, labels
        self.kept = np.zeros(0)
        self.read: set[str] = set()
        """The outputs that the metric reads; of a user's own, those that it has read so far."""
        if metric.function is None:
            judged = outputs[name]
            self.read.add(name)
            self.kept = np.concatenate(
                [metric.reduce(np.asarray(judged[part]), labels[part]) for part in chunks(judged)]
            )

    @property
    def large(self) -> bool:
        """Whether copies of the outputs, which resamples for a user's own metric are, would take
        more memory than a batch should."""
        size_bytes = sum(output.nbytes for output in self.outputs.values())
        return self.metric.function is not None and size_bytes > MOST_BYTES

    def __call__(self, picked: np.ndarray | None) -> float:
        chosen: slice | np.ndarray = slice(None) if picked is None else picked
        if self.metric.function is None:
            return self.metric.score(self.kept[chosen], self.labels[chosen])
        arrays = _ReadOutputs(self.outputs, picked, self.read)
        return _call(self.metric, arrays, self.labels[chosen])


MOST_BYTES = 1 << 28
"""Of all outputs together: a user's metric is called on copies of resamples of no more."""


class _ReadOutputs(dict[str, np.ndarray]):
    """What a user's metric is given: a dict of arrays that notes which of them are read. Of all
    samples they are memory-mapped, so that the metric alone decides what it holds in memory."""

    def __init__(
        self, outputs: Mapping[str, Outputs], picked: np.ndarray | None, read: set[str]
    ) -> None:
        super().__init__(
            {name: _picked(output, picked, MOST_BYTES) for name, output in outputs.items()}
        )
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        array = super().__getitem__(name)
        self._read.add(name)
        return array

    def __iter__(self) -> Iterator[str]:
        """As a dict's own. Because it is not that itself, dict(outputs), **outputs, outputs | {}
        and the like take the arrays by __getitem__, and not past it."""
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self._read.add(name)
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, np.ndarray]:
        name, array = super().popitem()
        self._read.add(name)
        return name, array

    def setdefault(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().setdefault(name, default)

    def copy(self) -> dict[str, np.ndarray]:
        return dict(self)

    def items(self) -> Any:
        self._read.update(self)
        return super().items()

    def values(self) -> Any:
        self._read.update(self)
        return super().values()


def _picked(output: Outputs, picked: np.ndarray | None, most_bytes: int) -> np.ndarray:
    if picked is not None:
        return np.asarray(output[picked])
    if isinstance(output, StoredArray) and output.nbytes > most_bytes:
        mapped: np.ndarray = np.load(output.path, mmap_mode="r", allow_pickle=False)
        return mapped
    return np.asarray(output[:])
