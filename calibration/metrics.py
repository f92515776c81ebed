"""How good a model is at its task, from its outputs and the labels.

A metric first reduces outputs to a few numbers a sample (streamed, so that outputs may be larger
than memory), then scores those. Scoring is cheap, so that a bootstrap can repeat it.
"""

import math
from collections.abc import Mapping

import numpy as np

from onmetal.calibration.custom_metric import MOST_BYTES, ReadOutputs, call_custom, custom
from onmetal.calibration.label_forms import stored_scores
from onmetal.calibration.metric_table import METRICS, NAMES, Metric, Summary
from onmetal.errors import UsageError
from onmetal.files.stored import Outputs, chunks
from onmetal.records import Shape, Tensor
from onmetal.texts.suggest import did_you_mean


def choose(asked: str | None, output: Tensor, shape: Shape, labels: np.ndarray) -> Metric:
    """The metric that the user named, or the usual one for such labels and such an output.

    `shape`: of the output for one sample; `labels`: as `class_labels` returns them.
    Raises UsageError where labels, output and metric do not fit each other.
    """
    integer_labels = labels.dtype.kind in "iub"
    if asked is None:
        if not integer_labels:
            asked = "rmse"
        elif np.dtype(output.dtype).kind in "iub" and not stored_scores(output, shape, labels):
            asked = "accuracy"
        else:
            asked = "top1"
    elif ":" in asked:
        return custom(asked)
    asked = asked.casefold()
    if asked not in METRICS:
        raise UsageError(
            f"--metric {asked}: unknown{did_you_mean(asked, NAMES)}; there are {', '.join(NAMES)} "
            "and MODULE:FUNCTION"
        )
    _check_fit(METRICS[asked], output, shape, labels, integer_labels)
    return METRICS[asked]


def _check_fit(
    metric: Metric,
    output: Tensor,
    shape: tuple[int, ...],
    labels: np.ndarray,
    integer_labels: bool,
) -> None:
    def refuse(reason: str) -> None:
        raise UsageError(
            f"--metric {metric.name} on output {output.name!r} (a sample gives {output.dtype}"
            f"{list(shape)}) with labels {labels.dtype}{list(labels.shape[1:])}: {reason}; "
            "choose another --metric or --output, or give MODULE:FUNCTION"
        )

    if metric.labels == "numbers":
        if math.prod(shape) != math.prod(labels.shape[1:]):
            refuse("each label must have as many numbers as the output")
        return
    if not integer_labels:
        refuse("the labels must be integers (class numbers)")
    scores = np.dtype(output.dtype).kind == "f" or stored_scores(output, shape, labels)
    if metric.outputs == "whole outputs" and not scores:
        if math.prod(shape) != math.prod(labels.shape[1:]):
            refuse("each label must have as many numbers as the output")
        return
    if labels.ndim != 1:
        refuse("there must be one label for each sample")
    if metric.outputs in ("scores", "a score per class") and not scores:
        refuse("the output must be scores")
    if metric.outputs == "a score per class" and (len(shape) != 1 or shape[0] < 2):
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
    if metric.two_classes and len(np.unique(labels)) < 2:
        refuse(f"{metric.name.upper()} needs samples of two classes")


class Scorer:
    """The metric over any of the samples: `scorer(sample numbers)`, or `scorer(None)` for all."""

    def __init__(
        self, metric: Metric, outputs: Mapping[str, Outputs], name: str, labels: Outputs
    ) -> None:
        """`outputs`: every output by name, first axis = samples; `name`: the judged output's."""
        self.metric, self.outputs, self.labels = metric, outputs, labels
        self.summary: Summary | None = None
        self.kept = np.zeros(0)
        self.read: set[str] = set()
        """The outputs that the metric reads; of a user's own, those that it has read so far."""
        if metric.whole is not None:
            self.read |= metric.whole.reads
            self.summary = metric.whole.summarize(outputs, labels)
        elif metric.function is None:
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

    def __call__(self, samples: np.ndarray | None) -> float:
        if self.summary is not None:
            return self.summary.score(samples)
        selection: slice | np.ndarray = slice(None) if samples is None else samples
        if self.metric.function is None:
            return self.metric.score(self.kept[selection], self.labels[selection])
        arrays = ReadOutputs(self.outputs, samples, self.read)
        return call_custom(self.metric, arrays, self.labels[selection])
