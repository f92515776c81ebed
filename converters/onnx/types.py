"""Types and shapes that onnx cannot infer: those of operators that are ONNX Runtime's own."""

import onnx
from onnx import helper

from onmetal.converters.onnx import reference
from onmetal.converters.onnx.graph import Graph


def complete(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what onnx infers, and where that leaves a tensor of the main graph without a
    type or shape, with what ONNX Runtime infers: it knows its own operators.

    Outputs get a shape too; an axis that stays unknown is left free. A model that ONNX Runtime
    cannot open is given back as onnx leaves it.
    """
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = Graph(model).values
    known = {name for name, (kind, shape) in values.items() if kind and shape is not None}
    given = dict.fromkeys(name for node in model.graph.node for name in node.output if name)
    names = [name for name in given if name not in known]
    if not names:
        return model
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    outputs = {value.name for value in asked.graph.output}
    for name in names:
        if name not in outputs:
            asked.graph.output.append(helper.make_empty_tensor_value_info(name))
    found = {value.name: value for value in _given(asked) if value.name in names}
    for values in (model.graph.output, model.graph.value_info):
        for value in values:
            if (better := found.pop(value.name, None)) is not None:
                value.CopyFrom(better)
    model.graph.value_info.extend(found.values())
    return model


def _given(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    try:
        session = reference.opened(model.SerializeToString(), "ORT_DISABLE_ALL", severity=4)
    except Exception:  # whoever runs the model meets the same error, and says it
        return []
    return [
        helper.make_tensor_value_info(entry.name, _kind(entry.type), list(entry.shape))
        for entry in session.get_outputs()
        if entry.type.startswith("tensor(")
    ]


def _kind(word: str) -> int:
    """The element type that ONNX Runtime calls `tensor(word)`."""
    name = word.removeprefix("tensor(").removesuffix(")")
    return int(onnx.TensorProto.DataType.Value(name.upper()))
