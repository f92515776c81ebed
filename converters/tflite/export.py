"""A .tflite file as ONNX, for the runtimes that read no other graph; in a child process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters import imported
from onmetal.converters.onnx.reference import Reference as OnnxReference
from onmetal.converters.tflite.ends import ends
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reader import count_quantized
from onmetal.converters.tflite.reference import Reference
from onmetal.converters.tflite.to_onnx.convert import to_onnx as converted

BY = "onmetal's own importer of TFLite"


def to_onnx(model: Path, folder: Path) -> dict[str, Any]:
    """As ModelFormat.export."""
    known = imported.as_graph(converted(model), BY, folder)
    tensors = ends(str(model))
    inputs, outputs = ([tensor["name"] for tensor in tensors[end]] for end in tensors)
    framework = Reference(model, inputs, outputs)
    graph = Dequantized(folder / "model.onnx", tensors["outputs"])
    exact = not count_quantized(read(model))
    known["imported"] = {
        "by": BY,
        **imported.compared(framework, graph, tensors, exact=exact),
    }
    return known


class Dequantized:
    """An ONNX graph that keeps the quantized outputs of a .tflite file, run with real numbers as
    its outputs, which LiteRT's reference gives too."""

    def __init__(self, path: Path, outputs: Sequence[dict[str, Any]]) -> None:
        self.outputs = outputs
        self.graph = OnnxReference(path, [tensor["name"] for tensor in outputs])

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [
            (array.astype(np.float32) - np.float32(tensor["zero_point"]))
            * np.float32(tensor["scale"])
            if tensor["scale"] and array.dtype.itemsize <= 2
            else array
            for array, tensor in zip(self.graph.run(feed), self.outputs, strict=True)
        ]
