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


def export(form: str, model: Path, graph: str, folder: Path) -> dict[str, Any]:
    """As ModelFormat.export of this format."""
    return format_named(form).export(model, graph, folder)


def violations(path: Path) -> list[str]:
    """The violations of TFLite's specification in a .tflite file (converters.tflite.check.file)."""
    from onmetal.converters.tflite import check

    return check.file(str(path))


def layout(path: Path) -> list[str]:
    """What the operators of a .tflite file are and give, sorted: their kinds and shapes."""
    from onmetal.converters.tflite.parsing import read

    return sorted(
        f"{op.custom or op.kind} {[list(tensor.shape) for tensor in op.outputs]}"
        for op in read(path).ops
    )


def ends(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The inputs and outputs of a .tflite file, as converters.tflite.ends.ends."""
    from onmetal.converters.tflite.ends import ends

    return ends(str(path))


def rename_data(path: Path, copy: Path, data_name: str) -> None:
    """Write a copy of an ONNX file whose weights lie in one file beside it, which is called
    `data_name` there. `copy`: the new ONNX file."""
    from onmetal.converters.onnx import external

    external.rename(path, copy, data_name)
