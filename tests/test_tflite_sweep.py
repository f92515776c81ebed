"""Each lowered operator alone beside ONNX Runtime in float32: attributes, sizes, opsets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onmetal.converters.onnx import floats as onnx_float
from onmetal.converters.onnx import pads as onnx_pads
from onmetal.converters.onnx import reader
from onmetal.converters.tflite import lowering
from onmetal.converters.tflite.convert import lower
from onmetal.errors import UnsupportedError
from tests.onnx_models import build, node, save, value, weights
from tests.tflite_graphs import (
    STORED,
    Graph,
    compare,
    expected,
    floats,
    single,
)
from tests.tflite_sweeps import SIMPLIFIED_BELOW, SWEPT, Case, combinations


def graph_of(kind: str, case: Case, stored: str) -> Graph | None:
    """None: ONNX or ONNX Runtime has no such operator."""
    attributes = dict(case.attributes)
    include = attributes.pop("include", 0)
    if kind == "AveragePool":
        attributes["count_include_pad"] = include
    if kind == "GlobalLpPool":
        attributes.pop("kernel_shape")
    try:
        return single(
            kind, case.inputs, stored, case.outputs, case.opset, name="lonely", **attributes
        )
    except Exception:
        return None


def outcome(kind: str, case: Case, stored: str, folder: Path) -> str:
    made = graph_of(kind, case, stored)
    if made is None or any(0 in array.shape for array in made.wanted.values()):
        return "none"
    model = made.model
    if onnx_pads.explicit(model) | onnx_pads.whole_windows(model):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    path = save(model, folder / "given.onnx")
    try:
        if case.opset < SIMPLIFIED_BELOW:
            onnx_float.simplify(str(path), str(folder))
            path = folder / "model.onnx"
        net = lower(path)
    except UnsupportedError as error:
        assert kind in str(error) or "quantiz" in str(error), error
        return "refused"
    compare(net, made)
    return "right"


def calls(make: Callable[..., Case | None], kind: str, chosen: dict[str, Any]) -> Case | None:
    """Some cases depend on the operator."""
    names = make.__code__.co_varnames[: make.__code__.co_argcount]
    return make(kind, **chosen) if names[:1] == ("kind",) else make(**chosen)


def swept(kind: str, folder: Path) -> tuple[dict[str, int], list[str]]:
    """-> how many came to what, and which are wrong."""
    counts: dict[str, int] = {}
    wrong = []
    for entry in SWEPT[kind]:
        for number, chosen in enumerate(combinations(entry)):
            case = calls(entry.make, kind, chosen)
            if case is None:
                continue
            stored = STORED[number % len(STORED)]
            try:
                found = outcome(kind, case, stored, folder)
            except Exception as error:
                found = "wrong"
                wrong.append(f"{chosen} {stored}: {type(error).__name__} {str(error)[:160]}")
            counts[found] = counts.get(found, 0) + 1
            if entry.refused:
                assert found in ("refused", "none")
    return counts, wrong


@pytest.mark.parametrize("kind", sorted(SWEPT))
def test_an_operator_over_its_settings(kind: str, tmp_path: Path) -> None:
    counts, wrong = swept(kind, tmp_path)
    assert not wrong, "\n".join([f"{len(wrong)} of {counts}", *wrong])
    assert counts.get("refused" if all(entry.refused for entry in SWEPT[kind]) else "right")


def test_every_lowered_operator_is_swept() -> None:
    elsewhere = {"Resize", "Upsample", "QuantizeLinear", "DequantizeLinear", "Swish", "Not"}
    of_constants = {"Constant", "ConstantOfShape", "Shape", "Size", "Range", "EyeLike", "Dropout"}
    assert set(lowering.TABLE) - elsewhere - of_constants <= set(SWEPT)


def test_sizes_behind_a_transposed_convolution_are_read_right(tmp_path: Path) -> None:
    """SAME is input x stride, whatever output_padding adds; so a model is read, then lowered."""
    more = {"strides": [2, 2], "output_padding": [1, 1]}
    made = build(
        [
            node("ConvTranspose", "x w v", "a", auto_pad="SAME_UPPER", **more),
            node("Relu", "a", "b"),
            node("ConvTranspose", "b w", "c", auto_pad="SAME_LOWER", **more),
            node("Conv", "c k", "y", pads=[1] * 4),
        ],
        [value("x", [1, 4, 7, 6])],
        [value("y", ["a", "b", "c", "d"])],
        [weights("w", 4, 4, 3, 3), weights("v", 4), weights("k", 2, 4, 3, 3)],
    )
    path, folder = save(made, tmp_path / "given.onnx"), tmp_path / "read"
    folder.mkdir()
    read = reader.examine(str(path), {}, None, str(folder))
    assert read["outputs"][0]["shape"] == [1, 2, 28, 24]
    onnx_float.simplify(str(folder / "model.onnx"), str(tmp_path))
    feed = {"x": floats(1, 4, 7, 6)}
    compare(lower(tmp_path / "model.onnx"), Graph(made, feed, expected(made, feed)))
