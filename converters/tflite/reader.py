"""Reads a user's .tflite file, in a child process: checks it and counts its operations."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters.tflite import check
from onmetal.converters.tflite.cut import cut_at
from onmetal.converters.tflite.net import Net, Op, Tensor, signature_names
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError, UsageError
from onmetal.files import cache as caches
from onmetal.files.reading import read_bytes

MOST_BYTES = 1 << 31
"""The limit of a FlatBuffer's offsets."""


def examine(
    path: str,
    shapes: dict[str, list[int]],
    batch: int | None,
    folder: str,
    cut: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `model.tflite`, a copy, to `folder`, and return the facts, as
    converters.onnx.reader.examine does.

    Raises UsageError where the file is damaged or shapes do not fit; UnsupportedError where it is
    valid but cannot be run, or violates TFLite's specification.
    """
    source = Path(path)
    try:
        content = read_bytes(source, MOST_BYTES)
    except OSError as error:
        raise UsageError(f"{source}: cannot read it ({error.strerror})") from None
    digest, size_bytes = hashlib.sha256(content).hexdigest(), len(content)
    net = read(content)
    notes = cut_at(net, cut, source) if cut else []
    if cut:
        content = write(net)
        net = read(content)
    if not net.inputs or not net.outputs:
        raise UsageError(f"{source}: the model has no {'input' if net.outputs else 'output'}")
    if problems := check.problems(net):
        raise UnsupportedError(
            f"{source}: it violates TFLite's specification, so that runtimes may compute "
            f"anything: {problems[0]}; convert the model again"
        )
    names = signature_names(net)
    inputs = [_tensor(name, t) for name, t in zip(names[0], net.inputs, strict=True)]
    outputs = [_tensor(name, t) for name, t in zip(names[1], net.outputs, strict=True)]
    _check_shapes(source, inputs, shapes)
    firsts = {tuple(tensor["shape"][:1]) for tensor in (*inputs, *outputs)}
    fixed = (next(iter(firsts)) or (1,))[0] if len(firsts) == 1 else 1
    if batch and batch != fixed:
        raise UsageError(
            f"--batch {batch}: the batch of a .tflite file is fixed, here at {fixed}; convert the "
            "model with the batch that is wanted"
        )
    (Path(folder) / "model.tflite").write_bytes(content)
    weights = {t: t.size for op in net.ops for t in op.taken if _is_weight(t)}
    matrices = {
        t for op in net.ops if op.kind == "FULLY_CONNECTED" for t in op.taken if _is_weight(t)
    }
    share = sum(weights[t] for t in matrices) / max(1, sum(weights.values()))
    return {
        "sha256": digest,
        "prepared_sha256": caches.sha256(Path(folder) / "model.tflite"),
        "size_bytes": size_bytes,
        "inputs": inputs,
        "outputs": outputs,
        "parameters": sum(weights.values()),
        "macs": sum(_macs(op) for op in net.ops),
        "operators": dict(Counter(op.custom or op.kind for op in net.ops).most_common()),
        "batch": fixed,
        "notes": notes,
        "matmul_share": share,
        "quantized": count_quantized(net),
        "wide": wide(net),
        "stateful": any(tensor.variable for tensor in net.tensors()),
        "largest_bytes": max(
            (math.prod(t.shape) * np.dtype(t.dtype).itemsize for op in net.ops for t in op.outputs),
            default=0,
        ),
    }


def wide(net: Net) -> bool:
    """Whether activations have 16 bits. (The cell state of an 8-bit LSTM also has 16 bits, but it
    is not an output of an operator.)"""
    outputs = (tensor for op in net.ops for tensor in op.outputs)
    return any(tensor.scale is not None and tensor.dtype == np.int16 for tensor in outputs)


def _is_weight(tensor: Tensor) -> bool:
    return tensor.data is not None and (tensor.dtype.kind == "f" or tensor.dtype.itemsize == 1)


def count_quantized(net: Net) -> int:
    """How many operators compute with integers, or have weights in 8 bits."""
    return sum(
        any(tensor.scale is not None and tensor.dtype.itemsize <= 2 for tensor in op.taken)
        for op in net.ops
    )


def _tensor(name: str, tensor: Tensor) -> dict[str, Any]:
    if tensor.dtype.kind not in "biuf":
        raise UnsupportedError(f"{name!r} holds {tensor.dtype}, which cannot be given data")
    if any(size <= 0 for size in tensor.shape):
        raise UnsupportedError(f"the shape of {name!r} is not static: {list(tensor.shape)}")
    facts = {"name": name, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}
    if tensor.scale is None or tensor.per_channel or tensor.dtype.itemsize > 2:
        return facts
    assert tensor.zero_point is not None
    return {
        **facts,
        "scale": float(tensor.scale[0]),
        "zero_point": int(tensor.zero_point[0]),
    }


def _check_shapes(source: Path, inputs: list[dict[str, Any]], shapes: dict[str, list[int]]) -> None:
    fixed_shapes = {tensor["name"]: tensor["shape"] for tensor in inputs}
    for name, shape in shapes.items():
        if name not in fixed_shapes:
            raise UsageError(
                f"--input-shape {name}: no such input; the model has: {', '.join(fixed_shapes)}"
            )
        if fixed_shapes[name] != shape:
            raise UsageError(
                f"--input-shape {name}: a .tflite file has fixed shapes, here "
                f"{fixed_shapes[name]}; {source} cannot be given {shape}"
            )


def _macs(op: Op) -> int:
    """Multiply-accumulates of convolutions and matrix products."""
    out = math.prod(op.outputs[0].shape) if op.outputs else 0
    if op.kind == "CONV_2D":
        return out * math.prod(op.taken[1].shape[1:])
    if op.kind == "DEPTHWISE_CONV_2D":
        return out * math.prod(op.taken[1].shape[1:3])
    if op.kind == "TRANSPOSE_CONV":
        return math.prod(op.taken[2].shape) * math.prod(op.taken[1].shape[:3])
    if op.kind == "FULLY_CONNECTED":
        return out * op.taken[1].shape[-1]
    if op.kind == "BATCH_MATMUL":
        return out * op.taken[0].shape[-2 if op.options.get("adjX") else -1]
    return 0
