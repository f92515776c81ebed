"""Reads an ONNX file, in a child process: checks it, makes its axes static, gathers its facts."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onmetal.converters.onnx import checks, external, functions, pads, types
from onmetal.converters.onnx import names as onnx_names
from onmetal.converters.onnx.axes import adopt_output_shapes, fix_axes, infer_shapes, static_batch
from onmetal.converters.onnx.cut import cut_at
from onmetal.converters.onnx.figures import (
    computes_in_half,
    count_parameters,
    count_quantized_operators,
    largest_bytes,
    matmul_share,
    operator_label,
)
from onmetal.converters.onnx.macs import count_macs
from onmetal.errors import UnsupportedError, UsageError
from onmetal.files import cache as caches
from onmetal.files.reading import open_regular

ONE_FILE_BYTES = 1_900_000_000
"""Below protobuf's limit of 2 GiB; a larger model is saved with its weights in a separate file."""
MOST_BYTES = 1 << 31


def examine(
    path: str,
    shapes: dict[str, list[int]],
    batch: int | None,
    folder: str,
    cut: Sequence[str] = (),
) -> dict[str, Any]:
    """Check the file, write `model.onnx` (static axes, weights inside) to `folder`, and return the
    facts of records.Model. `cut`: as ModelFormat.read has it.

    Raises UsageError where the file is cut off, of another format or unsafe, or shapes do not fit;
    UnsupportedError where it is valid but cannot be run.
    """
    source, prepared = Path(path), Path(folder) / "model.onnx"
    digest = hashlib.sha256()
    size = _copy(source, prepared, digest)
    model = _parse(source, prepared)
    cut_notes = cut_at(model, cut, source) if cut else []
    checks.check_operators(model, source)
    checks.check_wiring(model, source)
    calls, trained = bool(model.functions), bool(model.training_info)
    del model.training_info[:]  # graphs with weights of their own, which are not run
    model = functions.inline(model, source)
    if calls:
        checks.check_wiring(model, source)
    renamed = onnx_names.rename_constants(model, onnx_names.collisions(model))
    external_bytes = external.take_in(model, source, digest)
    checks.check_sizes(model, source)
    padded = pads.explicit(model)
    changed, size_of_batch, notes = fix_axes(model, shapes, batch)
    changed |= pads.whole_windows(model) | padded
    inferred = infer_shapes(model)
    if changed or cut:
        adopt_output_shapes(model, inferred)
    if changed or cut or external_bytes is not None or calls or renamed or trained:
        _save(model, prepared)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value) for value in model.graph.input if value.name not in constants]
    outputs = [_tensor(value) for value in inferred.graph.output]
    if not outputs or not inputs:
        raise UsageError(f"{source}: the model has no {'input' if outputs else 'output'}")
    if any(-1 in tensor["shape"] for tensor in outputs):
        outputs = _outputs_by_running(prepared, inputs, outputs)
    batch = size_of_batch or static_batch(inputs, outputs, batch)
    for tensor in inputs:
        if batch > 1 and tensor["shape"][:1] != [batch]:
            raise UsageError(
                f"{source}: the input {tensor['name']!r} of shape {tensor['shape']} has no batch "
                f"axis of {batch}, so a sample's part of it is not known; use --batch 1"
            )
    macs = count_macs(inferred)
    if macs is None and (folded := _fold_constants(prepared, Path(folder) / "folded.onnx")):
        macs = count_macs(folded)
    return {
        "sha256": digest.hexdigest(),
        "prepared_sha256": caches.sha256(*sorted(p for p in Path(folder).iterdir() if p.is_file())),
        "size_bytes": size + (external_bytes or 0),
        "inputs": inputs,
        "outputs": outputs,
        "parameters": count_parameters(model),
        "macs": macs,
        "operators": dict(Counter(map(operator_label, checks.nodes(model.graph))).most_common()),
        "batch": batch,
        "notes": [*cut_notes, *notes],
        "matmul_share": matmul_share(model),
        "quantized": count_quantized_operators(model),
        "half": computes_in_half(inferred),
        "largest_bytes": largest_bytes(inferred),
    }


def _copy(source: Path, place: Path, digest: Any) -> int:
    """Copy the file, which is opened only once, so that the bytes that are checked are those that
    are used later. -> its size in bytes."""
    try:
        with open_regular(source) as file, place.open("wb") as copy:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise UsageError(f"{source}: an ONNX file has 2 GiB at most; this is none")
            while piece := file.read(1 << 24):
                digest.update(piece)
                copy.write(piece)
            return copy.tell()
    except OSError as error:
        raise UsageError(f"{source}: cannot read it ({error.strerror})") from None


def _parse(source: Path, copy: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model(str(copy), format="protobuf", load_external_data=False)
    except DecodeError:
        raise UsageError(
            f"{source}: not a readable ONNX file: it is cut off or of another format; "
            "export or download it again"
        ) from None
    if not model.graph.node and not model.graph.output:
        raise UsageError(f"{source}: this file holds no graph: is it an ONNX model?")
    if not model.opset_import or not model.ir_version:
        raise UsageError(
            f"{source}: it names no operator set or no format version: a damaged ONNX file"
        )
    return model


def _save(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() < ONE_FILE_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="model.data",
    )


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    if value.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedError(
            f"{value.name!r} is not a tensor but a {value.type.WhichOneof('value') or 'nothing'}; "
            "only tensors can be compared and given data"
        )
    kind = value.type.tensor_type
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except KeyError:
        raise UsageError(f"{value.name!r} has no element type: a damaged ONNX file") from None
    if dtype.kind not in "biuf" or dtype.name not in np.sctypeDict:
        raise UnsupportedError(
            f"{value.name!r} holds {dtype.name}; only plain numbers can be fed and compared"
        )
    shape = [axis.dim_value if axis.dim_value > 0 else -1 for axis in kind.shape.dim]
    if not kind.HasField("shape"):
        shape = [-1]
    return {"name": value.name, "dtype": dtype.name, "shape": shape}


def _outputs_by_running(
    prepared: Path, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The outputs' shapes by one run on zeros, where shape inference does not know them."""
    from onmetal.converters.onnx import reference

    names = [tensor["name"] for tensor in outputs]
    feed = {t["name"]: np.zeros(t["shape"], t["dtype"]) for t in inputs}
    try:
        arrays = reference.Reference(prepared, names).run(feed)
    except Exception as error:
        raise UnsupportedError(
            f"the shapes of its outputs are not static, and onnxruntime cannot run it: {error}"
        ) from None
    return [
        {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
        for name, array in zip(names, arrays, strict=True)
    ]


def _fold_constants(prepared: Path, place: Path) -> onnx.ModelProto | None:
    """The model with its constants folded by onnxruntime, through which shapes are inferred where
    they are computed in the graph (torch's paddings); None where onnxruntime cannot open it."""
    from onmetal.converters.onnx import reference

    try:
        reference.opened(str(prepared), "ORT_ENABLE_BASIC", optimized_path=str(place))
        return types.complete(onnx.load_model(str(place)))
    except Exception:  # the converters will meet and report the same error
        return None
    finally:
        place.unlink(missing_ok=True)
