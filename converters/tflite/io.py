"""Changes the inputs and outputs of a .tflite file to channels last or to integers, for targets
that need it."""

from onmetal.converters.tflite.lowering import NHWC
from onmetal.converters.tflite.net import Net, Op, Tensor, signature_names

NCHW = (0, 3, 1, 2)


def channels_last(net: Net) -> list[str]:
    """Drop the TRANSPOSE between an image input and the first operator, and between the last
    operator and an output; the program that runs the file transposes instead. -> the names of those
    inputs and outputs in the signature."""
    names = signature_names(net)
    net.names = names
    turned = []
    consumers = net.consumers()
    for place, tensor in enumerate(net.inputs):
        takers = consumers.get(tensor, [])
        if (
            not takers
            or tensor in net.outputs
            or any(not _transposes_to(op, NHWC) for op in takers)
        ):
            continue
        first = takers[0].outputs[0]
        new = Tensor(tensor.name, first.shape, first.dtype, None, first.scale, first.zero_point)
        for op in takers:
            net.replace(op.outputs[0], new)
            net.ops.remove(op)
        net.inputs[place] = new
        turned.append(names[0][place])
    producers = net.producers()
    for place, tensor in enumerate(net.outputs):
        last = producers.get(tensor)
        if last is None or not _transposes_to(last, NCHW) or net.consumers().get(tensor):
            continue
        if last.taken[0] in net.outputs or last.taken[0] in net.inputs:
            continue
        net.outputs[place] = last.taken[0]
        net.ops.remove(last)
        turned.append(names[1][place])
    return turned


def _transposes_to(op: Op, order: tuple[int, ...]) -> bool:
    if op.kind != "TRANSPOSE" or op.taken[1].data is None:
        return False
    return tuple(int(axis) for axis in op.taken[1].data.reshape(-1)) == order


def integers(net: Net) -> None:
    """Drop the QUANTIZE after each float input and the DEQUANTIZE before each float output."""
    net.names = signature_names(net)
    consumers = net.consumers()
    for place, tensor in enumerate(net.inputs):
        takers = consumers.get(tensor, [])
        if len(takers) != 1 or takers[0].kind != "QUANTIZE" or tensor in net.outputs:
            continue
        quantized = takers[0].outputs[0]
        net.ops.remove(takers[0])
        quantized.name = tensor.name
        net.inputs[place] = quantized
    producers = net.producers()
    for place, tensor in enumerate(net.outputs):
        op = producers.get(tensor)
        if op is None or op.kind != "DEQUANTIZE" or net.consumers().get(tensor):
            continue
        quantized = op.taken[0]
        if quantized in net.outputs or quantized in net.inputs or quantized.data is not None:
            continue
        net.ops.remove(op)
        quantized.name = tensor.name
        net.outputs[place] = quantized
