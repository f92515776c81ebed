"""Nets quantized to integers, and what is expected of them: exact arithmetic, steps, decibels."""

from collections.abc import Iterable, Mapping

import numpy as np

from onmetal.converters.tflite.check import problems
from onmetal.converters.tflite.grid import Activation
from onmetal.converters.tflite.net import Net, Op, Tensor, constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.quantize import observed, quantize
from onmetal.converters.tflite.reference import Exposed
from onmetal.converters.tflite.writing import write
from tests.tflite_kinds import F32, Arrays, Making

Ranges = dict[str, tuple[float, float]]
KERNELS = {"xnnpack": False, "reference": True}
INTEGERS = (np.dtype(np.int8), np.dtype(np.int16))


def calibrated(net: Net, feeds: Iterable[Arrays]) -> Ranges:
    """The least and the greatest value of all that is observed."""
    names = observed(net)
    run = Exposed(net, names).run
    found: Ranges = {}
    for feed in feeds:
        seen = run(feed)
        for name in names:
            low, high = found.get(name, (np.inf, -np.inf))
            array = seen[name]
            found[name] = min(low, float(array.min())), max(high, float(array.max()))
    return found


def outputs(net: Net, feeds: Iterable[Arrays], reference: bool) -> list[Arrays]:
    names = [tensor.name for tensor in net.outputs]
    run = Exposed(net, names, reference).run
    return [{name: array for name, array in run(feed).items() if name in names} for feed in feeds]


def real(tensor: Tensor, integers: np.ndarray) -> np.ndarray:
    """What integers stand for."""
    if tensor.scale is None or tensor.zero_point is None:
        return integers
    shape = [1] * integers.ndim
    if tensor.per_channel:
        shape[tensor.axis] = -1
    scale = tensor.scale.astype(np.float64).reshape(shape)
    found: np.ndarray = (integers - tensor.zero_point.reshape(shape)) * scale
    return found.astype(np.float32)


def exactly(op: Op, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What an integer operator should give: the float one's results of the same numbers, in steps
    of its output, not yet rounded."""
    inputs: list[Tensor | None] = []
    fed, feed = [], {}
    for tensor in op.inputs:
        if tensor is None or tensor.scale is None:
            if tensor is not None and tensor.data is None:
                fed.append(tensor)
                feed[tensor.name] = values[tensor.name]
            inputs.append(tensor)
            continue
        if tensor.data is not None:
            inputs.append(constant(tensor.name, real(tensor, tensor.data), F32))
            continue
        new = next((t for t in inputs if t is not None and t.name == tensor.name), None)
        if new is None:
            new = Tensor(tensor.name, tensor.shape, F32)
            fed.append(new)
            feed[new.name] = real(tensor, values[tensor.name])
        inputs.append(new)
    given = [Tensor(t.name, t.shape, F32 if t.scale is not None else t.dtype) for t in op.outputs]
    options = {name: value for name, value in op.options.items() if name != "potScaleInt16"}
    net = Net(fed, given, [Op(op.kind, inputs, given, options)])
    found = Exposed(net, [t.name for t in given]).run(feed)
    steps = []
    for tensor in op.outputs:
        array = found[tensor.name].astype(np.float64)
        if tensor.scale is not None and tensor.zero_point is not None:
            limits = np.iinfo(tensor.dtype)
            array = array / float(tensor.scale[0]) + int(tensor.zero_point[0])
            array = np.clip(array, limits.min, limits.max)
        steps.append(array)
    return steps


def integer(op: Op) -> bool:
    return (
        any(t.dtype in INTEGERS and t.scale is not None for t in op.taken if t.data is None)
        and op.kind != "DEQUANTIZE"
    )


def steps_off(net: Net, feeds: Iterable[Arrays], reference: bool) -> dict[str, float]:
    """Kind of operator -> how many steps of its output the kernel is off the exact result, at
    worst; for outputs that are no numbers of a scale the share of those that differ."""
    chosen = [op for op in net.ops if integer(op)]
    tensors = dict.fromkeys(
        t.name for op in chosen for t in (*op.taken, *op.outputs) if t.data is None
    )
    run = Exposed(net, list(tensors), reference).run
    worst: dict[str, float] = {}
    for feed in feeds:
        values = run(feed)
        for op in chosen:
            for tensor, exact in zip(op.outputs, exactly(op, values), strict=True):
                found = values[tensor.name].astype(np.float64)
                if tensor.scale is None:
                    off = float(np.mean(found != exact))
                else:
                    off = float(np.abs(found - exact).max(initial=0.0))
                worst[op.kind] = max(worst.get(op.kind, 0.0), off)
    return worst


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal over noise in dB."""
    noise = np.square(wanted.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / max(noise, 1e-300)))


def kinds(net: Net) -> list[str]:
    return [op.kind for op in net.ops]


STEPS: dict[Activation, float] = {"s8": 1.0, "s16": 3.0}
"""What kernels may be off the exact result, in steps of their output: half for the rounding, the
rest for the fixed-point multiplier; with 16 bits also for tables of 513 numbers (EXP, LOG)."""
ROUGH = {("s16", "RESIZE_BILINEAR"): 80.0, ("s16", "RSQRT"): 40.0}
"""Its fractions have 10 bits, whatever the type of the values."""
LEAST_DB: dict[Activation, float] = {"s8": 32.0, "s16": 42.0}
"""Of a convolution and one operator, against float. 8 bits alone give ~ 40 dB over a uniform range,
and 16 bits keep 8-bit weights, each two operators deep."""


# --- 2. the specification, on the written file


def quantized(
    m: Making, activation: Activation = "s8", keep_float: frozenset[str] = frozenset()
) -> Net:
    """By what its samples hold; as it is read back from the file."""
    made = quantize(m.net, calibrated(m.net, m.feeds()), activation, keep_float)
    found = read(write(made))
    assert problems(found) == []
    return found


def called(net: Net, name: str) -> Tensor:
    return next(tensor for tensor in net.tensors() if tensor.name == name)


def maker(net: Net, tensor: Tensor | str) -> Op:
    """Of the tensor itself, or of the float output of that name before its DEQUANTIZE."""
    found = called(net, tensor) if isinstance(tensor, str) else tensor
    op = net.producers()[found]
    return maker(net, op.taken[0]) if op.kind == "DEQUANTIZE" else op


def joined(m: Making, *tensors: Tensor) -> Tensor:
    width = sum(t.shape[-1] for t in tensors)
    return m.op("CONCATENATION", tensors, 1, 4, 4, width, axis=3)


def check_runs(net: Net, made: Net, feeds: list[Arrays], least: float) -> None:
    """In both kernels: finite, as many dB as that."""
    for reference in KERNELS.values():
        wanted, found = (outputs(n, feeds, reference) for n in (net, made))
        for name in wanted[0]:
            left, right = (np.stack([run[name] for run in runs]) for runs in (wanted, found))
            assert np.isfinite(right).all()
            assert sqnr(left, right) >= least, (name, reference)
