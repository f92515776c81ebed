"""What ONNX Runtime really ran, from its own profile: which provider, in which precision."""

import json
import re
import tempfile
import time
from collections import Counter, defaultdict
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
    """Shares of the operators' time by provider, by the type computed in, and by operator: of every
    kernel's median over the runs, since one interruption may last longer than many inferences."""
    providers: dict[str, float] = defaultdict(float)
    precisions: dict[str, float] = defaultdict(float)
    operators: dict[str, float] = defaultdict(float)
    kernels = _kernels(feed, files, options, inputs, outputs)
    for detail, us in kernels.values():
        providers[detail.get("provider") or "unknown"] += us
        precisions[_precision(detail)] += us
        operators[detail["op_name"]] += us
    total = sum(operators.values()) or 1.0
    return {
        "provider": _shares(providers, total),
        "precision": _shares(precisions, total),
        "operators": _shares(operators, total),
        "of": "operator time",
        "kernels": len(kernels),
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
) -> dict[str, tuple[dict[str, Any], float]]:
    """By name of its node: what the profiler says of a kernel, and the microseconds that it takes
    in an inference (the median of warm ones; in a loop, all rounds together)."""
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
    each = max(1, len(kernels) // runs)
    details: dict[str, dict[str, Any]] = {}
    spent: dict[str, Counter[int]] = {}
    for place, event in enumerate(kernels[runs // 2 * each :]):
        name = event["name"].removesuffix("_kernel_time")
        details[name] = event["args"]
        spent.setdefault(name, Counter())[place // each] += event["dur"]
    return {
        name: (details[name], float(np.median(list(taken.values()))))
        for name, taken in spent.items()
    }


def _precision(detail: dict[str, Any]) -> str:
    if detail["op_name"].startswith(_INTEGER_OPERATORS):
        return "i8"
    kinds = [kind for entry in detail.get("output_type_shape", []) for kind in entry]
    return _NAMES.get(kinds[0], kinds[0]) if kinds else "unknown"


def _shares(spent: dict[str, float], total: float) -> dict[str, float]:
    largest = sorted(spent.items(), key=lambda entry: -entry[1])
    return {name: round(us / total, 4) for name, us in largest if us > 0}
