"""What TFLite Micro says of a model that is compiled into firmware with it.

Functions for worker processes import the modules that they need when they are called.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.records import plain
from onmetal.runtimes.protocol import Activation, Hardware, Lacking
from onmetal.targets import Io, Recipe, Target


def hardware(recipe: Recipe, target: Target) -> Hardware:
    """`core`, `npu` (as targets.Npu), whether to `split`; with an NPU, the version of Vela."""
    return {
        "core": target.chip.core if target.chip else None,
        "npu": plain(target.npu),
        "split": recipe.does("split"),
        **({"vela": _installed("ethos-u-vela")} if target.npu else {}),
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def shipped(files: Sequence[Path]) -> Sequence[Path]:
    """The last file: that for an NPU follows the one that this machine runs in its place."""
    return files[-1:]


def lacking(path: Path, activation: Activation | None) -> list[Lacking]:
    from onmetal.runtimes.tflm import micro

    return micro.lacking(path, activation)


def preview(
    path: Path, activation: Activation | None, target_io: Io, hardware: Hardware
) -> dict[str, Any]:
    from onmetal.runtimes.tflm import micro

    return micro.preview(path, activation, target_io, hardware["core"], hardware["npu"])


def arena(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> dict[str, Any]:
    from onmetal.runtimes.tflm import profile

    return profile.arena(feed, files, options, inputs, outputs)


def plan(path: Path, core: str | None, host_tail_bytes: int) -> dict[str, Any]:
    from onmetal.runtimes.tflm import examine

    return examine.examine(str(path), core, host_tail_bytes)


def flash(path: Path, core: str | None) -> dict[str, Any]:
    from onmetal.runtimes.tflm import flash

    return flash.needs(str(path), core)


def operators(path: Path) -> dict[str, Any]:
    from onmetal.runtimes.tflm import operators

    return operators.operators(str(path))


def tensors(path: Path) -> dict[str, Any]:
    from onmetal.runtimes.tflm import operators

    return operators.tensors(str(path))
