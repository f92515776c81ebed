"""Models of other frameworks as ONNX: static shapes before the export, the export checked against
the framework itself after it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper

from onmetal.converters import Reference
from onmetal.converters.onnx import reader
from onmetal.converters.onnx.axes import fix_axes
from onmetal.converters.onnx.reference import Reference as OnnxReference
from onmetal.errors import UnsupportedError, UsageError
from onmetal.files import cache as caches
from onmetal.files.reading import open_regular

TOLERANCE = 1e-4
"""The largest difference from the framework's outputs, as a part of the largest of them: floats are
summed in another order, nothing else may differ."""
SAMPLES = 2
"""How many random inputs the export is checked with."""


class Declared(NamedTuple):
    """An input as the framework declares it."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    """None: a free axis."""


class Static(NamedTuple):
    """The inputs with all axes static."""

    inputs: list[Declared]
    batch: int | None
    """The size that a free batch axis was set to."""
    notes: list[str]


def static(declared: Sequence[Declared], shapes: dict[str, list[int]], batch: int | None) -> Static:
    """As converters.onnx.axes.fix_axes. Raises UsageError and ShapeError as it does."""
    values = [
        helper.make_tensor_value_info(
            entry.name, helper.np_dtype_to_tensor_dtype(np.dtype(entry.dtype)), entry.shape
        )
        for entry in declared
    ]
    model = helper.make_model(helper.make_graph([], "inputs", values, []))
    _, size_of_batch, notes = fix_axes(model, shapes, batch)
    fixed = [
        entry._replace(shape=tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim))
        for entry, value in zip(declared, model.graph.input, strict=True)
    ]
    return Static(fixed, size_of_batch, notes)


def as_prepared(declared: Sequence[Declared], prepared: Path) -> list[Declared]:
    """The inputs with the static shapes of the graph that was exported."""
    graph = onnx.load_model(str(prepared), load_external_data=False).graph
    shape_of = {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in graph.input
    }
    return [entry._replace(shape=shape_of[entry.name]) for entry in declared]


def with_shapes(proto: onnx.ModelProto, given: Static) -> onnx.ModelProto:
    """The exported model, its inputs named and shaped as they were asked for."""
    shape_of = {entry.name: list(entry.shape) for entry in given.inputs}
    fix_axes(proto, shape_of, None)  # type: ignore[arg-type]
    return proto


def facts(
    proto: onnx.ModelProto,
    framework: Reference,
    title: str,
    given: Static,
    folder: Path,
    cut: Sequence[str] = (),
) -> dict[str, Any]:
    """Read the exported model as any ONNX file, and compare it with the framework. `title`: what it
    was exported by; `cut`: as ModelFormat.read has it. The whole model is compared before it is
    cut, since the framework computes all of it. -> the facts of records.Model, but for `sha256` and
    `size_bytes`, which are the source's.

    Raises UnsupportedError where it cannot be read, or computes something else.
    """
    known = as_graph(proto, title, folder)
    names = [tensor["name"] for tensor in known["outputs"]]
    graph = OnnxReference(folder / "model.onnx", names)
    difference = {"by": title, **compared(framework, graph, known)}
    if cut:
        known = _cut(folder, cut)
    known["imported"] = difference
    known["notes"] = [*given.notes, *known["notes"]]
    known["batch"] = given.batch or known["batch"]
    known["prepared_sha256"] = caches.sha256(*sorted(p for p in folder.rglob("*") if p.is_file()))
    return known


def as_graph(proto: onnx.ModelProto, title: str, folder: Path) -> dict[str, Any]:
    """Read the exported model as any ONNX file: writes `model.onnx`. -> the facts of records.Model.

    Raises UnsupportedError where it cannot be read.
    """
    exported = folder / "exported.onnx"
    exported.write_bytes(proto.SerializeToString(deterministic=True))
    try:
        known = reader.examine(str(exported), {}, None, str(folder))
    except (UsageError, UnsupportedError) as error:
        why = str(error).removeprefix(f"{exported}: ")
        raise UnsupportedError(f"its export to ONNX by {title} cannot be used: {why}") from None
    exported.unlink()
    return known


def _cut(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Cut the exported model. -> its facts, as by `as_graph`."""
    whole = folder / "whole.onnx"
    (folder / "model.onnx").rename(whole)
    try:
        known = reader.examine(str(whole), {}, None, str(folder), names)
    except (UsageError, UnsupportedError) as error:
        raise type(error)(str(error).removeprefix(f"{whole}: ")) from None
    whole.unlink()
    return known


def compared(
    framework: Reference, graph: Reference, known: dict[str, Any], *, exact: bool = True
) -> dict[str, Any]:
    """How far the outputs of the graph are from the framework's, on random inputs. `known`: its
    `inputs` and `outputs`, in whose order both take and give arrays. `exact`: whether more than
    rounding of floats is refused.

    Raises UnsupportedError where they have other shapes, or differ by more than is allowed.
    """
    names = [tensor["name"] for tensor in known["outputs"]]
    random = np.random.default_rng(0)
    feeds = [
        {tensor["name"]: _drawn(random, tensor) for tensor in known["inputs"]}
        for _ in range(SAMPLES)
    ]
    computed = [framework.run(feed) for feed in feeds]
    largest = 0.0
    for feed, outputs in zip(feeds, computed, strict=True):
        for name, wanted, given in zip(names, outputs, graph.run(feed), strict=True):
            if wanted.shape != given.shape:
                raise UnsupportedError(
                    f"what it was exported to gives {name!r} of shape {list(given.shape)}, where "
                    f"the model gives {list(wanted.shape)}"
                )
            largest = max(largest, _difference(wanted, given))
    if exact and largest > TOLERANCE:
        again = zip(computed[0], framework.run(feeds[0]), strict=True)
        if max(_difference(*pair) for pair in again) > TOLERANCE:
            raise UnsupportedError(
                "the model gives other outputs every time for the same inputs: it keeps state from "
                "one to the next, or has random operators, as those of training; leave them out"
            )
        raise UnsupportedError(
            f"what it was exported to computes something else: outputs differ by {largest:.3g} of "
            f"the largest, where {TOLERANCE:.0e} are allowed for rounding"
        )
    tolerance = TOLERANCE if exact else None
    return {"largest_difference": largest, "tolerance": tolerance, "inputs": "random"}


def _drawn(random: np.random.Generator, tensor: dict[str, Any]) -> np.ndarray:
    """Normally distributed floats; all numbers of a quantized input; of other whole numbers 0 and
    1, which stand for something in any table of an embedding."""
    dtype, shape = np.dtype(tensor["dtype"]), tensor["shape"]
    if dtype.kind == "f":
        return np.asarray(random.normal(size=shape), dtype)
    if tensor.get("scale"):
        limits = np.iinfo(dtype)
        numbers = random.integers(limits.min, limits.max, shape, np.int64, endpoint=True)
        return np.asarray(numbers, dtype)
    return np.asarray(random.integers(0, 2, shape), dtype)


def _difference(wanted: np.ndarray, given: np.ndarray) -> float:
    left, right = wanted.astype(np.float64), given.astype(np.float64)
    finite = np.isfinite(left)
    if not np.array_equal(finite, np.isfinite(right)):
        return float("inf")
    peak = np.abs(left[finite]).max(initial=0.0)
    off = np.abs(left[finite] - right[finite]).max(initial=0.0)
    return float(off / peak) if peak else float(off)


def digest_of(path: Path) -> tuple[str, int]:
    """The SHA-256 of a file, and its size in bytes."""
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size
