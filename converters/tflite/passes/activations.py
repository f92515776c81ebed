"""Activations: fused into the operator before them, and HARD_SWISH composed from its parts."""

import numpy as np

from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.passes.takers import only_taker

FUSES = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL"})
"""Operators that every kernel can end with an activation."""


_ACTIVATION_CODES = {"RELU_N1_TO_1": 2, "RELU": 1, "RELU6": 3}


def fuse_activations(net: Net) -> bool:
    """Fuse RELU, RELU6 and RELU_N1_TO_1 into the operator before them."""
    consumers, dead = net.consumers(), set()
    for op in net.ops:
        if op.kind not in FUSES or op.activation:
            continue
        taker = only_taker(net, consumers, op.outputs[0])
        if taker is not None and taker.kind in _ACTIVATION_CODES and op.outputs[0].is_float:
            op.options = {**op.options, "fusedActivationFunction": _ACTIVATION_CODES[taker.kind]}
            op.outputs = taker.outputs
            dead.add(taker)
    net.ops = [op for op in net.ops if op not in dead]
    return bool(dead)


def hard_swishes(net: Net) -> bool:
    """Replace x * relu6(x + 3) / 6, in whichever order it is computed, by HARD_SWISH."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in list(net.ops):
        if op.kind != "MUL" or op.activation:
            continue
        match = _hard_swish(op, producers)
        if match is None:
            continue
        source, sixth = match
        if not sixth:
            taker = only_taker(net, consumers, op.outputs[0])
            if taker is None or taker.kind != "MUL" or taker.activation:
                continue
            if not any(_scalar(t, 1 / 6) for t in taker.taken):
                continue
            op.outputs = taker.outputs
            net.ops.remove(taker)
        op.kind, op.inputs, op.options = "HARD_SWISH", [source], {}
        return True
    return changed


def _scalar(tensor: Tensor, value: float) -> bool:
    return (
        tensor.data is not None
        and tensor.size == 1
        and bool(np.isclose(float(tensor.data.reshape(-1)[0]), value, rtol=1e-5))
    )


def _hard_swish(op: Op, producers: dict[Tensor, Op]) -> tuple[Tensor, bool] | None:
    """-> x, and whether the division by 6 is part of the gate."""
    for source, gate_tensor in (op.taken[:2], op.taken[1::-1]):
        sixth = False
        gate = producers.get(gate_tensor)
        if gate is not None and gate.kind == "MUL" and any(_scalar(t, 1 / 6) for t in gate.taken):
            sixth = True
            gate = next((producers.get(t) for t in gate.taken if not _scalar(t, 1 / 6)), None)
        if gate is None or gate.kind != "ADD" or gate.activation != 3:
            continue
        if source in gate.taken and any(_scalar(t, 3.0) for t in gate.taken):
            return source, sixth
    return None
