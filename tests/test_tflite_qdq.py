"""ONNX models that are quantized already become integer TFLite files by their own scales."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onmetal.calibration.fidelity import sqnr_db
from onmetal.converters.onnx import floats
from onmetal.converters.tflite import check, convert
from onmetal.converters.tflite.net import Net, signature_names
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reference import Exposed
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from onmetal.runtimes.onnxruntime.session import Session

GENERATOR = np.random.default_rng(7)
SHAPE = [1, 3, 8, 8]


def constant(name: str, value: object, dtype: type) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


class Quantizing:
    """A QDQ graph as it grows: every tensor is quantized and dequantized after it is made."""

    def __init__(self, dtype: type) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def through(self, name: str, scale: float, zero: int) -> str:
        """-> the name after QuantizeLinear and DequantizeLinear."""
        self.weights += [
            constant(f"{name}.s", scale, np.float32),
            constant(f"{name}.z", zero + (128 if self.dtype is np.uint8 else 0), self.dtype),
        ]
        steps = [f"{name}.s", f"{name}.z"]
        self.nodes += [
            helper.make_node("QuantizeLinear", [name, *steps], [f"{name}.q"], f"q.{name}"),
            helper.make_node("DequantizeLinear", [f"{name}.q", *steps], [f"{name}.d"], f"d.{name}"),
        ]
        return f"{name}.d"

    def conv(self, taken: str, name: str, channels: int) -> str:
        weight = GENERATOR.integers(-127, 128, (4, channels, 3, 3))
        weight.reshape(4, -1)[:, 0] = 127  # so that the scale is found again exactly
        self.weights += [
            constant(f"{name}.w", weight, np.int8),
            constant(f"{name}.ws", GENERATOR.uniform(0.001, 0.003, 4), np.float32),
            constant(f"{name}.wz", np.zeros(4), np.int8),
        ]
        given = [f"{name}.{part}" for part in ("w", "ws", "wz")]
        self.nodes += [
            helper.make_node("DequantizeLinear", given, [f"{name}.wd"], f"{name}.dw", axis=0),
            helper.make_node("Conv", [taken, f"{name}.wd"], [name], name, pads=[1] * 4),
        ]
        return name

    def model(self, outputs: dict[str, list[int]]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "quantized",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in outputs.items()
            ],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def network(dtype: type) -> onnx.ModelProto:
    """Conv, Conv, the sum of both, Relu, MaxPool: each on a grid but the Conv before the Relu."""
    q = Quantizing(dtype)
    first = q.through(q.conv(q.through("x", 0.03, 3), "a", 3), 0.02, -7)
    second = q.through(q.conv(first, "b", 4), 0.015, 5)
    q.nodes.append(helper.make_node("Add", [first, second], ["sum"], "sum"))
    q.nodes.append(helper.make_node("Relu", ["sum"], ["r"], "relu"))
    pooled = q.through("r", 0.01, -128)
    q.nodes.append(
        helper.make_node("MaxPool", [pooled], ["p"], "p", kernel_shape=[2, 2], strides=[2, 2])
    )
    q.nodes.append(helper.make_node("Identity", [q.through("p", 0.01, -128)], ["y"], "end"))
    return q.model({"y": [1, 4, 4, 4]})


def lowered(model: onnx.ModelProto, folder: Path) -> Net:
    onnx.checker.check_model(model)
    path = folder / "given.onnx"
    onnx.save(model, path)
    floats.simplify(str(path), str(folder))
    return convert.lower(folder / "model.onnx")


def outputs(net: Net, feeds: list[np.ndarray], reference: bool) -> np.ndarray:
    (name,) = signature_names(net)[1]
    run = Exposed(net, [name], reference).run
    return np.stack([run({"x": feed})[name] for feed in feeds])


@pytest.mark.parametrize("reference", [False, True], ids=["xnnpack", "reference"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_it_computes_as_the_model_does(dtype: type, reference: bool, tmp_path: Path) -> None:
    model = network(dtype)
    net = lowered(model, tmp_path)
    feeds = [GENERATOR.normal(0, 1.2, SHAPE).astype(np.float32) for _ in range(8)]
    session = Session([str(tmp_path / "given.onnx")], {}, ["x"], ["y"])
    wanted = np.stack([session.run({"x": feed})[0] for feed in feeds])
    found = outputs(net, feeds, reference)
    assert sqnr_db(wanted, found) > 30
    assert (
        np.abs(wanted - found).max() <= 8.01 * 0.01
    )  # steps of the output, of which a step before is several


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_its_own_scales_are_kept(dtype: type, tmp_path: Path) -> None:
    net = lowered(network(dtype), tmp_path)
    assert not check.problems(read(write(net)))
    kinds = [op.kind for op in net.ops]
    assert kinds.count("QUANTIZE") == kinds.count("DEQUANTIZE") == 1
    assert {"CONV_2D", "ADD", "MAX_POOL_2D"} <= set(kinds)
    entry = next(op for op in net.ops if op.kind == "QUANTIZE").outputs[0]
    assert entry.scale is not None and entry.zero_point is not None
    assert entry.scale[0] == pytest.approx(0.03) and entry.zero_point[0] == 3
    first = next(op for op in net.ops if op.kind == "CONV_2D")
    out = first.outputs[0]
    assert out.scale is not None and out.zero_point is not None
    assert out.scale[0] == pytest.approx(0.02) and out.zero_point[0] == -7
    weight = first.taken[1]
    assert weight.data is not None and weight.scale is not None
    stored = next(t for t in network(dtype).graph.initializer if t.name == "a.w")
    assert weight.data.shape == (4, 3, 3, 3) and len(stored.dims) == 4
    assert np.abs(weight.data).max() == 127


def test_what_is_not_quantized_stays_float(tmp_path: Path) -> None:
    """A graph of which one Conv alone is on a grid."""
    q = Quantizing(np.int8)
    quantized = q.through(q.conv(q.through("x", 0.03, 0), "a", 3), 0.02, 0)
    q.nodes.append(helper.make_node("Sin", [quantized], ["s"], "wave"))
    q.nodes.append(helper.make_node("Conv", ["s", "free"], ["y"], "free conv", pads=[1] * 4))
    q.weights.append(constant("free", GENERATOR.normal(size=(2, 4, 3, 3)), np.float32))
    net = lowered(q.model({"y": [1, 2, 8, 8]}), tmp_path)
    types = [op.taken[0].dtype for op in net.ops if op.kind == "CONV_2D"]
    assert types == [np.int8, np.float32]
    feeds = [GENERATOR.normal(size=SHAPE).astype(np.float32) for _ in range(4)]
    session = Session([str(tmp_path / "given.onnx")], {}, ["x"], ["y"])
    wanted = np.stack([session.run({"x": feed})[0] for feed in feeds])
    assert sqnr_db(wanted, outputs(net, feeds, False)) > 30


def test_scales_that_tflite_has_not_are_refused_by_name(tmp_path: Path) -> None:
    q = Quantizing(np.int8)
    q.weights += [
        constant("s", [0.1, 0.2, 0.3], np.float32),
        constant("z", [0, 0, 0], np.int8),
    ]
    q.nodes += [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "each channel", axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "back", axis=1),
    ]
    with pytest.raises(UnsupportedError, match=r"QuantizeLinear .each channel.*each channel"):
        lowered(q.model({"y": SHAPE}), tmp_path)
    wide = Quantizing(np.int16)
    wide.nodes.append(helper.make_node("Relu", [wide.through("x", 0.1, 0)], ["y"], "relu"))
    model = wide.model({"y": SHAPE})
    model.opset_import[0].version = 21
    model.ir_version = 10
    path = tmp_path / "wide.onnx"
    onnx.save(model, path)
    with pytest.raises(UnsupportedError, match="int16"):
        convert.lower(path)
