"""Writes a QDQ graph: a float graph, the ranges of its tensors and a format -> standard ONNX.

Where an operator runs in 8 bits, its output tensor's name is given to the dequantized values, so
that every consumer reads the values after rounding, and tools can compare the tensor with the float
graph by name. The output of an operator in float keeps its name. New tensors get short, numbered
names (`@7.quantized`), because exporters' names can take more bytes than the weights.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from msgspec import Struct
from onnx import helper, numpy_helper

from onmetal.calibration.placement import MOVERS, PAIRED, WEIGHTED, Placement, activations, result
from onmetal.converters.onnx import rules
from onmetal.converters.onnx.graph import Graph, attribute
from onmetal.errors import UnsupportedError
from onmetal.ranges import Grid, Range
from onmetal.runtimes import wrong_in_8_bits
from onmetal.targets import Format

VERSION = 1
TINY = float(np.finfo(np.float32).tiny)
HUGE = 1e30
BIAS_MOST = 2**30
"""The accumulator begins with the bias: half of its 32 bits' range is left to the products, room
for 33,000 of them."""
Key = str | tuple[str, ...]
"""A tensor's name; or, of a weight or a bias, its name and the name of the node that uses it, since
each such node has a scale of its own for it."""
_DTYPES = {"u8": np.dtype(np.uint8), "s8": np.dtype(np.int8)}


class Scale(Struct, frozen=True):
    """real = scale * (integer - zero_point)."""

    scale: np.ndarray
    """float32, scalar or [channels]."""
    zero_point: np.ndarray
    """Of the integers' dtype, shaped as `scale`."""
    axis: int | None = None


def activation_grid(form: Format) -> Grid:
    if form.activation_symmetric:
        return Grid(254, True)
    return Grid(255, False)


def activation_scale(bounds: Range, form: Format) -> Scale:
    """Asymmetric: the range, which holds zero, on 255 steps; symmetric: [-127, 127] steps.

    A range of nothing but zero gets the scale 1. (Jacob et al., 2018, arXiv:1712.05877.)
    """
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    if not np.isfinite(high - low):
        raise UnsupportedError(f"a range of {low:g} to {high:g} cannot be represented in 8 bits")
    dtype = _DTYPES[form.activation]
    least = int(np.iinfo(dtype).min)
    if form.activation_symmetric:
        scale = np.float32(max(-low, high) / 127)
        zero = 0 if form.activation == "s8" else 128
    else:
        scale = np.float32((high - low) / 255)
        zero = 0
    if not scale > TINY:
        scale = np.float32(1)
    if not form.activation_symmetric:
        zero = least + int(np.clip(np.round(-low / float(scale)), 0, 255))
    return Scale(np.asarray(scale), np.asarray(zero, dtype))


def quantize_weight(
    weight: np.ndarray, form: Format, axis: int | None, least_scale: np.ndarray | None = None
) -> tuple[np.ndarray, Scale]:
    """Round a weight to its format: largest magnitude (or range) on all steps of each channel.

    `axis`: None gives one scale. `least_scale` [channels]: scales are at least this, so that an
    int32 bias fits.
    """
    most = 2 ** (form.weight_bits - 1) - 1
    dtype = _DTYPES[form.weight]
    axes = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    high = weight.max(axis=axes, initial=0.0).astype(np.float64)
    low = weight.min(axis=axes, initial=0.0).astype(np.float64)
    if form.weight_symmetric:
        scale = np.maximum(-low, high) / most
        zero = np.zeros_like(scale)
    else:
        scale = (high - low) / (2 * most + 1)
        zero = np.round(-low / np.where(scale > TINY, scale, 1.0))
        zero -= most + 1 if form.weight == "s8" else 0
    if form.weight_symmetric and form.weight == "u8":
        zero += most + 1
    if least_scale is not None:
        scale = np.maximum(scale, least_scale)
    scale = np.where(scale > TINY, scale, 1.0).astype(np.float32)
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    wide, offset = scale.reshape(shape).astype(np.float64), zero.reshape(shape)
    if form.weight_symmetric:
        bounds = offset - most, offset + most
    else:
        first = -(most + 1) if form.weight == "s8" else 0
        bounds = np.asarray(first), np.asarray(first + 2 * most + 1)
    integers = np.clip(np.round(weight.astype(np.float64) / wide) + offset, *bounds)
    return integers.astype(dtype), Scale(scale, zero.astype(dtype), axis)


def channel_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """The axis of a weight's output channels; None where one scale for each channel is not
    possible."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if rank == 2 else None


def quantize(
    model: onnx.ModelProto, form: Format, placement: Placement, ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """The QDQ graph. `ranges`: tensor -> (low, high) of every tensor of `placement.groups()`.

    Raises UnsupportedError where a range is missing. The same input gives the same bytes.
    """
    return _Writer(model, form, placement, ranges).written()


class _Writer:
    """Writes one QDQ graph; the float graph is only read."""

    def __init__(
        self,
        model: onnx.ModelProto,
        form: Format,
        placement: Placement,
        ranges: Mapping[str, Range],
    ) -> None:
        self.graph, self.form, self.placement = Graph(model), form, placement
        self.scales = {
            root: activation_scale(self._joined_range(names, ranges), form)
            for root, names in placement.groups().items()
        }
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.dequantized: dict[str, str] = {}
        """Tensor -> the name of its dequantized values, which 8-bit operators read."""
        self.numbers: dict[Key, int] = {}
        """Quantized tensor, weight or bias -> the number in the names that are made for it."""
        self.mark = self.graph.mark
        self.float_only = frozenset(
            name
            for exceptions in wrong_in_8_bits().values()
            for name in rules.kept_float(self.graph, exceptions)
            if name not in placement.integer
        )
        """Names of nodes that some runtime computes wrong in 8 bits, and that are left in float."""
        self.followers = {
            follower: next(n for n in self.graph.nodes if n.name == name)
            for name, follower in placement.after.items()
        }

    def _joined_range(self, names: list[str], ranges: Mapping[str, Range]) -> Range:
        member_ranges = [self._range(name, ranges) for name in names]
        return min(low for low, _ in member_ranges), max(high for _, high in member_ranges)

    def _range(self, name: str, ranges: Mapping[str, Range]) -> Range:
        """The tensor's own range or, where it has none and its producer only moves values, that of
        the producer's input."""
        while name not in ranges and name in self.graph.producer:
            maker = self.graph.producer[name]
            if maker.op_type not in self.form.same_scale:
                break
            name = maker.input[0]
        if name not in ranges:
            raise UnsupportedError(f"the range of the tensor {name!r} is not known")
        return ranges[name]

    def written(self) -> onnx.ModelProto:
        for name in self.graph.inputs:
            self._after_float(name)
        for node in self.graph.nodes:
            if node.name in self.followers:
                continue  # written with the node that it belongs to
            if node.name in self.placement.integer:
                self._integer(node)
            else:
                self.nodes.append(node)
                for name in node.output:
                    self._after_float(name)
        return self._model()

    def _model(self) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        used = {name for node in self.nodes for name in node.input} | self.graph.inner
        used |= set(self.graph.outputs)
        initializers = [t for t in model.graph.initializer if t.name in used]
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(initializers)
        model.graph.initializer.extend(t for n, t in self.constants.items() if n in used)
        return model

    # --- tensors

    def _after_float(self, name: str) -> None:
        """Quantize and dequantize a tensor that is computed in float and read in 8 bits."""
        if name in self.placement.roots:
            self.dequantized[name] = self._name(name, "dequantized")
            self._qdq(name, self._quantized_source(name), self.dequantized[name])

    def _quantized_source(self, name: str) -> str:
        """The tensor that QuantizeLinear reads. ONNX Runtime turns every operator that lies between
        DequantizeLinear and QuantizeLinear into an 8-bit one. An operator that must stay float is
        therefore followed by a Sum of one operand, which ONNX Runtime leaves in float."""
        maker = self.graph.producer.get(name)
        if maker is None or maker.name not in self.float_only:
            return name
        copy = self._name(name, "float")
        self.nodes.append(helper.make_node("Sum", [name], [copy], self._name(name, "Sum")))
        return copy

    def _name(self, key: Key, suffix: str) -> str:
        number = self.numbers.setdefault(key, len(self.numbers))
        return f"{self.mark}{number}.{suffix}"

    def _qdq(self, name: str, source: str, target: str) -> None:
        """QuantizeLinear and DequantizeLinear, in the scale of `name`."""
        root = self.placement.roots[name]
        scale = [
            self._constant(self._name(root, "scale"), self.scales[root].scale),
            self._constant(self._name(root, "zero_point"), self.scales[root].zero_point),
        ]
        quantized = self._name(name, "quantized")
        for kind, input_name, output_name in (
            ("QuantizeLinear", source, quantized),
            ("DequantizeLinear", quantized, target),
        ):
            label = self._name(name, kind)
            self.nodes.append(helper.make_node(kind, [input_name, *scale], [output_name], label))

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def _stored(self, name: Key, integers: np.ndarray, scale: Scale) -> str:
        """A constant in integers with the DequantizeLinear that gives its values."""
        target = self._name(name, "dequantized")
        if self._name(name, "integers") in self.constants:
            return target
        inputs = [
            self._constant(self._name(name, "integers"), integers),
            self._constant(self._name(name, "scale"), scale.scale),
            self._constant(self._name(name, "zero_point"), scale.zero_point),
        ]
        axis = {} if scale.axis is None else {"axis": scale.axis}
        label = self._name(name, "DequantizeLinear")
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [target], label, **axis))
        return target

    # --- nodes

    def _integer(self, node: onnx.NodeProto) -> None:
        computed = set(activations(node, self.graph))
        inputs = [self._input_name(name) if name in computed else name for name in node.input]
        if node.op_type in WEIGHTED:
            inputs = self._weights(node, inputs)
        elif node.op_type in PAIRED:
            inputs = [
                self._operand(old) if old and old not in computed else new
                for old, new in zip(node.input, inputs, strict=True)
            ]
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(inputs)
        results = result(node, self.graph, self.placement.after)
        follower = self.placement.after.get(node.name)
        last = next((n for n in self.graph.nodes if n.name == follower), None)
        if last is not None and self._redundant(last, results[0]):
            last = None
        outputs = [self._output_name(name) for name in results]
        del copy.output[:]
        if last is None:
            copy.output.extend(output for output, _ in outputs)
            self.nodes.append(copy)
        else:
            copy.output.extend(node.output)
            relu = onnx.NodeProto()
            relu.CopyFrom(last)
            del relu.output[:]
            relu.output.extend(output for output, _ in outputs)
            self.nodes += [copy, relu]
        for name, (output, quantized) in zip(results, outputs, strict=True):
            if quantized:
                self._qdq(name, output, name)
                self.dequantized[name] = name

    def _output_name(self, name: str) -> tuple[str, bool]:
        """-> the name of the tensor that the node writes, and whether it is quantized afterwards.
        The output of a node that only moves values is on the grid already."""
        moved = name in self.placement.derived and self._maker(name).op_type in MOVERS
        if name in self.placement.roots and name not in self.placement.raw and not moved:
            return self._name(name, "made"), True
        return name, False

    def _maker(self, name: str) -> onnx.NodeProto:
        return self.graph.producer[name]

    def _input_name(self, name: str) -> str:
        return self.dequantized.get(name, name)

    def _redundant(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether saturation to the range of the tensor's scale already has the effect of the Relu
        or Clip."""
        if name not in self.placement.roots or name in self.placement.raw:
            return False
        grid = self.scales[self.placement.roots[name]]
        limits = np.iinfo(grid.zero_point.dtype)
        scale, zero = float(grid.scale), int(grid.zero_point)
        low, high = (limits.min - zero) * scale, (limits.max - zero) * scale
        least, most = 0.0, float("inf")
        if node.op_type == "Clip":
            least, most = -most, most
            if len(node.input) > 1 and node.input[1]:
                least = float(np.asarray(self.graph.constant(node.input[1])))
            if len(node.input) > 2 and node.input[2]:
                most = float(np.asarray(self.graph.constant(node.input[2])))
        slack = 1e-6 * scale * 255
        return low >= least - slack and high <= most + slack

    def _operand(self, name: str) -> str:
        """Quantize a constant operand as activations are quantized, with one scale."""
        value = self.graph.constant(name)
        assert value is not None
        scale = activation_scale(
            (float(value.min(initial=0)), float(value.max(initial=0))), self.form
        )
        limits = np.iinfo(scale.zero_point.dtype)
        integers = np.round(value.astype(np.float64) / float(scale.scale)) + int(scale.zero_point)
        integers = np.clip(integers, limits.min, limits.max).astype(scale.zero_point.dtype)
        return self._stored(name, integers, scale)

    def _weights(self, node: onnx.NodeProto, inputs: list[str]) -> list[str]:
        """The weight and the bias of Conv, ConvTranspose, Gemm and MatMul."""
        for place in (0, 1):
            value = self.graph.constant(node.input[place])
            if value is None:
                continue
            axis = channel_axis(node, value.ndim) if self.form.per_channel and place == 1 else None
            bias = node.input[2] if len(node.input) > 2 else ""
            input_scale = None
            if bias:
                input_scale = self._input_scale(node)
            name, integers, scale = self._weight(node, place, value, axis, bias, input_scale)
            inputs[place] = self._stored(name, integers, scale)
            if bias and input_scale is not None:
                inputs[2] = self._bias(bias, input_scale, scale, name)
        return inputs

    def _input_scale(self, node: onnx.NodeProto) -> float | None:
        root = self.placement.roots.get(node.input[0])
        return None if root is None else float(self.scales[root].scale)

    def _weight(
        self,
        node: onnx.NodeProto,
        place: int,
        value: np.ndarray,
        axis: int | None,
        bias: str,
        input_scale: float | None,
    ) -> tuple[Key, np.ndarray, Scale]:
        least = None
        if bias and input_scale is not None:
            offsets = np.abs(np.asarray(self.graph.constant(bias), np.float64)).reshape(-1)
            least = np.clip(np.maximum(offsets / BIAS_MOST, TINY) / input_scale, 0, HUGE)
            if axis is None:
                least = np.asarray(least.max(initial=0.0))
        integers, scale = quantize_weight(value, self.form, axis, least)
        return (node.input[place], node.name), integers, scale

    def _bias(self, name: str, input_scale: float, weight: Scale, owner: Key) -> str:
        """int32 in the scale of the accumulator: input times weight, zero point 0."""
        value = np.asarray(self.graph.constant(name), np.float64)
        product = np.maximum(input_scale * weight.scale.astype(np.float64), TINY)
        scale = np.minimum(product, HUGE).astype(np.float32)
        integers = np.round(value / scale.astype(np.float64))
        integers = np.clip(integers, -BIAS_MOST, BIAS_MOST).astype(np.int32)
        zero = np.zeros(scale.shape, np.int32)
        axis = 0 if scale.ndim else None
        return self._stored((name, *owner), integers, Scale(scale, zero, axis))
