"""TFLite Micro: the .tflite file of converters/tflite, with its operators in the order that needs
the least memory; for an Ethos-U, the file that Vela compiles from it too."""

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from onmetal.errors import UnsupportedError
from onmetal.runtimes.bounds import Names
from onmetal.runtimes.protocol import Hardware

VERSION = 1
ALONE = True
"""Vela keeps state between two compilations, which must not change the second file."""
OPTIONS: dict[str, Any] = {
    "nhwc": Names,
    "float16": Names,
    "stateful": bool,
}
"""As LiteRT's."""
RESERVED = frozenset(OPTIONS)


def convert(prepared: str, compute: str, folder: str, hardware: Hardware) -> list[str]:
    """Write `model.tflite`, for an NPU `model_vela.tflite` too, and to `made.json` how they were
    made.

    `hardware`: `core` (as targets.Chip, or None), `npu` (as targets.Npu, or None), `split`: whether
    the largest early operators are to be split. Raises UnsupportedError where that gains nothing.
    """
    from onmetal.converters.tflite import check
    from onmetal.converters.tflite.parsing import read
    from onmetal.runtimes.tflm import split, vela

    if faults := check.problems(read(Path(prepared))):
        raise UnsupportedError(f"the file violates TFLite's specification: {faults[0]}")
    target, provenance = Path(folder) / "model.tflite", {}
    if hardware["npu"] is None:  # Vela orders the operators by itself
        provenance["memory"] = split.shrink_arena(
            prepared, folder, hardware["core"], hardware["split"]
        )
        if target.exists() and (faults := check.problems(read(target))):
            raise UnsupportedError(
                f"no file was written, since it would violate TFLite's specification: {faults[0]}"
            )
    if not target.exists():
        _link(prepared, target)
    files = [target.name]
    if hardware["npu"] is not None:
        files.append("model_vela.tflite")
        provenance["npu"] = vela.compile_(target, hardware["npu"], Path(folder) / files[-1])
    (Path(folder) / "made.json").write_bytes(msgspec.json.encode(provenance))
    return files


def _link(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def options(compute: str, threads: int) -> dict[str, Any]:
    return {}


def describe(path: str) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs of a .tflite file, as it has them itself."""
    from onmetal.converters.tflite.ends import ends

    return ends(path)
