"""Convolutions: channels first, SAME as explicit pads."""

from collections.abc import Sequence

import numpy as np

from onmetal.converters.tflite.net import SAME, Op, Tensor
from onmetal.converters.tflite.to_onnx.fused import finish
from onmetal.converters.tflite.to_onnx.graph import NCHW, Graph, Order, is_quantized
from onmetal.converters.tflite.to_onnx.rules import given, refuse, taken, writes

NCDHW: Order = (0, 4, 1, 2, 3)
"""Of a volume whose TFLite axes are [n, d, h, w, c]."""


def sides(op: Op) -> tuple[str, ...]:
    """The spatial axes, as the schema names them."""
    return ("D", "H", "W") if op.kind in ("CONV_3D", "CONV_3D_TRANSPOSE") else ("H", "W")


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """ONNX's pads, all begins before all ends, of TFLite's SAME: the greater half is at the end
    (tensorflow/lite/kernels/padding.h)."""
    begins, ends = [], []
    for size, reach, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + (reach - 1) * dilation + 1 - size)
        begins.append(total // 2)
        ends.append(total - total // 2)
    return begins + ends


def strides_of(op: Op) -> list[int]:
    return [int(op.options[f"stride{side}"]) for side in sides(op)]


def bias_of(graph: Graph, op: Op, place: int, source: Tensor, weight: Tensor) -> list[str]:
    """The bias, if there is one, as an input of a node. Integers are in the scale of the products,
    whatever scale the file states for them, as kernels add them to the products."""
    bias = given(op, place)
    if bias is None:
        return []
    array = graph.array(graph.aliases.get(bias, bias))
    weight = graph.aliases.get(weight, weight)
    if array is None or not is_quantized(source) or array.dtype.kind == "f":
        return [graph.weight(bias)]
    assert source.scale is not None and weight.scale is not None and bias.scale is not None
    scale = (source.scale.astype(np.float64) * weight.scale).astype(np.float32)
    if array.dtype == np.int32:
        return [graph.dequantized_constant(array, bias, 0, scale)]
    return [graph.constant(array * scale.astype(np.float64), np.float32, bias.name)]


def images(op: Op, *tensors: Tensor) -> None:
    """Raises UnsupportedError for tensors that have other axes than [n, h, w, c], or [n, d, h, w,
    c] of volumes."""
    rank = len(sides(op)) + 2
    for tensor in tensors:
        if len(tensor.shape) != rank:
            raise refuse(op, f"{tensor.name!r} has {len(tensor.shape)} axes; {rank} are supported")


@writes("CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", to="Conv")
def conv(graph: Graph, op: Op) -> None:
    """Weights [out, h, w, in / groups]; [1, h, w, out] where each channel is apart; [d, h, w, in /
    groups, out] of volumes."""
    source, weight = taken(op, 0), taken(op, 1)
    images(op, source, weight)
    order: Order = NCHW
    weights: Order = NCHW
    first, inner = 1, weight.shape[3]
    if op.kind == "DEPTHWISE_CONV_2D":
        weights, inner = (3, 0, 1, 2), 1
    elif op.kind == "CONV_3D":
        order, weights, first = NCDHW, (4, 3, 0, 1, 2), 0
    channels, kernel = source.shape[-1], weight.shape[first : first + len(sides(op))]
    strides = strides_of(op)
    dilations = [int(op.options.get(f"dilation{side}Factor", 1)) for side in sides(op)]
    pads = [0] * (2 * len(kernel))
    if op.options["padding"] == SAME:
        pads = same_pads(source.shape[1:-1], kernel, strides, dilations)
    if not inner or channels % inner:
        raise refuse(op, f"its weights have {inner} channels, its input {channels}")
    result = graph.emit(
        "Conv",
        [
            graph.real(source, order),
            graph.weight(weight, weights),
            *bias_of(graph, op, 2, source, weight),
        ],
        kernel_shape=list(kernel),
        strides=strides,
        dilations=dilations,
        pads=pads,
        group=channels // inner,
    )
    finish(graph, op, result, order)


def _transposed_pads(
    op: Op, sizes: Sequence[int], out: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int]]:
    """-> pads and output_padding with which ConvTranspose has the output's size. What is cut off at
    the begin is the padding of the convolution whose input has that size."""
    strides, count = strides_of(op), len(sizes)
    begins, ends, more = [0] * count, [0] * count, [0] * count
    if op.options["padding"] == SAME:
        begins = same_pads(out, kernel, strides, [1] * count)[:count]
    for axis in range(count):
        rest = (sizes[axis] - 1) * strides[axis] + kernel[axis] - out[axis] - begins[axis]
        ends[axis], more[axis] = max(0, rest), max(0, -rest)
    return begins + ends, more


@writes("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE", to="ConvTranspose, Pad")
def transpose_conv(graph: Graph, op: Op) -> None:
    """Weights [out, h, w, in], or [d, h, w, out, in] of volumes. Where the output is larger than
    the product, zeros behind the input make it larger, as far as ConvTranspose's output_padding may
    not reach."""
    weight, source, out = taken(op, 1), taken(op, 2), op.outputs[0]
    images(op, source, weight, out)
    order: Order = NCHW
    weights: Order = (3, 0, 1, 2)
    first = 1
    if op.kind == "CONV_3D_TRANSPOSE":
        order, weights, first = NCDHW, (4, 3, 0, 1, 2), 0
    if any(int(op.options.get(f"dilation{side}Factor", 1)) != 1 for side in sides(op)):
        raise refuse(op, "dilations are not supported")
    count, strides = len(sides(op)), strides_of(op)
    kernel, sizes = weight.shape[first : first + count], list(source.shape[1:-1])
    pads, more = _transposed_pads(op, sizes, out.shape[1:-1], kernel)
    name = graph.real(source, order)
    behind = [extra // stride for extra, stride in zip(more, strides, strict=True)]
    if any(behind):
        name = graph.emit("Pad", [name, graph.ints([0] * (count + 4) + behind)])
        sizes = [size + extra for size, extra in zip(sizes, behind, strict=True)]
        pads, more = _transposed_pads(op, sizes, out.shape[1:-1], kernel)
    inputs = [name, graph.weight(weight, weights), *bias_of(graph, op, 3, source, weight)]
    result = graph.emit(
        "ConvTranspose",
        inputs,
        kernel_shape=list(kernel),
        strides=strides,
        pads=pads,
        output_padding=more,
    )
    finish(graph, op, result, order)
