"""A TFLite graph that can be read, changed and written: tensors and operators as plain objects.

The schema is the one that ai-edge-litert ships as Python. A graph is one subgraph; control flow,
sparse weights and buffers outside of the file are refused with an error that names them.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

Shape = tuple[int, ...]
IDENTIFIER = b"TFL3"
SCHEMA = 3
"""Version of the schema; all .tflite files since 2017 have it."""


SAME, VALID = 0, 1


@dataclass(eq=False)
class Tensor:
    name: str
    shape: Shape
    dtype: np.dtype
    data: np.ndarray | None = None
    """The value of a constant."""
    scale: np.ndarray | None = None
    """float32 [1] or [channels]: real = scale * (integer - zero_point)."""
    zero_point: np.ndarray | None = None
    """int64, as `scale`."""
    axis: int = 0
    """Of `scale`, where there is one a channel."""
    variable: bool = False

    @property
    def is_float(self) -> bool:
        return self.dtype == np.float32

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def per_channel(self) -> bool:
        return self.scale is not None and self.scale.size > 1


@dataclass(eq=False)
class Op:
    kind: str
    """Its name in the schema: CONV_2D."""
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    """As the schema names them."""
    custom: str | None = None
    custom_options: bytes = b""
    intermediates: list[Tensor] = field(default_factory=list)
    """Of a quantized LSTM: tensors without values, whose scales its kernel reads."""
    version: int | None = None
    """The version in the file, for an operator that was read."""

    @property
    def taken(self) -> list[Tensor]:
        return [tensor for tensor in self.inputs if tensor is not None]

    @property
    def activation(self) -> int:
        """The fused activation's code; 0: none."""
        return int(self.options.get("fusedActivationFunction", 0))


@dataclass(eq=False)
class Net:
    inputs: list[Tensor]
    outputs: list[Tensor]
    ops: list[Op]
    names: tuple[list[str], list[str]] | None = None
    """The names of inputs and outputs in the signature; None where they are the tensors' names."""

    def consumers(self) -> dict[Tensor, list[Op]]:
        takers: dict[Tensor, list[Op]] = defaultdict(list)
        for op in self.ops:
            for tensor in dict.fromkeys(op.taken):
                takers[tensor].append(op)
        return takers

    def producers(self) -> dict[Tensor, Op]:
        return {tensor: op for op in self.ops for tensor in op.outputs}

    def tensors(self) -> list[Tensor]:
        """Each once: inputs first, then in the order of the operators."""
        ordered = dict.fromkeys(self.inputs)
        for op in self.ops:
            ordered |= dict.fromkeys([*op.taken, *op.intermediates, *op.outputs])
        return list(ordered | dict.fromkeys(self.outputs))

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Use `new` in place of `old` as an input of operators and as an output of the graph."""
        for op in self.ops:
            op.inputs = [new if tensor is old else tensor for tensor in op.inputs]
        self.outputs = [new if tensor is old else tensor for tensor in self.outputs]

    def unused(self, proposed: str) -> str:
        """The name, with a number behind it where a tensor has it already."""
        names = {tensor.name for tensor in self.tensors()}
        return next(name for name in _numbered(proposed) if name not in names)

    def tell_apart(self) -> None:
        """Rename tensors so that no two have the same name."""
        for tensor, name in distinct(self).items():
            tensor.name = name

    def sweep(self) -> None:
        """Drop operators whose outputs are not used."""
        needed = set(self.outputs)
        remaining = []
        for op in reversed(self.ops):
            if any(tensor in needed for tensor in op.outputs) or any(t.variable for t in op.taken):
                remaining.append(op)
                needed.update(op.taken)
        self.ops = remaining[::-1]

    def sort(self) -> None:
        """Sort operators so that every tensor is computed before it is read."""
        producers = self.producers()
        done: set[Op] = set()
        ordered: list[Op] = []
        for last in self.ops:
            stack = [last]
            while stack:
                op = stack[-1]
                waits = [
                    maker
                    for tensor in op.taken
                    if (maker := producers.get(tensor)) is not None and maker not in done
                ]
                if op in done or not waits:
                    stack.pop()
                    if op not in done:
                        done.add(op)
                        ordered.append(op)
                else:
                    stack.extend(waits)
        self.ops = ordered


def distinct(net: Net) -> dict[Tensor, str]:
    """A unique name for each tensor: its own name, unless an earlier tensor has the same one.
    Inputs come first, then outputs, computed tensors, and constants."""
    computed = [tensor for tensor in net.tensors() if tensor.data is None]
    ordered = dict.fromkeys([*net.inputs, *net.outputs, *computed, *net.tensors()])
    first = {tensor.name: tensor for tensor in reversed(list(ordered))}
    names = {tensor: name for name, tensor in first.items()}
    candidates: dict[str, Iterator[str]] = {}
    for tensor in ordered:
        if tensor in names:
            continue
        numbered = candidates.setdefault(tensor.name, _numbered(tensor.name))
        names[tensor] = next(name for name in numbered if name not in first)
    return names


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}.{number}" for number in count(1))


def constant(name: str, value: Any, dtype: Any = None) -> Tensor:
    array = np.ascontiguousarray(value, dtype)
    if np.ndim(value) == 0:
        array = array.reshape(())
    return Tensor(name, tuple(array.shape), array.dtype, array)


# --- reading

MOST_PARTS = 1_000_000
"""The most operators, tensors and parts of these; the largest networks have some thousands."""


# --- writing

_IRREGULAR = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "L2_POOL_2D": "Pool2DOptions",
    "L2_NORMALIZATION": "L2NormOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "SPACE_TO_BATCH_ND": "SpaceToBatchNDOptions",
    "BATCH_TO_SPACE_ND": "BatchToSpaceNDOptions",
    "TOPK_V2": "TopKV2Options",
    "CONV_3D": "Conv3DOptions",
    "CONV_3D_TRANSPOSE": "Conv3DOptions",
    "PADV2": "PadV2Options",
    "ATAN2": "ATan2Options",
    "SVDF": "SVDFOptions",
    "RNN": "RNNOptions",
    "LSTM": "LSTMOptions",
    "LSH_PROJECTION": "LSHProjectionOptions",
    "UNIDIRECTIONAL_SEQUENCE_RNN": "SequenceRNNOptions",
    "BIDIRECTIONAL_SEQUENCE_RNN": "BidirectionalSequenceRNNOptions",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTMOptions",
    "BIDIRECTIONAL_SEQUENCE_LSTM": "BidirectionalSequenceLSTMOptions",
    **dict.fromkeys(
        ("RANDOM_STANDARD_NORMAL", "RANDOM_UNIFORM", "MULTINOMIAL"),
        "RandomOptions",
    ),
    **dict.fromkeys(
        ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"),
        "ReducerOptions",
    ),
}
_NO_OPTIONS = frozenset({"LOGISTIC", "TANH", "RELU", "RELU6", "RELU_N1_TO_1", "PRELU", "CUSTOM"})


def options_type(kind: str) -> str:
    """The schema's table of an operator's options; `NONE` where it has none."""
    if kind in _NO_OPTIONS:
        return "NONE"
    regular = "".join(part.capitalize() for part in kind.split("_")) + "Options"
    name = _IRREGULAR.get(kind, regular)
    return name if hasattr(schema.BuiltinOptions, name) else "NONE"


def signature_names(net: Net) -> tuple[list[str], list[str]]:
    """The names under which users see the inputs and outputs."""
    if net.names:
        return net.names
    return [tensor.name for tensor in net.inputs], [tensor.name for tensor in net.outputs]
