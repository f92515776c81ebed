"""Activations: TFLite's own operator where there is one, else a composition of operators."""

import math

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import Lowering, Order, lowers
from onmetal.converters.tflite.net import Tensor
from onmetal.converters.tflite.nodes import attribute, refuse

ROOT = 5e-4
"""The relative tolerance for a file's square root of 2: in float16 it is 1.4140625."""


def _scaled(low: Lowering, tensor: Tensor, factor: float) -> Tensor:
    return low.binary("MUL", tensor, low.like(tensor, factor))


def _plus(low: Lowering, tensor: Tensor, term: float) -> Tensor:
    return low.binary("ADD", tensor, low.like(tensor, term))


def _bound(low: Lowering, node: ir.Node, name: str, place: int, default: float) -> float:
    value = low.setting(node, name, place)
    return default if value is None else float(value.reshape(-1)[0])


@lowers("Clip", to="RELU6, RELU_N1_TO_1, RELU, MINIMUM, MAXIMUM", limits="constant bounds")
def clip(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    least = _bound(low, node, "min", 1, -math.inf)
    most = _bound(low, node, "max", 2, math.inf)
    limits = np.finfo(tensor.dtype) if tensor.is_float else np.iinfo(tensor.dtype)
    if least <= float(limits.min) and most >= float(limits.max):  # nothing is clipped
        low.values[node.outputs[0]] = low.value(low.input(node))
        return
    low.give(node.outputs[0], _clipped(low, tensor, least, most), order)


def _clipped(low: Lowering, tensor: Tensor, least: float, most: float) -> Tensor:
    limits = np.finfo(tensor.dtype) if tensor.is_float else np.iinfo(tensor.dtype)
    fused = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
    if tensor.is_float and (least, most) in fused:
        return low.unary(fused[least, most], tensor)
    result = tensor
    if least == 0 and tensor.is_float:
        result = low.unary("RELU", result)
    elif least > float(limits.min):
        result = low.binary("MAXIMUM", result, low.like(tensor, least))
    if most < float(limits.max):
        result = low.binary("MINIMUM", result, low.like(tensor, most))
    return result


@lowers("LeakyRelu", to="LEAKY_RELU")
def leaky_relu(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    result = low.unary("LEAKY_RELU", tensor, alpha=float(attribute(node, "alpha", 0.01)))
    low.give(node.outputs[0], result, order)


@lowers("PRelu", to="PRELU", limits="constant slopes")
def prelu(low: Lowering, node: ir.Node) -> None:
    """TFLite's slopes have all axes but the batch axis; runtimes broadcast them."""
    value, slope_value = low.input(node, 0), low.input(node, 1)
    slope = low.constant(slope_value)
    if slope is None:
        raise refuse(node, "its slopes are computed, not constant")
    tensor, order = low.value(value)
    rank = len(order)
    if order[0] != 0:
        order = (0, *(axis for axis in order if axis != 0))
        tensor = low.arranged(value, order)
    wide = slope.reshape((1,) * (rank - slope.ndim) + slope.shape).transpose(order)
    if wide.shape[0] != 1:
        raise refuse(node, "a slope for each sample of the batch is not supported")
    slopes = low.floats(wide[0], f"{node.outputs[0].name}/slope")
    result = low.emit("PRELU", [tensor, slopes], tensor.shape)
    low.give(node.outputs[0], result, order)


@lowers("Elu", to="ELU, RELU, MINIMUM, MUL, ADD")
def elu(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    result = _elu(low, tensor, float(attribute(node, "alpha", 1.0)), 1.0)
    low.give(node.outputs[0], result, order)


def _elu(low: Lowering, tensor: Tensor, alpha: float, gamma: float) -> Tensor:
    """gamma * (max(0, x) + alpha * (exp(min(0, x)) - 1))"""
    if alpha == 1.0:
        result = low.unary("ELU", tensor)
        return result if gamma == 1.0 else _scaled(low, result, gamma)
    negative = low.unary("ELU", low.binary("MINIMUM", tensor, low.like(tensor, 0.0)))
    positive = low.unary("RELU", tensor)
    if gamma != 1.0:
        positive = _scaled(low, positive, gamma)
    return low.binary("ADD", positive, _scaled(low, negative, alpha * gamma))


@lowers("Selu", to="ELU, RELU, MINIMUM, MUL, ADD")
def selu(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    alpha = float(attribute(node, "alpha", 1.67326319217681884765625))
    gamma = float(attribute(node, "gamma", 1.05070102214813232421875))
    low.give(node.outputs[0], _elu(low, tensor, alpha, gamma), order)


@lowers("Celu", to="ELU, MUL, EXP, ADD, MINIMUM, RELU")
def celu(low: Lowering, node: ir.Node) -> None:
    """alpha * elu(x / alpha), for either sign of x"""
    tensor, order = low.value(low.input(node))
    alpha = float(attribute(node, "alpha", 1.0))
    if alpha < 0:  # written out: max(0, x) + min(0, alpha * (exp(x / alpha) - 1))
        curve = _plus(low, low.unary("EXP", _scaled(low, tensor, 1 / alpha)), -1.0)
        below = low.binary("MINIMUM", _scaled(low, curve, alpha), low.like(tensor, 0.0))
        result = low.binary("ADD", low.unary("RELU", tensor), below)
    elif alpha == 1.0:
        result = low.unary("ELU", tensor)
    else:
        result = _scaled(low, low.unary("ELU", _scaled(low, tensor, 1 / alpha)), alpha)
    low.give(node.outputs[0], result, order)


@lowers("HardSigmoid", to="MUL, ADD, RELU, MINIMUM")
def hard_sigmoid(low: Lowering, node: ir.Node) -> None:
    """max(0, min(1, alpha * x + beta)); with alpha 1/6 as relu6(x + 6 beta) / 6, which fuses."""
    tensor, order = low.value(low.input(node))
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    low.give(node.outputs[0], _hard_sigmoid(low, tensor, alpha, beta), order)


def _hard_sigmoid(low: Lowering, tensor: Tensor, alpha: float, beta: float) -> Tensor:
    steep = 6 * alpha
    scaled = tensor if math.isclose(steep, 1, rel_tol=1e-6) else _scaled(low, tensor, steep)
    return _scaled(low, low.unary("RELU6", _plus(low, scaled, 6 * beta)), 1 / 6)


@lowers("Softplus", to="RELU, ABS, MUL, EXP, ADD, LOG")
def softplus(low: Lowering, node: ir.Node) -> None:
    """max(x, 0) + log(1 + exp(-|x|)), which never overflows"""
    tensor, order = low.value(low.input(node))
    small = low.unary("EXP", _scaled(low, low.unary("ABS", tensor), -1.0))
    logarithm = low.unary("LOG", _plus(low, small, 1.0))
    low.give(node.outputs[0], low.binary("ADD", low.unary("RELU", tensor), logarithm), order)


@lowers("Softsign", to="ABS, ADD, DIV")
def softsign(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    size = _plus(low, low.unary("ABS", tensor), 1.0)
    low.give(node.outputs[0], low.binary("DIV", tensor, size), order)


@lowers("Mish", to="MUL, LOGISTIC, SUB, ADD, DIV")
def mish(low: Lowering, node: ir.Node) -> None:
    """x * tanh(log(1 + exp(x))) = x * (1 - u^2) / (1 + u^2) with u = sigmoid(-x) in [0, 1]"""
    tensor, order = low.value(low.input(node))
    below = low.unary("LOGISTIC", _scaled(low, tensor, -1.0))
    square = low.binary("MUL", below, below)
    share = low.binary(
        "DIV", low.binary("SUB", low.like(square, 1.0), square), _plus(low, square, 1.0)
    )
    low.give(node.outputs[0], low.binary("MUL", tensor, share), order)


@lowers("Swish", to="LOGISTIC, MUL")
def swish(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    alpha = float(attribute(node, "alpha", 1.0))
    inner = tensor if alpha == 1.0 else _scaled(low, tensor, alpha)
    low.give(node.outputs[0], low.binary("MUL", tensor, low.unary("LOGISTIC", inner)), order)


@lowers("Gelu", to="GELU")
def gelu(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    approximate = attribute(node, "approximate", "none") == "tanh"
    low.give(node.outputs[0], low.unary("GELU", tensor, approximate=approximate), order)


@lowers("Erf", to="GELU", limits="in the pattern of GELU only: x/2 * (1 + erf(x / sqrt(2)))")
def erf(low: Lowering, node: ir.Node) -> None:
    """Exporters before opset 20 write GELU with Erf; TFLite has GELU as an operator, but no erf."""
    source = _halved_root(low, low.input(node))
    last = _gelu_end(low, node, source) if source is not None else None
    if source is None or last is None:
        raise refuse(node, "TFLite has no erf; only GELU written out with it is supported")
    tensor, order = low.value(source)
    result = low.unary("GELU", tensor, approximate=False)
    low.give(last, result, order)


def _scalar(low: Lowering, value: ir.Value | None) -> float | None:
    array = low.constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _halved_root(low: Lowering, value: ir.Value) -> ir.Value | None:
    """x where `value` is x / sqrt(2)."""
    maker = value.producer()
    if maker is None or maker.op_type not in ("Div", "Mul"):
        return None
    expected = math.sqrt(2) if maker.op_type == "Div" else math.sqrt(0.5)
    for place in (0, 1) if maker.op_type == "Mul" else (0,):
        factor = _scalar(low, maker.inputs[1 - place])
        if factor is not None and math.isclose(factor, expected, rel_tol=ROOT):
            return maker.inputs[place]
    return None


def _halves(low: Lowering, node: ir.Node, value: ir.Value) -> bool:
    """Whether the node computes half of the value."""
    if node.op_type == "Div":
        return node.inputs[0] is value and _scalar(low, node.inputs[1]) == 2.0
    return node.op_type == "Mul" and any(
        operand is value and _scalar(low, node.inputs[1 - place]) == 0.5
        for place, operand in enumerate(node.inputs)
    )


def _gelu_end(low: Lowering, node: ir.Node, source: ir.Value) -> ir.Value | None:
    """The tensor x/2 * (1 + erf(...)), in whichever order its factors are multiplied, with x =
    `source`; None where the nodes after the Erf do not match. Nodes up to it are absorbed."""
    plus = low.only_consumer(node.outputs[0])
    if plus is None or plus.op_type != "Add" or 1.0 not in [_scalar(low, v) for v in plus.inputs]:
        return None
    unmultiplied, halved, passed = {source}, False, [plus]
    half = source.uses()
    halves = [use.node.outputs[0] for use in half if _halves(low, use.node, source)]
    current = plus.outputs[0]
    for _ in range(2):
        taker = low.only_consumer(current)
        if taker is None or taker.op_type not in ("Mul", "Div"):
            break
        other = taker.inputs[1] if taker.inputs[0] is current else taker.inputs[0]
        if _halves(low, taker, current) and not halved:
            halved = True
        elif other in unmultiplied and taker.op_type == "Mul":
            unmultiplied = set()
        elif other in halves and taker.op_type == "Mul" and unmultiplied and not halved:
            unmultiplied, halved = set(), True
        else:
            break
        passed.append(taker)
        current = taker.outputs[0]
        if halved and not unmultiplied:
            low.absorbed.update(passed)
            return current
    return None


@lowers("ThresholdedRelu", to="GREATER, SELECT_V2")
def thresholded_relu(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    limit = low.like(tensor, float(attribute(node, "alpha", 1.0)))
    above = low.binary("GREATER", tensor, limit, dtype=np.bool_)
    result = low.emit(
        "SELECT_V2", [above, tensor, low.like(tensor, 0.0)], tensor.shape, dtype=np.float32
    )
    low.give(node.outputs[0], result, order)


def _last_axis(low: Lowering, node: ir.Node) -> tuple[Tensor, Order]:
    """The input stored with the node's axis last, along which TFLite's softmax computes."""
    value = low.input(node)
    rank = len(low.shape(value))
    axis = int(attribute(node, "axis", -1)) % rank
    order = low.order(value)
    if order[-1] != axis:
        order = (*(other for other in order if other != axis), axis)
    return low.arranged(value, order), order


@lowers("Softmax", "LogSoftmax", to="SOFTMAX, LOG_SOFTMAX")
def softmax(low: Lowering, node: ir.Node) -> None:
    tensor, order = _last_axis(low, node)
    if node.op_type == "Softmax":
        result = low.unary("SOFTMAX", tensor, beta=1.0)
    else:
        result = low.unary("LOG_SOFTMAX", tensor)
    low.give(node.outputs[0], result, order)
