"""A TFLite graph that can be read, changed and written: tensors and operators as plain objects.

The schema is the one that ai-edge-litert ships as Python. Only one subgraph is held; whatever else
a file has (control flow, sparse weights, buffers outside of the file) is refused by name.
"""

import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from onmetal.errors import UnsupportedError, UsageError

Shape = tuple[int, ...]
IDENTIFIER = b"TFL3"
SCHEMA = 3
"""Version of the schema; all .tflite files since 2017 have it."""

_DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT32": np.int32,
    "UINT8": np.uint8,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "INT16": np.int16,
    "INT8": np.int8,
    "FLOAT64": np.float64,
    "UINT64": np.uint64,
    "UINT32": np.uint32,
    "UINT16": np.uint16,
}
_TYPES = {getattr(schema.TensorType, name): np.dtype(kind) for name, kind in _DTYPES.items()}
_CODES = {kind: code for code, kind in _TYPES.items()}
_KINDS = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}

_DAMAGE = (
    *(AttributeError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError),
    struct.error,
)
"""What reading a file whose numbers make no sense ends in."""
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
    """Of one that was read: what the file says of it."""

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
    """What the signature calls inputs and outputs, where it differs from the tensors' names."""

    def consumers(self) -> dict[Tensor, list[Op]]:
        found: dict[Tensor, list[Op]] = defaultdict(list)
        for op in self.ops:
            for tensor in dict.fromkeys(op.taken):
                found[tensor].append(op)
        return found

    def producers(self) -> dict[Tensor, Op]:
        return {tensor: op for op in self.ops for tensor in op.outputs}

    def tensors(self) -> list[Tensor]:
        """Each once: inputs first, then in the order of the operators."""
        found = dict.fromkeys(self.inputs)
        for op in self.ops:
            found |= dict.fromkeys([*op.taken, *op.intermediates, *op.outputs])
        return list(found | dict.fromkeys(self.outputs))

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Whoever takes `old`, or is given it as an output, gets `new`."""
        for op in self.ops:
            op.inputs = [new if tensor is old else tensor for tensor in op.inputs]
        self.outputs = [new if tensor is old else tensor for tensor in self.outputs]

    def unused(self, wanted: str) -> str:
        """The name, with a number behind it where a tensor has it already."""
        names = {tensor.name for tensor in self.tensors()}
        return next(name for name in _numbered(wanted) if name not in names)

    def tell_apart(self) -> None:
        """Rename tensors so that each has a name of its own, by which it can be asked for."""
        for tensor, name in distinct(self).items():
            tensor.name = name

    def sweep(self) -> None:
        """Drop operators whose results nobody takes."""
        needed = set(self.outputs)
        kept = []
        for op in reversed(self.ops):
            if any(tensor in needed for tensor in op.outputs) or any(t.variable for t in op.taken):
                kept.append(op)
                needed.update(op.taken)
        self.ops = kept[::-1]

    def sort(self) -> None:
        """Operators in an order in which every tensor is made before it is taken."""
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
    """A name for each tensor that no other one has: its own, where none before it has that one.
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
"""Operators, tensors and what they are made of; the largest networks have some thousands."""


def read(source: Path | bytes) -> Net:
    """Raises UsageError where it is no .tflite file or a damaged one, UnsupportedError where it
    holds what this representation cannot (the reason says what)."""
    content = source if isinstance(source, bytes) else source.read_bytes()
    if content[4:8] != IDENTIFIER:
        raise UsageError("it is not a .tflite file: its identifier is missing")
    try:
        root = schema.Model.GetRootAs(content)
        _check_parts(root)
        model = schema.ModelT.InitFromObj(root)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"a damaged .tflite file: {type(error).__name__}") from None
    if len(model.subgraphs or []) != 1:
        raise UnsupportedError(
            f"it has {len(model.subgraphs or [])} subgraphs (control flow); one is supported"
        )
    try:
        return _Reader(model, content).net()
    except _DAMAGE as error:
        raise UsageError(f"a damaged .tflite file: {error}") from None


def _check_parts(root: Any) -> None:
    """Before there is an object for each: lists of a small file may name one and the same table
    any number of times, which holds such a list too."""
    parts = 0
    for graph in map(root.Subgraphs, range(root.SubgraphsLength())):
        parts += graph.OperatorsLength() + graph.TensorsLength()
        sparse = (
            graph.Tensors(i).Sparsity() for i in range(min(graph.TensorsLength(), MOST_PARTS))
        )
        for sparsity in sparse:
            parts += sparsity.DimMetadataLength() if sparsity else 0
        if parts > MOST_PARTS:
            break
    for signature in map(root.SignatureDefs, range(root.SignatureDefsLength())):
        parts += signature.InputsLength() + signature.OutputsLength()
        if parts > MOST_PARTS:
            break
    if parts > MOST_PARTS:
        raise UsageError(f"a damaged .tflite file: it has more than {MOST_PARTS} parts")


def text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


class _Reader:
    def __init__(self, model: Any, content: bytes) -> None:
        self.model, self.content = model, content
        self.raw: dict[int, bytes] = {}
        self.graph = model.subgraphs[0]
        self.tensors = [self._tensor(entry) for entry in self.graph.tensors]

    def net(self) -> Net:
        ops = [self._op(entry) for entry in self.graph.operators or []]
        net = Net(
            [self._at(i) for i in self.graph.inputs],
            [self._at(i) for i in self.graph.outputs],
            ops,
        )
        net.tell_apart()
        signatures = self.model.signatureDefs or []
        if len(signatures) == 1:
            net.names = (
                self._signed(signatures[0].inputs, self.graph.inputs),
                self._signed(signatures[0].outputs, self.graph.outputs),
            )
        return net

    def _at(self, place: Any) -> Tensor:
        if int(place) < 0:
            raise ValueError(f"there is no tensor {int(place)}")
        return self.tensors[int(place)]

    def _signed(self, entries: Any, places: Iterable[int]) -> list[str]:
        known = {entry.tensorIndex: text(entry.name) for entry in entries or []}
        return [known.get(int(place)) or self._at(place).name for place in places]

    def _tensor(self, entry: Any) -> Tensor:
        name = text(entry.name)
        if entry.type not in _TYPES:
            kinds = {c: n for n, c in vars(schema.TensorType).items() if isinstance(c, int)}
            raise UnsupportedError(
                f"tensor {name!r} holds {kinds.get(entry.type, entry.type)}, which is not supported"
            )
        if entry.sparsity is not None or entry.externalBuffer:
            what = "sparse" if entry.sparsity is not None else "stored outside of the file"
            raise UnsupportedError(f"tensor {name!r} is {what}, which is not supported")
        shape = tuple(int(n) for n in (entry.shape if entry.shape is not None else ()))
        if any(size < 0 for size in shape):
            raise ValueError(f"tensor {name!r} has the shape {list(shape)}")
        tensor = Tensor(name, shape, _TYPES[entry.type], variable=bool(entry.isVariable))
        tensor.data = self._data(int(entry.buffer), tensor)
        found = entry.quantization
        if found is not None and found.scale is not None and len(found.scale):
            if found.details is not None:
                raise UnsupportedError(f"tensor {name!r} has a custom quantization")
            tensor.scale = np.array(found.scale, np.float32)
            zero = found.zeroPoint if found.zeroPoint is not None else []
            tensor.zero_point = np.zeros(tensor.scale.shape, np.int64)
            if len(zero):
                tensor.zero_point[...] = np.array(zero, np.int64)
            tensor.axis = int(found.quantizedDimension)
        return tensor

    def _data(self, place: int, tensor: Tensor) -> np.ndarray | None:
        buffer = self.model.buffers[place]
        raw = buffer.data
        if buffer.offset > 1:  # files over 2 GB keep their buffers after the flatbuffer
            raw = np.frombuffer(self.content, np.uint8, int(buffer.size), int(buffer.offset))
        if raw is None or (len(raw) == 0 and tensor.size):
            return None
        if place not in self.raw:  # once, however many tensors have it
            self.raw[place] = np.asarray(raw, np.uint8).tobytes()
        return np.frombuffer(self.raw[place], tensor.dtype).reshape(tensor.shape)

    def _op(self, entry: Any) -> Op:
        code = self.model.operatorCodes[entry.opcodeIndex]
        number = max(int(code.builtinCode), int(code.deprecatedBuiltinCode))
        if number not in _KINDS:
            raise UnsupportedError(f"its operator number {number} is not known")
        kind = _KINDS[number]
        if entry.builtinOptions2 is not None:
            raise UnsupportedError(f"operator {kind} is not supported")
        inputs = [None if i == -1 else self._at(i) for i in map(int, entry.inputs)]
        op = Op(kind, inputs, [self._at(i) for i in entry.outputs])
        op.version = int(code.version)
        op.options = _options(kind, entry.builtinOptions)
        if entry.intermediates is not None:
            op.intermediates = [self._at(i) for i in entry.intermediates]
        if kind == "CUSTOM":
            op.custom = text(code.customCode)
            if entry.customOptions is not None:
                op.custom_options = np.asarray(entry.customOptions, np.uint8).tobytes()
        return op


def _options(kind: str, found: Any) -> dict[str, Any]:
    """An operator's options; where the file has none, what the schema has for them."""
    expected = options_type(kind)
    if found is None:
        return {} if expected == "NONE" else dict(vars(getattr(schema, f"{expected}T")()))
    if expected != "NONE" and type(found).__name__ != f"{expected}T":
        raise ValueError(f"operator {kind} has the options of another one")
    return dict(vars(found))


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


def write(net: Net, description: str = "onmetal") -> bytes:
    """The file. The same net gives the same bytes; equal constants share a buffer; tensors of one
    name are told apart by numbers behind it."""
    return _Writer(net, description).content()


class _Writer:
    def __init__(self, net: Net, description: str) -> None:
        self.net, self.description = net, description
        self.buffers = [schema.BufferT()]
        self.known: dict[bytes, int] = {}
        self.codes: dict[tuple[str, str | None], int] = {}
        self.versions: dict[int, int] = {}
        self.order, self.names = net.tensors(), distinct(net)
        self.places = {tensor: number for number, tensor in enumerate(self.order)}

    def content(self) -> bytes:
        graph = schema.SubGraphT()
        graph.name = "main"
        graph.tensors = [self._tensor(tensor) for tensor in self.order]
        graph.inputs = [self.places[tensor] for tensor in self.net.inputs]
        graph.outputs = [self.places[tensor] for tensor in self.net.outputs]
        graph.operators = [self._op(op) for op in self.net.ops]
        model = schema.ModelT()
        model.version, model.description = SCHEMA, self.description
        model.subgraphs, model.buffers = [graph], self.buffers
        model.operatorCodes = [self._code(*key) for key in self.codes]
        model.signatureDefs = [self._signature()]
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _signature(self) -> Any:
        found = schema.SignatureDefT()
        found.signatureKey, found.subgraphIndex = "serving_default", 0
        inputs, outputs = signature_names(self.net)
        found.inputs = self._named(inputs, self.net.inputs)
        found.outputs = self._named(outputs, self.net.outputs)
        return found

    def _named(self, names: list[str], tensors: list[Tensor]) -> list[Any]:
        found = []
        for name, tensor in zip(names, tensors, strict=True):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, self.places[tensor]
            found.append(entry)
        return found

    def _buffer(self, data: np.ndarray) -> int:
        raw = data.tobytes()
        if raw not in self.known:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(raw, np.uint8)
            self.buffers.append(buffer)
            self.known[raw] = len(self.buffers) - 1
        return self.known[raw]

    def _tensor(self, tensor: Tensor) -> Any:
        entry = schema.TensorT()
        entry.name, entry.type = self.names[tensor], _CODES[np.dtype(tensor.dtype)]
        entry.shape, entry.hasRank = list(tensor.shape), True
        entry.isVariable = tensor.variable
        if tensor.data is not None:
            entry.buffer = self._buffer(tensor.data)
        if tensor.scale is not None:
            assert tensor.zero_point is not None
            found = schema.QuantizationParametersT()
            found.scale = np.asarray(tensor.scale, np.float32)
            found.zeroPoint = np.asarray(tensor.zero_point, np.int64)
            found.quantizedDimension = tensor.axis
            entry.quantization = found
        return entry

    def _op(self, op: Op) -> Any:
        from onmetal.converters.tflite.versions import version

        entry = schema.OperatorT()
        code = self.codes.setdefault((op.kind, op.custom), len(self.codes))
        self.versions[code] = max(self.versions.get(code, 1), version(op))
        entry.opcodeIndex = code
        entry.inputs = [-1 if tensor is None else self.places[tensor] for tensor in op.inputs]
        entry.outputs = [self.places[tensor] for tensor in op.outputs]
        if op.intermediates:
            entry.intermediates = [self.places[tensor] for tensor in op.intermediates]
        if (name := options_type(op.kind)) != "NONE":
            options = getattr(schema, name + "T")()
            for option, value in op.options.items():
                if not hasattr(options, option):
                    raise AssertionError(f"{op.kind} has no option {option}")
                setattr(options, option, value)
            entry.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            entry.builtinOptions = options
        elif op.options:
            raise UnsupportedError(f"operator {op.kind} has options, which could not be written")
        elif op.custom is not None:
            entry.customOptions = np.frombuffer(op.custom_options, np.uint8)
        return entry

    def _code(self, kind: str, custom: str | None) -> Any:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        # Old readers know only the one byte that the code had first.
        code.deprecatedBuiltinCode = min(127, code.builtinCode)
        code.version = self.versions[self.codes[kind, custom]]
        code.customCode = custom
        return code


def signature_names(net: Net) -> tuple[list[str], list[str]]:
    """What inputs and outputs are called to users."""
    if net.names:
        return net.names
    return [tensor.name for tensor in net.inputs], [tensor.name for tensor in net.outputs]
