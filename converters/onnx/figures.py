"""Figures of an ONNX model: its number of parameters, its largest tensor, its number types."""

import contextlib
import math

import numpy as np
import onnx

from onmetal.converters.onnx import checks
from onmetal.converters.onnx.axes import is_static


def largest_bytes(inferred: onnx.ModelProto) -> int:
    """The size of the largest tensor between operators, of those whose shape is known."""
    values = (*inferred.graph.value_info, *inferred.graph.output)
    return max((_size_bytes(value) for value in values if is_static(value)), default=0)


def _size_bytes(value: onnx.ValueInfoProto) -> int:
    kind = value.type.tensor_type
    width = 1
    with contextlib.suppress(KeyError):  # strings, and numbers of less than a byte
        width = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).itemsize
    return width * math.prod(int(axis.dim_value) for axis in kind.shape.dim)


def count_parameters(model: onnx.ModelProto) -> int:
    """How many numbers are in the weights: in stored tensors of floats or of 8 bits or fewer."""
    kinds = onnx.TensorProto
    weights = {kinds.FLOAT, kinds.FLOAT16, kinds.DOUBLE, kinds.BFLOAT16, kinds.INT8, kinds.UINT8}
    weights |= {kinds.INT4, kinds.UINT4}
    return sum(math.prod(t.dims) for t in checks.tensors(model) if t.data_type in weights)


def count_quantized_operators(model: onnx.ModelProto) -> int:
    """How many operators quantize activations, compute with integer ones, or have weights of 4
    bits: a model with any such operator is not quantized again. (Weights that are only stored in 8
    bits are treated as float.)"""
    kinds = onnx.TensorProto
    small = {t.name for t in model.graph.initializer if t.data_type in (kinds.INT4, kinds.UINT4)}
    return sum(
        node.op_type in _INTEGER
        or node.op_type.startswith("QLinear")
        or (node.op_type == "DequantizeLinear" and node.input[0] in small)
        for node in checks.nodes(model.graph)
    )


def computes_in_half(inferred: onnx.ModelProto) -> bool:
    """Whether any result is rounded to float16: not where weights are only stored so."""
    kind = onnx.TensorProto.FLOAT16
    graph = inferred.graph
    values = (*graph.value_info, *graph.output)
    half = {value.name for value in values if value.type.tensor_type.elem_type == kind}
    return any(
        node.op_type not in ("Cast", "Constant") and not half.isdisjoint(node.output)
        for node in graph.node
    )


_INTEGER = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "MatMulNBits"}
    | {"DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "QAttention"}
    | {"QGemm", "QMoE", "QOrderedMatMul", "QOrderedAttention", "QEmbedLayerNormalization"}
    | {"GatherBlockQuantized", "MatMulBnb4", "MatMulFpQ4", "NhwcQLinearConv"}
)


def matmul_share(model: onnx.ModelProto) -> float:
    """The share of MatMul's and Gemm's weights among all numbers in the weights."""
    sizes = {t.name: math.prod(t.dims) for t in model.graph.initializer}
    factors = {
        name
        for node in checks.nodes(model.graph)
        if node.op_type in ("MatMul", "Gemm")
        for name in node.input[:2]
    }
    return float(sum(sizes.get(name, 0) for name in factors) / max(1, sum(sizes.values())))


def operator_label(node: onnx.NodeProto) -> str:
    domain = node.domain if node.domain not in ("", "ai.onnx") else ""
    return f"{domain}.{node.op_type}" if domain else str(node.op_type)
