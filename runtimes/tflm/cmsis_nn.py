"""The scratch memory that CMSIS-NN's kernels ask for on a Cortex-M, which no run on a PC shows.

Sizes by CMSIS-NN's published functions (Source/*/arm_*_get_buffer_sizes_*.c, commit 4ab83cc3, which
TFLite Micro pins), asked for as its tensorflow/lite/micro/kernels/cmsis_nn/*.cc do (commit
90b983c2) if built by GCC and for speed, as it is by default. What CMSIS-NN lacks runs by reference
kernels.

Arm Compiler 6 (from 6.10.50 on) differs in two places. On cores with DSP and without MVE, 1x1
convolutions ask for 4 bytes a channel of their input more. With MVE, a depthwise convolution of one
channel in is made a plain one only above 8 channels out, not above 1: with 2 to 8 it asks for none
(CONVERT_DW_CONV_WITH_ONE_INPUT_CH_AND_OUTPUT_CH_ABOVE_THRESHOLD in
https://github.com/ARM-software/CMSIS-NN/blob/main/Include/arm_nnsupportfunctions.h).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct

from onmetal.converters.tflite.net import SAME, Net, Op, Tensor
from onmetal.runtimes.tflm import memory

PLAIN, DSP, MVE = "plain", "dsp", "mve"
CORES = {
    **dict.fromkeys(("cortex-m0", "cortex-m0plus", "cortex-m3"), PLAIN),
    **dict.fromkeys(("cortex-m4", "cortex-m7", "cortex-m33"), DSP),
    **dict.fromkeys(("cortex-m55", "cortex-m85"), MVE),
}
"""Core, as targets.Chip names it -> which of CMSIS-NN's kernels it runs."""
POINTER_BYTES = 4
DEPTHWISE_BLOCK = 124
"""Channels that a depthwise convolution takes at once with MVE (CH_IN_BLOCK_MVE)."""
AS_CONVOLUTION_ABOVE = 1
"""Channels out of one channel in, above which a depthwise convolution is made a plain one. Arm
Compiler 6 has 8, whose need of memory is less."""
REVERSED_ABOVE = 16
"""Channels above which a transposed convolution is made a plain one of the reversed filter."""


class Modelled(Struct, frozen=True):
    """The arena on a microcontroller with CMSIS-NN's kernels, modelled and never measured.

    The head was that of TFLite Micro with CMSIS-NN, built for Cortex-M4 and Cortex-M55 and run in
    QEMU, to the byte for nine networks. The tail is the one that was counted on a host of 64 bits,
    and what kernels keep there on the core besides. A core of 32 bits needs less: its pointers, and
    so the structures of tensors and operators, have half the size. So the margin is on the safe
    side: in those networks 16 to 24 % of the tail where it is small (person_detect: 82,420 bytes of
    arena there, 85,264 here), 3 to 5 % where it is mostly multipliers of many channels.
    """

    core: str
    head_bytes: int
    tail_bytes: int
    total_bytes: int
    scratch_bytes: int
    """The most that a kernel asks for at once; planned into the head."""
    scratch_operator: str | None
    """The operator whose kernel that is: its kind and the name of its output; None where no kernel
    asks for scratch memory."""
    kept_bytes: int
    """The part of the tail that holds the sums over weights that kernels keep (fully connected,
    SVDF and LSTM)."""
    tail_32_bytes: int
    """The tail without what is known to be smaller on 32 bits: in the nine networks between what
    the core took and 9 % more."""


SMALLER_BYTES = {"tensor": 12, "operator": 32, "end": 32}
"""By which TfLiteEvalTensor, NodeAndRegistration, and the TfLiteTensor of an input or output are
smaller where pointers have 4 bytes."""


def modelled(
    net: Net,
    core: str,
    host_tail_bytes: int,
    order: Sequence[Tensor] | None = None,
    given: Mapping[Tensor, int] | None = None,
) -> Modelled:
    """`host_tail_bytes`: TFLite Micro's recording allocator's; `order`, `given`: as memory.plan."""
    scratch_sizes = scratch(net, core)
    sum_bytes = sum(
        memory.aligned(size) for op in net.ops for size in _sum_buffers(op, CORES[core])
    )
    head = memory.plan(net, scratch_sizes, order, given).head_bytes
    tail = host_tail_bytes + sum_bytes
    largest, label = 0, None
    for number, sizes in scratch_sizes.items():
        if sum(sizes) > largest:
            op = net.ops[number]
            largest, label = sum(sizes), f"{op.kind} that gives {op.outputs[0].name!r}"
    smaller = _smaller(net, net.tensors() if order is None else order)
    return Modelled(core, head, tail, head + tail, largest, label, sum_bytes, tail - smaller)


def _smaller(net: Net, tensors: Sequence[Tensor]) -> int:
    parts = {"tensor": tensors, "operator": net.ops, "end": [*net.inputs, *net.outputs]}
    return sum(SMALLER_BYTES[name] * len(entries) for name, entries in parts.items())


def scratch(net: Net, core: str) -> dict[int, list[int]]:
    """Number of the operator -> bytes of each buffer that its kernel asks for on the core."""
    unit = CORES[core]
    buffers = memory.reference(net, POINTER_BYTES)
    for number, op in enumerate(net.ops):
        rule = _RULES.get(op.kind)
        if rule is None or op.outputs[0].dtype not in (np.int8, np.int16):
            continue
        sizes = [size for size in rule(op, unit) if size > 0]
        buffers.pop(number, None)
        if sizes:
            buffers[number] = sizes
    return buffers


# --- by operator; `unit` is one of PLAIN, DSP, MVE


def _padding_before(op: Op, axis: int, kernel: int, dilation: int, out: int) -> int:
    """Rows or columns that are padded before the first (ComputePaddingHeightWidth)."""
    if op.options["padding"] != SAME:
        return 0
    stride = op.options["strideH" if axis == 1 else "strideW"]
    reach = (kernel - 1) * dilation + 1
    return int(max((out - 1) * stride + reach - op.taken[0].shape[axis], 0) // 2)


def _dilation(op: Op) -> tuple[int, int]:
    return op.options.get("dilationHFactor", 1), op.options.get("dilationWFactor", 1)


def _padding(op: Op) -> tuple[int, int]:
    _, high, wide, _ = op.taken[1].shape
    _, out_high, out_wide, _ = op.outputs[0].shape
    down, across = _dilation(op)
    return _padding_before(op, 1, high, down, out_high), _padding_before(
        op, 2, wide, across, out_wide
    )


def _convolution(op: Op, unit: str) -> list[int]:
    source, weights, out = op.taken[0], op.taken[1], op.outputs[0]
    if source.dtype == np.int16:
        return [_columns_16(source.shape[3] * weights.shape[1] * weights.shape[2], unit)]
    return [_convolution_8(op, source.shape, weights.shape, out.shape, unit)]


def _columns_16(length: int, unit: str) -> int:
    """Patches of an image as columns: 4 of them with MVE, in whole registers; else 2."""
    return 4 * -(-length // 8) * 8 * 2 if unit == MVE else 2 * length * 2


def _columns_8(length: int, unit: str) -> int:
    """The same of 8 bits, widened to 16 without MVE."""
    return 4 * -(-length // 16) * 16 if unit == MVE else 2 * -(-length // 4) * 4 * 2


def _convolution_8(
    op: Op, source: Sequence[int], weights: Sequence[int], out: Sequence[int], unit: str
) -> int:
    """arm_convolve_wrapper_s8_get_buffer_size; shapes [batch, rows, columns, channels], weights
    [out, rows, columns, in]."""
    _, high, wide, channels_in = weights
    stride = op.options["strideW"]
    padding, channels = _padding(op), source[3]
    if (high, wide, *padding, *_dilation(op)) == (1, 1, 0, 0, 1, 1) and channels == channels_in:
        return 0
    full_size = _columns_8(channels * high * wide, unit)
    one_row = source[1] == 1 and high == 1 and _dilation(op)[1] == 1 and channels == channels_in
    if not one_row or stride * channels % 4 or unit != MVE:
        return full_size
    # Inputs of one row: only windows that reach over its ends are copied (arm_convolve_1_x_n_s8).
    odd = int(math.fmod((out[2] - 1) * stride + wide - source[2], 2))  # signed as in C
    left, right = padding[1], padding[1] + odd
    at_left = max(1, -(-left // stride)) if left else 0
    at_right = max(1, int((right + stride - 1) / stride)) if right else 0
    if at_left + at_right + max(out[2] - at_left - at_right, 0) != out[2]:
        return full_size
    over = (at_right if odd else left) * channels
    return max((wide + left) * channels, (wide - 1) * channels + over)


def _depthwise(op: Op, unit: str) -> list[int]:
    """TFLite Micro asks for none beside activations of 16 bits."""
    source, weights, out = op.taken[0], op.taken[1], op.outputs[0]
    if source.dtype != np.int8:
        return []
    _, high, wide, channels = weights.shape
    if unit == MVE and source.shape[3] == 1 and out.shape[3] > AS_CONVOLUTION_ABOVE:
        turned = (channels, high, wide, 1)
        return [_convolution_8(op, source.shape, turned, out.shape, unit) + weights.size]
    if source.shape[3] != out.shape[3] or source.shape[0] != 1 or _dilation(op) != (1, 1):
        return []
    if unit == MVE:
        return [4 * DEPTHWISE_BLOCK * wide * high]
    small = (high, wide) == (3, 3) and max(_padding(op)) <= 1
    return [source.shape[3] * wide * high * 2] if unit == DSP and not small else []


def _average(op: Op, unit: str) -> list[int]:
    return [4 * op.taken[0].shape[3]] if unit == DSP else []


def _as_1x1(op: Op) -> bool:
    return len(op.outputs[0].shape) > 2 and op.taken[1].shape[-1] % 4 == 0


def _fully_connected(op: Op, unit: str) -> list[int]:
    """The sums over constant weights are kept in the tail (`_sum_buffers`). An operator that runs
    as a 1x1 convolution needs its one multiplier written out for every channel."""
    if op.taken[0].dtype != np.int8:
        return []
    channels = op.outputs[0].shape[-1]
    if _as_1x1(op):
        return [] if op.taken[1].per_channel else [8 * channels]
    return [4 * channels] if unit == MVE and not _constant(op.taken[1:]) else []


def _batch_matmul(op: Op, unit: str) -> list[int]:
    """Sums of as many rows as the output has columns."""
    return [4 * op.outputs[0].shape[-1]] if unit == MVE and op.taken[0].dtype == np.int8 else []


def _svdf(op: Op, unit: str) -> list[int]:
    return memory.svdf(op)


def _lstm(op: Op, unit: str) -> list[int]:
    return [memory.lstm_state_bytes(op)] * 3


def _transpose_conv(op: Op, unit: str) -> list[int]:
    source, weights = op.inputs[2], op.inputs[1]
    assert source is not None and weights is not None
    if source.dtype != np.int8:
        return memory.transpose_conv(op)
    out, high, wide, channels = weights.shape
    down, across = op.options["strideH"], op.options["strideW"]
    if max(down, across) <= 2 and channels > REVERSED_ABOVE:
        return [_columns_8(channels * high * wide, unit), weights.size]
    columns = (source.shape[2] - 1) * across + max(wide, down)
    return [4 * columns * out * max(high, down)]


_RULES: dict[str, Callable[[Op, str], list[int]]] = {
    "AVERAGE_POOL_2D": _average,
    "BATCH_MATMUL": _batch_matmul,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "SVDF": _svdf,
    "TRANSPOSE_CONV": _transpose_conv,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
}


def _sum_buffers(op: Op, unit: str) -> list[int]:
    """Bytes of each buffer of sums over constant weights that a kernel keeps in the tail."""
    if op.kind == "UNIDIRECTIONAL_SEQUENCE_LSTM" and op.outputs[0].dtype in (np.int8, np.int16):
        cell, bias = op.inputs[19], op.inputs[12]
        assert cell is not None and bias is not None
        return [cell.shape[-1] * (4 if op.outputs[0].dtype == np.int8 else 8)] * 8
    if unit != MVE or op.outputs[0].dtype != np.int8:
        return []
    if op.kind == "SVDF":
        return [4 * op.taken[1].shape[0]]
    if op.kind == "FULLY_CONNECTED" and not _as_1x1(op) and _constant(op.taken[1:]):
        return [4 * op.outputs[0].shape[-1]]
    return []


def _constant(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.data is not None for tensor in tensors)
