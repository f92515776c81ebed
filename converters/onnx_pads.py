"""ConvTranspose with its padding written out, where an ONNX file asks for SAME.

The specification's output is input x stride. ONNX's shape inference adds `output_padding` to that,
so that every shape behind such a node is told wrong; with pads in numbers it is right.
"""

import onnx
from onnx import helper

from onmetal.converters import onnx_checks


def explicit(model: onnx.ModelProto) -> bool:
    """Write the pads of every ConvTranspose with `auto_pad` SAME as numbers. -> whether any was.

    Shapes that the file tells are forgotten then, since they may be those of that inference.
    """
    kernels = {tensor.name: list(tensor.dims[2:]) for tensor in onnx_checks.tensors(model)}
    rewritten = [
        _write_out(node, kernels.get(node.input[1] if len(node.input) > 1 else "", []))
        for node in onnx_checks.nodes(model.graph)
        if node.op_type == "ConvTranspose" and node.domain in ("", "ai.onnx")
    ]
    if not any(rewritten):
        return False
    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
    return True


def _write_out(node: onnx.NodeProto, kernel: list[int]) -> bool:
    given = {entry.name: list(entry.ints) for entry in node.attribute if entry.ints}
    auto = next((entry.s for entry in node.attribute if entry.name == "auto_pad"), b"NOTSET")
    kernel = given.get("kernel_shape", kernel)
    settings = [
        given.get(name, [default] * len(kernel))
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    ]
    if auto not in (b"SAME_UPPER", b"SAME_LOWER") or "output_shape" in given or not kernel:
        return False
    if any(len(values) != len(kernel) for values in settings):
        return False  # whoever opens the model says what is wrong
    pads = same(auto.decode(), kernel, *settings)
    for entry in list(node.attribute):
        if entry.name in ("auto_pad", "pads"):
            node.attribute.remove(entry)
    node.attribute.append(helper.make_attribute("pads", pads))
    return True


def same(
    auto: str, kernel: list[int], strides: list[int], dilations: list[int], extra: list[int]
) -> list[int]:
    """The pads by which the whole product, (n - 1) * stride + reach + extra, becomes n * stride;
    the size of the input is in neither."""
    begin, end = [], []
    for size, stride, dilation, more in zip(kernel, strides, dilations, extra, strict=True):
        total = max(0, (size - 1) * dilation + 1 + more - stride)
        begin.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        end.append(total - begin[-1])
    return begin + end
