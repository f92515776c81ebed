"""ONNX graphs to be lowered to TFLite, and what comes out beside ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from onmetal.converters.onnx import floats as onnx_float
from onmetal.converters.tflite.convert import lower
from onmetal.converters.tflite.net import Net
from onmetal.converters.tflite.reference import Exposed
from onmetal.errors import UnsupportedError
from tests.onnx_models import build, node, save, value

Arrays = dict[str, np.ndarray]
CLOSE = 1e-4
"""The greatest difference, in parts of the greatest value."""


UNREFERENCED = {"CEIL", "ELU", "ROUND", "LOCAL_RESPONSE_NORMALIZATION"}
"""LiteRT has no reference kernels of the first three; the last one's leaves a channel out."""


class Fed(NamedTuple):
    """An input of the graph that needs certain values."""

    array: np.ndarray


Given = tuple[int, ...] | Fed | np.ndarray | None
"""An operator's input: the shape of a random one, one of certain values, a constant, none."""


class Graph(NamedTuple):
    model: Any
    feed: Arrays
    wanted: Arrays
    """What ONNX Runtime gives."""

    def __repr__(self) -> str:
        lines = [str(onnx.helper.printable_node(entry)) for entry in self.model.graph.node]
        shapes = {name: array.shape for name, array in self.feed.items()}
        return "\n".join([f"from {shapes}", *lines, f"to {sorted(self.wanted)}"])


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    made: np.ndarray = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return made


def expected(model: Any, feed: Arrays) -> Arrays:
    """By ONNX Runtime, each operator executed as it is written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [entry.name for entry in model.graph.output]
    return dict(zip(names, session.run(names, feed), strict=True))


def graph(
    nodes: Sequence[Any],
    feed: Arrays,
    constants: Arrays | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> Graph:
    """With the shapes of all tensors known, and a name for every node."""
    for number, entry in enumerate(nodes):
        entry.name = entry.name or f"node{number}"
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
    made = build(
        nodes,
        [value(name, array.shape, kinds[name]) for name, array in feed.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
        opset=opset,
        ir=10,
    )
    wanted = expected(made, feed)
    for entry in made.graph.output:
        array = wanted[entry.name]
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        entry.CopyFrom(value(entry.name, array.shape, kind))
    return Graph(onnx.shape_inference.infer_shapes(made, data_prop=True), feed, wanted)


STORED = ("plain", "last", "turned")
"""How what an operator takes is stored: as it is fed; channels last, as pooling leaves it; its axes
in reverse."""


def single(
    kind: str,
    inputs: Sequence[Given],
    stored: str = "plain",
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    **attributes: Any,
) -> Graph:
    """A graph of one operator."""
    names, nodes, feed, constants = [], [], {}, {}
    random = np.random.default_rng(crc32(f"{kind}{sorted(attributes.items())}".encode()))
    for number, given in enumerate(inputs):
        name = f"i{number}"
        names.append("-" if given is None else name)
        if given is None:
            continue
        if isinstance(given, np.ndarray):
            constants[name] = given
            continue
        array = given.array if isinstance(given, Fed) else None
        if array is None:
            array = random.normal(size=given).astype(np.float32)
        if stored == "last" and array.ndim in (3, 4) and array.dtype == np.float32:
            nodes.append(node("MaxPool", f"x{number}", name, kernel_shape=[1] * (array.ndim - 2)))
            feed[f"x{number}"] = array
        elif stored == "turned" and array.ndim >= 2:
            nodes.append(node("Transpose", f"x{number}", name))
            feed[f"x{number}"] = np.ascontiguousarray(array.T)
        else:
            feed[name] = array
    nodes.append(node(kind, " ".join(names), " ".join(outputs), **attributes))
    return graph(nodes, feed, constants, [name for name in outputs if name != "-"], opset)


def lowered(model: Any, folder: Path, simplified: bool = True) -> Net:
    """By way of the simplified graph, or of the graph as it is."""
    path = save(model, folder / "given.onnx")
    before = path.read_bytes()
    if simplified:
        onnx_float.simplify(str(path), str(folder))
    net = lower(folder / "model.onnx" if simplified else path)
    assert path.read_bytes() == before
    return net


def kinds(net: Net) -> list[str]:
    return [op.kind for op in net.ops]


def run(net: Net, feed: Arrays, reference: bool) -> Arrays:
    """The outputs. Inputs that the graph has lost are not fed."""
    assert net.names is not None
    return Exposed(net, net.names[1], reference).run({name: feed[name] for name in net.names[0]})


def compare(net: Net, made: Graph) -> None:
    """Shapes, types and values, by the fast kernels and by the reference."""
    assert net.names is not None and net.names[1] == list(made.wanted)
    for reference in (False, True) if not UNREFERENCED & set(kinds(net)) else (False,):
        found = run(net, made.feed, reference)
        for name, wanted in made.wanted.items():
            what = f"{name} by {'the reference' if reference else 'XNNPACK'}"
            assert found[name].shape == wanted.shape, what
            assert found[name].dtype == wanted.dtype, what
            if wanted.dtype != np.float32:
                np.testing.assert_array_equal(found[name], wanted, what)
                continue
            assert np.array_equal(np.isnan(found[name]), np.isnan(wanted)), what
            finite = np.isfinite(wanted)
            same = found[name] == wanted
            assert np.all(finite | same | np.isnan(wanted)), what
            size = float(np.abs(wanted[finite]).max(initial=0)) or 1.0
            gap = np.abs(found[name][finite] - wanted[finite])
            error = float(gap.max(initial=0)) / size
            assert error <= CLOSE, (what, error)


def agrees(made: Graph, folder: Path, simplified: bool = True) -> Net:
    """Lowered, and run beside ONNX Runtime."""
    net = lowered(made.model, folder, simplified)
    compare(net, made)
    return net


def weighted(name: str, *shape: int) -> Arrays:
    """Weights and bias of a convolution, small enough for long chains."""
    scale = np.float32(1 / np.sqrt(np.prod(shape[1:])))
    seed = crc32(name.encode())
    return {
        f"{name}.w": floats(*shape, seed=seed) * scale,
        f"{name}.b": floats(shape[0], seed=seed + 1),
    }


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(number: float, dtype: Any = np.float32) -> np.ndarray:
    return np.array(number, dtype)


def whole(*shape: int, low: int = 0, high: int = 9, dtype: Any = np.int64) -> np.ndarray:
    return np.random.default_rng(shape).integers(low, high, shape).astype(dtype)


def bools(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).random(shape) < 0.5


def between(low: float, high: float, *shape: int) -> Fed:
    return Fed(np.random.default_rng(shape).uniform(low, high, shape).astype(np.float32))


def refusal(model: Any, folder: Path) -> str:
    """What is said of a model, whose file stays as it is."""
    path = save(model, folder / "given.onnx")
    before = path.read_bytes()
    with pytest.raises(UnsupportedError) as found:
        lower(path)
    assert path.read_bytes() == before and [entry.name for entry in folder.iterdir()] == [path.name]
    return str(found.value)


def written(lines: list[str]) -> list[Any]:
    """A node a line: kind, two inputs, output."""
    found = []
    for line in lines:
        kind, *inputs, out = line.split()
        found.append(node(kind, " ".join(inputs), out))
    return found


SWISHES = {
    "divided at the end": ["Mul x c m", "Div m six y"],
    "multiplied at the end": ["Mul c x m", "Mul m sixth y"],
    "divided before": ["Div c six m", "Mul x m y"],
    "multiplied before": ["Mul sixth c m", "Mul m x y"],
}


def hard_swish(lines: list[str], three: str = "three") -> Graph:
    nodes = written([f"Add x {three} a"])
    nodes += [node("Clip", "a zero six", "c"), *written(lines)]
    w = {"three": scalar(3), "zero": scalar(0), "six": scalar(6), "sixth": scalar(1 / 6)}
    w |= {"five": scalar(5), "two": scalar(2)}
    return graph(nodes, {"x": floats(2, 6, 4, 5) * 4}, w)
