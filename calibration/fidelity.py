"""How closely outputs follow the original model's: in the whole, and slice by slice.

One output may hold values of different kinds, such as boxes in pixels beside scores of 0 to 1. A
figure of the whole then says nothing of the small ones, so where the ranges of slices differ much,
each slice is compared by itself. Everything is accumulated a part at a time; what is kept is a few
arrays of one sample's shape.
"""

import math
from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from onmetal.files.stored import Outputs, chunks
from onmetal.records import Slice

PERFECT_DB = 300.0
"""Said where not one bit differs: a ratio to no noise at all is not a number."""


BAD_DB = 10.0
"""Fidelity under which a tensor is called bad: the noise is a third of the signal."""

UNEVEN = 32.0
"""Slices whose ranges differ by more than this are compared one by one: of 8 bits for the larger,
less than three are left for the smaller."""
SHARES = 1e-3
"""Values along an axis that sum to 1 this closely are shares of one whole, as a softmax gives."""
ROUNDING = 1e-6
"""Of an output's largest magnitude: a root mean square of differences below it is float32's own
rounding, whatever slice it is in; so is all that a constant output varies by."""
DEAD_ROWS = 2
"""So many samples it takes to see that a value never changes."""


class Fidelity(Struct, frozen=True):
    """How one output follows the original model's."""

    sqnr_db: float | None
    """Of the whole; None: whole numbers, of which `equal` is said."""
    worst_slice: Slice | None
    """Where ranges of slices differ by more than UNEVEN; None: there is no need to look there."""
    equal: float | None
    """The share of equal elements of an output of whole numbers or booleans."""
    invalid: bool
    """Whether it holds NaN or infinity where the original has none."""
    constant: bool
    """Whether the original is the same for every sample, but for rounding."""
    dead: bool
    """Whether it is the same for every sample, where the original is not."""
    dead_slices: tuple[Slice, ...]
    """Slices that never change, where the original's do, and by as much as its other slices (up to
    UNEVEN times less)."""

    @property
    def least_db(self) -> float | None:
        """Of the whole and of the worst slice."""
        if self.sqnr_db is None or self.worst_slice is None:
            return self.sqnr_db
        return min(self.sqnr_db, self.worst_slice.sqnr_db)


def sqnr_db(reference: Outputs, found: Outputs) -> float:
    """Signal to quantization noise, 10 log10(sum ref^2 / sum (ref - found)^2), streamed.

    Both [samples, ...]. 0 dB or less is no likeness at all;
    -300 dB stands for NaN or infinity where the reference has none.
    """
    if reference.shape != found.shape:
        return -PERFECT_DB
    peak = max((_peak(np.asarray(reference[part])) for part in chunks(reference)), default=0.0)
    signal = noise = 0.0
    for part in chunks(reference):
        wanted = np.asarray(reference[part], np.float64) / (peak or 1.0)
        given = np.asarray(found[part], np.float64) / (peak or 1.0)
        signals, noises = _squares(wanted, given)
        signal += float(np.sum(signals))
        noise += float(np.sum(noises))
    return _decibels(signal, noise)


def _squares(wanted: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squares of the signal where it is finite, and of the differences."""
    alike = (wanted == given) | (np.isnan(wanted) & np.isnan(given))
    with np.errstate(over="ignore", invalid="ignore"):  # said as no likeness at all
        gaps = np.subtract(wanted, given, out=np.zeros_like(wanted), where=~alike)
        return np.where(np.isfinite(wanted), wanted, 0.0) ** 2, gaps**2


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return PERFECT_DB
    if not math.isfinite(noise) or signal == 0:
        return -PERFECT_DB
    return min(PERFECT_DB, 10 * math.log10(signal / noise))


def _peak(values: np.ndarray) -> float:
    """The largest finite magnitude; squares are taken of parts of it, so that none overflows."""
    finite = values[np.isfinite(values)]
    return float(np.abs(finite.astype(np.float64)).max(initial=0.0))


class Extent(Struct, frozen=True):
    """What values an output takes, element by element over all samples; once per original."""

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
        others = tuple(place for place in range(self.low.ndim) if place != axis)
        return self.low.min(axis=others), self.high.max(axis=others)


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
    """Of an output that is the original's own."""
    if output.dtype.kind in "biu":
        return Fidelity(None, None, 1.0, invalid=False, constant=False, dead=False, dead_slices=())
    return Fidelity(
        PERFECT_DB, None, None, invalid=False, constant=False, dead=False, dead_slices=()
    )


def compare(reference: Outputs, output: Outputs, known: Extent | None = None) -> Fidelity:
    """How an output [samples, ...] follows the original's. `known`: extent(reference).

    Raises ValueError where the shapes differ.
    """
    if reference.shape != output.shape:
        raise ValueError(f"shapes {reference.shape} and {output.shape} differ")
    if not math.prod(reference.shape):
        return perfect(reference)  # there is nothing in it
    known = known or extent(reference)
    shape, count = reference.shape[1:], len(reference)
    peak = known.peak or 1.0
    signal, noise = np.zeros(shape), np.zeros(shape)
    low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
    equal, invalid = 0, False
    for part in chunks(reference):
        wanted, given = np.asarray(reference[part]), np.asarray(output[part])
        equal += int(np.sum(wanted == given))
        wanted, given = wanted.astype(np.float64), given.astype(np.float64)
        invalid = invalid or bool((np.isfinite(wanted) & ~np.isfinite(given)).any())
        signals, noises = _squares(wanted / peak, given / peak)
        signal, noise = signal + signals.sum(axis=0), noise + noises.sum(axis=0)
        low, high = np.fmin(low, given.min(axis=0)), np.fmax(high, given.max(axis=0))
    whole = reference.dtype.kind in "biu"
    least = 0.0 if whole else ROUNDING * known.peak
    constant = not (known.high - known.low > least).any()
    dead = count >= DEAD_ROWS and bool((low == high).all()) and not constant
    dead_slices = () if dead or count < DEAD_ROWS else tuple(_dead_slices(known, low, high, least))
    return Fidelity(
        sqnr_db=None if whole else _decibels(float(signal.sum()), float(noise.sum())),
        worst_slice=None if whole else _worst_slice(known, signal, noise, count),
        equal=equal / max(1, count * signal.size) if whole else None,
        invalid=invalid,
        constant=constant,
        dead=dead,
        dead_slices=dead_slices,
    )


def _uneven_axes(known: Extent) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Axes whose slices differ in range by more than UNEVEN, with the ends of each slice."""
    for axis, size in enumerate(known.low.shape):
        if size < 2 or axis in known.shares:
            continue
        low, high = known.of_slices(axis)
        magnitudes = np.maximum(np.abs(low), np.abs(high))
        magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
        if len(magnitudes) and magnitudes.max() > UNEVEN * magnitudes.min():
            yield axis, low, high


def _worst_slice(known: Extent, signal: np.ndarray, noise: np.ndarray, count: int) -> Slice | None:
    """The slice with the least SQNR. `signal` and `noise` are sums of squares, as parts of the
    output's peak. What lies below float32's rounding of that peak is no noise."""
    slices = []
    for axis, low, high in _uneven_axes(known):
        others = tuple(place for place in range(signal.ndim) if place != axis)
        signals, noises = signal.sum(axis=others), noise.sum(axis=others)
        elements = count * signal.size / signal.shape[axis]
        with np.errstate(invalid="ignore"):
            silent = np.sqrt(noises / elements) <= ROUNDING
        for index in np.flatnonzero(~silent):
            ends = float(low[index]), float(high[index])
            value = _decibels(float(signals[index]), float(noises[index]))
            slices.append(Slice(axis, int(index), value, ends))
    if slices:
        return min(slices, key=lambda one: one.sqnr_db)
    return None


def _dead_slices(known: Extent, low: np.ndarray, high: np.ndarray, least: float) -> Iterator[Slice]:
    """Slices whose every value is one number, where the original's range is more than `least`, and
    a good part of the widest slice's."""
    for axis, size in enumerate(low.shape):
        if size < 2 or axis in known.shares:
            continue
        others = tuple(place for place in range(low.ndim) if place != axis)
        constant = low.min(axis=others) == high.max(axis=others)
        ends = known.of_slices(axis)
        with np.errstate(invalid="ignore"):
            ranges = ends[1] - ends[0]
        widest = ranges[np.isfinite(ranges)].max(initial=0.0)
        for index in np.flatnonzero(constant & (ranges * UNEVEN >= widest) & (ranges > least)):
            yield Slice(
                axis, int(index), -PERFECT_DB, (float(ends[0][index]), float(ends[1][index]))
            )
