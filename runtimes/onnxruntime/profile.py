"""The operators that ONNX Runtime really ran, by its own profile: providers and precisions."""

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.runtimes.onnxruntime import events as ort_events
from onmetal.runtimes.onnxruntime.session import Session

RUNS, SECONDS = 20, 5.0
"""As many inferences, and as many before them to warm up, as fit in the time."""


def profile(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> dict[str, Any]:
    """Shares of the operators' time, as ort_events.shares gives them."""
    return ort_events.shares(_kernels(feed, files, options, inputs, outputs))


def layers(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> list[dict[str, Any]]:
    """Every kernel in the order of execution: the names that its node may have had in the file (or
    of its output), and the microseconds of one inference.

    The profiler's own cost, taken to be the time of the cheapest kernel, is subtracted.
    """
    kernels = _kernels(feed, files, options, inputs, outputs)
    least = min((us for _, us in kernels.values()), default=0.0)
    return [
        {"names": [name, _RENAMED.sub("", name)], "us": us - least}
        for name, (_, us) in kernels.items()
    ]


_RENAMED = re.compile(r"(_token_\d+|_nchwc|_nhwc|_quant)+$")
"""What ONNX Runtime appends to the name of a node that it replaces."""


def _kernels(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> ort_events.Kernels:
    with tempfile.TemporaryDirectory() as folder:
        options = {
            **options,
            "enable_profiling": True,
            "profile_file_prefix": str(Path(folder) / "p"),
        }
        session = Session(files, options, inputs, outputs)
        end = time.monotonic() + SECONDS
        runs = 0
        while runs < 2 or (runs < 2 * RUNS and time.monotonic() < end):
            session.run(feed)
            runs += 1
        events = json.loads(Path(session.session.end_profiling()).read_text())
    return ort_events.kernels(events, runs)
