"""The consumer of a tensor, for passes that rewrite two operators at once."""

from onmetal.converters.tflite.net import Net, Op, Tensor


def only_taker(net: Net, consumers: dict[Tensor, list[Op]], tensor: Tensor) -> Op | None:
    """The only operator that reads the tensor, once; None where there are others or where the
    tensor is an output."""
    takers = consumers.get(tensor, [])
    if len(takers) != 1 or tensor in net.outputs or takers[0].inputs.count(tensor) != 1:
        return None
    return takers[0]
