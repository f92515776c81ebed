"""The float graph that every quantized candidate of an ONNX model is made from."""

import json
from pathlib import Path
from typing import Any

import onnx

from onmetal.converters.onnx import floats, rules
from onmetal.converters.onnx.graph import Graph
from onmetal.runtimes import wrong_in_8_bits


def simplify(prepared: str, folder: str) -> dict[str, Any]:
    """Write `model.onnx` to `folder` as converters.onnx.floats does, whose result is returned, and
    to `exceptions.json` which of its nodes each runtime computes wrong in 8 bits."""
    facts = floats.simplify(prepared, folder)
    graph = Graph(onnx.load(str(Path(folder) / "model.onnx")))
    float_nodes = {
        name: rules.kept_float(graph, exceptions) for name, exceptions in wrong_in_8_bits().items()
    }
    (Path(folder) / "exceptions.json").write_text(json.dumps(float_nodes, sort_keys=True), "utf-8")
    return facts
