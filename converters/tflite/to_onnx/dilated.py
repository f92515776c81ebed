"""Dilated convolutions that TensorFlow's converter left as a convolution between blocks.

SPACE_TO_BATCH_ND by d, a convolution without padding, BATCH_TO_SPACE_ND by d compute a convolution
dilated by d of the padded input, without its cropped border. Convolutions over one axis have an
EXPAND_DIMS and a SQUEEZE beside them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from onmetal.converters.tflite.net import VALID, Net, Op, Tensor, constant

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
RESHAPES = ("RESHAPE", "EXPAND_DIMS", "SQUEEZE")


class Chain(NamedTuple):
    """The operators in a row, and the axis of length 1 that two of them add and drop."""

    spread: Op
    wider: Op | None
    conv: Op
    narrower: Op | None
    back: Op
    axis: int | None


def merge(net: Net) -> None:
    """Replace the operators by a PAD and one convolution, wherever that is the same."""
    for spread in [op for op in net.ops if op.kind == "SPACE_TO_BATCH_ND"]:
        chain = _chain(net, spread)
        made = _merged(chain) if chain is not None else None
        if chain is None or made is None:
            continue
        place = net.ops.index(chain.back)
        net.ops[place : place + 1] = made
        for op in (chain.spread, chain.wider, chain.conv, chain.narrower):
            if op is not None:
                net.ops.remove(op)


def _next(takers: Mapping[Tensor, list[Op]], net: Net, op: Op) -> Op | None:
    """The only reader of an operator's output, as its first input."""
    readers = takers.get(op.outputs[0], [])
    if len(readers) != 1 or op.outputs[0] in net.outputs:
        return None
    return readers[0] if readers[0].inputs[0] is op.outputs[0] else None


def _chain(net: Net, spread: Op) -> Chain | None:
    takers = net.consumers()
    following = _next(takers, net, spread)
    wider, axis = None, None
    if following is not None and following.kind in RESHAPES:
        wider, axis = following, _added(following.taken[0], following.outputs[0])
        following = _next(takers, net, following) if axis is not None else None
    conv = following
    if conv is None or conv.kind not in CONVOLUTIONS or not _plain(conv):
        return None
    following, narrower = _next(takers, net, conv), None
    if wider is not None:
        narrower = following
        if narrower is None or narrower.kind not in RESHAPES:
            return None
        if _added(narrower.outputs[0], narrower.taken[0]) != axis:
            return None
        following = _next(takers, net, narrower)
    if following is None or following.kind != "BATCH_TO_SPACE_ND":
        return None
    return Chain(spread, wider, conv, narrower, following, axis)


def _added(small: Tensor, big: Tensor) -> int | None:
    """Which spatial axis of length 1 the image has beside the axes of a sequence."""
    if len(small.shape) != 3 or len(big.shape) != 4:
        return None
    for axis in (1, 2):
        if (*small.shape[:axis], 1, *small.shape[axis:]) == big.shape:
            return axis
    return None


def _plain(conv: Op) -> bool:
    settings = [conv.options.get(name, 1) for name in ("strideH", "strideW")]
    settings += [conv.options.get(f"dilation{side}Factor", 1) for side in "HW"]
    return conv.options["padding"] == VALID and all(int(n) == 1 for n in settings)


def _same_grid(left: Tensor, right: Tensor) -> bool:
    return np.array_equal(np.asarray(left.scale), np.asarray(right.scale)) and np.array_equal(
        np.asarray(left.zero_point), np.asarray(right.zero_point)
    )


def _merged(chain: Chain) -> list[Op] | None:
    spread, back, conv = chain.spread, chain.back, chain.conv
    settings = [op.taken[place].data for op in (spread, back) for place in (1, 2)]
    if any(array is None for array in settings):
        return None
    sizes, added, sizes_back, cropped = (np.asarray(array, np.int64) for array in settings)
    pads = added.reshape(-1, 2) - cropped.reshape(-1, 2)
    source, out = spread.taken[0], back.outputs[0]
    spatial = 2 if chain.axis is None else 1
    if sizes.size != spatial or not np.array_equal(sizes, sizes_back) or pads.min() < 0:
        return None
    if not _same_grid(source, spread.outputs[0]) or not _same_grid(conv.outputs[0], out):
        return None
    every = np.concatenate([np.zeros((1, 2), np.int64), pads, np.zeros((1, 2), np.int64)])
    shape = tuple(int(n + sum(pair)) for n, pair in zip(source.shape, every, strict=True))
    padded = replace(source, name=spread.outputs[0].name, shape=shape, data=None)
    where = constant(f"{padded.name}/pads", every, np.int32)
    made = [Op("PAD", [source, where], [padded])]
    dilations = [int(n) for n in sizes.reshape(-1)]
    if chain.axis is not None:
        dilations.insert(chain.axis - 1, 1)
    image, result = padded, out
    if chain.wider is not None and chain.narrower is not None and chain.axis is not None:
        image = _with_axis(padded, chain.wider.outputs[0].name, chain.axis)
        made.append(Op("RESHAPE", [padded], [image]))
        result = _with_axis(out, conv.outputs[0].name, chain.axis)
    if not _fits(conv, image, result, dilations):
        return None
    options = {**conv.options}
    options |= {f"dilation{s}Factor": n for s, n in zip("HW", dilations, strict=True)}
    made.append(replace(conv, inputs=[image, *conv.inputs[1:]], outputs=[result], options=options))
    if result is not out:
        made.append(Op("RESHAPE", [result], [out]))
    return made


def _with_axis(tensor: Tensor, name: str, axis: int) -> Tensor:
    shape = (*tensor.shape[:axis], 1, *tensor.shape[axis:])
    return replace(tensor, name=name, shape=shape)


def _fits(conv: Op, image: Tensor, result: Tensor, dilations: list[int]) -> bool:
    """Whether the dilated convolution has the size of the output."""
    kernel = conv.taken[1].shape[1:3]
    sizes = zip(image.shape[1:3], kernel, dilations, strict=True)
    return tuple(n - (k - 1) * d for n, k, d in sizes) == tuple(result.shape[1:3])
