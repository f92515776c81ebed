"""Resize: TFLite's own kernels where they take exactly the same values, else by gathering."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import NHWC, Lowering, attribute, lowers, refuse
from onmetal.converters.tflite.net import Tensor

_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}


def coordinates(mode: str, size: int, out: int, scale: float) -> np.ndarray | None:
    """[out] float64: where each output lies on the axis of the input (ONNX's Resize); None for a
    mode that is not known."""
    x = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * (size - 1) / (out - 1) if out > 1 else np.zeros(out)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and out > 1):
        return (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return np.zeros(out)
    if mode == "half_pixel_symmetric":
        adjustment = out / (scale * size)
        center = size / 2
        return center * (1 - adjustment) + (x + 0.5) / scale - 0.5
    return None


@lowers(
    "Resize",
    "Upsample",
    to="RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR, GATHER",
    limits="modes nearest and linear, of height and width; no antialias, no tf_crop_and_resize; "
    "linear only where the scales are those of the sizes",
)
def resize(low: Lowering, node: ir.Node) -> None:
    value, out = low.input(node), node.outputs[0]
    before, after = low.shape(value), low.shape(out)
    mode = attribute(node, "mode", "nearest")
    where = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if node.op_type == "Upsample":
        where = "asymmetric"
    if attribute(node, "antialias", 0):
        raise refuse(node, "antialias is not supported")
    if before == after and mode in ("nearest", "linear"):
        low.values[out] = low.value(value)
        return
    scales = _scales(low, node, before, after)
    found = [
        coordinates(where, size, new, scale)
        for size, new, scale in zip(before, after, scales, strict=True)
    ]
    if any(place is None for place in found):
        raise refuse(node, f"coordinate_transformation_mode {where!r} is not supported")
    if mode == "nearest":
        rounding = attribute(node, "nearest_mode", "round_prefer_floor")
        if node.op_type == "Upsample":
            rounding = "floor"
        _nearest(low, node, [x for x in found if x is not None], rounding)
    elif mode in ("linear", "bilinear"):
        _linear(low, node, where, scales)
    else:
        raise refuse(node, f"mode {mode!r} is not supported")


def _scales(
    low: Lowering, node: ir.Node, before: tuple[int, ...], after: tuple[int, ...]
) -> list[float]:
    """Of every axis; ONNX computes coordinates with what is given, not with what comes out."""
    ratios = [new / size for size, new in zip(before, after, strict=True)]
    place = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
    given = low.setting(node, "scales", place)
    if given is None or given.size == 0:
        return ratios
    axes = attribute(node, "axes")
    for number, axis in enumerate(range(len(before)) if axes is None else axes):
        ratios[int(axis)] = float(given[number])
    return ratios


def _indices(found: np.ndarray, size: int, rounding: str) -> np.ndarray:
    return np.asarray(np.clip(_ROUNDINGS[rounding](found), 0, size - 1), np.int64)


def _own(size: int, out: int, align: bool, half: bool) -> np.ndarray:
    """Which values RESIZE_NEAREST_NEIGHBOR takes (TFLite's reference/resize_nearest_neighbor.h)"""
    scale = np.float32(size - 1) / np.float32(out - 1) if align and out > 1 else None
    step = np.float32(size) / np.float32(out) if scale is None else scale
    at = (np.arange(out, dtype=np.float32) + np.float32(0.5 if half else 0)) * step
    rounded = np.floor(at + np.float32(0.5)) if align else np.floor(at)
    return np.asarray(np.clip(rounded, 0, size - 1), np.int64)


def _nearest(low: Lowering, node: ir.Node, found: list[np.ndarray], rounding: str) -> None:
    value, out = low.input(node), node.outputs[0]
    before, after = low.shape(value), low.shape(out)
    indices = [_indices(at, size, rounding) for at, size in zip(found, before, strict=True)]
    changed = [axis for axis, size in enumerate(before) if size != after[axis]]
    if len(before) == 4 and set(changed) <= {2, 3}:
        for align, half in ((False, False), (False, True), (True, False)):
            if all(
                np.array_equal(indices[axis], _own(before[axis], after[axis], align, half))
                for axis in (2, 3)
            ):
                tensor = low.arranged(value, NHWC)
                made = _sized(low, "RESIZE_NEAREST_NEIGHBOR", tensor, after[2:], align, half)
                low.give(out, made, NHWC)
                return
    tensor, order = low.value(value)
    for axis in changed:
        place = order.index(axis)
        shape = [after[axis] if p == place else n for p, n in enumerate(tensor.shape)]
        tensor = low.emit("GATHER", [tensor, low.ints(indices[axis])], shape, axis=place)
    low.give(out, tensor, order)


def _sized(
    low: Lowering, kind: str, tensor: Tensor, sizes: tuple[int, ...], align: bool, half: bool
) -> Tensor:
    shape = (tensor.shape[0], *sizes, tensor.shape[-1])
    options: dict[str, Any] = {"alignCorners": align, "halfPixelCenters": half}
    return low.emit(kind, [tensor, low.ints(list(sizes), "size")], shape, **options)


def _linear(low: Lowering, node: ir.Node, where: str, scales: list[float]) -> None:
    value, out = low.input(node), node.outputs[0]
    before, after = low.shape(value), low.shape(out)
    if len(before) not in (3, 4) or before[:2] != after[:2]:
        raise refuse(node, f"linear from {list(before)} to {list(after)} is not supported")
    for axis in range(2, len(before)):
        exact = after[axis] / before[axis]
        if where != "align_corners" and not math.isclose(scales[axis], exact, rel_tol=1e-6):
            raise refuse(
                node,
                f"a scale of {scales[axis]:g} for {before[axis]} -> {after[axis]} values is not "
                "supported; export it with sizes, or with scales that give whole numbers",
            )
        if where == "pytorch_half_pixel" and after[axis] == 1:
            raise refuse(node, "pytorch_half_pixel to a size of 1 is not supported")
    align = where == "align_corners"
    half = where in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    if len(before) == 3:
        tensor = low.arranged(value, (0, 2, 1))
        batch, length, channels = tensor.shape
        wide = low.reshaped(tensor, (batch, 1, length, channels))
        made = _sized(low, "RESIZE_BILINEAR", wide, (1, after[2]), align, half)
        low.give(out, low.reshaped(made, (batch, after[2], channels)), (0, 2, 1))
        return
    made = _sized(low, "RESIZE_BILINEAR", low.arranged(value, NHWC), after[2:], align, half)
    low.give(out, made, NHWC)
