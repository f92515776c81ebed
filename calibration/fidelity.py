"""How closely outputs follow the original model's."""

import numpy as np

from onmetal.calibration.metrics import chunks

PERFECT_DB = 300.0
"""Said where not one bit differs: a ratio to no noise at all is not a number."""


BAD_DB = 10.0
"""Fidelity under which a tensor is called bad: the noise is a third of the signal."""


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
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
        alike = (wanted == given) | (np.isnan(wanted) & np.isnan(given))
        signal += float(np.sum(wanted[np.isfinite(wanted)] ** 2))
        with np.errstate(over="ignore", invalid="ignore"):  # said below as no likeness at all
            gap = np.subtract(wanted, given, out=np.zeros_like(wanted), where=~alike)
            noise += float(np.sum(gap**2))
    if noise == 0:
        return PERFECT_DB
    if not np.isfinite(noise) or signal == 0:
        return -PERFECT_DB
    return min(PERFECT_DB, 10 * float(np.log10(signal / noise)))


def _peak(values: np.ndarray) -> float:
    """The largest finite magnitude; squares are taken of parts of it, so that none overflows."""
    finite = values[np.isfinite(values)]
    return float(np.abs(finite.astype(np.float64)).max(initial=0.0))
