"""Parses the bytes of a .tflite file to a graph."""

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from onmetal.converters.tflite.net import IDENTIFIER, MOST_PARTS, Net, Op, Tensor, options_type
from onmetal.errors import UnsupportedError, UsageError

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


_KINDS = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
}


_DAMAGE = (
    *(AttributeError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError),
    struct.error,
)
"""Exceptions to which invalid numbers in a file lead."""


def read(source: Path | bytes) -> Net:
    """The graph of a file. Raises UsageError where it is no .tflite file or a damaged one, and
    UnsupportedError, with the reason, where `Net` cannot represent it."""
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
    """Raises UsageError where there are too many parts, before an object is made for each: in a
    small damaged file, nested lists may name the same table any number of times."""
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
            [self._tensor_at(i) for i in self.graph.inputs],
            [self._tensor_at(i) for i in self.graph.outputs],
            ops,
        )
        net.tell_apart()
        signatures = self.model.signatureDefs or []
        if len(signatures) == 1:
            net.names = (
                self._signature_names(signatures[0].inputs, self.graph.inputs),
                self._signature_names(signatures[0].outputs, self.graph.outputs),
            )
        return net

    def _tensor_at(self, place: Any) -> Tensor:
        if int(place) < 0:
            raise ValueError(f"there is no tensor {int(place)}")
        return self.tensors[int(place)]

    def _signature_names(self, entries: Any, places: Iterable[int]) -> list[str]:
        name_by_place = {entry.tensorIndex: text(entry.name) for entry in entries or []}
        return [name_by_place.get(int(place)) or self._tensor_at(place).name for place in places]

    def _tensor(self, entry: Any) -> Tensor:
        name = text(entry.name)
        if entry.type not in _TYPES:
            kinds = {c: n for n, c in vars(schema.TensorType).items() if isinstance(c, int)}
            raise UnsupportedError(
                f"tensor {name!r} holds {kinds.get(entry.type, entry.type)}, which is not supported"
            )
        if entry.sparsity is not None or entry.externalBuffer:
            storage = "sparse" if entry.sparsity is not None else "stored outside of the file"
            raise UnsupportedError(f"tensor {name!r} is {storage}, which is not supported")
        shape = tuple(int(n) for n in (entry.shape if entry.shape is not None else ()))
        if any(size < 0 for size in shape):
            raise ValueError(f"tensor {name!r} has the shape {list(shape)}")
        tensor = Tensor(name, shape, _TYPES[entry.type], variable=bool(entry.isVariable))
        tensor.data = self._data(int(entry.buffer), tensor)
        quantization = entry.quantization
        if quantization is not None and quantization.scale is not None and len(quantization.scale):
            if quantization.details is not None:
                raise UnsupportedError(f"tensor {name!r} has a custom quantization")
            tensor.scale = np.array(quantization.scale, np.float32)
            zero = quantization.zeroPoint if quantization.zeroPoint is not None else []
            tensor.zero_point = np.zeros(tensor.scale.shape, np.int64)
            if len(zero):
                tensor.zero_point[...] = np.array(zero, np.int64)
            tensor.axis = int(quantization.quantizedDimension)
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
        inputs = [None if i == -1 else self._tensor_at(i) for i in map(int, entry.inputs)]
        op = Op(kind, inputs, [self._tensor_at(i) for i in entry.outputs])
        op.version = int(code.version)
        op.options = _options(kind, entry.builtinOptions)
        if entry.intermediates is not None:
            op.intermediates = [self._tensor_at(i) for i in entry.intermediates]
        if kind == "CUSTOM":
            op.custom = text(code.customCode)
            if entry.customOptions is not None:
                op.custom_options = np.asarray(entry.customOptions, np.uint8).tobytes()
        return op


def _options(kind: str, options: Any) -> dict[str, Any]:
    """An operator's options; the schema's defaults where the file has none."""
    expected = options_type(kind)
    if options is None:
        return {} if expected == "NONE" else dict(vars(getattr(schema, f"{expected}T")()))
    if expected != "NONE" and type(options).__name__ != f"{expected}T":
        raise ValueError(f"operator {kind} has the options of another one")
    return dict(vars(options))
