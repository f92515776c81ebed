"""Random float graphs, with the formats in which they are quantized."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import onnx
from hypothesis import strategies as st

from onmetal.calibration.placement import MOVERS, PAIRED, UNARY
from onmetal.targets import Format, Kind
from tests.onnx_models import build, constant, node, value
from tests.qdq_reference import EVERY, VNNI, Arrays, Case, run_node

NEWEST = 20


Draw = Callable[[st.SearchStrategy[Any]], Any]


class Growing:
    """A graph that grows by one drawn operator after the other, each run as it is added."""

    def __init__(self, draw: Draw, opset: int, form: Format) -> None:
        self.draw, self.opset, self.form = draw, opset, form
        self.random = np.random.default_rng(draw(st.integers(0, 999)))
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: Arrays = {}
        self.inputs: list[str] = []
        self.products: set[str] = set()
        """What comes from a MatMul, with no Conv between."""

    def one(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def input(self, *shape: int) -> str:
        name = f"x{len(self.inputs)}"
        self.inputs.append(name)
        self.values[name] = self.array(*shape)
        return name

    def array(self, *shape: int) -> np.ndarray:
        return self.random.normal(size=shape).astype(np.float32)

    def constant(self, array: Any, kind: str = "float32") -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array, kind)
        return name

    def weight(self, *shape: int, fan: int) -> str:
        array = self.array(*shape) / np.sqrt(fan)
        # Of both signs: OpenVINO 2026.4 opens no grouped Conv whose u8 weights have zero point 0.
        array.flat[0], array.flat[-1] = -abs(array.flat[0]) - 0.1, abs(array.flat[-1]) + 0.1
        return self.constant(array)

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """-> the name of the (last) output."""
        number = len(self.nodes)
        names = [f"t{number}" if outputs == 1 else f"t{number}.{i}" for i in range(outputs)]
        entry = node(kind, " ".join(i or "-" for i in inputs), " ".join(names), **attributes)
        entry.name = f"{kind}_{number}"
        known = {**self.values, **self.constants}
        given = run_node(entry, [known[i] if i else None for i in inputs], self.opset)
        self.nodes.append(entry)
        self.values |= dict(zip(names, given, strict=True))
        if kind == "MatMul" or (self.products & set(inputs) and not kind.startswith("Conv")):
            self.products |= set(names)
        return names[-1]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape

    def pick(self, rank: int | None = None) -> str:
        """A tensor of several axes, or of a rank; of rank 4 one of several rows and columns."""
        fit = [name for name, a in self.values.items() if a.ndim == (rank or max(2, a.ndim))]
        if rank == 4:  # OpenVINO 2026.4 opens no pool or Resize behind a MatMul in 8 bits
            fit = [n for n in fit if min(self.shape(n)[1:]) > 1 and n not in self.products]
        if not fit:
            assert rank == 2
            return self.add("Flatten", self.pick(4))
        return str(self.draw(st.sampled_from(fit[::-1])))

    def grow(self, kind: str, of: str | None = None) -> str:
        """Add an operator, and maybe a Relu or Clip after it."""
        name = EMIT[kind](self, of)
        if kind not in MOVERS and self.draw(st.booleans()):
            if self.one(True, False):
                return self.add("Relu", name)
            low, high = self.one((0.0, 6.0), (-0.5, 0.5), (None, 1.0), (0.0, None), (0.1, 0.9))
            bounds = ["" if b is None else self.constant(b) for b in (low, high)]
            return self.add("Clip", name, *bounds)
        return name

    def close(self, name: str) -> str:
        """A product by a constant, to which movers of values lead."""
        width = self.shape(name)[-1]
        weight = self.weight(width, 3, fan=width)
        if len(self.shape(name)) > 2:
            return self.add("MatMul", name, weight)
        return self.add("Gemm", name, weight, self.constant(self.array(3)))

    def model(self) -> Any:
        taken = {name for entry in self.nodes for name in entry.input}
        made = [name for entry in self.nodes for name in entry.output]
        outputs = [name for name in made if name not in taken]
        also = self.draw(st.lists(st.sampled_from(made), max_size=2, unique=True))
        outputs += [name for name in also if name in taken]
        model = build(
            self.nodes,
            [value(name, self.shape(name)) for name in self.inputs if name in taken],
            [value(name, self.shape(name)) for name in outputs],
            [constant(name, a, str(a.dtype)) for name, a in self.constants.items()],
            opset=self.opset,
            ir=10,
        )
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _conv(g: Growing, of: str | None) -> str:
    x = of or g.pick(4)
    channels = g.shape(x)[1]
    group = g.one(1, 1, channels, 2 if channels % 2 == 0 else 1)
    size = g.one(1, 3) if min(g.shape(x)[2:]) >= 3 else 1
    out = group * g.one(1, 2) if group > 1 else g.one(2, 4)
    inputs = [x, g.weight(out, channels // group, size, size, fan=size * size * channels // group)]
    if g.one(True, False):
        inputs.append(g.constant(g.array(out)))
    how = g.one(
        {},
        {"strides": [2, 2]},
        {"pads": [1, 0, 1, 1]},
        {"pads": [1] * 4},
        {"auto_pad": "SAME_UPPER"},
    )
    return g.add("Conv", *inputs, group=group, kernel_shape=[size, size], **how)


def _conv_transpose(g: Growing, of: str | None) -> str:
    x = of or g.pick(4)
    channels = g.shape(x)[1]
    group = g.one(1, 2 if channels % 2 == 0 else 1)
    inputs = [x, g.weight(channels, 2, 2, 2, fan=channels)]
    if g.one(True, False):
        inputs.append(g.constant(g.array(2 * group)))
    return g.add("ConvTranspose", *inputs, group=group, strides=g.one([1, 1], [2, 2]))


def _gemm(g: Growing, of: str | None) -> str:
    x = of or g.pick(2)
    if len(g.shape(x)) != 2:
        x = g.add("Flatten", x)
    width, turned = g.shape(x)[1], g.one(0, 1)
    weight = g.weight(*((5, width) if turned else (width, 5)), fan=width)
    bias = [g.constant(g.array(5))] if g.one(True, True, False) else []
    return g.add("Gemm", x, weight, *bias, transB=turned)


def _matmul(g: Growing, of: str | None) -> str:
    x = of or g.pick(4)
    how = g.one("right", "left", "both", "batched")
    shape = g.shape(x)
    if how == "right":
        return g.close(x)
    if how == "left":
        return g.add("MatMul", g.weight(3, shape[-2], fan=shape[-2]), x)
    if how == "batched":
        return g.add("MatMul", x, g.weight(*shape[:-2], shape[-1], 2, fan=shape[-1]))
    axes = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    return g.add("MatMul", x, g.add("Transpose", x, perm=axes))


def _pair(kind: str) -> Callable[[Growing, str | None], str]:
    def emit(g: Growing, of: str | None) -> str:
        x = of or g.pick()
        shape = g.shape(x)
        partners = [n for n, a in g.values.items() if _fits(a.shape, shape) and kind != "Div"]
        how = g.one("constant", "channels", "number", "left", "other", "other")
        if how == "channels" and x in g.products:  # OpenVINO 2026.4: "any_of(scale.size(), OC, 1U)"
            how = "number"
        if how == "other" and partners:
            return g.add(kind, *g.one((x, g.one(*partners)), (g.one(*partners), x)))
        if how == "other" and kind == "Div":
            half = g.add("Add", g.add("Sigmoid", x), g.constant(0.5))
            return g.add("Div", x, half)
        size = {"channels": (1, shape[1]) + (1,) * (len(shape) - 2), "number": ()}.get(how, shape)
        other = g.constant(np.abs(g.array(*size)) + 0.5 if kind == "Div" else g.array(*size))
        left = how == "left" and kind != "Div"
        return g.add(kind, *((other, x) if left else (x, other)))

    return emit


def _fits(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one tensor can be spread over the other."""
    return len(one) == len(other) and all(a in (1, b) for a, b in zip(one, other, strict=True))


def _concat(g: Growing, of: str | None) -> str:
    x = of or g.pick()
    shape = g.shape(x)
    alike = [n for n, a in g.values.items() if a.shape == shape]
    inputs = [x, g.one(*alike)]
    if g.one(True, False, False):
        inputs.insert(g.one(0, 1, 2), g.constant(2 * g.array(*shape)))
    return g.add("Concat", *inputs, axis=g.one(-1, -1, 1))


def _mover(kind: str) -> Callable[[Growing, str | None], str]:
    def emit(g: Growing, of: str | None) -> str:
        x = of or g.pick(4)
        n, c, h, w = shape = g.shape(x)
        if kind == "Reshape":
            return g.add(kind, x, g.constant(g.one([n, -1], [n, c, -1], [0, 0, w, h]), "int64"))
        if kind == "Flatten":
            return g.add(kind, x, axis=g.one(1, 2))
        if kind == "Transpose":
            return g.add(kind, x, perm=g.one([0, 2, 3, 1], [0, 1, 3, 2]))
        if kind == "Unsqueeze":
            return g.add(kind, x, g.constant([g.one(0, 2)], "int64"))
        if kind == "Squeeze":
            part = g.add("Slice", x, *(g.constant([v], "int64") for v in (0, 1, 1)))
            return g.add(kind, part, g.constant([1], "int64"))
        if kind == "Slice":
            axis = g.one(1, 3)
            begin, end, step = g.one((0, 1, 1), (1, 9, 1), (0, 9, 2), (-1, -9, -1))
            return g.add(kind, x, *(g.constant([v], "int64") for v in (begin, end, axis, step)))
        if kind == "Split":
            sizes = [1, c - 1]
            return g.add(kind, x, g.constant(sizes, "int64"), outputs=2, axis=1)
        if kind == "Pad":
            pads = g.one([0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 0, 2, 0, 0, 1, 0])
            modes = ("edge", "reflect") if w > 2 else ("edge",)
            mode = g.one("constant", "constant", *modes)
            zero = [g.constant(0.0)] if mode == "constant" and g.one(True, False) else []
            return g.add(kind, x, g.constant(pads, "int64"), *zero, mode=mode)
        if kind == "Gather":
            return g.add(kind, x, g.constant(g.one([0], [1, 0, 1]), "int64"), axis=g.one(1, 3))
        if kind == "Resize":
            return g.add(kind, x, "", g.constant([1, 1, 2, 2]), mode="nearest")
        if kind == "MaxPool":
            how = g.one({}, {"strides": [2, 2]}, {"pads": [1] * 4}, {"ceil_mode": 1})
            return g.add(kind, x, kernel_shape=[2, 2], **how)
        if kind == "DepthToSpace":
            wide = g.add("Conv", x, g.weight(4, c, 1, 1, fan=c))
            return g.add(kind, wide, blocksize=2, mode=g.one("DCR", "CRD"))
        if kind == "SpaceToDepth":
            return g.add(kind, g.grow("Resize", x), blocksize=2)
        if kind == "Expand":
            return g.add(kind, x, g.constant([2, *[1] * 4], "int64"))
        assert kind == "Tile", shape
        return g.add(kind, x, g.constant([1, g.one(1, 2), 1, 2], "int64"))

    return emit


def _unary(kind: str) -> Callable[[Growing, str | None], str]:
    def emit(g: Growing, of: str | None) -> str:
        pooled = kind in ("AveragePool", "GlobalAveragePool")
        x = of or g.pick(4 if pooled else None)
        if kind == "AveragePool":
            how = g.one(
                {}, {"strides": [2, 2]}, {"pads": [1] * 4, "count_include_pad": g.one(0, 0, 1)}
            )
            return g.add(kind, x, kernel_shape=[2, 2], **how)
        if kind == "ReduceMean":
            axes, keep = g.one([-1], [1], [1, -1]), g.one(0, 1) if len(g.shape(x)) > 3 else 1
            if g.opset < 18:
                return g.add(kind, x, axes=axes, keepdims=keep)
            return g.add(kind, x, g.constant(axes, "int64"), keepdims=keep)
        how = {
            "LeakyRelu": g.one({}, {"alpha": 0.2}, {"alpha": 1.5}),
            "HardSigmoid": g.one({}, {"alpha": 0.3, "beta": 0.4}),
            "Elu": g.one({}, {"alpha": 0.5}),
            "Softmax": g.one({}, {"axis": 1}),
        }.get(kind, {})
        return g.add(kind, x, **how)

    return emit


EMIT: dict[str, Callable[[Growing, str | None], str]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Concat": _concat,
    **{kind: _pair(kind) for kind in PAIRED if kind != "Concat"},
    **{kind: _mover(kind) for kind in MOVERS},
    **{kind: _unary(kind) for kind in UNARY - MOVERS},
}


def grown_case(draw: Draw, form: Format, kind: str | None = None) -> Case:
    """One to about eight operators. `kind`: one that must be there, between two products."""
    g = Growing(draw, draw(st.integers(14 if kind == "HardSwish" else 13, NEWEST)), form)
    x = g.input(1, 4, g.one(5, 6), 6)
    if g.one(True, False, False):
        g.input(1, 4, 3)
    new = {"HardSwish"} if g.opset < 14 else set()
    kinds = st.sampled_from([kind for kind in EVERY if kind not in new])
    if kind:
        g.close(g.grow(kind, g.grow("Conv", x)))
    for wanted in draw(st.lists(kinds, min_size=0 if kind else 1, max_size=3 if kind else 5)):
        g.grow(wanted)
    if draw(st.booleans()):
        g.close(g.pick())
    model = g.model()
    shapes = {entry.name: g.shape(entry.name) for entry in model.graph.input}
    feeds = [
        {n: np.float32(scale) * (g.array(*s) + np.float32(shift)) for n, s in shapes.items()}
        for scale, shift in ((1.0, 0.0), (1.0, 0.5), (0.0, 0.0))
    ]
    return Case(model, feeds)


@st.composite
def cases(draw: st.DrawFn, kind: str | None = None) -> tuple[Case, Format]:
    """A graph, and any format that a target file may hold. `kind`: an operator that is in both."""
    some = st.sets(st.sampled_from(EVERY))
    listed = draw(st.just(set(EVERY)) | some) | {"MatMul"}
    if kind:
        listed |= {kind, "Conv", *BESIDE.get(kind, ())}
    activation: Kind = draw(st.sampled_from(("u8", "s8")))
    weight: Kind = draw(st.sampled_from(("s8", "u8")))
    bits: Literal[7, 8] = draw(st.sampled_from((8, 7) if VNNI else (7,)))
    symmetric = draw(st.booleans())
    if kind == "ConvTranspose" and draw(st.booleans()):  # see right_in_openvino
        weight, symmetric = "s8", True
    form = Format(
        operators=tuple(sorted(listed)),
        activation=activation,
        activation_symmetric=draw(st.booleans()),
        weight=weight,
        # u8 weights of 7 bits are asymmetric: target files say so.
        weight_symmetric=symmetric and (weight, bits) != ("u8", 7),
        per_channel=draw(st.booleans()),
        weight_bits=bits,
        same_scale=tuple(sorted(draw(st.just(set(MOVERS)) | some))),
    )
    return grown_case(draw, form, kind), form


BESIDE = {
    "SpaceToDepth": ("Resize",),
    "Squeeze": ("Slice",),
    "Gemm": ("Flatten",),
    "Div": ("Sigmoid", "Add"),
}
