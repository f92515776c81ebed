"""Looks at an ONNX file, in a child process: checks it, makes its axes static, counts its work."""

import contextlib
import hashlib
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onmetal.converters.onnx import checks, external, functions, pads, types
from onmetal.converters.onnx import names as onnx_names
from onmetal.errors import ShapeError, UnsupportedError, UsageError
from onmetal.files import cache as caches
from onmetal.files.reading import open_regular

ONE_FILE_BYTES = 1_900_000_000
"""Protobuf ends at 2 GiB; a larger model keeps its weights in a file beside it."""
MOST_BYTES = 1 << 31


def examine(
    path: str, shapes: dict[str, list[int]], batch: int | None, folder: str
) -> dict[str, Any]:
    """Check the file, write `model.onnx` (static axes, weights inside) to `folder`, tell the facts.

    Raises UsageError where the file is cut, foreign or unsafe, or shapes do not fit;
    UnsupportedError where it is sound but beyond what can be run.
    """
    source, prepared = Path(path), Path(folder) / "model.onnx"
    digest = hashlib.sha256()
    size = _copy(source, prepared, digest)
    model = _parse(source, prepared)
    checks.check_operators(model, source)
    checks.check_wiring(model, source)
    calls, trained = bool(model.functions), bool(model.training_info)
    del model.training_info[:]  # graphs that nothing here runs, with weights of their own
    model = functions.inline(model, source)
    if calls:
        checks.check_wiring(model, source)
    renamed = onnx_names.rename_constants(model, onnx_names.collisions(model))
    external_bytes = external.take_in(model, source, digest)
    checks.check_sizes(model, source)
    padded = pads.explicit(model)
    changed, size_of_batch, notes = _fix_axes(model, shapes, batch)
    changed |= pads.whole_windows(model) | padded
    inferred = _infer(model)
    if changed:
        _adopt_output_shapes(model, inferred)
    if changed or external_bytes is not None or calls or renamed or trained:
        _save(model, prepared)
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [_tensor(value) for value in model.graph.input if value.name not in constants]
    outputs = [_tensor(value) for value in inferred.graph.output]
    if not outputs or not inputs:
        raise UsageError(f"{source}: the model has no {'input' if outputs else 'output'}")
    if any(-1 in tensor["shape"] for tensor in outputs):
        outputs = _outputs_by_running(prepared, inputs, outputs)
    batch = size_of_batch or _fixed_batch(inputs, outputs, batch)
    for tensor in inputs:
        if batch > 1 and tensor["shape"][:1] != [batch]:
            raise UsageError(
                f"{source}: the input {tensor['name']!r} of shape {tensor['shape']} has no batch "
                f"axis of {batch}, so a sample's part of it is not known; use --batch 1"
            )
    macs = count_macs(inferred)
    if macs is None and (folded := _folded(prepared, Path(folder) / "folded.onnx")):
        macs = count_macs(folded)
    return {
        "sha256": digest.hexdigest(),
        "prepared_sha256": caches.sha256(*sorted(Path(folder).iterdir())),
        "size_bytes": size + (external_bytes or 0),
        "inputs": inputs,
        "outputs": outputs,
        "parameters": _parameters(model),
        "macs": macs,
        "operators": dict(Counter(map(_label, checks.nodes(model.graph))).most_common()),
        "batch": batch,
        "notes": notes,
        "matmul_share": _matmul_share(model),
        "quantized": _quantized(model),
        "half": _computes_in_half(inferred),
        "largest_bytes": _largest_bytes(inferred),
    }


def _copy(source: Path, place: Path, digest: Any) -> int:
    """What is looked at is what is used: the file is opened once. -> its size in bytes."""
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


def _fix_axes(
    model: onnx.ModelProto, shapes: dict[str, list[int]], batch: int | None
) -> tuple[bool, int | None, list[str]]:
    """Make every input axis static.

    -> (whether anything changed, the batch where a free batch axis was set, what to tell the user)
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]
    if unknown := sorted(set(shapes) - {value.name for value in values}):
        names = ", ".join(value.name for value in values)
        raise UsageError(f"--input-shape {unknown[0]}: no such input; the model has: {names}")
    for value in values:
        _give_axes(value, shapes.get(value.name))
    named = _named_sizes(values, shapes, batch)
    notes: list[str] = []
    batches = [_fix_input(value, shapes.get(value.name), named, batch, notes) for value in values]
    changed = any(was_free for was_free, _ in batches)
    if changed:
        del model.graph.value_info[:]
    return changed, next((size for _, size in batches if size), None), notes


def _give_axes(value: onnx.ValueInfoProto, asked: list[int] | None) -> None:
    """Check that the input has axes, as many as were asked for; make them where it has no shape."""
    if value.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedError(f"input {value.name!r} is not a tensor; it cannot be given data")
    if not value.type.tensor_type.HasField("shape"):
        if not asked:
            raise ShapeError(
                f"input {value.name!r} has no shape in the file; "
                f"give it by --input-shape {value.name}=…"
            )
        for _ in asked:
            value.type.tensor_type.shape.dim.add()
    rank = len(value.type.tensor_type.shape.dim)
    if asked and len(asked) != rank:
        raise UsageError(
            f"--input-shape {value.name}={','.join(map(str, asked))}: the input has {rank} axes"
        )


def _named_sizes(
    values: list[onnx.ValueInfoProto], shapes: dict[str, list[int]], batch: int | None
) -> dict[str, int]:
    """Sizes of axes that have a name, from what was asked for: one name is one size everywhere."""
    named: dict[str, int] = {}
    for value in values:
        axes = value.type.tensor_type.shape.dim
        for axis, size in zip(axes, shapes.get(value.name, []), strict=False):
            if axis.dim_param and named.setdefault(axis.dim_param, size) != size:
                raise UsageError(
                    f"input {value.name!r}: the axis {axis.dim_param!r} is "
                    f"{named[axis.dim_param]} in one input and {size} in another; "
                    "give matching --input-shape"
                )
    return named


def _fix_input(
    value: onnx.ValueInfoProto,
    asked: list[int] | None,
    named: dict[str, int],
    batch: int | None,
    notes: list[str],
) -> tuple[bool, int | None]:
    """-> (whether an axis was free, the size of the first axis where that one was)"""
    axes = value.type.tensor_type.shape.dim
    free: list[str] = []
    was_free, size_of_batch = False, None
    for place, axis in enumerate(axes):
        given = asked[place] if asked else None
        if axis.dim_value > 0:
            if given not in (None, axis.dim_value):
                raise UsageError(
                    f"--input-shape {value.name}: axis {place} is fixed at {axis.dim_value} in the "
                    f"model, {given} was asked for; export it with a free axis"
                )
            continue
        name, was_free = axis.dim_param, True
        size = given or named.get(name)
        if place == 0:
            size = _batch(value.name, size, batch, notes)
            size_of_batch = size
            if name:
                named.setdefault(name, size)
        if size is None:
            free.append(name or f"axis {place}")
            continue
        axis.Clear()
        axis.dim_value = size
    if free:
        words = [str(axis.dim_value) if axis.dim_value > 0 else "…" for axis in axes]
        raise ShapeError(
            f"input {value.name!r} has free axes ({', '.join(free)}); "
            f"give its shape: --input-shape {value.name}={','.join(words)}"
        )
    return was_free, size_of_batch


def _batch(name: str, size: int | None, batch: int | None, notes: list[str]) -> int:
    """The size of a free first axis: as asked for, else 1, which the user is told."""
    if size is None:
        if not batch:
            notes.append(f"the free batch axis of {name!r} was set to 1")
        return batch or 1
    if batch and size != batch:
        raise UsageError(
            f"--batch {batch} and --input-shape {name} do not agree: its first axis is {size}"
        )
    return size


def _fixed_batch(
    inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], asked: int | None
) -> int:
    """The batch of a model whose axes were static already: what all first axes share, else 1."""
    firsts = {tensor["shape"][0] if tensor["shape"] else None for tensor in (*inputs, *outputs)}
    fixed = firsts.pop() if len(firsts) == 1 else 1
    if asked and asked != (fixed or 1):
        raise UsageError(
            f"--batch {asked}: this model's batch is fixed at {fixed or 1}; "
            "export it with a free batch axis"
        )
    return fixed or 1


def _infer(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # an operator that onnx has no rule for; what is unknown stays unknown
        return model


def _adopt_output_shapes(model: onnx.ModelProto, inferred: onnx.ModelProto) -> None:
    for value, known in zip(model.graph.output, inferred.graph.output, strict=True):
        if value.type.WhichOneof("value") == "tensor_type" and _is_static(known):
            value.CopyFrom(known)
        elif value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")


def _is_static(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(axis.dim_value > 0 for axis in kind.shape.dim)


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
    """Where shape inference gave up: the shapes that one run on zeros gives."""
    from onmetal.converters.onnx import reference

    names = [tensor["name"] for tensor in outputs]
    feed = {t["name"]: np.zeros(t["shape"], t["dtype"]) for t in inputs}
    try:
        found = reference.Reference(prepared, names).run(feed)
    except Exception as error:
        raise UnsupportedError(
            f"the shapes of its outputs are not static, and onnxruntime cannot run it: {error}"
        ) from None
    return [
        {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
        for name, array in zip(names, found, strict=True)
    ]


def _folded(prepared: Path, place: Path) -> onnx.ModelProto | None:
    """The model with its constants folded by onnxruntime, through which shapes are inferred where
    they are computed in the graph (torch's paddings); None where onnxruntime cannot open it."""
    from onmetal.converters.onnx import reference

    try:
        reference.opened(str(prepared), "ORT_ENABLE_BASIC", optimized_path=str(place))
        return types.complete(onnx.load_model(str(place)))
    except Exception:  # the converters will meet the same error, and say it
        return None
    finally:
        place.unlink(missing_ok=True)


def _largest_bytes(inferred: onnx.ModelProto) -> int:
    """Of the tensors between operators whose shape is known, the largest."""
    values = (*inferred.graph.value_info, *inferred.graph.output)
    return max((_size_bytes(value) for value in values if _is_static(value)), default=0)


def _size_bytes(value: onnx.ValueInfoProto) -> int:
    kind = value.type.tensor_type
    width = 1
    with contextlib.suppress(KeyError):  # strings, and numbers of less than a byte
        width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).itemsize
    return width * math.prod(int(axis.dim_value) for axis in kind.shape.dim)


def _parameters(model: onnx.ModelProto) -> int:
    """Numbers in the weights: what is stored as a tensor of floats or of 8 bits or fewer."""
    kinds = onnx.TensorProto
    weights = {kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.BFLOAT16, kinds.INT8, kinds.UINT8}
    weights |= {kinds.INT4, kinds.UINT4}
    return sum(math.prod(t.dims) for t in checks.tensors(model) if t.data_type in weights)


def _quantized(model: onnx.ModelProto) -> int:
    """How many operators make integers of activations, compute with them, or take weights of 4
    bits: a model that has any is not quantized again. (Weights that are only stored in 8 bits are
    as good as float.)"""
    kinds = onnx.TensorProto
    small = {t.name for t in model.graph.initializer if t.data_type in (kinds.INT4, kinds.UINT4)}
    return sum(
        node.op_type in _INTEGER
        or node.op_type.startswith("QLinear")
        or (node.op_type == "DequantizeLinear" and node.input[0] in small)
        for node in checks.nodes(model.graph)
    )


def _computes_in_half(inferred: onnx.ModelProto) -> bool:
    """Whether any result is rounded to float16: not where weights are only stored so."""
    kind = onnx.TensorProto.FLOAT16
    graph = inferred.graph
    values = (*graph.value_info, *graph.output)
    half = {value.name for value in values if value.type.tensor_type.elem_type == kind}
    return any(
        node.op_type not in ("Cast", "Constant") and not half.isdisjoint(node.output)
        for node in graph.node
    )


_INTEGER = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulNBits"}
    | {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "QAttention"}
    | {"QGemm", "QMoE", "QOrderedMatMul", "QOrderedAttention", "QEmbedLayerNormalization"}
    | {"GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "NhwcQLinearConv"}
)


def _matmul_share(model: onnx.ModelProto) -> float:
    """Of all numbers in the weights, the part that MatMul and Gemm multiply by."""
    sizes = {t.name: math.prod(t.dims) for t in model.graph.initializer}
    taken = {
        name
        for node in checks.nodes(model.graph)
        if node.op_type in ("MatMul", "Gemm")
        for name in node.input[:2]
    }
    return float(sum(sizes.get(name, 0) for name in taken) / max(1, sum(sizes.values())))


def _label(node: onnx.NodeProto) -> str:
    domain = node.domain if node.domain not in ("", "ai.onnx") else ""
    return f"{domain}.{node.op_type}" if domain else str(node.op_type)


def count_macs(inferred: onnx.ModelProto) -> int | None:
    """Multiply-accumulates of convolutions, matrix products and recurrent layers.

    None where such an operator has a shape that is not known, or is one that is not counted.
    Control flow counts every branch once.
    """
    try:
        return _count(inferred.graph, {})
    except (KeyError, IndexError, ValueError):
        return None


def _count(graph: onnx.GraphProto, outside: dict[str, list[int]]) -> int:
    shapes = dict(outside)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.WhichOneof("value") == "tensor_type" and _is_static(value):
            shapes[value.name] = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    for tensor in graph.initializer:
        shapes[tensor.name] = list(tensor.dims)
    total = 0
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                shapes[node.output[0]] = list(attribute.t.dims)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    total += _count(inner, shapes)
        if node.op_type in _UNCOUNTED:
            raise KeyError(node.op_type)
        if node.op_type in _MACS:
            total += _MACS[node.op_type](node, shapes)
    return total


def _convolution(node: onnx.NodeProto, shapes: dict[str, list[int]], weights: int = 1) -> int:
    # every output value sums over the kernel: [out, in / groups, *kernel]
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[weights]][1:])


def _transposed(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    # every input value is spread over the kernel: [in, out / groups, *kernel]
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: onnx.NodeProto, shapes: dict[str, list[int]], left: int = 0) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[left]][-1]


def _fused_product(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if any(a.name in ("transBatchA", "transBatchB") and a.i for a in node.attribute):
        raise ValueError(node.op_type)
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-2 if transposed else -1]


def _gemm(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else -1]


def _recurrent(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    # X [steps, batch, in], W [directions, gates * hidden, in], R [.., .., hidden]
    steps, batch, _ = shapes[node.input[0]]
    return steps * batch * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


def _einsum(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    # every combination of the letters is one product; ValueError where it is not one of two
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise ValueError(equation)
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        sizes.update(zip(term, shapes[name], strict=True))
    return math.prod(sizes.values())


_UNCOUNTED = frozenset(
    {"DeformConv", "Attention", "MultiHeadAttention", "PackedAttention", "GroupQueryAttention"}
    | {"QAttention", "MatMulNBits", "NhwcConv", "NhwcFusedConv", "TransposeMatMul", "QGemm"}
    | {"FusedMatMulActivation", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "GemmFastGelu"}
    | {"MoE", "LinearAttention", "DynamicQuantizeLSTM"}
)
"""Products whose work is not counted here: better no figure than one that is too small."""

_MACS = {
    "Einsum": _einsum,
    "Conv": _convolution,
    "FusedConv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": lambda node, shapes: _convolution(node, shapes, 3),
    "ConvTranspose": _transposed,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "FusedMatMul": _fused_product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
