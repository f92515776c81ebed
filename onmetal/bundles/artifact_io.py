"""The inputs and outputs of an artifact beside those of its model, for generated programs.

Programs in a bundle that are not written in Python convert the model's tensors to those of the
artifact, which may have its channels last or integers instead of floats. This module describes
these conversions in one place, in agreement with LiteRT's session. It also writes golden vectors as
raw bytes and fills in templates.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from onmetal.converters import operations
from onmetal.errors import UnsupportedError
from onmetal.profilers.devices.local_worker import LocalWorker, quiet_environment
from onmetal.profilers.operation import asked
from onmetal.records import Candidate, Shape, Tensor
from onmetal.runtimes import RUNTIMES, folder, runtime, spec
from onmetal.runtimes.protocol import Programs

Ends = dict[str, list[dict[str, Any]]]
TEMPLATES = Path(__file__).parent / "templates"
DEQUANTIZED = ("int8", "uint8", "int16")
DTYPES = ("float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
"""The dtypes that generated programs can hand over; they have no type for others (float16,
text)."""
_PLACE = re.compile(r"@@(\w+)@@")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ArtifactTensor(Struct, frozen=True):
    """One input or output, as the user has it and as the artifact has it."""

    name: str
    dtype: str
    """Of the user's array."""
    shape: Shape
    """Of the user's array, as the model has it."""
    stored: str
    """The type that the artifact has."""
    place: int
    """Its number among the artifact's own inputs or outputs."""
    turned: bool = False
    """The artifact has its channels last."""
    scale: float = 0.0
    """real = scale * (integer - zero_point); 0 where nothing is quantized on the way."""
    zero_point: int = 0


class ArtifactIo(Struct, frozen=True):
    inputs: tuple[ArtifactTensor, ...]
    outputs: tuple[ArtifactTensor, ...]


def artifact_tensors(candidate: Candidate) -> ArtifactIo:
    """The inputs and outputs of the candidate's artifact; a .tflite file is read for that, in a
    worker.

    Raises UnsupportedError where a generated program cannot hand a tensor over.
    """
    if not _has_programs(candidate.runtime):
        runtimes_with_programs = ", ".join(name for name in RUNTIMES if _has_programs(name))
        raise UnsupportedError(
            f"no program is generated for {candidate.runtime}; only for {runtimes_with_programs}"
        )
    as_onnx = spec(candidate.runtime).reads == "onnx"
    tensors = _of_onnx(candidate) if as_onnx else _of_tflite(candidate)
    for tensor in (*tensors.inputs, *tensors.outputs):
        _check(tensor)
    return tensors


def _has_programs(name: str) -> bool:
    return spec(name).in_firmware or runtime(name).programs() is not None


def programs(candidate: Candidate) -> Programs:
    """The facts that generated programs need about the candidate's runtime. Raises UnsupportedError
    where no programs are generated for it."""
    known = runtime(candidate.runtime).programs()
    if known is None:
        raise UnsupportedError(f"no program is generated for {candidate.runtime}")
    return known


def _of_onnx(candidate: Candidate) -> ArtifactIo:
    """The tensors of an ONNX artifact: the model's own tensors, without transposition or
    quantization; quantized outputs come as the real numbers that they stand for."""

    def as_stored(tensor: Tensor, place: int, dtype: str) -> ArtifactTensor:
        return ArtifactTensor(tensor.name, dtype, tensor.shape, dtype, place)

    outputs = candidate.model.outputs
    real = ["float32" if t.scale and t.dtype in DEQUANTIZED else t.dtype for t in outputs]
    return ArtifactIo(
        tuple(as_stored(t, i, t.dtype) for i, t in enumerate(candidate.model.inputs)),
        tuple(as_stored(t, i, real[i]) for i, t in enumerate(outputs)),
    )


def _of_tflite(candidate: Candidate) -> ArtifactIo:
    turned = frozenset(candidate.options.get("nhwc", []))
    ends = _ends(candidate.files[0])
    inputs = _matched(candidate.model.inputs, ends["inputs"])
    outputs = _matched(candidate.model.outputs, ends["outputs"])
    return ArtifactIo(
        tuple(
            _artifact_tensor(t, end, place, t.name in turned, _widened(t.dtype))
            for t, end, place in inputs
        ),
        # As LiteRT's session has it: whatever is quantized comes back as float.
        tuple(
            _artifact_tensor(
                t, end, place, t.name in turned, "float32" if _integer(end) else end["dtype"]
            )
            for t, end, place in outputs
        ),
    )


def _ends(path: Path) -> Ends:
    """The tensors of a .tflite file, read in a worker, so that this process imports no runtime."""
    with (
        tempfile.TemporaryDirectory(prefix="onmetal-") as home,
        LocalWorker(quiet_environment(Path(home))) as worker,
    ):
        return worker.do(asked(operations.ends, path.absolute()), timeout_s=600)


def _matched(
    tensors: tuple[Tensor, ...], ends: list[dict[str, Any]]
) -> list[tuple[Tensor, dict[str, Any], int]]:
    """(tensor of the model, tensor of the file, its index in the file) for each tensor of the
    model: matched by name, else in order."""
    known = [end["name"] for end in ends]
    named = {tensor.name for tensor in tensors} <= set(known)
    places = [known.index(t.name) if named else i for i, t in enumerate(tensors)]
    return [(tensor, ends[place], place) for tensor, place in zip(tensors, places, strict=True)]


def _widened(dtype: str) -> str:
    """The dtype in a generated program, which hands over float32 instead of float16."""
    return "float32" if dtype == "float16" else dtype


def _integer(end: dict[str, Any]) -> bool:
    return end["scale"] != 0 and end["dtype"] in DEQUANTIZED


def _artifact_tensor(
    tensor: Tensor, end: dict[str, Any], place: int, turned: bool, dtype: str
) -> ArtifactTensor:
    stored = end["dtype"]
    scale, zero = 0.0, 0
    if _integer(end) and dtype != stored:
        scale, zero = end["scale"], end["zero_point"]
    return ArtifactTensor(tensor.name, dtype, tensor.shape, stored, place, turned, scale, zero)


def _check(tensor: ArtifactTensor) -> None:
    for dtype in (tensor.dtype, tensor.stored):
        if dtype not in DTYPES:
            raise UnsupportedError(
                f"no program is generated for {tensor.name!r}, which is {dtype}: only for "
                f"{', '.join(DTYPES)}"
            )
    if tensor.dtype != tensor.stored and (not tensor.scale or tensor.dtype != "float32"):
        raise UnsupportedError(
            f"no program is generated for {tensor.name!r}: it is {tensor.dtype} in the model, and "
            f"{tensor.stored} without a scale in the artifact"
        )
    if tensor.turned and len(tensor.shape) != 4:
        raise UnsupportedError(
            f"no program is generated for {tensor.name!r}: channels last, but not of four axes"
        )


def file_names(candidate: Candidate) -> tuple[str, ...]:
    """The names of the artifact's files. They go into paths and scripts, so UnsupportedError is
    raised for names with special characters."""
    names = tuple(file.name for file in candidate.files)
    for name in names:
        if not _FILE.fullmatch(name):
            raise UnsupportedError(
                f"no program is generated for the file {name!r}: only letters, digits, "
                "'.', '_' and '-' may be in its name"
            )
    return names


def raw_vectors(tensors: ArtifactIo, golden: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The golden vectors by `<input or output>-<number of the tensor>-<number of the vector>.bin`:
    little-endian values, as the user hands them over."""
    files = {}
    for kind, side in (("input", tensors.inputs), ("output", tensors.outputs)):
        for number, tensor in enumerate(side):
            dtype = np.dtype(tensor.dtype).newbyteorder("<")
            for vector in range(count_vectors(tensors, golden)):
                array = np.ascontiguousarray(golden[f"{kind}/{tensor.name}/{vector}"])
                files[f"{kind}-{number}-{vector}.bin"] = array.astype(dtype).tobytes()
    return files


def count_vectors(tensors: ArtifactIo, golden: dict[str, np.ndarray]) -> int:
    name = tensors.outputs[0].name
    return next(n for n in range(len(golden) + 1) if f"output/{name}/{n}" not in golden)


def runtime_template(name: str, path: str, **values: str) -> str:
    """A template from a runtime's folder, filled in as by `template`."""
    return _filled(folder(name) / "templates" / path, values)


def template(path: str, **values: str) -> str:
    """A template with every `@@name@@` replaced in one pass: values themselves are not expanded."""
    return _filled(TEMPLATES / path, values)


def _filled(path: Path, values: dict[str, str]) -> str:
    text = path.read_text("utf-8")
    return _PLACE.sub(lambda match: values[match[1]], text)


def float_literal(value: float) -> str:
    """A literal of the exact float32 value, valid in C and Kotlin."""
    text = str(np.float32(value))
    return f"{text if set(text) & set('.e') else text + '.0'}f"
