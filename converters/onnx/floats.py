"""The float graph from which every quantized candidate is made: plain ONNX, opset 13 or later.

Constants are folded, float16 is widened (converters.onnx.widen), BatchNorm is folded into the
weights before it, and every node gets a name of its own. Runs in a child process.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, version_converter

from onmetal.converters.onnx import names as onnx_names
from onmetal.converters.onnx import reference, types, widen
from onmetal.converters.onnx.graph import Graph, attribute
from onmetal.errors import UnsupportedError, reason

LEAST_OPSET = 13
"""The first opset in which QuantizeLinear and DequantizeLinear have an axis, and so per-channel
scales."""
MOST_OPSET = 20
"""From opset 21 on, ONNX Runtime 1.32 cannot open graphs with signed activations before a Reshape
or the like (its QDQPropagationTransformer writes an `output_dtype` that its own checks refuse)."""
ROUNDS = 6
FOUR_BITS = ("int4", "uint4")
"""Names of types of integers whose NumPy arrays do not have an integer `kind`."""
LEAST_IR = 7
"""The format version that came with LEAST_OPSET."""


def simplify(prepared: str, folder: str) -> dict[str, Any]:
    """Write `model.onnx` to `folder`. -> facts about it: `quantized`, how many Q nodes it has.

    The outputs keep their names, and tensors that survive keep theirs. The same input gives the
    same bytes. Raises UnsupportedError where the model cannot be raised to an opset with scales
    per channel, or is too large for one protobuf.
    """
    path = Path(folder) / "model.onnx"
    try:
        model = onnx.load(prepared)
        _fix_names(model)
        original_constants = {tensor.name for tensor in model.graph.initializer}
        widen.widen(model)
        model = _fit_opset(model)
        _fold_dequantized(model)
        for _ in range(ROUNDS):  # one optimization may make another possible
            node_count = len(model.graph.node)
            model = _optimized(model, path)
            if (
                not _fold_dequantized(model)
                + _fold_norms(model)
                + node_count
                - len(model.graph.node)
            ):
                break
        _tidy(model)
        minted = [
            tensor.name
            for tensor in model.graph.initializer
            if tensor.name not in original_constants
        ]
        onnx_names.rename_constants(model, minted)
        model = types.complete(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
    except UnsupportedError:
        raise
    except Exception as error:
        raise UnsupportedError(f"it cannot be prepared for quantization: {reason(error)}") from None
    kinds = [node.op_type for node in model.graph.node]
    return {"quantized": kinds.count("QuantizeLinear")}


def _fit_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    opset = versions[0] if versions else LEAST_OPSET
    if LEAST_OPSET <= opset <= MOST_OPSET:
        return model
    try:
        raised = version_converter.convert_version(model, max(LEAST_OPSET, min(opset, MOST_OPSET)))
        if opset < 11:
            _keep_asymmetric(raised)
        return raised
    except Exception as error:
        if opset > MOST_OPSET:  # most of it can be run all the same
            return model
        raise UnsupportedError(
            f"its opset {opset} has no scales per channel, and it cannot be raised to "
            f"{LEAST_OPSET}: {reason(error)}; export the model again with a newer opset"
        ) from None


def _keep_asymmetric(model: onnx.ModelProto) -> None:
    """Write the coordinate mode of each Resize that was raised from an opset before 11.

    Before opset 11, Resize and Upsample had one coordinate mode, which is not the default of later
    opsets; onnx's converter does not write it. Nearest rounded up on an axis that shrinks, else
    down: a node with an axis that shrinks and one that grows becomes two nodes.
    """
    graph = Graph(model)
    for place, node in reversed(list(enumerate(model.graph.node))):
        if (
            node.op_type != "Resize"
            or attribute(node, "coordinate_transformation_mode") is not None
        ):
            continue
        _set_attribute(node, "coordinate_transformation_mode", "asymmetric")
        if attribute(node, "mode", b"nearest") != b"nearest":
            continue
        scales = graph.constant(node.input[2]) if len(node.input) > 2 else None
        shrinks = scales is not None and bool(np.any(scales < 1))
        _set_attribute(node, "nearest_mode", "ceil" if shrinks else "floor")
        if scales is None or not shrinks or np.all(scales <= 1):
            continue
        names = [f"{node.output[0]}/{side}" for side in ("shrunk", "shrinks", "grows")]
        growing = onnx.NodeProto()
        growing.CopyFrom(node)
        growing.name = ""
        node.output[0] = growing.input[0] = names[0]
        node.input[2], growing.input[2] = names[1:]
        _set_attribute(growing, "nearest_mode", "floor")
        for name, part in zip(
            names[1:], (np.minimum(scales, 1), np.maximum(scales, 1)), strict=True
        ):
            model.graph.initializer.append(numpy_helper.from_array(part.astype(np.float32), name))
        model.graph.node.insert(place + 1, growing)


def _set_attribute(node: onnx.NodeProto, name: str, value: str) -> None:
    for entry in list(node.attribute):
        if entry.name == name:
            node.attribute.remove(entry)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def _fix_names(model: onnx.ModelProto) -> None:
    """Remove weights from the graph's inputs, where old files list them so that they can be
    overridden; and give ONNX's own operators one of the two names of their domain."""
    for entry in (*model.opset_import, *model.graph.node):
        if entry.domain == "ai.onnx":
            entry.domain = ""
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in list(model.graph.input):
        if value.name in constants:
            model.graph.input.remove(value)
    model.ir_version = max(model.ir_version, LEAST_IR)


def _fold_dequantized(model: onnx.ModelProto) -> int:
    """Weights stored in 8 or 4 bits become float again; the quantizer later quantizes those of 8
    bits anew, by one set of rules.

    -> how many DequantizeLinear nodes were folded.
    """
    graph = Graph(model)
    folded = 0
    for node in list(model.graph.node):
        if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
            continue
        values = [graph.constant(name) for name in node.input if name]
        if any(value is None for value in values):
            continue
        data, scale, *zero = [np.asarray(value) for value in values]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        block = next((a.i for a in node.attribute if a.name == "block_size"), 0)
        if data.dtype.kind not in "iu" and data.dtype.name not in FOUR_BITS:
            continue
        if block:  # one scale for so many values along the axis
            folded += _fold_blocks(model, node, data, scale, zero, axis, block)
            continue
        shape = [1] * data.ndim
        if scale.size > 1:
            shape[axis] = scale.size
        offset: Any = 0
        if zero:
            offset = (
                zero[0].astype(np.int64).reshape(shape if zero[0].size > 1 else [1] * data.ndim)
            )
        step = scale.reshape(shape) if scale.size > 1 else scale.reshape([1] * data.ndim)
        real = ((data.astype(np.int64) - offset) * step.astype(np.float64)).astype(scale.dtype)
        model.graph.initializer.append(numpy_helper.from_array(real, node.output[0]))
        model.graph.node.remove(node)
        folded += 1
    return folded


def _fold_blocks(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    data: np.ndarray,
    scale: np.ndarray,
    zero: list[np.ndarray],
    axis: int,
    block: int,
) -> bool:
    """As _fold_dequantized, for one node with `block_size`. -> whether its shapes allowed it."""
    shape = list(data.shape)
    shape[axis] = -(-shape[axis] // block)
    if list(scale.shape) != shape or any(list(values.shape) != shape for values in zero):
        return False
    within = tuple(slice(size) for size in data.shape)  # the last block may be cut
    steps = np.repeat(scale.astype(np.float64), block, axis)[within]
    offsets = [np.repeat(values.astype(np.int64), block, axis)[within] for values in zero]
    real = ((data.astype(np.int64) - (offsets[0] if offsets else 0)) * steps).astype(scale.dtype)
    model.graph.initializer.append(numpy_helper.from_array(real, node.output[0]))
    model.graph.node.remove(node)
    return True


def _fold_norms(model: onnx.ModelProto) -> int:
    """Fold each BatchNormalization after a Gemm into the Gemm. ONNX Runtime does so for Conv alone.

    y = (x - mean) * scale / sqrt(var + epsilon) + offset, per output. -> how many were folded.
    """
    graph = Graph(model)
    folded = 0
    for norm in graph.nodes:
        gemm = graph.producer.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if gemm is None or gemm.op_type != "Gemm" or graph.only_consumer(gemm.output[0]) != norm:
            continue
        weight = graph.constant(gemm.input[1])
        parameters = [graph.constant(name) for name in norm.input[1:5]]
        bias = graph.constant(gemm.input[2]) if len(gemm.input) > 2 else None
        unscaled = attribute(gemm, "alpha", 1.0) == 1.0 and attribute(gemm, "beta", 1.0) == 1.0
        if (
            weight is None
            or any(v is None for v in parameters)
            or len(norm.output) > 1
            or not unscaled
        ):
            continue
        if len(gemm.input) > 2 and bias is None:
            continue
        scale, offset, mean, variance = (np.asarray(value, np.float64) for value in parameters)
        factor = scale / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        wide = factor[:, None] if attribute(gemm, "transB", 0) else factor
        old_bias = np.zeros(1) if bias is None else np.asarray(bias, np.float64)
        names = [f"{norm.output[0]}.weight", f"{norm.output[0]}.bias"]
        for name, value in zip(
            names, (weight * wide, (old_bias - mean) * factor + offset), strict=True
        ):
            array = np.asarray(value, weight.dtype)
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        del gemm.input[1:]
        gemm.input.extend(names)
        gemm.output[0] = norm.output[0]
        model.graph.node.remove(norm)
        folded += 1
    return folded


def _optimized(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model after ONNX Runtime's basic optimizations, which leave only standard operators:
    constants are folded, Conv with BatchNorm, Mul or Add becomes one Conv, MatMul with Add a Gemm.
    """
    content = model.SerializeToString()
    reference.opened(content, "ORT_ENABLE_BASIC", threads=1, optimized_path=str(path))
    return onnx.load(str(path))


def _tidy(model: onnx.ModelProto) -> None:
    """Give every node a name of its own, and remove operator sets that no node uses."""
    used = {node.domain for node in model.graph.node}
    for entry in list(model.opset_import):
        if entry.domain not in used and entry.domain not in ("", "ai.onnx"):
            model.opset_import.remove(entry)
    used_names: set[str] = set()
    for number, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type}_{number}"
        while name in used_names:
            name = f"{name}_{number}"
        used_names.add(name)
        node.name = name
    model.producer_name, model.producer_version = "onmetal", ""
    model.doc_string = model.graph.doc_string = ""
