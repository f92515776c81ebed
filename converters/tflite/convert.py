"""ONNX to a float .tflite: lowered rule by rule, then tidied by passes. Runs in a child process."""

from importlib import import_module
from pathlib import Path

import onnx_ir as ir

from onmetal.converters.tflite import lowering, passes
from onmetal.converters.tflite.net import Net, write
from onmetal.errors import UnsupportedError, reason

FAMILIES = (
    "activation",
    "convolution",
    "elementwise",
    "indexing",
    "matrix",
    "norm",
    "pooling",
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
    model = ir.load(path)
    missing = lowering.check(model.graph)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UnsupportedError(missing[0] + more)
    try:
        net = lowering.Lowering(model.graph).lower()
    except UnsupportedError:
        raise
    except Exception as error:
        raise UnsupportedError(f"it cannot be lowered to TFLite: {reason(error)}") from error
    passes.tidy(net)
    return net


def to_float(path: str, folder: str) -> None:
    """Write `model.tflite` to the folder."""
    content = write(lower(Path(path)))
    (Path(folder) / "model.tflite").write_bytes(content)
