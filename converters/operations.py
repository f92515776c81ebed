"""What is asked of readers of model formats in worker processes."""

from pathlib import Path
from typing import Any

from onmetal.converters import format_named


def read(
    form: str, path: Path, shapes: dict[str, list[int]], batch: int | None, folder: Path
) -> dict[str, Any]:
    """As ModelFormat.read of this format."""
    return format_named(form).read(path, shapes, batch, folder)


def violations(path: Path) -> list[str]:
    """How a .tflite file breaks TFLite's specification, as converters.tflite.check.file."""
    from onmetal.converters.tflite import check

    return check.file(str(path))


def ends(path: Path) -> dict[str, list[dict[str, Any]]]:
    """What a .tflite file takes and gives, as converters.tflite.ends.ends."""
    from onmetal.converters.tflite.ends import ends

    return ends(str(path))
