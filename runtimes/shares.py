"""What a runtime really ran on a device, as shares of its operators: limits that they must keep.

A device is not trusted: what it sends is read as types, and the shares that follow are checked.
"""

import math
from typing import Annotated, Any

from msgspec import Meta

from onmetal.errors import UnsupportedError

MOST_KINDS, KIND_LENGTH = 1000, 200
WHY = 300

Index = Annotated[int, Meta(ge=-1, lt=1 << 31)]
Name = Annotated[str, Meta(max_length=KIND_LENGTH)]
DType = Annotated[str, Meta(pattern="^[a-z0-9_]{1,20}$")]
Micros = Annotated[float, Meta(ge=0, le=1e15)]

FAULTS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
"""What reading a text of another form raises."""


def unreadable(title: str, error: Exception) -> UnsupportedError:
    return UnsupportedError(f"the profile of {title} could not be read: {str(error)[:WHY]}")


def checked(figures: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError where the device names more than a model has, or what is no share."""
    for name in ("provider", "precision", "operators", "not_delegated"):
        entries = figures.get(name, {})
        if len(entries) > MOST_KINDS or any(len(kind) > KIND_LENGTH for kind in entries):
            raise ValueError(f"more than {MOST_KINDS} kinds of operators, or one of a long name")
        if not all(math.isfinite(share) and share >= 0 for share in entries.values()):
            raise ValueError("a share that is no number, or negative")
    return figures
