"""Normalization layers, composed of means, differences and products."""

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import Lowering, Order, lowers
from onmetal.converters.tflite.net import Tensor
from onmetal.converters.tflite.nodes import attribute, refuse
from onmetal.converters.tflite.reduction import reduce


def _standardized(low: Lowering, tensor: Tensor, places: list[int], epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) over stored axes."""
    mean = reduce(low, "MEAN", tensor, places)
    centred = low.binary("SUB", tensor, mean)
    variance = reduce(low, "MEAN", low.binary("MUL", centred, centred), places)
    safe = low.binary("ADD", variance, low.like(variance, epsilon))
    return low.binary("MUL", centred, low.unary("RSQRT", safe))


def _affine(
    low: Lowering, tensor: Tensor, scale: np.ndarray | None, offset: np.ndarray | None
) -> Tensor:
    """tensor * scale + offset; both are shaped to be broadcast to the tensor as it is stored."""
    if scale is not None and not np.all(scale == 1):
        tensor = low.binary("MUL", tensor, low.floats(scale, "scale"))
    if offset is not None and np.any(offset):
        tensor = low.binary("ADD", tensor, low.floats(offset, "offset"))
    return tensor


def _constants(low: Lowering, node: ir.Node, first: int, count: int) -> list[np.ndarray | None]:
    arrays = []
    for place in range(first, first + count):
        value = low.given(node, place)
        array = low.constant(value)
        if value is not None and array is None:
            raise refuse(node, "its scale and offset are computed, not constant")
        arrays.append(array)
    return arrays


def _wide(values: np.ndarray, order: Order, axis: int = 1) -> np.ndarray:
    """[channels] -> shaped to be broadcast to a tensor stored in this order."""
    return values.reshape([-1 if label == axis else 1 for label in order])


@lowers("BatchNormalization", to="MUL, ADD", limits="constant parameters, inference")
def batch_norm(low: Lowering, node: ir.Node) -> None:
    scale, offset, mean, variance = (
        None if array is None else array.astype(np.float64) for array in _constants(low, node, 1, 4)
    )
    if scale is None or offset is None or mean is None or variance is None:
        raise refuse(node, "its parameters are missing")
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    tensor, order = low.value(low.input(node))
    result = _affine(low, tensor, _wide(factor, order), _wide(offset - mean * factor, order))
    if result is tensor:
        low.values[node.outputs[0]] = low.value(low.input(node))
        return
    low.give(node.outputs[0], result, order)


@lowers("InstanceNormalization", to="MEAN, SUB, MUL, ADD, RSQRT", limits="constant parameters")
def instance_norm(low: Lowering, node: ir.Node) -> None:
    scale, offset = _constants(low, node, 1, 2)
    tensor, order = low.value(low.input(node))
    epsilon = float(attribute(node, "epsilon", 1e-5))
    places = [place for place, axis in enumerate(order) if axis >= 2]
    result = _standardized(low, tensor, places, epsilon)
    parameters = [None if array is None else _wide(array, order) for array in (scale, offset)]
    low.give(node.outputs[0], _affine(low, result, *parameters), order)


@lowers(
    "LayerNormalization",
    to="MEAN, SUB, MUL, ADD, RSQRT",
    limits="constant parameters; the first output alone",
)
def layer_norm(low: Lowering, node: ir.Node) -> None:
    if any(out.name and (out.uses() or out in low.outputs) for out in node.outputs[1:]):
        raise refuse(node, "the outputs Mean and InvStdDev are not supported")
    scale, offset = _constants(low, node, 1, 2)
    tensor, order = low.value(low.input(node))
    rank = len(order)
    axis = int(attribute(node, "axis", -1)) % rank
    places = [place for place, label in enumerate(order) if label >= axis]
    result = _standardized(low, tensor, places, float(attribute(node, "epsilon", 1e-5)))

    def stored(array: np.ndarray | None) -> np.ndarray | None:
        if array is None:
            return None
        return array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(order)

    low.give(node.outputs[0], _affine(low, result, stored(scale), stored(offset)), order)


@lowers(
    "GroupNormalization", to="RESHAPE, MEAN, SUB, MUL, ADD, RSQRT", limits="constant parameters"
)
def group_norm(low: Lowering, node: ir.Node) -> None:
    """Reshape the groups of channels to an axis of their own, before the spatial axes or after them
    as the channels are stored."""
    scale, offset = _constants(low, node, 1, 2)
    value = low.input(node)
    rank, count = len(low.shape(value)), int(attribute(node, "num_groups"))
    channels_first = low.order(value) == tuple(range(rank))
    order: Order = tuple(range(rank)) if channels_first else (0, *range(2, rank), 1)
    tensor = low.arranged(value, order)
    batch, channels, *sizes = low.shape(value)
    space = int(np.prod(sizes))
    # Four axes, since quantized kernels support no more.
    four = (
        (count, channels // count, space) if channels_first else (space, count, channels // count)
    )
    grouped = low.reshaped(tensor, (batch, *four))
    epsilon = float(attribute(node, "epsilon", 1e-5))
    result = _standardized(low, grouped, [2, 3] if channels_first else [1, 3], epsilon)
    result = low.reshaped(result, tensor.shape)
    parameters = []
    for array in (scale, offset):
        if array is not None and array.size == count != channels:  # one a group, before opset 21
            array = np.repeat(array, channels // count)
        parameters.append(None if array is None else _wide(array, order))
    low.give(node.outputs[0], _affine(low, result, *parameters), order)


@lowers("MeanVarianceNormalization", to="MEAN, SUB, MUL, ADD, RSQRT")
def mean_variance_norm(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    axes = {int(axis) % len(order) for axis in attribute(node, "axes", [0, 2, 3])}
    places = [place for place, label in enumerate(order) if label in axes]
    low.give(node.outputs[0], _standardized(low, tensor, places, 1e-9), order)


@lowers("LRN", to="LOCAL_RESPONSE_NORMALIZATION", limits="an odd size")
def lrn(low: Lowering, node: ir.Node) -> None:
    size = int(attribute(node, "size"))
    if size % 2 == 0:
        raise refuse(node, f"an even size ({size}) is not supported")
    value = low.input(node)
    order: Order = (0, *range(2, len(low.shape(value))), 1)
    result = low.unary(
        "LOCAL_RESPONSE_NORMALIZATION",
        low.arranged(value, order),
        radius=(size - 1) // 2,
        bias=float(attribute(node, "bias", 1.0)),
        alpha=float(attribute(node, "alpha", 1e-4)) / size,
        beta=float(attribute(node, "beta", 0.75)),
    )
    low.give(node.outputs[0], result, order)


@lowers("LpNormalization", to="MUL, ABS, MEAN, SQRT, DIV")
def lp_norm(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    place = order.index(int(attribute(node, "axis", -1)) % len(order))
    if int(attribute(node, "p", 2)) == 1:
        length = _summed(low, low.unary("ABS", tensor), place)
    else:
        length = low.unary("SQRT", _summed(low, low.binary("MUL", tensor, tensor), place))
    low.give(node.outputs[0], low.binary("DIV", tensor, length), order)


def _summed(low: Lowering, tensor: Tensor, place: int) -> Tensor:
    mean = reduce(low, "MEAN", tensor, [place])
    return low.binary("MUL", mean, low.like(mean, float(tensor.shape[place])))
