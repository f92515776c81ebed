"""What a quantized model has lost altogether, seen in its outputs beside the float model's."""

import math

import numpy as np

ROWS = 512
"""Samples, spread over all, that are looked at."""
SATURATED = 0.5
"""The share of an output's values that lie at its own least or greatest one."""
NEARLY = 1 / 64
"""Of the float output's span: no further off than 8 bits may be."""
ONE_CLASS = 0.9
"""The share of samples with one prediction that is no chance, where there are several classes."""


def collapsed(name: str, reference: np.ndarray, found: np.ndarray) -> list[str]:
    """In words, what is wrong with an output [samples, ...]; the float model's is the measure."""
    if reference.shape != found.shape or len(found) < 2:
        return []
    rows = np.unique(np.linspace(0, len(found) - 1, min(ROWS, len(found))).astype(np.int64))
    before, after = np.asarray(reference[rows]), np.asarray(found[rows])
    if after.dtype.kind == "f" and np.isfinite(before).all() and not np.isfinite(after).all():
        return [f"the output {name!r} holds NaN or infinity, where the float model's does not"]
    if (before != before[0]).any() and (after == after[0]).all():
        return [f"the output {name!r} is dead: the same for every sample"]
    said = []
    was, now = one_class(before, 2), one_class(after, 2)
    if was is not None and now is not None and was < ONE_CLASS and now >= 0.99:
        said.append(
            f"the output {name!r} predicts one class for {now:.0%} of the samples, "
            f"where the float model does for {was:.0%}"
        )
    if after.size >= 64 and after.dtype.kind == "f":
        # Where the float model is nearly there too (a softmax at 0 or 1), nothing is cut off.
        with np.errstate(invalid="ignore"):  # of infinities in both
            away = np.abs(after - before) > NEARLY * float(before.max() - before.min())
        edges = [float(np.mean((a == a.min()) | (a == a.max()))) for a in (before, after)]
        cut = float(np.mean(((after == after.min()) | (after == after.max())) & away))
        if cut >= SATURATED > 2 * edges[0]:
            said.append(
                f"the output {name!r} is saturated: {cut:.0%} of its values lie at its "
                f"extremes, where {edges[0]:.0%} of the float model's do"
            )
    return said


def one_class(outputs: np.ndarray, least: int = 3) -> float | None:
    """The share of the commonest prediction among [samples, ..., classes], 20 samples or more;
    None where these are no scores of `least` or more classes."""
    if outputs.dtype.kind != "f" or outputs.ndim < 2 or len(outputs) < 20:
        return None
    if outputs.shape[-1] < least or math.prod(outputs.shape[1:]) != outputs.shape[-1]:
        return None
    predicted = np.argmax(outputs.reshape(len(outputs), -1), axis=-1)
    return float(np.bincount(predicted).max() / len(predicted))
