"""Peak memory of a model: the process's peak, above what the loaded runtime itself takes."""

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.errors import DeviceError

IDENTITY = bytes.fromhex(
    "080812003a3e0a100a017812017922084964656e7469747912086964656e746974795a0f0a0178120a0a08080112"
    "040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)
"""An ONNX model, float32 x [1] -> y [1], one Identity operator (a test holds it against onnx)."""


def peak(
    module: Any, feed: dict[str, np.ndarray], options: dict[str, Any], arguments: dict[str, Any]
) -> dict[str, int]:
    """Open and run the artifact in this process, which has done nothing else. -> bytes.

    The baseline is the resident set after a model of one Identity operator was opened and run by
    the same runtime with the same options: its libraries, thread pools and allocators are there.
    Linux only: the peak is the kernel's own high-water mark (VmHWM), reset in between.
    """
    if sys.platform != "linux":
        raise DeviceError("peak memory is read from /proc, which this system has not")
    with tempfile.TemporaryDirectory() as folder:
        trivial = Path(folder) / "identity.onnx"
        trivial.write_bytes(IDENTITY)
        module.Session([str(trivial)], options, ["x"], ["y"]).run({"x": np.zeros(1, np.float32)})
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError as error:
        raise DeviceError(f"the kernel does not let the peak be reset ({error})") from None
    baseline = _status("VmRSS")
    session = module.Session(options=options, **arguments)
    for _ in range(5):
        session.run(feed)
    return {"baseline": baseline, "peak": _status("VmHWM")}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise DeviceError(f"/proc/self/status has no {field}")
