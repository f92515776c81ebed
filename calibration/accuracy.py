"""The drop of accuracy between two models on the same samples, with its 95 % interval."""

import math
import time

import numpy as np

from onmetal.calibration.metric_table import Metric
from onmetal.calibration.metrics import Scorer
from onmetal.records import Accuracy


def judge(candidate: Scorer, reference: Scorer | None) -> Accuracy:
    """The candidate's score, and its drop from the reference's score on the same samples."""
    metric, samples = candidate.metric, len(candidate.labels)
    value = candidate(None)
    if reference is None:
        return Accuracy(metric.name, value, None, None, samples)
    if candidate is reference:
        return Accuracy(metric.name, value, 0.0, (0.0, 0.0), samples)
    sign = 1.0 if metric.higher_is_better else -1.0
    drop = sign * (reference(None) - value)
    interval: tuple[float, float] | None
    if candidate.large:
        interval = None  # each resample would be a copy of all outputs
    elif metric.mean:
        interval = paired_interval(reference.kept > candidate.kept, reference.kept < candidate.kept)
    else:
        interval = _bootstrap(metric, candidate, reference, samples, sign)
    return Accuracy(metric.name, value, drop, interval, samples)


BOOTSTRAP_S = 30.0
"""Seconds after which resampling ends, with the resamples made so far: a call of a user's metric
may take seconds."""
FEWEST = 40
"""The fewest resamples that give a 95 % interval: its ends are then the outermost of them."""


def _bootstrap(
    metric: Metric, candidate: Scorer, reference: Scorer, samples: int, sign: float
) -> tuple[float, float] | None:
    """Percentile interval of the drop over resamples of the samples, the same for both models.

    None where the metric is too slow to be called often enough, or undefined on most resamples.
    """
    random = np.random.default_rng(0)
    drops: list[float] = []
    end = time.monotonic() + BOOTSTRAP_S
    for _ in range(metric.resamples):
        picked = random.integers(0, samples, samples)
        drops.append(sign * (reference(picked) - candidate(picked)))
        if time.monotonic() > end:
            break
    defined = [drop for drop in drops if not math.isnan(drop)]
    if len(defined) < FEWEST:
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def paired_interval(lost: np.ndarray, won: np.ndarray) -> tuple[float, float]:
    """95 % interval of the drop in the share of right answers, in step with exact McNemar's test.

    `lost`, `won`: bool [n], samples that only the reference, only the candidate gets right. The
    drop is (share that differs) x (2 x share of the lost among them - 1). Both shares have exact
    binomial intervals (Clopper and Pearson), combined by their squares (MOVER: Zou and Donner,
    2008); the sign follows the second alone, so that 0 is left out just where McNemar's test
    rejects it. Where no sample differs, it is plus or minus what may differ all the same.
    """
    samples, differing, lost_count = len(lost), int(lost.sum() + won.sum()), int(lost.sum())
    share_low, share_high = clopper_pearson(differing, samples)
    if not differing:
        return -share_high, share_high
    share = differing / samples
    low, high = clopper_pearson(lost_count, differing)
    tilt, tilt_low, tilt_high = 2 * lost_count / differing - 1, 2 * low - 1, 2 * high - 1

    def upper(tilt: float, tilt_high: float) -> float:
        side = share_high - share if tilt > 0 else share - share_low
        bound = share * tilt + math.hypot(tilt * side, share * (tilt_high - tilt))
        return min(bound, share_low * tilt_high) if tilt_high < 0 else bound

    return -upper(-tilt, -tilt_low), upper(tilt, tilt_high)


def clopper_pearson(hits: int, tries: int) -> tuple[float, float]:
    """Exact 95 % interval of a binomial share: where either tail falls to 2.5 %."""
    numbers = np.arange(tries + 1)
    log_ways = np.array(
        [math.lgamma(tries + 1) - math.lgamma(k + 1) - math.lgamma(tries - k + 1) for k in numbers]
    )

    def tail(share: float, part: slice) -> float:
        logs = log_ways + numbers * math.log(share) + (tries - numbers) * math.log1p(-share)
        return float(np.exp(logs[part]).sum())

    def solve(part: slice, rising: bool) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if (tail(middle, part) < 0.025) == rising:
                low = middle
            else:
                high = middle
        return (low + high) / 2

    lowest = 0.0 if hits == 0 else solve(slice(hits, None), rising=True)
    highest = 1.0 if hits == tries else solve(slice(None, hits + 1), rising=False)
    return lowest, highest
