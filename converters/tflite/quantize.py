"""Quantizes a float TFLite graph by TFLite's specification, whose rules are in `specification`.

Activations are int8 (asymmetric) or int16 (zero point 0), weights int8 in [-127, 127], biases int32
(int64 beside int16). Operators without an integer kernel stay float, between DEQUANTIZE and
QUANTIZE.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onmetal.converters import decoding, unlike
from onmetal.converters.tflite.grid import Activation, Grid, rounded
from onmetal.converters.tflite.integer_operators import (
    has_integer_kernel,
    integer_operators,
    multiplies,
)
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.operands import activations, results
from onmetal.converters.tflite.roles import unlike_step
from onmetal.converters.tflite.scales import Scales
from onmetal.converters.tflite.specification import BIAS_MOST, SHARED, WEIGHTED
from onmetal.ranges import Range

WIDEST_MASK: dict[Activation, float] = {"s8": 2.0, "s16": 32.0}
"""A mask that is added to attention's scores may be this many times as wide as the scores and still
share a grid with them."""
SELECTORS = ("NON_MAX_SUPPRESSION_V4", "NON_MAX_SUPPRESSION_V5")
DETECTION = "TFLite_Detection_PostProcess"
INT8, INT16 = np.dtype(np.int8), np.dtype(np.int16)


def quantize(
    net: Net,
    ranges: Mapping[str, Range],
    activation: Activation = "s8",
    keep_float: frozenset[str] = frozenset(),
    extremes: Mapping[str, Range] | None = None,
) -> Net:
    """A new, quantized graph; its inputs and outputs stay float.

    `ranges`: name of a tensor -> (low, high), finite; a tensor without one stays float.
    `keep_float`: names of first outputs of operators that must stay float.
    `extremes`: the range of all values of each tensor, where `ranges` may be narrower; empty where
    the scales are the model's own and must not change.
    Raises UnsupportedError where nothing can be quantized.
    """
    if extremes is None:
        extremes = ranges
    steps, outputs = [unlike_step(op, extremes) for op in net.ops], [t.name for t in net.outputs]
    floats = unlike.stay_float(steps, outputs, extremes, WIDEST_MASK[activation])
    floats |= decoding.post_processing(map(_decoding_node, net.ops))
    return _Quantizer(net, ranges, activation, keep_float | floats).quantized()


def _decoding_node(op: Op) -> decoding.Node:
    """What an operator does after the last products. ArgMax and TopK are not among those that
    select: TFLite computes both in 8 bits, as exactly as their inputs are."""
    return decoding.Node(
        op.outputs[0].name,
        [tensor.name for tensor in op.taken],
        [tensor.name for tensor in op.outputs],
        op.kind in (*WEIGHTED, "BATCH_MATMUL"),
        op.kind in SELECTORS or op.custom == DETECTION,
    )


def products(
    net: Net, ranges: Mapping[str, Range], activation: Activation = "s8"
) -> tuple[list[Op], frozenset[str]]:
    """-> the integer operators that multiply by weights, or two tensors; and the names of the first
    outputs of all integer operators. Raises UnsupportedError where there are none."""
    operators = integer_operators(net, ranges, activation, frozenset())
    ordered = [op for op in net.ops if op in operators]
    return [op for op in ordered if multiplies(op)], frozenset(op.outputs[0].name for op in ordered)


def observed(net: Net) -> list[str]:
    """Names of the tensors whose ranges are needed: computed floats that an operator with an
    integer kernel reads or writes."""
    names: dict[str, None] = {}
    for op in net.ops:
        if has_integer_kernel(op, "s8") or has_integer_kernel(op, "s16"):
            for tensor in (*activations(op), *results(op)):
                if tensor.data is None:
                    names[tensor.name] = None
    return list(names)


class _Quantizer:
    """Writes the graph with its chosen operators in integers."""

    def __init__(
        self,
        net: Net,
        ranges: Mapping[str, Range],
        activation: Activation,
        keep_float: frozenset[str],
    ) -> None:
        self.net, self.activation = net, activation
        self.dtype = INT8 if activation == "s8" else INT16
        self.integer = integer_operators(net, ranges, activation, keep_float)
        self.scales = Scales(net, self.integer, ranges, activation)
        self.ops: list[Op] = []
        self.integers: dict[Tensor, Tensor] = {}
        """Float tensor -> its integer form."""
        self.operands: dict[tuple[Tensor, float, int], Tensor] = {}
        """Constants in integers, by their values and their grid."""
        self.named = {
            tensor.name: 1
            for op in net.ops
            if op not in self.integer
            for tensor in op.taken
            if tensor.data is not None
        }
        """Name of a constant -> how many tensors have a form of it; one that stays float keeps the
        name."""
        self.floats: dict[Tensor, Tensor] = {tensor: tensor for tensor in net.inputs}

    def quantized(self) -> Net:
        for op in self.net.ops:
            if op in self.integer:
                self._integer(op)
            else:
                inputs = [t if t is None else self._float(t) for t in op.inputs]
                self.ops.append(replace(op, inputs=inputs))
                for tensor in op.outputs:
                    self.floats[tensor] = tensor
        outputs = [self._float(tensor) for tensor in self.net.outputs]
        return Net(list(self.net.inputs), outputs, self.ops, self.net.names)

    def _float(self, tensor: Tensor) -> Tensor:
        if tensor.data is not None or not tensor.is_float:
            return tensor
        if tensor not in self.floats:
            # The float tensor keeps its name; the integer one is called after it.
            self.ops.append(Op("DEQUANTIZE", [self.integers[tensor]], [tensor]))
            self.floats[tensor] = tensor
        return self.floats[tensor]

    def _tensor(self, tensor: Tensor, scale: float, zero_point: int, name: str) -> Tensor:
        return Tensor(
            name,
            tensor.shape,
            self.dtype,
            scale=np.array([scale], np.float32),
            zero_point=np.array([zero_point], np.int64),
        )

    def _quantized(self, tensor: Tensor) -> Tensor:
        """The integer form of a tensor that an integer operator reads."""
        if tensor.data is not None:
            return self._operand(tensor)
        if tensor not in self.integers:
            grid = self.scales.grids[tensor]
            new = self._tensor(tensor, grid.scale, grid.zero_point, f"{tensor.name}/quantized")
            self.ops.append(Op("QUANTIZE", [self.floats[tensor]], [new]))
            self.integers[tensor] = new
        return self.integers[tensor]

    def _name(self, proposed: str) -> str:
        """A name of its own for each form of a constant that several operators take."""
        self.named[proposed] = self.named.get(proposed, 0) + 1
        count = self.named[proposed]
        return proposed if count == 1 else f"{proposed}.{count}"

    def _operand(self, tensor: Tensor, grid: Grid | None = None) -> Tensor:
        """The integer form of a constant operand; values beyond the grid saturate."""
        assert tensor.data is not None
        grid = grid or self.scales.operand(tensor)
        key = (tensor, grid.scale, grid.zero_point)
        if key in self.operands:
            return self.operands[key]
        limits = np.iinfo(self.dtype)
        integers = np.round(tensor.data.astype(np.float64) / grid.scale) + grid.zero_point
        new = self._tensor(tensor, grid.scale, grid.zero_point, f"{tensor.name}/quantized")
        new.data = np.clip(integers, limits.min, limits.max).astype(self.dtype)
        new.name = self._name(new.name)
        self.operands[key] = new
        return new

    def _integer(self, op: Op) -> None:
        if op.kind in WEIGHTED:
            inputs = self._weighted(op)
        else:
            shared = (
                self.scales.grids[results(op)[0]] if op.kind in SHARED and results(op) else None
            )
            inputs = [
                t
                if t is None or not t.is_float
                else self._operand(t, shared or self.scales.term(op, t))
                if t.data is not None
                else self._quantized(t)
                for t in op.inputs
            ]
        outputs = [self._output(tensor) if tensor.is_float else tensor for tensor in op.outputs]
        options = dict(op.options)
        if op.kind in ("ADD", "SUB") and self.activation == "s16":
            options["potScaleInt16"] = False
        self.ops.append(Op(op.kind, inputs, outputs, options))
        for tensor, new in zip(op.outputs, outputs, strict=True):
            if not tensor.is_float:
                self.floats[tensor] = tensor
            elif tensor in self.scales.apart:
                grid = self.scales.grids[tensor]
                rescaled = self._tensor(tensor, grid.scale, grid.zero_point, f"{new.name}/rescaled")
                self.ops.append(Op("QUANTIZE", [new], [rescaled]))
                self.integers[tensor] = rescaled
            else:
                self.integers[tensor] = new

    def _output(self, tensor: Tensor) -> Tensor:
        scale, zero_point = self.scales.output(tensor)
        return self._tensor(tensor, scale, zero_point, f"{tensor.name}/quantized")

    def _weighted(self, op: Op) -> list[Tensor | None]:
        rule = WEIGHTED[op.kind]
        inputs = list(op.inputs)
        source, weight = inputs[rule.taken], inputs[rule.weight]
        assert source is not None and weight is not None and weight.data is not None
        quantized_source = self._quantized(source)
        assert quantized_source.scale is not None
        bias = inputs[rule.bias] if len(inputs) > rule.bias else None
        channels = op.outputs[0].shape[-1]
        offsets = np.zeros(channels) if bias is None else np.asarray(bias.data, np.float64)
        scale_in = float(quantized_source.scale[0])
        most = BIAS_MOST[self.activation]
        integers, scales = rounded(weight.data, rule.axis, np.abs(offsets) / most / scale_in)
        inputs[rule.taken] = quantized_source
        inputs[rule.weight] = Tensor(
            self._name(weight.name),
            weight.shape,
            INT8,
            integers,
            scales,
            np.zeros(scales.shape, np.int64),
            rule.axis or 0,
        )
        products = (scale_in * scales.astype(np.float64)).astype(np.float32)
        wide = np.dtype(np.int32 if self.activation == "s8" else np.int64)
        stored = np.round(offsets / products.astype(np.float64)).astype(wide)
        name = bias.name if bias is not None else f"{weight.name}/bias"
        bias_integers = Tensor(
            self._name(name),
            (channels,),
            wide,
            stored,
            products,
            np.zeros(products.shape, np.int64),
        )
        inputs[rule.bias :] = [bias_integers]
        return inputs
