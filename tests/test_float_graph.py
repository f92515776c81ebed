"""The float graph from which all is quantized: simplified, raised to a newer opset, named."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onmetal.converters.onnx.floats import simplify
from onmetal.converters.onnx.graph import Graph, attribute
from onmetal.errors import UnsupportedError
from tests.float_graphs import BOOL, F16, NORM, convolution, floats, kinds, norm, run
from tests.onnx_models import build, constant, dense, node, save, value, weights
from tests.statistics_reference import Case


def simplified(built: Any, folder: Path) -> Any:
    """The float graph of a model, after every check that holds for all."""
    made = []
    for turn in ("first", "second"):
        (folder / turn).mkdir(parents=True)
        simplify(str(save(built, folder / f"{turn}.onnx")), str(folder / turn))
        made.append((folder / turn / "model.onnx").read_bytes())
    assert made[0] == made[1]
    found = onnx.load_from_string(made[0])
    onnx.checker.check_model(found, full_check=True)
    names = [entry.name for entry in found.graph.node]
    assert all(names) and len(set(names)) == len(names)
    assert [entry.name for entry in found.graph.output] == [o.name for o in built.graph.output]
    constants = {tensor.name for tensor in built.graph.initializer}
    taken = [entry.name for entry in built.graph.input if entry.name not in constants]
    assert [entry.name for entry in found.graph.input] == taken
    opsets = {entry.domain: entry.version for entry in found.opset_import}
    assert opsets[""] >= 13
    return found


def assert_alike(built: Any, found: Any, **feed: np.ndarray) -> None:
    """Both give the same outputs, but for rounding."""
    for expected, output in zip(run(built, feed), run(found, feed), strict=True):
        assert expected.dtype == output.dtype
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)


IMAGE = floats(1, 3, 6, 6)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_batch_norm_goes_into_a_convolution(tmp_path: Path, kind: str, bias: bool) -> None:
    built = convolution(kind, bias=bias)
    found = simplified(built, tmp_path)
    assert kinds(found) == [kind, "Relu"]
    assert_alike(built, found, x=IMAGE)


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([node("MatMul", "x weight.", "c")], (5, 4)),
        ([node("Gemm", "x weight.", "c")], (5, 4)),
        ([node("Gemm", "x weight. offset", "c")], (5, 4)),
        ([node("Gemm", "x weight. offset", "c", transB=1)], (4, 5)),
        ([node("MatMul", "x weight.", "b"), node("Add", "b offset", "c")], (5, 4)),
    ],
)
def test_batch_norm_goes_into_a_matrix_product(
    tmp_path: Path, nodes: list[Any], shape: tuple[int, ...]
) -> None:
    built = build(
        [*nodes, norm("c", "n", epsilon=0.01), node("Relu", "n", "y")],
        [value("x", [6, 5])],
        [value("y", [6, 4])],
        [weights("weight.", *shape), weights("offset", 4), *NORM],
    )
    found = simplified(built, tmp_path)
    assert kinds(found) == ["Gemm", "Relu"]
    assert_alike(built, found, x=floats(6, 5))


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        # what is before the norm is needed elsewhere
        ([node("Gemm", "x weight.", "c"), norm("c", "y"), node("Relu", "c", "z")], "y z"),
        ([node("Gemm", "x weight.", "c"), norm("c", "y")], "y c"),
        # nothing before it, or no product by a constant
        ([norm("x", "y"), node("Gemm", "x weight.", "z")], "y z"),
        ([node("MatMul", "x x", "c"), norm("c", "y")], "y"),
        ([node("Gemm", "x weight.", "c", alpha=0.5), norm("c", "y")], "y"),
        ([node("Gemm", "x weight. row", "c", beta=2.0), norm("c", "y")], "y"),
    ],
)
def test_batch_norm_that_goes_nowhere_stays_right(
    tmp_path: Path, nodes: list[Any], outputs: str
) -> None:
    built = build(
        nodes,
        [value("x", [4, 4])],
        [value(name, [4, 4]) for name in outputs.split()],
        [weights("weight.", 4, 4), weights("row", 4), *NORM],
    )
    assert_alike(built, simplified(built, tmp_path), x=floats(4, 4))


@pytest.mark.parametrize(("opset", "ir"), [(7, 3), (8, 3), (9, 4), (10, 5), (11, 6), (12, 7)])
def test_lower_opsets_are_raised(tmp_path: Path, opset: int, ir: int) -> None:
    built = convolution(opset=opset, ir=ir)
    if ir == 3:  # weights are listed among the inputs
        for tensor in built.graph.initializer:
            built.graph.input.append(value(tensor.name, list(tensor.dims)))
    found = simplified(built, tmp_path)
    assert kinds(found) == ["Conv", "Relu"]
    assert_alike(built, found, x=IMAGE)


@pytest.mark.parametrize("ir", [4, 8])
def test_weights_that_could_be_overridden_are_constants(tmp_path: Path, ir: int) -> None:
    built = convolution(opset=11 if ir == 4 else 17, ir=ir)
    for tensor in built.graph.initializer:
        built.graph.input.append(value(tensor.name, list(tensor.dims)))
    found = simplified(built, tmp_path)
    assert kinds(found) == ["Conv", "Relu"]
    assert_alike(built, found, x=IMAGE)


@pytest.mark.parametrize(
    ("opset", "nodes", "shape", "tensors"),
    [
        (9, [node("Clip", "x", "y", min=-0.5, max=0.5)], [1, 3, 6, 6], []),
        (11, [node("Squeeze", "x", "y", axes=[0])], [3, 6, 6], []),
        (11, [node("Unsqueeze", "x", "y", axes=[0])], [1, 1, 3, 6, 6], []),
        (11, [node("Softmax", "x", "y", axis=1)], [1, 3, 6, 6], []),
        (11, [node("ReduceSum", "x", "y", axes=[1])], [1, 1, 6, 6], []),
        (11, [node("Pad", "x pads", "y")], [1, 3, 8, 6], [constant("pads", [0] * 8, "int64")]),
        (9, [node("Upsample", "x by", "y")], [1, 3, 12, 12], [constant("by", [1, 1, 2, 2])]),
        (10, [node("Dropout", "x", "y")], [1, 3, 6, 6], []),
    ],
)
def test_operators_that_changed_are_raised(
    tmp_path: Path, opset: int, nodes: list[Any], shape: list[int], tensors: list[Any]
) -> None:
    if nodes[0].op_type == "Pad":
        tensors = [constant("pads", [0, 0, 1, 0, 0, 0, 1, 0], "int64")]
    built = build(
        nodes, [value("x", [1, 3, 6, 6])], [value("y", shape)], tensors, opset=opset, ir=6
    )
    assert_alike(built, simplified(built, tmp_path), x=IMAGE)


def test_a_model_that_cannot_be_raised_says_so(tmp_path: Path) -> None:
    built = build(
        [node("Affine", "x", "y", alpha=2.0)],
        [value("x", [2, 3])],
        [value("y", [2, 3])],
        opset=8,
        ir=3,
    )
    path = save(built, tmp_path / "old.onnx")
    with pytest.raises(UnsupportedError, match=r"opset 8 .*raised to 13.*Affine.*newer opset"):
        simplify(str(path), str(tmp_path))


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (
            build(
                [node("Frob", "x", "y", domain="acme")],
                [value("x", [2, 3])],
                [value("y", [2, 3])],
                domains=["acme"],
            ),
            "Frob",
        ),
        (
            build(
                [node("MatMul", "x w", "y")],
                [value("x", [2, 3])],
                [value("y", [2, 3])],
                [weights("w", 5, 3)],
            ),
            "cannot be prepared for quantization",
        ),
    ],
)
def test_a_model_that_does_not_open_says_why(tmp_path: Path, built: Any, message: str) -> None:
    path = save(built, tmp_path / "odd.onnx")
    with pytest.raises(UnsupportedError, match=message) as caught:
        simplify(str(path), str(tmp_path))
    assert len(str(caught.value)) < 900 and str(caught.value).isprintable()


INTEGERS = np.random.default_rng(3).integers(-127, 128, (4, 3))
STORED = [
    ("per tensor", "int8", "w8 s z", [constant("s", 0.1), constant("z", 3, "int8")], {}),
    ("in vectors", "int8", "w8 s z", [constant("s", [0.1]), constant("z", [3], "int8")], {}),
    ("no zero point", "int8", "w8 s", [constant("s", 0.1)], {}),
    ("zero point left out", "int8", "w8 s -", [constant("s", 0.1)], {}),
    ("unsigned", "uint8", "w8 s z", [constant("s", 0.1), constant("z", 130, "uint8")], {}),
    ("int32", "int32", "w8 s", [constant("s", 0.1)], {}),
    (
        "per row",
        "int8",
        "w8 s z",
        [constant("s", [0.1, 0.2, 0.3, 0.4]), constant("z", [1, 2, 3, 4], "int8")],
        {"axis": 0},
    ),
    (
        "per column",
        "int8",
        "w8 s z",
        [constant("s", [0.1, 0.2, 0.3]), constant("z", [1, -2, 3], "int8")],
        {"axis": 1},
    ),
    ("from the end", "int8", "w8 s", [constant("s", [0.1, 0.2, 0.3])], {"axis": -1}),
    ("by default", "int8", "w8 s", [constant("s", [0.1, 0.2, 0.3])], {}),
]


@pytest.mark.parametrize(
    ("dtype", "names", "tensors", "attributes"), [s[1:] for s in STORED], ids=[s[0] for s in STORED]
)
def test_weights_stored_in_8_bits_become_float(
    tmp_path: Path, dtype: str, names: str, tensors: list[Any], attributes: dict[str, Any]
) -> None:
    integers = INTEGERS + 128 if dtype == "uint8" else INTEGERS
    built = build(
        [node("DequantizeLinear", names, "w", **attributes), node("MatMul", "x w", "y")],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [constant("w8", integers, dtype), *tensors],
    )
    found = simplified(built, tmp_path)
    assert kinds(found) == ["MatMul"]
    (weight,) = (numpy_helper.to_array(tensor) for tensor in found.graph.initializer)
    assert weight.dtype == np.float32
    assert_alike(built, found, x=floats(5, 4))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("QuantizeLinear", "wide s z", "q"), node("DequantizeLinear", "q s z", "w")],
        [node("Transpose", "turned", "q", perm=[1, 0]), node("DequantizeLinear", "q s z", "w")],
        [
            node("Constant", "", "q", value=constant("", INTEGERS, "int8")),
            node("Constant", "", "t", value=constant("", 0.1)),
            node("DequantizeLinear", "q t", "w"),
        ],
    ],
    ids=["float through both", "transposed", "constant nodes"],
)
def test_weights_computed_in_8_bits_become_float(tmp_path: Path, nodes: list[Any]) -> None:
    built = build(
        [*nodes, node("MatMul", "x w", "y")],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [
            weights("wide", 4, 3),
            constant("turned", INTEGERS.T, "int8"),
            constant("s", 0.02),
            constant("z", 1, "int8"),
        ],
    )
    found = simplified(built, tmp_path)
    assert kinds(found) == ["MatMul"]
    assert_alike(built, found, x=floats(5, 4))


def test_half_precision_weights_become_float(tmp_path: Path) -> None:
    halves = [constant(name, floats(4, 4, seed=len(name)), "float16") for name in ("w", "ww")]
    built = build(
        [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("MatMul", "b ww", "y")],
        [value("x", [5, 4], F16)],
        [value("y", [5, 4], F16)],
        halves,
    )
    found = simplified(built, tmp_path)
    assert kinds(found) == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]
    half = floats(5, 4).astype(np.float16)
    (expected,), (output,) = run(built, {"x": half}), run(found, {"x": half})
    np.testing.assert_allclose(output, expected, rtol=0.01, atol=0.01)


def test_scales_of_blocks_are_left_alone(tmp_path: Path) -> None:
    built = build(
        [
            node("DequantizeLinear", "w8 s", "w", axis=0, block_size=2),
            node("MatMul", "x w", "y"),
        ],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [constant("w8", INTEGERS, "int8"), constant("s", np.abs(floats(2, 3)))],
        opset=21,
        ir=10,
    )
    assert_alike(built, simplified(built, tmp_path), x=floats(5, 4))


def test_a_model_that_is_quantized_already_is_told(tmp_path: Path) -> None:
    built = build(
        [
            node("QuantizeLinear", "x s z", "q"),
            node("DequantizeLinear", "q s z", "d"),
            node("DequantizeLinear", "w8 s z", "w"),
            node("MatMul", "d w", "y"),
        ],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [constant("w8", INTEGERS, "int8"), constant("s", 0.02), constant("z", 1, "int8")],
    )
    found = simplified(built, tmp_path / "made")
    assert kinds(found) == ["QuantizeLinear", "DequantizeLinear", "MatMul"]
    assert_alike(built, found, x=floats(5, 4))
    path = save(built, tmp_path / "again.onnx")
    assert simplify(str(path), str(tmp_path))["quantized"] == 1
    path = save(dense(5), tmp_path / "float.onnx")
    assert simplify(str(path), str(tmp_path))["quantized"] == 0


def test_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    built = build(
        [
            node("MatMul", "x w", "a", name="n"),
            node("Sigmoid", "a", "b"),
            node("Tanh", "b", "c", name="Sigmoid_1"),
            node("Softmax", "c", "d", name="Sigmoid_1_2"),
            node("Neg", "d", "e"),
            node("Exp", "e", "y", name="Neg_4"),
        ],
        [value("x", [5, 4])],
        [value("y", [5, 3])],
        [weights("w", 4, 3)],
    )
    found = simplified(built, tmp_path)  # which looks at the names
    assert found.graph.node[0].name == "n"
    assert_alike(built, found, x=floats(5, 4))


def test_constants_are_folded_and_outputs_stay(tmp_path: Path) -> None:
    built = build(
        [
            node("Mul", "w two", "w2"),
            node("MatMul", "x w2", "y"),
            node("Identity", "x", "same"),
            node("Constant", "", "fixed", value=constant("", [1, 2])),
        ],
        [value("x", [5, 4])],
        [value("y", [5, 3]), value("same", [5, 4]), value("fixed", [2])],
        [weights("w", 4, 3), constant("two", 2)],
    )
    found = simplified(built, tmp_path)
    assert sorted(kinds(found)) == ["Identity", "MatMul"]
    assert_alike(built, found, x=floats(5, 4))


def test_the_example_as_a_float_graph(digits: Case) -> None:
    original = onnx.load(str(digits.model.prepared))
    found = onnx.load(str(digits.graph))
    onnx.checker.check_model(found, full_check=True)
    assert_alike(original, found, image=digits.arrays["image"][:1])
    for entry in found.graph.node:
        assert all(name in Graph(found).values for name in entry.output)


# --- a graph that can be asked


def test_a_graph_answers() -> None:
    inside = helper.make_graph([node("Mul", "a b", "m")], "t", [], [value("m", [5, 3])])
    other = helper.make_graph([node("Neg", "a", "o")], "e", [], [value("o", [5, 3])])
    built = build(
        [
            node("MatMul", "x w", "a"),
            node("Relu", "a", "b"),
            node("Constant", "", "k", value=constant("", [1, 2])),
            node("If", "flag", "c", then_branch=inside, else_branch=other),
            node("Add", "c c", "d"),
            node("Sigmoid", "d", "y"),
            node("Tanh", "y", "z"),
        ],
        [value("x", [5, 4]), value("flag", [], BOOL), value("w", [4, 3])],
        [value("y", [5, 3]), value("z", [5, 3])],
        [weights("w", 4, 3), constant("i", [1, 2], "int64")],
    )
    graph = Graph(onnx.shape_inference.infer_shapes(built))
    assert graph.inputs == ["x", "flag"] and graph.outputs == ["y", "z"]
    assert graph.producer["b"].op_type == "Relu" and "x" not in graph.producer
    assert [taker.op_type for taker in graph.consumers["c"]] == ["Add"]
    assert {"a", "b"} <= graph.inner
    weight = graph.constant("w")
    assert weight is not None and weight.shape == (4, 3) and graph.constant("w") is weight
    fixed = graph.constant("k")
    assert fixed is not None and fixed.tolist() == [1, 2]
    assert graph.constant("x") is None and graph.constant("a") is None
    assert graph.is_float("x") and graph.is_float("w") and graph.is_float("a")
    assert not graph.is_float("flag") and not graph.is_float("i") and not graph.is_float("?")
    assert graph.shape("a") == (5, 3) and graph.shape("w") == (4, 3) and graph.shape("?") is None
    assert graph.only_consumer("x") is not None
    assert graph.only_consumer("a") is None  # a branch takes it too
    assert graph.only_consumer("c") is None  # taken twice
    assert graph.only_consumer("y") is None  # an output
    assert attribute(built.graph.node[0], "absent", 7) == 7


def test_a_free_axis_is_no_shape() -> None:
    graph = Graph(dense("N"))
    assert graph.shape("x") is None and graph.is_float("x")
