"""What OpenVINO really ran, from its own profile: which kernels, in which precision."""

from collections import Counter
from typing import Any

import numpy as np

from onmetal.profilers.run_openvino import Session

RUNS = 20
_NAMES = {"fp32": "f32", "fp16": "f16"}


def profile(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> dict[str, Any]:
    """Shares of the operators' time over RUNS inferences after as many to warm up, by the type
    computed in (the last word of the kernel's name: jit_avx512_FP32) and by operator."""
    session = Session(files, {**options, "PERF_COUNT": True}, inputs, outputs)
    precisions: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    kernels = 0
    for number in range(2 * RUNS):
        session.run(feed)
        if number < RUNS:
            continue
        for entry in session.request.profiling_info:
            spent = entry.real_time.total_seconds()
            kernels += spent > 0
            operators[entry.node_type] += spent
            precisions[_precision(entry.exec_type)] += spent
    total = sum(operators.values()) or 1
    return {
        "provider": {"CPU": 1.0},
        "precision": _shares(precisions, total),
        "operators": _shares(operators, total),
        "of": "operator time",
        "kernels": kernels // RUNS,
    }


def _precision(kernel: str) -> str:
    last = kernel.rpartition("_")[2].lower()
    return _NAMES.get(last, last)


def _shares(counts: Counter[str], total: float) -> dict[str, float]:
    return {name: round(spent / total, 4) for name, spent in counts.most_common() if spent > 0}
