"""Whether evaluation samples exceed the ranges of the calibration samples."""

import math
from typing import Literal

Range = tuple[float, float]

BEYOND = 0.5
"""How much wider the range of other samples may be than calibration's, relative to calibration's,
without a warning. Ten times as many samples of a normal distribution make it about 0.2 wider, of
one with exponential tails about 0.35."""


def range_warning(
    kind: Literal["input", "output"], name: str, calibrated: Range, judged: Range
) -> str | None:
    """A warning where the evaluation samples' range exceeds calibration's far: 8 bits clip it."""
    low, high = calibrated
    over = max(low - judged[0], 0.0) + max(judged[1] - high, 0.0)
    if not all(map(math.isfinite, (*calibrated, *judged))) or over <= BEYOND * (high - low):
        return None
    return (
        f"the {kind} {name!r} goes from {judged[0]:.3g} to {judged[1]:.3g} in the samples that "
        f"judge, and from {low:.3g} to {high:.3g} in those that calibrate: 8 bits clip what is "
        "beyond; calibrate with samples that reach as far"
    )
