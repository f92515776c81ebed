"""Range estimators: from a tensor's extremes and histogram to the range of its quantized values.

Every estimator reads the same statistics, so that trying all of them needs no further pass over the
data. Values outside of a range saturate.
"""

from collections.abc import Callable

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

BINS = 2048


class Seen(Struct, frozen=True):
    """The statistics of one tensor over the calibration samples."""

    low: float
    high: float
    average_low: float
    """Moving average over the samples of the least value in each."""
    average_high: float
    counts: np.ndarray
    """[BINS] int64: linear bins from `low` to `high`."""

    @property
    def zero_bin(self) -> int | None:
        """The bin of exact zeros, of which Relu and padding produce many; None where the range does
        not contain zero."""
        if not self.low <= 0.0 <= self.high:
            return None
        return min(BINS - 1, int(np.searchsorted(self.edges, 0.0, side="right")) - 1)

    @property
    def edges(self) -> np.ndarray:
        """[BINS + 1] float64."""
        return np.linspace(self.low, self.high, BINS + 1)

    def quantile(self, share: float) -> float:
        """The upper edge of the first bin up to which at least `share` of all values lie."""
        reached = np.cumsum(self.counts)
        place = int(np.searchsorted(reached, share * reached[-1], side="left"))
        return float(self.edges[min(place, BINS - 1) + 1])

    def lower_quantile(self, share: float) -> float:
        """The lower edge of the bin from which on all but `share` of the values lie."""
        reached = np.cumsum(self.counts)
        place = int(np.searchsorted(reached, share * reached[-1], side="right"))
        return float(self.edges[min(place, BINS - 1)])


class Grid(Struct, frozen=True):
    """The integer grid that a range is mapped to."""

    levels: int = 255
    """Steps between the least and the greatest integer."""
    symmetric: bool = False


Range = tuple[float, float]
Estimator = Callable[[Seen, Grid], Range]


def minmax(seen: Seen, grid: Grid) -> Range:
    """The whole range of the calibration values: none of them saturates."""
    return seen.low, seen.high


def moving_average(seen: Seen, grid: Grid) -> Range:
    """The average of each sample's extremes, the latest weighing most: forgets single outliers."""
    return seen.average_low, seen.average_high


def percentile(percent: float) -> Estimator:
    """The range of `percent` of all values, with equal shares cut off below and above."""

    def estimate(seen: Seen, grid: Grid) -> Range:
        cut = (100 - percent) / 200
        return seen.lower_quantile(cut), seen.quantile(1 - cut)

    return estimate


def mse(seen: Seen, grid: Grid) -> Range:
    """The range of least mean squared error, rounding and saturation together.

    Rounding to steps of s costs s^2/12 a value (uniform error), saturation the squared distance;
    zeros are exact.
    """
    return _searched(seen, grid, _squared_error)


def entropy(seen: Seen, grid: Grid) -> Range:
    """The range after which the distribution differs least from before by Kullback-Leibler
    divergence (Migacz, 8-bit inference with TensorRT, GTC 2017).

    Exact zeros, which 8 bits hold exactly, are left out: their bin counts as its neighbours do.
    """
    if (place := seen.zero_bin) is not None:
        counts = seen.counts.copy()
        counts[place] = max(
            counts[place - 1] if place else 0, counts[place + 1] if place + 1 < BINS else 0
        )
        seen = replace(seen, counts=counts)
    return _searched(seen, grid, _divergence)


ESTIMATORS: dict[str, Estimator] = {
    "minmax": minmax,
    "moving-average": moving_average,
    "percentile-99.999": percentile(99.999),
    "percentile-99.99": percentile(99.99),
    "percentile-99.9": percentile(99.9),
    "mse": mse,
    "entropy": entropy,
}


def estimate(name: str, seen: Seen, grid: Grid) -> Range:
    """The range by an estimator, extended to contain zero, so that zero (padding, Relu) is
    exact."""
    if seen.low == seen.high:  # nothing to estimate
        low, high = seen.low, seen.high
    else:
        low, high = ESTIMATORS[name](seen, grid)
    low, high = min(low, 0.0), max(high, 0.0)
    if grid.symmetric:
        high = max(-low, high)
        low = -high
    return low, high


def _searched(seen: Seen, grid: Grid, cost: Callable[[Seen, Grid, float, float], float]) -> Range:
    """The range of least `cost` among those that cut off more and more of the extremes: first at
    both ends equally, then at each end by itself."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if grid.symmetric:
        high = max(-low, high)
        low = -high
    shares = np.linspace(1.0, 0.1, 46)
    both_ends = min(shares, key=lambda share: cost(seen, grid, low * share, high * share))
    best = (low * float(both_ends), high * float(both_ends))
    if grid.symmetric or low == 0.0 or high == 0.0:
        return best
    for _ in range(2):
        left = min(shares, key=lambda share: cost(seen, grid, low * share, best[1]))
        best = (low * float(left), best[1])
        right = min(shares, key=lambda share: cost(seen, grid, best[0], high * share))
        best = (best[0], high * float(right))
    return best


def _squared_error(seen: Seen, grid: Grid, low: float, high: float) -> float:
    edges = seen.edges
    middles = (edges[:-1] + edges[1:]) / 2
    step = (high - low) / grid.levels
    beyond = np.maximum(low - middles, 0) + np.maximum(middles - high, 0)
    rounding = np.full(BINS, step * step / 12)
    if seen.zero_bin is not None:
        rounding[seen.zero_bin] = min(step * step / 12, middles[seen.zero_bin] ** 2)
    return float(np.sum(seen.counts * np.where(beyond == 0, rounding, beyond * beyond)))


def _divergence(seen: Seen, grid: Grid, low: float, high: float) -> float:
    """KL(P || Q). P has the counts that are cut off added to its outermost bins; Q is the
    distribution after quantization: within a step, the counts are spread evenly over the bins that
    are not empty."""
    edges = seen.edges
    middles = (edges[:-1] + edges[1:]) / 2
    within_range = (middles >= low) & (middles <= high)
    if not within_range.any():
        return float("inf")
    inside_counts = seen.counts[within_range].astype(np.float64)
    nonempty = inside_counts > 0
    step = (high - low) / grid.levels
    if step <= 0 or not nonempty.any():
        return float("inf")
    place = np.floor((middles[within_range] - low) / step).astype(np.int64)
    place -= place.min()
    total = np.bincount(place, inside_counts)
    bins = np.bincount(place, nonempty)
    spread = np.where(nonempty, (total / np.maximum(bins, 1))[place], 0.0)
    reference = inside_counts.copy()
    first, last = np.flatnonzero(within_range)[[0, -1]]
    reference[0] += seen.counts[:first].sum()
    reference[-1] += seen.counts[last + 1 :].sum()
    p, q = reference / reference.sum(), spread / spread.sum()
    nonempty = p > 0
    tiny = 1e-10  # for empty bins of Q, where counts that were cut off were added to P
    return float(np.sum(p[nonempty] * np.log(p[nonempty] / np.maximum(q[nonempty], tiny))))
