"""Rewrites padding so that every shape inference finds the shapes that runtimes compute.

For a ConvTranspose with `auto_pad` SAME, the specification's output size is input x stride; ONNX's
shape inference adds `output_padding` to that. For a pool with `ceil_mode`, a last window that would
begin behind the input is left out; some inferences count it. All shapes after such a node would be
inferred wrong, so the node is written in another way.
"""

from typing import Any

import onnx
from onnx import helper

from onmetal.converters.onnx import checks


def explicit(model: onnx.ModelProto) -> bool:
    """Write the pads of every ConvTranspose with `auto_pad` SAME as numbers. -> whether any was
    rewritten.

    The shapes in the file are removed then, since they may come from a wrong inference.
    """
    kernels = {tensor.name: list(tensor.dims[2:]) for tensor in checks.tensors(model)}
    rewritten = [
        _write_out(node, kernels.get(node.input[1] if len(node.input) > 1 else "", []))
        for node in checks.nodes(model.graph)
        if node.op_type == "ConvTranspose" and node.domain in ("", "ai.onnx")
    ]
    if any(rewritten):
        _forget_shapes(model)
    return any(rewritten)


def _forget_shapes(model: onnx.ModelProto) -> None:
    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")


def _write_out(node: onnx.NodeProto, kernel: list[int]) -> bool:
    attributes = {entry.name: list(entry.ints) for entry in node.attribute if entry.ints}
    auto = next((entry.s for entry in node.attribute if entry.name == "auto_pad"), b"NOTSET")
    kernel = attributes.get("kernel_shape", kernel)
    settings = [
        attributes.get(name, [default] * len(kernel))
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    ]
    if auto not in (b"SAME_UPPER", b"SAME_LOWER") or "output_shape" in attributes or not kernel:
        return False
    if any(len(values) != len(kernel) for values in settings):
        return False  # opening the model raises an error with the reason
    pads = same(auto.decode(), kernel, *settings)
    for entry in list(node.attribute):
        if entry.name in ("auto_pad", "pads"):
            node.attribute.remove(entry)
    node.attribute.append(helper.make_attribute("pads", pads))
    return True


def same(
    auto: str, kernel: list[int], strides: list[int], dilations: list[int], extra: list[int]
) -> list[int]:
    """The pads that reduce the full output size, (n - 1) * stride + reach + extra, to n * stride.
    They do not depend on the input size n."""
    begin, end = [], []
    for size, stride, dilation, more in zip(kernel, strides, dilations, extra, strict=True):
        total = max(0, (size - 1) * dilation + 1 + more - stride)
        begin.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        end.append(total - begin[-1])
    return begin + end


def whole_windows(model: onnx.ModelProto) -> bool:
    """Rewrite every pool with `ceil_mode` whose last window would begin behind the input, so that
    no inference counts this window. -> whether any was rewritten. The axes of inputs are static."""
    rewritten = False
    pools = [
        node
        for node in model.graph.node
        if node.op_type in ("MaxPool", "AveragePool") and node.domain in ("", "ai.onnx")
    ]
    while any(_attribute(node, "ceil_mode", 0) for node in pools):
        shapes = _shapes(model)  # anew, since a rewritten pool changes the shapes after it
        if not any(_leave_out(node, shapes.get(node.input[0], [])) for node in pools):
            break
        rewritten = True
        _forget_shapes(model)
    return rewritten


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Tensor -> its shape, as far as it can be inferred; 0 for an axis that is not known."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # opening the model raises an error with the reason
        return {}
    values = (*graph.input, *graph.value_info)
    return {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in values
    }


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    entries = [entry for entry in node.attribute if entry.name == name]
    return helper.get_attribute_value(entries[0]) if entries else default


def _leave_out(node: onnx.NodeProto, shape: list[int]) -> bool:
    """Remove `ceil_mode`, or reduce the padding at the end, where a last window would begin behind
    the input and all other windows stay as they are. -> whether the node was changed."""
    kernel, sizes = list(_attribute(node, "kernel_shape", [])), shape[2:]
    axes = len(kernel)
    strides = _attribute(node, "strides", [1] * axes)
    dilations = _attribute(node, "dilations", [1] * axes)
    pads = list(_attribute(node, "pads", [0, 0] * axes))
    rounded = _attribute(node, "ceil_mode", 0) and len(sizes) == axes and min(sizes) > 0
    if not rounded or _attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return False
    surplus, partial, fits = False, False, True
    for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
        reach, padded = (kernel[axis] - 1) * dilations[axis] + 1, size + pads[axis]
        last, remainder = divmod(padded + pads[axes + axis] - reach, stride)  # of whole windows
        if remainder and (last + 1) * stride >= padded:
            surplus = True
            pads[axes + axis] = max(0, last * stride + reach - padded)
            fits = fits and padded + pads[axes + axis] == last * stride + reach
        elif remainder:
            partial = True
    if not surplus or (partial and not fits):
        return False
    name = "pads" if partial else "ceil_mode"
    for entry in [entry for entry in node.attribute if entry.name == name]:
        node.attribute.remove(entry)
    if partial:
        node.attribute.append(helper.make_attribute("pads", pads))
    return True
