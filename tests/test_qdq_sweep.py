"""Every operator that the quantizer places, by trial: QuantizeLinear and DequantizeLinear around it
as the writer puts them, against float, in each runtime that takes such graphs.

Covered: all of `targets.OPERATORS` over their attributes, ranks and operands, in the lowest and the
highest opset of the float graph, by every form of numbers of the targets' own recipes. What a
runtime computes wrong must be named in its wrong_in_8_bits.py; with that, all of it must be right.
Where a runtime is wrong in float already, nothing is asked of its 8 bits: candidates in float are
judged against the model elsewhere.

The graphs are parts of one file for each opset, which have nothing in common: one compilation runs
them all.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from msgspec.structs import replace
from onnx import helper

from onmetal import targets
from onmetal.calibration import placement
from onmetal.calibration.fidelity import sqnr_db
from onmetal.calibration.qdq_writer import quantize
from onmetal.converters.onnx import rules
from onmetal.converters.onnx.floats import LEAST_OPSET, MOST_OPSET
from onmetal.converters.onnx.graph import Graph
from onmetal.runtimes import fit, wrong_in_8_bits
from onmetal.runtimes.openvino import session as run_openvino
from onmetal.targets import OPERATORS, Format
from tests.onnx_models import build, constant, node, value

openvino: Any = vars(run_openvino)["openvino"]
"""As the runner imports it: without telemetry."""
Arrays = dict[str, np.ndarray]

OPSETS = (LEAST_OPSET, 18, MOST_OPSET)
"""18: axes of reductions became inputs."""
IMAGE = (1, 4, 9, 8)
LOST_DB = 6.0
"""A runtime may round otherwise than the graph says, in steps; what is wrong is far below."""
ENOUGH_DB = 34.0
RIGHT_DB = 60.0
"""In float."""


class Part(NamedTuple):
    """One small graph: `x` (and `z`) in, `y` out."""

    name: str
    nodes: list[Any]
    shape: tuple[int, ...]
    tensors: list[Any]
    second: tuple[int, ...] | None = None


def some(name: str, *shape: int) -> Any:
    random = np.random.default_rng([*name.encode(), *shape])
    return constant(name, random.normal(size=shape) * 0.4)


def fixed(name: str, *numbers: Any) -> Any:
    return constant(name, np.array(numbers), "int64")


# --- operators that run in 8 bits for their own sake


def convolutions() -> Iterator[Part]:
    plain = (6, 4, 3, 3)
    kinds: list[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
        ({"pads": [0, 1, 2, 1]}, IMAGE, plain),
        ({"strides": [2, 3], "pads": [1] * 4}, IMAGE, plain),
        ({"dilations": [2, 1]}, IMAGE, plain),
        ({"group": 2, "pads": [1] * 4}, IMAGE, (6, 2, 3, 3)),
        ({"group": 4, "pads": [1] * 4}, IMAGE, (4, 1, 3, 3)),
        ({"group": 4}, IMAGE, (8, 1, 3, 3)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, IMAGE, plain),
        ({"auto_pad": "SAME_LOWER", "strides": [2, 2]}, IMAGE, (6, 4, 4, 3)),
        ({"auto_pad": "VALID"}, IMAGE, plain),
        ({"pads": [1, 1]}, (1, 4, 17), (6, 4, 3)),
        ({"strides": [2], "dilations": [2]}, (1, 4, 17), (6, 4, 3)),
        ({"pads": [1] * 6}, (1, 3, 5, 6, 7), (4, 3, 3, 3, 3)),
        ({}, (2, 16, 5, 5), (16, 16, 1, 1)),
        ({}, (1, 1, 5, 5), (1, 1, 3, 3)),
    ]
    for (attributes, shape, kernel), bias in itertools.product(kinds, (False, True)):
        made = node("Conv", "x w b" if bias else "x w", "y", **attributes)
        tensors = [some("w", *kernel), *([some("b", kernel[0])] if bias else [])]
        yield Part(f"Conv {kernel} {attributes} {bias=}", [made], shape, tensors)


def transposed() -> Iterator[Part]:
    kinds: list[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
        ({}, (1, 4, 5, 6), (4, 3, 3, 3)),
        (
            {"strides": [2, 2], "output_padding": [1, 1], "pads": [1] * 4},
            (1, 4, 5, 6),
            (4, 3, 3, 3),
        ),
        ({"group": 2, "strides": [2, 2]}, (1, 4, 5, 6), (4, 3, 3, 3)),
        ({"dilations": [2, 2]}, (1, 4, 5, 6), (4, 3, 3, 3)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (1, 4, 5, 6), (4, 3, 3, 3)),
        ({"strides": [2]}, (1, 4, 7), (4, 3, 3)),
        ({}, (1, 2, 4, 4, 4), (2, 3, 2, 2, 2)),
    ]
    for attributes, shape, kernel in kinds:
        tensors = [some("w", *kernel), some("b", kernel[1] * attributes.get("group", 1))]
        made = node("ConvTranspose", "x w b", "y", **attributes)
        yield Part(f"ConvTranspose {kernel} {attributes}", [made], shape, tensors)


def products() -> Iterator[Part]:
    for across, alpha, bias in itertools.product(
        (0, 1), (1.0, 0.5), (None, (6,), (1, 6), (5, 1), ())
    ):
        inputs = "x w" if bias is None else "x w b"
        made = node("Gemm", inputs, "y", transB=across, alpha=alpha, beta=2 * alpha)
        tensors = [some("w", *((6, 7) if across else (7, 6)))]
        tensors += [] if bias is None else [some("b", *bias)]
        yield Part(f"Gemm {across=} {alpha=} {bias=}", [made], (5, 7), tensors)
    turned = node("Gemm", "x w", "y", transA=1)
    yield Part("Gemm transA", [turned], (7, 5), [some("w", 7, 6)])
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((5, 7), (7, 6)),
        ((2, 5, 7), (7, 6)),
        ((2, 3, 5, 7), (7, 6)),
        ((7,), (7, 6)),
        ((5, 7), (7,)),
        ((2, 5, 7), (7,)),
        ((2, 5, 7), (2, 7, 6)),
        ((5, 7), (2, 7, 6)),
        ((2, 1, 5, 7), (3, 7, 6)),
        ((2, 5, 1), (1, 3)),
        ((1, 7), (7, 1)),
    ]
    for left, right in shapes:
        weight = [some("w", *right)]
        yield Part(f"MatMul {left} {right}", [node("MatMul", "x w", "y")], left, weight)
        both = [node("MatMul", "x z", "y")]
        yield Part(f"MatMul of two {left} {right}", both, left, [], right)
    first = [node("MatMul", "w x", "y")]
    yield Part("MatMul by what is on the left", first, (2, 7, 5), [some("w", 4, 7)])


# --- operators between these


def after(
    name: str, nodes: list[Any], tensors: list[Any] | None = None, shape: tuple[int, ...] = IMAGE
) -> Part:
    """The nodes take `h`, what a convolution gives, and `g`, what another does."""
    channels, flat = shape[1], [1] * (len(shape) - 2)
    own = [some("w0", channels, channels, *flat), some("w1", channels, channels, *flat)]
    taken = {name for made in nodes for name in made.input}
    heads = [node("Conv", "x w0", "h"), node("Conv", "x w1", "g")]
    heads = [made for made in heads if made.output[0] in taken]
    needed = {name for made in heads for name in made.input}
    own = [tensor for tensor in own if tensor.name in needed]
    return Part(name, [*heads, *nodes], shape, [*own, *(tensors or [])])


def pools(opset: int) -> Iterator[Part]:
    """With ceil_mode, only sizes at which no window lies in padding alone: there ONNX Runtime
    infers other shapes than its kernels give."""

    def pooled(kind: str, shape: tuple[int, ...] = IMAGE, **attributes: Any) -> Part:
        name = f"{kind} {shape} {attributes}"
        if kind == "AveragePool":
            return after(name, [node(kind, "h", "y", **attributes)], shape=shape)
        end = some("w9", 2, 4, *[1] * (len(shape) - 2))  # a maximum at the end would stay float
        nodes = [node(kind, "h", "q", **attributes), node("Conv", "q w9", "y")]
        return after(name, nodes, [end], shape)

    several: list[dict[str, Any]] = [
        {"kernel_shape": kernel, "strides": strides, "pads": pads}
        for kernel, strides, pads in itertools.product(
            ([2, 2], [3, 2]), ([1, 1], [2, 2], [3, 2]), ([0] * 4, [1] * 4, [0, 0, 1, 1])
        )
    ]
    several += [
        {"kernel_shape": kernel, "strides": [2, 2], "pads": pads, "ceil_mode": 1}
        for kernel, pads in (([2, 2], [0] * 4), ([3, 3], [0] * 4), ([3, 3], [1] * 4))
    ]
    several += [
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": side}
        for side in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ]
    for attributes in several:
        yield pooled("MaxPool", **attributes)
        yield pooled("AveragePool", **attributes)
        yield pooled("AveragePool", count_include_pad=1, **attributes)
    for pads in ([0] * 4, [1] * 4):
        wide: dict[str, Any] = {"kernel_shape": [2, 3], "pads": pads, "dilations": [2, 2]}
        yield pooled("MaxPool", **wide)
        if opset >= 19:
            yield pooled("AveragePool", **wide)
            yield pooled("AveragePool", count_include_pad=1, **wide)
    for kind in ("MaxPool", "AveragePool"):
        yield pooled(kind, (1, 4, 9), kernel_shape=[3], strides=[2], pads=[1, 1])
        yield pooled(kind, (1, 4, 5, 6, 5), kernel_shape=[2] * 3, strides=[2, 1, 1])
    for shape in ((2, 4, 9), IMAGE, (1, 4, 3, 4, 5)):
        made = node("GlobalAveragePool", "h", "y")
        yield after(f"GlobalAveragePool {shape}", [made], shape=shape)


def curves(opset: int) -> Iterator[Part]:
    kinds: list[tuple[str, list[dict[str, Any]]]] = [
        ("Sigmoid", [{}]),
        ("Tanh", [{}]),
        ("LeakyRelu", [{}, {"alpha": 0.3}, {"alpha": 2.0}, {"alpha": -0.5}]),
        ("HardSigmoid", [{}, {"alpha": 0.5, "beta": 0.3}]),
        ("HardSwish", [{}] if opset >= 14 else []),
        ("Elu", [{}, {"alpha": 2.0}]),
        ("Softmax", [{}, {"axis": 0}, {"axis": 1}, {"axis": 2}]),
    ]
    for kind, several in kinds:
        for attributes, shape in itertools.product(several, (IMAGE, (2, 4, 6))):
            made = node(kind, "h", "y", **attributes)
            yield after(f"{kind} {attributes} {shape}", [made], shape=shape)
    for axes, kept in itertools.product(([2, 3], [1], [-1], [0, 2], None), (0, 1)):
        name = f"ReduceMean {axes} {kept=}"
        if opset < 18:
            given = {"axes": axes} if axes else {}
            yield after(name, [node("ReduceMean", "h", "y", keepdims=kept, **given)])
        else:
            inputs, tensors = ("h axes", [fixed("axes", *axes)]) if axes else ("h", [])
            yield after(name, [node("ReduceMean", inputs, "y", keepdims=kept)], tensors)


def sums() -> Iterator[Part]:
    for kind in ("Add", "Sub", "Mul", "Div"):
        for shape in ((4, 1, 1), IMAGE, (), (8,), (1,), (2, 1, 4, 1, 1)):
            k = constant("k", np.random.default_rng(3).uniform(0.3, 2, shape))
            yield after(f"{kind} by {shape}", [node(kind, "h k", "y")], [k])
            if kind != "Div":
                yield after(f"{kind} of {shape}", [node(kind, "k h", "y")], [k])
        other = [node("Sigmoid", "g", "s")]
        yield after(f"{kind} of two", [*other, node(kind, "h s", "y")])
        other = [*other, node("GlobalAveragePool", "s", "a")]
        yield after(f"{kind} of one that is stretched", [*other, node(kind, "h a", "y")])
        if kind != "Div":
            yield after(f"{kind} that stretches the first", [*other, node(kind, "a h", "y")])
            yield after(f"{kind} by itself", [node(kind, "h h", "y")])
    for axis in (0, 1, 2, 3, -1):
        k = constant("k", np.random.default_rng(4).normal(size=IMAGE))
        third = [node("Sigmoid", "h", "s")]
        yield after(f"Concat {axis=}", [node("Concat", "h g", "y", axis=axis)])
        yield after(f"Concat {axis=} twice", [node("Concat", "h h", "y", axis=axis)])
        yield after(f"Concat {axis=} constant", [node("Concat", "h k", "y", axis=axis)], [k])
        yield after(f"Concat {axis=} of 3", [*third, node("Concat", "h g s", "y", axis=axis)])


def followed() -> Iterator[Part]:
    low, high = constant("low", -0.2), constant("high", 0.3)
    ends = {
        "Relu": (node("Relu", "c", "y"), []),
        "Clip": (node("Clip", "c low high", "y"), [low, high]),
        "Clip above": (node("Clip", "c - high", "y"), [high]),
        "Clip away from 0": (node("Clip", "c low high", "y"), [constant("low", 0.1), high]),
    }
    firsts = {
        "Conv": (node("Conv", "h w3", "c"), [some("w3", 4, 4, 1, 1)]),
        "Add": (node("Add", "h g", "c"), []),
        "Mul": (node("Mul", "h g", "c"), []),
        "Concat": (node("Concat", "h g", "c", axis=1), []),
        "GlobalAveragePool": (node("GlobalAveragePool", "h", "c"), []),
    }
    for (one, (first, own)), (other, (last, bounds)) in itertools.product(
        firsts.items(), ends.items()
    ):
        yield after(f"{one} and {other}", [first, last], [*own, *bounds])


def movers(opset: int) -> Iterator[Part]:
    """They lead to a convolution, without which they would stay float."""

    def led(name: str, nodes: list[Any], channels: int, *tensors: Any, rank: int = 4) -> Part:
        end = node("Conv", "q w9", "y")
        w9 = some("w9", 3, channels, *[1] * (rank - 2))
        shape = (1, 4, 8, 6) if name == "SpaceToDepth" else IMAGE
        return after(name, [*nodes, end], [*tensors, w9], shape)

    for order, channels in (([0, 1, 3, 2], 4), ([0, 2, 1, 3], 9), ([0, 3, 1, 2], 8)):
        yield led(f"Transpose {order}", [node("Transpose", "h", "q", perm=order)], channels)
    yield led("Reshape", [node("Reshape", "h s", "q")], 2, fixed("s", 1, 2, 18, 8))
    yield led("Reshape by 0, -1", [node("Reshape", "h s", "q")], 4, fixed("s", 0, 0, -1), rank=3)
    nodes = [node("Unsqueeze", "h a", "u"), node("Squeeze", "u a", "q")]
    yield led("Unsqueeze Squeeze", nodes, 4, fixed("a", 2))
    for starts, ends, axes, steps, channels in (
        ([1], [3], [1], [1], 2),
        ([-1], [-10], [2], [-1], 4),
        ([0, 0], [9, 7], [2, 3], [2, 3], 4),
    ):
        tensors = [fixed(n, *v) for n, v in zip("bcde", (starts, ends, axes, steps), strict=True)]
        yield led(f"Slice {starts} {ends}", [node("Slice", "h b c d e", "q")], channels, *tensors)
    for mode in ("constant", "reflect", "edge", *(("wrap",) if opset >= 19 else ())):
        made = node("Pad", "h p", "q", mode=mode)
        yield led(f"Pad {mode}", [made], 4, fixed("p", 0, 0, 1, 2, 0, 0, 0, 1))
    for fill in (0.0, 1.0, 9.0):
        tensors = [fixed("p", 0, 0, 1, 2, 0, 0, 0, 1), constant("v", fill)]
        yield led(f"Pad by {fill}", [node("Pad", "h p v", "q")], 4, *tensors)
    yield led("Pad away", [node("Pad", "h p", "q")], 4, fixed("p", 0, 0, -1, 0, 0, 0, 1, -2))
    for axis, numbers in ((1, [3, 0]), (2, [0, -1, 4]), (3, [1])):
        made = node("Gather", "h i", "q", axis=axis)
        yield led(f"Gather {axis=}", [made], 2 if axis == 1 else 4, fixed("i", *numbers))
    made = node("Gather", "h i", "q", axis=3)
    yield led("Gather by a table", [made], 4, fixed("i", [0, 1], [2, 3]), rank=5)
    for mode in ("DCR", "CRD"):
        yield led(
            f"DepthToSpace {mode}", [node("DepthToSpace", "h", "q", blocksize=2, mode=mode)], 1
        )
    yield led("SpaceToDepth", [node("SpaceToDepth", "h", "q", blocksize=2)], 16)
    yield led("Expand", [node("Expand", "h s", "q")], 4, fixed("s", 2, 4, 9, 8))
    yield led("Tile", [node("Tile", "h s", "q")], 8, fixed("s", 1, 2, 1, 3))
    modes = ["asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"]
    for mode, near, scale in itertools.product(
        [*modes, *(["half_pixel_symmetric"] if opset >= 19 else [])],
        ("floor", "round_prefer_floor", "ceil", "round_prefer_ceil"),
        ([1, 1, 2, 2], [1, 1, 1.6, 0.5]),
    ):
        made = node(
            "Resize",
            "h - k",
            "q",
            mode="nearest",
            coordinate_transformation_mode=mode,
            nearest_mode=near,
        )
        yield led(f"Resize {mode} {near} {scale}", [made], 4, constant("k", scale))
    for mode in ("linear", "cubic"):
        made = node("Resize", "h - k", "q", mode=mode)
        yield led(f"Resize {mode}", [made], 4, constant("k", [1, 1, 2, 2]))
    flat = [node("Flatten", "h", "q"), node("Gemm", "q w9", "y")]
    yield after("Flatten", flat, [some("w9", 288, 3)])
    split = [
        node("Split", "h s", "q r", axis=1),
        node("Conv", "q w9", "a"),
        node("Conv", "r w8", "b"),
        node("Add", "a b", "y"),
    ]
    yield after("Split", split, [fixed("s", 1, 3), some("w9", 3, 1, 1, 1), some("w8", 3, 3, 1, 1)])


LACKING = {"openvino": ("Pad wrap", "Resize half_pixel_symmetric"), "onnxruntime": ()}
"""What the runtime does not read at all."""


def refused(part: Part, runtime: str, signed: bool) -> bool:
    """What converters.openvino refuses: its wrong numbers spread over the whole file."""
    counted = "count_include_pad" in part.name
    concat = signed and any(made.op_type == "Concat" for made in part.nodes)
    return runtime == "openvino" and (counted or concat)


@cache
def parts(opset: int, runtime: str, signed: bool = False) -> list[Part]:
    every = [convolutions(), transposed(), products(), pools(opset), curves(opset), sums()]
    return [
        part
        for kind in (*every, followed(), movers(opset))
        for part in kind
        if not part.name.startswith(LACKING[runtime]) and not refused(part, runtime, signed)
    ]


def joined(several: list[Part], opset: int) -> Any:
    """One model: everything in part number 7 is called `7.` and its own name."""
    nodes, inputs, outputs, tensors = [], [], [], []
    for number, part in enumerate(several):
        for made in part.nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(made)
            copy.name = f"{number}.{made.op_type}.{made.output[0]}"
            copy.input[:] = [f"{number}.{name}" if name else "" for name in made.input]
            copy.output[:] = [f"{number}.{name}" for name in made.output]
            nodes.append(copy)
        inputs.append(value(f"{number}.x", part.shape))
        if part.second is not None:
            inputs.append(value(f"{number}.z", part.second))
        outputs.append(helper.make_empty_tensor_value_info(f"{number}.y"))
        for tensor in part.tensors:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = f"{number}.{tensor.name}"
            tensors.append(copy)
    model = build(nodes, inputs, outputs, tensors, opset=opset, ir=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def by_onnxruntime(model: Any, feed: Arrays, level: str = "ORT_ENABLE_ALL") -> Arrays:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in model.graph.output]
    return dict(zip(names, session.run(names, feed), strict=True))


def by_openvino(model: Any, feed: Arrays) -> Arrays:
    core = run_openvino.openvino.Core()  # type: ignore[attr-defined]
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
    request = compiled.create_infer_request()
    request.infer(feed)
    return {entry.name: request.get_tensor(entry.name).data.copy() for entry in model.graph.output}


RUN = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}


def formats() -> dict[str, Format]:
    """What the targets' recipes compute with, over every operator that may be listed."""
    found: dict[str, Format] = {}
    for name in targets.names():
        for recipe in fit.load_target(name).recipes:
            if recipe.quantized_by == "static" and recipe.format and recipe.format.operators:
                every = tuple(sorted(OPERATORS))
                same = tuple(sorted(placement.MOVERS))
                found[recipe.name] = replace(recipe.format, operators=every, same_scale=same)
    return found


def near_db(real: np.ndarray, given: np.ndarray) -> float:
    return sqnr_db(real[None], given[None])


class Float(NamedTuple):
    """A joined model, what it is given, all that is in it, and which outputs the runtime gives."""

    model: Any
    feed: Arrays
    trace: Arrays
    right: set[str]


@cache
def in_float(opset: int, runtime: str, signed: bool = False) -> Float:
    model = joined(parts(opset, runtime, signed), opset)
    random = np.random.default_rng(0)
    feed = {
        entry.name: random.uniform(
            -1.0, 1.5, [axis.dim_value for axis in entry.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for entry in model.graph.input
    }
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.output[:]
    names = [name for made in model.graph.node for name in made.output]
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    trace = feed | by_onnxruntime(whole, feed, "ORT_DISABLE_ALL")
    given = RUN[runtime](model, feed)
    right = {key for key, array in given.items() if near_db(trace[key], array) > RIGHT_DB}
    return Float(model, feed, trace, right)


def lost(opset: int, form: Format, runtime: str, kept: frozenset[str]) -> dict[str, str]:
    """Part -> how far it is from float, of those that lose more than the graph says."""
    signed = form.activation == "s8"
    model, feed, trace, right = in_float(opset, runtime, signed)
    placed = placement.place(Graph(model), form, kept)
    ranges = {
        name: (float(array.min()), float(array.max()))
        for name, array in trace.items()
        if array.dtype == np.float32
    }
    made = quantize(model, form, placed, ranges)
    plain = by_onnxruntime(made, feed, "ORT_DISABLE_ALL")
    given = RUN[runtime](made, feed)
    found = {}
    for number, part in enumerate(parts(opset, runtime, signed)):
        key = f"{number}.y"
        written, ran = (near_db(trace[key], arrays[key]) for arrays in (plain, given))
        assert written > 20, f"{part.name}: {written:.1f} dB by the graph itself"
        if key in right and ran < min(written - LOST_DB, ENOUGH_DB):
            found[part.name] = f"{ran:.1f} of {written:.1f} dB"
    return found


FORMS = formats()


@pytest.mark.parametrize(
    ("name", "runtime"),
    # OpenVINO takes seconds to compile a graph, and one of 7 bits is that of 8 with other numbers.
    [(n, r) for n, r in itertools.product(FORMS, RUN) if (n, r) != ("int8-u8s8-rr", "openvino")],
)
def test_every_operator_in_8_bits_is_what_the_graph_says(name: str, runtime: str) -> None:
    """Each form of numbers in one opset, in turn."""
    opset = OPSETS[list(FORMS).index(name) % len(OPSETS)]
    model = in_float(opset, runtime, FORMS[name].activation == "s8").model
    kept = frozenset(rules.kept_float(Graph(model), wrong_in_8_bits().get(runtime, ())))
    assert not lost(opset, FORMS[name], runtime, kept)


@pytest.mark.parametrize("runtime", RUN)
def test_every_exception_is_needed(runtime: str) -> None:
    """Without the table, each of its rules is missed."""
    opset = 18  # later, ONNX Runtime cannot open AveragePool with dilations at all
    wrong = lost(opset, FORMS["int8-u8s8"], runtime, frozenset())
    graph = Graph(in_float(opset, runtime).model)
    names = [part.name for part in parts(opset, runtime)]
    for rule in wrong_in_8_bits().get(runtime, ()):
        alone = [
            names[int(made.name.split(".")[0])]
            for made in graph.nodes
            if made.op_type in rule.operators and rule.applies(made, graph)
        ]
        assert not alone or set(alone) & set(wrong), rule.reason


def test_all_operators_are_covered() -> None:
    covered: dict[str, int] = defaultdict(int)
    for opset in OPSETS:
        model = joined(parts(opset, "onnxruntime"), opset)
        placed = placement.place(Graph(model), FORMS["int8-u8s8"])
        for made in model.graph.node:
            covered[made.op_type] += made.name in placed.integer
    assert all(covered[kind] for kind in OPERATORS), covered


def between_8_bit_operators(**attributes: Any) -> Any:
    random = np.random.default_rng(5)
    weights = [
        constant("w", random.normal(size=(4, 3, 3, 3)) * 0.3),
        constant("v", random.normal(size=(5, 4, 1, 1)) * 0.5),
    ]
    nodes = [
        node("Conv", "x w", "c", pads=[1] * 4, name="first"),
        node("Relu", "c", "r", name="relu"),
        node("AveragePool", "r", "p", name="pool", **attributes),
        node("Conv", "p v", "y", name="last"),
    ]
    ends = [value("x", [1, 3, 12, 12])], [value("y", ["n", "c", "h", "w"])]
    return onnx.shape_inference.infer_shapes(build(nodes, *ends, weights, opset=19))


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    "attributes",
    [
        {"ceil_mode": 1, "count_include_pad": 1, "pads": [1] * 4, "strides": [2, 2]},
        {"ceil_mode": 1, "count_include_pad": 1, "strides": [3, 2]},
        {"dilations": [2, 2]},
    ],
)
def test_what_stays_float_is_float_between_8_bit_operators(
    name: str, attributes: dict[str, Any]
) -> None:
    """ONNX Runtime would fuse it with what is quantized around it."""
    model = between_8_bit_operators(kernel_shape=[3, 3], **attributes)
    feed = {"x": np.random.default_rng(6).normal(size=(1, 3, 12, 12)).astype(np.float32)}
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.output.extend(helper.make_empty_tensor_value_info(key) for key in ("c", "r", "p"))
    trace = feed | by_onnxruntime(whole, feed, "ORT_DISABLE_ALL")
    graph = Graph(model)
    kept = frozenset(rules.kept_float(graph, wrong_in_8_bits()["onnxruntime"]))
    assert kept == {"pool"}
    placed = placement.place(graph, FORMS[name], kept)
    assert {"first", "last"} <= placed.integer
    ranges = {key: (float(array.min()), float(array.max())) for key, array in trace.items()}
    made = quantize(model, FORMS[name], placed, ranges)
    written, ran = (
        near_db(trace["y"], by_onnxruntime(made, feed, level)["y"])
        for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")
    )
    assert ran > written - LOST_DB
