"""Pooling over windows, and over all of the spatial axes."""

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.convolution import Window, deepened, give_spatial, pad, spatial
from onmetal.converters.tflite.lowering import Lowering, lowers
from onmetal.converters.tflite.net import SAME, VALID, Tensor
from onmetal.converters.tflite.nodes import attribute, refuse


def _pooled(
    low: Lowering, kind: str, tensor: Tensor, window: Window, flat: bool, padding: int, name: str
) -> Tensor:
    kernel, strides = deepened(window.kernel, flat, 1), deepened(window.strides, flat, 1)
    sizes = deepened(window.out, flat, 1)
    return low.emit(
        kind,
        [tensor],
        (tensor.shape[0], *sizes, tensor.shape[-1]),
        name=name,
        padding=padding,
        strideH=strides[0],
        strideW=strides[1],
        filterHeight=kernel[0],
        filterWidth=kernel[1],
    )


def _window(low: Lowering, node: ir.Node) -> Window:
    window = Window(
        node,
        low.shape(low.input(node))[2:],
        attribute(node, "kernel_shape"),
        bool(attribute(node, "ceil_mode", 0)),
    )
    if any(d != 1 for d in window.dilations):
        raise refuse(node, f"dilations {window.dilations} are not supported")
    expected = low.shape(node.outputs[0])[2:]
    if tuple(window.out) != tuple(expected):
        problem = (
            f"its windows give {list(window.out)} values, not the {list(expected)} that follow"
        )
        raise refuse(node, f"{problem} from the shapes in the file")
    return window


@lowers(
    "MaxPool",
    to="MAX_POOL_2D, PADV2",
    limits="no dilations, no Indices output; one or two spatial axes",
)
def max_pool(low: Lowering, node: ir.Node) -> None:
    """Where SAME, which ignores padding, does not fit, the input is padded with the least float."""
    if len(node.outputs) > 1 and node.outputs[1].name:
        raise refuse(node, "the output Indices is not supported")
    window = _window(low, node)
    tensor, flat = spatial(low, node, low.input(node))
    padding = SAME if window.padded and window.same else VALID
    if window.padded and padding == VALID:
        begin, end = deepened(window.begin, flat, 0), deepened(window.end, flat, 0)
        pads = [[0, 0], [begin[0], end[0]], [begin[1], end[1]], [0, 0]]
        shape = [size + sum(extra) for size, extra in zip(tensor.shape, pads, strict=True)]
        least = low.floats(np.finfo(np.float32).min, "least")
        tensor = low.emit(
            "PADV2", [tensor, low.ints(pads, "pads"), least], shape, name=f"{tensor.name}/padded"
        )
    result = _pooled(
        low, "MAX_POOL_2D", tensor, window, flat, padding, f"{node.outputs[0].name}/max"
    )
    give_spatial(low, node.outputs[0], result, flat)


@lowers(
    "AveragePool",
    to="AVERAGE_POOL_2D, PAD, MUL",
    limits="no dilations; one or two spatial axes",
)
def average_pool(low: Lowering, node: ir.Node) -> None:
    """Where windows at the border average other numbers of values than with SAME or VALID, zeros
    are padded, and each average is multiplied by the kernel's size over the number of values that
    ONNX counts."""
    window = _window(low, node)
    tensor, flat = spatial(low, node, low.input(node))
    name = f"{node.outputs[0].name}/average"
    include = bool(attribute(node, "count_include_pad", 0))
    if window.padded and window.same and not include:
        result = _pooled(low, "AVERAGE_POOL_2D", tensor, window, flat, SAME, name)
        give_spatial(low, node.outputs[0], result, flat)
        return
    if window.padded:
        tensor = pad(low, tensor, deepened(window.begin, flat, 0), deepened(window.end, flat, 0))
    result = _pooled(low, "AVERAGE_POOL_2D", tensor, window, flat, VALID, name)
    counted = [_values_in_window(window, axis, include) for axis in range(len(window.sizes))]
    ones = counted if not flat else [np.ones(1), *counted]
    share = np.prod(window.kernel) / np.outer(ones[0], ones[1])
    if not np.all(share == 1):
        factor = low.floats(share[None, :, :, None], "counted")
        result = low.binary("MUL", result, factor, name=f"{node.outputs[0].name}/corrected")
    give_spatial(low, node.outputs[0], result, flat)


def _values_in_window(window: Window, axis: int, include: bool) -> np.ndarray:
    """How many values each window averages along an axis, as ONNX counts them."""
    starts = np.arange(window.out[axis]) * window.strides[axis] - window.begin[axis]
    first, last = 0, window.sizes[axis]
    if include:
        first, last = -window.begin[axis], last + window.asked_end[axis]
    ends = np.minimum(starts + window.kernel[axis], last)
    return ends - np.maximum(starts, first)


@lowers("GlobalAveragePool", "GlobalMaxPool", to="MEAN, REDUCE_MAX")
def global_pool(low: Lowering, node: ir.Node) -> None:
    value = low.input(node)
    kind = "MEAN" if node.op_type == "GlobalAveragePool" else "REDUCE_MAX"
    tensor, order = low.value(value)
    if len(order) in (3, 4):  # accelerators support MEAN over height and width
        order = (0, *range(2, len(order)), 1)
        tensor = low.arranged(value, order)
    axes = [place for place, axis in enumerate(order) if axis >= 2]
    shape = [1 if place in axes else size for place, size in enumerate(tensor.shape)]
    result = low.emit(kind, [tensor, low.ints(axes, "axes")], shape, keepDims=True)
    low.give(node.outputs[0], result, order)
