"""8-bit weights without calibration: weights alone, or matrix products with dynamic activations."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onmetal.calibration.qdq_writer import channel_axis, quantize_weight
from onmetal.converters.onnx.graph import Graph, attribute
from onmetal.errors import UnsupportedError
from onmetal.targets import Format

SMALLEST = 4096
"""The least number of a weight's elements: for fewer, scales cost more than 8 bits save."""


def weights(path: str, form: Format, folder: str) -> dict[str, Any]:
    """Write `model.onnx` with the weights of the listed operators as integers, which a
    DequantizeLinear turns into float again. -> how many operators have such weights.

    From a table of integers with one scale, Gather reads integers, and only these are dequantized.
    Raises UnsupportedError where no weight is large enough.
    """
    rules = form
    model = onnx.load(path)
    graph = Graph(model)
    prefix = graph.mark
    nodes: list[onnx.NodeProto] = []
    written: dict[str, str] = {}
    count = 0
    for node in graph.nodes:
        place = 0 if node.op_type == "Gather" else 1
        name = node.input[place] if len(node.input) > place else ""
        value = graph.constant(name) if node.op_type in rules.operators and name else None
        if value is None or value.dtype != np.float32 or value.size < SMALLEST:
            nodes.append(node)
            continue
        count += 1
        table = node.op_type == "Gather"
        axis = None if table or not rules.per_channel else channel_axis(node, value.ndim)
        stored = f"{prefix}{name}.{'table' if table else axis}"
        if stored not in written:
            integers, scale = quantize_weight(value, rules, axis)
            for suffix, array in (
                ("integers", integers),
                ("scale", scale.scale),
                ("zero_point", scale.zero_point),
            ):
                tensor = numpy_helper.from_array(np.asarray(array, order="C"), f"{stored}.{suffix}")
                model.graph.initializer.append(tensor)
        names = [f"{stored}.scale", f"{stored}.zero_point"]
        attributes = {} if axis is None else {"axis": axis}
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if table:
            copy.input[0] = f"{stored}.integers"
            copy.output[0] = f"{prefix}{node.output[0]}.read"
            nodes.append(copy)
            last = [copy.output[0], *names]
            nodes.append(helper.make_node("DequantizeLinear", last, [node.output[0]]))
        else:
            copy.input[1] = f"{stored}.dequantized"
            if stored not in written:
                first = [f"{stored}.integers", *names]
                nodes.append(
                    helper.make_node("DequantizeLinear", first, [copy.input[1]], **attributes)
                )
            nodes.append(copy)
        written[stored] = name
    if not count:
        raise UnsupportedError(f"it has no weight of {SMALLEST} numbers or more to store in 8 bits")
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    _drop_unused(model, graph)
    (Path(folder) / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return {"weights_in_8_bits": count}


def _drop_unused(model: onnx.ModelProto, graph: Graph) -> None:
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output} | graph.inner
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)


def dynamic(path: str, form: Format | None, folder: str) -> dict[str, Any]:
    """Write `model.onnx` with products by constants in 8 bits: activations u8, their range computed
    anew in every inference (DynamicQuantizeLinear), weights s8 with a scale for each column. ONNX
    Runtime fuses these nodes when it opens the file. -> how many products are in 8 bits.

    Raises UnsupportedError where there is no such product.
    """
    rules = Format(("MatMul", "Gemm"))
    model = onnx.load(path)
    graph = Graph(model)
    prefix = graph.mark
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.nodes:
        value = graph.constant(node.input[1]) if node.op_type in rules.operators else None
        unscaled = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if value is None or value.ndim != 2 or value.dtype != np.float32 or not unscaled:
            nodes.append(node)
            continue
        if attribute(node, "transA", 0) or graph.constant(node.input[0]) is not None:
            nodes.append(node)
            continue
        if attribute(node, "transB", 0):
            value = value.T
        integers, scale = quantize_weight(value, rules, 1)
        mark = f"{prefix}{count}."
        for name, array in (("integers", integers), ("scale", scale.scale)):
            tensor = numpy_helper.from_array(np.asarray(array, order="C"), mark + name)
            model.graph.initializer.append(tensor)
        nodes += _dynamic_product(node, mark)
        count += 1
    if not count:
        raise UnsupportedError("it has no product by a constant that could be quantized so")
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    _drop_unused(model, graph)
    (Path(folder) / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return {"products_in_8_bits": count}


def _dynamic_product(node: onnx.NodeProto, mark: str) -> list[onnx.NodeProto]:
    """The nodes that replace one MatMul or Gemm. `mark`: the prefix of their names."""
    bias = node.input[2] if len(node.input) > 2 else ""
    quantized, step, zero = (mark + name for name in ("taken", "step", "zero_point"))
    last = mark + "product" if bias else node.output[0]
    steps = [
        ("DynamicQuantizeLinear", [node.input[0]], [quantized, step, zero], {}),
        ("MatMulInteger", [quantized, mark + "integers", zero], [mark + "sum"], {}),
        ("Cast", [mark + "sum"], [mark + "cast"], {"to": onnx.TensorProto.FLOAT}),
        ("Mul", [step, mark + "scale"], [mark + "steps"], {}),
        ("Mul", [mark + "cast", mark + "steps"], [last], {}),
    ]
    if bias:
        steps.append(("Add", [last, bias], [node.output[0]], {}))
    return [
        helper.make_node(kind, inputs, outputs, mark + kind + outputs[0], **attributes)
        for kind, inputs, outputs, attributes in steps
    ]
