"""What cannot be lowered to TFLite is refused, with the node, the operator and the reason."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from onmetal.converters.tflite import convert
from onmetal.converters.tflite.parsing import read
from onmetal.errors import UnsupportedError
from tests.onnx_models import build, node, save, value
from tests.tflite_graphs import (
    Fed,
    Given,
    bools,
    compare,
    floats,
    ints,
    lowered,
    refusal,
    scalar,
    single,
    whole,
)
from tests.tflite_operator_cases import _B, _G, _W, _X, SMALL, _stats


class Refused(NamedTuple):
    kind: str
    inputs: tuple[Given, ...]
    attributes: dict[str, Any]
    why: str
    """What of the message tells what is not supported."""
    outputs: tuple[str, ...] = ("y",)
    opset: int = 17


REFUSED = [
    Refused("Conv", (SMALL, (8, 6, 3, 3)), {}, "weights"),
    Refused("Conv", (SMALL, _W, (8,)), {}, "computed"),
    Refused("Conv", ((1, 2, 5, 5, 5), floats(2, 2, 3, 3, 3)), {}, "3 spatial axes"),
    Refused("ConvTranspose", (SMALL, (6, 4, 3, 3)), {}, "weights"),
    Refused("MaxPool", (SMALL,), {"kernel_shape": [2, 2], "dilations": [2, 2]}, "dilations"),
    Refused("MaxPool", (SMALL,), {"kernel_shape": [2, 2]}, "Indices", ("y", "z")),
    Refused("MaxPool", ((1, 2, 5, 5, 5),), {"kernel_shape": [2, 2, 2]}, "3 spatial axes"),
    Refused(
        "AveragePool",
        (SMALL,),
        {"kernel_shape": [2, 2], "dilations": [2, 2]},
        "dilations",
        opset=19,
    ),
    Refused("Gemm", (_X, (8, 5)), {"alpha": 0.5}, "alpha"),
    Refused("Gemm", (_X, _G, (5,)), {"beta": 0.5}, "beta"),
    Refused("PRelu", (SMALL, (6, 1, 1)), {}, "slopes"),
    Refused("PRelu", ((3, 6), floats(3, 1)), {}, "batch"),
    Refused("Clip", (SMALL, Fed(scalar(0.1))), {}, "min"),
    Refused("Clip", (SMALL, None, Fed(scalar(0.1))), {}, "max"),
    Refused("Erf", (SMALL,), {}, "GELU"),
    Refused("Mod", ((3, 4), scalar(2.5)), {"fmod": 1}, "fmod"),
    Refused("Div", (Fed(whole(3, 4)), Fed(whole(3, 4, low=1))), {}, "64 bits"),
    Refused("Add", (Fed(whole(3, dtype=np.uint8)), Fed(whole(3, dtype=np.uint8))), {}, "uint8"),
    Refused("Cast", (SMALL,), {"to": onnx.TensorProto.DOUBLE}, "float64"),
    Refused("Dropout", (SMALL,), {}, "mask", ("y", "z")),
    Refused("BatchNormalization", (SMALL, *_stats[:3], (6,)), {}, "computed"),
    Refused("InstanceNormalization", (SMALL, (6,), (6,)), {}, "computed"),
    Refused("LayerNormalization", ((2, 7, 16), (16,)), {}, "computed"),
    Refused("LayerNormalization", ((2, 7, 16), floats(16)), {}, "Mean", ("y", "-", "z")),
    Refused(
        "ReduceL2", ((3, 4), ints()), {"noop_with_empty_axes": 1}, "noop_with_empty_axes", opset=18
    ),
    Refused("ArgMax", ((3, 9),), {"select_last_index": 1}, "select_last_index"),
    Refused("TopK", ((3, 9), ints(2)), {"largest": 0}, "largest", ("y", "z")),
    Refused("TopK", ((3, 9), Fed(ints(2))), {}, "k", ("y", "z")),
    Refused("CumSum", ((3, 9), Fed(np.array(1, np.int64))), {}, "axis"),
    Refused("Pad", (SMALL, ints(0, 0, 1, 1, 0, 0, 1, 1)), {"mode": "wrap"}, "wrap", opset=19),
    Refused("Pad", ((2, 3), Fed(ints(0, 1, 0, 1))), {}, "pads"),
    Refused("Slice", ((2, 3), Fed(ints(0)), ints(1)), {}, "starts"),
    Refused("Slice", ((2, 3), ints(0), ints(1), Fed(ints(1))), {}, "axes"),
    Refused("Slice", (SMALL, ints(3), ints(3), ints(1)), {}, "empty"),
    Refused("Tile", ((2, 3), Fed(ints(1, 2))), {}, "repeats"),
    Refused("GatherND", ((2, 3, 4), ints([[0], [1]], [[1], [2]])), {"batch_dims": 1}, "batch_dims"),
    Refused("OneHot", (Fed(whole(3)), Fed(ints(9)), floats(2)), {}, "depth"),
    Refused("Range", (Fed(scalar(0)), scalar(5), scalar(1)), {}, "computed"),
    Refused(
        "Resize",
        (SMALL, None, None, ints(1, 6, 4, 4)),
        {"mode": "linear", "antialias": 1},
        "antialias",
        opset=18,
    ),
    Refused(
        "Resize",
        (SMALL, floats(8), None, ints(1, 6, 4, 4)),
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
        "tf_crop_and_resize",
    ),
]


def refused_label(case: Refused) -> str:
    return f"{case.kind}-{case.why}".replace(" ", "_")


@pytest.mark.parametrize("case", REFUSED, ids=refused_label)
def test_a_refusal_names_node_operator_and_reason(case: Refused, tmp_path: Path) -> None:
    made = single(
        case.kind, case.inputs, "plain", case.outputs, case.opset, name="lonely", **case.attributes
    )
    message = refusal(made.model, tmp_path)
    assert message.startswith(f"{case.kind} 'lonely': ")
    assert case.why in message.removeprefix(f"{case.kind} 'lonely': ")


def test_an_even_normalization_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime knows none either."""
    made = build(
        [node("LRN", "x", "y", size=4, name="lonely")], [value("x", SMALL)], [value("y", SMALL)]
    )
    assert "LRN 'lonely': an even size (4)" in refusal(made, tmp_path)


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    made = build(
        [
            node(
                "Resize",
                "x - s",
                "y",
                name="lonely",
                mode="linear",
                coordinate_transformation_mode="new",
            )
        ],
        [value("x", SMALL)],
        [value("y", [1, 6, 18, 20])],
        [onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")],
    )
    message = refusal(made, tmp_path)
    assert "Resize 'lonely': coordinate_transformation_mode 'new'" in message


KERNELLESS = [
    ("Abs", [Fed(whole(3, 4))], {}),
    ("Abs", [Fed(whole(3, 4, dtype=np.int8))], {}),
    ("Sign", [Fed(whole(3, 4))], {}),
    ("Relu", [Fed(whole(3, 4, dtype=np.int32))], {}),
    ("Relu", [Fed(whole(3, 4, dtype=np.int8))], {}),
    ("ReduceL1", [Fed(whole(3, 4))], {"axes": [1]}),
    ("ReduceL2", [Fed(whole(3, 4, dtype=np.int32))], {"axes": [1]}),
    ("ReduceLogSum", [Fed(whole(3, 4, low=1, dtype=np.int32))], {"axes": [1]}),
    ("Pow", [Fed(whole(3, 4)), scalar(2, np.int64)], {}),
    ("Pow", [Fed(whole(3, 4, dtype=np.int32)), scalar(0.5)], {}),
    ("ArgMax", [Fed(whole(3, 4))], {"axis": 1}),
    ("Split", [Fed(bools(4, 2))], {"axis": 0}),
    ("Pad", [(2, 3, 2, 3, 2, 2), ints(*[0, 0, 0, 1, 0, 0] * 2)], {}),
    ("MatMul", [(2, 2, 2, 2, 3, 4), (2, 4, 5)], {}),
    ("Add", [Fed(np.ones((3, 4))), Fed(np.ones((3, 4)))], {}),
    ("Relu", [Fed(np.ones((3, 4)))], {}),
    ("Cast", [(3, 4)], {"to": onnx.TensorProto.UINT64}),
]


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"),
    KERNELLESS,
    ids=[f"{number}-{entry[0]}" for number, entry in enumerate(KERNELLESS)],
)
def test_what_no_kernel_takes_is_refused(
    kind: str, inputs: list[Given], attributes: dict[str, Any], tmp_path: Path
) -> None:
    """Or computed otherwise; but no file is written that cannot be run, or gives other values."""
    outputs = ("y", "z") if kind == "Split" else ("y",)
    made = single(kind, inputs, outputs=outputs, name="lonely", **attributes)
    try:
        net = lowered(made.model, tmp_path, simplified=False)
    except UnsupportedError as error:
        assert "'lonely'" in str(error) and kind in str(error)
    else:
        compare(net, made)


def test_unknown_operators_are_refused_at_once(tmp_path: Path) -> None:
    made = build(
        [
            node("Relu", "x", "a", name="first"),
            node("Det", "a", "b", name="second"),
            node("Made", "b", "c", name="third", domain="of.mine"),
            node("Tan", "c", "y"),
        ],
        [value("x", [2, 3, 3])],
        [value("y", [2])],
        domains=["of.mine"],
    )
    message = refusal(made, tmp_path)
    assert message.startswith("Det 'second': this operator is not supported")
    assert message.endswith("(and 2 more)")
    made.graph.node[1].op_type = "Relu"
    assert refusal(made, tmp_path).startswith("of.mine.Made 'third': ")
    del made.graph.node[2]
    made.graph.node[2].input[0] = "b"
    message = refusal(made, tmp_path)
    assert message.startswith("Tan 'y': ") and "more)" not in message


def test_an_own_operator_of_a_known_name_is_refused(tmp_path: Path) -> None:
    made = build(
        [node("Relu", "x", "y", name="lonely", domain="of.mine")],
        [value("x", [2])],
        [value("y", [2])],
        domains=["of.mine"],
    )
    assert refusal(made, tmp_path).startswith("of.mine.Relu 'lonely': ")


@pytest.mark.parametrize("where", ["input", "inside"])
def test_shapes_that_are_not_static_are_refused(where: str, tmp_path: Path) -> None:
    if where == "input":
        nodes = [node("Relu", "x", "y", name="lonely")]
        inputs = [value("x", ["N", 3])]
    else:
        nodes = [node("NonZero", "x", "i", name="maker"), node("Cast", "i", "y", to=1)]
        inputs = [value("x", [2, 3])]
    made = onnx.shape_inference.infer_shapes(build(nodes, inputs, [value("y", [None, "N"])]))
    message = refusal(made, tmp_path)
    assert (
        "'x'" in message and "--input-shape" in message if where == "input" else "maker" in message
    )


def test_a_file_is_only_written_whole(tmp_path: Path) -> None:
    made = single("Conv", [SMALL, _W, _B])
    path = save(made.model, tmp_path / "given.onnx")
    convert.to_float(str(path), str(tmp_path))
    net = read(tmp_path / "model.tflite")
    assert net.names == (["i0"], ["y"])
    compare(net, made)
