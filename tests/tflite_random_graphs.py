"""Random ONNX graphs that can be lowered to TFLite, and random reshapes."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.onnx_models import node
from tests.tflite_graphs import (
    Arrays,
    Graph,
    floats,
    graph,
    ints,
    scalar,
)
from tests.tflite_operator_cases import INT64

# --- random graphs

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Growing:
    """A graph over images that grows by one drawn step after the other."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.nodes: list[Any] = []
        self.constants: Arrays = {}
        shape = (self.one(1, 2), self.one(3, 4, 6, 8), self.one(4, 6, 8), self.one(4, 8))
        self.values: list[tuple[str, tuple[int, ...]]] = [("x", shape)]
        self.feed = {"x": floats(*shape, seed=draw(st.integers(0, 99)))}

    def one(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def add(self, kind: str, inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(kind, inputs, name, **attributes))
        return name

    def give(self, name: str, shape: tuple[int, ...]) -> None:
        self.values.append((name, shape))

    def same(self, name: str, shape: tuple[int, ...]) -> str:
        """Another tensor that can be broadcast to this one, mostly of the same shape."""
        found = [
            other
            for other, size in self.values
            if all(a in (1, b) for a, b in zip(size, shape, strict=True))
        ]
        return str(self.draw(st.sampled_from(found)))

    # each step takes a tensor and its shape

    def conv(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        kernel, stride, begin, end = (
            self.one(1, 3),
            self.one(1, 2),
            self.one(0, 1),
            self.one(0, 1),
        )
        group = self.one(1, *(g for g in (2, c) if c % g == 0))
        out = group * self.one(1, 2) if group > 1 else self.one(3, 4, 8)
        sizes = [(s + begin + end - kernel) // stride + 1 for s in (h, w)]
        if min(sizes) < 1:
            return
        weight = floats(out, c // group, kernel, kernel) / np.float32(np.sqrt(c // group) * kernel)
        name = self.add(
            "Conv",
            f"{x} {self.constant(weight)} {self.constant(floats(out))}",
            strides=[stride, stride],
            pads=[begin, begin, end, end],
            group=group,
        )
        self.give(name, (n, out, *sizes))

    def transposed(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        if h > 8:
            return
        kernel, pad = self.one(2, 3, 4), self.one(0, *([1] if min(h, w) > 1 else []))
        weight = floats(c, 3, kernel, kernel) / np.float32(np.sqrt(c) * kernel)
        name = self.add("ConvTranspose", f"{x} {self.constant(weight)}", strides=[2, 2],
                        pads=[pad] * 4)  # fmt: skip
        self.give(name, (n, 3, *((s - 1) * 2 + kernel - 2 * pad for s in (h, w))))

    def pool(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        kind, kernel, stride, pad = (
            self.one("MaxPool", "AveragePool"),
            self.one(2, 3),
            self.one(1, 2),
            self.one(0, 1),
        )
        sizes = [(s + 2 * pad - kernel) // stride + 1 for s in (h, w)]
        if min(sizes) < 1:
            return
        name = self.add(kind, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        self.give(name, (n, c, *sizes))

    def activation(self, x: str, shape: tuple[int, ...]) -> None:
        kind = self.one("Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Abs", "Neg", "Clip")
        if kind == "Clip":
            least, most = self.one((0, 6), (-1, 1), (0, 3), (-2, 2))
            x = f"{x} {self.constant(scalar(least))} {self.constant(scalar(most))}"
        self.give(self.add(kind, x), shape)

    def slopes(self, x: str, shape: tuple[int, ...]) -> None:
        self.give(self.add("PRelu", f"{x} {self.constant(floats(shape[1], 1, 1))}"), shape)

    def by_constant(self, x: str, shape: tuple[int, ...]) -> None:
        _, c, h, w = shape
        other = self.constant(floats(*self.one((c, 1, 1), (), (1, c, h, w), (w,), (h, 1))))
        self.give(self.add(self.one("Add", "Sub", "Mul", "Max"), f"{x} {other}"), shape)

    def by_other(self, x: str, shape: tuple[int, ...]) -> None:
        pair = [x, self.same(x, shape)]
        if self.draw(st.booleans()):
            pair.reverse()
        self.give(self.add(self.one("Add", "Sub", "Mul", "Min"), " ".join(pair)), shape)

    def by_less(self, x: str, shape: tuple[int, ...]) -> None:
        """With a tensor of fewer axes that is computed, too."""
        y = self.add("ReduceMax", x, axes=self.one([0], [0, 1], [0, 1, 2]), keepdims=0)
        pair = [x, y]
        if self.draw(st.booleans()):
            pair.reverse()
        self.give(self.add(self.one("Add", "Sub", "Mul", "Max"), " ".join(pair)), shape)

    def concat(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.one(1, 2, 3)
        found = [
            (name, size)
            for name, size in self.values
            if all(size[other] == shape[other] for other in range(4) if other != axis)
        ]
        other, size = self.draw(st.sampled_from(found))
        total = shape[axis] + size[axis]
        if total <= 24:
            made = (*shape[:axis], total, *shape[axis + 1 :])
            self.give(self.add("Concat", f"{x} {other}", axis=axis), made)

    def split(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.one(1, 2, 3)
        if shape[axis] < 2:
            return
        first = self.draw(st.integers(1, shape[axis] - 1))
        names = [f"v{len(self.nodes)}", f"w{len(self.nodes)}"]
        sizes = self.constant(ints(first, shape[axis] - first))
        self.nodes.append(node("Split", f"{x} {sizes}", " ".join(names), axis=axis))
        self.give(self.add("Concat", f"{names[1]} {names[0]}", axis=axis), shape)

    def shuffled(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        groups = self.one(*(g for g in (1, 2, 3, 4) if c % g == 0))
        y = self.add("Reshape", f"{x} {self.constant(ints(n, groups, c // groups, h, w))}")
        y = self.add("Transpose", y, perm=[0, 2, 1, 3, 4])
        self.give(self.add("Reshape", f"{y} {self.constant(ints(*shape))}"), shape)

    def turned(self, x: str, shape: tuple[int, ...]) -> None:
        perm = self.one([0, 1, 3, 2], [0, 2, 1, 3], [0, 3, 1, 2], [0, 2, 3, 1], [0, 3, 2, 1])
        self.give(self.add("Transpose", x, perm=perm), tuple(shape[axis] for axis in perm))

    def regrouped(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        made = self.one((n, c, w, h), (n, h, c, w), (n, c * h, 1, w), (n, 1, c, h * w))
        if made[1] <= 24:
            self.give(self.add("Reshape", f"{x} {self.constant(ints(*made))}"), made)

    def tokens(self, x: str, shape: tuple[int, ...]) -> None:
        """Attention's way: flat, transposed, normalized, multiplied, back."""
        n, c = shape[:2]
        y = self.add("Reshape", f"{x} {self.constant(ints(n, c, -1))}")
        y = self.add("Transpose", y, perm=[0, 2, 1])
        if self.draw(st.booleans()):
            y = self.add("LayerNormalization", f"{y} {self.constant(floats(c))}", epsilon=0.1)
        if self.draw(st.booleans()):
            y = self.add("MatMul", f"{y} {self.constant(floats(c, c) / np.float32(c))}")
        if self.draw(st.booleans()):
            y = self.add("Softmax", y, axis=self.one(1, 2))
        y = self.add("Transpose", y, perm=[0, 2, 1])
        self.give(self.add("Reshape", f"{y} {self.constant(ints(*shape))}"), shape)

    def channels_last(self, x: str, shape: tuple[int, ...]) -> None:
        c = shape[1]
        y = self.add("Transpose", x, perm=[0, 2, 3, 1])
        y = self.add("MatMul", f"{y} {self.constant(floats(c, c) / np.float32(c))}")
        self.give(self.add("Transpose", y, perm=[0, 3, 1, 2]), shape)

    def attended(self, x: str, shape: tuple[int, ...]) -> None:
        """Squeezed, excited."""
        kind = self.one("GlobalAveragePool", "GlobalMaxPool", "ReduceMean")
        y = self.add(kind, x, axes=[2, 3]) if kind == "ReduceMean" else self.add(kind, x)
        y = self.add("Sigmoid", y)
        self.give(self.add("Mul", f"{x} {y}"), shape)

    def reduced(self, x: str, shape: tuple[int, ...]) -> None:
        axis, kind = self.one(1, 2, 3), self.one("ReduceMax", "ReduceMean", "ReduceMin")
        y = self.add(kind, x, axes=[axis], keepdims=0)
        y = self.add("Unsqueeze", f"{y} {self.constant(ints(axis))}")
        self.give(y, tuple(1 if place == axis else n for place, n in enumerate(shape)))

    def sliced(self, x: str, shape: tuple[int, ...]) -> None:
        axis, step = self.one(1, 2, 3), self.one(1, 2, -1)
        if shape[axis] < 3:
            return
        begin, end = (1, INT64.max) if step > 0 else (-2, INT64.min)
        given = [self.constant(ints(number)) for number in (begin, end, axis, step)]
        left_over = len(range(shape[axis])[1::step] if step > 0 else range(shape[axis])[-2::step])
        made = tuple(left_over if place == axis else n for place, n in enumerate(shape))
        self.give(self.add("Slice", " ".join([x, *given])), made)

    def surrounded(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        mode = self.one("constant", "reflect", "edge")
        if mode == "reflect" and min(h, w) < 2:
            return
        pads = ints(0, 0, 1, 0, 0, 0, 1, 1)
        self.give(self.add("Pad", f"{x} {self.constant(pads)}", mode=mode), (n, c, h + 2, w + 1))

    def resized(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        if h * w > 100:
            return
        mode, where = self.one("nearest", "linear"), self.one("half_pixel", "asymmetric")
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        name = self.add(
            "Resize", f"{x} - {scales}", mode=mode, coordinate_transformation_mode=where
        )
        self.give(name, (n, c, 2 * h, 2 * w))

    def depth(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        if c % 4 == 0 and h <= 8:
            name = self.add("DepthToSpace", x, blocksize=2, mode=self.one("DCR", "CRD"))
            self.give(name, (n, c // 4, 2 * h, 2 * w))
        elif h % 2 == 0 and w % 2 == 0 and c <= 6:
            self.give(self.add("SpaceToDepth", x, blocksize=2), (n, 4 * c, h // 2, w // 2))

    def gathered(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.one(1, 2, 3)
        index = self.constant(ints(*range(shape[axis] - 1, -1, -1)))
        self.give(self.add("Gather", f"{x} {index}", axis=axis), shape)

    def soft(self, x: str, shape: tuple[int, ...]) -> None:
        self.give(self.add("Softmax", x, axis=self.one(1, 2, 3)), shape)

    def normalized(self, x: str, shape: tuple[int, ...]) -> None:
        c = shape[1]
        given = [self.constant(floats(c)), self.constant(floats(c, seed=1))]
        if self.draw(st.booleans()):
            name = self.add("InstanceNormalization", " ".join([x, *given]), epsilon=0.1)
        else:
            more = [self.constant(floats(c)), self.constant(np.abs(floats(c)) + np.float32(0.5))]
            name = self.add("BatchNormalization", " ".join([x, *given, *more]))
        self.give(name, shape)

    def chosen(self, x: str, shape: tuple[int, ...]) -> None:
        """The greater of two, by comparing and selecting."""
        other = self.same(x, shape)
        mask = self.add("Greater", f"{x} {other}")
        self.give(self.add("Where", f"{mask} {x} {other}"), shape)

    def product(self, x: str, shape: tuple[int, ...]) -> None:
        """By its own transpose."""
        n, c, h, w = shape
        y = self.add("Transpose", x, perm=[0, 1, 3, 2])
        root = self.constant(scalar(w))
        self.give(self.add("Div", f"{self.add('MatMul', f'{x} {y}')} {root}"), (n, c, h, h))


STEPS = [
    Growing.conv,
    Growing.conv,
    Growing.transposed,
    Growing.pool,
    Growing.activation,
    Growing.slopes,
    Growing.by_constant,
    Growing.by_other,
    Growing.by_other,
    Growing.by_less,
    Growing.concat,
    Growing.split,
    Growing.shuffled,
    Growing.turned,
    Growing.regrouped,
    Growing.tokens,
    Growing.channels_last,
    Growing.attended,
    Growing.reduced,
    Growing.sliced,
    Growing.surrounded,
    Growing.resized,
    Growing.depth,
    Growing.gathered,
    Growing.soft,
    Growing.normalized,
    Growing.chosen,
    Growing.product,
]


@st.composite
def grown(draw: Draw) -> Graph:
    growing = Growing(draw)
    for _ in range(draw(st.integers(3, 8))):
        step = draw(st.sampled_from(STEPS))
        # Mostly what came last; else a branch begins.
        last = growing.values[-1]
        x, shape = last if draw(st.integers(0, 2)) else draw(st.sampled_from(growing.values))
        step(growing, x, shape)
    if not growing.nodes:
        growing.activation(*growing.values[-1])
    outputs = {growing.values[-1][0], draw(st.sampled_from(growing.values))[0]} - {"x"}
    if draw(st.booleans()):
        x, shape = growing.values[-1]
        weight = growing.constant(floats(int(np.prod(shape[1:])), 5))
        outputs.add(growing.add("Gemm", f"{growing.add('Flatten', x)} {weight}"))
    return graph(growing.nodes, growing.feed, growing.constants, sorted(outputs))


# --- random reshapes


@st.composite
def reshaped(draw: Draw) -> Graph:
    """Axes that are split, merged, dropped, added and moved, with little else between."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=3, max_size=4)))
    feed, constants = {"x": floats(*shape)}, {}
    nodes: list[Any] = []
    x = "x"

    def add_node(kind: str, inputs: str, **attributes: Any) -> str:
        nodes.append(node(kind, inputs, f"v{len(nodes)}", **attributes))
        return f"v{len(nodes) - 1}"

    if draw(st.booleans()):
        x = add_node("MaxPool", x, kernel_shape=[1] * (len(shape) - 2))
    seen = [x]
    for _ in range(draw(st.integers(2, 7))):
        kind = draw(st.sampled_from(["split", "merge", "one", "move", "move", "touch", "reduce"]))
        if kind == "move":
            perm = draw(st.permutations(range(len(shape))))
            x = add_node("Transpose", x, perm=list(perm))
            shape = tuple(shape[axis] for axis in perm)
        elif kind == "touch":
            constants[f"c{len(nodes)}"] = floats(*shape[draw(st.integers(0, len(shape))) :])
            x = add_node(draw(st.sampled_from(["Add", "Mul"])), f"{x} c{len(nodes)}")
        elif kind == "reduce":
            axis = draw(st.integers(0, len(shape) - 1))
            if len(shape) < 3 or shape[axis] == 1:
                continue
            x = add_node("ReduceMax", x, axes=[axis], keepdims=0)
            shape = (*shape[:axis], *shape[axis + 1 :])
        else:
            sizes = list(shape)
            place = draw(st.integers(0, len(sizes) - 1))
            if kind == "split" and sizes[place] in (4, 6, 8, 9, 12) and len(sizes) < 5:
                factor = 3 if sizes[place] == 9 else 2
                sizes[place : place + 1] = [factor, sizes[place] // factor]
            elif kind == "merge" and place + 1 < len(sizes) and len(sizes) > 2:
                sizes[place : place + 2] = [sizes[place] * sizes[place + 1]]
            elif kind == "one" and sizes[place] == 1 and len(sizes) > 2:
                del sizes[place]
            elif kind == "one" and len(sizes) < 5:
                sizes.insert(place, 1)
            constants[f"c{len(nodes)}"] = np.array(sizes, np.int64)
            x = add_node("Reshape", f"{x} c{len(nodes)}")
            shape = tuple(sizes)
        seen.append(x)
    outputs = {x, draw(st.sampled_from(seen))} - {"x"}
    if not outputs:
        outputs = {add_node("Relu", x)}
    return graph(nodes, feed, constants, sorted(outputs))
