"""The values that a runtime's options may have: untrusted target files and bundles set them."""

from typing import Annotated, Any, Literal

from msgspec import Meta

MOST_THREADS = 1024
"""More than any machine has cores; threads beyond them only cost memory."""

Threads = Annotated[int, Meta(ge=1, le=MOST_THREADS)]
Switch = bool | Annotated[int, Meta(ge=0, le=1)]
Names = Annotated[tuple[Annotated[str, Meta(max_length=1000)], ...], Meta(max_length=1000)]
"""Names of a model's inputs or outputs."""
Entry = Literal["0", "1", 0, 1]
"""A switch that a runtime takes as text."""


def whole(least: int, most: int) -> Any:
    """A whole number, which may be given as text."""
    digits = len(str(most))
    text = Annotated[str, Meta(pattern=rf"^[0-9]{{1,{digits}}}\Z")]
    return Annotated[int, Meta(ge=least, le=most)] | text
