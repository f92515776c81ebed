"""Attributes of ONNX nodes for the rules, and the errors for nodes that are refused."""

from typing import Any

import onnx_ir as ir

from onmetal.errors import UnsupportedError

STANDARD = ("", "ai.onnx")


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    entry = node.attributes.get(name)
    return default if entry is None else entry.value


def refuse(node: ir.Node, reason: str) -> UnsupportedError:
    name = node.name or (node.outputs[0].name if node.outputs else "")
    return UnsupportedError(f"{node.op_type} {name!r}: {reason}")


def unknown(node: ir.Node) -> str:
    label = node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
    name = node.name or (node.outputs[0].name if node.outputs else "")
    text = f"{label} {name!r}: this operator is not supported in TFLite; see docs/tflite.md"
    if node.op_type != "NonMaxSuppression":
        return text
    read = ",".join(str(value.name) for value in node.inputs[:2] if value is not None)
    return f"{text}; --cut-at {read} leaves it out, and the boxes and scores are the outputs"
