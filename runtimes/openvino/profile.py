"""The kernels that OpenVINO really ran, by its own profile, and their precisions."""

import time
from collections import defaultdict
from typing import Any

import numpy as np

from onmetal.runtimes.openvino.session import Session

RUNS, SECONDS = 20, 5.0
"""As many inferences, and as many before them to warm up, as fit in the time."""
_NAMES = {"fp32": "f32", "fp16": "f16"}


def profile(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> dict[str, Any]:
    """Shares of the operators' time by the type computed in (the last word of a kernel's name, as
    in jit_avx512_FP32) and by operator."""
    _, kernels = _kernels(feed, files, options, inputs, outputs)
    precisions: dict[str, float] = defaultdict(float)
    operators: dict[str, float] = defaultdict(float)
    for entry, us in kernels:
        operators[entry.node_type] += us
        precisions[_precision(entry.exec_type)] += us
    total = sum(operators.values()) or 1.0
    return {
        "provider": {"CPU": 1.0},
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
    """Every kernel in the order of execution: the names of the file's nodes that it computes, and
    the microseconds of one inference."""
    session, kernels = _kernels(feed, files, options, inputs, outputs)
    origins = {}
    for node in session.compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        if "originalLayersNames" in facts:
            names = facts["originalLayersNames"]
            origins[node.get_friendly_name()] = str(
                names.astype(str) if hasattr(names, "astype") else names
            ).split(",")
    return [
        {"names": origins.get(entry.node_name) or [entry.node_name], "us": us}
        for entry, us in kernels
    ]


def _kernels(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> tuple[Session, list[tuple[Any, float]]]:
    """-> the session, and of every kernel that took time, its entry in the profile and the mean
    microseconds of warm inferences. (A median would be whole microseconds, as the clock has them.)
    """
    session = Session(files, {**options, "PERF_COUNT": True}, inputs, outputs)
    profiles: list[list[Any]] = []
    end = time.monotonic() + SECONDS
    while len(profiles) < 2 or (len(profiles) < 2 * RUNS and time.monotonic() < end):
        session.run(feed)
        profiles.append(list(session.request.profiling_info))
    kernel_times = []
    for runs in zip(*profiles[len(profiles) // 2 :], strict=True):
        times = np.sort([entry.real_time.total_seconds() * 1e6 for entry in runs])
        us = float(np.mean(times[: max(1, len(times) * 3 // 4)]))
        if us > 0:
            kernel_times.append((runs[0], us))
    return session, kernel_times


def _precision(kernel: str) -> str:
    last = kernel.rpartition("_")[2].lower()
    return _NAMES.get(last, last)


def _shares(us_by_name: dict[str, float], total: float) -> dict[str, float]:
    largest = sorted(us_by_name.items(), key=lambda entry: -entry[1])
    return {name: round(us / total, 4) for name, us in largest if us > 0}
