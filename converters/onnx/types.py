"""Types and shapes that onnx cannot infer, such as those of ONNX Runtime's own operators."""

import onnx
from onnx import helper

from onmetal.converters.onnx import reference
from onmetal.converters.onnx.graph import Graph


def complete(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes that onnx infers. A tensor of the main graph without one
    then gets those that ONNX Runtime infers, which knows its own operators.

    Outputs get a shape too; an axis that stays unknown is left free. For a model that ONNX Runtime
    cannot open, only onnx's inference is used.
    """
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = Graph(model).values
    complete_names = {name for name, (kind, shape) in values.items() if kind and shape is not None}
    produced = dict.fromkeys(name for node in model.graph.node for name in node.output if name)
    names = [name for name in produced if name not in complete_names]
    if not names:
        return model
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    outputs = {value.name for value in extended.graph.output}
    for name in names:
        if name not in outputs:
            extended.graph.output.append(helper.make_empty_tensor_value_info(name))
    inferred = {value.name: value for value in _inferred_outputs(extended) if value.name in names}
    for values in (model.graph.output, model.graph.value_info):
        for value in values:
            if (better := inferred.pop(value.name, None)) is not None:
                value.CopyFrom(better)
    model.graph.value_info.extend(inferred.values())
    return model


def _inferred_outputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    try:
        session = reference.opened(model.SerializeToString(), "ORT_DISABLE_ALL", severity=4)
    except Exception:  # running the model raises and reports the same error
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
