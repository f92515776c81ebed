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
        _write_out(node, kernels.get(node.input[1], []))
        for node in onnx_checks.nodes(model.graph)
        if node.op_type == "ConvTranspose" and node.domain in ("", "ai.onnx")
    ]
    if not any(rewritten):
        return False
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return True


def _write_out(node: onnx.NodeProto, kernel: list[int]) -> bool:
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    auto = given.get("auto_pad", b"NOTSET").decode()
    kernel = list(given.get("kernel_shape", kernel))
    if not auto.startswith("SAME") or "output_shape" in given or not kernel:
        return False
    pads = same(
        auto,
        kernel,
        given.get("strides", [1] * len(kernel)),
        given.get("dilations", [1] * len(kernel)),
        given.get("output_padding", [0] * len(kernel)),
    )
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
