"""Multiply-accumulates of an ONNX graph: how much it computes."""

import math

import onnx

from onmetal.converters.onnx.axes import is_static


def count_macs(inferred: onnx.ModelProto) -> int | None:
    """Multiply-accumulates of convolutions, matrix products and recurrent layers.

    None where such an operator has a shape that is not known, or is one that is not counted.
    Control flow counts every branch once.
    """
    try:
        return _count(inferred.graph, {})
    except (KeyError, IndexError, ValueError):
        return None


def _count(graph: onnx.GraphProto, outside: dict[str, list[int]]) -> int:
    shapes = dict(outside)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.WhichOneof("value") == "tensor_type" and is_static(value):
            shapes[value.name] = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    for tensor in graph.initializer:
        shapes[tensor.name] = list(tensor.dims)
    total = 0
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                shapes[node.output[0]] = list(attribute.t.dims)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    total += _count(inner, shapes)
        if node.op_type in _UNCOUNTED:
            raise KeyError(node.op_type)
        if node.op_type in _MACS:
            total += _MACS[node.op_type](node, shapes)
    return total


def _convolution(node: onnx.NodeProto, shapes: dict[str, list[int]], weights: int = 1) -> int:
    # every output value sums over the kernel: [out, in / groups, *kernel]
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[weights]][1:])


def _transposed(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    # every input value is spread over the kernel: [in, out / groups, *kernel]
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _product(node: onnx.NodeProto, shapes: dict[str, list[int]], left: int = 0) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[left]][-1]


def _fused_product(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    if any(a.name in ("transBatchA", "transBatchB") and a.i for a in node.attribute):
        raise ValueError(node.op_type)
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-2 if transposed else -1]


def _gemm(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else -1]


def _recurrent(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    # X [steps, batch, in], W [directions, gates * hidden, in], R [.., .., hidden]
    steps, batch, _ = shapes[node.input[0]]
    return steps * batch * (math.prod(shapes[node.input[1]]) + math.prod(shapes[node.input[2]]))


def _einsum(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> int:
    # every combination of the letters is one product; ValueError where it is not one of two
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise ValueError(equation)
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        sizes.update(zip(term, shapes[name], strict=True))
    return math.prod(sizes.values())


_UNCOUNTED = frozenset(
    {"DeformConv", "Attention", "MultiHeadAttention", "PackedAttention", "GroupQueryAttention"}
    | {"QAttention", "MatMulNBits", "NhwcConv", "NhwcFusedConv", "TransposeMatMul", "QGemm"}
    | {"FusedMatMulActivation", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "GemmFastGelu"}
    | {"MoE", "LinearAttention", "DynamicQuantizeLSTM"}
)
"""Products whose work is not counted here: a model with any of them has no figure."""
_MACS = {
    "Einsum": _einsum,
    "Conv": _convolution,
    "FusedConv": _convolution,
    "ConvInteger": _convolution,
    "QLinearConv": lambda node, shapes: _convolution(node, shapes, 3),
    "ConvTranspose": _transposed,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearMatMul": _product,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "FusedMatMul": _fused_product,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
