"""An ONNX graph that grows by the nodes of one TFLite operator after the other.

A TFLite tensor is stored in some order of its axes. A rule asks for the order that its node needs;
only if the stored order differs is a Transpose written (or a Reshape, where only axes of length 1
move). A TFLite TRANSPOSE writes no node: only the recorded order of the axes changes. Rules that
compute element by element keep the order of what they take. So channels stay where convolutions
need them, and Transposes remain at inputs, at outputs, and where values do move.

A quantized tensor is stored as integers. Rules compute with real numbers: `real` gives the output
of a DequantizeLinear, `give` writes the QuantizeLinear. Computed int8 tensors are stored as uint8,
with the zero point moved by 128: they stand for the same numbers, and ONNX Runtime on x86 fuses
convolutions of uint8 alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onmetal.converters.tflite.net import Net, Shape, Tensor
from onmetal.converters.tflite.to_onnx.fold import KEPT, folded
from onmetal.errors import UnsupportedError

Order = tuple[int, ...]
"""Stored axis k holds the TFLite axis order[k]."""
NCHW: Order = (0, 3, 1, 2)
"""Of an image whose TFLite axes are [n, h, w, c]."""
QUANTIZED = (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int16))
"""The types of quantized tensors; int32 with a scale is a bias."""
SHIFT = 128
"""From int8 to uint8."""
SHARED_BYTES = 1024
"""Constants up to this size are one initializer, whatever uses them."""


class Value(NamedTuple):
    """The ONNX value that stores a TFLite tensor, and the order of the axes in it."""

    name: str
    order: Order


def plain(tensor: Tensor) -> Order:
    return tuple(range(len(tensor.shape)))


def is_quantized(tensor: Tensor) -> bool:
    return tensor.scale is not None and tensor.dtype in QUANTIZED


def permuted(shape: Sequence[int], order: Order) -> Shape:
    """The sizes of the stored axes; axes in front that the shape lacks have the length 1."""
    lifted = (1,) * (len(order) - len(shape)) + tuple(shape)
    return tuple(lifted[axis] for axis in order)


class Graph:
    """The nodes, initializers and values. `opset`: of the default domain."""

    def __init__(self, net: Net, opset: int, reserved: Sequence[str]) -> None:
        self.net, self.opset = net, opset
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}
        """The values of constants by their ONNX names."""
        self.values: dict[Tensor, Value] = {}
        self.names: set[str] = set(reserved)
        self.inputs: set[str] = set()
        """The names of the model's inputs."""
        self.ends: set[str] = set()
        """Quantized values that are outputs alone."""
        self.base = ""
        """The name of the first output of the operator that is being written."""
        self.aliases: dict[Tensor, Tensor] = {}
        """Output of a DEQUANTIZE of a constant -> that constant."""
        self.titles: dict[str, str] = {}
        """ONNX name -> the TFLite tensor's name, which it gets in the end."""
        self.takers = net.consumers()
        self.scrambled: dict[Tensor, np.ndarray] = {}
        """Matrix -> which of its columns each stored column holds: a flattened image in another
        order, for products whose weights follow it."""
        self.renamed: dict[str, str] = {}
        """ONNX name -> the name in the model."""
        self._shared: dict[tuple[str, Shape, bytes], str] = {}
        self._arranged: dict[tuple[str, Order, Order], str] = {}
        self._reals: dict[tuple[Tensor, Order], str] = {}
        self._weights: dict[tuple[Tensor, Order, Shape | None, bytes], str] = {}
        self._of_integers: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, int]] = {}
        """Output of a DequantizeLinear of constants -> integers, scale, zero point, axis."""
        self._signed: dict[Tensor, str] = {}

    # --- names, nodes, constants

    def name(self, proposed: str) -> str:
        """A name that no value has yet."""
        name, number = proposed, 1
        while name in self.names:
            name, number = f"{proposed}.{number}", number + 1
        self.names.add(name)
        return name

    def emit(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        """A node of one output. -> the name of that. Where all inputs are constants, the result is
        a constant as well."""
        return self.emit_all(kind, inputs, 1, name, **attributes)[0]

    def emit_all(
        self, kind: str, inputs: Sequence[str], count: int, name: str = "", **attributes: Any
    ) -> list[str]:
        if kind == "Reshape" and not self.arrays[inputs[1]].size:
            kind, inputs = "Squeeze", inputs[:1]  # OpenVINO crashes at a Reshape to no axes
        outputs = [self.name(name or f"{self.base}/{kind}") for _ in range(count)]
        node = helper.make_node(kind, list(inputs), outputs, name=outputs[0], **attributes)
        if arrays := self._all_known(kind, inputs):
            results = folded(node, arrays, self.opset)
            if results is not None:
                self.arrays |= dict(zip(outputs, results, strict=True))
                return outputs
        self.nodes.append(node)
        return outputs

    def _all_known(self, kind: str, inputs: Sequence[str]) -> dict[str, np.ndarray]:
        """The values of a node's inputs, with those that a DequantizeLinear gives of constants;
        empty where one is computed, or nothing is."""
        given = {name for name in inputs if name}
        if kind in KEPT or not given <= self.arrays.keys() | self._of_integers.keys():
            return {}
        known = {name: self.arrays[name] for name in given if name in self.arrays}
        for name in sorted(given - known.keys()):
            integers, scale, zero, axis = self._of_integers[name]
            shape = [1] * integers.ndim
            if scale.ndim:
                shape[axis] = -1
            gaps = integers.astype(np.int64) - zero.reshape(shape)
            known[name] = gaps.astype(np.float32) * scale.reshape(shape)
        return known

    def emit_node(self, kind: str, inputs: Sequence[str]) -> str:
        """A node of one output, even of constants."""
        output = self.name(f"{self.base}/{kind}")
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output))
        return output

    def constant(self, value: Any, dtype: Any = None, name: str = "") -> str:
        array = np.asarray(value, dtype)
        array = np.ascontiguousarray(array).reshape(array.shape)
        if name or array.nbytes > SHARED_BYTES:
            name = self.name(name or f"{self.base}/constant")
            self.arrays[name] = array
            return name
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._shared:
            self._shared[key] = self.name(f"{self.base}/constant")
            self.arrays[self._shared[key]] = array
        return self._shared[key]

    def ints(self, values: Any) -> str:
        return self.constant(values, np.int64)

    def like(self, tensor: Tensor, number: Any) -> str:
        """A scalar of the type in which rules compute with the tensor."""
        return self.constant(number, np.float32 if is_quantized(tensor) else tensor.dtype)

    # --- tensors as they are stored

    def value(self, tensor: Tensor) -> Value:
        """The tensor in its own type; a constant in the order of its axes in the file."""
        if tensor not in self.values and tensor in self.aliases:
            return Value(self.weight(tensor), plain(tensor))
        if tensor not in self.values:
            if tensor.data is None:
                raise UnsupportedError(f"tensor {tensor.name!r} is read before it is computed")
            name = self.constant(tensor.data, name=tensor.name or "constant")
            self.values[tensor] = Value(name, plain(tensor))
        return self.values[tensor]

    def order(self, tensor: Tensor) -> Order:
        """The order in which the tensor is stored."""
        return self.value(tensor).order

    def array(self, tensor: Tensor) -> np.ndarray | None:
        """The value of a constant tensor, or of one that depends on constants alone, as it is
        stored in the file; None for a computed one."""
        if tensor.data is not None:
            return tensor.data
        value = self.values.get(tensor)
        if value is None or value.name not in self.arrays:
            return None
        array = self.arrays[value.name]
        return array.transpose([value.order.index(axis) for axis in range(array.ndim)])

    def is_known(self, tensor: Tensor) -> bool:
        """Whether a tensor is a constant that needs no node."""
        return tensor in self.aliases or self.array(tensor) is not None

    def is_constant(self, tensor: Tensor) -> bool:
        return tensor in self.aliases or self.value(tensor).name in self.arrays

    def arranged(self, name: str, stored: Order, order: Order, shape: Shape) -> str:
        """A value in another order of its axes. `shape`: in TFLite's order. `order` may have more
        axes than `stored`: axes of length 1 go in front."""
        extra = len(order) - len(stored)
        lifted = tuple(range(extra)) + tuple(axis + extra for axis in stored)
        if lifted == order and not extra:
            return name
        key = (name, stored, order)
        if key not in self._arranged:
            self._arranged[key] = self._moved(name, lifted, order, shape, extra)
        return self._arranged[key]

    def _moved(self, name: str, lifted: Order, order: Order, shape: Shape, extra: int) -> str:
        full = (1,) * extra + tuple(shape)
        new_shape = tuple(full[axis] for axis in order)
        title = f"{name}/arranged"
        if [a for a in lifted if full[a] > 1] == [a for a in order if full[a] > 1]:
            return self.emit("Reshape", [name, self.ints(new_shape)], title)
        if extra:
            name = self.emit("Reshape", [name, self.ints([full[a] for a in lifted])], title)
        perm = [lifted.index(axis) for axis in order]
        return self.emit("Transpose", [name], title, perm=perm)

    def stored(self, tensor: Tensor, order: Order | None = None) -> str:
        """In its own type, in an order; by default in the order of its axes in the file."""
        name, kept = self.value(tensor)
        if self.is_shifted(tensor):
            if tensor not in self._signed:
                grid = self.grid(tensor, tensor.dtype)
                title = f"{tensor.name}/integers"
                real = self.real(tensor, kept)
                self._signed[tensor] = self.emit("QuantizeLinear", [real, *grid], title)
            name = self._signed[tensor]
        return self.arranged(name, kept, plain(tensor) if order is None else order, tensor.shape)

    def integers(self, tensor: Tensor, order: Order) -> str:
        """A quantized tensor in the type in which computed ones are stored."""
        name, kept = self.value(tensor)
        if kept == order and name not in self.inputs and name not in self.arrays:
            return name
        return self.quantized(self.real(tensor, order), tensor, f"{tensor.name}/quantized")

    def is_shifted(self, tensor: Tensor) -> bool:
        """Whether a quantized int8 tensor is stored as uint8. Inputs and constants are not."""
        name = self.value(tensor).name
        shifted = is_quantized(tensor) and tensor.dtype == np.int8
        return shifted and name not in self.inputs | self.ends and name not in self.arrays

    # --- real numbers

    def real(self, tensor: Tensor, order: Order | None = None) -> str:
        """The numbers for which a tensor stands, in an order; by default in that of the file. What
        is not quantized keeps its type."""
        order = plain(tensor) if order is None else order
        if tensor in self.aliases or (is_quantized(tensor) and self.is_constant(tensor)):
            return self._real_constant(tensor, order)
        if not is_quantized(tensor):
            return self.stored(tensor, order)
        key = (tensor, order)
        if key not in self._reals:
            self._reals[key] = self._real(tensor, order)
        return self._reals[key]

    def _real_constant(self, tensor: Tensor, order: Order) -> str:
        """int8 in the type of computed tensors, as runtimes want both operands in one type; int16,
        which OpenVINO does not read as a constant, as floats."""
        array = self.array(self.aliases.get(tensor, tensor))
        if tensor in self.aliases or tensor.per_channel or array is None or array.dtype == np.uint8:
            return self.weight(tensor, order)
        key = (tensor, order)
        if key not in self._reals:
            extra = len(order) - array.ndim
            moved = array.reshape((1,) * extra + array.shape).transpose(order).astype(np.int64)
            assert tensor.scale is not None and tensor.zero_point is not None
            title = f"{tensor.name}/integers"
            if array.dtype == np.int8:
                shifted = self.constant((moved + SHIFT).astype(np.uint8), name=title)
                self._reals[key] = self.dequantized(shifted, tensor)
            else:
                real = (moved - tensor.zero_point[0]) * tensor.scale.astype(np.float64)[0]
                self._reals[key] = self.constant(real, np.float32, tensor.name)
        return self._reals[key]

    def _real(self, tensor: Tensor, order: Order) -> str:
        name, kept = self.value(tensor)
        if name in self.inputs and tensor.dtype == np.int8:
            grid = self.grid(tensor, tensor.dtype)
            signed = self.arranged(name, kept, order, tensor.shape)
            title = f"{tensor.name}/dequantized"
            return self.again(self.emit("DequantizeLinear", [signed, *grid], title), tensor)
        if name in self.inputs or kept == order:
            return self.dequantized(self.arranged(name, kept, order, tensor.shape), tensor)
        moved = self.arranged(self.real(tensor, kept), kept, order, tensor.shape)
        return self.again(moved, tensor)

    def again(self, name: str, tensor: Tensor) -> str:
        """Quantized like the tensor, and back: runtimes compute an operator in integers where all
        that it reads and writes is quantized."""
        return self.dequantized(self.quantized(name, tensor, f"{name}/quantized"), tensor)

    def grid(self, tensor: Tensor, dtype: Any = None) -> list[str]:
        """Scale and zero point of a tensor that has one of each; by default for the type in which
        computed tensors are stored."""
        if tensor.scale is None or tensor.zero_point is None or tensor.per_channel:
            raise UnsupportedError(
                f"tensor {tensor.name!r} is computed and has a scale for each channel, which is "
                "not supported"
            )
        zero = int(tensor.zero_point[0])
        if dtype is None and tensor.dtype == np.int8:
            zero, dtype = zero + SHIFT, np.uint8
        scale = self.constant(tensor.scale[0], np.float32)
        return [scale, self.constant(zero, tensor.dtype if dtype is None else dtype)]

    def dequantized(self, name: str, tensor: Tensor) -> str:
        title = f"{tensor.name}/dequantized"
        return self.emit("DequantizeLinear", [name, *self.grid(tensor)], title)

    def quantized(self, name: str, tensor: Tensor, title: str) -> str:
        return self.emit("QuantizeLinear", [name, *self.grid(tensor)], title)

    def weight(
        self,
        tensor: Tensor,
        order: Order | None = None,
        shape: Shape | None = None,
        columns: np.ndarray | None = None,
    ) -> str:
        """A constant in an order, then in a shape that keeps the length of the axis of its scales;
        `columns`: those of a matrix in an order. Integers stay integers, with a DequantizeLinear.
        A computed tensor likewise, by nodes, but without `columns`."""
        source = self.aliases.get(tensor, tensor)
        order = plain(source) if order is None else order
        if not self.is_constant(source):
            name = self.real(source, order)
            return name if shape is None else self.emit("Reshape", [name, self.ints(shape)])
        key = (source, order, shape, b"" if columns is None else columns.tobytes())
        if key not in self._weights:
            self._weights[key] = self._weight(source, order, shape, columns)
        return self._weights[key]

    def _weight(
        self, source: Tensor, order: Order, shape: Shape | None, columns: np.ndarray | None
    ) -> str:
        array = self.array(source)
        assert array is not None
        extra = len(order) - array.ndim
        array = array.reshape((1,) * extra + array.shape).transpose(order)
        array = array if shape is None else array.reshape(shape)
        array = array if columns is None else array[:, columns]
        if is_quantized(source):
            axis = order.index(source.axis + extra) if source.per_channel else 0
            return self.dequantized_constant(array, source, axis)
        if array.dtype == np.float16:
            return self.constant(array, np.float32, source.name)
        if order == plain(source) and shape is None and columns is None:
            return self.value(source).name
        return self.constant(array, name=f"{source.name}/arranged")

    def dequantized_constant(
        self, array: np.ndarray, source: Tensor, axis: int, scale: np.ndarray | None = None
    ) -> str:
        """DequantizeLinear of integers with the scales of `source`, or others, along `axis`."""
        scale = np.asarray(source.scale if scale is None else scale, np.float32).reshape(-1)
        zero = np.broadcast_to(np.asarray(source.zero_point).reshape(-1), scale.shape)
        more: dict[str, Any] = {"axis": axis} if scale.size > 1 else {}
        if scale.size == 1:
            scale, zero = scale.reshape(()), zero.reshape(())
        parts = [
            self.constant(array, name=f"{source.name}/integers"),
            self.constant(scale),
            self.constant(zero, array.dtype),
        ]
        name = self.emit("DequantizeLinear", parts, f"{source.name}/dequantized", **more)
        self._of_integers[name] = (array, scale, zero.astype(np.int64), axis)
        return name

    # --- results

    def give(self, tensor: Tensor, name: str, order: Order | None = None) -> None:
        """Set a value as the one that computes an operator's output, in an order of its axes."""
        if is_quantized(tensor) and tensor in self.net.outputs and not self.takers.get(tensor):
            # Not by way of uint8: OpenVINO crashes at that behind a Concat.
            grid = self.grid(tensor, tensor.dtype)
            name = self.emit("QuantizeLinear", [name, *grid], f"{tensor.name}/quantized")
            self.ends.add(name)
        elif is_quantized(tensor):
            name = self.quantized(name, tensor, f"{tensor.name}/quantized")
        self.keep(tensor, name, plain(tensor) if order is None else order)

    def keep(self, tensor: Tensor, name: str, order: Order) -> None:
        """Set a value of the tensor's own type as what stores it."""
        self.values[tensor] = Value(name, order)
        self.titles.setdefault(name, tensor.name)

    def initializers(self) -> list[onnx.TensorProto]:
        """The constants that nodes read, in the order of their names' first use."""
        used = dict.fromkeys(name for node in self.nodes for name in node.input)
        constants = [name for name in used if name in self.arrays]
        return [numpy_helper.from_array(self.arrays[name], name) for name in constants]
