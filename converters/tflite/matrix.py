"""Matrix products: FULLY_CONNECTED by constants, BATCH_MATMUL between computed tensors."""

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import Lowering, lowers
from onmetal.converters.tflite.net import Tensor
from onmetal.converters.tflite.nodes import attribute, refuse


def _connected(
    low: Lowering, tensor: Tensor, weight: np.ndarray, bias: np.ndarray | None, name: str
) -> Tensor:
    """FULLY_CONNECTED over the last axis of the tensor; `weight` [out, in]."""
    if bias is None:
        bias = np.zeros(weight.shape[0], np.float32)
    shape = (*tensor.shape[:-1], weight.shape[0])
    options = {"keepNumDims": True} if len(shape) != 2 else {}
    return low.emit(
        "FULLY_CONNECTED",
        [tensor, low.floats(weight, f"{name}/weight"), low.floats(bias, f"{name}/bias")],
        shape,
        name=f"{name}/product",
        **options,
    )


def _unscrambled(low: Lowering, value: ir.Value, weight: np.ndarray) -> np.ndarray:
    """`weight` [out, in] with its columns in the order of a Flatten's input as it is stored."""
    places = low.scrambled.get(value)
    return weight if places is None else weight[:, places]


@lowers(
    "Gemm",
    to="FULLY_CONNECTED, BATCH_MATMUL, ADD, MUL",
    limits="alpha and beta other than 1 with constant B and C only",
)
def gemm(low: Lowering, node: ir.Node) -> None:
    left, right = low.input(node, 0), low.input(node, 1)
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    out, name = node.outputs[0], str(node.outputs[0].name)
    weight = low.constant(right)
    offset_value = low.given(node, 2)
    offset = low.constant(offset_value)
    if (alpha != 1 and weight is None) or (beta != 1 and offset_value and offset is None):
        raise refuse(node, f"alpha {alpha} and beta {beta} need constant B and C")
    tensor = low.value(left).tensor if left in low.scrambled else low.plain(left)
    if attribute(node, "transA", 0):
        tensor = low.transposed(tensor, [1, 0])
    transposed = bool(attribute(node, "transB", 0))
    if weight is None:
        result = _batched(low, tensor, low.plain(right), low.shape(out), name, adjY=transposed)
        bias = None
    else:
        weight = _unscrambled(low, left, (weight if transposed else weight.T) * np.float32(alpha))
        bias = None
        if offset is not None and offset.size in (1, weight.shape[0]) and offset.ndim <= 2:
            flat = offset.reshape(-1) if offset.shape[-1:] != (1,) or offset.size == 1 else None
            if flat is not None:
                bias = np.broadcast_to(flat * np.float32(beta), weight.shape[:1]).copy()
        result = _connected(low, tensor, weight, bias, name)
    if offset_value is not None and bias is None:
        added = low.plain(offset_value) if offset is None else low.floats(offset * beta)
        result = low.binary("ADD", result, added, name=f"{name}/biased")
    low.give(out, result)


@lowers("MatMul", to="FULLY_CONNECTED, BATCH_MATMUL")
def matmul(low: Lowering, node: ir.Node) -> None:
    """A constant matrix multiplies along the last axis, whatever the order of the others."""
    left, right = low.input(node, 0), low.input(node, 1)
    out, name = node.outputs[0], str(node.outputs[0].name)
    weight = low.constant(right)
    rank = len(low.shape(left))
    if weight is not None and weight.ndim == 2 and rank >= 2:
        weight = _unscrambled(low, left, weight.T)
        order = low.order(left)
        if left not in low.scrambled and order[-1] != rank - 1:
            order = tuple(range(rank))
        tensor = low.value(left).tensor if left in low.scrambled else low.arranged(left, order)
        low.give(out, _connected(low, tensor, weight, None, name), order)
        return
    first, second = low.plain(left), low.plain(right)
    if len(first.shape) == 1:
        first = low.reshaped(first, (1, first.shape[0]))
    if len(second.shape) == 1:
        second = low.reshaped(second, (second.shape[0], 1))
    batch = np.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    result = _batched(low, first, second, (*batch, first.shape[-2], second.shape[-1]), name)
    low.give(out, low.reshaped(result, low.shape(out)))


def _batched(
    low: Lowering, left: Tensor, right: Tensor, shape: tuple[int, ...], name: str, **more: bool
) -> Tensor:
    return low.emit("BATCH_MATMUL", [left, right], shape, name=f"{name}/product", **more)
