"""TFLite's file format: read, lowered to from ONNX, quantized, checked, written."""

from importlib.metadata import version


def schema_version() -> str:
    """The version of the package whose schema is used to write files."""
    return version("ai-edge-litert")
