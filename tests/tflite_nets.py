"""Small nets of several kinds of operators, in floats and in integers; files of them."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from onmetal.converters.tflite import io
from onmetal.converters.tflite.convert import to_float
from onmetal.converters.tflite.net import IDENTIFIER, Net, Op, Tensor
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.quantize import observed, quantize
from onmetal.converters.tflite.writing import write
from tests.onnx_models import build, node, save, value, weights
from tests.tflite_kinds import POOL, SQUARE, Making
from tests.tflite_quantized import calibrated


def whole() -> Making:
    """Every kind of operator that a rule is about; eight channels, so that no axis is told from
    another by its length."""
    m = Making(1, 8, 8, 8)
    first = m.conv(channels=8, size=1)
    deep = m.op(
        "DEPTHWISE_CONV_2D",
        [first, m.floats(1, 3, 3, 8), m.floats(8)],
        *(1, 8, 8, 8),
        depthMultiplier=1,
        **SQUARE(),
    )
    added = m.op("ADD", [deep, first], 1, 8, 8, 8)
    pooled = m.op("MAX_POOL_2D", [added], 1, 4, 4, 8, **POOL)
    average = m.op("AVERAGE_POOL_2D", [added], 1, 4, 4, 8, **POOL)
    both = m.op("CONCATENATION", [pooled, average], 1, 4, 4, 16, axis=3)
    padded = m.op("PAD", [both, m.ints([0, 0], [1, 1], [1, 1], [0, 0])], 1, 6, 6, 16)
    flat = m.op("RESHAPE", [padded, m.ints(1, 576)], 1, 576)
    dense = m.op("FULLY_CONNECTED", [flat, m.floats(8, 576, spread=0.1), m.floats(8)], 1, 8)
    soft = m.op("SOFTMAX", [dense], 1, 8, beta=1.0)
    gate = m.op("LOGISTIC", [dense], 1, 8)
    m.done(soft, m.op("TANH", [gate], 1, 8))
    return m


@lru_cache
def content(activation: str) -> bytes:
    m = whole()
    if activation == "float":
        return write(m.net)
    return write(quantize(m.net, calibrated(m.net, m.feeds()), activation))  # type: ignore[arg-type]


def net(activation: str = "s8") -> Net:
    return read(content(activation))


def op(found: Net, kind: str) -> Op:
    return next(entry for entry in found.ops if entry.kind == kind)


def weight(found: Net, kind: str) -> Tensor:
    tensor = op(found, kind).inputs[1]
    assert tensor is not None and tensor.scale is not None and tensor.data is not None
    return tensor


def bias(found: Net, kind: str) -> Tensor:
    tensor = op(found, kind).inputs[2]
    assert tensor is not None and tensor.scale is not None and tensor.data is not None
    return tensor


def scaled(tensor: Tensor, factor: float) -> None:
    assert tensor.scale is not None
    tensor.scale = (tensor.scale * factor).astype(np.float32)


def moved(tensor: Tensor, zero_point: int) -> None:
    assert tensor.zero_point is not None
    tensor.zero_point = np.full_like(tensor.zero_point, zero_point)


@lru_cache
def little() -> bytes:
    """A file of which most is structure, not weights."""
    m = Making(1, 4, 4, 2)
    flat = m.op("RESHAPE", [m.conv(channels=2, size=1), m.ints(1, 32)], 1, 32)
    m.done(m.op("FULLY_CONNECTED", [flat, m.floats(2, 32), m.floats(2)], 1, 2))
    return write(quantize(m.net, calibrated(m.net, m.feeds())))


def packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def model_of(activation: str = "s8") -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content(activation)))


RANGE = (-3.0, 3.0)


def small(folder: Path, *kinds: str) -> Path:
    """A float .tflite file of one convolution and then operators of one input each."""
    folder.mkdir(exist_ok=True)
    shape, names = [1, 3, 8, 8], ["c", *(f"t{i}" for i in range(len(kinds)))]
    chain = [node("Conv", "x w", "c", pads=[1] * 4)]
    chain += [node(kind, names[i], names[i + 1]) for i, kind in enumerate(kinds)]
    for number, entry in enumerate(chain):
        entry.name = f"{entry.op_type.lower()}_{number}"
    model = build(
        chain,
        [value("x", shape)],
        [value(names[-1], [1, 8, 8, 8])],
        [weights("w", 8, 3, 3, 3)],
    )
    to_float(str(save(model, folder / "model.onnx")), str(folder))
    return folder / "model.tflite"


def in_8_bits(path: Path) -> Path:
    net = read(path)
    made = quantize(net, dict.fromkeys(observed(net), RANGE), "s8")
    io.integers(made)
    out = path.with_name("int8.tflite")
    out.write_bytes(write(made))
    return out


STEPS, WIDTH, CELLS = 5, 3, 4


def lstm(path: Path) -> Path:
    """A UNIDIRECTIONAL_SEQUENCE_LSTM whose two state tensors are variable; TFLite's own order of
    its 24 inputs, gates i, f, c, o."""
    rng = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> Tensor:
        values = rng.normal(0, 0.8, shape).astype(np.float32)
        return Tensor(name, shape, values.dtype, values)

    taken = Tensor("x", (1, STEPS, WIDTH), np.dtype(np.float32))
    given = Tensor("y", (1, STEPS, CELLS), np.dtype(np.float32))
    state = [Tensor(name, (1, CELLS), np.dtype(np.float32), variable=True) for name in ("h", "c")]
    inputs: list[Tensor | None] = [taken]
    inputs += [constant(f"w{gate}", CELLS, WIDTH) for gate in "ifco"]
    inputs += [constant(f"r{gate}", CELLS, CELLS) for gate in "ifco"]
    inputs += [None] * 3
    inputs += [constant(f"b{gate}", CELLS) for gate in "ifco"]
    inputs += [None, None, *state, None, None, None, None]
    options = {"fusedActivationFunction": 4, "cellClip": 0.0, "projClip": 0.0, "timeMajor": False}
    op = Op("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [given], options)
    path.write_bytes(write(Net([taken], [given], [op])))
    return path
