"""What a model has lost altogether, seen in its outputs beside the original model's."""

import math

import numpy as np

from onmetal.calibration.fidelity import Fidelity, compare
from onmetal.files.stored import Outputs, chunks

ROWS = 512
"""Samples, spread over all, that are looked at for saturation."""
MOST_BYTES = 1 << 25
"""Of one output's samples, held in memory for that."""
SATURATED = 0.5
"""The share of an output's values that lie at its own least or greatest one."""
NEARLY = 1 / 64
"""Of the original output's span: no further off than 8 bits may be."""
ONE_CLASS = 0.9
"""The share of samples with one prediction that is no chance, where there are several classes."""
ROUNDING_DB = 110.0
"""Fidelity from which on nothing but float32's own rounding differs: what is lost is lost to a tie,
such as the larger of two equal scores."""
FEWEST = 20
"""Samples without which the commonest prediction says nothing."""


def collapsed(
    name: str, reference: Outputs, output: Outputs, fidelity: Fidelity | None = None
) -> list[str]:
    """In words, what is wrong with an output [samples, ...] beside the original model's.

    `fidelity`: of the two, where it is known already.
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
    before, after = one_class(reference, 2), one_class(output, 2)
    if before is not None and after is not None and before < ONE_CLASS and after >= 0.99:
        reasons.append(
            f"the output {name!r} predicts one class for {after:.0%} of the samples, "
            f"where the original model does for {before:.0%}"
        )
    return reasons + _saturated(name, reference, output)


def _saturated(name: str, reference: Outputs, output: Outputs) -> list[str]:
    """Whether values are cut off at an output's own least or greatest one."""
    row_bytes = max(1, math.prod(output.shape[1:]) * output.dtype.itemsize)
    count = min(ROWS, len(output), max(2, MOST_BYTES // row_bytes))
    rows = np.unique(np.linspace(0, len(output) - 1, count).astype(np.int64))
    if len(rows) * math.prod(output.shape[1:]) < 64 or output.dtype.kind != "f":
        return []
    before, after = np.asarray(reference[rows]), np.asarray(output[rows])
    # Where the original is nearly there too (a softmax at 0 or 1), nothing is cut off.
    with np.errstate(invalid="ignore"):  # of infinities in both
        away = np.abs(after - before) > NEARLY * float(before.max() - before.min())
    edge = float(np.mean((before == before.min()) | (before == before.max())))
    cut = float(np.mean(((after == after.min()) | (after == after.max())) & away))
    if not cut >= SATURATED > 2 * edge:
        return []
    return [
        f"the output {name!r} is saturated: {cut:.0%} of its values lie at its extremes, where "
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
