"""Reads a model in OpenVINO's IR, in a child process: a .xml file, and the .bin file of its weights
beside it."""

import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters import imported
from onmetal.converters.openvino_ir.quiet import openvino, passes
from onmetal.errors import UnsupportedError, UsageError, reason
from onmetal.files import cache as caches
from onmetal.files.reading import open_regular

NOT_COUNTED = {"Parameter", "Result", "Constant"}
NARROW = {"i4", "u4", "i8", "u8"}


def examine(
    path: Path, shapes: dict[str, list[int]], batch: int | None, folder: Path
) -> dict[str, Any]:
    """Write `model.xml` and `model.bin`, with static shapes, to `folder`, and return the facts of
    records.Model.

    Raises UsageError where the file is damaged, its weights are missing, or shapes do not fit;
    UnsupportedError where OpenVINO cannot run it.
    """
    digests = [_copied(path.with_suffix(suffix), folder / f"given{suffix}") for suffix in PARTS]
    try:
        model = openvino.Core().read_model(str(folder / "given.xml"))
    except RuntimeError as error:
        raise UsageError(f"OpenVINO cannot read it: {reason(error)}") from None
    declared = [_declared(number, port) for number, port in enumerate(model.inputs)]
    given = imported.static(declared, shapes, batch)
    try:
        outputs = _made_static(model, given.inputs)
        openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)
    except RuntimeError as error:
        raise UnsupportedError(f"OpenVINO cannot run it: {reason(error)}") from None
    for suffix in PARTS:
        (folder / f"given{suffix}").unlink()
    prepared = [folder / f"model{suffix}" for suffix in PARTS]
    return {
        "sha256": caches.key(parts=[digest for digest, _ in digests]),
        "prepared_sha256": caches.sha256(*prepared),
        "size_bytes": sum(size_bytes for _, size_bytes in digests),
        "inputs": [
            {"name": entry.name, "dtype": entry.dtype, "shape": list(entry.shape)}
            for entry in given.inputs
        ],
        "outputs": outputs,
        "batch": given.batch or _common_batch(given.inputs, outputs),
        "notes": given.notes,
        **_figures(model.get_ordered_ops()),
    }


PARTS = (".xml", ".bin")


def _made_static(model: Any, inputs: Sequence[imported.Declared]) -> list[dict[str, Any]]:
    """Give the inputs their names and shapes, and compute what depends on shapes alone. -> the
    outputs."""
    ports = list(zip(model.inputs, inputs, strict=True))
    model.reshape({port: list(entry.shape) for port, entry in ports})
    for port, entry in ports:
        port.get_tensor().add_names({entry.name})
    folding = passes.Manager()
    folding.register_pass(passes.ConstantFolding())
    folding.run_passes(model)
    return [_output(number, port) for number, port in enumerate(model.outputs)]


def _copied(source: Path, target: Path) -> tuple[str, int]:
    try:
        with open_regular(source) as file, target.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 24)
    except FileNotFoundError:
        raise UsageError(
            f"{source}: there is no such file, which holds the weights of an OpenVINO IR"
        ) from None
    except OSError as error:
        raise UsageError(f"{source}: cannot read it ({error.strerror})") from None
    return imported.digest_of(target)


def _declared(number: int, port: Any) -> imported.Declared:
    name, shape = _name(port, f"input{number}"), port.partial_shape
    if shape.rank.is_dynamic:
        raise UnsupportedError(f"its input {name!r} has no number of axes")
    axes = tuple(axis.get_length() if axis.is_static else None for axis in shape)
    return imported.Declared(name, _dtype(port), axes)


def _output(number: int, port: Any) -> dict[str, Any]:
    name = _name(port, f"output{number}")
    if port.partial_shape.is_dynamic:
        raise UnsupportedError(f"the shape of its output {name!r} is not static")
    return {"name": name, "dtype": _dtype(port), "shape": list(port.shape)}


def _name(port: Any, unnamed: str) -> str:
    return min(port.names) if port.names else unnamed


def _dtype(port: Any) -> str:
    try:
        return str(np.dtype(port.element_type.to_dtype()))
    except (TypeError, RuntimeError):
        kind = port.element_type.get_type_name()
        raise UnsupportedError(f"an input or output holds {kind}, not NumPy's numbers") from None


def _common_batch(inputs: Sequence[imported.Declared], outputs: list[dict[str, Any]]) -> int:
    firsts = {tuple(entry.shape[:1]) for entry in inputs} | {
        tuple(entry["shape"][:1]) for entry in outputs
    }
    first = next(iter(firsts)) if len(firsts) == 1 else ()
    return int(first[0] or 1) if first else 1


def _figures(operators: list[Any]) -> dict[str, Any]:
    """What records.Model says of a graph."""
    kinds = Counter(op.get_type_name() for op in operators)
    constants = [op for op in operators if op.get_type_name() == "Constant"]
    weights = {op.get_friendly_name(): math.prod(op.shape) for op in constants}
    of_products = sum(
        math.prod(port.get_source_output().get_shape())
        for op in operators
        if op.get_type_name() == "MatMul"
        for port in op.inputs()
        if port.get_source_output().get_node().get_type_name() == "Constant"
    )
    types = {op.get_element_type().get_type_name() for op in constants}
    shapes = [port.partial_shape for op in operators for port in op.outputs()]
    narrow = sum(op.get_element_type().get_type_name() in NARROW for op in constants)
    return {
        "parameters": sum(weights.values()),
        "macs": sum(map(_macs, operators)) if all(s.is_static for s in shapes) else None,
        "operators": {
            kind: count for kind, count in kinds.most_common() if kind not in NOT_COUNTED
        },
        "matmul_share": of_products / max(1, sum(weights.values())),
        "quantized": kinds["FakeQuantize"] or narrow,
        "half": "f16" in types and "f32" not in types,
        "largest_bytes": max(
            (math.prod(s.to_shape()) * 4 for s in shapes if s.is_static), default=0
        ),
    }


def _macs(op: Any) -> int:
    """Multiply-accumulates of convolutions and matrix products."""
    kind = op.get_type_name()
    groups = kind.startswith("GroupConvolution")
    if kind in ("Convolution", "GroupConvolution"):
        return int(
            math.prod(op.get_output_shape(0))
            * math.prod(op.input(1).get_shape()[2 if groups else 1 :])
        )
    if kind in ("ConvolutionBackpropData", "GroupConvolutionBackpropData"):
        return int(
            math.prod(op.input(0).get_shape())
            * math.prod(op.input(1).get_shape()[2 if groups else 1 :])
        )
    if kind == "MatMul":
        left = op.input(0).get_shape()
        depth = left[-2 if op.get_attributes().get("transpose_a") and len(left) > 1 else -1]
        return int(math.prod(op.get_output_shape(0)) * depth)
    return 0


class Reference:
    """A prepared model in OpenVINO, computed in float32 by one thread."""

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        self.compiled = openvino.Core().compile_model(str(path), "CPU", options)
        self.inputs, self.count = list(inputs), len(outputs)

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        arrays = self.compiled([feed[name] for name in self.inputs])
        return [np.array(arrays[number]) for number in range(self.count)]
