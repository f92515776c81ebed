"""What OpenVINO really ran, from its own profile: which kernels, in which precision."""

import time
from collections import Counter
from typing import Any

import numpy as np

from onmetal.profilers.run_openvino import Session

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
    _, counted = _counted(feed, files, options, inputs, outputs)
    precisions: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    for entry in (entry for infos in counted for entry in infos):
        spent = entry.real_time.total_seconds()
        operators[entry.node_type] += spent
        precisions[_precision(entry.exec_type)] += spent
    kernels = sum(entry.real_time.total_seconds() > 0 for entry in counted[-1])
    total = sum(operators.values()) or 1
    return {
        "provider": {"CPU": 1.0},
        "precision": _shares(precisions, total),
        "operators": _shares(operators, total),
        "of": "operator time",
        "kernels": kernels,
    }


def layers(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> list[dict[str, Any]]:
    """Every kernel in the order of execution: the names of the file's nodes that it does the work
    of, and the microseconds of one inference."""
    session, counted = _counted(feed, files, options, inputs, outputs)
    origins = {}
    for node in session.compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        if "originalLayersNames" in facts:
            said = facts["originalLayersNames"]
            origins[node.get_friendly_name()] = str(
                said.astype(str) if hasattr(said, "astype") else said
            ).split(",")
    spent: Counter[str] = Counter()
    for entry in (entry for infos in counted for entry in infos):
        spent[entry.node_name] += entry.real_time.total_seconds() * 1e6 / len(counted)
    return [
        {"names": origins.get(name) or [name], "us": us} for name, us in spent.items() if us > 0
    ]


def _counted(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> tuple[Session, list[list[Any]]]:
    """The session, and its profile of each of some warm inferences."""
    session = Session(files, {**options, "PERF_COUNT": True}, inputs, outputs)
    taken: list[list[Any]] = []
    end = time.monotonic() + SECONDS
    while len(taken) < 2 or (len(taken) < 2 * RUNS and time.monotonic() < end):
        session.run(feed)
        taken.append(list(session.request.profiling_info))
    return session, taken[len(taken) // 2 :]


def _precision(kernel: str) -> str:
    last = kernel.rpartition("_")[2].lower()
    return _NAMES.get(last, last)


def _shares(counts: Counter[str], total: float) -> dict[str, float]:
    return {name: round(spent / total, 4) for name, spent in counts.most_common() if spent > 0}
