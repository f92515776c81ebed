"""Float .tflite files as ONNX: the same names, layout and numbers as LiteRT gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema

from onmetal.converters.tflite import lowering
from onmetal.converters.tflite.net import Op, Tensor, constant, signature_names
from onmetal.converters.tflite.smaller_weights import halved
from onmetal.converters.tflite.to_onnx.convert import to_onnx
from onmetal.converters.tflite.to_onnx.rules import TABLE
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError, UsageError
from tests.tflite_graphs import lowered
from tests.tflite_import_cases import CASES as IMPORTED
from tests.tflite_import_cases import fed
from tests.tflite_kinds import BUILD, F32, SQUARE, Making, kind_net
from tests.tflite_nets import packed, whole
from tests.tflite_networks import NETWORKS
from tests.tflite_operator_cases import CASES, OPERATORS, label
from tests.tflite_round_trip import agrees, by_litert, by_onnx, converted, operators

OF_RECURRENT_TESTS = {
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
}
OF_INTEGER_TESTS = {"QUANTIZE"}


# --- every operator


@pytest.mark.parametrize("kind", sorted(OPERATORS))
def test_what_onmetal_writes_comes_back(kind: str, tmp_path: Path) -> None:
    """Each case of the operator, from ONNX to TFLite and back; every second one with a layout that
    is channels last inside."""
    for number, case in enumerate(case for case in CASES if case.kind == kind):
        made = case.graph("last" if number % 2 else "plain")
        net = lowered(made.model, tmp_path, simplified=False)
        try:
            agrees(net, made.feed, tmp_path)
        except AssertionError as error:
            pytest.fail(f"{label(case)}: {error}")


@pytest.mark.parametrize("name", IMPORTED)
def test_an_operator_of_others(name: str, tmp_path: Path) -> None:
    m = IMPORTED[name]()
    agrees(m.net, fed(m), tmp_path)


@pytest.mark.parametrize("kind", BUILD)
def test_an_operator_behind_a_convolution(kind: str, tmp_path: Path) -> None:
    m = kind_net(kind)
    agrees(m.net, m.feeds(1)[0], tmp_path)


def test_every_rule_is_tested() -> None:
    nets = [*(build().net for build in IMPORTED.values()), *(kind_net(k).net for k in BUILD)]
    tested = {op.kind for net in nets for op in net.ops}
    tested |= {kind for rule in lowering.TABLE.values() for kind in rule.to.split(", ")}
    assert set(TABLE) - tested - OF_RECURRENT_TESTS - OF_INTEGER_TESTS == set()


# --- whole networks


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network(name: str, tmp_path: Path) -> None:
    made = NETWORKS[name][0]()
    net = lowered(made.model, tmp_path)
    agrees(net, made.feed, tmp_path)


def test_a_network_in_float16(tmp_path: Path) -> None:
    """Weights are widened once, in the file."""
    m = whole()
    made = agrees(halved(m.net), m.feeds(1)[0], tmp_path)
    kinds = {entry.data_type for entry in made.graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in kinds and "Cast" not in operators(made)


# --- layout


def image_net(flat: bool = False) -> Making:
    """Two branches, joined twice; behind them a mean or a matrix."""
    m = Making(1, 8, 9, 3)
    first = m.op("RELU6", [m.conv(channels=6)], 1, 8, 9, 6)
    deep = m.op(
        "DEPTHWISE_CONV_2D", [first, m.floats(1, 3, 3, 6), m.floats(6)],
        1, 8, 9, 6, depthMultiplier=1, fusedActivationFunction=1, **SQUARE(),
    )  # fmt: skip
    added = m.op("ADD", [deep, first], 1, 8, 9, 6)
    scaled = m.op("MUL", [added, m.floats(6)], 1, 8, 9, 6)
    both = m.op("CONCATENATION", [scaled, added], 1, 8, 9, 12, axis=3)
    padded = m.op("PAD", [both, m.ints([0, 0], [1, 0], [0, 1], [0, 0])], 1, 9, 10, 12)
    last = m.conv(padded, 5, stride=2)
    if not flat:
        mean = m.op("MEAN", [last, m.ints(1, 2)], 1, 5, keepDims=False)
        m.done(m.op("SOFTMAX", [mean], 1, 5, beta=1.0), last)
        return m
    rows = m.op("RESHAPE", [last, m.ints(1, 125)], 1, 125)
    m.done(m.op("FULLY_CONNECTED", [rows, m.floats(4, 125), m.floats(4)], 1, 4))
    return m


@pytest.mark.parametrize(("flat", "transposes"), [(False, 2), (True, 1)])
def test_a_network_is_turned_at_its_ends_alone(flat: bool, transposes: int, tmp_path: Path) -> None:
    """At the input, and at an output that is an image; the matrix behind a flattened image has its
    columns in the image's order instead."""
    m = image_net(flat)
    assert operators(agrees(m.net, m.feeds(1)[0], tmp_path))["Transpose"] == transposes


@pytest.mark.parametrize("name", ["dilated between blocks", "dilated sequence between blocks"])
def test_a_convolution_between_blocks_is_dilated(name: str, tmp_path: Path) -> None:
    m = IMPORTED[name]()
    made = operators(agrees(m.net, fed(m), tmp_path))
    assert made["Transpose"] == 2 and made["Conv"] == 1


def test_a_flattened_image_of_several_readers_is_turned(tmp_path: Path) -> None:
    m = IMPORTED["flattened images"]()
    assert operators(agrees(m.net, fed(m), tmp_path))["Transpose"] >= 2


def test_only_axes_of_length_1_are_no_transpose(tmp_path: Path) -> None:
    m = Making(1, 6, 7, 1)
    wide = m.op("TRANSPOSE", [m.conv(channels=1), m.ints(3, 0, 1, 2)], 1, 1, 6, 7)
    m.done(m.op("ADD", [wide, m.floats(6, 7)], 1, 1, 6, 7))
    assert "Transpose" not in operators(agrees(m.net, m.feeds(1)[0], tmp_path))


# --- names, types, shapes


def test_names_are_those_of_the_signature(tmp_path: Path) -> None:
    """Even where inner tensors have them."""
    m = Making(1, 4, 4, 3)
    x = m.conv()
    x.name = "picture"
    m.done(m.op("RELU", [x], 1, 4, 4, 4), x)
    m.net.names = (["picture"], ["scores", "relu1"])
    path = tmp_path / "named.tflite"
    path.write_bytes(write(m.net))
    made = to_onnx(path)
    assert [entry.name for entry in made.graph.input] == ["picture"]
    assert [entry.name for entry in made.graph.output] == ["scores", "relu1"]
    feed = m.feeds(1)[0]["x0"]
    found, wanted = by_onnx(made, {"picture": feed}), by_litert(m.net, {"picture": feed})
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


def test_an_input_and_an_output_of_one_name_are_refused(tmp_path: Path) -> None:
    m = Making(2, 3)
    m.done(m.op("RELU", [m.x], 2, 3))
    m.net.names = (["x"], ["x"])
    with pytest.raises(UnsupportedError, match="an input and an output are both called 'x'"):
        converted(m.net, tmp_path)


def test_outputs_that_no_node_computes(tmp_path: Path) -> None:
    """An input and a constant."""
    m = Making(2, 3)
    y = m.op("RELU", [m.x], 2, 3)
    fixed = m.op("SHAPE", [m.x], 2, dtype=np.int32, outType=2)
    m.done(y, m.x, fixed)
    path = tmp_path / "ends.tflite"
    m.net.names = (["a"], ["b", "c", "d"])
    path.write_bytes(write(m.net))
    x = m.feeds(1)[0]["x0"]
    found = by_onnx(to_onnx(path), {"a": x})
    np.testing.assert_array_equal(found["b"], np.maximum(x, 0))
    np.testing.assert_array_equal(found["c"], x)
    np.testing.assert_array_equal(found["d"], [2, 3])


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (converted(image_net().net, tmp_path) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


def test_the_model_is_one_that_checkers_accept(tmp_path: Path) -> None:
    """Static shapes, opset 17, unique names, nothing that is not used."""
    made = converted(image_net().net, tmp_path)
    onnx.checker.check_model(made, full_check=True)
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 17)]
    used = {name for node in made.graph.node for name in node.input}
    outputs = [name for node in made.graph.node for name in node.output]
    ends = {entry.name for entry in made.graph.output}
    assert len(outputs) == len(set(outputs)) == len({node.name for node in made.graph.node})
    assert set(outputs) <= used | ends
    assert {entry.name for entry in made.graph.initializer} <= used
    shape = made.graph.input[0].type.tensor_type.shape
    assert [axis.dim_value for axis in shape.dim] == [1, 8, 9, 3]


def test_openvino_reads_it(tmp_path: Path) -> None:
    import openvino

    m = image_net()
    path = tmp_path / "image.onnx"
    onnx.save(converted(m.net, tmp_path), path)
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    feed = m.feeds(1)[0]
    wanted = by_litert(m.net, feed)
    for name, array in wanted.items():
        np.testing.assert_allclose(compiled(feed)[name], array, atol=1e-5 * np.abs(array).max())


def test_sizes_that_the_file_leaves_open_are_those_of_a_run(tmp_path: Path) -> None:
    """TensorFlow's converter writes 1 for each behind a reshape to a computed shape."""
    m = Making(1, 3, 4)
    size = m.op("SHAPE", [m.x], 3, dtype=np.int32, outType=2)
    last = [m.ints(1), m.ints(3), m.ints(1)]
    rest = m.op("STRIDED_SLICE", [size, *last], 2, dtype=np.int32)
    whole_size = m.op("REDUCE_PROD", [rest, m.ints(0)], 1, dtype=np.int32, keepDims=True)
    flat = m.op("RESHAPE", [m.x, whole_size], 1)
    m.done(m.op("ADD", [flat, m.floats(12)], 1))
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(write(m.net)))
    for tensor in model.subgraphs[0].tensors:
        if tensor.name in (flat.name.encode(), m.net.outputs[0].name.encode()):
            tensor.shapeSignature = np.array([-1], np.int32)
    path = tmp_path / "open.tflite"
    path.write_bytes(packed(model))
    feed = m.feeds(1)[0]
    assert m.net.outputs[0].shape == (1,)
    name, wanted = next(iter(by_litert(m.net, feed).items()))
    assert wanted.shape == (12,)
    np.testing.assert_allclose(by_onnx(to_onnx(path), feed)[name], wanted, atol=1e-6)


# --- refusals


def nonzero(m: Making) -> Tensor:
    return m.op("WHERE", [m.op("GREATER", [m.x, m.floats(3)], 2, 3, dtype=np.bool_)], 1, 2,
                dtype=np.int64)  # fmt: skip


def detection(m: Making) -> Tensor:
    y = Tensor("boxes", (2, 3), F32)
    m.net.ops.append(Op("CUSTOM", [m.x], [y], custom="TFLite_Detection_PostProcess"))
    return y


def computed_pads(m: Making) -> Tensor:
    pads = m.input(2, 2)
    pads.dtype = np.dtype(np.int32)
    return m.op("PAD", [m.x, pads], 4, 5)


def sign_bit(m: Making) -> Tensor:
    return m.op("ADD", [m.x, m.x], 2, 3, fusedActivationFunction=5)


def shuffled(m: Making) -> Tensor:
    return m.op("FULLY_CONNECTED", [m.x, m.floats(4, 3)], 2, 4, weightsFormat=1)


REFUSED: dict[Callable[[Making], Tensor], str] = {
    nonzero: "WHERE 'where",
    detection: "CUSTOM TFLite_Detection_PostProcess 'boxes'",
    computed_pads: "PAD 'pad1': its list of pads is computed",
    sign_bit: "ADD 'add1': .*SIGN_BIT",
    shuffled: "FULLY_CONNECTED 'fully_connected2': shuffled weights",
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_what_is_refused_is_named(build: Callable[[Making], Tensor], tmp_path: Path) -> None:
    m = Making(2, 3)
    m.done(build(m))
    with pytest.raises(UnsupportedError, match=REFUSED[build]):
        converted(m.net, tmp_path)


def test_all_missing_operators_are_named(tmp_path: Path) -> None:
    m = Making(2, 3)
    m.done(nonzero(m), detection(m), m.op("RELU", [m.x], 2, 3))
    with pytest.raises(UnsupportedError, match=r"CUSTOM TFLite_Detection_P.*, WHERE 'where"):
        converted(m.net, tmp_path)


def test_control_flow_is_refused_by_name(tmp_path: Path) -> None:
    m = Making(2, 3)
    m.done(m.op("WHILE", [m.x], 2, 3))
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(write(m.net)))
    model.subgraphs.append(model.subgraphs[0])
    path = tmp_path / "loop.tflite"
    path.write_bytes(packed(model))
    with pytest.raises(UnsupportedError, match=r"WHILE 'while1' \(control flow"):
        to_onnx(path)


def test_a_shape_that_the_operator_does_not_give_is_refused(tmp_path: Path) -> None:
    m = Making(2, 3)
    m.done(m.op("RELU", [m.op("CONCATENATION", [m.x, m.x], 4, 3, axis=1)], 4, 3))
    with pytest.raises(UnsupportedError, match=r"concatenation1' is float32 \[4, 3\] in the file"):
        converted(m.net, tmp_path)


def test_a_damaged_file_is_an_error_of_use(tmp_path: Path) -> None:
    path = tmp_path / "damaged.tflite"
    path.write_bytes(write(image_net().net)[:600])
    with pytest.raises(UsageError, match="damaged"):
        to_onnx(path)
    path.write_bytes(b"something else")
    with pytest.raises(UsageError, match=r"not a \.tflite file"):
        to_onnx(path)


def test_an_operator_that_nothing_reads_is_left_out(tmp_path: Path) -> None:
    m = Making(2, 3)
    nonzero(m)
    m.done(m.op("RELU", [m.x], 2, 3))
    made = converted(m.net, tmp_path)
    assert operators(made) == {"Relu": 1}


def test_constants_are_stored_once(tmp_path: Path) -> None:
    m = Making(2, 300)
    shared = constant("shared", np.arange(300), np.float32)
    first = m.op("ADD", [m.x, shared], 2, 300)
    m.done(m.op("MUL", [first, shared], 2, 300))
    made = converted(m.net, tmp_path)
    assert len(made.graph.initializer) == 1
    assert signature_names(m.net)[0] == [entry.name for entry in made.graph.input]
