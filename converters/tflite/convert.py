"""Converts ONNX to a float .tflite file by rules and passes. Runs in a child process."""

import json
import re
from importlib import import_module
from pathlib import Path

import onnx_ir as ir

from onmetal.converters.tflite import lowering, qdq, quantize
from onmetal.converters.tflite.net import Net
from onmetal.converters.tflite.passes.order import tidy
from onmetal.converters.tflite.reference import interpreter
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError, reason

FAMILIES = (
    "activation",
    "convolution",
    "elementwise",
    "indexing",
    "matrix",
    "norm",
    "pooling",
    "qdq",
    "reduction",
    "reshape",
    "resize",
)
"""The modules that hold the rules."""

for _family in FAMILIES:
    import_module(f"onmetal.converters.tflite.{_family}")


def lower(path: Path) -> Net:
    """The TFLite graph of a static, simplified ONNX file; its inputs and outputs keep their layout.

    Raises UnsupportedError naming node, operator and attribute, before anything is written.
    """
    return _lowered(path)[0]


def _lowered(path: Path) -> tuple[Net, lowering.Lowering]:
    model = ir.load(path)
    missing = lowering.check(model.graph)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UnsupportedError(missing[0] + more)
    walk = lowering.Lowering(model.graph)
    try:
        net = walk.lower()
    except UnsupportedError:
        raise
    except Exception as error:
        subject = f"{walk.node.op_type} {walk.node.name!r}" if walk.node else "it"
        raise UnsupportedError(f"{subject} cannot be lowered to TFLite: {reason(error)}") from error
    net.tell_apart()  # a constant that is stored in several ways is several tensors
    ranges = qdq.absorb(net)
    tidy(net)
    if ranges:  # quantized already: integers by the scales that the model has
        qdq.spread(net, ranges)
        net = quantize.quantize(net, ranges, extremes={})
    _open(net, walk)
    return net, walk


def _open(net: Net, walk: lowering.Lowering) -> None:
    """Raises UnsupportedError, with the ONNX node, where LiteRT cannot open the converted file."""
    try:
        interpreter(write(net))
    except Exception as error:
        message, subject = reason(error), "it"
        number = re.search(r"Node number (\d+)", message)
        if number and int(number.group(1)) < len(net.ops):  # beyond are the delegates
            node = walk.makers.get(net.ops[int(number.group(1))].outputs[0])
            subject = f"{node.op_type} {node.name!r}" if node else subject
        raise UnsupportedError(
            f"{subject}: LiteRT cannot open the converted file: {message}"
        ) from None


def to_float(path: str, folder: str) -> None:
    """Write `model.tflite` to the folder, and to `makers.json` the ONNX node for which each of its
    tensors was written."""
    net, walk = _lowered(Path(path))
    nodes = {tensor.name: node for tensor, node in walk.makers.items() if node is not None}
    makers = {name: f"{node.op_type} {node.name or ''!r}" for name, node in nodes.items()}
    (Path(folder) / "makers.json").write_text(json.dumps(makers), "utf-8")
    (Path(folder) / "model.tflite").write_bytes(write(net))
