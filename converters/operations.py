"""The functions of model formats that run in worker processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmetal.converters import format_named


def read(
    form: str,
    path: Path,
    shapes: dict[str, list[int]],
    batch: int | None,
    folder: Path,
    trust: bool,
    cut: Sequence[str] = (),
) -> dict[str, Any]:
    """As ModelFormat.read of this format."""
    return format_named(form).read(path, shapes, batch, folder, trust, cut)


def violations(path: Path) -> list[str]:
    """The violations of TFLite's specification in a .tflite file (converters.tflite.check.file)."""
    from onmetal.converters.tflite import check

    return check.file(str(path))


def ends(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The inputs and outputs of a .tflite file, as converters.tflite.ends.ends."""
    from onmetal.converters.tflite.ends import ends

    return ends(str(path))
