"""Resizing of images."""

import numpy as np

from onmetal.converters.tflite.net import Op
from onmetal.converters.tflite.to_onnx.convolution import images
from onmetal.converters.tflite.to_onnx.graph import NCHW, Graph, permuted
from onmetal.converters.tflite.to_onnx.rules import refuse, taken, writes


def _coordinates(op: Op) -> str:
    """ONNX's name of how a place in the output becomes one in the input."""
    align, half = op.options.get("alignCorners"), op.options.get("halfPixelCenters")
    if align and half:
        raise refuse(op, "alignCorners together with halfPixelCenters is not supported")
    return "align_corners" if align else "half_pixel" if half else "asymmetric"


@writes("RESIZE_BILINEAR", to="Resize")
def bilinear(graph: Graph, op: Op) -> None:
    tensor, out = taken(op, 0), op.outputs[0]
    images(op, tensor)
    inputs = [graph.real(tensor, NCHW), "", "", graph.ints(permuted(out.shape, NCHW))]
    coordinates = _coordinates(op)
    result = graph.emit("Resize", inputs, mode="linear", coordinate_transformation_mode=coordinates)
    graph.give(out, result, NCHW)


def _places(op: Op, size: int, out: int) -> np.ndarray:
    """int64 [out]: the place in the input of each place in the output, in float32 as
    tensorflow/lite/kernels/internal/reference/resize_nearest_neighbor.h computes it."""
    align = bool(op.options.get("alignCorners"))
    half = bool(op.options.get("halfPixelCenters"))
    scale = np.float32(size) / np.float32(out)
    if align and out > 1:
        scale = np.float32(size - 1) / np.float32(out - 1)
    exact = (np.arange(out).astype(np.float32) + np.float32(0.5 if half else 0.0)) * scale
    places = np.floor(exact + np.float32(0.5)) if align else np.floor(exact)
    within: np.ndarray = np.clip(places, 0, size - 1).astype(np.int64)
    return within


@writes("RESIZE_NEAREST_NEIGHBOR", to="Resize, Gather")
def nearest(graph: Graph, op: Op) -> None:
    """A whole factor as Resize; else by the indices of each axis, as runtimes round differently
    where a place lies between two others."""
    tensor, out = taken(op, 0), op.outputs[0]
    images(op, tensor)
    name = graph.real(tensor, NCHW)
    _coordinates(op)
    if all(
        big % size == 0 and np.array_equal(_places(op, size, big), np.arange(big) // (big // size))
        for size, big in zip(tensor.shape[1:3], out.shape[1:3], strict=True)
    ):
        factors = [b / s for s, b in zip(tensor.shape, out.shape, strict=True)]
        scales = graph.constant([factors[axis] for axis in NCHW], np.float32)
        settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        result = graph.emit("Resize", [name, "", scales], mode="nearest", **settings)
        return graph.give(out, result, NCHW)
    for place, axis in enumerate(NCHW[2:], start=2):
        places = _places(op, tensor.shape[axis], out.shape[axis])
        name = graph.emit("Gather", [name, graph.ints(places)], axis=place)
    graph.give(out, name, NCHW)
