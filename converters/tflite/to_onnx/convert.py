"""Converts a .tflite file to ONNX by rules. Runs in a child process."""

from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema

from onmetal.converters.tflite.net import IDENTIFIER, Net, Op
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.to_onnx import dilated
from onmetal.converters.tflite.to_onnx.graph import Graph, Value, is_quantized, plain
from onmetal.converters.tflite.to_onnx.model import assembled, check_shapes, checked_names
from onmetal.converters.tflite.to_onnx.rules import TABLE, label, missing, refuse
from onmetal.converters.tflite.to_onnx.shapes import are_open, settle
from onmetal.errors import UnsupportedError, reason

FAMILIES = (
    "activation",
    "convolution",
    "elementwise",
    "indexing",
    "matrix",
    "padding",
    "pooling",
    "quantization",
    "recurrent",
    "reduction",
    "reshape",
    "resize",
)
"""The modules that hold the rules."""
OPSET, OPSET_OF_INT16 = 17, 21
"""QuantizeLinear has 16 bits from opset 21 on."""

for _family in FAMILIES:
    import_module(f"onmetal.converters.tflite.to_onnx.{_family}")


def to_onnx(path: Path) -> onnx.ModelProto:
    """The ONNX model of a .tflite file. Its inputs and outputs keep their names in the signature,
    dtypes, shapes and layout. A quantized tensor is a QuantizeLinear and a DequantizeLinear with
    the file's scale and zero point; weights stay integers. State of recurrent operators begins with
    zeros in every run. The same file gives the same bytes.

    Raises UsageError where the file is damaged; UnsupportedError naming the operator (its kind and
    the name of its output) and what of it cannot be expressed.
    """
    content = path.read_bytes()
    _refuse_control_flow(content)
    net = read(content)
    names = checked_names(net)
    net.sweep()
    unknown = missing(net)
    if unknown:
        raise UnsupportedError(
            f"it has operators that are not supported in ONNX: {', '.join(unknown)}"
        )
    if are_open(content):
        settle(net)
    dilated.merge(net)
    graph = Graph(net, OPSET_OF_INT16 if _has_int16(net) else OPSET, [*names[0], *names[1]])
    for name, tensor in zip(names[0], net.inputs, strict=True):
        graph.values[tensor] = Value(name, plain(tensor))
        graph.inputs.add(name)
    for op in net.ops:
        _write(graph, op)
    model = assembled(graph, *names)
    try:
        check_shapes(graph, model)
        onnx.checker.check_model(model)
    except UnsupportedError:
        raise
    except Exception as error:
        raise UnsupportedError(f"it cannot be written as ONNX: {reason(error)}") from error
    return model


def _write(graph: Graph, op: Op) -> None:
    graph.base = op.outputs[0].name
    try:
        TABLE[op.kind].function(graph, op)
    except UnsupportedError as error:
        text = str(error)
        raise error if text.startswith(op.kind) else refuse(op, text) from None
    except Exception as error:
        raise UnsupportedError(f"{label(op)} cannot be written as ONNX: {reason(error)}") from error


def _has_int16(net: Net) -> bool:
    return any(
        is_quantized(tensor) and tensor.dtype == np.int16
        for op in net.ops
        for tensor in (*op.taken, *op.outputs)
        if not tensor.variable
    )


def _refuse_control_flow(content: bytes) -> None:
    """Raises UnsupportedError naming the operators that run other subgraphs."""
    if content[4:8] != IDENTIFIER:
        return  # `read` says so
    kinds = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    try:
        model = schema.Model.GetRootAs(content)
        if model.SubgraphsLength() < 2:
            return
        graph = model.Subgraphs(0)
        found = []
        for operator in map(graph.Operators, range(graph.OperatorsLength())):
            code = model.OperatorCodes(operator.OpcodeIndex())
            kind = kinds.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "")
            if kind in ("WHILE", "IF", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE"):
                name = (
                    graph.Tensors(operator.Outputs(0)).Name() if operator.OutputsLength() else b""
                )
                found.append(f"{kind} {name.decode(errors='replace')!r}")
    except Exception:
        return  # damaged: `read` says so
    if found:
        raise UnsupportedError(
            f"it has operators that are not supported in ONNX: {', '.join(sorted(found))} "
            "(control flow)"
        )
