"""Detects outputs that lost their information: invalid, dead, saturated or always of one class."""

import math

import numpy as np

from onmetal.calibration.fidelity import Fidelity, compare
from onmetal.files.stored import Outputs, chunks

ROWS = 512
"""The most samples, spread over all, that are examined for saturation."""
MOST_BYTES = 1 << 25
"""The most bytes of one output's samples that are held in memory for that."""
SATURATED = 0.5
"""The share of an output's values at its least or greatest value from which it is saturated."""
NEARLY = 1 / 64
"""A difference, relative to the original output's span, that 8 bits may cause without clipping."""
ONE_CLASS = 0.9
"""The share of samples with one prediction that is not by chance, where there are several classes.
"""
ROUNDING_DB = 110.0
"""The fidelity from which on only float32's own rounding differs: predictions change only where
there is a tie, such as two equal scores."""
FEWEST = 20
"""The fewest samples for which the commonest prediction is judged."""


def collapsed(
    name: str, reference: Outputs, output: Outputs, fidelity: Fidelity | None = None
) -> list[str]:
    """What is wrong, in words, with an output [samples, ...] compared with the original model's.

    `fidelity`: the result of `compare` of the two, where it is known already.
    """
    if reference.shape != output.shape:
        return []
    fidelity = fidelity or compare(reference, output)
    if fidelity.invalid:
        return [f"the output {name!r} holds NaN or infinity, where the original model's does not"]
    if len(output) < 2 or fidelity.constant or (fidelity.least_db or 0.0) >= ROUNDING_DB:
        return []
    if fidelity.dead:
        return [f"the output {name!r} is dead: the same for every sample"]
    reasons = []
    if fidelity.dead_slices:
        first, count = fidelity.dead_slices[0], len(fidelity.dead_slices)
        more = f", and {count - 1} more slices" if count > 1 else ""
        reasons.append(f"the output {name!r} is dead in {first}{more}: one number for every sample")
    original_share, share = one_class(reference, 2), one_class(output, 2)
    if (
        original_share is not None
        and share is not None
        and original_share < ONE_CLASS
        and share >= 0.99
    ):
        reasons.append(
            f"the output {name!r} predicts one class for {share:.0%} of the samples, "
            f"where the original model does for {original_share:.0%}"
        )
    return reasons + _saturated(name, reference, output)


def _saturated(name: str, reference: Outputs, output: Outputs) -> list[str]:
    """The problem, in words, where values are clipped at an output's least or greatest value."""
    row_bytes = max(1, math.prod(output.shape[1:]) * output.dtype.itemsize)
    count = min(ROWS, len(output), max(2, MOST_BYTES // row_bytes))
    rows = np.unique(np.linspace(0, len(output) - 1, count).astype(np.int64))
    if len(rows) * math.prod(output.shape[1:]) < 64 or output.dtype.kind != "f":
        return []
    original, values = np.asarray(reference[rows]), np.asarray(output[rows])
    # Where the original's value is near the extreme too (a softmax at 0 or 1), nothing is clipped.
    with np.errstate(invalid="ignore"):  # of infinities in both
        away = np.abs(values - original) > NEARLY * float(original.max() - original.min())
    edge = float(np.mean((original == original.min()) | (original == original.max())))
    clipped = float(np.mean(((values == values.min()) | (values == values.max())) & away))
    if not clipped >= SATURATED > 2 * edge:
        return []
    return [
        f"the output {name!r} is saturated: {clipped:.0%} of its values lie at its extremes, where "
        f"{edge:.0%} of the original model's do"
    ]


def one_class(outputs: Outputs, least: int = 3) -> float | None:
    """The share of the commonest prediction among [samples, ..., classes], 20 samples or more;
    None where these are no scores of `least` or more classes."""
    shape = outputs.shape
    if outputs.dtype.kind != "f" or len(shape) < 2 or len(outputs) < FEWEST:
        return None
    if shape[-1] < least or math.prod(shape[1:]) != shape[-1]:
        return None
    counts = np.zeros(shape[-1], np.int64)
    for part in chunks(outputs):
        values = np.asarray(outputs[part])
        predicted = np.argmax(values.reshape(len(values), -1), axis=-1)
        counts += np.bincount(predicted, minlength=shape[-1])
    return float(counts.max() / len(outputs))
