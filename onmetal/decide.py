"""From trials and a budget to a choice: baseline, verdicts, ranking, Pareto set, reasons."""

import math
from collections.abc import Callable
from typing import Literal

from msgspec.structs import replace

from onmetal import report
from onmetal.budget import Budget
from onmetal.profilers import statistics
from onmetal.records import Trial
from onmetal.targets import EXACT, Chip, Target

Objective = Literal["latency", "throughput", "size", "memory", "energy", "accuracy-drop"]
TIMED: tuple[Objective, ...] = ("latency", "throughput", "energy")
"""Objectives of speed: an inexact candidate that is not better beyond noise has no point."""
MEMORY_NOISE = 0.02
"""Peaks of one artifact differ by this much from process to process: pages, allocators."""


def baseline(trials: list[Trial], model: str) -> Trial | None:
    """The fastest exact float candidate of the reference model; plan order where none was timed."""
    exact = [t for t in trials if t.recipe == EXACT and t.model == model and t.failure is None]
    timed = [t for t in exact if t.latency_ms is not None]
    if timed:
        return min(timed, key=lambda t: t.latency_ms.p50 if t.latency_ms else 0.0)
    return next((t for t in exact if t.candidate is not None), None)


def against(trials: list[Trial], base: Trial | None) -> list[Trial]:
    """Every timed trial with its speed-up over the baseline, from their paired rounds."""
    if base is None or base.rounds is None:
        return trials
    return [
        replace(t, versus_baseline=statistics.compare(base.rounds, t.rounds)) if t.rounds else t
        for t in trials
    ]


def value(trial: Trial, objective: Objective) -> float | None:
    """What is minimized; None where it is not known."""
    if objective == "latency":
        return trial.latency_ms.p50 if trial.latency_ms else None
    if objective == "throughput":
        return -trial.throughput_per_s.value if trial.throughput_per_s else None
    if objective == "size":
        return float(trial.candidate.size_bytes) if trial.candidate else None
    if objective == "memory":
        return trial.peak_memory_bytes.value if trial.peak_memory_bytes else None
    if objective == "energy":
        return trial.energy_mj.value if trial.energy_mj else None
    if trial.accuracy is not None:
        return trial.accuracy.drop
    return -min(trial.sqnr_db.values()) if trial.sqnr_db else None


def alike(trial: Trial, best: Trial, objective: Objective) -> bool:
    """Whether the trial cannot be told from the best."""
    if trial.name == best.name:
        return True
    if objective in ("latency", "throughput") and trial.rounds and best.rounds:
        found = statistics.compare(best.rounds, trial.rounds, mean=objective == "throughput")
        return found.verdict == "inconclusive"
    mine, other = value(trial, objective), value(best, objective)
    if mine is None or other is None:
        return False
    if objective == "memory":
        return mine <= other * (1 + MEMORY_NOISE)
    if objective == "accuracy-drop":
        return _within(other, trial) or _within(mine, best)
    return mine == other


def _within(drop: float, trial: Trial) -> bool:
    """Whether the interval of the trial's own accuracy drop holds another's."""
    if trial.accuracy is None or trial.accuracy.drop_ci95 is None:
        return value(trial, "accuracy-drop") == drop
    low, high = trial.accuracy.drop_ci95
    return low <= drop <= high


def ranking(
    fitting: list[Trial], objective: Objective, exactness: Callable[[str], int]
) -> list[Trial]:
    """Best first; among those not to be told from the best the most exact, then plan order."""
    left = [trial for trial in fitting if value(trial, objective) is not None]
    order = []
    while left:
        best = min(left, key=lambda t: value(t, objective) or 0.0)
        tied = [trial for trial in left if alike(trial, best, objective)]
        order.append(min(tied, key=lambda t: exactness(t.recipe)))
        left.remove(order[-1])
    return order


def objections(trial: Trial, budget: Budget, target: Target, higher_is_better: bool) -> list[str]:
    """Everything that speaks against a trial that ran: the budget, and what the hardware has."""
    found = budget.objections(trial, exact=trial.recipe == EXACT, higher_is_better=higher_is_better)
    found += trial.collapsed
    limits, candidate, memory = target.limits, trial.candidate, trial.peak_memory_bytes
    if limits.storage_kib and candidate and candidate.size_bytes > limits.storage_kib * 1024:
        found.append(
            f"size {candidate.size_bytes} bytes is over the target's {limits.storage_kib} KiB"
        )
    if limits.memory_kib and memory is None and trial.latency_ms:
        why = trial.missing.get("peak_memory_bytes", "no reason given")
        found.append(f"peak memory, which the target limits, was not measured ({why})")
    if target.chip:
        found += chip_objections(trial, target.chip)
    if limits.memory_kib and memory and memory.value > limits.memory_kib * 1024:
        found.append(f"peak memory {memory.value:.0f} bytes is over {limits.memory_kib} KiB")
    return found


def chip_objections(trial: Trial, chip: Chip) -> list[str]:
    """By how much a candidate is too large for the chip, and what to try."""
    found = []
    memory, flash = trial.peak_memory_bytes, (trial.embedded or {}).get("flash")
    room = (chip.ram_kib - chip.application_ram_kib) * 1024
    if memory and memory.value > room:
        over = int(memory.value) - room
        found.append(
            f"its arena of {memory.value:.0f} bytes is {over} bytes more than the {room} of RAM "
            f"that are there for it; try {_smaller(trial)}a smaller --input-shape, or a model with "
            "fewer channels in its first layers"
        )
    room = (chip.flash_kib - chip.application_flash_kib) * 1024
    if flash and flash["total_bytes"] > room:
        over = flash["total_bytes"] - room
        found.append(
            f"it needs {flash['total_bytes']} bytes of flash (weights {flash['weights_bytes']}, "
            f"graph {flash['graph_bytes']}, code about {flash['code_bytes']}), {over} bytes more "
            f"than the {room} that are there for it; try a smaller model"
        )
    return found


def _smaller(trial: Trial) -> str:
    if trial.recipe.startswith("int16"):
        return "int8, which halves it, "
    return "" if "split" in trial.recipe else "int8-split, "


def pareto(trials: list[Trial]) -> list[str]:
    """Names of those that no other beats in accuracy, median latency and size at once."""

    def cost(trial: Trial) -> tuple[float, float, float]:
        loss = value(trial, "accuracy-drop")
        return (
            math.inf if loss is None else loss,  # unknown is no merit
            trial.latency_ms.p50 if trial.latency_ms else math.inf,
            float(trial.candidate.size_bytes) if trial.candidate else math.inf,
        )

    ran = [
        t for t in trials if t.candidate is not None and t.failure is None and t.status != "skipped"
    ]
    costs = {trial.name: cost(trial) for trial in ran}

    def beaten(name: str) -> bool:
        mine = costs[name]
        return any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in costs.values()
        )

    return [name for name in costs if not beaten(name)]


def why_not(trial: Trial, chosen: Trial, objective: Objective) -> str:
    """Why a fitting trial was not chosen, in words."""
    if objective in ("latency", "throughput") and trial.rounds and chosen.rounds:
        found = statistics.compare(chosen.rounds, trial.rounds, mean=objective == "throughput")
        if found.verdict == "inconclusive":
            return (
                f"not to be told from {chosen.name} by {objective}, "
                "which is preferred as more exact or first in the plan"
            )
        return f"{found.verdict} than {chosen.name}: {found.speedup:.2f}x its speed"
    mine, other = value(trial, objective), value(chosen, objective)
    if mine is not None and other is not None and mine > other:
        show = report.size if objective in ("size", "memory") else "{:.4g}".format
        return f"more {objective} than {chosen.name}: {show(mine)} against {show(other)}"
    if mine is None:
        return f"its {objective} is not known"
    return f"no better than {chosen.name} by {objective}"
