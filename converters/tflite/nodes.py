"""ONNX nodes as rules read them: their attributes, and the errors for those that are refused."""

from typing import Any

import onnx_ir as ir

from onmetal.errors import UnsupportedError

STANDARD = ("", "ai.onnx")


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    given = node.attributes.get(name)
    return default if given is None else given.value


def refuse(node: ir.Node, why: str) -> UnsupportedError:
    name = node.name or (node.outputs[0].name if node.outputs else "")
    return UnsupportedError(f"{node.op_type} {name!r}: {why}")


def unknown(node: ir.Node) -> str:
    label = node.op_type if node.domain in STANDARD else f"{node.domain}.{node.op_type}"
    name = node.name or (node.outputs[0].name if node.outputs else "")
    return f"{label} {name!r}: this operator is not supported in TFLite; see docs/tflite.md"
