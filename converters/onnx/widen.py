"""Converts a float16 model to float32, to be quantized or lowered.

Weights and all computed tensors become float32. The graph's inputs and outputs keep their names and
types, by a Cast after each input and before each output.
"""

from collections.abc import Iterator, MutableSequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onmetal.converters.onnx import checks
from onmetal.errors import UnsupportedError

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
TYPES = ("to", "dtype", "output_dtype")
"""Attributes that hold the type of the output."""


def widen(model: onnx.ModelProto) -> None:
    """Convert the model in place; functions must be inlined before. Raises UnsupportedError, with
    the name of the node or tensor, where one is bfloat16."""
    _refuse_bfloat16(model)
    if not _any_half(model):
        return
    for graph in checks.graphs(model.graph):
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                _widen_attribute(attribute)
        values = [*graph.value_info]
        if graph is not model.graph:
            values += [*graph.input, *graph.output]
        for value in values:
            if value.type.tensor_type.elem_type == HALF:
                value.type.tensor_type.elem_type = FULL
    _cast_inputs(model)
    _cast_outputs(model)


def _any_half(model: onnx.ModelProto) -> bool:
    edges = (*model.graph.input, *model.graph.output)
    return (
        any(value.type.tensor_type.elem_type == HALF for value in edges)
        or any(tensor.data_type == HALF for tensor in checks.tensors(model))
        or any(entry.i == HALF for _, entry in _types(model))
    )


def _types(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.AttributeProto]]:
    for node in checks.nodes(model.graph):
        for entry in node.attribute:
            if entry.name in TYPES and entry.type == onnx.AttributeProto.INT:
                yield node, entry


def _refuse_bfloat16(model: onnx.ModelProto) -> None:
    brief = "bfloat16 is not supported; export the model in float32 or float16"
    for tensor in checks.tensors(model):
        if tensor.data_type == TensorProto.BFLOAT16:
            raise UnsupportedError(f"the tensor {tensor.name!r} is bfloat16: {brief}")
    for node, entry in _types(model):
        if entry.i == TensorProto.BFLOAT16:
            name = node.name or node.output[0]
            raise UnsupportedError(f"{node.op_type} {name!r} gives bfloat16: {brief}")


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == HALF:
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _widen_attribute(entry: onnx.AttributeProto) -> None:
    if entry.name in TYPES and entry.type == onnx.AttributeProto.INT and entry.i == HALF:
        entry.i = FULL
    if entry.HasField("t"):
        _widen_tensor(entry.t)
    for tensor in entry.tensors:
        _widen_tensor(tensor)


def _cast_inputs(model: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in model.graph.initializer}
    casts = []
    for value in model.graph.input:
        if value.type.tensor_type.elem_type != HALF:
            continue
        if value.name in constants:  # a constant that may be overridden
            value.type.tensor_type.elem_type = FULL
            continue
        takers = [
            node
            for node in checks.nodes(model.graph)
            if value.name in node.input and node.op_type != "Cast"
        ]
        if not takers:
            continue
        wide = _free(model, f"{value.name}/float32")
        for node in takers:
            _rename(node.input, value.name, wide)
        casts.append(helper.make_node("Cast", [value.name], [wide], name=wide, to=FULL))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)


def _cast_outputs(model: onnx.ModelProto) -> None:
    input_names = {value.name for value in model.graph.input}
    for value in model.graph.output:
        if value.type.tensor_type.elem_type != HALF or value.name in input_names:
            continue
        maker = next((node for node in model.graph.node if value.name in node.output), None)
        inside = any(value.name in node.input for node in checks.nodes(model.graph))
        if maker is not None and maker.op_type == "Cast" and not inside:
            _give_half(maker)
            continue
        wide = _free(model, f"{value.name}/float32")
        for tensor in model.graph.initializer:
            if tensor.name == value.name:
                tensor.name = wide
        for node in checks.nodes(model.graph):
            _rename(node.input, value.name, wide)
        for node in model.graph.node:
            _rename(node.output, value.name, wide)
        model.graph.node.append(helper.make_node("Cast", [wide], [value.name], name=wide, to=HALF))


def _give_half(cast: onnx.NodeProto) -> None:
    """Make the model's own Cast before an output convert to float16."""
    for entry in cast.attribute:
        if entry.name == "to":
            entry.i = HALF


def _rename(names: MutableSequence[str], old: str, new: str) -> None:
    for place, name in enumerate(names):
        if name == old:
            names[place] = new


def _free(model: onnx.ModelProto, proposed: str) -> str:
    """A name that nothing in the model has."""
    used = {name for node in checks.nodes(model.graph) for name in (*node.input, *node.output)}
    while proposed in used:
        proposed += "_"
    return proposed
