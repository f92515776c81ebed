"""Networks of many kinds as ONNX graphs, as exporters write them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.onnx_models import node
from tests.tflite_graphs import (
    Arrays,
    Graph,
    floats,
    graph,
    ints,
    scalar,
    weighted,
)
from tests.tflite_operator_cases import INT64

# --- networks


def conv(name: str, x: str, y: str, weight: Arrays, **attributes: Any) -> Any:
    """A node of Conv whose weights `weighted` made."""
    assert f"{name}.w" in weight
    return node("Conv", f"{x} {name}.w {name}.b", y, **attributes)


IMAGE = {"x": floats(1, 3, 16, 16)}
PADDED = {"pads": [1, 1, 1, 1]}


def statistics(name: str, channels: int) -> Arrays:
    return {
        f"{name}.{part}": np.abs(floats(channels, seed=seed)) + np.float32(0.5)
        for seed, part in enumerate("sbmv")
    }


def resnet() -> Graph:
    w = weighted("a", 8, 3, 3, 3) | weighted("b", 8, 8, 3, 3) | weighted("c", 8, 8, 1, 1)
    w |= statistics("n", 8) | {"fc": floats(10, 8), "fb": floats(10)}
    nodes = [
        conv("a", "x", "a", w, strides=[2, 2], **PADDED),
        node("BatchNormalization", "a n.s n.b n.m n.v", "n"),
        node("Relu", "n", "r"),
        conv("b", "r", "b", w, **PADDED),
        conv("c", "r", "c", w),
        node("Add", "b c", "d"),
        node("Relu", "d", "e"),
        node("MaxPool", "e", "f", kernel_shape=[3, 3], strides=[2, 2], **PADDED),
        node("GlobalAveragePool", "f", "g"),
        node("Flatten", "g", "h"),
        node("Gemm", "h fc fb", "y", transB=1),
    ]
    return graph(nodes, IMAGE, w)


def flattened() -> Graph:
    w = weighted("a", 4, 3, 3, 3) | {"fc": floats(10, 256), "fb": floats(10)}
    w |= {"m": floats(256, 5)}
    nodes = [
        conv("a", "x", "a", w, strides=[2, 2], **PADDED),
        node("Relu", "a", "r"),
        node("Flatten", "r", "h"),
        node("Gemm", "h fc fb", "y", transB=1),
        node("MatMul", "h m", "z"),
    ]
    return graph(nodes, {"x": floats(3, 3, 16, 16)}, w, ["y", "z"])


def shuffle() -> Graph:
    w = weighted("a", 8, 3, 1, 1) | weighted("b", 4, 8, 1, 1)
    w |= {"in": ints(1, 2, 4, 16, 16), "out": ints(1, 8, 16, 16)}
    nodes = [
        conv("a", "x", "a", w),
        node("Reshape", "a in", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "c out", "d"),
        conv("b", "d", "e", w),
        node("GlobalAveragePool", "e", "y"),
    ]
    return graph(nodes, IMAGE, w)


def squeeze() -> Graph:
    """Squeeze and excitation of MobileNetV3, with its HardSwish written out."""
    w = weighted("a", 8, 3, 3, 3) | weighted("s", 4, 8, 1, 1) | weighted("e", 8, 4, 1, 1)
    w |= weighted("d", 8, 1, 3, 3) | {"three": scalar(3), "zero": scalar(0), "six": scalar(6)}
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Add", "a three", "a3"),
        node("Clip", "a3 zero six", "a6"),
        node("Mul", "a a6", "am"),
        node("Div", "am six", "b"),
        conv("d", "b", "c", w, group=8, strides=[2, 2], **PADDED),
        node("GlobalAveragePool", "c", "g"),
        conv("s", "g", "s", w),
        node("Relu", "s", "sr"),
        conv("e", "sr", "e", w),
        node("HardSigmoid", "e", "h", alpha=1 / 6),
        node("Mul", "h c", "m"),
        node("GlobalAveragePool", "m", "y"),
    ]
    return graph(nodes, IMAGE, w)


def yolo() -> Graph:
    """Version 5's head, of two scales."""
    w = weighted("a", 18, 3, 3, 3) | weighted("b", 18, 18, 3, 3)
    w |= {"two": scalar(2), "half": scalar(0.5), "sizes": ints(2, 2, 2)}
    nodes = [
        conv("a", "x", "p0", w, strides=[2, 2], **PADDED),
        conv("b", "p0", "p1", w, strides=[2, 2], **PADDED),
    ]
    for scale, size in ((0, 8), (1, 4)):
        p = f"p{scale}"
        w |= {
            f"{p}.in": ints(1, 3, 6, size, size),
            f"{p}.out": ints(1, -1, 6),
            f"{p}.grid": floats(1, 3, size, size, 2),
            f"{p}.anchors": np.abs(floats(1, 3, 1, 1, 2, seed=scale)),
        }
        nodes += [
            node("Reshape", f"{p} {p}.in", f"{p}.r"),
            node("Transpose", f"{p}.r", f"{p}.t", perm=[0, 1, 3, 4, 2]),
            node("Sigmoid", f"{p}.t", f"{p}.s"),
            node("Split", f"{p}.s sizes", f"{p}.xy {p}.wh {p}.c", axis=4),
            node("Mul", f"{p}.xy two", f"{p}.xy2"),
            node("Add", f"{p}.xy2 {p}.grid", f"{p}.xy3"),
            node("Mul", f"{p}.wh two", f"{p}.wh2"),
            node("Pow", f"{p}.wh2 two", f"{p}.wh3"),
            node("Mul", f"{p}.wh3 {p}.anchors", f"{p}.wh4"),
            node("Concat", f"{p}.xy3 {p}.wh4 {p}.c", f"{p}.all", axis=4),
            node("Reshape", f"{p}.all {p}.out", f"{p}.flat"),
        ]
    nodes.append(node("Concat", "p0.flat p1.flat", "y", axis=1))
    return graph(nodes, IMAGE, w)


def yolo8() -> Graph:
    """Version 8's head: the distribution of each side by softmax and a convolution."""
    w = weighted("a", 35, 3, 3, 3) | weighted("b", 35, 35, 3, 3)
    w |= {"s0": ints(1, 35, -1), "sizes": ints(32, 3), "dfl": ints(1, 4, 8, 80)}
    w |= {"bins": np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1), "four": ints(1, 4, 80)}
    w |= {"zero": ints(0), "two": ints(2), "end": ints(4), "one": ints(1)}
    w |= {"grid": floats(1, 2, 80), "stride": np.abs(floats(1, 80))}
    nodes = [
        conv("a", "x", "p0", w, strides=[2, 2], **PADDED),
        conv("b", "p0", "p1", w, strides=[2, 2], **PADDED),
        node("Reshape", "p0 s0", "f0"),
        node("Reshape", "p1 s0", "f1"),
        node("Concat", "f0 f1", "f", axis=2),
        node("Split", "f sizes", "box cls", axis=1),
        node("Reshape", "box dfl", "b0"),
        node("Transpose", "b0", "b1", perm=[0, 2, 1, 3]),
        node("Softmax", "b1", "b2", axis=1),
        node("Conv", "b2 bins", "b3"),
        node("Reshape", "b3 four", "b4"),
        node("Slice", "b4 zero two one", "lt"),
        node("Slice", "b4 two end one", "rb"),
        node("Sub", "grid lt", "b5"),
        node("Add", "grid rb", "b6"),
        node("Concat", "b5 b6", "b7", axis=1),
        node("Mul", "b7 stride", "b8"),
        node("Sigmoid", "cls", "c"),
        node("Concat", "b8 c", "y", axis=1),
    ]
    return graph(nodes, IMAGE, w)


def unet() -> Graph:
    w = weighted("a", 4, 3, 3, 3) | weighted("b", 8, 4, 3, 3) | weighted("c", 4, 12, 3, 3)
    w |= {"t.w": floats(4, 2, 2, 2), "t.b": floats(2), "scales": floats(4) * 0 + 1}
    w["scales"][2:] = 2
    nodes = [
        conv("a", "x", "a0", w, **PADDED),
        node("Relu", "a0", "a"),
        node("MaxPool", "a", "p", kernel_shape=[2, 2], strides=[2, 2]),
        conv("b", "p", "b0", w, **PADDED),
        node("LeakyRelu", "b0", "b", alpha=0.1),
        node(
            "Resize",
            "b - scales",
            "u",
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        node("Concat", "u a", "m", axis=1),
        conv("c", "m", "c0", w, **PADDED),
        node("Relu", "c0", "c"),
        node("ConvTranspose", "c t.w t.b", "t", strides=[2, 2]),
        node("Sigmoid", "t", "y"),
    ]
    return graph(nodes, IMAGE, w)


def attention(nodes: list[Any], x: str, y: str, size: int, count: int) -> Arrays:
    """Two heads over [1, count, size], as torch writes them, and the layer after it."""
    w = {f"{y}.{name}": floats(size, size, seed=n) / 4 for n, name in enumerate("qkvo")}
    w |= {
        f"{y}.heads": ints(1, count, 2, size // 2),
        f"{y}.flat": ints(1, count, size),
        f"{y}.root": scalar((size // 2) ** 0.5),
        f"{y}.scale": floats(size),
        f"{y}.shift": floats(size, seed=1),
        f"{y}.up": floats(size, 2 * size) / 4,
        f"{y}.upb": floats(2 * size),
        f"{y}.down": floats(2 * size, size) / 4,
        f"{y}.two": scalar(2**0.5),
        f"{y}.one": scalar(1),
        f"{y}.half": scalar(0.5),
    }
    nodes.append(node("LayerNormalization", f"{x} {y}.scale {y}.shift", f"{y}.n"))
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", f"{y}.n {y}.{name}", f"{y}.{name}0"),
            node("Reshape", f"{y}.{name}0 {y}.heads", f"{y}.{name}1"),
            node("Transpose", f"{y}.{name}1", f"{y}.{name}2", perm=perm),
        ]
    nodes += [
        node("MatMul", f"{y}.q2 {y}.k2", f"{y}.s0"),
        node("Div", f"{y}.s0 {y}.root", f"{y}.s1"),
        node("Softmax", f"{y}.s1", f"{y}.s2", axis=-1),
        node("MatMul", f"{y}.s2 {y}.v2", f"{y}.o0"),
        node("Transpose", f"{y}.o0", f"{y}.o1", perm=[0, 2, 1, 3]),
        node("Reshape", f"{y}.o1 {y}.flat", f"{y}.o2"),
        node("MatMul", f"{y}.o2 {y}.o", f"{y}.o3"),
        node("Add", f"{y}.o3 {x}", f"{y}.a"),
        node("MatMul", f"{y}.a {y}.up", f"{y}.u0"),
        node("Add", f"{y}.u0 {y}.upb", f"{y}.u"),
        node("Div", f"{y}.u {y}.two", f"{y}.g0"),
        node("Erf", f"{y}.g0", f"{y}.g1"),
        node("Add", f"{y}.g1 {y}.one", f"{y}.g2"),
        node("Mul", f"{y}.u {y}.g2", f"{y}.g3"),
        node("Mul", f"{y}.g3 {y}.half", f"{y}.g4"),
        node("MatMul", f"{y}.g4 {y}.down", f"{y}.d"),
        node("Add", f"{y}.d {y}.a", y),
    ]
    return w


def transformer() -> Graph:
    """Patches of an image, a token before them, one block, and what the token says."""
    w = weighted("a", 8, 3, 4, 4) | {"flat": ints(1, 8, 16), "token": floats(1, 1, 8)}
    w |= {"places": floats(1, 17, 8), "first": np.array(0, np.int64), "fc": floats(8, 5)}
    nodes = [
        conv("a", "x", "p", w, strides=[4, 4]),
        node("Reshape", "p flat", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        node("Concat", "token t", "c", axis=1),
        node("Add", "c places", "e"),
    ]
    w |= attention(nodes, "e", "block", 8, 17)
    nodes += [node("Gather", "block first", "g", axis=1), node("MatMul", "g fc", "y")]
    return graph(nodes, IMAGE, w)


def convnext() -> Graph:
    w = weighted("a", 8, 3, 2, 2) | weighted("d", 8, 1, 7, 7)
    w |= {"s": floats(8), "b": floats(8, seed=1), "up": floats(8, 16), "down": floats(16, 8)}
    w |= {"gamma": floats(8, 1, 1), "fc": floats(8, 5)}
    nodes = [
        conv("a", "x", "p", w, strides=[2, 2]),
        conv("d", "p", "d", w, group=8, pads=[3, 3, 3, 3]),
        node("Transpose", "d", "t", perm=[0, 2, 3, 1]),
        node("LayerNormalization", "t s b", "n"),
        node("MatMul", "n up", "u"),
        node("Gelu", "u", "g"),
        node("MatMul", "g down", "o"),
        node("Transpose", "o", "q", perm=[0, 3, 1, 2]),
        node("Mul", "q gamma", "m"),
        node("Add", "m p", "r"),
        node("ReduceMean", "r axes", "v", keepdims=0),
        node("MatMul", "v fc", "y"),
    ]
    return graph(nodes, IMAGE, w | {"axes": ints(-2, -1)}, opset=20)


def ssd() -> Graph:
    w = weighted("a", 8, 3, 3, 3) | weighted("b", 12, 8, 3, 3) | weighted("c", 12, 8, 3, 3)
    w |= {"four": ints(1, -1, 4), "s": ints(2, 1)}
    nodes = [
        conv("a", "x", "f0", w, strides=[2, 2], **PADDED),
        node("MaxPool", "f0", "f1", kernel_shape=[2, 2], strides=[2, 2]),
        conv("b", "f0", "b0", w, **PADDED),
        conv("c", "f1", "b1", w, **PADDED),
        node("Transpose", "b0", "t0", perm=[0, 2, 3, 1]),
        node("Transpose", "b1", "t1", perm=[0, 2, 3, 1]),
        node("Reshape", "t0 four", "r0"),
        node("Reshape", "t1 four", "r1"),
        node("Concat", "r0 r1", "y", axis=1),
    ]
    return graph(nodes, IMAGE, w)


def from_tensorflow() -> Graph:
    """Channels last outside, as tf2onnx writes it."""
    w = weighted("a", 8, 3, 3, 3) | weighted("b", 4, 8, 1, 1)
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        conv("a", "t", "a", w, auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Relu", "a", "r"),
        conv("b", "r", "b", w),
        node("Transpose", "b", "y", perm=[0, 2, 3, 1]),
    ]
    return graph(nodes, {"x": floats(1, 16, 16, 3)}, w)


def sound() -> Graph:
    w = weighted("a", 8, 4, 5) | weighted("b", 8, 1, 3) | {"fc": floats(8 * 9, 5)}
    nodes = [
        conv("a", "x", "a", w, pads=[2, 2], strides=[2]),
        node("Relu", "a", "r"),
        conv("b", "r", "b", w, pads=[1, 1], group=8),
        node("Elu", "b", "e"),
        node("AveragePool", "e", "p", kernel_shape=[2], strides=[2]),
        node("Flatten", "p", "f"),
        node("MatMul", "f fc", "y"),
    ]
    return graph(nodes, {"x": floats(2, 4, 37)}, w)


def windows() -> Graph:
    """Swin's windows, in and out, with a shift."""
    w = weighted("a", 8, 3, 2, 2) | {"in": ints(1, 2, 4, 2, 4, 8), "each": ints(4, 16, 8)}
    w |= {"m": floats(8, 8), "back": ints(1, 2, 2, 4, 4, 8), "out": ints(1, 8, 8, 8)}
    w |= {"zero": ints(0), "two": ints(2), "end": ints(INT64.max), "one": ints(1)}
    nodes = [
        conv("a", "x", "p", w, strides=[2, 2]),
        node("Transpose", "p", "t", perm=[0, 2, 3, 1]),
        node("Slice", "t two end one", "s0"),
        node("Slice", "t zero two one", "s1"),
        node("Concat", "s0 s1", "s", axis=1),
        node("Reshape", "s in", "i0"),
        node("Transpose", "i0", "i1", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", "i1 each", "i2"),
        node("MatMul", "i2 m", "o"),
        node("Reshape", "o back", "b0"),
        node("Transpose", "b0", "b1", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", "b1 out", "b2"),
        node("Transpose", "b2", "y", perm=[0, 3, 1, 2]),
    ]
    return graph(nodes, IMAGE, w)


def pixel_shuffle() -> Graph:
    w = weighted("a", 12, 3, 3, 3) | weighted("b", 2, 3, 3, 3)
    w |= {"in": ints(1, 3, 2, 2, 16, 16), "out": ints(1, 3, 32, 32)}
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Reshape", "a in", "r"),
        node("Transpose", "r", "t", perm=[0, 1, 4, 2, 5, 3]),
        node("Reshape", "t out", "o"),
        conv("b", "o", "y", w, **PADDED),
    ]
    return graph(nodes, IMAGE, w)


def focus() -> Graph:
    """Every second pixel four times, side by side."""
    w = weighted("a", 4, 12, 3, 3) | {"end": ints(INT64.max, INT64.max)}
    w |= {"axes": ints(2, 3), "steps": ints(2, 2)}
    w |= {f"b{i}{j}": ints(i, j) for i in (0, 1) for j in (0, 1)}
    nodes = [node("Slice", f"x b{i}{j} end axes steps", f"s{i}{j}") for i in (0, 1) for j in (0, 1)]
    nodes += [
        node("Concat", "s00 s10 s01 s11", "c", axis=1),
        conv("a", "c", "a", w, **PADDED),
        node("Sigmoid", "a", "s"),
        node("Mul", "a s", "y"),
    ]
    return graph(nodes, IMAGE, w)


def groups_of_torch() -> Graph:
    """GroupNorm, before ONNX had it; normalize() of channels behind it."""
    w = weighted("a", 8, 3, 3, 3) | {"in": ints(0, 2, -1), "out": ints(1, 8, 16, 16)}
    w |= {"s1": floats(2) * 0 + 1, "b1": floats(2) * 0, "s": floats(8, 1, 1)}
    w |= {"b": floats(8, 1, 1, seed=1), "least": scalar(1e-12), "shape": ints(1, 8, 16, 16)}
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Reshape", "a in", "r"),
        node("InstanceNormalization", "r s1 b1", "n"),
        node("Reshape", "n out", "o"),
        node("Mul", "o s", "m"),
        node("Add", "m b", "g"),
        node("ReduceL2", "g", "l", axes=[1]),
        node("Clip", "l least", "c"),
        node("Expand", "c shape", "e"),
        node("Div", "g e", "y"),
    ]
    return graph(nodes, IMAGE, w)


NETWORKS: dict[str, tuple[Callable[[], Graph], int]] = {
    "resnet": (resnet, 1),
    "flattened": (flattened, 1),
    "shuffle": (shuffle, 2),
    "squeeze": (squeeze, 1),
    "yolo": (yolo, 3),
    "yolo8": (yolo8, 3),
    "unet": (unet, 2),
    "transformer": (transformer, 5),
    "convnext": (convnext, 1),
    "ssd": (ssd, 1),
    "from_tensorflow": (from_tensorflow, 0),
    "sound": (sound, 1),
    "windows": (windows, 4),
    "pixel_shuffle": (pixel_shuffle, 3),
    "focus": (focus, 2),
    "groups_of_torch": (groups_of_torch, 2),
}
"""And how many TRANSPOSE at most: at NCHW inputs and outputs, and where numbers do move."""
