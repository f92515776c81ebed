"""Whole networks lowered to TFLite: their outputs, inputs, layout, and the file read back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onmetal.converters.tflite import io
from onmetal.converters.tflite.net import Net, Op, Tensor, constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from tests.onnx_models import node
from tests.tflite_graphs import (
    Graph,
    agrees,
    compare,
    floats,
    graph,
    ints,
    kinds,
    lowered,
    run,
    scalar,
    single,
    weighted,
    whole,
    written,
)
from tests.tflite_networks import (
    IMAGE,
    NETWORKS,
    PADDED,
    conv,
    flattened,
    focus,
    resnet,
    unet,
    yolo,
)


@pytest.mark.parametrize("simplified", [True, False], ids=["simplified", "written"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network(name: str, simplified: bool, tmp_path: Path) -> None:
    make, most = NETWORKS[name]
    net = agrees(make(), tmp_path, simplified)
    assert kinds(net).count("TRANSPOSE") <= most


def test_a_convolutional_network_moves_nothing_but_its_input(tmp_path: Path) -> None:
    net = lowered(resnet().model, tmp_path)
    wanted = "TRANSPOSE PAD CONV_2D CONV_2D CONV_2D ADD PAD MAX_POOL_2D MEAN FULLY_CONNECTED"
    assert sorted(kinds(net)) == sorted(wanted.split()) and kinds(net)[0] == "TRANSPOSE"
    assert [op.activation for op in net.ops if op.kind in ("CONV_2D", "ADD")].count(1) == 2


def test_a_flatten_goes_into_the_weights_behind_it(tmp_path: Path) -> None:
    net = lowered(flattened().model, tmp_path)
    assert kinds(net).count("TRANSPOSE") == 1 and kinds(net).count("RESHAPE") <= 1


def test_a_flatten_that_others_take_too_is_written_out(tmp_path: Path) -> None:
    """Its numbers must then stand as ONNX has them."""
    w = weighted("a", 4, 3, 3, 3) | {"fc": floats(256, 5)}
    nodes = [
        conv("a", "x", "a", w, strides=[2, 2], **PADDED),
        node("Flatten", "a", "f"),
        node("MatMul", "f fc", "y"),
        node("Softmax", "f", "z", axis=1),
    ]
    agrees(graph(nodes, IMAGE, w, ["y", "z"]), tmp_path)
    nodes = [*nodes[:2], node("Identity", "f", "g"), node("MatMul", "g fc", "y")]
    agrees(graph(nodes, IMAGE, w, ["y", "f"]), tmp_path)
    agrees(graph(nodes, IMAGE, w), tmp_path, simplified=False)


def test_a_network_of_one_axis_fuses_too(tmp_path: Path) -> None:
    """Between its convolutions there are no operators of shape."""
    w = weighted("a", 8, 4, 5) | weighted("b", 8, 8, 3)
    nodes = [
        conv("a", "x", "a", w, pads=[2, 2]),
        node("Relu", "a", "r"),
        conv("b", "r", "b", w, pads=[1, 1]),
        node("Relu", "b", "y"),
    ]
    net = agrees(graph(nodes, {"x": floats(2, 4, 37)}, w), tmp_path)
    found = kinds(net)
    assert "RELU" not in found
    first = found.index("CONV_2D")
    assert found[first : first + 2] == ["CONV_2D", "CONV_2D"]


@pytest.mark.parametrize("operands", ["x a", "a x"])
def test_adding_the_input_moves_it_once(operands: str, tmp_path: Path) -> None:
    """Whichever operand comes first."""
    w = weighted("a", 3, 3, 3, 3) | weighted("b", 4, 3, 3, 3)
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Add", operands, "s"),
        conv("b", "s", "b", w, **PADDED),
        node("GlobalAveragePool", "b", "g"),
        node("Flatten", "g", "y"),
    ]
    net = agrees(graph(nodes, IMAGE, w), tmp_path)
    assert kinds(net).count("TRANSPOSE") == 1


def test_a_tensor_and_its_transpose_both_in_plain_order(tmp_path: Path) -> None:
    """Stored the same, they are not the same when rearranged (a Gram matrix takes both)."""
    w = weighted("a", 4, 3, 3, 3)
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Transpose", "a", "t", perm=[0, 1, 3, 2]),
        node("MatMul", "a t", "y"),
        node("Transpose", "a", "z", perm=[0, 2, 1, 3]),
    ]
    agrees(graph(nodes, IMAGE, w, ["y", "z", "a"]), tmp_path)


def test_mean_variance_normalization_inside_a_graph(tmp_path: Path) -> None:
    """ONNX infers no shape for it."""
    nodes = [
        node("Relu", "x", "r"),
        node("MeanVarianceNormalization", "r", "m", axes=[0, 2, 3]),
        node("MaxPool", "m", "y", kernel_shape=[2, 2]),
    ]
    agrees(graph(nodes, IMAGE), tmp_path)


@pytest.mark.parametrize("simplified", [True, False])
def test_constants_in_nodes(simplified: bool, tmp_path: Path) -> None:
    nodes = [
        node("Constant", "", "c", value=onnx.numpy_helper.from_array(floats(3, 1, 1))),
        node("Constant", "", "k", value_ints=[1, 3, -1]),
        node("Mul", "x c", "m"),
        node("Reshape", "m k", "y"),
    ]
    agrees(graph(nodes, IMAGE), tmp_path, simplified)


def test_shapes_that_a_graph_computes(tmp_path: Path) -> None:
    """As torch writes view(x.shape[0], -1) and zeros_like."""
    w = {"zero": ints(0), "rest": ints(-1), "index": np.array(0, np.int64)}
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s index", "n", axis=0),
        node("Unsqueeze", "n zero", "n1"),
        node("Concat", "n1 rest", "to", axis=0),
        node("Reshape", "x to", "r"),
        node("Shape", "r", "rs"),
        node("ConstantOfShape", "rs", "z"),
        node("Add", "r z", "y"),
    ]
    agrees(graph(nodes, IMAGE, w), tmp_path)


# --- inputs and outputs


@pytest.mark.parametrize("simplified", [True, False])
def test_outputs_are_tensors_of_their_own(simplified: bool, tmp_path: Path) -> None:
    """An input, a constant, one tensor twice, and what others take as well."""
    w = weighted("a", 4, 3, 1, 1) | {"c": floats(2, 3), "axis": ints(0)}
    nodes = [
        conv("a", "x", "a", w),
        node("Relu", "a", "r"),
        node("Identity", "x", "same"),
        node("Identity", "r", "twice"),
        node("Identity", "c", "fixed"),
        node("Transpose", "r", "t", perm=[0, 2, 3, 1]),
        node("Unsqueeze", "r axis", "u"),
    ]
    outputs = ["a", "r", "same", "twice", "fixed", "t", "u"]
    net = agrees(graph(nodes, IMAGE, w, outputs), tmp_path, simplified)
    assert net.names == (["x"], outputs)
    assert len(set(net.outputs)) == len(outputs)


@pytest.mark.parametrize("simplified", [True, False])
def test_an_input_that_nothing_takes_stays(simplified: bool, tmp_path: Path) -> None:
    made = graph([node("Relu", "x", "y")], IMAGE | {"z": floats(2, 3)})
    assert agrees(made, tmp_path, simplified).names == (["x", "z"], ["y"])


def test_whole_numbers_in_and_out(tmp_path: Path) -> None:
    """Tokens are looked up; a mask hides some of what is averaged."""
    w = {"table": floats(20, 8), "zero": scalar(0, np.int64), "least": scalar(-1e4)}
    w |= {"last": ints(-1), "one": ints(1)}
    nodes = [
        node("Gather", "table tokens", "e"),
        node("Greater", "tokens zero", "mask"),
        node("Unsqueeze", "mask last", "wide"),
        node("Where", "wide e least", "hidden"),
        node("ReduceMax", "hidden", "m", axes=[1], keepdims=0),
        node("Cast", "mask", "number", to=onnx.TensorProto.INT64),
        node("ReduceSum", "number one", "count", keepdims=0),
        node("ArgMax", "m", "best", axis=1, keepdims=0),
    ]
    agrees(graph(nodes, {"tokens": whole(2, 7)}, w, ["m", "count", "best"]), tmp_path)


@pytest.mark.parametrize("make", [resnet, unet, yolo, focus])
def test_channels_last(make: Callable[[], Graph], tmp_path: Path) -> None:
    """Named are the inputs and outputs that the caller then transposes; the numbers stay."""
    made = make()
    net = lowered(made.model, tmp_path)
    plain = run(net, made.feed, False)
    turned = io.channels_last(net)
    assert turned == (["x", "y"] if make in (unet, focus) else ["x"])
    assert net.inputs[0].shape == (1, 16, 16, 3)
    if make is not yolo:
        assert "TRANSPOSE" not in kinds(net)
    again = read(write(net))
    assert again.names == (["x"], ["y"])
    found = run(again, {"x": made.feed["x"].transpose(0, 2, 3, 1)}, False)["y"]
    if "y" in turned:
        found = found.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, plain["y"])


def test_channels_last_of_an_image_normalized_inside(tmp_path: Path) -> None:
    """What is done to each pixel before the first convolution does not keep the transpose."""
    w = weighted("a", 4, 3, 3, 3) | {"mean": floats(3, 1, 1), "scale": floats(1, 3, 1, 1)}
    nodes = [
        node("Sub", "x mean", "m"),
        node("Mul", "m scale", "n"),
        conv("a", "n", "a", w),
        node("Softmax", "a", "y", axis=1),
    ]
    made = graph(nodes, IMAGE, w)
    net = lowered(made.model, tmp_path, simplified=False)
    assert io.channels_last(net) == ["x", "y"]
    assert "TRANSPOSE" not in kinds(net)
    found = run(net, {"x": made.feed["x"].transpose(0, 2, 3, 1)}, False)["y"]
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), made.wanted["y"], atol=1e-5)


def test_channels_last_leaves_what_is_needed_in_its_order(tmp_path: Path) -> None:
    """An input that other operators take too, an output that is no image."""
    w = weighted("a", 4, 3, 1, 1) | {"flat": ints(1, -1)}
    nodes = [
        conv("a", "x", "a", w),
        node("Softmax", "x", "s", axis=3),
        node("Reshape", "a flat", "f"),
    ]
    made = graph(nodes, IMAGE, w, ["s", "f"])
    net = lowered(made.model, tmp_path)
    assert io.channels_last(net) == []
    compare(net, made)


def test_other_transposes_are_no_change_of_layout(tmp_path: Path) -> None:
    """Height goes last for the softmax of an input, and comes back for the output."""
    made = graph([node("Softmax", "x", "y", axis=2)], IMAGE)
    net = lowered(made.model, tmp_path)
    assert kinds(net).count("TRANSPOSE") == 2
    assert io.channels_last(net) == []
    compare(net, made)


@pytest.mark.parametrize(
    ("where", "rounding"), [("asymmetric", "floor"), ("half_pixel", "round_prefer_ceil")]
)
def test_enlarging_twice_is_one_operator(where: str, rounding: str, tmp_path: Path) -> None:
    made = single(
        "Resize",
        [(1, 3, 4, 6), None, np.array([1, 1, 2, 2], np.float32)],
        "last",
        mode="nearest",
        coordinate_transformation_mode=where,
        nearest_mode=rounding,
    )
    found = kinds(agrees(made, tmp_path, simplified=False))
    assert found.count("RESIZE_NEAREST_NEIGHBOR") == 1 and "GATHER" not in found


def test_names_that_could_be_of_its_own_making(tmp_path: Path) -> None:
    """The tensor that ends a node's work has the ONNX name, whatever that is."""
    w = weighted("conv_2d", 4, 3, 1, 1) | {"scalar": scalar(2), "ints": floats(4, 1, 1)}
    lines = ["Add abs scalar relu", "Mul relu ints x/transposed", "Tanh x/transposed add"]
    lines += ["Relu add mul", "Sigmoid mul tanh"]
    nodes = [conv("conv_2d", "x", "abs", w), *written(lines)]
    net = agrees(graph(nodes, IMAGE, w, ["tanh", "add"]), tmp_path, simplified=False)
    found = [tensor.name for tensor in net.tensors() if tensor.data is None]
    assert len(set(found)) == len(found)
    assert {"x", "abs", "relu", "x/transposed", "mul"} <= set(found)


def test_integers_at_both_ends() -> None:
    scale, zero = np.array([0.5], np.float32), np.array([3])
    x, y = (Tensor(name, (2, 3), np.dtype(np.float32)) for name in "xy")
    q = Tensor("q", (2, 3), np.dtype(np.int8), None, scale, zero)
    r = Tensor("r", (3, 2), np.dtype(np.int8), None, scale, zero)
    y.shape = (3, 2)
    to = constant("to", [3, 2], np.int32)
    net = Net(
        [x],
        [y],
        [
            Op("QUANTIZE", [x], [q]),
            Op("RESHAPE", [q, to], [r], {"newShape": [3, 2]}),
            Op("DEQUANTIZE", [r], [y]),
        ],
    )
    numbers = floats(2, 3)
    wanted = run(Net(net.inputs, net.outputs, net.ops, (["x"], ["y"])), {"x": numbers}, False)["y"]
    io.integers(net)
    assert kinds(net) == ["RESHAPE"] and net.names == (["x"], ["y"])
    fed = np.clip(np.round(numbers / 0.5) + 3, -128, 127).astype(np.int8)
    found = run(read(write(net)), {"x": fed}, False)["y"]
    assert found.dtype == np.int8
    np.testing.assert_array_equal((found.astype(np.float32) - 3) * np.float32(0.5), wanted)


# --- written and read


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    made = NETWORKS[name][0]()
    net = lowered(made.model, tmp_path)
    content = write(net)
    assert write(net) == content == write(lowered(made.model, tmp_path))
    again = read(content)
    assert write(again) == content
    assert again.names == net.names and kinds(again) == kinds(net)
    for one, other in zip(net.tensors(), again.tensors(), strict=True):
        assert (one.name, one.shape, one.dtype) == (other.name, other.shape, other.dtype)
        assert (one.data is None) == (other.data is None)
        if one.data is not None and other.data is not None:
            np.testing.assert_array_equal(one.data, other.data)
    for op, same in zip(net.ops, again.ops, strict=True):
        assert [t and t.name for t in op.inputs] == [t and t.name for t in same.inputs]
        assert [t.name for t in op.outputs] == [t.name for t in same.outputs]
        for option, entry in op.options.items():
            assert np.array_equal(same.options[option], entry), (op.kind, option)


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_have_names_of_their_own(name: str, tmp_path: Path) -> None:
    net = lowered(NETWORKS[name][0]().model, tmp_path)
    found = [tensor.name for tensor in net.tensors() if tensor.data is None]
    assert len(set(found)) == len(found)
    assert net.names is not None
    assert [tensor.name for tensor in net.inputs] == net.names[0]
