"""Models of float16: widened before they are quantized or lowered; float16 again for the user."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from onmetal.bundles import artifact_io
from onmetal.converters.onnx import floats as onnx_float
from onmetal.converters.onnx import reader
from onmetal.converters.tflite.convert import lower
from onmetal.converters.tflite.net import Net
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reference import Exposed
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from onmetal.profilers import tensor_bytes
from onmetal.profilers.devices.answers import TensorOnDevice
from tests import deployed
from tests.conftest import deploy_here as deploy
from tests.onnx_models import build, node, save, value
from tests.tflite_graphs import Arrays, floats

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
STEP = 2.0**-10
"""Of float16, in parts of a number."""


def half(*shape: int, seed: int = 0) -> np.ndarray:
    return (floats(*shape, seed=seed) * np.float32(0.3)).astype(np.float16)


def constants(**arrays: np.ndarray) -> list[Any]:
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def network() -> Any:
    """Weights, bounds, scales of a Resize, computation, inputs and outputs."""
    return build(
        [
            node("Conv", "x w0 b0", "c0", pads=[1] * 4),
            node("Clip", "c0 zero six", "r0"),
            node("Resize", "r0 - sc", "u", mode="linear"),
            node("Conv", "u w1", "c1", pads=[1] * 4, strides=[2, 2]),
            node("HardSigmoid", "c1", "hs", alpha=1 / 6),
            node("Mul", "c1 hs", "map"),
            node("GlobalAveragePool", "map", "g"),
            node("Flatten", "g", "f"),
            node("Gemm", "f wf bf", "y"),
        ],
        [value("x", [1, 3, 8, 8], HALF)],
        [value("y", [1, 5], HALF), value("map", [1, 8, 8, 8], HALF)],
        [
            *constants(w0=half(8, 3, 3, 3), b0=half(8), w1=half(8, 8, 3, 3), bf=half(5)),
            *constants(wf=half(8, 5), zero=np.array(0, np.float16), six=np.array(6, np.float16)),
            *constants(sc=np.array([1, 1, 2, 2], np.float32)),
        ],
        opset=13,
    )


def mixed() -> Any:
    """One part in float16 between Casts, on inputs of both types; a float16 constant alone."""
    return build(
        [
            node("Cast", "x", "xh", to=HALF),
            node("Conv", "xh w", "ch"),
            node("Add", "ch z", "sh"),
            node("Constant", "", "kh", value=numpy_helper.from_array(half(4, 1, 1), "kh")),
            node("Mul", "sh kh", "mh"),
            node("Cast", "mh", "m", to=FULL),
            node("Cast", "kh", "k", to=FULL),
            node("Add", "m k", "y"),
            node("Identity", "sh", "same"),
        ],
        [value("x", [1, 3, 5, 5]), value("z", [4, 5, 5], HALF)],
        [value("y", [1, 4, 5, 5]), value("same", [1, 4, 5, 5], HALF)],
        constants(w=half(4, 3, 1, 1)),
    )


def branching() -> Any:
    """Float16 in what a condition chooses, taken from outside too; a constant as an output."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [node(kind, "x k", f"out_{name}")], name, [], [value(f"out_{name}", [2, 3], HALF)]
        )
        for name, kind in (("then", "Mul"), ("else", "Add"))
    }
    made = [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c")]
    return build(
        [*made, helper.make_node("If", ["c"], ["y"], **branches), node("Identity", "k", "fixed")],
        [value("x", [2, 3], HALF)],
        [value("y", [2, 3], HALF), value("fixed", [3], HALF)],
        constants(k=half(3), zero=np.array(0, np.float16)),
        opset=13,
    )


MODELS = {"network": network, "mixed": mixed, "branching": branching}


def run(model: Any, feed: Arrays) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def fed(model: Any) -> Arrays:
    return {
        entry.name: (half if entry.type.tensor_type.elem_type == HALF else floats)(
            *[axis.dim_value for axis in entry.type.tensor_type.shape.dim]
        )
        for entry in model.graph.input
    }


def near(found: Arrays, wanted: Arrays) -> None:
    """Within what float16 rounds on the way."""
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        peak = float(np.abs(array.astype(np.float32)).max())
        gap = np.abs(found[name].astype(np.float32) - array.astype(np.float32)).max()
        assert gap <= 16 * STEP * peak, name


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_widened(name: str, tmp_path: Path) -> None:
    """What is made of it computes in float32, under the names and types that it has."""
    model = MODELS[name]()
    onnx_float.simplify(str(save(model, tmp_path / "given.onnx")), str(tmp_path))
    wide = onnx.load(str(tmp_path / "model.onnx"))
    onnx.checker.check_model(wide, full_check=True)
    for mine, theirs in (
        (wide.graph.input, model.graph.input),
        (wide.graph.output, model.graph.output),
    ):
        for entry, given in zip(mine, theirs, strict=True):
            assert entry.name == given.name
            assert entry.type.tensor_type.elem_type == given.type.tensor_type.elem_type
    edges = {entry.name for entry in (*wide.graph.input, *wide.graph.output)}
    inner = onnx.shape_inference.infer_shapes(wide).graph.value_info
    assert all(v.type.tensor_type.elem_type != HALF for v in inner if v.name not in edges)
    assert all(
        tensor.data_type != HALF for tensor in wide.graph.initializer if tensor.name not in edges
    )
    near(run(wide, fed(model)), run(model, fed(model)))


def lowered(model: Any, folder: Path) -> Net:
    onnx_float.simplify(str(save(model, folder / "given.onnx")), str(folder))
    return read(write(lower(folder / "model.onnx")))


@pytest.mark.parametrize("name", ["network", "mixed"])
def test_a_model_is_lowered_in_float32(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    net = lowered(model, tmp_path)
    assert all(tensor.dtype != np.float16 for tensor in net.tensors())
    assert net.names == ([v.name for v in model.graph.input], [v.name for v in model.graph.output])
    near(Exposed(net, net.names[1]).run(fed(model)), run(model, fed(model)))


def test_bfloat16_is_refused_by_name(tmp_path: Path) -> None:
    """A Cast to it, and a weight in it."""
    cast = build(
        [
            node("Cast", "x", "b", to=TensorProto.BFLOAT16, name="narrow"),
            node("Cast", "b", "y", to=1),
        ],
        [value("x", [2, 3])],
        [value("y", [2, 3])],
    )
    weight = build(
        [node("Cast", "w", "v", to=FULL), node("Mul", "x v", "y")],
        [value("x", [2, 3])],
        [value("y", [2, 3])],
        [helper.make_tensor("w", TensorProto.BFLOAT16, [3], [1.0, 2.0, 3.0])],
    )
    for model, named in ((cast, "Cast 'narrow'"), (weight, "'w'")):
        path = save(model, tmp_path / "given.onnx")
        with pytest.raises(UnsupportedError, match="bfloat16") as found:
            onnx_float.simplify(str(path), str(tmp_path))
        assert named in str(found.value)


def test_float16_for_a_device() -> None:
    """Widened before it is quantized, and narrowed after it was turned."""
    image, plain = half(1, 3, 2, 4), half(2, 3)
    edges = tensor_bytes.edges({"nhwc": ["image"], "float16": ["image", "plain"], "num_threads": 1})
    ports = (
        TensorOnDevice("image", "int8", 24, 0.005, -3, (1, 2, 4, 3)),
        TensorOnDevice("plain", "float32", 24, 0.0, 0, (2, 3)),
    )
    packed = tensor_bytes.pack({"image": image, "plain": plain}, ports, ["image", "plain"], edges)
    wide = np.rint(image.astype(np.float32) / np.float32(0.005)) - 3
    wanted = np.clip(wide, -128, 127).astype(np.int8).transpose(0, 2, 3, 1)
    assert packed == wanted.tobytes() + plain.astype(np.float32).tobytes()
    back = tensor_bytes.unpack(packed, ports, ["image", "plain"], edges, ["plain", "image"])
    np.testing.assert_array_equal(back[0], plain)
    real = (wanted.astype(np.float32) + 3) * np.float32(0.005)
    assert back[1].dtype == np.float16
    np.testing.assert_array_equal(back[1], real.transpose(0, 3, 1, 2).astype(np.float16))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("litert-int8-nhwc", np.float32), ("onnxruntime-int8", np.float16)],
)
def test_a_deployment(kind: str, dtype: Any, tmp_path: Path) -> None:
    """Names, shapes and types of inputs and outputs are the model's, whatever the artifact's are;
    samples may be float32."""
    model = save(network(), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=floats(12, 3, 8, 8).astype(np.float16).astype(dtype))
    runtime, recipe, *last = kind.split("-")
    board = deployed._board(tmp_path, runtime, recipe, bool(last))
    ran = deploy(
        *(model, "--target", board, "--calibration-data", tmp_path / "data.npz", "--quick"),
        *("--no-device", "--json", "--out", tmp_path / "out"),
    )
    assert ran.code == 0, ran.err
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    found = [
        (t["name"], t["dtype"]) for t in (*manifest["run"]["inputs"], *manifest["run"]["outputs"])
    ]
    assert found == [("x", "float16"), ("y", "float16"), ("map", "float16")]
    golden = deployed.golden(tmp_path / "out")
    assert {array.dtype for array in golden.values()} == {np.dtype(np.float16)}
    assert manifest["golden"]["tolerance"] >= 2 * STEP * 0.9
    reached = {trial["name"].split("@")[0] for trial in ran.document["candidates"]}
    assert "fp32" in reached
    if runtime == "litert":
        hands = artifact_io.artifact_tensors(deployed.candidate(tmp_path / "out"))
        assert [port.dtype for port in (*hands.inputs, *hands.outputs)] == ["float32"] * 3
        assert {port.stored for port in hands.inputs} <= {"int8", "float32"}
    feed = {"x": golden["input/x/0"]}
    wanted = run(network(), feed)["map"].astype(np.float32)
    error = np.abs(golden["output/map/0"].astype(np.float32) - wanted).max() / np.abs(wanted).max()
    assert error < 0.1


@pytest.mark.parametrize("stored", [False, True])
def test_a_model_that_computes_in_float16_is_known_as_one(stored: bool, tmp_path: Path) -> None:
    """Its inputs and outputs may be float32; weights that are only stored in float16 are exact."""
    cast = [node("Cast", "w", "k", to=FULL), node("MatMul", "x k", "y")]
    whole = [
        node("Cast", "x", "h", to=HALF),
        node("MatMul", "h w", "m"),
        node("Cast", "m", "y", to=FULL),
    ]
    model = build(
        cast if stored else whole,
        [value("x", [2, 8])],
        [value("y", [2, 4])],
        constants(w=half(8, 4)),
    )
    (tmp_path / "read").mkdir()
    path = save(model, tmp_path / "x.onnx")
    facts = reader.examine(str(path), {}, None, str(tmp_path / "read"))
    assert facts["half"] is not stored
