"""Resize takes the values that ONNX Runtime takes: every mode, by sizes and by scales, swept."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from onnx import TensorProto

from onmetal.converters.tflite import resize
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.writing import write
from tests.onnx_models import build, node, value
from tests.tflite_graphs import STORED, agrees, floats, kinds, single

MODES = ("asymmetric", "align_corners", "half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
SIZES = [
    (size, out)
    for size in (1, 2, 3, 5, 7, 10, 13, 14, 16, 20, 26, 37, 40, 61, 80, 112)
    for out in (*range(1, 24), 28, 31, 39, 57, 64, 69, 83, 96, 111, 128, 160, 224)
]
SCALES = [
    (size, np.float32(scale))
    for size in (1, 3, 7, 9, 10, 17, 20, 32, 50)
    for scale in (0.3, 0.5, 0.6, 0.7, 0.9, 1.1, 1.2, 1.3, 1.5, 1.6, 1.7, 2, 2.4, 2.5, 3, 3.6, 4.2)
    if size * scale >= 1
]
Asked = tuple[int, np.float32, int, np.ndarray]
"""The size of an axis, its scale, the size that comes out, what ONNX Runtime makes of a ramp."""


@cache
def _session(by: str, attributes: tuple[tuple[str, Any], ...]) -> onnxruntime.InferenceSession:
    """An axis between two others of one number, whose sizes or scales are fed."""
    kind = TensorProto.INT64 if by == "sizes" else TensorProto.FLOAT
    made = build(
        [node("Resize", "x - - by" if by == "sizes" else "x - by", "y", **dict(attributes))],
        [value("x", [None, None]), value("by", [2], kind)],
        [value("y", [None, None])],
        opset=19,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def ramps(ramp: Callable[[int], np.ndarray], **attributes: Any) -> Iterator[Asked]:
    """Everything that is swept, resized by ONNX Runtime."""
    names = tuple(sorted(attributes.items()))
    for size, out in SIZES:
        feed = {"x": ramp(size)[None], "by": np.array([1, out], np.int64)}
        yield (
            size,
            np.float32(out) / np.float32(size),
            out,
            _session("sizes", names).run(None, feed)[0][0],
        )
    for size, scale in SCALES:
        feed = {"x": ramp(size)[None], "by": np.array([1, scale], np.float32)}
        found = _session("scales", names).run(None, feed)[0][0]
        yield size, scale, len(found), found


def counted(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32)


def noise(size: int) -> np.ndarray:
    return floats(size)


def at(mode: str, size: int, out: int, scale: np.float32) -> np.ndarray:
    found = resize.coordinates(mode, size, out, scale)
    assert found is not None
    return found


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("mode", [*MODES, "tf_half_pixel_for_nn"])
def test_nearest_takes_the_same_values(mode: str, rounding: str) -> None:
    wrong = []
    for size, scale, out, found in ramps(
        counted, mode="nearest", coordinate_transformation_mode=mode, nearest_mode=rounding
    ):
        if size == out:
            continue  # ONNX Runtime copies, whatever the scale
        places = resize._indices(at(mode, size, out, scale), size, rounding)
        if not np.array_equal(places, found):
            wrong.append((size, float(scale), out))
    assert not wrong


def blended(taps: resize.Taps, values: np.ndarray) -> np.ndarray:
    return np.asarray((values[taps.places] * taps.weights).sum(axis=0))


@pytest.mark.parametrize("mode", MODES)
def test_linear_blends_the_same_values(mode: str) -> None:
    for size, scale, out, found in ramps(noise, mode="linear", coordinate_transformation_mode=mode):
        if size != out:
            taps = resize.linear_taps(at(mode, size, out, scale), size)
            np.testing.assert_allclose(blended(taps, noise(size)), found, atol=1e-5)


@pytest.mark.parametrize(("a", "outside"), [(-0.75, 0), (-0.5, 0), (-0.75, 1)])
@pytest.mark.parametrize("mode", MODES)
def test_cubic_blends_the_same_values(mode: str, a: float, outside: int) -> None:
    for size, scale, out, found in ramps(
        noise,
        mode="cubic",
        coordinate_transformation_mode=mode,
        cubic_coeff_a=a,
        exclude_outside=outside,
    ):
        if size != out:
            taps = resize.cubic_taps(at(mode, size, out, scale), size, a, bool(outside))
            np.testing.assert_allclose(blended(taps, noise(size)), found, atol=1e-4)


@pytest.mark.parametrize(("align", "half"), [(False, False), (False, True), (True, False)])
def test_the_kernel_takes_what_it_is_said_to_take(align: bool, half: bool) -> None:
    """RESIZE_NEAREST_NEIGHBOR of LiteRT, over all the sizes."""
    x = Tensor("x", (1, 1, 1, 1), np.dtype(np.float32))
    size = Tensor("size", (2,), np.dtype(np.int32))
    y = Tensor("y", (1, 1, 1, 1), np.dtype(np.float32))
    op = Op(
        "RESIZE_NEAREST_NEIGHBOR", [x, size], [y], {"alignCorners": align, "halfPixelCenters": half}
    )
    opened = Interpreter(model_content=write(Net([x, size], [y], [op])), num_threads=1)
    (image, sizes), (made,) = opened.get_input_details(), opened.get_output_details()
    for before in sorted({before for before, _ in SIZES}):
        opened.resize_tensor_input(image["index"], [1, 1, before, 1])
        opened.allocate_tensors()
        opened.set_tensor(image["index"], counted(before).reshape(1, 1, before, 1))
        for after in (out for size, out in SIZES if size == before):
            opened.set_tensor(sizes["index"], np.array([1, after], np.int32))
            opened.invoke()
            found = opened.get_tensor(made["index"]).reshape(-1)
            np.testing.assert_array_equal(found, resize._own(before, after, align, half))


ALL = ("nearest", "linear", "cubic")
RESIZES: list[tuple[tuple[str, ...], tuple[int, ...], list[float], dict[str, Any]]] = [
    (ALL, (1, 3, 26, 26), [1, 3, 64, 64], {}),
    (ALL, (1, 3, 10, 10), [1.0, 1.0, 1.2, 1.2], {}),
    (ALL, (1, 3, 20, 9), [1.0, 1.0, 1.6, 1.1], {}),
    (ALL, (1, 2, 14, 5), [1, 2, 19, 39], {"coordinate_transformation_mode": "half_pixel"}),
    (ALL, (1, 2, 3, 4), [1.0, 1.0, 1.1, 2.0], {}),
    (ALL, (5, 4), [2.0, 1.5], {}),
    (ALL[:2], (2, 3, 4), [4, 2, 7], {}),
    (ALL[:1], (2, 3, 4, 5, 3), [2.0, 1.0, 1.5, 1.0, 2.0], {}),
    (ALL, (2, 3, 7, 9), [11, 5], {"axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}),
    (ALL, (2, 3, 7, 9), [5, 11], {"axes": [3, 2], "keep_aspect_ratio_policy": "not_smaller"}),
    (ALL, (2, 3, 7, 9), [2.0, 1.3], {"axes": [3, 2]}),
]
"""Modes that ONNX Runtime has for it, the shape, sizes or scales, attributes."""


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(
    ("mode", "shape", "by", "attributes"),
    [(mode, *rest) for modes, *rest in RESIZES for mode in modes],
    ids=str,
)
def test_a_resize(
    mode: str,
    shape: tuple[int, ...],
    by: list[float],
    attributes: dict[str, Any],
    stored: str,
    tmp_path: Path,
) -> None:
    scales = isinstance(by[0], float)
    given = [None, np.array(by, np.float32)] if scales else [None, None, np.array(by, np.int64)]
    attributes = {"coordinate_transformation_mode": "asymmetric", **attributes, "mode": mode}
    if mode == "nearest":
        attributes["nearest_mode"] = "floor"
    made = single("Resize", [shape, *given], stored, opset=19, **attributes)
    agrees(made, tmp_path, simplified=stored == "plain")


@pytest.mark.parametrize("size", [64, 52, 13])
def test_whole_factors_are_one_operator(size: int, tmp_path: Path) -> None:
    made = single(
        "Resize",
        [(1, 3, 26, 26), None, None, np.array([1, 3, size, size], np.int64)],
        "last",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    found = kinds(agrees(made, tmp_path, simplified=False))
    assert ("RESIZE_NEAREST_NEIGHBOR" in found) == (size != 64)


@pytest.mark.parametrize("opset", [10, 11, 13])
@pytest.mark.parametrize("scales", [[1, 1, 1.6, 2], [1, 1, 0.6, 0.4], [1, 1, 0.6, 1.7]], ids=str)
def test_resize_of_older_opsets(scales: list[float], opset: int, tmp_path: Path) -> None:
    """Before 11 what lies between is taken from above where an axis shrinks, else from below."""
    by = [np.array(scales, np.float32)]
    if opset > 10:
        by = [np.zeros(0, np.float32), *by]
    agrees(single("Resize", [(1, 3, 10, 9), *by], opset=opset, mode="nearest"), tmp_path)
