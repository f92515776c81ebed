"""A view of an ONNX graph with the producer, the consumers, the shape and the value of a tensor."""

from collections import defaultdict
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

FLOAT = onnx.TensorProto.FLOAT


class Graph:
    """A view of a model's main graph; it must not change while the view is used."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = [v.name for v in model.graph.input if v.name not in self.initializers]
        self.outputs = [value.name for value in model.graph.output]
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                if name:
                    self.consumers[name].append(node)
        self.inner: set[str] = set()
        """Names that nodes of a subgraph (of If, Loop, Scan) read; among them are all tensors that
        they read from outside."""
        for node in self.nodes:
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    self.inner |= _names(graph)
        self._arrays: dict[str, np.ndarray] = {}

    @property
    def mark(self) -> str:
        """A prefix that no name in the graph begins with."""
        prefix = "@"
        names = {*self.values, *self.initializers, *self.producer, *(n.name for n in self.nodes)}
        while any(name.startswith(prefix) for name in names):
            prefix += "@"
        return prefix

    def constant(self, name: str) -> np.ndarray | None:
        """The value of an initializer or a Constant node; None where it is neither."""
        if name in self._arrays:
            return self._arrays[name]
        tensor = self.initializers.get(name)
        if tensor is None and name in self.producer and self.producer[name].op_type == "Constant":
            tensors = [a.t for a in self.producer[name].attribute if a.name == "value"]
            tensor = tensors[0] if tensors else None
        if tensor is None:
            return None
        self._arrays[name] = numpy_helper.to_array(tensor)
        return self._arrays[name]

    @cached_property
    def values(self) -> dict[str, tuple[int, tuple[int, ...] | None]]:
        """Tensor -> its element type and its shape (None: not static), as far as they are known."""
        entries: dict[str, tuple[int, tuple[int, ...] | None]] = {}
        graph = self.model.graph
        for value in (*graph.value_info, *graph.input, *graph.output):
            kind = value.type.tensor_type
            shape: tuple[int, ...] | None = None
            if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
                shape = tuple(d.dim_value for d in kind.shape.dim)
            entries[value.name] = (kind.elem_type, shape)
        return entries

    def is_float(self, name: str) -> bool:
        if name in self.initializers:
            return bool(self.initializers[name].data_type == FLOAT)
        return bool(self.values.get(name, (0, None))[0] == FLOAT)

    def shape(self, name: str) -> tuple[int, ...] | None:
        if name in self.initializers:
            return tuple(self.initializers[name].dims)
        return self.values.get(name, (0, None))[1]

    def only_consumer(self, name: str) -> onnx.NodeProto | None:
        """The node that alone reads the tensor, and only once; None where there are other readers,
        among them the graph's outputs and subgraphs."""
        takers = self.consumers.get(name, [])
        if len(takers) != 1 or name in self.outputs or name in self.inner:
            return None
        return takers[0] if list(takers[0].input).count(name) == 1 else None


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def _names(graph: onnx.GraphProto) -> set[str]:
    names: set[str] = set()
    for node in graph.node:
        names |= set(node.input)
        for entry in node.attribute:
            for inner in (entry.g, *entry.graphs):
                names |= _names(inner)
    return names
