"""Operators that exporters write out as several: Gelu, HardSwish, Swish, Upsample."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.onnx_models import build, node, value
from tests.tflite_graphs import (
    STORED,
    SWISHES,
    Graph,
    agrees,
    compare,
    floats,
    graph,
    hard_swish,
    kinds,
    lowered,
    refusal,
    scalar,
    single,
    written,
)

GELUS = {
    "half of x first": ["Mul x half h", "Mul h p y"],
    "half of the sum": ["Mul p half h", "Mul x h y"],
    "half at the end": ["Mul x p h", "Mul h half y"],
    "half in front": ["Mul p x h", "Mul half h y"],
    "divided at the end": ["Mul x p h", "Div h two y"],
    "x divided": ["Div x two h", "Mul p h y"],
}


def gelu(lines: list[str], root: str = "Div x root e", plus: str = "Add f one p") -> Graph:
    w = {"root": scalar(2**0.5), "inverse": scalar(0.5**0.5), "half": scalar(0.5)}
    w |= {"coarse": scalar(float(np.float16(2**0.5))), "rough": scalar(float(np.float16(0.5**0.5)))}
    w |= {"two": scalar(2), "one": scalar(1), "wrong": scalar(0.4)}
    return graph(written([root, "Erf e f", plus, *lines]), {"x": floats(2, 3, 8) * 3}, w)


@pytest.mark.parametrize(
    "root",
    ["Div x root e", "Mul x inverse e", "Mul inverse x e", "Div x coarse e", "Mul x rough e"],
)
@pytest.mark.parametrize("plus", ["Add f one p", "Add one f p"])
@pytest.mark.parametrize("form", GELUS)
def test_a_gelu_written_out_is_one_operator(
    form: str, plus: str, root: str, tmp_path: Path
) -> None:
    net = agrees(gelu(GELUS[form], root, plus), tmp_path)
    assert kinds(net) == ["GELU"]


@pytest.mark.parametrize(
    ("lines", "root"),
    [
        (["Mul x wrong h", "Mul h p y"], "Div x root e"),
        (["Mul x two h", "Mul h p y"], "Div x root e"),
        (["Div x half h", "Mul h p y"], "Div x root e"),
        (["Div two x h", "Mul h p y"], "Div x root e"),
        (["Mul x half h", "Div h p y"], "Div x root e"),
        (["Mul x p h", "Div two h y"], "Div x root e"),
        (["Mul x p h", "Div h half y"], "Div x root e"),
        (["Mul x p h", "Mul h two y"], "Div x root e"),
        (["Mul x half h", "Mul h p y"], "Div x two e"),
        (["Mul x half h", "Mul h p y"], "Mul x root e"),
        (["Mul x half h", "Mul h p y"], "Div root x e"),
        (["Mul p half h", "Mul h h y"], "Div x root e"),
    ],
)
def test_what_only_looks_like_gelu_is_refused(lines: list[str], root: str, tmp_path: Path) -> None:
    assert refusal(gelu(lines, root).model, tmp_path).startswith("Erf 'node1': ")


def test_a_gelu_whose_inside_is_an_output_is_refused(tmp_path: Path) -> None:
    made = gelu(GELUS["half of x first"])
    made.model.graph.output.append(value("p", [2, 3, 8]))
    assert refusal(made.model, tmp_path).startswith("Erf 'node1': ")


def test_what_a_gelu_is_made_of_may_be_used_again(tmp_path: Path) -> None:
    """Half of x, that another operator takes too."""
    made = gelu(["Mul x half h", "Mul h p g", "Add h g y"])
    assert kinds(agrees(made, tmp_path)).count("GELU") == 1


@pytest.mark.parametrize("form", SWISHES)
def test_a_hard_swish_written_out_is_one_operator(form: str, tmp_path: Path) -> None:
    assert kinds(agrees(hard_swish(SWISHES[form]), tmp_path)) == ["HARD_SWISH"]


@pytest.mark.parametrize(
    ("lines", "three"),
    [
        (["Mul x c m", "Div m five y"], "three"),
        (["Mul x c m", "Div m six y"], "two"),
        (["Mul a c m", "Div m six y"], "three"),
        (["Mul x c m", "Div m six n", "Mul m n y"], "three"),
        (["Mul x c y"], "three"),
    ],
)
def test_what_only_looks_like_hard_swish_is_left(
    lines: list[str], three: str, tmp_path: Path
) -> None:
    assert "HARD_SWISH" not in kinds(agrees(hard_swish(lines, three), tmp_path))


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_swish(alpha: float, tmp_path: Path) -> None:
    """ONNX Runtime has none yet: beside x * sigmoid(alpha * x)."""
    made = build(
        [node("Swish", "x", "y", alpha=alpha)],
        [value("x", [2, 3, 4])],
        [value("y", [2, 3, 4])],
        opset=24,
    )
    x = floats(2, 3, 4)
    wanted = x / (1 + np.exp(-np.float32(alpha) * x))
    compare(lowered(made, tmp_path, simplified=False), Graph(made, {"x": x}, {"y": wanted}))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("stored", STORED)
def test_upsample(stored: str, mode: str, tmp_path: Path) -> None:
    """Of opset 9: simplified it is the Resize of a later one."""
    made = single(
        "Resize",
        [(1, 3, 4, 6), None, np.array([1, 1, 2, 3], np.float32)],
        stored,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    old = onnx.ModelProto()
    old.CopyFrom(made.model)
    old.opset_import[0].version = 9
    last = old.graph.node[-1]
    last.op_type = "Upsample"
    del last.input[1]
    del last.attribute[:]
    last.attribute.append(onnx.helper.make_attribute("mode", mode))
    compare(lowered(old, tmp_path, simplified=False), made)
    if stored == "plain":
        compare(lowered(old, tmp_path), made)
