"""Assembles the model: names of inputs and outputs, nodes that are used, shapes that agree."""

import numpy as np
import onnx
from onnx import helper, shape_inference

from onmetal.converters.tflite.net import Net, Tensor, signature_names
from onmetal.converters.tflite.to_onnx.graph import Graph, permuted
from onmetal.errors import UnsupportedError

IR_VERSIONS = {17: 8, 21: 10}
"""Opset -> the version of the file format that came with it."""


def checked_names(net: Net) -> tuple[list[str], list[str]]:
    """The names of inputs and outputs. Raises UnsupportedError where ONNX cannot have them."""
    inputs, outputs = signature_names(net)
    both = sorted(set(inputs) & set(outputs))
    if both:
        raise UnsupportedError(f"an input and an output are both called {both[0]!r}")
    for names in (inputs, outputs):
        if len(set(names)) != len(names) or "" in names:
            raise UnsupportedError(f"its inputs or outputs have no names of their own: {names}")
    return inputs, outputs


def assembled(graph: Graph, inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """The model, with the given names."""
    titles: dict[str, str] = {}
    for tensor, title in zip(graph.net.outputs, outputs, strict=True):
        name = _output(graph, tensor, titles)
        titles[name] = title
    _sweep(graph, set(titles))
    _rename(graph, titles)
    made = helper.make_graph(
        graph.nodes,
        "tflite",
        [_info(name, tensor) for name, tensor in zip(inputs, graph.net.inputs, strict=True)],
        [_info(name, tensor) for name, tensor in zip(outputs, graph.net.outputs, strict=True)],
        graph.initializers(),
    )
    return helper.make_model(
        made,
        producer_name="onmetal",
        opset_imports=[helper.make_opsetid("", graph.opset)],
        ir_version=IR_VERSIONS[graph.opset],
    )


def _info(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
    return helper.make_tensor_value_info(name, kind, tensor.shape)


def _output(graph: Graph, tensor: Tensor, outputs: dict[str, str]) -> str:
    """The value of an output, in the file's order and type: a node's output of its own."""
    graph.base = tensor.name
    name = graph.stored(tensor)
    produced = {output for node in graph.nodes for output in node.output}
    if name not in produced or name in outputs:
        name = graph.emit_node("Identity", [name])
    return name


def _sweep(graph: Graph, needed: set[str]) -> None:
    """Drop nodes whose outputs nothing reads."""
    kept = []
    for node in reversed(graph.nodes):
        if any(output in needed for output in node.output):
            kept.append(node)
            needed.update(node.input)
    graph.nodes = kept[::-1]


def _rename(graph: Graph, titles: dict[str, str]) -> None:
    """Values get the names of their tensors, outputs those of the signature."""
    used = graph.names | set(titles.values())
    for node in graph.nodes:
        for name in node.output:
            title = graph.titles.get(name, "")
            if name not in titles and title and title not in used:
                titles[name] = title
                used.add(title)
    for node in graph.nodes:
        for names in (node.input, node.output):
            names[:] = [titles.get(name, name) for name in names]
        node.name = node.output[0]
    graph.renamed = titles


def check_shapes(graph: Graph, model: onnx.ModelProto) -> None:
    """Raises UnsupportedError where a value of the model has another shape or type than its tensor
    in the file: the file's shapes may be those of another batch."""
    inferred = _inferred(model)
    infos = {info.name: info.type.tensor_type for info in inferred.graph.value_info}
    infos |= {info.name: info.type.tensor_type for info in inferred.graph.output}
    for tensor, (name, order) in graph.values.items():
        kind = infos.get(graph.renamed.get(name, name))
        if kind is None or tensor in graph.scrambled:
            continue
        shape = tuple(size.dim_value for size in kind.shape.dim)
        wanted = permuted(tensor.shape, order)
        if not kind.HasField("shape") or not all(s.HasField("dim_value") for s in kind.shape.dim):
            continue
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        stored = np.dtype(np.uint8) if graph.is_shifted(tensor) else tensor.dtype
        if shape != wanted or dtype != stored:
            raise UnsupportedError(
                f"tensor {tensor.name!r} is {tensor.dtype} {list(wanted)} in the file, but its "
                f"operator gives {dtype} {list(shape)}; convert the model again with fixed shapes"
            )


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes that its operators give, whatever its outputs should have."""
    outputs = list(model.graph.output)
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(info.name) for info in outputs)
    try:
        return shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
    finally:
        del model.graph.output[:]
        model.graph.output.extend(outputs)
