"""Convolutions: channels last, SAME where it equals the node's pads exactly, else PAD and VALID."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import NHWC, Lowering, lowers
from onmetal.converters.tflite.net import SAME, VALID, Tensor
from onmetal.converters.tflite.nodes import attribute, refuse


class Window:
    """A sliding window over spatial axes, for Conv and pooling.

    `begin`, `end`: padding of each axis, without padding at the end that no window reads. `out`:
    the sizes of the output.
    """

    def __init__(
        self,
        node: ir.Node,
        sizes: Sequence[int],
        kernel: Sequence[int],
        ceil_mode: bool = False,
    ) -> None:
        rank = len(sizes)
        self.kernel = [int(n) for n in kernel]
        self.strides = [int(n) for n in attribute(node, "strides", [1] * rank)]
        self.dilations = [int(n) for n in attribute(node, "dilations", [1] * rank)]
        reach = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True)]
        auto = attribute(node, "auto_pad", "NOTSET")
        pads = [int(n) for n in attribute(node, "pads", [0] * (2 * rank))]
        self.begin, self.asked_end, self.end, self.out = [], [], [], []
        for axis, size in enumerate(sizes):
            stride = self.strides[axis]
            if auto in ("SAME_UPPER", "SAME_LOWER"):
                out = -(-size // stride)
                total = max(0, (out - 1) * stride + reach[axis] - size)
                begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
                end = total - begin
            else:
                begin, end = (0, 0) if auto == "VALID" else (pads[axis], pads[axis + rank])
                if begin < 0 or end < 0:
                    raise refuse(node, f"negative pads {pads} are not supported")
                span = size + begin + end - reach[axis]
                out = (-(-span // stride) if ceil_mode else span // stride) + 1
                if ceil_mode and (out - 1) * stride >= size + begin:
                    out -= 1  # a window must begin inside
            self.begin.append(begin)
            self.asked_end.append(end)
            self.end.append(max(0, (out - 1) * stride + reach[axis] - size - begin))
            self.out.append(out)
        self.sizes, self.reach = list(sizes), reach

    @property
    def padded(self) -> bool:
        return any(self.begin) or any(self.end)

    @property
    def same(self) -> bool:
        """Whether TFLite's SAME has exactly these windows."""
        for axis, size in enumerate(self.sizes):
            stride = self.strides[axis]
            if self.out[axis] != -(-size // stride):
                return False
            total = max(0, (self.out[axis] - 1) * stride + self.reach[axis] - size)
            if self.begin[axis] != total // 2:
                return False
        return True


def spatial(low: Lowering, node: ir.Node, value: ir.Value) -> tuple[Tensor, bool]:
    """[n, c, h, w] or [n, c, l] -> [n, h, w, c], and whether it was one-dimensional."""
    rank = len(low.shape(value))
    if rank == 4:
        return low.arranged(value, NHWC), False
    if rank == 3:
        tensor = low.arranged(value, (0, 2, 1))
        batch, length, channels = tensor.shape
        return low.reshaped(tensor, (batch, 1, length, channels)), True
    raise refuse(node, f"{rank - 2} spatial axes are not supported: 1 and 2 are")


def give_spatial(low: Lowering, value: ir.Value, tensor: Tensor, flat: bool) -> None:
    """The reverse of `spatial`: set [n, h, w, c] as the tensor that stores a node's output."""
    if flat:
        batch, _, length, channels = tensor.shape
        low.give(value, low.reshaped(tensor, (batch, length, channels)), (0, 2, 1))
    else:
        low.give(value, tensor, NHWC)


def deepened(values: Sequence[int], flat: bool, fill: int) -> list[int]:
    """Settings of one spatial axis as settings of two, where the operator is one-dimensional."""
    return [fill, *values] if flat else list(values)


def pad(low: Lowering, tensor: Tensor, begin: Sequence[int], end: Sequence[int]) -> Tensor:
    """Zeros around height and width."""
    pads = [[0, 0], [begin[0], end[0]], [begin[1], end[1]], [0, 0]]
    shape = [size + sum(extra) for size, extra in zip(tensor.shape, pads, strict=True)]
    name = f"{tensor.name}/padded"
    return low.emit("PAD", [tensor, low.ints(pads, "pads")], shape, name=name)


@lowers(
    "Conv",
    to="CONV_2D, DEPTHWISE_CONV_2D, PAD",
    limits="constant weights and bias; one or two spatial axes",
)
def conv(low: Lowering, node: ir.Node) -> None:
    weight = low.constant(low.input(node, 1))
    bias_value = low.given(node, 2)
    bias = low.constant(bias_value)
    if weight is None or (bias_value is not None and bias is None):
        raise refuse(node, "its weights are computed, not constant")
    out = node.outputs[0]
    tensor, flat = spatial(low, node, low.input(node))
    window = Window(node, low.shape(low.input(node))[2:], weight.shape[2:])
    if flat:
        weight = weight[:, :, None, :]
    strides = deepened(window.strides, flat, 1)
    dilations = deepened(window.dilations, flat, 1)
    padding = SAME if window.same and window.padded else VALID
    if window.padded and padding == VALID:
        tensor = pad(low, tensor, deepened(window.begin, flat, 0), deepened(window.end, flat, 0))
    group, channels = int(attribute(node, "group", 1)), tensor.shape[-1]
    depthwise = group == channels and weight.shape[1] == 1 and group > 1
    kernel = weight.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    outputs = weight.shape[0]
    if bias is None:
        bias = np.zeros(outputs, np.float32)
    options = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
    }
    if depthwise:
        options["depthMultiplier"] = outputs // channels
    sizes = deepened(window.out, flat, 1)
    result = low.emit(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
        [
            tensor,
            low.floats(kernel, f"{out.name}/weight"),
            low.floats(bias, f"{out.name}/bias"),
        ],
        (tensor.shape[0], *sizes, outputs),
        name=f"{out.name}/conv" if flat else "",
        **options,
    )
    give_spatial(low, out, result, flat)


@lowers(
    "ConvTranspose",
    to="TRANSPOSE_CONV, PAD, STRIDED_SLICE",
    limits="constant weights and bias; one or two spatial axes; groups become one dense product",
)
def conv_transpose(low: Lowering, node: ir.Node) -> None:
    """The full output (VALID) is cropped by the pads; SAME is used where it equals the pads."""
    weight = low.constant(low.input(node, 1))  # [in, out / groups, kernel]
    bias_value = low.given(node, 2)
    bias = low.constant(bias_value)
    if weight is None or (bias_value is not None and bias is None):
        raise refuse(node, "its weights are computed, not constant")
    value, out = low.input(node), node.outputs[0]
    tensor, flat = spatial(low, node, value)
    weight = _dense_weight(weight, int(attribute(node, "group", 1)))
    rank = weight.ndim - 2
    strides = [int(n) for n in attribute(node, "strides", [1] * rank)]
    dilations = [int(n) for n in attribute(node, "dilations", [1] * rank)]
    weight = _dilated_weight(weight, dilations)
    sizes: Sequence[int] = low.shape(value)[2:]
    begin, out_sizes = _transposed_window(node, sizes, strides, weight.shape[2:])
    if flat:
        weight = weight[:, :, None, :]
        strides, begin = [1, *strides], [0, *begin]
        sizes, out_sizes = [1, *sizes], [1, *out_sizes]
    kernel = weight.transpose(1, 2, 3, 0)
    tensor, in_sizes = _padded_behind(
        low, tensor, list(sizes), out_sizes, strides, begin, kernel.shape[1:3]
    )
    full_sizes = [
        (n - 1) * s + k for n, s, k in zip(in_sizes, strides, kernel.shape[1:3], strict=True)
    ]
    same = all(
        w == n * s and b == max(0, k - s) // 2
        for w, n, s, b, k in zip(
            out_sizes, in_sizes, strides, begin, kernel.shape[1:3], strict=True
        )
    )
    shape = (tensor.shape[0], *(out_sizes if same else full_sizes), kernel.shape[0])
    if bias is None:
        bias = np.zeros(kernel.shape[0], np.float32)
    result = low.emit(
        "TRANSPOSE_CONV",
        [
            low.ints(shape, "shape"),
            low.floats(kernel, f"{out.name}/weight"),
            tensor,
            low.floats(bias, f"{out.name}/bias"),
        ],
        shape,
        dtype=np.float32,
        name=f"{out.name}/whole",
        padding=SAME if same else VALID,
        strideH=strides[0],
        strideW=strides[1],
    )
    if tuple(result.shape[1:3]) != tuple(out_sizes):
        result = crop(low, result, begin, out_sizes)
    give_spatial(low, out, result, flat)


def crop(low: Lowering, tensor: Tensor, begin: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """[n, h, w, c] -> `sizes` of its height and width, from `begin` on."""
    first = [0, *begin, 0]
    shape = [tensor.shape[0], *sizes, tensor.shape[-1]]
    last = [start + size for start, size in zip(first, shape, strict=True)]
    return low.emit(
        "STRIDED_SLICE",
        [tensor, low.ints(first), low.ints(last), low.ints([1] * 4)],
        shape,
        name=f"{tensor.name}/cropped",
    )


def _dense_weight(weight: np.ndarray, groups: int) -> np.ndarray:
    """[in, out / groups, ...] -> [in, out, ...], zero between channels of different groups."""
    if groups == 1:
        return weight
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    dense = np.zeros((weight.shape[0], outputs * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * inputs, (group + 1) * inputs)
        dense[rows, group * outputs : (group + 1) * outputs] = weight[rows]
    return dense


def _dilated_weight(weight: np.ndarray, dilations: Sequence[int]) -> np.ndarray:
    """The kernel with zeros between its values."""
    if all(d == 1 for d in dilations):
        return weight
    sizes = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    dilated = np.zeros((*weight.shape[:2], *sizes), weight.dtype)
    dilated[(slice(None), slice(None), *(slice(None, None, d) for d in dilations))] = weight
    return dilated


def _transposed_window(
    node: ir.Node, sizes: Sequence[int], strides: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int]]:
    """-> how much of the full output is cropped at the begin of each axis, and the size that is
    left, as ONNX Runtime computes ConvTranspose. `output_shape` takes precedence over pads and over
    VALID."""
    rank = len(sizes)
    auto = attribute(node, "auto_pad", "NOTSET")
    pads = [int(n) for n in attribute(node, "pads", [0] * (2 * rank))]
    extra = [int(n) for n in attribute(node, "output_padding", [0] * rank)]
    output_shape = [int(n) for n in attribute(node, "output_shape", [])][-rank:]
    begin, out_sizes = [], []
    for axis, size in enumerate(sizes):
        full_size = (size - 1) * strides[axis] + kernel[axis] + extra[axis]
        if output_shape or auto.startswith("SAME"):
            total = max(
                0, full_size - (output_shape[axis] if output_shape else size * strides[axis])
            )
            first = total // 2 if auto == "SAME_UPPER" else total - total // 2
        else:
            padded = auto == "NOTSET"
            total = pads[axis] + pads[axis + rank] if padded else 0
            first = pads[axis] if padded else 0
        begin.append(first)
        out_sizes.append(output_shape[axis] if output_shape else full_size - total)
    return begin, out_sizes


def _padded_behind(
    low: Lowering,
    tensor: Tensor,
    sizes: list[int],
    out_sizes: Sequence[int],
    strides: Sequence[int],
    begin: Sequence[int],
    kernel: Sequence[int],
) -> tuple[Tensor, list[int]]:
    """Pad the end of the input with zeros where `output_padding` asks for a larger output than the
    full product: there the output is the bias alone. -> the tensor and its spatial sizes."""
    more = []
    for axis, size in enumerate(sizes):
        full_size = (size - 1) * strides[axis] + kernel[axis]
        short = begin[axis] + out_sizes[axis] - full_size
        more.append(max(0, -(-short // strides[axis])))
    if not any(more):
        return tensor, sizes
    padded_sizes = [size + extra for size, extra in zip(sizes, more, strict=True)]
    return pad(low, tensor, [0, 0], more), padded_sizes
