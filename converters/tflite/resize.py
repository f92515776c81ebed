"""Resize: TFLite's own kernels where they read exactly the same values, else GATHER.

Coordinates are computed in float32, as in ONNX Runtime: nearest may pick another value where they
differ in the last bit.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import NHWC, Lowering, lowers
from onmetal.converters.tflite.net import Shape, Tensor
from onmetal.converters.tflite.nodes import attribute, refuse

TIE = np.float32(1e-6)
"""A coordinate that is this near to the middle between two values counts as the middle (ONNX
Runtime 1.32)."""
HALF = np.float32(0.5)


def _halves_to(nearest: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """A function that rounds to the nearest integer, and from the middle by `nearest`."""

    def rounded(x: np.ndarray) -> np.ndarray:
        tie = np.abs(x - np.floor(x) - HALF) <= TIE
        return np.where(tie, nearest(x), np.rint(x))

    return rounded


_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": _halves_to(np.floor),
    "round_prefer_ceil": _halves_to(np.ceil),
}


def coordinates(mode: str, size: int, out: int, scale: np.float32) -> np.ndarray | None:
    """[out] float32: the coordinate of each output value on the axis of the input (ONNX's Resize);
    None for an unknown mode."""
    x, length, size_out = np.arange(out, dtype=np.float32), np.float32(size), np.float32(out)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners" and out > 1:
        return x * (length - 1) / (size_out - 1)
    if mode in ("align_corners", "pytorch_half_pixel") and out == 1:
        return np.zeros(1, np.float32)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (x + HALF) / scale - HALF
    if mode == "tf_half_pixel_for_nn":
        return (x + HALF) / scale
    if mode == "half_pixel_symmetric":
        offset = length / 2 * (1 - size_out / (scale * length))
        exact = offset + (x.astype(np.float64) + 0.5) / np.float64(scale) - 0.5
        return exact.astype(np.float32)
    return None


class Taps(NamedTuple):
    """The terms of the sum that each output value along an axis is: [taps, out] indices of input
    values, and their weights."""

    places: np.ndarray
    weights: np.ndarray


def linear_taps(at: np.ndarray, size: int) -> Taps:
    inside = np.clip(at, 0, size - 1)
    first = np.floor(inside).astype(np.int64)
    share = inside - first.astype(np.float32)
    return Taps(np.stack([first, np.minimum(first + 1, size - 1)]), np.stack([1 - share, share]))


def cubic_taps(at: np.ndarray, size: int, a: float, exclude_outside: bool) -> Taps:
    """Four values around the coordinate. (Keys, 1981.)"""
    first = np.floor(at)
    s = (at - first).astype(np.float64)
    weights = np.stack(
        [
            ((a * (s + 1) - 5 * a) * (s + 1) + 8 * a) * (s + 1) - 4 * a,
            ((a + 2) * s - (a + 3)) * s * s + 1,
            ((a + 2) * (1 - s) - (a + 3)) * (1 - s) * (1 - s) + 1,
            ((a * (2 - s) - 5 * a) * (2 - s) + 8 * a) * (2 - s) - 4 * a,
        ]
    )
    places = first.astype(np.int64) + np.arange(-1, 3)[:, None]
    if exclude_outside:
        weights = np.where((places >= 0) & (places < size), weights, 0)
        weights = weights / weights.sum(axis=0)
    return Taps(np.clip(places, 0, size - 1), weights.astype(np.float32))


@lowers(
    "Resize",
    "Upsample",
    to="RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR, GATHER, MUL, ADD",
    limits="no antialias, no tf_crop_and_resize",
)
def resize(low: Lowering, node: ir.Node) -> None:
    value, out = low.input(node), node.outputs[0]
    before, after = low.shape(value), low.shape(out)
    mode = attribute(node, "mode", "nearest")
    coordinate_mode = attribute(node, "coordinate_transformation_mode", "half_pixel")
    if node.op_type == "Upsample":
        coordinate_mode = "asymmetric"
    if attribute(node, "antialias", 0):
        raise refuse(node, "antialias is not supported")
    scales = _scales(low, node, before, after)
    axes = [coordinates(coordinate_mode, *of) for of in zip(before, after, scales, strict=True)]
    positions = [axis for axis in axes if axis is not None]
    if len(positions) < len(axes):
        raise refuse(node, f"coordinate_transformation_mode {coordinate_mode!r} is not supported")
    if before == after and mode in ("nearest", "linear", "bilinear"):
        low.values[out] = low.value(value)
    elif mode == "nearest":
        rounding = attribute(node, "nearest_mode", "round_prefer_floor")
        if node.op_type == "Upsample":
            rounding = "floor"
        _nearest(low, node, positions, rounding)
    elif mode in ("linear", "bilinear"):
        _linear(low, node, coordinate_mode, positions)
    elif mode == "cubic":
        a = float(attribute(node, "cubic_coeff_a", -0.75))
        outside = bool(attribute(node, "exclude_outside", 0))
        taps = [cubic_taps(at, n, a, outside) for at, n in zip(positions, before, strict=True)]
        _sum_taps(low, node, taps)
    else:
        raise refuse(node, f"mode {mode!r} is not supported")


def _scales(low: Lowering, node: ir.Node, before: Shape, after: Shape) -> list[np.float32]:
    """The scale of every axis. ONNX computes coordinates with the scales in the node where it has
    any, not with the ratio of sizes."""
    scales = [np.float32(new) / np.float32(size) for size, new in zip(before, after, strict=True)]
    place = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
    listed, sizes = low.setting(node, "scales", place), None
    axes = [int(axis) % len(before) for axis in attribute(node, "axes", range(len(before)))]
    policy = attribute(node, "keep_aspect_ratio_policy", "stretch")
    if listed is not None and listed.size:
        for axis, scale in zip(axes, listed, strict=True):
            scales[axis] = np.float32(scale)
    elif policy != "stretch":
        sizes = low.setting(node, "sizes", 3)
        assert sizes is not None
        factors = [
            np.float32(n) / np.float32(before[axis]) for n, axis in zip(sizes, axes, strict=True)
        ]
        factor = min(factors) if policy == "not_larger" else max(factors)
        scales = [factor if axis in axes else np.float32(1) for axis in range(len(before))]
    return scales


def _indices(positions: np.ndarray, size: int, rounding: str) -> np.ndarray:
    return np.asarray(np.clip(_ROUNDINGS[rounding](positions), 0, size - 1), np.int64)


def _own(size: int, out: int, align: bool, half: bool) -> np.ndarray:
    """The indices of the values that RESIZE_NEAREST_NEIGHBOR reads (TFLite's
    reference/resize_nearest_neighbor.h)"""
    scale = np.float32(size - 1) / np.float32(out - 1) if align and out > 1 else None
    step = np.float32(size) / np.float32(out) if scale is None else scale
    at = (np.arange(out, dtype=np.float32) + np.float32(0.5 if half else 0)) * step
    rounded = np.floor(at.astype(np.float64) + 0.5) if align else np.floor(at)
    return np.asarray(np.clip(rounded, 0, size - 1), np.int64)


def _nearest(low: Lowering, node: ir.Node, positions: list[np.ndarray], rounding: str) -> None:
    value, out = low.input(node), node.outputs[0]
    before, after = low.shape(value), low.shape(out)
    indices = [_indices(at, size, rounding) for at, size in zip(positions, before, strict=True)]
    changed = [
        axis
        for axis, size in enumerate(before)
        if not np.array_equal(indices[axis], np.arange(size))
    ]
    if len(before) == 4 and set(changed) <= {2, 3}:
        for align, half in ((False, False), (False, True), (True, False)):
            if all(
                np.array_equal(indices[axis], _own(before[axis], after[axis], align, half))
                for axis in (2, 3)
            ):
                tensor = low.arranged(value, NHWC)
                result = _resized(low, "RESIZE_NEAREST_NEIGHBOR", tensor, after[2:], align, half)
                low.give(out, result, NHWC)
                return
    tensor, order = low.value(value)
    for axis in changed:
        place = order.index(axis)
        shape = [after[axis] if p == place else n for p, n in enumerate(tensor.shape)]
        tensor = low.emit("GATHER", [tensor, low.ints(indices[axis])], shape, axis=place)
    low.give(out, tensor, order)


def _resized(
    low: Lowering, kind: str, tensor: Tensor, sizes: tuple[int, ...], align: bool, half: bool
) -> Tensor:
    shape = (tensor.shape[0], *sizes, tensor.shape[-1])
    options: dict[str, Any] = {"alignCorners": align, "halfPixelCenters": half}
    return low.emit(kind, [tensor, low.ints(list(sizes), "size")], shape, **options)


def _linear(
    low: Lowering, node: ir.Node, coordinate_mode: str, positions: list[np.ndarray]
) -> None:
    """By RESIZE_BILINEAR, over height and width or over one length, where its coordinates equal
    `positions` but for rounding; else by taps."""
    value, out = low.input(node), node.outputs[0]
    before, after = low.shape(value), low.shape(out)
    align = coordinate_mode == "align_corners"
    half = coordinate_mode in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    spatial = range(2, len(before))
    if (
        len(before) not in (3, 4)
        or before[:2] != after[:2]
        or any(
            _differs_from_bilinear(positions[axis], before[axis], after[axis], align, half)
            for axis in spatial
        )
    ):
        _sum_taps(low, node, [linear_taps(at, n) for at, n in zip(positions, before, strict=True)])
        return
    if len(before) == 3:
        tensor = low.arranged(value, (0, 2, 1))
        batch, length, channels = tensor.shape
        wide = low.reshaped(tensor, (batch, 1, length, channels))
        result = _resized(low, "RESIZE_BILINEAR", wide, (1, after[2]), align, half)
        low.give(out, low.reshaped(result, (batch, after[2], channels)), (0, 2, 1))
        return
    result = _resized(low, "RESIZE_BILINEAR", low.arranged(value, NHWC), after[2:], align, half)
    low.give(out, result, NHWC)


def _differs_from_bilinear(
    positions: np.ndarray, size: int, out: int, align: bool, half: bool
) -> bool:
    """Whether RESIZE_BILINEAR has other coordinates (reference/resize_bilinear.h)."""
    step = (size - 1) / (out - 1) if align and out > 1 else size / out
    kernel_positions = (np.arange(out) + 0.5) * step - 0.5 if half else np.arange(out) * step
    gap = np.abs(np.clip(kernel_positions, 0, size - 1) - np.clip(positions, 0, size - 1))
    return bool(gap.max(initial=0.0) > 1e-5 * size)


def _sum_taps(low: Lowering, node: ir.Node, taps: Sequence[Taps]) -> None:
    """Gather the values of every tap, weight them and add them up, axis by axis."""
    value, out = low.input(node), node.outputs[0]
    tensor, order = low.value(value)
    if not tensor.is_float:
        raise refuse(node, f"between numbers of {tensor.dtype} is not supported")
    for axis, (places, weights) in enumerate(taps):
        place, size = order.index(axis), low.shape(value)[axis]
        if places.shape[1] == size and _moves_nothing(places, weights):
            continue
        shape = [places.shape[1] if p == place else n for p, n in enumerate(tensor.shape)]
        wide = [-1 if p == place else 1 for p in range(len(shape))]
        parts = []
        for indices, weight in zip(places, weights, strict=True):
            if not weight.any():
                continue
            part = low.emit("GATHER", [tensor, low.ints(indices, "places")], shape, axis=place)
            if not np.all(weight == 1):
                part = low.binary("MUL", part, low.floats(weight.reshape(wide), "weights"))
            parts.append(part)
        tensor = parts[0]
        for part in parts[1:]:
            tensor = low.binary("ADD", tensor, part)
    low.give(out, tensor, order)


def _moves_nothing(places: np.ndarray, weights: np.ndarray) -> bool:
    still = places == np.arange(places.shape[1])
    return bool(np.all(np.where(still, weights, 0).sum(axis=0) == 1) and not weights[~still].any())
