"""Which operators run in 8 bits, and where QuantizeLinear stands: rule by rule."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onmetal.calibration.placement import MOVERS
from onmetal.converters.onnx.graph import attribute
from onmetal.targets import Format
from tests.onnx_models import build, constant, node, value
from tests.qdq_checks import (
    ALL,
    CLOSE,
    CONV,
    END_OF_A,
    IMAGE,
    RELU,
    V,
    W,
    feeds_for,
    floats,
    made,
    placed,
    quantized,
    small,
)
from tests.qdq_reference import EVERY, Case, traced


@pytest.mark.parametrize(
    ("product", "shape"),
    [
        (node("Conv", "e w", "p"), IMAGE),
        (node("ConvTranspose", "e w", "p"), IMAGE),
        (node("Gemm", "e v", "p"), (4, 6)),
        (node("MatMul", "e v", "p"), (4, 6)),
        (node("MatMul", "e v", "p"), IMAGE),
        (node("MatMul", "v e", "p"), IMAGE),
    ],
)
def test_a_product_by_a_constant_runs_in_8_bits_between_float_ones(
    product: Any, shape: tuple[int, ...]
) -> None:
    model = small(
        node("Exp", "x", "e"), product, node("Exp", "p", "y"), inputs={"x": shape}, w=W, v=V
    )
    m = quantized(model)
    assert m.twin.placed.integer == {"p"}
    assert "e" in m.twin.placed.roots


def test_a_product_of_two_computed_tensors_quantizes_both() -> None:
    model = small(
        node("Exp", "x", "e"), node("MatMul", "e z", "y"), inputs={"x": IMAGE, "z": IMAGE}
    )
    m = quantized(model)
    assert m.twin.placed.integer == {"y"}
    assert m.twin.placed.roots.keys() == {"e", "z"}


def test_only_the_operators_that_the_format_lists_run_in_8_bits() -> None:
    model = small(CONV, node("MatMul", "a v", "y"), w=W, v=V)
    assert placed(model, Format(operators=("MatMul",))).integer == {"y"}
    assert placed(model, Format(operators=("Conv",))).integer == {"a"}
    assert not placed(model, Format(operators=("Gemm",))).integer


DENSE = {"x": (4, 6), "c": (4, 6)}


@pytest.mark.parametrize(
    "product",
    [
        node("Gemm", "x v", "y", alpha=2.0),
        node("Gemm", "x v b", "y", beta=0.5),
        node("Gemm", "x v", "y", transA=1),
        node("Gemm", "x v c", "y"),
        node("Gemm", "x v rows", "y"),
        node("Gemm", "x v one", "y"),
        node("Gemm", "v x", "y", transB=1),
        node("Gemm", "x c", "y", transB=1),
    ],
)
def test_a_gemm_that_is_more_than_a_product_and_a_bias_stays_float(product: Any) -> None:
    shapes = {**DENSE, "x": (6, 6)} if attribute(product, "transA") else DENSE
    model = small(product, inputs=shapes, v=V, b=floats(6), rows=floats(4, 1), one=np.float32(3.0))
    assert not placed(model).integer


def test_a_conv_by_computed_weights_or_bias_stays_float() -> None:
    model = small(node("Conv", "x u", "y"), inputs={"x": IMAGE, "u": (2, 2, 1, 1)})
    assert not placed(model).integer
    model = small(node("Conv", "x w u", "y"), inputs={"x": IMAGE, "u": (2,)}, w=W)
    assert not placed(model).integer


def test_a_product_of_other_floats_stays_float() -> None:
    model = build(
        [
            node(
                "MatMul",
                "x v",
                "y",
            )
        ],
        [value("x", (4, 6), onnx.TensorProto.DOUBLE)],
        [value("y", None, onnx.TensorProto.DOUBLE)],
        [constant("v", V, "float64")],
    )
    model.graph.node[0].name = "y"
    assert not placed(onnx.shape_inference.infer_shapes(model)).integer


def test_other_operators_run_in_8_bits_where_all_they_take_is_quantized() -> None:
    model = small(CONV, node("Conv", "x w", "b"), node("Add", "a b", "s"), CLOSE, w=W)
    assert placed(model).integer == {"a", "b", "s", "y"}


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Concat"])
def test_beside_a_tensor_that_nothing_quantizes_they_stay_float(kind: str) -> None:
    axis = {"axis": 3} if kind == "Concat" else {}
    shapes = {"x": IMAGE, "z": IMAGE}
    nodes = [CONV, node("Exp", "z", "e"), node(kind, "a e", "s", **axis), CLOSE]
    model = small(*nodes, inputs=shapes, w=W)
    assert placed(model).integer == {"a", "y"}
    # A graph's input that a product takes is quantized already.
    model = small(CONV, node(kind, "a x", "s", **axis), CLOSE, w=W)
    assert placed(model).integer == {"a", "s", "y"}


def test_nothing_is_quantized_for_the_sake_of_other_operators() -> None:
    model = small(node("Sigmoid", "x", "g"), node("Mul", "x g", "m"), node("Conv", "m w", "y"), w=W)
    m = quantized(model)
    assert m.twin.placed.integer == {"y"}
    assert m.twin.placed.roots.keys() == {"m", "y"}


def test_what_only_moves_values_to_a_product_runs_in_8_bits() -> None:
    model = small(
        node("Transpose", "x", "t", perm=[0, 1, 3, 2]),
        node("Reshape", "t s", "r"),
        node("MatMul", "r v", "y"),
        s=[2, 6, 6],
        v=V,
    )
    m = quantized(model)
    assert m.twin.placed.integer == {"t", "r", "y"}
    assert "x" in m.twin.placed.roots


def test_what_moves_values_by_way_of_another_operator_stays_float() -> None:
    model = small(
        node("Transpose", "x", "t"),
        node("Exp", "t", "e"),
        node("MatMul", "e v", "y"),
        inputs={"x": (6, 6)},
        v=V,
    )
    assert placed(model).integer == {"y"}


def test_an_operator_that_is_not_listed_ends_8_bits_until_the_next_product() -> None:
    form = Format(operators=("Conv", "Sigmoid", "Add"))
    model = small(
        CONV,
        node("Tanh", "a", "t"),
        node("Sigmoid", "t", "g"),
        node("Conv", "g w", "c"),
        node("Add", "c g", "s"),
        CLOSE,
        w=W,
    )
    m = quantized(model, form)
    assert m.twin.placed.integer == {"a", "c", "s", "y"}


@pytest.mark.parametrize("follower", [node("Relu", "a", "r"), node("Clip", "a lo hi", "r")])
def test_relu_or_clip_belongs_to_the_operator_that_it_alone_follows(follower: Any) -> None:
    model = small(CONV, follower, node("Conv", "r w", "y"), w=W, lo=np.float32(0), hi=np.float32(6))
    m = quantized(model)
    assert m.twin.placed.after == {"a": "r"}
    assert "a" not in m.twin.placed.roots
    assert "r" in m.twin.placed.roots
    assert [e.op_type for e in m.written.graph.node].count("QuantizeLinear") == 3  # x, r, y


END = node("Conv", "r w", "y")


def test_relu_stays_where_something_else_takes_what_it_takes() -> None:
    model = small(CONV, RELU, END, node("Neg", "a", "n"), outputs="y n", w=W)
    assert not placed(model).after
    model = small(CONV, RELU, END, outputs="y a", w=W)
    assert not placed(model).after
    then, other = (
        helper.make_graph([node(kind, "a", kind.lower())], kind, [], [value(kind.lower(), None)])
        for kind in ("Neg", "Exp")
    )
    choice = node("If", "flag", "z", then_branch=then, else_branch=other)
    nodes = [CONV, RELU, END, choice]
    for entry in nodes:
        entry.name = entry.output[0]
    model = build(
        nodes,
        [value("x", IMAGE), value("flag", [], onnx.TensorProto.BOOL)],
        [value("y", None), value("z", None)],
        [constant("w", W)],
    )
    model = onnx.shape_inference.infer_shapes(model)
    found = placed(model)
    assert not found.after
    assert found.integer == {"a", "y"}
    feeds = [{"x": floats(*IMAGE, seed=s), "flag": np.array(bool(s))} for s in (0, 1)]
    m = made(Case(model, feeds), ALL)
    traces = traced(m.written, feeds)
    for exact, trace in zip(m.traces, traces, strict=True):
        np.testing.assert_allclose(trace["z"], exact["z"], rtol=0.1, atol=0.1)


def test_relu_after_a_mover_or_between_computed_bounds_belongs_to_nothing() -> None:
    model = small(
        CONV,
        node("Transpose", "a", "t"),
        node("Relu", "t", "r"),
        node("MatMul", "r v", "y"),
        w=W,
        v=floats(1, 3),
    )
    assert not placed(model).after
    model = small(CONV, node("Clip", "a lo", "r"), END, inputs={"x": IMAGE, "lo": ()}, w=W)
    assert not placed(model).after


def test_relu_of_a_tensor_twice_taken_is_no_follower() -> None:
    model = small(CONV, node("Add", "a a", "s"), node("Relu", "s", "r"), END, w=W)
    assert placed(model).after == {"s": "r"}
    model = small(
        CONV, node("Relu", "a", "r"), node("Relu", "a", "q"), node("Add", "r q", "s"), CLOSE, w=W
    )
    assert not placed(model).after


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["u8", "s8"])
def test_relu_goes_exactly_where_saturation_does_the_same(kind: Any, symmetric: bool) -> None:
    form = Format(operators=EVERY, activation=kind, activation_symmetric=symmetric)
    model = small(CONV, RELU, END, w=W)
    m = quantized(model, form)
    assert ("r" in {entry.name for entry in m.written.graph.node}) == symmetric


@pytest.mark.parametrize(
    ("low", "high", "goes"),
    [(0.0, 0.5, True), (0.0, 1e6, True), (-1e6, 0.0, True), (0.2, 0.5, False), (-0.5, -0.2, False)],
)
def test_clip_goes_exactly_where_saturation_does_the_same(
    low: float, high: float, goes: bool
) -> None:
    """The range holds zero, so it cannot stand for a bound on zero's other side."""
    model = small(
        CONV, node("Clip", "a lo hi", "r"), END, w=W, lo=np.float32(low), hi=np.float32(high)
    )
    m = quantized(model, Format(operators=EVERY, activation="u8"))
    assert ("r" not in {entry.name for entry in m.written.graph.node}) == goes


def test_clip_to_what_symmetric_integers_pass_by_a_step_stays() -> None:
    """The least integer is -128, whose value the range does not hold."""
    model = small(
        CONV, node("Clip", "a lo hi", "r"), END, w=W, lo=np.float32(-0.5), hi=np.float32(0.5)
    )
    m = quantized(model, Format(operators=EVERY, activation_symmetric=True))
    assert "r" in {entry.name for entry in m.written.graph.node}


def test_operators_of_one_scale_give_values_in_the_scale_of_what_they_take() -> None:
    model = small(
        CONV, node("MaxPool", "a", "m", kernel_shape=[2, 2]), node("Conv", "m w", "y"), w=W
    )
    free = quantized(model).twin.placed
    assert free.roots["m"] == "m"
    m = quantized(model, Format(operators=EVERY, same_scale=("MaxPool",)))
    assert m.twin.placed.roots["m"] == m.twin.placed.roots["a"] == "a"
    assert m.twin.placed.derived == {"m"}
    assert m.twin.placed.groups() == {"x": ["x"], "a": ["a"], "y": ["y"]}


def test_concat_of_one_scale_joins_the_ranges_of_all_that_it_takes() -> None:
    model = small(
        CONV, node("Conv", "x u", "b"), node("Concat", "a b", "s", axis=2), CLOSE, w=W, u=30 * W
    )
    m = quantized(model, Format(operators=EVERY, same_scale=("Concat",)))
    roots = m.twin.placed.roots
    assert roots["a"] == roots["b"] == roots["s"]
    assert m.twin.lattices["a"].scale == m.twin.lattices["b"].scale > 0.1


def test_concat_of_one_scale_with_a_constant_stays_float() -> None:
    """The constant need not fit in the range of what is computed."""
    form = Format(operators=EVERY, same_scale=("Concat",))
    model = small(
        CONV, node("Concat", "a c", "s", axis=2), CLOSE, w=W, c=np.full(IMAGE, 50, np.float32)
    )
    assert quantized(model, form).twin.placed.integer == {"a", "y"}
    assert quantized(model).twin.placed.integer == {"a", "s", "y"}


@pytest.mark.parametrize("kind", ["Add", "Mul", "Conv", "Sigmoid"])
def test_one_scale_for_what_leaves_the_range_of_its_inputs_holds_both(kind: str) -> None:
    inputs = {"Conv": "a u", "Sigmoid": "a"}.get(kind, "a a")
    model = small(CONV, node(kind, inputs, "s"), CLOSE, w=W, u=9 * W)
    m = quantized(model, Format(operators=EVERY, same_scale=(kind,)))
    assert m.twin.placed.roots["s"] == m.twin.placed.roots["a"]


def test_a_clip_that_raises_values_after_an_operator_of_one_scale_is_in_its_range() -> None:
    model = small(
        CONV,
        node("Concat", "a a", "c", axis=2),
        node("Clip", "c lo hi", "s"),
        CLOSE,
        w=W / 100,
        lo=np.float32(1),
        hi=np.float32(6),
    )
    quantized(model, Format(operators=EVERY, same_scale=("Concat",)))


def test_movers_at_the_end_stay_float() -> None:
    model = small(CONV, node("Flatten", "a", "f"), node("Reshape", "f s", "y"), w=W, s=[2, 36])
    m = quantized(model)
    assert m.twin.placed.integer == {"a"}
    model = small(
        CONV,
        node("Flatten", "a", "f"),
        node("Exp", "f", "y"),
        node("Gemm", "f v", "z"),
        outputs="y z",
        w=W,
        v=floats(72, 3),
    )
    assert placed(model).integer == {"a", "f", "z"}


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_what_a_last_product_gives_stays_float(kind: str) -> None:
    model = small(node(kind, "x v", "y"), inputs={"x": (4, 6)}, v=V)
    m = quantized(model)
    assert m.twin.placed.raw == {"y"}
    assert m.twin.placed.roots.keys() == {"x"}
    model = small(node(kind, "x v", "a"), RELU, inputs={"x": (4, 6)}, outputs="r", v=V)
    m = quantized(model)
    assert m.twin.placed.raw == {"r"}
    assert "r" in {entry.name for entry in m.written.graph.node}
    model = small(
        node(kind, "x v", "a"), node("Gemm", "a v", "y"), inputs={"x": (4, 6)}, outputs="a y", v=V
    )
    assert quantized(model).twin.placed.raw == {"y"}


def test_what_a_last_conv_gives_is_quantized() -> None:
    m = quantized(small(node("Conv", "x w", "y"), w=W))
    assert m.twin.placed.roots.keys() == {"x", "y"}


def test_movers_of_one_scale_are_followed_by_no_quantizelinear() -> None:
    nodes = [
        CONV,
        node("MaxPool", "a", "m", kernel_shape=[2, 2]),
        node("Transpose", "m", "t"),
        node("MatMul", "t v", "y"),
    ]
    model = small(*nodes, w=W, v=floats(1, 3))
    m = quantized(model, Format(operators=EVERY, same_scale=tuple(sorted(MOVERS))))
    kinds = [entry.op_type for entry in m.written.graph.node]
    assert kinds.count("QuantizeLinear") == 2  # x and a
    m = quantized(model)
    kinds = [entry.op_type for entry in m.written.graph.node]
    assert kinds.count("QuantizeLinear") == 4


@pytest.mark.parametrize(
    ("mover", "inside"),
    [
        (node("Pad", "a pads", "s"), True),
        (node("Pad", "a pads zero", "s"), True),
        (node("Pad", "a pads nine", "s"), False),
        (node("Pad", "a pads v", "s"), False),
        (node("Pad", "a pads nine", "s", mode="edge"), True),
        (node("Resize", "a - twice", "s", mode="nearest"), True),
        (node("Resize", "a - twice", "s", mode="linear"), False),
        (node("Resize", "a - twice", "s", mode="cubic"), False),
        (node("MaxPool", "a", "s", kernel_shape=[2, 2]), True),
        (node("MaxPool", "a", "s places", kernel_shape=[2, 2]), False),
        (node("Gather", "a first", "s", axis=3), True),
        (node("Gather", "table i", "s", axis=0), False),
    ],
)
def test_movers_that_make_other_values_stay_float(mover: Any, inside: bool) -> None:
    inputs: dict[str, Any] = {"x": IMAGE}
    if "v" in mover.input:
        inputs["v"] = ()
    model = small(
        CONV,
        mover,
        CLOSE,
        inputs=inputs,
        outputs="y a",
        w=W,
        pads=[0, 0, 1, 1, 0, 0, 1, 1],
        zero=np.float32(0),
        nine=np.float32(9),
        twice=np.array([1, 1, 2, 2], np.float32),
        first=[0, 1],
        table=floats(3, *IMAGE[1:]),
        i=[0],
    )
    assert ("s" in placed(model).integer) == inside
    if "places" not in mover.output:
        quantized(model)


def test_numbers_that_are_no_floats_are_never_quantized() -> None:
    """Shapes that a graph computes."""
    model = small(
        CONV,
        node("Shape", "a", "n"),
        node("Gather", "n first", "g"),
        node("Concat", "g rest", "h", axis=0),
        node("Reshape", "a h", "s"),
        node("MatMul", "s v", "y"),
        w=W,
        v=V,
        first=[0],
        rest=[12, 6],
    )
    m = quantized(model)
    assert m.twin.placed.integer == {"a", "s", "y"}


def test_operators_of_other_domains_are_not_taken_for_standard_ones() -> None:
    conv = node("Conv", "x w", "y", domain="com.example")
    conv.name = "y"
    inputs, outputs, domains = [value("x", IMAGE)], [value("y", IMAGE)], ["com.example"]
    model = build([conv], inputs, outputs, [constant("w", W)], domains=domains)
    assert not placed(model).integer


def test_a_node_that_is_kept_float_takes_float_and_gives_float() -> None:
    model = small(CONV, RELU, node("Conv", "r w", "c"), node("Conv", "c w", "y"), w=W)
    m = quantized(model, keep_float={"c"})
    assert m.twin.placed.integer == {"a", "y"}
    copy = next(entry for entry in m.written.graph.node if entry.name == "c")
    assert list(copy.input) == ["r", "w"]
    m = quantized(model, keep_float={"a"})
    assert m.twin.placed.integer == {"c", "y"}
    assert not m.twin.placed.after


def test_a_tensor_that_is_not_finite_keeps_all_that_touch_it_float() -> None:
    nodes = [CONV, node("Conv", "a w", "b"), node("Conv", "b w", "c"), node("Conv", "c w", "y")]
    model = small(*nodes, w=W)
    assert placed(model, not_finite=frozenset({"b"})).integer == {"a", "y"}
    model = small(CONV, RELU, node("Conv", "r w", "b"), node("Conv", "b w", "y"), w=W)
    assert placed(model, not_finite=frozenset({"r"})).integer == {"y"}
    assert placed(model, not_finite=frozenset({"x"})).integer == {"b", "y"}


def test_nan_in_a_float_part_does_not_spoil_the_8_bits_beside_it() -> None:
    model = small(
        CONV,
        node("Log", "a", "l"),
        node("Conv", "l w", "b"),
        END_OF_A,
        outputs="y b",
        w=W,
    )
    m = made(Case(model, feeds_for(model)), ALL, not_finite={"l", "b"})
    assert m.twin.placed.integer == {"a", "y"}
    for exact, trace in zip(m.traces, traced(m.written, m.feeds), strict=True):
        assert np.isnan(exact["b"]).any()
        assert np.abs(trace["y"] - exact["y"]).max() < 0.1
