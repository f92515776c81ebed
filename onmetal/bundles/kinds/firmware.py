"""The firmware of a bundle: C and C++ sources around TFLite Micro that contain the model and answer
a host.

Everything is written from templates and from the candidate alone, so that the same candidate gives
the same bytes. The file that is compiled in may differ from the one that gave the golden vectors:
for an Ethos-U it is the one that Vela wrote. Both have the same inputs and outputs.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.bundles.artifact_io import (
    TEMPLATES,
    ArtifactIo,
    ArtifactTensor,
    artifact_tensors,
    count_vectors,
    float_literal,
    template,
)
from onmetal.bundles.kinds import PART, BundleKind, Contents
from onmetal.bundles.processors import processor
from onmetal.errors import UnsupportedError
from onmetal.profilers.tensor_bytes import NHWC
from onmetal.records import Candidate, Shape, Trial
from onmetal.runtimes import shipped, spec
from onmetal.texts.quoting import c_string, code, plain

FOLDER = "firmware"
GOLDEN_BYTES = 64 * 1024
"""Golden vectors lie in flash beside the model: at most this large together, but at least one."""
DTYPES = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")
"""The dtypes of inputs and outputs that the firmware can pass to TFLite Micro."""
_LINE = 24
"""Bytes in a line of source, at most four characters each."""
_CHARACTERS = [
    chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?01234567' else f"\\{byte:o}"
    for byte in range(256)
]
"""Byte -> its text in a C string. Octal digits are escaped, too, so that they do not lengthen an
escape before them."""

_ADDERS = (
    "Abs Add AddN ArgMax ArgMin AssignVariable AveragePool2D BatchMatMul BatchToSpaceNd "
    "BroadcastArgs BroadcastTo CallOnce Cast Ceil Concatenation Conv2D Cos DepthToSpace "
    "DepthwiseConv2D Dequantize Div DynamicUpdateSlice Elu EmbeddingLookup Equal Exp ExpandDims "
    "Fill Floor FloorDiv FloorMod FullyConnected Gather GatherNd Greater GreaterEqual HardSwish If "
    "L2Normalization L2Pool2D LeakyRelu Less LessEqual Log LogSoftmax LogicalAnd LogicalNot "
    "LogicalOr Logistic MaxPool2D Maximum Mean Minimum MirrorPad Mul Neg NotEqual Pack Pad Prelu "
    "Quantize ReadVariable ReduceAll ReduceMax ReduceMin Relu Relu6 Reshape ResizeBilinear "
    "ResizeNearestNeighbor ReverseV2 Round Rsqrt SelectV2 Shape Sin Slice Softmax SpaceToBatchNd "
    "SpaceToDepth Split SplitV Sqrt Square SquaredDifference Squeeze StridedSlice Sub Sum Svdf "
    "Tanh Transpose TransposeConv UnidirectionalSequenceLSTM Unpack VarHandle While ZerosLike"
)
_IRREGULAR = {
    "PADV2": "PadV2",
    "CUMSUM": "CumSum",
    "ethos-u": "EthosU",
    "CIRCULAR_BUFFER": "CircularBuffer",
    "TFLM_DECODE": "Decode",
    "TFLite_Detection_PostProcess": "DetectionPostprocess",
    **{
        f"Signal{name}": name
        for name in (
            *("Delay", "Energy", "FftAutoScale", "FilterBank", "FilterBankLog", "Framer", "Irfft"),
            *("FilterBankSpectralSubtraction", "FilterBankSquareRoot", "OverlapAdd", "PCAN"),
            *("Rfft", "Stacker", "Window"),
        )
    },
}
METHODS = {name.lower(): name for name in _ADDERS.split()} | _IRREGULAR
"""What adds an operator to TFLite Micro's resolver, less `Add`, by the operator's name in TFLite in
small letters without `_`, or else its very name: tensorflow/lite/micro/micro_mutable_op_resolver.h.
"""

NPU_TAIL_BYTES = 16 * 1024
"""Bytes of the arena beside what Vela plans: the interpreter's structures for the few operators
that are left."""


def files(
    candidate: Candidate,
    golden: dict[str, np.ndarray],
    *,
    shipped: Path,
    arena_bytes: int,
    operators: Sequence[str],
    name: str,
    core: str | None,
) -> dict[str, bytes]:
    """The firmware's sources by their path in the bundle (`firmware/…`).

    `golden`: as `vectors.write_golden` makes it; `shipped`: the .tflite file that is compiled in;
    `arena_bytes`: what is reserved for tensors; `operators`: TFLite's names of those in `shipped`;
    `name`: of the model, for the host; `core`: as targets.Core, None where it is not known. Raises
    UnsupportedError for tensors of a type, or operators, that TFLite Micro has not.
    """
    tensors = _ordered(artifact_tensors(candidate))
    _check(tensors)
    content = shipped.read_bytes()
    vectors = list(_vectors(tensors, golden))
    fill = {
        **_model(content),
        **_constants(tensors, name, arena_bytes, bool(candidate.options.get("stateful"))),
        **_resolver(operators),
        **_golden(vectors),
        **_readme(tensors, operators, shipped, content, arena_bytes),
        **processor(core),
    }
    return {path: template(path, **fill).encode() for path in _templates()}


def _templates() -> list[str]:
    paths = (path for path in (TEMPLATES / FOLDER).rglob("*") if path.is_file())
    return sorted(path.relative_to(TEMPLATES).as_posix() for path in paths)


def _ordered(tensors: ArtifactIo) -> ArtifactIo:
    """Inputs and outputs in the artifact's own order, which is the firmware's."""

    def by_place(side: tuple[ArtifactTensor, ...]) -> tuple[ArtifactTensor, ...]:
        return tuple(sorted(side, key=lambda tensor: tensor.place))

    return ArtifactIo(by_place(tensors.inputs), by_place(tensors.outputs))


def _check(tensors: ArtifactIo) -> None:
    for tensor in (*tensors.inputs, *tensors.outputs):
        if tensor.stored not in DTYPES:
            raise UnsupportedError(
                f"no firmware is generated for {tensor.name!r}, which is {tensor.stored} in the "
                f"artifact: only for {', '.join(DTYPES)}"
            )


# --- the model


def _model(content: bytes) -> dict[str, str]:
    return {
        "bytes": str(len(content)),
        "sha256": hashlib.sha256(content).hexdigest(),
        "model_data": _text(content),
    }


def _text(content: bytes) -> str:
    """A string literal in C of these bytes, in many lines."""
    lines = (content[start : start + _LINE] for start in range(0, len(content), _LINE))
    return "\n".join(f'"{"".join(map(_CHARACTERS.__getitem__, line))}"' for line in lines)


def _numbers(content: bytes) -> str:
    """An array's elements."""
    lines = (content[start : start + _LINE] for start in range(0, len(content), _LINE))
    return ",\n".join(",".join(map(str, line)) for line in lines)


def _resolver(operators: Sequence[str]) -> dict[str, str]:
    methods = dict.fromkeys(map(_method, operators))
    adds = [f"    if (status == kTfLiteOk) status = resolver.Add{m}();" for m in methods]
    return {
        "count": str(max(1, len(methods))),
        "adds": "\n".join(adds) or "    (void)resolver;",
    }


def _method(operator: str) -> str:
    known = METHODS.get(operator) or METHODS.get(operator.replace("_", "").lower())
    if known is None:
        raise UnsupportedError(f"TFLite Micro has no operator {operator}")
    return known


# --- its inputs and outputs


def _constants(tensors: ArtifactIo, name: str, arena_bytes: int, stateful: bool) -> dict[str, str]:
    all_tensors = (*tensors.inputs, *tensors.outputs)
    macros = (
        _macros(f"ONMETAL_{side}_{number}", tensor)
        for side, side_tensors in (("INPUT", tensors.inputs), ("OUTPUT", tensors.outputs))
        for number, tensor in enumerate(side_tensors)
    )
    return {
        "name": c_string(label(name)),
        "input_count": str(len(tensors.inputs)),
        "output_count": str(len(tensors.outputs)),
        "input_bytes": str(sum(map(_bytes, tensors.inputs))),
        "output_bytes": str(sum(map(_bytes, tensors.outputs))),
        "max_rank": str(max(4, *(len(tensor.shape) for tensor in all_tensors))),
        "stateful": str(int(stateful)),
        "arena_bytes": str(arena_bytes),
        "constants": "\n\n".join(macros),
        "inputs": ",\n    ".join(map(_tensor, tensors.inputs)),
        "outputs": ",\n    ".join(map(_tensor, tensors.outputs)),
    }


def label(name: str) -> str:
    """A name for a line of the protocol, without characters that could end its brackets or the
    answer."""
    return plain(name).replace("m-ready", "m_ready") or "model"


def _stored_shape(tensor: ArtifactTensor) -> Shape:
    return tuple(tensor.shape[axis] for axis in NHWC) if tensor.turned else tensor.shape


def _count(tensor: ArtifactTensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _bytes(tensor: ArtifactTensor) -> int:
    return _count(tensor) * np.dtype(tensor.stored).itemsize


def _braced(shape: Iterable[int]) -> str:
    return f"{{{', '.join(map(str, shape)) or '0'}}}"


def _macros(prefix: str, tensor: ArtifactTensor) -> str:
    values = {
        "NAME": c_string(tensor.name),
        "DTYPE": f"ONMETAL_{tensor.stored.upper()}",
        "BYTES": f"{_bytes(tensor)}u",
        "COUNT": f"{_count(tensor)}u",
        "SHAPE": _braced(_stored_shape(tensor)),
        "SCALE": float_literal(tensor.scale),
        "ZERO_POINT": f"({tensor.zero_point})",
    }
    return "\n".join(f"#define {prefix}_{name} {value}" for name, value in values.items())


def _tensor(tensor: ArtifactTensor) -> str:
    """An initializer of `struct onmetal_tensor`."""
    values = (
        c_string(tensor.name),
        f"ONMETAL_{tensor.stored.upper()}",
        f"{_bytes(tensor)}u",
        f"{_count(tensor)}u",
        float_literal(tensor.scale),
        str(tensor.zero_point),
        str(int(tensor.turned)),
        str(len(tensor.shape)),
        _braced(_stored_shape(tensor)),
    )
    return f"{{{', '.join(values)}}}"


# --- golden vectors


def _golden(vectors: list[bytes]) -> dict[str, str]:
    embedded_vectors = vectors[: max(1, GOLDEN_BYTES // max(1, len(vectors[0])))]
    return {
        "vectors": str(len(embedded_vectors)),
        "golden_data": ",\n".join(f"{{{_numbers(vector)}}}" for vector in embedded_vectors),
    }


def _vectors(tensors: ArtifactIo, golden: dict[str, np.ndarray]) -> Iterator[bytes]:
    """Each vector's inputs and outputs one after another, as the artifact stores them."""
    sides = (("input", tensors.inputs), ("output", tensors.outputs))
    for number in range(count_vectors(tensors, golden)):
        yield b"".join(
            stored(tensor, golden[f"{side}/{tensor.name}/{number}"])
            for side, side_tensors in sides
            for tensor in side_tensors
        )


def stored(tensor: ArtifactTensor, array: np.ndarray) -> bytes:
    """The user's array as little-endian values of the artifact, in its layout.

    Quantizes as run.py does: round(x / scale) + zero point, clipped. An output that was dequantized
    becomes the very integers again, since it is off by less than half a step.
    """
    turned = array.transpose(NHWC) if tensor.turned else array
    stored_dtype = np.dtype(tensor.stored)
    if tensor.scale:
        limits = np.iinfo(stored_dtype)
        whole = np.rint(turned / np.float32(tensor.scale)) + tensor.zero_point
        turned = np.clip(whole, limits.min, limits.max)
    return np.ascontiguousarray(turned).astype(stored_dtype.newbyteorder("<")).tobytes()


# --- the README and the plan of the arena


def _readme(
    tensors: ArtifactIo,
    operators: Sequence[str],
    shipped: Path,
    content: bytes,
    arena_bytes: int,
) -> dict[str, str]:
    rows = [
        f"| {side} {number} | {' | '.join(_cells(tensor))} |"
        for side, side_tensors in (("input", tensors.inputs), ("output", tensors.outputs))
        for number, tensor in enumerate(side_tensors)
    ]
    return {
        "file": code(shipped.name),
        "file_bytes": str(len(content)),
        "arena_kib": f"{arena_bytes / 1024:.1f}",
        "tensors": "\n".join(rows),
        "operators": ", ".join(sorted(set(operators))) or "none",
        "npu": _NPU if "ethos-u" in operators else "",
    }


_NPU = """
This model was compiled for an Ethos-U by Vela. TFLite Micro must be built with the kernel
`ethos_u` and Arm's driver (https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-core-driver),
and your board's start must call `ethosu_init` before `onmetal_main`. The golden vectors come from
the same model before Vela, on TFLite Micro's own kernels.
"""


def _cells(tensor: ArtifactTensor) -> tuple[str, str, str, str]:
    """The cells of a row of the README's table: name, dtype, shape, and the value of a stored
    number."""
    shape = "x".join(map(str, _stored_shape(tensor))) or "one value"
    turned = " (channels last)" if tensor.turned else ""
    sign = "-" if tensor.zero_point >= 0 else "+"
    real = f"{np.float32(tensor.scale)!s} * (stored {sign} {abs(tensor.zero_point)})"
    return (
        code(tensor.name, cell=True),
        tensor.stored,
        f"{shape}{turned}",
        real if tensor.scale else "as stored",
    )


def _memory(chosen: Trial) -> dict[str, bytes]:
    """The plan of the arena, as text and as a drawing: which tensors are in it while which
    operators run. There is none for an NPU, whose memory Vela plans."""
    assert chosen.embedded
    if chosen.embedded["npu"]:
        return {}
    plan = chosen.embedded["plan"]
    return {"memory.txt": plan["timeline"].encode(), "memory.svg": plan["svg"].encode()}


def _around(chosen: Trial, golden: dict[str, np.ndarray], core: str | None) -> dict[str, bytes]:
    """The sources of the firmware that contains the artifact for the chip."""
    candidate, facts = chosen.candidate, chosen.embedded
    assert candidate and facts
    reserve = int(chosen.figures["peak_memory_bytes"].value)
    if facts["npu"]:
        reserve += NPU_TAIL_BYTES
    else:  # not less where a board used less: other kernels may be linked the next time
        modelled = facts["arena"]["modelled"] or {"total_bytes": 0}
        known_sizes = facts["arena"]["host"]["total"], modelled["total_bytes"]
        reserve = max(reserve, *known_sizes)
    return files(
        candidate,
        golden,
        shipped=shipped(candidate.runtime, candidate.files)[0],
        arena_bytes=-(-reserve // 1024) * 1024,
        operators=facts["flash"]["operators"],
        name=candidate.model.stem,
        core=core,
    )


class Firmware(BundleKind):
    transport = "serial"
    what = "the firmware"
    places = {  # noqa: RUF012
        "readme": r"firmware/README\.md",
        "memory plan": r"memory\.(txt|svg)",
        "source": rf"firmware/({PART}/)*{PART}\.(c|cc|h)",
        "build": rf"firmware/({PART}/)*({PART}\.(cmake|ld)|CMakeLists\.txt)",
    }

    def files(self, contents: Contents) -> dict[str, bytes]:
        chosen, chip = contents.chosen, contents.target.chip
        return {**_memory(chosen), **_around(chosen, contents.golden, chip.core if chip else None)}

    def without(self, candidate: Candidate) -> dict[str, bytes]:
        return {}

    def shipped(self, candidate: Candidate, left_out: str | None, *, run: bool) -> dict[str, Any]:
        none = "nothing was measured: there was no board"
        return {
            "kind": "firmware",
            "path": None if left_out else "firmware",
            "artifact": f"{spec(candidate.runtime).title}, which you build",
            "measured": run,
            "note": left_out or ("the firmware that was on the board" if run else none),
        }


KIND: BundleKind = Firmware()
