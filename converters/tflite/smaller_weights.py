"""Smaller weights in a float graph: float16, or 8 bits with activations quantized at run time."""

from dataclasses import replace

import numpy as np

from onmetal.converters.tflite.grid import rounded
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.specification import WEIGHTED
from onmetal.errors import UnsupportedError

LEAST = 64
"""Constants of fewer numbers stay as they are: an additional tensor takes more than is saved."""
HALF_MOST = float(np.finfo(np.float16).max)


def halved(net: Net) -> Net:
    """Store weights as float16, in half the size; a DEQUANTIZE converts them to float32 when the
    file is opened. An operator with 8-bit weights and float activations keeps its bias, which
    XNNPACK takes in float32 alone.

    Raises UnsupportedError where no weight is large enough, or a weight exceeds float16's range.
    """
    ops: list[Op] = []
    dequantized: dict[Tensor, Tensor] = {}
    for op in net.ops:
        inputs = list(op.inputs)
        for place, tensor in enumerate([] if _in_both(op) else inputs):
            if tensor is None or tensor.data is None or not tensor.is_float or tensor.size < LEAST:
                continue
            if tensor not in dequantized:
                if np.abs(tensor.data).max(initial=0.0) > HALF_MOST:
                    raise UnsupportedError(f"the weight {tensor.name!r} is beyond float16's range")
                half = Tensor(
                    f"{tensor.name}/half",
                    tensor.shape,
                    np.dtype(np.float16),
                    tensor.data.astype(np.float16),
                )
                dequantized[tensor] = Tensor(tensor.name, tensor.shape, tensor.dtype)
                ops.append(Op("DEQUANTIZE", [half], [dequantized[tensor]]))
            inputs[place] = dequantized[tensor]
        ops.append(replace(op, inputs=inputs))
    if not dequantized:
        raise UnsupportedError("it has no weights to store as float16")
    return Net(list(net.inputs), list(net.outputs), ops, net.names)


def _in_both(op: Op) -> bool:
    """Whether it multiplies floats by 8-bit weights."""
    weight = op.inputs[WEIGHTED[op.kind].weight] if op.kind in WEIGHTED else None
    return weight is not None and weight.dtype == np.int8 and op.outputs[0].is_float


def dynamic(net: Net) -> Net:
    """Store weights of CONV_2D and FULLY_CONNECTED in 8 bits, with a scale for each output channel
    of a convolution; their activations are quantized in every inference. No samples are needed.

    Raises UnsupportedError where the graph has no such operator.
    """
    ops, count = [], 0
    for op in net.ops:
        inputs, options = list(op.inputs), op.options
        if op.kind in ("CONV_2D", "FULLY_CONNECTED"):
            rule = WEIGHTED[op.kind]
            source, weight = inputs[rule.taken], inputs[rule.weight]
            assert source is not None and weight is not None
            if weight.data is not None and weight.is_float and source.is_float:
                inputs[rule.weight] = _in_8_bits(weight, rule.axis)
                if op.kind == "FULLY_CONNECTED":
                    options = {**options, "asymmetricQuantizeInputs": True}
                count += 1
        ops.append(replace(op, inputs=inputs, options=options))
    if not count:
        raise UnsupportedError("it has no CONV_2D or FULLY_CONNECTED by constants")
    return Net(list(net.inputs), list(net.outputs), ops, net.names)


def _in_8_bits(weight: Tensor, axis: int | None) -> Tensor:
    assert weight.data is not None
    integers, scales = rounded(weight.data, axis)
    zero = np.zeros(scales.shape, np.int64)
    return Tensor(weight.name, weight.shape, integers.dtype, integers, scales, zero, axis or 0)
