"""8-bit weights without calibration: weights alone, or matrix products with dynamic activations."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onmetal.calibration.quantize import channel_axis, quantize_weight
from onmetal.converters.onnx.graph import Graph, attribute
from onmetal.errors import UnsupportedError
from onmetal.targets import Format

SMALLEST = 4096
"""Numbers of a weight, from which on storing it in 8 bits saves more than its scales cost."""


def weights(path: str, form: Format, folder: str) -> dict[str, Any]:
    """Write `model.onnx` with the weights of the listed operators as integers, which a
    DequantizeLinear turns into float again. -> how many.

    A table that Gather reads is read as integers, with one scale, and only what was read is
    dequantized. Raises UnsupportedError where no weight is large enough.
    """
    rules = form
    model = onnx.load(path)
    graph = Graph(model)
    own = graph.mark
    nodes: list[onnx.NodeProto] = []
    made: dict[str, str] = {}
    done = 0
    for node in graph.nodes:
        place = 0 if node.op_type == "Gather" else 1
        name = node.input[place] if len(node.input) > place else ""
        value = graph.constant(name) if node.op_type in rules.operators and name else None
        if value is None or value.dtype != np.float32 or value.size < SMALLEST:
            nodes.append(node)
            continue
        done += 1
        table = node.op_type == "Gather"
        axis = None if table or not rules.per_channel else channel_axis(node, value.ndim)
        stored = f"{own}{name}.{'table' if table else axis}"
        if stored not in made:
            integers, scale = quantize_weight(value, rules, axis)
            for suffix, array in (
                ("integers", integers),
                ("scale", scale.scale),
                ("zero_point", scale.zero_point),
            ):
                tensor = numpy_helper.from_array(np.asarray(array, order="C"), f"{stored}.{suffix}")
                model.graph.initializer.append(tensor)
        names = [f"{stored}.scale", f"{stored}.zero_point"]
        where = {} if axis is None else {"axis": axis}
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if table:
            copy.input[0] = f"{stored}.integers"
            copy.output[0] = f"{own}{node.output[0]}.read"
            nodes.append(copy)
            last = [copy.output[0], *names]
            nodes.append(helper.make_node("DequantizeLinear", last, [node.output[0]]))
        else:
            copy.input[1] = f"{stored}.dequantized"
            if stored not in made:
                first = [f"{stored}.integers", *names]
                nodes.append(helper.make_node("DequantizeLinear", first, [copy.input[1]], **where))
            nodes.append(copy)
        made[stored] = name
    if not done:
        raise UnsupportedError(f"it has no weight of {SMALLEST} numbers or more to store in 8 bits")
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    _drop_unused(model, graph)
    (Path(folder) / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return {"weights_in_8_bits": done}


def _drop_unused(model: onnx.ModelProto, graph: Graph) -> None:
    used = {name for node in model.graph.node for name in node.input}
    used |= {value.name for value in model.graph.output} | graph.inner
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def dynamic(path: str, form: Format | None, folder: str) -> dict[str, Any]:
    """Write `model.onnx` with products by constants in 8 bits: activations u8, their range taken
    anew in every inference (DynamicQuantizeLinear), weights s8 with a scale for each column. ONNX
    Runtime fuses this when it opens the file. -> how many.

    Raises UnsupportedError where there is no such product.
    """
    rules = Format(("MatMul", "Gemm"))
    model = onnx.load(path)
    graph = Graph(model)
    own = graph.mark
    nodes: list[onnx.NodeProto] = []
    done = 0
    for node in graph.nodes:
        value = graph.constant(node.input[1]) if node.op_type in rules.operators else None
        plain = all(attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta"))
        if value is None or value.ndim != 2 or value.dtype != np.float32 or not plain:
            nodes.append(node)
            continue
        if attribute(node, "transA", 0) or graph.constant(node.input[0]) is not None:
            nodes.append(node)
            continue
        if attribute(node, "transB", 0):
            value = value.T
        integers, scale = quantize_weight(value, rules, 1)
        mark = f"{own}{done}."
        for name, array in (("integers", integers), ("scale", scale.scale)):
            tensor = numpy_helper.from_array(np.asarray(array, order="C"), mark + name)
            model.graph.initializer.append(tensor)
        nodes += _dynamic_product(node, mark)
        done += 1
    if not done:
        raise UnsupportedError("it has no product by a constant that could be quantized so")
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    _drop_unused(model, graph)
    (Path(folder) / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    return {"products_in_8_bits": done}


def _dynamic_product(node: onnx.NodeProto, mark: str) -> list[onnx.NodeProto]:
    """What takes the place of one MatMul or Gemm."""
    bias = node.input[2] if len(node.input) > 2 else ""
    taken, step, zero = (mark + name for name in ("taken", "step", "zero_point"))
    last = mark + "product" if bias else node.output[0]
    steps = [
        ("DynamicQuantizeLinear", [node.input[0]], [taken, step, zero], {}),
        ("MatMulInteger", [taken, mark + "integers", zero], [mark + "sum"], {}),
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
