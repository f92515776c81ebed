"""Whether a float model is any better at its task than an answer that ignores the input."""

import math

import numpy as np

from onmetal.calibration.accuracy import clopper_pearson
from onmetal.calibration.metric_table import METRICS

LEAST = 20
"""The fewest samples from which a warning follows."""
NO_BETTER, HARDLY = 0.3, 0.1
"""Parts of the way from chance to 1. There is a warning where the interval of the metric ends below
the first one and includes chance, or below the second one though it excludes chance."""
ONE_SIDED, TWO_SIDED = 1.645, 1.96
"""Numbers of standard deviations: 95 % of a normal distribution lie below the first, and within
plus or minus the second."""
CHECK = (
    "are the inputs prepared as in training (scale, mean, std, order of channels), and do the "
    "labels count as the model's scores do?"
)


def chance_warning(metric: str, labels: np.ndarray, value: float, samples: int) -> str | None:
    """A warning where a float model's `value` of a metric is no better than chance; None where it
    is, where that is not sure, and for metrics whose chance is not known.

    `labels`: [samples, ...] as the metric takes them: class numbers, or numbers for rmse.
    """
    if samples < LEAST or not math.isfinite(value):
        return None
    rule = METRICS[metric].chance if metric in METRICS else None
    if rule == "mean":
        return _warn_by_rmse(labels, value)
    if labels.dtype.kind not in "iub" or labels.size != samples:
        return None
    kinds, counts = np.unique(labels, return_counts=True)
    shares = np.sort(counts)[::-1] / samples
    if len(kinds) == 1 and rule != "half":
        return (
            f"all {samples} labels are {kinds[0]}: {metric} {value:.3g} says nothing of the other "
            "classes; was the data cut while it was sorted by class?"
        )
    if rule == "commonest":
        answer = f"what answering {kinds[counts.argmax()]} for every sample gives"
        return _warn_by_share(metric, value, samples, float(shares[0]), answer)
    if rule == "five commonest" and len(kinds) > 5:
        answer = "what answering the five commonest classes for every sample gives"
        return _warn_by_share(metric, value, samples, float(shares[:5].sum()), answer)
    if rule == "classes":
        # Whatever the answers, if they ignore the input, its mean over the classes is 1 / classes.
        chance = 1 / len(kinds)
        error = math.sqrt(float(np.sum(0.25 / counts))) / len(kinds)
        answer = f"what answers that ignore the input give on {len(kinds)} classes"
        return _warn_by_deviation(metric, value, chance, error, answer)
    if rule == "half" and len(kinds) > 1:
        others = samples - counts
        error = float(np.mean(np.sqrt((samples + 1) / (12 * counts * others))))
        return _warn_by_deviation(
            metric, value, 0.5, error, "what scores that ignore the input give"
        )
    return None


def _warn_by_share(
    metric: str, value: float, samples: int, chance: float, answer: str
) -> str | None:
    """A warning by the exact interval of the share of right answers; None where it is better."""
    low, high = clopper_pearson(round(value * samples), samples)
    unsure = low <= chance and high < chance + NO_BETTER * (1 - chance)
    hardly = high < chance + HARDLY * (1 - chance) and high < 2 * chance
    if value > chance and not unsure and not hardly:
        return None
    return _sentence(metric, value, chance, answer, worse=high < chance)


def _warn_by_deviation(
    metric: str, value: float, chance: float, error: float, answer: str
) -> str | None:
    """A warning by the metric's standard deviation (`error`) where answers ignore the input."""
    high = value + TWO_SIDED * error
    if value > chance + ONE_SIDED * error or high >= chance + NO_BETTER * (1 - chance):
        return None
    return _sentence(metric, value, chance, answer, worse=value + TWO_SIDED * error < chance)


def _warn_by_rmse(labels: np.ndarray, value: float) -> str | None:
    rows = labels.reshape(len(labels), -1).astype(np.float64)
    chance = math.sqrt(float(np.mean((rows - rows.mean(axis=0)) ** 2)))
    if chance == 0 or value < chance:
        return None
    return _sentence("rmse", value, chance, "what answering the mean label gives", worse=False)


def _sentence(metric: str, value: float, chance: float, answer: str, *, worse: bool) -> str:
    than = "worse than chance" if worse else "no better than chance"
    return (
        f"the float model is {than}: its {metric} is {value:.3g}, and {chance:.3g} is {answer}; "
        f"{CHECK}"
    )
