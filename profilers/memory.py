"""Peak memory of a model: the process's peak, above what the loaded runtime itself takes."""

import base64
import gc
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.errors import DeviceError
from onmetal.profilers.tensor_bytes import runtime_options
from onmetal.runtimes import runtime, spec

IDENTITY = bytes.fromhex(
    "080812003a3e0a100a017812017922084964656e7469747912086964656e746974795a0f0a0178120a0a08080112"
    "040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)
"""An ONNX model, float32 x [1] -> y [1], one Identity operator (a test holds it against onnx)."""
TRIVIAL_TFLITE = (
    "eNptUTsKwkAQfeqiQYOmCGLhLWwtrKzEylLQgKsIGsEfegNLS0tP5lXi29kJLOKEx3zffLJ9ALPxZJCijx5SJIgRwYmh"
    "B8aAJ/Ei3s6uADVqKtY6aSrH0AItsBMwJDrEyR6v23yzWNl1dtmdhedqIuVE2suovquOpXddaupB/hbUP4qiaFAf8r09"
    "ZzuJp8JrB7cYej7u9poTS2KlPfbZNof2LLmp3BajFXAp00RtI5/nlMAfv0qMdM6Hu7pUpLeFt/r6rsyE/JtSGoz61iHv"
    "9jMrkZzb17+bq7OeZ787cR5I"
)
"""Such a model in TFLite, one ABS operator, deflated (a test holds it against the writer)."""


def trivial(name: str) -> bytes:
    """A model of one operator, which a runtime opens."""
    if spec(name).reads == "tflite":
        return zlib.decompress(base64.b64decode(TRIVIAL_TFLITE))
    return IDENTITY


def peak(
    name: str, feed: dict[str, np.ndarray], options: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, int]:
    """Open and run the artifact in this process, which has done nothing else. -> bytes.

    The baseline is the resident set after a model of one operator was opened and run by
    the same runtime with the same options: its libraries, thread pools and allocators are there.
    Linux only: the peak is the kernel's own high-water mark (VmHWM), reset in between.
    """
    if sys.platform != "linux":
        raise DeviceError("peak memory is read from /proc, which this system does not have")
    module, plain = runtime(name).session(), runtime_options(options)
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "trivial"
        small.write_bytes(trivial(name))
        module.Session([str(small)], plain, ["x"], ["y"]).run({"x": np.zeros(1, np.float32)})
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError as error:
        raise DeviceError(f"the kernel does not let the peak be reset ({error})") from None
    baseline = _status("VmRSS")
    files, inputs, outputs = (arguments[key] for key in ("files", "inputs", "outputs"))
    session = module.Session(files, options, inputs, outputs)
    for _ in range(5):
        session.run(feed)
    return {"baseline": baseline, "peak": _status("VmHWM")}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise DeviceError(f"/proc/self/status has no {field}")
