"""One constant that several operators take, each in its own layout; equal ones stored apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onmetal.converters.tflite import check, quantize, smaller_weights
from onmetal.converters.tflite.net import Net, Op, Tensor, constant, distinct
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from tests.onnx_models import node
from tests.tflite_graphs import Arrays, Graph, floats, graph, kinds, lowered, run

SUM = 1e-6
"""Float error allowed, in parts of the output's magnitude: that of sums in another order."""
X = floats(1, 8, 6, 6)
W = {"stem.w": floats(8, 8, 3, 3) * np.float32(0.1), "stem.b": floats(8)}


def positive(*shape: int) -> np.ndarray:
    made: np.ndarray = np.abs(floats(*shape)) + np.float32(0.5)
    return made


def scalar(number: float) -> np.ndarray:
    return np.array(number, np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


Taken = tuple[list[Any], Arrays]
"""Nodes that take constants twice or more, on `c` and on what is made of it; the constants."""


def elementwise(kind: str, k: np.ndarray) -> Taken:
    """By `k` in channels last, after a Transpose, and in fewer axes."""
    nodes = [
        node("Abs", "c", "p"),
        node(kind, "p k", "a0"),
        node("Transpose", "p", "t", perm=[0, 1, 3, 2]),
        node(kind, "t k", "b0"),
        node("Reshape", "p flat", "f"),
        node(kind, "f k1", "d0"),
        node("Reshape", "d0 back", "d1"),
        *[node("Cast", f"{name}", f"{name}f", to=1) for name in ("a0", "b0", "d1")],
        node("Sum", "a0f b0f d1f", "y"),
    ]
    flat = {"k1": k if k.size == 1 else np.ascontiguousarray(np.broadcast_to(k, (8, 6, 1))[0, :1])}
    return nodes, {"k": k, **flat, "flat": ints(1, 48, 6), "back": ints(1, 8, 6, 6)}


def where() -> Taken:
    nodes = [
        node("Greater", "c zero", "g"),
        node("Where", "g c k", "a"),
        node("Transpose", "c", "t", perm=[0, 2, 3, 1]),
        node("Greater", "t zero", "h"),
        node("Where", "h k t", "u"),
        node("Transpose", "u", "v", perm=[0, 3, 1, 2]),
        node("Where", "g k v", "d"),
        node("Add", "a d", "y"),
    ]
    return nodes, {"k": scalar(-2), "zero": scalar(0)}


def padded() -> Taken:
    nodes = [node("Pad", "c p k", "a"), node("Relu", "a", "r"), node("Pad", "r p k", "y")]
    return nodes, {"p": ints(0, 0, 1, 1, 0, 0, 1, 1), "k": scalar(-1.5)}


def clipped() -> Taken:
    nodes = [node("Clip", "c k m", "a"), node("Neg", "a", "e"), node("Clip", "e k m", "f")]
    return [*nodes, node("Add", "f k", "g"), node("Add", "c g", "y")], {
        "k": scalar(-0.3),
        "m": scalar(0.4),
    }


def concatenated() -> Taken:
    nodes = [
        node("Concat", "c k", "a", axis=1),
        node("Add", "c k", "b"),
        node("Transpose", "b", "t", perm=[0, 2, 3, 1]),
        node("Concat", "t l", "u", axis=3),
        node("Add", "t l", "v"),
        node("Transpose", "u", "e", perm=[0, 3, 1, 2]),
        node("Transpose", "v", "f", perm=[0, 3, 1, 2]),
        node("Concat", "a e f", "y", axis=1),
    ]
    return nodes, {"k": floats(1, 8, 6, 6), "l": floats(1, 6, 6, 8)}


def expanded() -> Taken:
    nodes = [
        node("Expand", "k s", "a"),
        node("Expand", "k s", "b"),
        node("Tile", "k r", "d"),
        node("Mul", "a c", "e"),
        node("Add", "e b", "f"),
        node("Add", "f d", "y"),
    ]
    return nodes, {"k": floats(8, 1, 1), "s": ints(1, 8, 6, 6), "r": ints(1, 6, 6)}


def gathered() -> Taken:
    nodes = [
        node("Gather", "k i", "a"),
        node("Gather", "c i", "d", axis=3),
        node("Mul", "d a", "e"),
        node("Gather", "k i", "f", axis=1),
        node("Add", "e f", "g"),
        node("Add", "g k6", "y"),
    ]
    return nodes, {"k": floats(6, 6), "k6": floats(6, 6), "i": ints(5, 0, 0, 2, 1, 3)}


def reshaped() -> Taken:
    nodes = [
        node("Reshape", "k s0", "k0"),
        node("Transpose", "k", "kt"),
        node("Reshape", "kt s1", "k1"),
        node("Expand", "k s2", "k2"),
        node("Mul", "c k0", "a"),
        node("Add", "a k1", "d"),
        node("Sub", "d k2", "e"),
        node("MatMul", "e kt", "f"),
        node("MatMul", "f k", "y"),
    ]
    sizes = {"s0": ints(1, 1, 6, 6), "s1": ints(6, 6), "s2": ints(1, 8, 6, 6)}
    return nodes, {"k": floats(6, 6) * np.float32(0.4), **sizes}


def products() -> Taken:
    """One weight of two convolutions, its bias a term; a matrix as it is and transposed."""
    nodes = [
        node("Conv", "c stem.w stem.b", "d", pads=[1] * 4),
        node("Relu", "d", "e"),
        node("Conv", "e stem.w stem.b", "f", pads=[1] * 4),
        node("BatchNormalization", "f s stem.b stem.b s", "g"),
        node("MatMul", "g k", "h"),
        node("Tanh", "h", "i"),
        node("MatMul", "i k", "j"),
        node("Transpose", "k", "kt"),
        node("MatMul", "j kt", "l"),
        node("Add", "l bw", "y"),
    ]
    more = {"s": positive(8), "bw": W["stem.b"].reshape(8, 1, 1), "k": floats(6, 6)}
    return nodes, more


def slopes() -> Taken:
    nodes = [
        node("PRelu", "c k", "a"),
        node("Transpose", "c", "t", perm=[0, 1, 3, 2]),
        node("PRelu", "t k", "b"),
        node("Mul", "b k", "d"),
        node("Add", "a d", "y"),
    ]
    return nodes, {"k": floats(8, 1, 1)}


KINDS: dict[str, Callable[[], Taken]] = {
    **{
        f"{kind}-{name}": lambda kind=kind, k=k: elementwise(kind, k)  # type: ignore[misc]
        for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Greater", "Equal")
        for name, k in (("scalar", scalar(1.5)), ("channels", positive(8, 6, 1)))
    },
    "Where": where,
    "Pad": padded,
    "Clip": clipped,
    "Concat": concatenated,
    "Expand": expanded,
    "Gather": gathered,
    "Reshape": reshaped,
    "Conv-MatMul": products,
    "PRelu": slopes,
}


def apart(nodes: list[Any], constants: Arrays) -> tuple[list[Any], Arrays]:
    """Every use of a constant has a copy of its own."""
    copies: Arrays = {}
    for number, entry in enumerate(nodes):
        for place, name in enumerate(entry.input):
            if name in constants:
                copies[f"{name}.{number}.{place}"] = constants[name]
                entry.input[place] = f"{name}.{number}.{place}"
    return nodes, copies


def made(name: str, stored: str, outputs: tuple[str, ...] = ("y",)) -> Graph:
    nodes, constants = KINDS[name]()
    nodes, constants = [node("Conv", "x stem.w stem.b", "c", pads=[1] * 4), *nodes], W | constants
    if stored == "apart":
        nodes, constants = apart(nodes, constants)
    return graph(nodes, {"x": X}, constants, outputs)


def reopened(net: Net) -> Net:
    """As it is read from the file that is written of it."""
    again = read(write(net))
    assert check.problems(again) == []
    names = [tensor.name for tensor in again.tensors()]
    assert len(set(names)) == len(names)
    return again


def near(net: Net, made: Graph) -> None:
    found = run(net, made.feed, False)
    for name, wanted in made.wanted.items():
        peak = max(float(np.abs(wanted).max()), 1.0)
        assert float(np.abs(found[name] - wanted).max()) <= SUM * peak, name


@pytest.mark.parametrize("simplified", [True, False], ids=["simplified", "written"])
@pytest.mark.parametrize("stored", ["shared", "apart"])
@pytest.mark.parametrize("name", KINDS)
def test_a_constant_that_is_taken_again(
    name: str, stored: str, simplified: bool, tmp_path: Path
) -> None:
    found = made(name, stored)
    near(reopened(lowered(found.model, tmp_path, simplified)), found)


@pytest.mark.parametrize("name", KINDS)
def test_every_recipe_writes_it(name: str, tmp_path: Path) -> None:
    found = made(name, "shared")
    net = reopened(lowered(found.model, tmp_path))
    seen = run(net, found.feed, False) | _observed(net, found.feed)
    ranges = {
        key: (min(0.0, float(seen[key].min())), max(0.0, float(seen[key].max())))
        for key in quantize.observed(net)
    }
    (wanted,) = found.wanted.values()
    for smaller in (
        smaller_weights.halved(net),
        smaller_weights.dynamic(net),
        quantize.quantize(net, ranges),
        quantize.quantize(net, ranges, "s16"),
    ):
        got = run(reopened(smaller), found.feed, False)["y"]
        if not name.startswith(("Greater", "Equal")):  # which are 0 and 1 at a limit
            error = np.square(got.astype(np.float64) - wanted).sum()
            assert error <= 0.02 * np.square(wanted.astype(np.float64)).sum(), kinds(smaller)


def _observed(net: Net, feed: Arrays) -> Arrays:
    from onmetal.converters.tflite.reference import Exposed

    return Exposed(net, quantize.observed(net)).run(feed)


@pytest.mark.parametrize("simplified", [True, False], ids=["simplified", "written"])
def test_a_constant_that_is_an_output_too(simplified: bool, tmp_path: Path) -> None:
    constants = {"k": floats(8, 1, 1), "s": ints(8)}
    nodes = [
        node("Mul", "x k", "a"),
        node("Identity", "k", "fixed"),
        node("Reshape", "k s", "flat"),
        node("Transpose", "k", "turned"),
        node("Add", "a k", "y"),
    ]
    found = graph(nodes, {"x": X}, constants, ["y", "fixed", "flat", "turned"])
    net = reopened(lowered(found.model, tmp_path, simplified))
    assert net.names == (["x"], ["y", "fixed", "flat", "turned"])
    near(net, found)


def test_a_file_whose_tensors_share_a_name_is_read_with_names_of_their_own() -> None:
    """TFLite itself tells tensors apart by their numbers."""
    x, first = (Tensor("x", (2, 3), np.dtype(np.float32)) for _ in range(2))
    last = Tensor("x.1", (2, 3), np.dtype(np.float32))
    terms = [constant("k", np.full(3, value, np.float32)) for value in (1, 2)]
    ops = [Op("ADD", [x, terms[0]], [first]), Op("MUL", [first, terms[1]], [last])]
    net = Net([x], [last], ops)
    assert sorted(distinct(net).values()) == ["k", "k.1", "x", "x.1", "x.2"]
    again = reopened(net)
    assert [tensor.name for tensor in (again.inputs[0], again.outputs[0])] == ["x", "x.1"]
    found = run(
        Net(again.inputs, again.outputs, again.ops, (["x"], ["y"])), {"x": X[0, 0, :2, :3]}, False
    )
    np.testing.assert_array_equal(found["y"], (X[0, 0, :2, :3] + 1) * 2)
