"""Weights alone in 8 bits, and dynamic ranges."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onmetal.calibration import uncalibrated
from onmetal.errors import UnsupportedError
from onmetal.targets import Format
from tests.onnx_models import build, constant, node, save, value
from tests.qdq_checks import CONV, W, feeds_for, floats, small
from tests.qdq_reference import in_runtimes, opened, traced

LARGE = (96, 64)
WI8 = Format(operators=("MatMul", "Gemm", "Gather"))


def made_by(function: Any, model: Any, folder: Path, form: Format | None = None) -> tuple[Any, Any]:
    path = save(model, folder / "float.onnx")
    facts = function(str(path), form, str(folder))
    written = onnx.load(folder / "model.onnx")
    first = (folder / "model.onnx").read_bytes()
    function(str(path), form, str(folder))
    assert (folder / "model.onnx").read_bytes() == first
    onnx.checker.check_model(written, full_check=True)
    return written, facts


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("product", "shape", "weight"),
    [
        (node("MatMul", "x w", "y"), (4, 96), LARGE),
        (node("MatMul", "x w", "y"), (2, 4, 96), LARGE),
        (node("MatMul", "x w", "y"), (2, 4, 96), (2, *LARGE)),
        (node("Gemm", "x w b", "y"), (4, 96), LARGE),
        (node("Gemm", "x w b", "y", transB=1), (4, 96), LARGE[::-1]),
    ],
)
def test_weights_alone_are_off_by_half_a_step_each(
    product: Any,
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    per_channel: bool,
    symmetric: bool,
    tmp_path: Path,
) -> None:
    model = small(product, inputs={"x": shape}, w=floats(*weight), b=floats(64))
    form = Format(operators=("MatMul", "Gemm"), per_channel=per_channel, weight_symmetric=symmetric)
    written, facts = made_by(uncalibrated.weights, model, tmp_path, form)
    assert facts == {"weights_in_8_bits": 1}
    kinds = {t.name: t.data_type for t in written.graph.initializer}
    assert list(kinds.values()).count(onnx.TensorProto.INT8) == 2  # and the zero points
    assert "w" not in kinds
    feeds = feeds_for(model)
    # Of one channel the largest magnitude on 127 steps, or at most the range on 255.
    steps = np.abs(floats(*weight)).max() / 127
    for outputs in in_runtimes(written, feeds).values():
        for feed, exact, found in zip(feeds, traced(model, feeds), outputs, strict=True):
            bound = np.abs(feed["x"]).sum(axis=-1, keepdims=True) * steps / 2
            assert (np.abs(found["y"] - exact["y"]) <= bound * 1.001 + 1e-4).all()


def test_a_table_is_stored_in_8_bits_and_only_what_is_read_is_dequantized(tmp_path: Path) -> None:
    table = floats(512, 16)
    model = build(
        [node("Gather", "table i", "y")],
        [value("i", (2, 3), onnx.TensorProto.INT64)],
        [value("y", (2, 3, 16))],
        [constant("table", table)],
    )
    written, facts = made_by(uncalibrated.weights, model, tmp_path, WI8)
    assert facts == {"weights_in_8_bits": 1}
    assert [entry.op_type for entry in written.graph.node] == ["Gather", "DequantizeLinear"]
    feeds = [{"i": np.array([[0, 511, 3], [7, 7, -1]])}]
    for outputs in in_runtimes(written, feeds).values():
        gap = np.abs(outputs[0]["y"] - table[feeds[0]["i"]])
        assert gap.max() <= np.abs(table).max() / 254 * 1.001


def test_what_is_small_not_listed_or_computed_is_left_as_it_is(tmp_path: Path) -> None:
    model = small(
        node("MatMul", "x w", "a"),
        node("MatMul", "a s", "b"),
        node("Transpose", "b", "t"),
        node("MatMul", "t b", "y"),
        inputs={"x": (4, 96)},
        w=floats(*LARGE),
        s=floats(64, 60),
    )
    written, facts = made_by(uncalibrated.weights, model, tmp_path, WI8)
    assert facts == {"weights_in_8_bits": 1}
    kinds = [entry.op_type for entry in written.graph.node]
    assert kinds == ["DequantizeLinear", "MatMul", "MatMul", "Transpose", "MatMul"]
    for form in (Format(operators=("Gemm",)), Format(operators=("Gather",))):
        with pytest.raises(UnsupportedError, match="4096"):
            made_by(uncalibrated.weights, model, tmp_path, form)


def test_a_weight_that_several_take_is_stored_once_for_each_axis(tmp_path: Path) -> None:
    model = small(
        node("MatMul", "x w", "a"),
        node("Gemm", "x w", "b"),
        node("Gemm", "x w", "c", transB=1),
        node("Add", "a b", "d"),
        node("Add", "d c", "e"),
        node("Add", "e w", "f"),
        node("Gather", "w i", "y"),
        inputs={"x": (64, 64)},
        outputs="f y",
        w=floats(64, 64),
        i=[5, 6],
    )
    written, facts = made_by(uncalibrated.weights, model, tmp_path, WI8)
    assert facts == {"weights_in_8_bits": 4}
    kinds = [tensor.data_type for tensor in written.graph.initializer if len(tensor.dims) == 2]
    assert kinds.count(onnx.TensorProto.INT8) == 3  # along each axis, and the table
    assert kinds.count(onnx.TensorProto.FLOAT) == 1  # which the Add takes
    feeds = feeds_for(model)
    for outputs in in_runtimes(written, feeds).values():
        for exact, found in zip(traced(model, feeds), outputs, strict=True):
            bound = 3 * np.abs(exact["x"]).sum(axis=1).max() * 0.02
            assert np.abs(found["f"] - exact["f"]).max() < bound
            assert np.abs(found["y"] - exact["y"]).max() < 0.02


@pytest.mark.parametrize(
    ("product", "shape"),
    [
        (node("MatMul", "x w", "y"), (4, 96)),
        (node("MatMul", "x w", "y"), (2, 3, 96)),
        (node("Gemm", "x w", "y"), (4, 96)),
        (node("Gemm", "x w b", "y"), (4, 96)),
        (node("Gemm", "x w rows", "y"), (4, 96)),
        (node("Gemm", "x turned b", "y", transB=1), (4, 96)),
    ],
)
def test_dynamic_ranges_follow_every_input(
    product: Any, shape: tuple[int, ...], tmp_path: Path
) -> None:
    w = floats(*LARGE) * np.logspace(-3, 0, 64, dtype=np.float32)  # a scale for each column
    model = small(
        product,
        inputs={"x": shape},
        w=w,
        turned=w.T,
        b=np.float32(1e-4) * floats(64),
        rows=np.float32(1e-4) * floats(4, 1),
    )
    written, facts = made_by(uncalibrated.dynamic, model, tmp_path)
    assert facts == {"products_in_8_bits": 1}
    stored = [t for t in written.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert [tuple(tensor.dims) for tensor in stored] == [LARGE]
    feeds = [*feeds_for(model), *feeds_for(model, scale=1e4), *feeds_for(model, scale=1e-4)]
    feeds += feeds_for(model, 1, scale=0)
    session = opened(written, "ORT_ENABLE_ALL")
    for feed, exact in zip(feeds, traced(model, feeds), strict=True):
        found = session.run(None, feed)[0]
        # Half a step of the input and half a step of the weight, each times the other.
        x, largest = np.abs(feed["x"]), np.abs(w).max(axis=0)
        step = (max(feed["x"].max(), 0) - min(feed["x"].min(), 0)) / 255
        off = (x + step / 2).sum(axis=-1, keepdims=True) * largest / 254
        off = off + step / 2 * np.abs(w).sum(axis=0)
        assert (np.abs(found - exact["y"]) <= 1.01 * off + 1e-7).all()


def test_what_dynamic_ranges_leave_in_float(tmp_path: Path) -> None:
    """What is no plain product of something computed by a matrix."""
    model = small(
        node("MatMul", "x w", "a"),
        node("Gemm", "x w", "b", alpha=2.0),
        node("Gemm", "turned w", "c", transA=1),
        node("MatMul", "w2 u", "d"),
        node("MatMul", "u x", "e"),
        node("MatMul", "x w3", "f"),
        inputs={"x": (4, 8), "u": (8, 4), "turned": (8, 4)},
        outputs="a b c d e f",
        w=floats(8, 8),
        w2=floats(8, 8),
        w3=floats(1, 8, 8),
    )
    written, facts = made_by(uncalibrated.dynamic, model, tmp_path)
    assert facts == {"products_in_8_bits": 1}
    kept = [entry for entry in written.graph.node if entry.name in set("abcdef")]
    assert kept == list(model.graph.node[1:])
    feeds = feeds_for(model)
    names = [output.name for output in model.graph.output]
    for exact, feed in zip(traced(model, feeds), feeds, strict=True):
        found = dict(zip(names, opened(written, "ORT_ENABLE_ALL").run(names, feed), strict=True))
        for name in names:
            np.testing.assert_allclose(found[name], exact[name], atol=0.2 if name == "a" else 1e-4)


def test_a_model_without_products_by_constants_is_told_so(tmp_path: Path) -> None:
    nodes = [CONV, node("Exp", "a", "e"), node("MatMul", "a e", "y")]
    model = small(*nodes, w=W)
    path = save(model, tmp_path / "float.onnx")
    with pytest.raises(UnsupportedError, match="no product by a constant"):
        uncalibrated.dynamic(str(path), None, str(tmp_path))
