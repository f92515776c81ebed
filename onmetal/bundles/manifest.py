"""Reads the manifest of a bundle, and checks which of its statements are safe to act on and
true."""

import json
import math
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import msgspec
import psutil
from msgspec import Meta, Struct
from msgspec.structs import replace

from onmetal.bundles.kinds import PART, kinds
from onmetal.files import cache as caches
from onmetal.files.reading import read_bytes
from onmetal.profilers.tensor_bytes import NHWC
from onmetal.records import Tensor, restore
from onmetal.runtimes import RUNTIMES, misfits

TOLERANCE = {"f32": 1e-4, "f16": 2e-2, "bf16": 1e-1, "i8": 1e-1, "i16": 1e-2}
"""The tolerance of golden outputs by the compute type, as a part of the largest magnitude of an
output: kernels of other CPUs may round differently by so much."""
HALF_TOLERANCE = 2e-3
"""The least tolerance where an output is float16: two rounding steps of float16."""
DEQUANTIZED = ("int8", "uint8", "int16")
"""The integer dtypes that run.py dequantizes to real numbers, where they have a scale."""
MANIFEST_BYTES = 32 << 20
"""The most bytes of a manifest: enough for the indices of two million evaluated samples."""
MOST_VECTORS = 64
MOST_TENSORS = 1000
MOST_AXES = 32
ITEM_BYTES = {
    **dict.fromkeys(("bool", "int8", "uint8"), 1),
    **dict.fromkeys(("int16", "uint16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "uint32", "float32"), 4),
    **dict.fromkeys(("int64", "uint64", "float64"), 8),
}
"""dtype -> bytes of one element, for all dtypes that inputs and outputs may have."""
GOLDEN_BYTES = 1 << 30
"""Golden vectors are at most this large together, unless there is a single one."""
GOLDEN_SLACK_BYTES = 64 << 20
"""Added to what the shapes take: for outputs whose shape depends on the values of the input."""

PLACES = {
    "manifest": r"manifest\.json",
    "runner": r"run\.py",
    "readme": r"README\.md",
    "artifact": rf"{PART}\.(onnx|data|xml|bin|tflite)",
    "golden": r"golden\.npz",
    "measurements": r"measurements\.npz",
}
for _places in (kind.places for kind in kinds()):
    for _kind, _place in _places.items():
        PLACES[_kind] = f"{PLACES[_kind]}|{_place}" if _kind in PLACES else _place
"""Kind of file -> a regular expression of its paths in a bundle. Python would import none of these
files but run.py itself."""


MOST_BYTES = {"manifest": MANIFEST_BYTES, "runner": 1 << 20, "requirements": 1 << 20}
"""Kind of file -> its most bytes, for kinds that are read as a whole."""


def kind_of(path: str) -> str | None:
    """The kind of a file by its path in the bundle; None where it does not belong in a bundle."""
    return next((kind for kind, place in PLACES.items() if re.fullmatch(place, path)), None)


def named(paths: Iterable[str]) -> list[dict[str, str]]:
    """The manifest's `files`: every file of a bundle with its kind, except SHA256SUMS."""
    kinds = {path: kind_of(path) for path in sorted(paths)}
    if strange := [path for path, kind in kinds.items() if kind is None]:
        raise ValueError(f"{strange[0]!r} does not belong in a bundle")
    return [{"path": path, "kind": str(kind)} for path, kind in kinds.items()]


class _Run(Struct, frozen=True):
    runtime: str
    runtime_version: Annotated[str, Meta(pattern=r"^[0-9A-Za-z.+-]{1,64}\Z")]
    files: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MOST_TENSORS)]
    options: dict[str, Any]
    inputs: Annotated[tuple[Tensor, ...], Meta(max_length=MOST_TENSORS)]
    outputs: Annotated[tuple[Tensor, ...], Meta(min_length=1, max_length=MOST_TENSORS)]


class _Golden(Struct, frozen=True):
    vectors: Annotated[int, Meta(ge=0, le=MOST_VECTORS)]
    tolerance: Annotated[float, Meta(ge=0, le=max(TOLERANCE.values()))]


class _Digests(Struct, frozen=True):
    artifact: str


class _File(Struct, frozen=True):
    path: str
    kind: str


class _Manifest(Struct, frozen=True):
    """The fields of a manifest that programs act on; its other fields are for people."""

    schema: Literal[1]
    chosen: str
    run: _Run
    golden: _Golden
    digests: _Digests
    files: tuple[_File, ...] | None = None
    """None: it was written before the manifest named all files."""


def read(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """-> a bundle's manifest; the problems for which its artifact must not be run."""
    try:
        text = read_bytes(folder / "manifest.json", MANIFEST_BYTES)
        checked = msgspec.json.decode(text, type=_Manifest)
        manifest: dict[str, Any] = _decoded(text)
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)[:300]
        return {}, [f"manifest.json is damaged, or of another version: {why}"]
    run = checked.run
    if run.runtime not in RUNTIMES:
        return {}, [f"this version does not know its runtime {run.runtime[:100]!r}"]
    problems = [
        f"manifest.json runs {name[:100]!r}, outside the bundle"
        for name in run.files
        if Path(name).name != name or kind_of(name) != "artifact" or not _plain(folder / name)
    ]
    memory_bytes = psutil.virtual_memory().total
    if not problems and sum((folder / name).stat().st_size for name in run.files) > memory_bytes:
        return {}, ["the artifact is larger than this machine's memory"]
    if not problems and caches.sha256(*(folder / name for name in run.files)) != (
        checked.digests.artifact
    ):
        problems.append("the artifact is not the one that manifest.json was written for")
    problems += [f"manifest.json sets {why}" for why in misfits(run.runtime, run.options)]
    problems += [f"manifest.json says: {why}" for why in impossible(run.inputs, run.outputs)]
    return manifest, problems


def _decoded(text: bytes) -> Any:
    """The JSON document as run.py reads it, except that a repeated name is an error: two readers
    might use different ones of its values."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members = dict(pairs)
        if len(members) != len(pairs):
            raise ValueError("it has one name twice")
        return members

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number")

    return json.loads(text.decode(), object_pairs_hook=once, parse_constant=refuse)


def _plain(path: Path) -> bool:
    """Whether the path is a regular file and no link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def impossible(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[str]:
    """Problems of inputs and outputs that no artifact can have, or that exceed this machine's
    memory."""
    problems, total = [], 0
    for tensor in (*inputs, *outputs):
        label = f"{tensor.name[:100]!r}"
        if tensor.dtype not in ITEM_BYTES:
            problems.append(f"{label} is {tensor.dtype[:40]!r}, which no input or output is")
        elif len(tensor.shape) > MOST_AXES or min(tensor.shape, default=0) < 0:
            problems.append(f"{label} has the shape {str(list(tensor.shape))[:200]}")
        else:
            total += size_bytes(tensor)
    if total > psutil.virtual_memory().total // 2:
        problems.append(
            f"the inputs and outputs of one inference take {total} bytes, more than half of this "
            "machine's memory"
        )
    return problems


def size_bytes(tensor: Tensor) -> int:
    """The bytes of an array of the tensor's shape and dtype."""
    return math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]


def strangers(manifest: dict[str, Any], present_paths: Iterable[str]) -> list[str]:
    """Describes the files that the manifest does not name, or names with another kind.

    `present_paths`: the paths of all files in the bundle.
    """
    run = set(manifest["run"]["files"])
    loose = sorted(
        n for n in present_paths if kind_of(n) == "artifact" and "/" not in n and n not in run
    )
    problems = [f"{name} is no file of the artifact" for name in loose]
    if manifest.get("files") is None:
        return problems
    named_kinds = {entry["path"]: entry["kind"] for entry in manifest["files"]}
    if len(named_kinds) != len(manifest["files"]):
        problems.append("manifest.json names one of its files twice")
    for name in sorted(set(present_paths) - named_kinds.keys()):
        problems.append(f"manifest.json does not name {name}")
    for name in sorted(named_kinds.keys() - set(present_paths)):
        problems.append(f"manifest.json names {name[:200]!r}, which is not there")
    for name in sorted(set(present_paths) & named_kinds.keys()):
        if named_kinds[name] != kind_of(name):
            problems.append(f"{name} is not of the kind that manifest.json says")
    return problems


def untrue_tensors(run: dict[str, Any], artifact: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Sentences about the inputs and outputs of a manifest's `run` that differ from its artifact's.

    `artifact`: as a converter's `describe` has it. Both are matched by name, else in order.
    """
    channels_last = run["options"].get("nhwc", [])
    widened = run["options"].get("float16", [])
    problems = []
    for side in ("inputs", "outputs"):
        manifest_tensors, stored = restore(run[side], tuple[Tensor, ...]), artifact[side]
        if len(manifest_tensors) != len(stored):
            problems.append(
                f"manifest.json names {len(manifest_tensors)} {side}, and the artifact has "
                f"{len(stored)}"
            )
            continue
        by_name = {end["name"]: end for end in stored}
        if {tensor.name for tensor in manifest_tensors} <= by_name.keys():
            stored = [by_name[tensor.name] for tensor in manifest_tensors]
        for tensor, end in zip(manifest_tensors, stored, strict=True):
            half = tensor.name in widened and tensor.dtype == "float16"  # run.py casts it
            # A runtime whose artifact has real numbers for a quantized output.
            real = side == "outputs" and tensor.scale and tensor.dtype in DEQUANTIZED
            cast_tensor = (
                replace(tensor, dtype="float32")
                if half or (real and end["dtype"] == "float32")
                else tensor
            )
            if why := _untrue(cast_tensor, end, tensor.name in channels_last):
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
    """Whether the shape is that of the artifact, whose axes of size -1 fit any size."""
    return len(shape) == len(stored) and all(
        of_file in (-1, size) for size, of_file in zip(shape, stored, strict=True)
    )


def golden_bytes(manifest: dict[str, Any]) -> int:
    """The most that golden.npz may hold in arrays: what its vectors take by the manifest's shapes,
    and some slack. A single vector may be of any size that `read` let pass."""
    run, count = manifest["run"], int(manifest["golden"]["vectors"])
    ends = restore([*run["inputs"], *run["outputs"]], tuple[Tensor, ...])
    total = count * sum(size_bytes(tensor) for tensor in ends)
    return (min(total, GOLDEN_BYTES) if count > 1 else total) + GOLDEN_SLACK_BYTES


def untrue_vectors(
    run: dict[str, Any], vectors: dict[str, dict[str, Any]], count: int
) -> list[str]:
    """Sentences about golden vectors that differ from what a manifest's `run` says.

    `vectors`: of each array in golden.npz its dtype and shape.
    """
    problems, expected_names = [], set()
    for tensor in restore(run["inputs"], tuple[Tensor, ...]):
        for number in range(count):
            name = f"input/{tensor.name}/{number}"
            expected_names.add(name)
            array = vectors.get(name)
            if array is None:
                problems.append(f"golden vector {number} has no input {tensor.name!r}")
            elif (array["dtype"], tuple(array["shape"])) != (tensor.dtype, tensor.shape):
                problems.append(
                    f"golden vector {number} has for {tensor.name!r} {array['dtype']} of "
                    f"{array['shape']}, and manifest.json says {tensor.dtype} of "
                    f"{list(tensor.shape)}"
                )
    for tensor in restore(run["outputs"], tuple[Tensor, ...]):
        for number in range(count):
            expected_names.add(f"output/{tensor.name}/{number}")
            if f"output/{tensor.name}/{number}" not in vectors:
                problems.append(f"golden vector {number} has no output {tensor.name!r}")
    strange = sorted(vectors.keys() - expected_names)
    return problems + [f"golden.npz holds {name[:100]!r}, which is no vector" for name in strange]
