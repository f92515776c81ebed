"""Smaller weights in a float graph: halves, or 8 bits beside activations quantized as they come."""

from dataclasses import replace

import numpy as np

from onmetal.converters.tflite.grid import rounded
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.specification import WEIGHTED
from onmetal.errors import UnsupportedError

LEAST = 64
"""Constants of fewer numbers stay as they are: their bookkeeping is larger than what they save."""
HALF_MOST = float(np.finfo(np.float16).max)


def halved(net: Net) -> Net:
    """Weights are stored as float16 and become float32 where the file is opened: half the size.

    Raises UnsupportedError where nothing is large enough, or a weight is beyond what float16 holds.
    """
    ops: list[Op] = []
    made: dict[Tensor, Tensor] = {}
    for op in net.ops:
        inputs = list(op.inputs)
        for place, tensor in enumerate(inputs):
            if tensor is None or tensor.data is None or not tensor.is_float or tensor.size < LEAST:
                continue
            if tensor not in made:
                if np.abs(tensor.data).max(initial=0.0) > HALF_MOST:
                    raise UnsupportedError(f"the weight {tensor.name!r} is beyond float16's range")
                half = Tensor(
                    f"{tensor.name}/half",
                    tensor.shape,
                    np.dtype(np.float16),
                    tensor.data.astype(np.float16),
                )
                made[tensor] = Tensor(tensor.name, tensor.shape, tensor.dtype)
                ops.append(Op("DEQUANTIZE", [half], [made[tensor]]))
            inputs[place] = made[tensor]
        ops.append(replace(op, inputs=inputs))
    if not made:
        raise UnsupportedError("it has no weights to store as float16")
    return Net(list(net.inputs), list(net.outputs), ops, net.names)


def dynamic(net: Net) -> Net:
    """Weights of CONV_2D and FULLY_CONNECTED in 8 bits, a scale for each output of a convolution;
    their activations are quantized anew in every inference. No samples are needed.

    Raises UnsupportedError where there is none of them.
    """
    ops, count = [], 0
    for op in net.ops:
        inputs, options = list(op.inputs), op.options
        if op.kind in ("CONV_2D", "FULLY_CONNECTED"):
            rule = WEIGHTED[op.kind]
            taken, weight = inputs[rule.taken], inputs[rule.weight]
            assert taken is not None and weight is not None
            if weight.data is not None and weight.is_float and taken.is_float:
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
