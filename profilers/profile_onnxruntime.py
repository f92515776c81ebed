"""What ONNX Runtime really ran, from its own profile: which provider, in which precision."""

import json
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.profilers.run_onnxruntime import Session

RUNS, SECONDS = 20, 5.0
"""As many inferences, and as many before them to warm up, as fit in the time."""
_INTEGER_OPERATORS = (
    "QLinear",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantize",
    "QGemm",
    "QAttention",
)
_NAMES = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "double": "f64"}


def profile(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> dict[str, Any]:
    """Shares of the operators' time by provider, by the type computed in, and by operator."""
    kernels, runs = _kernels(feed, files, options, inputs, outputs)
    total = sum(event["dur"] for event in kernels) or 1
    providers: Counter[str] = Counter()
    precisions: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    for event in kernels:
        detail = event["args"]
        providers[detail.get("provider") or "unknown"] += event["dur"]
        precisions[_precision(detail)] += event["dur"]
        operators[detail["op_name"]] += event["dur"]
    return {
        "provider": _shares(providers, total),
        "precision": _shares(precisions, total),
        "operators": _shares(operators, total),
        "of": "operator time",
        "kernels": len(kernels) // runs,
    }


def layers(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> list[dict[str, Any]]:
    """Every kernel in the order of execution: the names that its node may have had in the file (or
    of the tensor that it gives), and the microseconds of one inference.

    The profiler's own cost, of which the cheapest kernel consists, is taken off.
    """
    kernels, runs = _kernels(feed, files, options, inputs, outputs)
    spent: dict[str, float] = {}
    for event in kernels:
        name = event["name"].removesuffix("_kernel_time")
        spent[name] = spent.get(name, 0.0) + event["dur"] / runs
    least = min(spent.values(), default=0.0)
    return [
        {"names": [name, _RENAMED.sub("", name)], "us": us - least} for name, us in spent.items()
    ]


_RENAMED = re.compile(r"(_token_\d+|_nchwc|_nhwc|_quant)+$")
"""What ONNX Runtime appends to the name of a node that it replaces."""


def _kernels(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> tuple[list[dict[str, Any]], int]:
    """The profiler's events of warm inferences, and how many inferences these are."""
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
    kernels = [
        event
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    each = len(kernels) // runs
    return kernels[runs // 2 * each :], runs - runs // 2


def _precision(detail: dict[str, Any]) -> str:
    if detail["op_name"].startswith(_INTEGER_OPERATORS):
        return "i8"
    kinds = [kind for entry in detail.get("output_type_shape", []) for kind in entry]
    return _NAMES.get(kinds[0], kinds[0]) if kinds else "unknown"


def _shares(counts: Counter[str], total: float) -> dict[str, float]:
    return {name: round(spent / total, 4) for name, spent in counts.most_common()}
