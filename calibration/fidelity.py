"""How closely outputs follow the original model's: over the whole output, and slice by slice.

One output may hold values of different kinds, such as boxes in pixels beside scores of 0 to 1. A
figure over the whole output then says nothing of the small values, so where the ranges of slices
differ much, each slice is compared by itself. Everything is accumulated a part of the samples at a
time; only a few arrays of one sample's shape are held in memory.
"""

import math
from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from onmetal.files.stored import Outputs, chunks
from onmetal.records import Slice

PERFECT_DB = 300.0
"""The value where not one bit differs: the ratio to a noise of zero is not a number."""


BAD_DB = 10.0
"""Fidelity under which a tensor is called bad: the noise is a third of the signal."""

UNEVEN = 32.0
"""Slices whose ranges differ by more than this factor are compared one by one: where 8 bits cover
the larger range, fewer than three of them are left for the smaller."""
SHARES = 1e-3
"""Values along an axis whose sum differs from 1 by at most this are shares of one whole, such as a
softmax's outputs."""
ROUNDING = 1e-6
"""Relative to an output's largest magnitude: a root mean square of differences below it is
float32's own rounding, in whichever slice; so is the variation of an output that counts as
constant."""
DEAD_ROWS = 2
"""The least number of samples by which a value is found never to change."""


class Fidelity(Struct, frozen=True):
    """How one output follows the original model's."""

    sqnr_db: float | None
    """Of the whole output; None for whole numbers, for which `equal` is set."""
    worst_slice: Slice | None
    """The slice with the least SQNR, where ranges of slices differ by more than UNEVEN; else
    None."""
    equal: float | None
    """The share of equal elements of an output of whole numbers or booleans."""
    invalid: bool
    """Whether it holds NaN or infinity where the original has none."""
    constant: bool
    """Whether the original output is the same for every sample, but for rounding."""
    dead: bool
    """Whether the output is the same for every sample, where the original is not."""
    dead_slices: tuple[Slice, ...]
    """Slices that never change, where the same slices of the original do, with a range at most
    UNEVEN times narrower than that of its widest slice."""

    @property
    def least_db(self) -> float | None:
        """The smaller SQNR of the whole output's and the worst slice's."""
        if self.sqnr_db is None or self.worst_slice is None:
            return self.sqnr_db
        return min(self.sqnr_db, self.worst_slice.sqnr_db)


def sqnr_db(reference: Outputs, output: Outputs) -> float:
    """Signal to quantization noise, 10 log10(sum ref^2 / sum (ref - output)^2), streamed.

    Both [samples, ...]. At 0 dB the noise is as large as the signal;
    -300 dB stands for NaN or infinity where the reference has none.
    """
    if reference.shape != output.shape:
        return -PERFECT_DB
    peak = max((_peak(np.asarray(reference[part])) for part in chunks(reference)), default=0.0)
    signal = noise = 0.0
    for part in chunks(reference):
        expected = np.asarray(reference[part], np.float64) / (peak or 1.0)
        actual = np.asarray(output[part], np.float64) / (peak or 1.0)
        signals, noises = _squares(expected, actual)
        signal += float(np.sum(signals))
        noise += float(np.sum(noises))
    return _decibels(signal, noise)


def _squares(expected: np.ndarray, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squares of the signal where it is finite, and of the differences."""
    alike = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
    with np.errstate(over="ignore", invalid="ignore"):  # gives -PERFECT_DB
        gaps = np.subtract(expected, actual, out=np.zeros_like(expected), where=~alike)
        return np.where(np.isfinite(expected), expected, 0.0) ** 2, gaps**2


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return PERFECT_DB
    if not math.isfinite(noise) or signal == 0:
        return -PERFECT_DB
    return min(PERFECT_DB, 10 * math.log10(signal / noise))


def _peak(values: np.ndarray) -> float:
    """The largest finite magnitude, by which values are divided before they are squared, so that no
    square overflows."""
    finite = values[np.isfinite(values)]
    return float(np.abs(finite.astype(np.float64)).max(initial=0.0))


class Extent(Struct, frozen=True):
    """The range of each element of an original output over all samples; computed once."""

    low: np.ndarray
    """One sample's shape, float64; of finite values."""
    high: np.ndarray
    shares: tuple[int, ...]
    """Axes along which the values are shares of one whole."""

    @property
    def peak(self) -> float:
        """The largest finite magnitude."""
        ends = np.abs(np.stack([self.low, self.high]))
        return float(ends[np.isfinite(ends)].max(initial=0.0))

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value of all."""
        return float(self.low.min(initial=math.inf)), float(self.high.max(initial=-math.inf))

    def of_slices(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """-> the least and the greatest value of every slice along the axis."""
        other_axes = tuple(place for place in range(self.low.ndim) if place != axis)
        return self.low.min(axis=other_axes), self.high.max(axis=other_axes)


def extent(reference: Outputs) -> Extent:
    """Read the original model's output once, a part at a time."""
    shape = reference.shape[1:]
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    shares = dict.fromkeys(axes, reference.dtype.kind == "f" and low.size > 0)
    for part in chunks(reference):
        values = np.asarray(reference[part], np.float64)
        finite = np.isfinite(values)
        low = np.minimum(low, np.where(finite, values, np.inf).min(axis=0))
        high = np.maximum(high, np.where(finite, values, -np.inf).max(axis=0))
        for axis in axes:
            if shares[axis]:
                with np.errstate(invalid="ignore"):
                    off = np.abs(values.sum(axis=axis + 1) - 1)
                shares[axis] = bool(values.min() >= 0 and off.max() <= SHARES)
    return Extent(low, high, tuple(axis for axis in axes if shares[axis]))


def perfect(output: Outputs) -> Fidelity:
    """The fidelity of an output that is the original's own."""
    if output.dtype.kind in "biu":
        return Fidelity(None, None, 1.0, invalid=False, constant=False, dead=False, dead_slices=())
    return Fidelity(
        PERFECT_DB, None, None, invalid=False, constant=False, dead=False, dead_slices=()
    )


def compare(
    reference: Outputs, output: Outputs, reference_extent: Extent | None = None
) -> Fidelity:
    """How an output [samples, ...] follows the original's. `reference_extent`: extent(reference).

    Raises ValueError where the shapes differ.
    """
    if reference.shape != output.shape:
        raise ValueError(f"shapes {reference.shape} and {output.shape} differ")
    if not math.prod(reference.shape):
        return perfect(reference)  # there is nothing in it
    reference_extent = reference_extent or extent(reference)
    shape, count = reference.shape[1:], len(reference)
    peak = reference_extent.peak or 1.0
    signal, noise = np.zeros(shape), np.zeros(shape)
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    equal, invalid = 0, False
    for part in chunks(reference):
        expected, actual = np.asarray(reference[part]), np.asarray(output[part])
        equal += int(np.sum(expected == actual))
        expected, actual = expected.astype(np.float64), actual.astype(np.float64)
        invalid = invalid or bool((np.isfinite(expected) & ~np.isfinite(actual)).any())
        signals, noises = _squares(expected / peak, actual / peak)
        signal, noise = signal + signals.sum(axis=0), noise + noises.sum(axis=0)
        low, high = np.fmin(low, actual.min(axis=0)), np.fmax(high, actual.max(axis=0))
    whole_numbers = reference.dtype.kind in "biu"
    least = 0.0 if whole_numbers else ROUNDING * reference_extent.peak
    constant = not (reference_extent.high - reference_extent.low > least).any()
    dead = count >= DEAD_ROWS and bool((low == high).all()) and not constant
    dead_slices = (
        () if dead or count < DEAD_ROWS else tuple(_dead_slices(reference_extent, low, high, least))
    )
    return Fidelity(
        sqnr_db=None if whole_numbers else _decibels(float(signal.sum()), float(noise.sum())),
        worst_slice=None if whole_numbers else _worst_slice(reference_extent, signal, noise, count),
        equal=equal / max(1, count * signal.size) if whole_numbers else None,
        invalid=invalid,
        constant=constant,
        dead=dead,
        dead_slices=dead_slices,
    )


def _uneven_axes(reference_extent: Extent) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Axes whose slices differ in range by more than UNEVEN, with the ends of each slice."""
    for axis, size in enumerate(reference_extent.low.shape):
        if size < 2 or axis in reference_extent.shares:
            continue
        low, high = reference_extent.of_slices(axis)
        magnitudes = np.maximum(np.abs(low), np.abs(high))
        magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
        if len(magnitudes) and magnitudes.max() > UNEVEN * magnitudes.min():
            yield axis, low, high


def _worst_slice(
    reference_extent: Extent, signal: np.ndarray, noise: np.ndarray, count: int
) -> Slice | None:
    """The slice with the least SQNR. `signal` and `noise` are sums of squares, relative to the
    output's peak. Differences below float32's rounding of that peak are not counted as noise."""
    slices = []
    for axis, low, high in _uneven_axes(reference_extent):
        other_axes = tuple(place for place in range(signal.ndim) if place != axis)
        signals, noises = signal.sum(axis=other_axes), noise.sum(axis=other_axes)
        elements = count * signal.size / signal.shape[axis]
        with np.errstate(invalid="ignore"):
            silent = np.sqrt(noises / elements) <= ROUNDING
        for index in np.flatnonzero(~silent):
            ends = float(low[index]), float(high[index])
            value = _decibels(float(signals[index]), float(noises[index]))
            slices.append(Slice(axis, int(index), value, ends))
    if slices:
        return min(slices, key=lambda entry: entry.sqnr_db)
    return None


def _dead_slices(
    reference_extent: Extent, low: np.ndarray, high: np.ndarray, least: float
) -> Iterator[Slice]:
    """Slices that hold one number in all samples, where the original slice's range is more than
    `least` and at least 1 / UNEVEN of the widest slice's."""
    for axis, size in enumerate(low.shape):
        if size < 2 or axis in reference_extent.shares:
            continue
        other_axes = tuple(place for place in range(low.ndim) if place != axis)
        constant = low.min(axis=other_axes) == high.max(axis=other_axes)
        ends = reference_extent.of_slices(axis)
        with np.errstate(invalid="ignore"):
            ranges = ends[1] - ends[0]
        widest = ranges[np.isfinite(ranges)].max(initial=0.0)
        for index in np.flatnonzero(constant & (ranges * UNEVEN >= widest) & (ranges > least)):
            yield Slice(
                axis, int(index), -PERFECT_DB, (float(ends[0][index]), float(ends[1][index]))
            )
