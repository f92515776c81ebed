"""What no one scale holds: parts of outputs that differ much, masks of attention, whole numbers, in
both quantizers and by each runtime, slice by slice against ONNX Runtime in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest

from onmetal.calibration import qdq_writer
from onmetal.calibration.placement import place
from onmetal.calibration.reach import range_warning
from onmetal.converters.onnx import floats as onnx_float
from onmetal.converters.onnx.graph import Graph
from onmetal.converters.tflite import check, grid, quantize
from onmetal.converters.tflite.convert import lower
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reference import Exposed
from onmetal.converters.tflite.writing import write
from onmetal.converters.unlike import Role, Step, stay_float
from onmetal.targets import Format
from tests.onnx_models import build, node, save, value
from tests.tflite_graphs import expected

Arrays = dict[str, np.ndarray]
Ranges = dict[str, tuple[float, float]]
EXACT_DB = 22.0
"""Of every slice: far from the 20 dB that ship."""
QDQ = Format(
    operators=(
        *("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "MaxPool", "Reshape", "Transpose"),
        *("Unsqueeze", "Slice", "Split", "Pad", "Gather", "Sigmoid", "LeakyRelu", "Expand"),
    ),
    same_scale=("MaxPool", "Reshape", "Transpose", "Unsqueeze", "Slice", "Split", "Pad", "Gather"),
)


class Case(NamedTuple):
    model: Any
    feeds: list[Arrays]
    judged: list[Arrays]
    """What is computed after calibration: the same, where nothing else is said."""


def random(*shape: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    found: np.ndarray = np.random.default_rng([seed, *shape]).normal(size=shape) * spread
    return found.astype(np.float32)


# --- models


def detector(nodes: list[Any], outputs: tuple[str, ...] = ("y",), **constants: Any) -> Case:
    """`a`: 4 channels of 0 to 640; `s`: 6 of 0 to 1; `t`: the 16 that both are made of."""
    weights = {
        "w": random(16, 3, 3, 3, spread=0.3),
        "wa": random(4, 16, 1, 1, spread=0.3),
        "ws": random(6, 16, 1, 1, spread=0.5),
        "img": np.array([640], np.float32),
        **constants,
    }
    first = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c", "t"),
        node("Conv", "t wa", "a0"),
        node("Sigmoid", "a0", "a1"),
        node("Mul", "a1 img", "a"),
        node("Conv", "t ws", "s0"),
        node("Sigmoid", "s0", "s"),
    ]
    feeds = [{"x": random(1, 3, 8, 8, seed=seed)} for seed in range(6)]
    return case([*first, *nodes], outputs, weights, feeds)


def case(
    nodes: list[Any],
    outputs: tuple[str, ...],
    constants: dict[str, Any],
    feeds: list[Arrays],
    judged: list[Arrays] | None = None,
) -> Case:
    for number, entry in enumerate(nodes):
        entry.name = f"node{number}"
    model = build(
        nodes,
        [
            value(name, array.shape, onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
            for name, array in feeds[0].items()
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
        opset=17,
        ir=10,
    )
    for entry in model.graph.output:
        entry.CopyFrom(value(entry.name, expected(model, feeds[0])[entry.name].shape))
    return Case(onnx.shape_inference.infer_shapes(model, data_prop=True), feeds, judged or feeds)


OUTPUTS: dict[str, Callable[[], Case]] = {
    "one after the other": lambda: detector([node("Concat", "a s", "y", axis=1)]),
    "moved on": lambda: detector(
        [
            node("Concat", "a s", "q", axis=1),
            node("Reshape", "q shape", "r"),
            node("Transpose", "r", "m", perm=[0, 2, 1]),
            node("Gather", "m some", "y", axis=1),
        ],
        shape=np.array([1, 10, 16]),
        some=np.array([3, 0, 9]),
    ),
    "in two steps": lambda: detector(
        [
            node("Mul", "s twenty", "s20"),
            node("Mul", "s sixty", "s60"),
            node("Concat", "s s20", "q", axis=1),
            node("Concat", "q s60", "y", axis=1),
        ],
        twenty=np.float32(20),
        sixty=np.float32(60),
    ),
    "side by side": lambda: detector(
        [
            node("Slice", "s begin end axes", "half"),
            node("Concat", "a half", "q", axis=3),
            node("LeakyRelu", "q", "y"),
        ],
        begin=np.array([0]),
        end=np.array([4]),
        axes=np.array([1]),
    ),
    "padded and expanded": lambda: detector(
        [
            node("Concat", "a s", "q", axis=1),
            node("Pad", "q pads", "r"),
            node("Unsqueeze", "r first", "u"),
            node("Expand", "u shape", "y"),
        ],
        pads=np.array([0, 1, 0, 0, 0, 1, 0, 0]),
        first=np.array([0]),
        shape=np.array([2, 1, 12, 4, 4]),
    ),
    "split again": lambda: detector(
        [node("Concat", "a s", "q", axis=1), node("Split", "q sizes", "y z", axis=1)],
        ("y", "z"),
        sizes=np.array([3, 7]),
    ),
    "beside constants": lambda: detector(
        [node("Concat", "anchors s", "y", axis=1)],
        anchors=np.linspace(0, 640, 32).reshape(1, 2, 4, 4).astype(np.float32),
    ),
    "by constants": lambda: detector(
        [node("Mul", "s strides", "y")],
        strides=np.array([640, 640, 1, 1, 8, 8], np.float32).reshape(1, 6, 1, 1),
    ),
    "of one convolution": lambda: detector(
        [
            node("Conv", "t both", "q"),
            node("Split", "q sizes", "y r", axis=1),
            node("Sigmoid", "r", "z"),
        ],
        ("y", "z"),
        both=random(2, 16, 1, 1) * np.array([99, 0.3], np.float32).reshape(2, 1, 1, 1),
        sizes=np.array([1, 1]),
    ),
}

ROWS, DEEP, HEADS = 8, 16, 2
LEAST = float(np.finfo(np.float32).min)


def attention(
    nodes: list[Any],
    mask: str = "m",
    late: bool = False,
    end: str = "softmax",
    **constants: Any,
) -> Case:
    """`s`: scores; `nodes` make `masked` of them. `m`: int64, 0 where a row does not count; `f`:
    the same as a float mask. `late`: no calibration sample has one that does not."""
    first = []
    for letter in "qkv":
        first += [
            node("MatMul", f"x w{letter}", f"{letter}m"),
            node("Reshape", f"{letter}m heads", f"{letter}r"),
            node(
                "Transpose",
                f"{letter}r",
                letter,
                perm=[0, 2, 3, 1] if letter == "k" else [0, 2, 1, 3],
            ),
        ]
    first += [node("MatMul", "q k", "s0"), node("Mul", "s0 scale", "s")]
    last = {
        "softmax": [node("Softmax", "masked", "p", axis=-1)],
        "log": [node("LogSoftmax", "masked", "l", axis=-1), node("Exp", "l", "p")],
        "clip": [node("Clip", "masked low high", "p")],
    }[end]
    last += [
        node("MatMul", "p v", "o"),
        node("Transpose", "o", "ot", perm=[0, 2, 1, 3]),
        node("Reshape", "ot back", "or"),
        node("MatMul", "or wo", "y"),
    ]
    weights = {
        **{
            f"w{letter}": random(DEEP, DEEP, seed=place, spread=(2, 2, 1, 1)[place] / DEEP**0.5)
            for place, letter in enumerate("qkvo")
        },
        "heads": np.array([1, ROWS, HEADS, DEEP // HEADS]),
        "back": np.array([1, ROWS, DEEP]),
        "scale": np.float32((DEEP // HEADS) ** -0.5),
        "one": np.float32(1),
        "axes": np.array([1, 2]),
        "low": np.float32(-3),
        "high": np.float32(3),
        **constants,
    }
    lengths = np.random.default_rng(5).integers(3, ROWS + 1, 8)
    judged = []
    for seed, length in enumerate(lengths):
        counts = (np.arange(ROWS) < length)[None]
        feed: Arrays = {"x": random(1, ROWS, DEEP, seed=seed)}
        if mask == "m":
            feed["m"] = counts.astype(np.int64)
        elif mask == "f":
            feed["f"] = np.where(counts, 0, LEAST).astype(np.float32).reshape(1, 1, 1, ROWS)
        judged.append(feed)
    feeds = [{**feed, "m": np.ones_like(feed["m"])} for feed in judged] if late else judged
    used = {name for entry in [*first, *nodes, *last] for name in entry.input}
    weights = {name: array for name, array in weights.items() if name in used}
    return case([*first, *nodes, *last], ("y",), weights, feeds, judged)


def computed(last: list[Any], **constants: Any) -> list[Any]:
    return [
        node("Unsqueeze", "m axes", "mu"),
        node("Cast", "mu", "mf", to=onnx.TensorProto.FLOAT),
        node("Sub", "one mf", "inv"),
        node("Mul", "inv least", "mask"),
        *last,
    ]


def selected(order: str) -> list[Any]:
    return [
        node("Unsqueeze", "m axes", "mu"),
        node("Cast", "mu", "mt", to=onnx.TensorProto.BOOL),
        node("Not", "mt", "mn"),
        node("Where", order, "masked"),
    ]


def number(of: float) -> Any:
    return np.float32(of)


ADDED = [node("Add", "s mask", "masked")]
CAUSAL = np.triu(np.ones((1, 1, ROWS, ROWS)), 1)
MASKS: dict[str, Callable[[], Case]] = {
    "least": lambda: attention(computed(ADDED), least=number(LEAST)),
    "-1e9": lambda: attention(computed(ADDED), least=number(-1e9)),
    "-10000": lambda: attention(computed(ADDED), least=number(-1e4)),
    "-100": lambda: attention(computed(ADDED), least=number(-100)),
    "never in calibration": lambda: attention(computed(ADDED), late=True, least=number(-1e9)),
    "logarithms": lambda: attention(computed(ADDED), end="log", least=number(-1e9)),
    "no softmax": lambda: attention(computed(ADDED), end="clip", least=number(-1e9)),
    "selected -inf": lambda: attention(selected("mt s fill"), fill=number(-np.inf)),
    "selected, turned": lambda: attention(selected("mn fill s"), fill=number(-1e9)),
    "selected, late": lambda: attention(selected("mt s fill"), late=True, fill=number(-1e9)),
    "constant": lambda: attention(
        [node("Add", "s causal", "masked")], "", causal=(CAUSAL * -1e4).astype(np.float32)
    ),
    "constant -inf": lambda: attention(
        [node("Add", "causal s", "masked")],
        "",
        causal=np.where(CAUSAL > 0, -np.inf, 0).astype(np.float32),
    ),
    "an input": lambda: attention([node("Add", "s f", "masked")], "f"),
    "two": lambda: attention(
        computed([node("Add", "s causal", "s1"), node("Add", "s1 mask", "masked")]),
        least=number(-1e9),
        causal=(CAUSAL * -1e9).astype(np.float32),
    ),
    "before scaling": lambda: attention(
        computed([node("Add", "s0 mask", "s1"), node("Mul", "s1 scale", "masked")]),
        least=number(-1e9),
    ),
    "subtracted": lambda: attention(computed([node("Sub", "s mask", "masked")]), least=number(1e9)),
}


# --- running


def worst_db(wanted: np.ndarray, found: np.ndarray) -> float:
    """Of the whole and of every slice along each axis that is long enough to mean anything."""
    assert wanted.shape == found.shape and np.isfinite(found).all()
    pairs = [(wanted, found)]
    for axis in range(1, wanted.ndim):
        for index in range(wanted.shape[axis]):
            pairs.append((wanted.take(index, axis), found.take(index, axis)))
    return min(
        10 * float(np.log10(np.square(a, dtype=np.float64).sum() / noise))
        for a, b in pairs
        if (noise := np.square(a.astype(np.float64) - b).sum()) and a.any()
    )


def simplified(given: Case, folder: Path) -> Path:
    save(given.model, folder / "given.onnx")
    onnx_float.simplify(str(folder / "given.onnx"), str(folder))
    return folder / "model.onnx"


def check_outputs(given: Case, run: Callable[[Arrays], Arrays], least_db: float = EXACT_DB) -> None:
    rows = [run(feed) for feed in given.judged]
    wanted = [expected(given.model, feed) for feed in given.judged]
    for entry in given.model.graph.output:
        name = entry.name
        stacks = [np.stack([row[name] for row in each]) for each in (wanted, rows)]
        assert stacks[1].dtype == np.float32
        assert worst_db(*stacks) >= least_db, name


def tflite_ranges(net: Net, feeds: list[Arrays]) -> Ranges:
    names = quantize.observed(net)
    run = Exposed(net, names).run
    rows = [run(feed) for feed in feeds]
    found = {
        name: (
            min(0.0, *(float(row[name].min()) for row in rows)),
            max(0.0, *(float(row[name].max()) for row in rows)),
        )
        for name in names
    }
    return {name: seen for name, seen in found.items() if np.isfinite(seen).all()}


def in_tflite(given: Case, folder: Path, activation: grid.Activation) -> Net:
    """Quantized, and right by the fast and by the reference kernels."""
    net = lower(simplified(given, folder))
    made = read(write(quantize.quantize(net, tflite_ranges(net, given.feeds), activation)))
    assert check.problems(made) == []
    names = [entry.name for entry in given.model.graph.output]
    for reference in (False, True):
        run = Exposed(made, names, reference).run
        check_outputs(given, run)
    return made


def onnx_ranges(model: Any, feeds: list[Arrays]) -> tuple[Ranges, frozenset[str]]:
    """-> those of finite tensors; the others' names."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.output[:]
    names = [name for entry in model.graph.node for name in entry.output if name]
    whole.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    rows = [{**feed, **expected(whole, feed)} for feed in feeds]
    found = {
        name: (float(min(r[name].min() for r in rows)), float(max(r[name].max() for r in rows)))
        for name in rows[0]
        if rows[0][name].dtype == np.float32
    }
    finite = {name: seen for name, seen in found.items() if np.isfinite(seen).all()}
    return finite, frozenset(set(found) - set(finite))


def in_onnx(given: Case, folder: Path) -> Any:
    """Quantized, and right in ONNX Runtime."""
    model = onnx.load(simplified(given, folder))
    ranges, infinite = onnx_ranges(model, given.feeds)
    placed = place(Graph(model), QDQ, frozenset(), infinite, ranges)
    made = qdq_writer.quantize(model, QDQ, placed, ranges)
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in made.graph.output]
    check_outputs(given, lambda feed: dict(zip(names, session.run(names, feed), strict=True)))
    return made


@pytest.mark.parametrize("name", OUTPUTS)
def test_parts_of_an_output_keep_scales_of_their_own(name: str, tmp_path: Path) -> None:
    given = OUTPUTS[name]()
    for activation in ("s8", "s16"):
        made = in_tflite(given, tmp_path, activation)
        assert any(op.kind == "CONV_2D" and not op.outputs[0].is_float for op in made.ops)
    assert "QuantizeLinear" in {entry.op_type for entry in in_onnx(given, tmp_path).graph.node}


@pytest.mark.parametrize("name", MASKS)
def test_masks_leave_what_they_do_not_mask(name: str, tmp_path: Path) -> None:
    given = MASKS[name]()
    for activation in ("s8", "s16"):
        made = in_tflite(given, tmp_path, activation)
        products = [op for op in made.ops if op.kind in ("BATCH_MATMUL", "FULLY_CONNECTED")]
        assert all(not op.outputs[0].is_float for op in products)
    in_onnx(given, tmp_path)


# --- the rules, whatever the format


def step(name: str, role: Role, taken: str = "", given: str = "", **more: Any) -> Step:
    return Step(name, role, tuple(taken.split()), tuple((given or name).split()), **more)


WIDE: Ranges = {"a": (0, 640), "b": (0, 1), "c": (-10, 10), "i": (-1, 1)}
HEAD = [step(name, "heavy", "i") for name in "abc"]


def floats(
    steps: list[Step], ranges: Ranges = WIDE, output: str = "y", felt: float = 2
) -> set[str]:
    return set(stay_float(steps, [output], ranges, felt))


def test_only_joins_of_an_output_stay_float_and_only_where_parts_are_far_apart() -> None:
    joined = [*HEAD, step("q", "join", "a b"), step("y", "move", "q")]
    assert floats(joined) == {"q", "y"}
    assert floats([*HEAD, step("q", "join", "a c"), step("y", "move", "q")]) == set()
    assert floats(joined, {**WIDE, "b": (-20, 0)}) == set()
    assert floats(joined, {**WIDE, "b": (0, 0)}) == set()  # a dead part has any scale
    assert floats(joined, {"a": (0, 640)}) == set()
    inner = [*HEAD, step("q", "join", "a b"), step("y", "heavy", "q")]
    assert floats(inner) == set()


def test_a_join_of_joins_is_judged_by_all_their_parts() -> None:
    steps = [
        *HEAD,
        step("d", "move", "b"),
        step("q", "join", "d c"),  # 20 apart
        step("r", "move", "q"),
        step("y", "join", "r a"),  # 32 from one part, 640 from the other
    ]
    assert floats(steps) == {"q", "r", "y"}


def test_what_an_output_is_computed_by_on_the_way_stays_float_too() -> None:
    scale = (np.array([2], np.float32),)
    steps = [
        *HEAD,
        step("q", "join", "a b"),
        step("p", "product", "q", constants=scale),
        step("y", "each", "p"),
    ]
    assert floats(steps) == {"q", "p", "y"}
    assert floats([*HEAD, step("y", "product", "b", constants=scale)]) == set()
    far = (np.array([640, 1], np.float32),)
    assert floats([*HEAD, step("y", "product", "b", constants=far)]) == {"y"}
    assert floats([*HEAD, step("y", "sum", "b", constants=far)]) == {"y"}
    assert floats([*HEAD, step("y", "sum", "a", constants=far)]) == set()


def test_a_last_product_by_weights_is_judged_by_its_channels() -> None:
    for channels, stays in (((99.0, 1.0), True), ((9.0, 1.0), False), ((9.0, 0.0), False)):
        last = [step("q", "heavy", "i", channels=channels), step("y", "move", "q")]
        assert floats(last) == ({"q", "y"} if stays else set())
        assert floats([last[0], step("r", "heavy", "q"), step("y", "move", "r")]) == set()


def test_a_wide_sum_is_a_mask_only_where_no_weights_made_it() -> None:
    """A few times as wide as the rest, before a softmax: a bias by position, or a mask. Attention's
    scores beside a narrow bias are none."""
    ranges: Ranges = {"a": (-10, 10), "b": (-100, 0), "s": (-110, 10), "i": (-1, 1)}
    soft = [step("s", "sum", "a b"), step("y", "softmax", "s")]
    mask = step("b", "each", "m")
    assert floats([step("a", "heavy", "i"), mask, *soft], ranges) == {"b", "s", "y"}
    assert floats([step("a", "heavy", "i"), mask, *soft], ranges, felt=32) == set()
    scores = step("b", "heavy", "i")
    assert floats([step("a", "each", "i"), scores, *soft], ranges) == set()
    hard = [step("s", "sum", "a b"), step("y", "each", "s")]
    assert floats([step("a", "heavy", "i"), mask, *hard], ranges) == set()
    ranges |= {"b": (-1e4, 0), "s": (-1e4, 10), "y": (0, 1)}
    assert floats([step("a", "heavy", "i"), mask, *hard], ranges) == {"b", "s", "y"}


def test_8_bits_come_again_once_a_mask_was_felt() -> None:
    ranges: Ranges = {"a": (-10, 10), "s": (-1e9, 10), "l": (0, 1), "i": (-1, 1), "z": (-1, 1)}
    steps = [
        step("a", "heavy", "i"),
        step("s", "sum", "a", constants=(np.array([0, -1e9], np.float32),)),
        step("l", "softmax", "s"),
        step("z", "product", "l", constants=(np.array([3], np.float32),)),
        step("y", "heavy", "z"),
    ]
    assert floats(steps, ranges) == {"s", "l"}
    assert floats(steps, {**ranges, "l": (-1e9, 0)}) == {"s", "l", "z"}


def test_what_becomes_a_whole_number_is_computed_in_float() -> None:
    steps = [step("a", "heavy", "i"), step("b", "product", "a"), step("w", "whole", "b")]
    assert floats([*steps, step("y", "heavy", "a")]) == {"b", "w"}
    compared = [step("b", "each", "i"), step("w", "compare", "b")]
    assert floats(compared) == {"b", "w"}
    assert floats([*steps[:2], step("w", "compare", "b")]) == set()


# --- in one format


@pytest.mark.parametrize("fill", [LEAST, -np.inf, -1e9])
def test_a_padding_before_a_maximum_is_no_part_of_the_range(fill: float, tmp_path: Path) -> None:
    nodes = [
        node("Pad", "c pads fill", "p"),
        node("MaxPool", "p", "m", kernel_shape=[3, 3], strides=[2, 2]),
        node("Conv", "m wa", "y"),
    ]
    given = detector(nodes, pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]), fill=number(fill))
    for activation in ("s8", "s16"):
        in_tflite(given, tmp_path, activation)
    in_onnx(given, tmp_path)


def test_indices_are_whole_in_both_formats(tmp_path: Path) -> None:
    nodes = [
        node("Add", "x one", "x1"),
        node("Cast", "x1", "i", to=onnx.TensorProto.INT64),
        node("Gather", "table i", "e"),
        node("MatMul", "e w", "y"),
    ]
    feeds = [
        {"x": np.array([[0, 7, place, 989 - place]], np.float32)} for place in range(0, 900, 99)
    ]
    constants = {"one": number(1), "table": random(1000, 16), "w": random(16, 4)}
    given = case(nodes, ("y",), constants, feeds)
    in_tflite(given, tmp_path, "s8")
    in_onnx(given, tmp_path)


@pytest.mark.parametrize("activation", ["s8", "s16"])
@pytest.mark.parametrize("kind", ["ADD", "SUB", "MUL", "SQUARED_DIFFERENCE", "MAXIMUM"])
def test_scales_of_any_size_end_no_process(kind: str, activation: grid.Activation) -> None:
    """Kernels shift scales by many bits in float32, and abort where nothing is left of them."""
    f32 = np.dtype(np.float32)
    x, w = Tensor("x", (1, 4), f32), Tensor("w", (4, 4), f32, random(4, 4))
    a, b, y = (Tensor(name, (1, 4), f32) for name in "aby")
    bias = Tensor("bias", (4,), f32, np.zeros(4, np.float32))
    plain = Tensor("z", (1, 4), f32)
    products = [Op("FULLY_CONNECTED", [x, w, bias], [out]) for out in (a, b, plain)]
    net = Net([x], [y, plain], [*products, Op(kind, [a, b], [y])])
    for left in (1e-38, 1.0, 1e20, 1e34):
        for right in (1e-20, 1e15, 1e31):
            for out in (1e-30, 3e38):
                ranges = {"x": (-1.0, 1.0), "a": (-left, left), "b": (0.0, right), "y": (-out, 0.0)}
                ranges["z"] = (-4.0, 4.0)
                made = read(write(quantize.quantize(net, ranges, activation)))
                assert check.problems(made) == []
                for reference in (False, True):
                    Exposed(made, ["y"], reference).run({"x": np.ones((1, 4), np.float32)})


def test_the_checker_finds_scales_that_kernels_cannot_shift() -> None:
    huge = np.array([1e33], np.float32)
    integers = [
        Tensor(name, (1, 4), np.dtype(np.int8), None, huge, np.zeros(1, np.int64)) for name in "xyz"
    ]
    net = Net(integers[:2], integers[2:], [Op("ADD", list(integers[:2]), integers[2:])])
    assert any("cannot shift" in text for text in check.problems(net))


# --- what judges and what calibrates


def test_what_reaches_far_beyond_calibration_is_said_with_both_ranges() -> None:
    text = range_warning("output", "y", (-3.9, 5.2), (-7.5, 7.3))
    assert text is not None
    for word in ("output 'y'", "-7.5 to 7.3", "-3.9 to 5.2"):
        assert word in text
    assert range_warning("input", "x", (0.0, 0.0), (0.0, 1.0)) is not None
    for judged in ((-5.5, 7.5), (-3.0, 9.5), (0.0, 1.0), (-3.9, 5.2)):
        assert range_warning("output", "y", (-3.9, 5.2), judged) is None
    for judged in ((-np.inf, 1.0), (np.nan, np.nan)):
        assert range_warning("output", "y", (-3.9, 5.2), judged) is None


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_ordinary_tails_are_not_said(kind: str) -> None:
    """128 samples of ten logits against 2,000 of the same distribution: hardly ever of a normal
    one, and not mostly of one with heavy tails, which clipping does touch."""
    random_numbers = np.random.default_rng(3)
    said = 0
    for _ in range(100):
        few, many = (getattr(random_numbers, kind)(size=(n, 10)) for n in (128, 2000))
        ranges = [(float(array.min()), float(array.max())) for array in (few, many)]
        said += range_warning("output", "y", ranges[0], ranges[1]) is not None
    assert said <= {"normal": 5, "laplace": 40}[kind]
