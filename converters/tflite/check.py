"""Checks a TFLite graph against the specification, because runtimes compute wrong results for many
violations without an error.

LiteRT, its reference kernels, XNNPACK and TFLite Micro each accept different mistakes: a bias in
another scale, a pass-through operator that changes the scale, a weight with a zero point. Every
violation is reported as a sentence that names the operator and the tensor.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from onmetal.converters.tflite.net import SAME, Net, Op, Tensor
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.specification import FIXED, FREE, SHARED, WEIGHTED
from onmetal.converters.tflite.versions import version

_INTEGERS = {np.dtype(np.int8): "s8", np.dtype(np.int16): "s16"}
MOST_SCALE = 1e31
"""The largest scale of an activation: kernels shift it by up to 20 bits in float32, which must not
overflow."""
MOST_GAIN = 256.0
"""XNNPACK multiplies an accumulator by less than this (xnn_define_convolution_2d)."""


def problems(net: Net) -> list[str]:
    """The violations as sentences, in the order of the operators; empty if there are none."""
    sentences = list(_wiring_problems(net))
    checked: set[Tensor] = set()
    broken: set[Tensor] = set()
    for op in net.ops:
        label = f"{op.kind} that gives {op.outputs[0].name!r}" if op.outputs else op.kind
        for tensor in dict.fromkeys((*op.taken, *op.outputs)):
            if tensor in checked:
                continue
            checked.add(tensor)
            if violations := list(_parameter_problems(tensor)):
                broken.add(tensor)
                sentences += [f"{label}: {violation}" for violation in violations]
        if not broken & {
            *op.taken,
            *op.outputs,
        }:  # an operator's checks compute with its tensors' scales
            sentences += [f"{label}: {violation}" for violation in _operator_problems(op)]
    return sentences


def file(path: str) -> list[str]:
    """The problems of a file; raises UsageError where it is damaged."""
    return problems(read(Path(path)))


def _wiring_problems(net: Net) -> Iterator[str]:
    available = {tensor for tensor in net.inputs}
    for op in net.ops:
        for tensor in op.taken:
            if tensor.data is None and not tensor.variable and tensor not in available:
                yield f"{op.kind} takes {tensor.name!r}, which nothing before it gives"
        for tensor in op.outputs:
            if tensor in available:
                yield f"{tensor.name!r} is made twice"
            available.add(tensor)
    for tensor in net.outputs:
        if tensor not in available:
            yield f"the output {tensor.name!r} is made by nothing"


def _parameter_problems(tensor: Tensor) -> Iterator[str]:
    """Violations in the shape, scale and zero point of one tensor."""
    if any(size < 0 for size in tensor.shape):
        yield f"{tensor.name!r} has the shape {list(tensor.shape)}"
    if tensor.scale is None:
        return
    scale, zero = tensor.scale, tensor.zero_point
    assert zero is not None
    if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        yield f"{tensor.name!r} has a scale that is not a positive number"
    if tensor.per_channel:
        if not 0 <= tensor.axis < len(tensor.shape):
            yield f"{tensor.name!r} has scales along axis {tensor.axis}, which it has not"
        elif len(scale) != tensor.shape[tensor.axis]:
            yield (
                f"{tensor.name!r} has {len(scale)} scales for {tensor.shape[tensor.axis]} channels"
            )
    if tensor.dtype.kind in "iu" and tensor.dtype.itemsize <= 2:
        limits = np.iinfo(tensor.dtype)
        if np.any(zero < limits.min) or np.any(zero > limits.max):
            yield f"{tensor.name!r} has a zero point outside of {tensor.dtype}"
        if np.any(scale > MOST_SCALE):
            yield f"{tensor.name!r} has the scale {scale.max():.3g}, which kernels cannot shift"
        if tensor.dtype == np.int16 and np.any(zero != 0):
            yield f"{tensor.name!r} is int16, whose zero point must be 0"
    elif tensor.dtype.kind == "i" and np.any(zero != 0):
        yield f"{tensor.name!r} is a bias, whose zero point must be 0"


def _operator_problems(op: Op) -> Iterator[str]:
    if op.kind in WEIGHTED:
        violations = list(_weight_problems(op))
        yield from violations
        if violations:
            return
    yield from _shape_problems(op)
    if op.kind not in WEIGHTED and op.kind in _CALCULATES:
        violations = list(_type_problems(op))
        yield from violations
        if violations:
            return
    inputs = [t for t in op.taken if t.scale is not None and t.dtype in _INTEGERS]
    outputs = [t for t in op.outputs if t.dtype in _INTEGERS and t.scale is not None]
    if not outputs or op.kind in ("QUANTIZE", "CAST"):
        return
    if any(t.per_channel for t in outputs):
        yield "its output has a scale for each channel; activations have one"
    if op.kind in SHARED and op.kind not in ("SELECT_V2",):
        for tensor in inputs:
            if not _same_scale(tensor, outputs[0]):
                yield (
                    f"{tensor.name!r} and its output must share scale and zero point, "
                    f"{_scale_and_zero(tensor)} against {_scale_and_zero(outputs[0])}"
                )
    grid = FIXED[_INTEGERS[outputs[0].dtype]].get(op.kind)
    if grid is not None and not (
        math.isclose(_scale(outputs[0]), grid[0], rel_tol=1e-4) and _zero(outputs[0]) == grid[1]
    ):
        yield f"its output has {_scale_and_zero(outputs[0])}, must have {grid[0]:.6g} and {grid[1]}"
    if op.kind in ("ADD", "SUB") and inputs:
        for tensor in inputs:
            ratio = _scale(tensor) / _scale(outputs[0])
            if not 2.0**-10 * 0.999 <= ratio < MOST_GAIN:
                yield (
                    f"the scale of {tensor.name!r} is {ratio:.3g} times its output's, which "
                    "kernels cannot compute with"
                )
    if op.kind == "SQUARED_DIFFERENCE" and inputs:
        gain = max(map(_scale, inputs)) ** 2 / _scale(outputs[0])
        if gain >= MOST_GAIN:
            yield f"its squares are scaled up by {gain:.3g} to its output, which kernels cannot do"
    if op.kind == "MUL" and len(inputs) == 2:
        gain = _scale(inputs[0]) * _scale(inputs[1]) / _scale(outputs[0])
        most = MOST_GAIN if outputs[0].dtype == np.int8 else 1.0
        if gain > most * 1.001 or (gain >= most and most > 1):
            yield f"its product is scaled up by {gain:.3g} to its output, which kernels cannot do"
    if op.version is not None and op.version < version(op):
        yield f"it is marked version {op.version} and needs {version(op)}"


_CALCULATES = (SHARED | FREE | {kind for kinds in FIXED.values() for kind in kinds}) - {
    "ARG_MAX",
    "ARG_MIN",
    "EQUAL",
    "GREATER",
    "GREATER_EQUAL",
    "LESS",
    "LESS_EQUAL",
    "NOT_EQUAL",
}


def _type_problems(op: Op) -> Iterator[str]:
    """Violations where integer inputs and outputs have different types or no scale."""
    numbers = [t for t in (*op.taken, *op.outputs) if t.is_float or t.dtype in _INTEGERS]
    if not any(t.scale is not None for t in numbers):
        return  # floats, or whole numbers that stand for themselves
    for tensor in numbers:
        if tensor.dtype != numbers[0].dtype:
            yield f"it computes with {numbers[0].dtype} and {tensor.dtype} ({tensor.name!r})"
            return
        if tensor.scale is None and tensor.dtype in _INTEGERS:
            yield f"{tensor.name!r} is {tensor.dtype} without a scale"
            return


def _weight_problems(op: Op) -> Iterator[str]:
    rule = WEIGHTED[op.kind]
    if len(op.inputs) <= rule.weight:
        yield "it has no weights"
        return
    source, weight, out = op.inputs[rule.taken], op.inputs[rule.weight], op.outputs[0]
    bias = op.inputs[rule.bias] if len(op.inputs) > rule.bias else None
    if source is None or weight is None:
        yield "it has no input or no weights"
        return
    if weight.dtype == np.int8 and weight.scale is not None:
        if weight.zero_point is not None and np.any(weight.zero_point != 0):
            yield f"the weight {weight.name!r} has a zero point, must have 0"
        if weight.data is not None and weight.data.size and int(weight.data.min()) < -127:
            yield f"the weight {weight.name!r} holds -128; the least is -127"
        axis = 3 if op.kind == "DEPTHWISE_CONV_2D" else 0
        if weight.per_channel and weight.axis != axis:
            yield f"the weight {weight.name!r} has its scales along axis {weight.axis}, not {axis}"
    elif weight.dtype == np.int8:
        yield f"the weight {weight.name!r} is int8 without a scale"
    if source.dtype not in _INTEGERS:
        return
    if weight.dtype != np.int8 or out.dtype != source.dtype:
        yield f"it takes {source.dtype} by {weight.dtype} and gives {out.dtype}"
        return
    if source.scale is None or out.scale is None or weight.scale is None:
        yield "it computes with integers that have no scale"
        return
    products = float(source.scale[0]) * weight.scale.astype(np.float64)
    gain = float(products.max()) / float(out.scale[0])
    if source.dtype == np.int16 and weight.data is not None:
        # The sum, rescaled, must fit in 32 bits, or it wraps around.
        axes = tuple(i for i in range(weight.data.ndim) if i != (rule.axis or 0))
        sums = np.abs(weight.data.astype(np.float64)).sum(axis=axes) * 32768
        gain *= max(1.0, float(sums.max(initial=0.0)) * float(gain) / 2**31) if gain > 1 else 1.0
    if gain >= MOST_GAIN:
        yield f"its products are scaled up by {gain:.3g} to its output, which kernels cannot do"
    if bias is None:
        return
    bias_dtype = np.int32 if source.dtype == np.int8 else np.int64
    if bias.dtype != bias_dtype and not (bias.dtype == np.int32 and source.dtype == np.int16):
        yield f"the bias {bias.name!r} is {bias.dtype}, must be {np.dtype(bias_dtype)}"
    elif bias.scale is None or bias.scale.size != products.size:
        count = 0 if bias.scale is None else bias.scale.size
        yield f"the bias {bias.name!r} has {count} scales, its weight {products.size}"
    elif not np.allclose(bias.scale, products, rtol=1e-3, atol=0):
        yield (
            f"the bias {bias.name!r} has another scale than input times weight "
            f"({float(bias.scale[0]):.6g} against {products[0]:.6g})"
        )


def _shape_problems(op: Op) -> Iterator[str]:
    """Violations in the shapes of the most frequent operators."""
    out = op.outputs[0] if op.outputs else None
    if out is None or any(-1 in tensor.shape for tensor in op.taken):
        return
    if op.kind in ("RESHAPE", "SQUEEZE", "EXPAND_DIMS") and op.taken[0].size != out.size:
        yield f"{list(op.taken[0].shape)} has other numbers than {list(out.shape)}"
    if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        yield from _window_problems(op, op.taken[1].shape[1:3])
        place = 3 if op.kind == "DEPTHWISE_CONV_2D" else 0
        depth = op.taken[1].shape[-1] if op.kind == "CONV_2D" else 1
        if not depth or op.taken[0].shape[-1] % depth:
            yield f"its weights have {depth} channels, its input {op.taken[0].shape[-1]}"
        if op.taken[1].shape[place] != out.shape[-1]:
            yield f"it gives {out.shape[-1]} channels by {op.taken[1].shape[place]}"
        if len(op.taken) > 2 and op.taken[2].size != out.shape[-1]:
            yield f"it gives {out.shape[-1]} channels by {op.taken[2].size} biases"
    if op.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        kernel = (op.options["filterHeight"], op.options["filterWidth"])
        yield from _window_problems(op, kernel)
    if op.kind == "CONCATENATION":
        axis = op.options["axis"] % max(1, len(out.shape))
        if sum(tensor.shape[axis] for tensor in op.taken) != out.shape[axis]:
            yield f"its inputs do not add up to {list(out.shape)} along axis {axis}"
    if op.kind == "FULLY_CONNECTED" and len(op.taken[1].shape) == 2:
        outputs, inputs = op.taken[1].shape
        if inputs and op.taken[0].size % inputs:
            yield f"{list(op.taken[0].shape)} cannot be multiplied by {list(op.taken[1].shape)}"
        elif out.shape and out.shape[-1] != outputs:
            yield f"it gives {list(out.shape)} by {list(op.taken[1].shape)}"


def _window_problems(op: Op, kernel: tuple[int, ...]) -> Iterator[str]:
    input_shape, output_shape = op.taken[0].shape, op.outputs[0].shape
    if len(input_shape) != 4 or len(output_shape) != 4:
        yield (
            f"it takes {list(input_shape)} and gives {list(output_shape)}; both must have four axes"
        )
        return
    for axis, side in enumerate(("H", "W")):
        stride = op.options[f"stride{side}"]
        if stride < 1:
            yield f"it has a stride of {stride}"
            continue
        reach = (kernel[axis] - 1) * op.options.get(f"dilation{side}Factor", 1) + 1
        size = input_shape[1 + axis]
        same = op.options["padding"] == SAME
        expected = -(-size // stride) if same else (size - reach) // stride + 1
        if output_shape[1 + axis] != expected:
            yield f"it gives {list(output_shape)} where {expected} is right on axis {1 + axis}"


def _scale(tensor: Tensor) -> float:
    assert tensor.scale is not None
    return float(tensor.scale[0])


def _zero(tensor: Tensor) -> int:
    assert tensor.zero_point is not None
    return int(tensor.zero_point[0])


def _same_scale(left: Tensor, right: Tensor) -> bool:
    return math.isclose(_scale(left), _scale(right), rel_tol=1e-5) and _zero(left) == _zero(right)


def _scale_and_zero(tensor: Tensor) -> str:
    return f"{_scale(tensor):.6g} and {_zero(tensor)}"
