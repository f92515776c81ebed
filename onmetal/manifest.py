"""The manifest of a bundle, read back: what of it may be acted on, and what in it is untrue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from onmetal import cache as caches
from onmetal.converters import misfits
from onmetal.profilers.raw import NHWC
from onmetal.records import Tensor, restore
from onmetal.targets import RUNTIMES

TOLERANCE = {"f32": 1e-4, "f16": 2e-2, "bf16": 1e-1, "i8": 1e-1, "i16": 1e-2}
"""Of golden outputs, by the type computed in, as a part of the largest magnitude of an output: what
other CPUs' kernels may round differently."""
HALF_TOLERANCE = 2e-3
"""At least, where an output is float16: two of its steps."""
DEQUANTIZED = ("int8", "uint8", "int16")
"""Integers that run.py makes real numbers of, where they have a scale."""


class _Run(Struct, frozen=True):
    runtime: str
    files: Annotated[tuple[str, ...], Meta(min_length=1)]
    options: dict[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: Annotated[tuple[Tensor, ...], Meta(min_length=1)]


class _Golden(Struct, frozen=True):
    vectors: Annotated[int, Meta(ge=0)]
    tolerance: Annotated[float, Meta(ge=0, le=max(TOLERANCE.values()))]


class _Digests(Struct, frozen=True):
    artifact: str


class _Manifest(Struct, frozen=True):
    """What of a manifest is acted on; the rest of it is for people."""

    schema: Literal[1]
    chosen: str
    run: _Run
    golden: _Golden
    digests: _Digests


def read(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """A bundle's manifest, and what in it could not be trusted to be run."""
    try:
        text = (folder / "manifest.json").read_bytes()
        checked = msgspec.json.decode(text, type=_Manifest)
        manifest: dict[str, Any] = msgspec.json.decode(text)
    except (OSError, ValueError, RecursionError) as error:
        return {}, [f"manifest.json is damaged, or of another version: {error}"]
    run = checked.run
    if run.runtime not in RUNTIMES:
        return {}, [f"this version does not know its runtime {run.runtime!r}"]
    problems = [
        f"manifest.json runs {name!r}, outside the bundle"
        for name in run.files
        if Path(name).name != name or not (folder / name).is_file()
    ]
    if not problems and caches.sha256(*(folder / name for name in run.files)) != (
        checked.digests.artifact
    ):
        problems.append("the artifact is not the one that manifest.json was written for")
    problems += [f"manifest.json sets {why}" for why in misfits(run.runtime, run.options)]
    return manifest, problems


def untrue_tensors(run: dict[str, Any], artifact: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Where the inputs and outputs of a manifest's `run` are not those of its artifact, in words.

    `artifact`: as a converter's `describe` has it. Both are matched by name, else in order.
    """
    channels_last = run["options"].get("nhwc", [])
    widened = run["options"].get("float16", [])
    problems = []
    for side in ("inputs", "outputs"):
        said, stored = restore(run[side], tuple[Tensor, ...]), artifact[side]
        if len(said) != len(stored):
            problems.append(
                f"manifest.json names {len(said)} {side}, and the artifact has {len(stored)}"
            )
            continue
        by_name = {end["name"]: end for end in stored}
        if {tensor.name for tensor in said} <= by_name.keys():
            stored = [by_name[tensor.name] for tensor in said]
        for tensor, end in zip(said, stored, strict=True):
            half = tensor.name in widened and tensor.dtype == "float16"  # run.py casts it
            held = replace(tensor, dtype="float32") if half else tensor
            if why := _untrue(held, end, tensor.name in channels_last):
                problems.append(f"manifest.json says of {side[:-1]} {tensor.name!r} that {why}")
    return problems


def _untrue(tensor: Tensor, end: dict[str, Any], channels_last: bool) -> str | None:
    shape: Sequence[int] = tensor.shape
    if channels_last:
        if len(shape) != 4:
            return f"its channels are last, and it has {len(shape)} axes"
        shape = [shape[axis] for axis in NHWC]
    if end["shape"] is not None and not _fits(shape, end["shape"]):
        return f"it has the shape {list(shape)}, and the artifact has {end['shape']}"
    real = tensor.dtype == "float32" and end.get("scale") and end["dtype"] in DEQUANTIZED
    if tensor.dtype != end["dtype"] and not real:
        return f"it is {tensor.dtype}, and in the artifact it is {end['dtype']}"
    return None


def _fits(shape: Sequence[int], stored: Sequence[int]) -> bool:
    """-1: an axis whose size the artifact leaves open."""
    return len(shape) == len(stored) and all(
        of_file in (-1, size) for size, of_file in zip(shape, stored, strict=True)
    )


def untrue_vectors(
    run: dict[str, Any], vectors: dict[str, dict[str, Any]], count: int
) -> list[str]:
    """Where golden inputs are not what a manifest's `run` says.

    `vectors`: of each array in golden.npz its dtype and shape.
    """
    problems = []
    for tensor in restore(run["inputs"], tuple[Tensor, ...]):
        for number in range(count):
            array = vectors.get(f"input/{tensor.name}/{number}")
            if array is None:
                problems.append(f"golden vector {number} has no input {tensor.name!r}")
            elif (array["dtype"], tuple(array["shape"])) != (tensor.dtype, tensor.shape):
                problems.append(
                    f"golden vector {number} has for {tensor.name!r} {array['dtype']} of "
                    f"{array['shape']}, and manifest.json says {tensor.dtype} of "
                    f"{list(tensor.shape)}"
                )
    return problems
