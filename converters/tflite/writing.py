"""Writes a graph as the bytes of a .tflite file."""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from onmetal.converters.tflite.net import (
    IDENTIFIER,
    SCHEMA,
    Net,
    Op,
    Tensor,
    distinct,
    options_type,
    signature_names,
)
from onmetal.converters.tflite.parsing import _TYPES
from onmetal.errors import UnsupportedError

_CODES = {kind: code for code, kind in _TYPES.items()}


def write(net: Net, description: str = "onmetal") -> bytes:
    """The bytes of the file. The same graph gives the same bytes; equal constants share a buffer;
    tensors of the same name get a number behind it."""
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
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        inputs, outputs = signature_names(self.net)
        signature.inputs = self._named(inputs, self.net.inputs)
        signature.outputs = self._named(outputs, self.net.outputs)
        return signature

    def _named(self, names: list[str], tensors: list[Tensor]) -> list[Any]:
        entries = []
        for name, tensor in zip(names, tensors, strict=True):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, self.places[tensor]
            entries.append(entry)
        return entries

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
            quantization = schema.QuantizationParametersT()
            quantization.scale = np.asarray(tensor.scale, np.float32)
            quantization.zeroPoint = np.asarray(tensor.zero_point, np.int64)
            quantization.quantizedDimension = tensor.axis
            entry.quantization = quantization
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
        # Old readers know only the one-byte field that the schema first had for the code.
        code.deprecatedBuiltinCode = min(127, code.builtinCode)
        code.version = self.versions[self.codes[kind, custom]]
        code.customCode = custom
        return code
