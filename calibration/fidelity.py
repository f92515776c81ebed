"""How closely outputs follow the original model's."""

import numpy as np

from onmetal.calibration.metrics import chunks

PERFECT_DB = 300.0
"""Said where not one bit differs: a ratio to no noise at all is not a number."""


def sqnr_db(reference: np.ndarray, found: np.ndarray) -> float:
    """Signal to quantization noise, 10 log10(sum ref^2 / sum (ref - found)^2), streamed.

    Both [samples, ...]. 0 dB or less is no likeness at all;
    -300 dB stands for NaN or infinity where the reference has none.
    """
    signal = noise = 0.0
    for part in chunks(reference):
        wanted = np.asarray(reference[part], np.float64)
        given = np.asarray(found[part], np.float64)
        alike = (wanted == given) | (np.isnan(wanted) & np.isnan(given))
        finite = np.isfinite(wanted)
        signal += float(np.sum(wanted[finite] ** 2))
        noise += float(np.sum(np.where(alike, 0.0, wanted - given) ** 2))
    if noise == 0:
        return PERFECT_DB
    if not np.isfinite(noise) or signal == 0:
        return -PERFECT_DB
    return min(PERFECT_DB, 10 * float(np.log10(signal / noise)))
