"""What a quantized model has lost altogether, seen in its outputs beside the float model's."""

import numpy as np

from onmetal.calibration.sanity import ONE_CLASS, one_class

ROWS = 512
"""Samples, spread over all, that are looked at."""
SATURATED = 0.5
"""The share of an output's values that lie at its own least or greatest one."""


def collapsed(name: str, reference: np.ndarray, found: np.ndarray) -> list[str]:
    """In words, what is wrong with an output [samples, ...]; the float model's is the measure."""
    if reference.shape != found.shape or reference.dtype.kind != "f" or len(found) < 2:
        return []
    rows = np.unique(np.linspace(0, len(found) - 1, min(ROWS, len(found))).astype(np.int64))
    before, after = np.asarray(reference[rows]), np.asarray(found[rows])
    if np.isnan(after).any() and not np.isnan(before).any():
        return [f"the output {name!r} holds NaN"]
    if (before != before[0]).any() and (after == after[0]).all():
        return [f"the output {name!r} is dead: the same for every sample"]
    said = []
    was, now = one_class(before), one_class(after)
    if was is not None and now is not None and was < ONE_CLASS and now >= 0.99:
        said.append(
            f"the output {name!r} predicts one class for {now:.0%} of the samples, "
            f"where the float model does for {was:.0%}"
        )
    if after.size >= 64:
        edges = [float(np.mean((a == a.min()) | (a == a.max()))) for a in (before, after)]
        if edges[1] >= SATURATED > 2 * edges[0]:
            said.append(
                f"the output {name!r} is saturated: {edges[1]:.0%} of its values lie at its "
                f"extremes, where {edges[0]:.0%} of the float model's do"
            )
    return said
