"""Lowers a float ONNX graph of static shapes to a TFLite graph, node by node, rule by rule.

A tensor is stored in some order of its ONNX axes. A rule asks for the order that its operator
needs; only if the stored order differs is a TRANSPOSE written (or a RESHAPE, where only axes of
length 1 move). An ONNX Transpose writes no operator: only the recorded order of the axes changes.
So the layout with channels last is kept from convolution to convolution, without transposes that
would have to be removed later.

Rules are registered by `lowers` in the modules named after families of operators. Their `TABLE` is
the documented list of supported operators.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite import kernels
from onmetal.converters.tflite.net import Net, Op, Shape, Tensor, constant
from onmetal.converters.tflite.nodes import STANDARD, attribute, refuse, unknown
from onmetal.errors import UnsupportedError

Order = tuple[int, ...]
"""Stored axis k holds the ONNX axis order[k]."""
NHWC: Order = (0, 2, 3, 1)


class Value(NamedTuple):
    """The TFLite tensor that stores an ONNX tensor, and the order of the axes in it."""

    tensor: Tensor
    order: Order


class Rule(NamedTuple):
    function: Callable[["Lowering", ir.Node], None]
    to: str
    """The TFLite operators that an ONNX operator becomes."""
    limits: str
    """Which parts of the ONNX operator are supported, or which are not; empty where all are."""


TABLE: dict[str, Rule] = {}
_Function = Callable[["Lowering", ir.Node], None]


def lowers(*operators: str, to: str, limits: str = "") -> Callable[[_Function], _Function]:
    """Registers a rule: a function that, given a node, emits the operators that compute its outputs
    and calls `give` for each of them."""

    def register(function: _Function) -> _Function:
        for operator in operators:
            assert operator not in TABLE, operator
            TABLE[operator] = Rule(function, to, limits)
        return function

    return register


class Lowering:
    """Lowers one graph. The ONNX graph is only read."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.net = Net([], [], [])
        self.values: dict[ir.Value, Value] = {}
        self.arranged_as: dict[tuple[Tensor, Order, Order], Tensor] = {}
        self.shaped_as: dict[tuple[Tensor, Shape], Tensor] = {}
        """Constants in other shapes; a constant in one shape is one tensor, whatever uses it."""
        self.scrambled: dict[ir.Value, np.ndarray] = {}
        """Value [n, k] -> which of its columns each stored column holds: a Flatten whose transpose
        is applied to the weights after it instead."""
        self.absorbed: set[ir.Node] = set()
        """Nodes that a rule for an earlier node has lowered with it."""
        self.node: ir.Node | None = None
        """The node that is being lowered."""
        self.makers: dict[Tensor, ir.Node | None] = {}
        """Tensor -> the ONNX node for which it was written."""
        self.names: set[str] = set()
        self.outputs = set(graph.outputs)

    # --- reading the ONNX graph

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The value of a constant; None for a computed tensor."""
        if value is None or value.const_value is None:
            return None
        array = value.const_value.numpy()
        if array.dtype in (np.float64, np.float16):
            return array.astype(np.float32)
        return array

    def given(self, node: ir.Node, place: int) -> ir.Value | None:
        return node.inputs[place] if place < len(node.inputs) else None

    def input(self, node: ir.Node, place: int = 0) -> ir.Value:
        value = self.given(node, place)
        if value is None:
            raise refuse(node, f"it has no input {place}")
        return value

    def setting(self, node: ir.Node, name: str, place: int) -> np.ndarray | None:
        """A setting that is an attribute in older opsets and a constant input in newer ones."""
        if name in node.attributes:
            return np.asarray(attribute(node, name))
        value = self.given(node, place)
        if value is None:
            return None
        array = self.constant(value)
        if array is None:
            raise refuse(node, f"its {name} is computed, not constant")
        return array

    def shape(self, value: ir.Value) -> Shape:
        if value.const_value is not None:
            return tuple(value.const_value.shape.numpy())
        if value in self.values:
            tensor, order = self.values[value]
            return tuple(tensor.shape[order.index(axis)] for axis in range(len(order)))
        if value.shape is None or not all(isinstance(axis, int) for axis in value.shape):
            maker = value.producer()
            description = f"{maker.op_type} {maker.name!r}" if maker else "an input"
            raise UnsupportedError(
                f"{description}: the shape of {value.name!r} is not static; give --input-shape, or "
                "export the model with fixed sizes"
            )
        return tuple(axis for axis in value.shape if isinstance(axis, int))

    def dtype(self, value: ir.Value) -> np.dtype:
        """The type in which a value is computed. float16 is widened to float32; the program that
        runs the file converts float16 inputs and outputs."""
        if value.dtype is None:
            raise UnsupportedError(f"the type of {value.name!r} is not known")
        dtype = np.dtype(value.dtype.numpy())
        return np.dtype(np.float32) if dtype == np.float16 else dtype

    def axes(self, node: ir.Node, listed: np.ndarray | None, rank: int) -> list[int]:
        """Axes as numbers from 0 on; `listed` None: all axes."""
        if listed is None:
            return list(range(rank))
        axes = [int(axis) + rank if axis < 0 else int(axis) for axis in np.ravel(listed)]
        if any(not 0 <= axis < rank for axis in axes):
            raise refuse(node, f"axes {list(listed)} do not fit rank {rank}")
        return axes

    def only_consumer(self, value: ir.Value) -> ir.Node | None:
        uses = list(value.uses())
        if len(uses) != 1 or value in self.outputs:
            return None
        return uses[0].node

    # --- tensors as they are stored

    def value(self, value: ir.Value) -> Value:
        """The tensor as it is stored; a constant in the order of its axes in the file."""
        if value not in self.values:
            array = self.constant(value)
            if array is None:
                raise UnsupportedError(f"{value.name!r} is taken before it is made")
            tensor = constant(self.name(value.name or "constant"), array)
            self.values[value] = Value(tensor, tuple(range(array.ndim)))
        return self.values[value]

    def order(self, value: ir.Value) -> Order:
        return self.value(value).order

    def arranged(self, value: ir.Value, order: Order) -> Tensor:
        """Stored in `order`, whose length may exceed the rank: axes of length 1 go in front."""
        tensor, stored = self.value(value)
        return self.rearranged(tensor, stored, order)

    def plain(self, value: ir.Value) -> Tensor:
        """In the order of its ONNX axes."""
        return self.arranged(value, tuple(range(len(self.shape(value)))))

    def rearranged(self, tensor: Tensor, stored: Order, order: Order) -> Tensor:
        extra = len(order) - len(stored)
        lifted = tuple(range(extra)) + tuple(axis + extra for axis in stored)
        if lifted == order and not extra:
            return tensor
        shape = (1,) * extra + tensor.shape
        sizes = {axis: shape[place] for place, axis in enumerate(lifted)}
        new_shape = tuple(sizes[axis] for axis in order)
        perm = [lifted.index(axis) for axis in order]
        key = (tensor, stored, order)
        if key not in self.arranged_as and tensor.data is not None:
            data = np.ascontiguousarray(tensor.data.reshape(shape).transpose(perm))
            self.arranged_as[key] = Tensor(tensor.name, new_shape, tensor.dtype, data)
        elif key not in self.arranged_as:
            self.arranged_as[key] = self._moved(tensor, shape, sizes, lifted, order, perm)
        return self.arranged_as[key]

    def _moved(
        self,
        tensor: Tensor,
        shape: Shape,
        sizes: dict[int, int],
        lifted: Order,
        order: Order,
        perm: list[int],
    ) -> Tensor:
        new_shape = tuple(sizes[axis] for axis in order)
        long = [axis for axis in lifted if sizes[axis] > 1]
        if long == [axis for axis in order if sizes[axis] > 1]:
            return self.reshaped(tensor, new_shape)
        if shape != tensor.shape:
            tensor = self.reshaped(tensor, shape)
        return self.transposed(tensor, perm)

    # --- writing operators

    def name(self, proposed: str) -> str:
        """A name that no tensor has yet."""
        name, number = proposed, 1
        while name in self.names:
            name, number = f"{proposed}.{number}", number + 1
        self.names.add(name)
        return name

    def emit(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        dtype: Any = None,
        name: str = "",
        **options: Any,
    ) -> Tensor:
        """Append an operator with one output. -> the output; its dtype is `dtype`, else the first
        input's."""
        first = next(tensor for tensor in inputs if tensor is not None)
        self._check_kernel(kind, inputs, [dtype or first.dtype])
        sizes = tuple(int(n) for n in shape)
        out = Tensor(self.name(name or f"{kind.lower()}"), sizes, np.dtype(dtype or first.dtype))
        self.net.ops.append(Op(kind, list(inputs), [out], options))
        self.makers[out] = self.node
        return out

    def emit_many(
        self, kind: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], **options: Any
    ) -> None:
        self._check_kernel(kind, inputs, [tensor.dtype for tensor in outputs])
        self.makers |= dict.fromkeys(outputs, self.node)
        self.net.ops.append(Op(kind, list(inputs), list(outputs), options))

    def emit_quantized(self, kind: str, tensor: Tensor, out: Tensor) -> None:
        """Append a QUANTIZE or DEQUANTIZE of the ONNX graph."""
        self.net.ops.append(Op(kind, [tensor], [out]))
        self.makers[out] = self.node

    def _check_kernel(
        self, kind: str, inputs: Sequence[Tensor | None], outputs: Sequence[Any]
    ) -> None:
        """Raises UnsupportedError where no kernel computes with these types and ranks."""
        reason = kernels.missing(kind, [tensor for tensor in inputs if tensor is not None], outputs)
        if reason and self.node is not None:
            raise refuse(self.node, reason)
        if reason:
            raise UnsupportedError(reason)

    def ints(self, values: Any, name: str = "ints") -> Tensor:
        return constant(self.name(name), np.asarray(values, np.int32))

    def floats(self, values: Any, name: str = "values") -> Tensor:
        return constant(self.name(name), np.asarray(values, np.float32))

    def like(self, tensor: Tensor, value: float) -> Tensor:
        """A scalar of the tensor's dtype."""
        return constant(self.name("scalar"), np.asarray(value, tensor.dtype))

    def reshaped(self, tensor: Tensor, shape: Sequence[int], name: str = "") -> Tensor:
        shape = tuple(int(n) for n in shape)
        if shape == tensor.shape:
            return tensor
        if tensor.data is not None:
            if (tensor, shape) not in self.shaped_as:
                data = tensor.data.reshape(shape)
                self.shaped_as[tensor, shape] = Tensor(tensor.name, shape, tensor.dtype, data)
            return self.shaped_as[tensor, shape]
        return self.emit(
            "RESHAPE",
            [tensor, self.ints(shape, "shape")],
            shape,
            name=name or f"{tensor.name}/reshaped",
            newShape=list(shape),
        )

    def transposed(self, tensor: Tensor, perm: Sequence[int], name: str = "") -> Tensor:
        shape = [tensor.shape[axis] for axis in perm]
        return self.emit(
            "TRANSPOSE",
            [tensor, self.ints(list(perm), "perm")],
            shape,
            name=name or f"{tensor.name}/transposed",
        )

    def binary(self, kind: str, left: Tensor, right: Tensor, name: str = "", **more: Any) -> Tensor:
        """An element-wise operator on tensors stored in one order; shapes broadcast as in NumPy."""
        shape = np.broadcast_shapes(left.shape, right.shape)
        return self.emit(kind, [left, right], shape, name=name, **more)

    def unary(self, kind: str, tensor: Tensor, name: str = "", **more: Any) -> Tensor:
        return self.emit(kind, [tensor], tensor.shape, name=name, **more)

    # --- the outputs of nodes

    def give(self, value: ir.Value, tensor: Tensor, order: Order | None = None) -> None:
        """Set `tensor` as the one that stores a node's output. `order`: that of its stored axes; by
        default the ONNX order."""
        order = tuple(range(len(tensor.shape))) if order is None else order
        if value.shape is not None and all(isinstance(axis, int) for axis in value.shape):
            sizes = self.shape(value)
            expected = tuple(sizes[axis] for axis in order)
            assert expected == tensor.shape, (value.name, expected, tensor.shape)
        self.values[value] = Value(tensor, order)
        if tensor.data is None and value.name and value.name not in self.names:
            self.names.add(value.name)  # the tensor that stores a node's output gets the ONNX name
            tensor.name = value.name

    # --- the walk

    def lower(self) -> Net:
        for value in self.graph.inputs:
            if value.const_value is not None:
                continue
            dtype = self.dtype(value)
            tensor = Tensor(self.name(value.name or "input"), self.shape(value), dtype)
            self.net.inputs.append(tensor)
            self.values[value] = Value(tensor, tuple(range(len(tensor.shape))))
        for node in self.graph:
            if node in self.absorbed:
                continue
            self.node = node
            rule = TABLE.get(node.op_type) if node.domain in STANDARD else None
            if rule is None:
                raise UnsupportedError(unknown(node))
            rule.function(self, node)
        for value in self.graph.outputs:
            self.net.outputs.append(self._output(value))
        self.net.names = (
            [str(v.name) for v in self.graph.inputs if v.const_value is None],
            [str(v.name) for v in self.graph.outputs],
        )
        return self.net

    def _output(self, value: ir.Value) -> Tensor:
        tensor = self.plain(value)
        if tensor.data is not None or tensor in self.net.inputs or tensor in self.net.outputs:
            # An output is a tensor of its own: a constant or an input is copied to one.
            return self.emit(
                "RESHAPE",
                [tensor, self.ints(tensor.shape, "shape")],
                tensor.shape,
                name=f"{value.name}/output",
                newShape=list(tensor.shape),
            )
        return tensor


def check(graph: ir.Graph) -> list[str]:
    """The nodes of a graph for which there is no rule, each as a sentence."""
    return [
        unknown(node) for node in graph if node.domain not in STANDARD or node.op_type not in TABLE
    ]
