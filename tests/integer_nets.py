"""TFLite graphs in integers, of random weights, and what TFLite Micro and LiteRT make of them."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_micro.python.tflite_micro import runtime

from onmetal.converters.tflite.net import SAME, Net, Op, Tensor, constant
from onmetal.runtimes.tflm.session import opened, said

ARENA_BYTES = 1 << 26


class Builder:
    """Makes an operator a call; activations of int8, or int16 beside int8 weights."""

    def __init__(self, seed: int = 0, dtype: Any = np.int8) -> None:
        self.chance = np.random.default_rng(seed)
        self.dtype = np.dtype(dtype)
        self.ops: list[Op] = []
        self.inputs: list[Tensor] = []

    def tensor(self, *shape: int, scale: float = 0.05, zero: int | None = None) -> Tensor:
        if zero is None:
            zero = int(self.chance.integers(-20, 20))
        name = f"t{len(self.ops)}.{self.chance.integers(1 << 30)}"
        tensor = Tensor(name, shape, self.dtype)
        tensor.scale = np.array([scale], np.float32)
        tensor.zero_point = np.array([zero if self.dtype == np.int8 else 0])
        return tensor

    def input(self, *shape: int) -> Tensor:
        self.inputs.append(self.tensor(*shape))
        return self.inputs[-1]

    def made(self, kind: str, inputs: Sequence[Tensor], out: Tensor, **options: Any) -> Tensor:
        self.ops.append(Op(kind, [*inputs], [out], options))
        return out

    def weights(self, shape: tuple[int, ...], axis: int, source: Tensor) -> list[Tensor]:
        """Per channel, and a bias."""
        assert source.scale is not None
        scales = self.chance.uniform(0.005, 0.02, shape[axis]).astype(np.float32)
        values = self.chance.integers(-127, 128, shape, np.int8)
        kernel = constant(f"w{len(self.ops)}", values)
        kernel.scale, kernel.zero_point, kernel.axis = scales, np.zeros(len(scales), np.int64), axis
        kind = np.int32 if self.dtype == np.int8 else np.int64
        bias = constant(f"b{len(self.ops)}", self.chance.integers(-500, 500, shape[axis]), kind)
        bias.scale, bias.zero_point = scales * source.scale[0], np.zeros(len(scales), np.int64)
        return [kernel, bias]

    def window(self, kind: str, x: Tensor, channels: int, k: Any, **given: Any) -> Tensor:
        """A convolution or a pool of `k`: [rows, columns] or both in one."""
        high, wide = (k, k) if isinstance(k, int) else k
        stride, dilation = given.get("stride", 1), given.get("dilation", 1)
        padding = given.get("padding", SAME)
        options = {"padding": padding, "strideH": stride, "strideW": stride}
        options["fusedActivationFunction"] = given.get("activation", 0)
        sizes = []
        for size, reach in ((x.shape[1], high), (x.shape[2], wide)):
            left = size if padding == SAME else size - (reach - 1) * dilation
            sizes.append(-(-left // stride))
        rest: list[Tensor] = []
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            options |= {"dilationHFactor": dilation, "dilationWFactor": dilation}
            if kind == "CONV_2D":
                rest = self.weights((channels, high, wide, x.shape[3]), 0, x)
            else:
                rest = self.weights((1, high, wide, channels), 3, x)
                options["depthMultiplier"] = channels // x.shape[3]
            out = self.tensor(1, *sizes, channels, scale=0.08)
        else:
            options |= {"filterHeight": high, "filterWidth": wide}
            out = self.like(x, 1, *sizes, channels)
        return self.made(kind, [x, *rest], out, **options)

    def like(self, x: Tensor, *shape: int) -> Tensor:
        assert x.scale is not None and x.zero_point is not None
        return self.tensor(*shape, scale=float(x.scale[0]), zero=int(x.zero_point[0]))

    def conv(self, x: Tensor, channels: int, k: Any = 3, **given: Any) -> Tensor:
        return self.window("CONV_2D", x, channels, k, **given)

    def depthwise(self, x: Tensor, k: Any = 3, times: int = 1, **given: Any) -> Tensor:
        return self.window("DEPTHWISE_CONV_2D", x, x.shape[3] * times, k, **given)

    def pool(self, x: Tensor, k: Any, kind: str = "MAX_POOL_2D", **given: Any) -> Tensor:
        return self.window(kind, x, x.shape[3], k, **given)

    def add(self, a: Tensor, b: Tensor, activation: int = 0) -> Tensor:
        out = self.tensor(*a.shape, scale=0.1)
        return self.made("ADD", [a, b], out, fusedActivationFunction=activation)

    def relu(self, x: Tensor) -> Tensor:
        return self.made("RELU", [x], self.like(x, *x.shape))

    def pad(self, x: Tensor, pads: Sequence[Sequence[int]]) -> Tensor:
        shape = [size + sum(pair) for size, pair in zip(x.shape, pads, strict=True)]
        where = constant(f"pads{len(self.ops)}", pads, np.int32)
        return self.made("PAD", [x, where], self.like(x, *shape))

    def joined(self, *xs: Tensor, axis: int = 3) -> Tensor:
        shape = list(xs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in xs)
        out = self.like(xs[0], *shape)
        for x in xs:
            x.scale, x.zero_point = out.scale, out.zero_point
        return self.made("CONCATENATION", xs, out, axis=axis, fusedActivationFunction=0)

    def mean(self, x: Tensor) -> Tensor:
        axes = constant(f"axes{len(self.ops)}", [1, 2], np.int32)
        return self.made("MEAN", [x, axes], self.tensor(1, x.shape[3]), keepDims=False)

    def net(self, *outputs: Tensor) -> Net:
        return Net(self.inputs, [*outputs], self.ops)


def residual(
    seed: int = 0, size: int = 16, channels: int = 8, stages: Sequence[int] = (1, 1)
) -> Net:
    """So many blocks in each stage; the first block of each but the first halves the rows."""
    build = Builder(seed)
    x = build.conv(build.input(1, size, size, 3), channels)
    for stage, blocks in enumerate(stages):
        wide = channels << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = build.conv(build.conv(x, wide, stride=stride, activation=1), wide)
            short = x if stride == 1 else build.conv(x, wide, 1, stride=2)
            x = build.add(short, y, activation=1)
    return build.net(build.mean(x))


def tangled(seed: int, operators: int = 14) -> Net:
    """Operators that take any earlier tensor; what nothing takes is added up in the end."""
    build = Builder(seed)
    chance = np.random.default_rng(seed)
    images = [build.input(1, 12, 12, 4), build.input(1, 12, 12, 8)]
    for _ in range(operators):
        x = images[chance.integers(len(images))]
        twins = [other for other in images if other.shape == x.shape]
        kind = int(chance.integers(6))
        if kind == 0:
            made = build.conv(x, int(chance.choice([4, 8, 16])), int(chance.choice([1, 3])))
        elif kind == 1:
            made = build.depthwise(x, 3)
        elif kind == 2 and x.shape[1] > 4:
            made = build.pool(x, 2, stride=2)
        elif kind == 3:
            made = build.pad(x, [[0, 0], [1, 0], [0, 1], [0, 0]])
        elif kind == 4:
            made = build.relu(x)
        else:
            made = build.add(x, twins[chance.integers(len(twins))])
        images.append(made)
    taken = {tensor for op in build.ops for tensor in op.taken}
    total, *rest = [build.mean(build.conv(x, 8, 1)) for x in images if x not in taken]
    for other in rest:
        total = build.add(total, other)
    return build.net(total)


def samples(net: Net, count: int = 4, seed: int = 1) -> list[list[np.ndarray]]:
    """Random integers for every input."""
    chance = np.random.default_rng(seed)
    return [
        [
            chance.integers(np.iinfo(t.dtype).min, np.iinfo(t.dtype).max, t.shape, t.dtype, True)
            if t.dtype.kind == "i"
            else chance.normal(size=t.shape).astype(t.dtype)
            for t in net.inputs
        ]
        for _ in range(count)
    ]


def by_tflm(content: bytes, feeds: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The first output for each."""
    interpreter = opened(content)
    found = []
    for feed in feeds:
        for place, array in enumerate(feed):
            interpreter.set_input(array, place)
        interpreter.invoke()
        found.append(np.array(interpreter.get_output(0)))
    return found


def by_litert(content: bytes, feeds: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """By its reference kernels."""
    interpreter = Interpreter(
        model_content=content,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        num_threads=1,
    )
    interpreter.allocate_tensors()
    found = []
    for feed in feeds:
        for entry, array in zip(interpreter.get_input_details(), feed, strict=True):
            interpreter.set_tensor(entry["index"], array)
        interpreter.invoke()
        found.append(np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])))
    return found


def arena(content: bytes) -> dict[str, int]:
    """`head`, `tail` and `total` by TFLite Micro's recording allocator."""
    interpreter = runtime.Interpreter.from_bytes(content, arena_size=ARENA_BYTES)
    with said() as told:
        interpreter.print_allocations()
        text = told()
    found = re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", text)
    return {name: int(count) for name, count in found}


def same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    """To the bit; and not because nothing depends on what is fed."""
    varied = any(not np.array_equal(a[0], other) for other in a[1:])
    return varied and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
