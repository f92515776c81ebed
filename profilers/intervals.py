"""From raw samples to figures with intervals. The unit that varies is the round, not the inference:
neighbouring inferences share the state of the machine, so they are not independent samples.

Rounds themselves come in blocks of fresh processes, and processes of one artifact differ a little
for as long as they live. So every bootstrap draws blocks first and then rounds within them.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from onmetal.records import Figure, Latency, Rounds, Verdict, Versus

RESAMPLES = 2000
RESOLUTION = 0.01
"""Half the least width of a ratio's interval: processes of one artifact, on a quiet machine, differ
by up to this for as long as they live (docs/measuring.md), and few blocks cannot show it."""
ONE_BLOCK = 0.05
"""How much is added to each side of a ratio's interval, as a logarithm, where each artifact ran in
one process only."""
SKETCH = 101
"""Order statistics kept of a round while resampling."""

T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t, 97.5 %, for 1 to 10 degrees of freedom."""


def _draws(keys: list[tuple[int, int]]) -> np.ndarray:
    """[RESAMPLES, len(keys)]: how often each round is in each resample."""
    return _cached_draws(tuple(keys))


@lru_cache(maxsize=8)
def _cached_draws(keys: tuple[tuple[int, int], ...]) -> np.ndarray:
    random = np.random.default_rng(0)
    blocks = sorted({block for block, _ in keys})
    members = [np.array([i for i, key in enumerate(keys) if key[0] == b]) for b in blocks]
    counts = np.zeros((RESAMPLES, len(keys)))
    for number in range(RESAMPLES):
        for block in random.integers(0, len(blocks), len(blocks)):
            indices = members[block]
            np.add.at(counts[number], indices[random.integers(0, len(indices), len(indices))], 1)
    return counts


def _quantile_interval(rounds: Rounds, share: float) -> tuple[float, float]:
    """95 % interval of a quantile of all samples together, in milliseconds."""
    keys = sorted(rounds.samples_ns)
    levels = (np.arange(SKETCH) + 0.5) / SKETCH
    sketches = [np.quantile(rounds.samples_ns[key], levels) for key in keys]
    weights = [np.full(SKETCH, len(rounds.samples_ns[key]) / SKETCH) for key in keys]
    values, weight = np.concatenate(sketches), np.concatenate(weights)
    order = np.argsort(values, kind="stable")
    owner = np.repeat(np.arange(len(keys)), SKETCH)[order]
    quantiles = []
    for drawn in _draws(keys):
        mass = np.cumsum(weight[order] * drawn[owner])
        quantiles.append(values[order[np.searchsorted(mass, share * mass[-1])]])
    low, high = np.percentile(quantiles, [2.5, 97.5])
    of_block: dict[int, list[np.ndarray]] = {}
    for key in keys:
        of_block.setdefault(key[0], []).append(rounds.samples_ns[key])
    per_block = [
        float(np.quantile(np.concatenate(samples), share)) for samples in of_block.values()
    ]
    low, high = _with_blocks(float(low), float(high), per_block)
    # Two blocks may widen it beyond reason; no quantile lies outside of the samples.
    return max(low, float(values.min())) / 1e6, min(high, float(values.max())) / 1e6


def _with_blocks(low: float, high: float, of_blocks: Sequence[float]) -> tuple[float, float]:
    """The interval, widened to Student's t over the figures of single blocks (as logarithms): a
    bootstrap of three or five blocks does not account for how few they are."""
    count = len(of_blocks)
    if count < 2:
        return low, high
    logs = np.log(of_blocks)
    half = T975[min(count - 2, len(T975) - 1)] * float(logs.std(ddof=1)) / math.sqrt(count)
    middle = float(logs.mean())
    return min(low, math.exp(middle - half)), max(high, math.exp(middle + half))


def latency(rounds: Rounds) -> Latency:
    """p50 and p90 of all raw samples, each with the interval of its rounds."""
    everything = np.concatenate([rounds.samples_ns[key] for key in sorted(rounds.samples_ns)])
    p50, p90 = (float(value) / 1e6 for value in np.percentile(everything, [50, 90]))
    low, high = _quantile_interval(rounds, 0.5)
    low90, high90 = _quantile_interval(rounds, 0.9)
    return Latency(
        p50=p50,
        p90=p90,
        p50_ci95=(min(low, p50), max(high, p50)),
        p90_ci95=(min(low90, p90), max(high90, p90)),
        samples=rounds.count,
        rounds=len(rounds.samples_ns),
    )


def throughput(rounds: Rounds, batch: int) -> Figure:
    """Samples a second, one request at a time: the batch over the mean latency."""
    keys = sorted(rounds.samples_ns)
    sums = np.array([rounds.samples_ns[key].sum() for key in keys], np.float64)
    counts = np.array([len(rounds.samples_ns[key]) for key in keys], np.float64)
    drawn = _draws(keys)
    rates = batch * 1e9 * (drawn @ counts) / (drawn @ sums)
    low, high = np.percentile(rates, [2.5, 97.5])
    blocks = np.array([block for block, _ in keys])
    per_block = [
        batch * 1e9 * float(counts[blocks == block].sum() / sums[blocks == block].sum())
        for block in sorted(set(blocks.tolist()))
    ]
    return Figure(
        value=float(batch * 1e9 * counts.sum() / sums.sum()),
        ci95=_with_blocks(float(low), float(high), per_block),
        samples=rounds.count,
        basis="measured",
        how="one request at a time: the batch over the mean latency",
    )


def compare(baseline: Rounds, other: Rounds, *, mean: bool = False) -> Versus:
    """How many times faster `other` is, from the rounds that both have.

    The speed-up is the median over rounds of the ratio of the two medians (`mean`: means) of a
    round. Its interval is the widest of: the bootstrap of rounds in blocks; Student's t over the
    medians of the blocks, which alone accounts for how few blocks there are; RESOLUTION.
    """
    keys, logs = _paired(baseline, other, mean)
    if not keys:
        return Versus(float("nan"), (0.0, math.inf), "inconclusive")
    point = float(np.median(logs))
    drawn = _draws(keys).astype(np.int64)
    resampled = _medians(logs, drawn)
    low, high = (float(value) for value in np.percentile(resampled, [2.5, 97.5]))
    blocks = sorted({block for block, _ in keys})
    if len(blocks) == 1:  # how much processes differ is not known: no verdict
        low, high = min(low, 0.0) - ONE_BLOCK, max(high, 0.0) + ONE_BLOCK
        return Versus(math.exp(point), (math.exp(low), math.exp(high)), "inconclusive")
    of_block = np.array([block for block, _ in keys])
    per_block = [math.exp(np.median(logs[of_block == block])) for block in blocks]
    ends = _with_blocks(math.exp(low), math.exp(high), per_block)
    low, high = math.log(ends[0]), math.log(ends[1])
    resolution = math.log1p(RESOLUTION)
    low, high = min(low, point - resolution), max(high, point + resolution)
    return Versus(math.exp(point), (math.exp(low), math.exp(high)), _verdict(low, high))


def speedup(baseline: Rounds, other: Rounds, *, mean: bool = False) -> float:
    """How many times faster `other` is, as `compare` has it, without its interval; NaN where they
    have no round in common. Where it is 1 or less, the verdict is not "faster"."""
    keys, logs = _paired(baseline, other, mean)
    return math.exp(float(np.median(logs))) if keys else math.nan


def _paired(
    baseline: Rounds, other: Rounds, mean: bool
) -> tuple[list[tuple[int, int]], np.ndarray]:
    """-> the rounds that both have, and the logarithms of how many times faster `other` is."""
    keys = sorted(baseline.samples_ns.keys() & other.samples_ns.keys())
    middle = np.mean if mean else np.median
    ratios = [middle(baseline.samples_ns[k]) / middle(other.samples_ns[k]) for k in keys]
    return keys, np.log(np.array(ratios))


def _medians(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The median of each resample: `counts` [resamples, values] says how often each value is in
    it."""
    order = np.argsort(values, kind="stable")
    places = np.cumsum(counts[:, order], axis=1)
    sizes = places[:, -1:]
    lower = np.argmax(places > (sizes - 1) // 2, axis=1)
    upper = np.argmax(places > sizes // 2, axis=1)
    medians: np.ndarray = (values[order[lower]] + values[order[upper]]) / 2
    return medians


def _verdict(low: float, high: float) -> Verdict:
    if low > 0:
        return "faster"
    return "slower" if high < 0 else "inconclusive"
