"""ONNX Runtime's profile: its events, from this machine or a device, as shares of the time."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np

_INTEGER_OPERATORS = (
    "QLinear",
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantize",
    "QGemm",
    "QAttention",
)
_NAMES = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "double": "f64"}

Kernels = dict[str, tuple[dict[str, Any], float]]


def kernels(events: list[dict[str, Any]], runs: int) -> Kernels:
    """Name of a node -> its kernel's arguments in the profile, and the microseconds of one
    inference (the median of warm ones; of a kernel in a loop, all rounds together)."""
    kernel_events = [
        event
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    per_run = max(1, len(kernel_events) // runs)
    details: dict[str, dict[str, Any]] = {}
    durations: dict[str, Counter[int]] = {}
    for place, event in enumerate(kernel_events[runs // 2 * per_run :]):
        name = event["name"].removesuffix("_kernel_time")
        details[name] = event["args"]
        durations.setdefault(name, Counter())[place // per_run] += event["dur"]
    return {
        name: (details[name], float(np.median(list(by_run.values()))))
        for name, by_run in durations.items()
    }


def shares(found: Kernels) -> dict[str, Any]:
    """Shares of the operators' time by provider, by the type computed in, and by operator: of every
    kernel's median over the runs, since one interruption may last longer than many inferences."""
    providers: dict[str, float] = defaultdict(float)
    precisions: dict[str, float] = defaultdict(float)
    operators: dict[str, float] = defaultdict(float)
    for detail, us in found.values():
        providers[detail.get("provider") or "unknown"] += us
        precisions[_precision(detail)] += us
        operators[detail["op_name"]] += us
    total = sum(operators.values()) or 1.0
    return {
        "provider": _shares(providers, total),
        "precision": _shares(precisions, total),
        "operators": _shares(operators, total),
        "of": "operator time",
        "kernels": len(found),
    }


def _precision(detail: dict[str, Any]) -> str:
    if detail["op_name"].startswith(_INTEGER_OPERATORS):
        return "i8"
    kinds = [kind for entry in detail.get("output_type_shape", []) for kind in entry]
    return _NAMES.get(kinds[0], kinds[0]) if kinds else "unknown"


def _shares(durations: dict[str, float], total: float) -> dict[str, float]:
    largest = sorted(durations.items(), key=lambda entry: -entry[1])
    return {name: round(us / total, 4) for name, us in largest if us > 0}
