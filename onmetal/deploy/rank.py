"""From trials and a budget to a choice: baseline, verdicts, ranking, Pareto set, reasons.

Two trials are compared in one respect at a time, and differ in it only beyond its noise.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec.structs import replace

from onmetal.budget import Budget
from onmetal.profilers import statistics
from onmetal.records import Trial
from onmetal.reports import report
from onmetal.targets import EXACT, Chip, Target

Objective = Literal["latency", "throughput", "size", "memory", "energy", "accuracy-drop"]
TIMED: tuple[Objective, ...] = ("latency", "throughput", "energy")
"""Objectives of speed: an inexact candidate that is not better beyond noise has no point."""
NOISE = 0.02
"""Sizes, peaks of memory and energies without an interval are equal where they differ by no more:
headers and names of a file, pages and allocators of a process."""


def baseline(trials: list[Trial], model: str) -> Trial | None:
    """The fastest exact float candidate of the reference model, of those that were timed to the
    end; plan order where none was timed."""
    exact = [t for t in trials if t.recipe == EXACT and t.model == model and t.failure is None]
    most = max((t.latency_ms.rounds for t in exact if t.latency_ms), default=0)
    timed = [t for t in exact if t.latency_ms and t.latency_ms.rounds == most]
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
        drop = trial.accuracy.drop
        return None if drop is None or math.isnan(drop) else drop
    return -min(trial.sqnr_db.values()) if trial.sqnr_db else None


def better(mine: Trial, other: Trial, objective: Objective) -> bool:
    """Whether a trial is better than another in one respect, beyond noise. What is not known is
    better than nothing, and worse than all that is known.

    Speeds are compared by paired rounds alone: the figures of what was measured again are of
    another time, when the whole machine may have been slower.
    """
    own, others = value(mine, objective), value(other, objective)
    if own is None or others is None:
        return own is not None
    if objective in ("latency", "throughput") and mine.rounds and other.rounds:
        mean = objective == "throughput"
        if not statistics.speedup(other.rounds, mine.rounds, mean=mean) > 1:
            return False
        return statistics.compare(other.rounds, mine.rounds, mean=mean).verdict == "faster"
    if own >= others:
        return False
    if objective == "accuracy-drop":
        return not (_within(own, other) or _within(others, mine))
    if objective == "energy" and mine.energy_mj and other.energy_mj:
        one, two = mine.energy_mj.ci95, other.energy_mj.ci95
        if one and two:
            return one[1] < two[0]
    return abs(others - own) > NOISE * abs(own)


def _within(drop: float, trial: Trial) -> bool:
    """Whether the interval of the trial's own accuracy drop holds another's."""
    if trial.accuracy is None or trial.accuracy.drop_ci95 is None:
        return value(trial, "accuracy-drop") == drop
    low, high = trial.accuracy.drop_ci95
    return low <= drop <= high


def alike(trial: Trial, best: Trial, objective: Objective) -> bool:
    """Whether the trial cannot be distinguished from the best by what is minimized."""
    if trial.name == best.name:
        return True
    return value(trial, objective) is not None and not better(best, trial, objective)


# --- which is better in all


def dominates(mine: Trial, other: Trial, target: Target) -> bool:
    """Whether a trial is at least as good as another in everything (the budget, exactness,
    accuracy, size, memory, energy, latency, throughput) and better in something, beyond noise.

    A difference of latency or throughput counts only beyond noise.
    """
    if (mine.status == "over-budget") > (other.status == "over-budget"):
        return False
    if _dynamic(mine, target) and not _dynamic(other, target) and mine.latency_ms is None:
        return False  # how fast it is, which is what integers are for, is not known
    ranks = target.exactness(mine.recipe), target.exactness(other.recipe)
    still: tuple[Objective, ...] = ("accuracy-drop", "size", "memory", "energy")
    if ranks[0] > ranks[1] or any(_cost(mine, one) > _cost(other, one) for one in still):
        return False
    speeds: tuple[Objective, ...] = ("latency", "throughput")
    if any(better(other, mine, speed) for speed in speeds):
        return False
    lossless = _cost(mine, "accuracy-drop") < _cost(other, "accuracy-drop")
    costs = (*still[1:], *speeds)
    return ranks[0] < ranks[1] or lossless or any(better(mine, other, cost) for cost in costs)


def _cost(trial: Trial, objective: Objective) -> float:
    """What is not known is no merit."""
    known = value(trial, objective)
    return math.inf if known is None else known


def front(trials: Sequence[Trial], target: Target) -> list[Trial]:
    """Those that none dominates. Noise makes circles possible, in which each dominates the next:
    of those, all stay, unless one from outside dominates any of them."""
    dominators = {
        t.name: [o.name for o in trials if o.name != t.name and dominates(o, t, target)]
        for t in trials
    }
    above = {name: _reached(name, dominators) for name in dominators}
    return [t for t in trials if all(t.name in above[name] for name in above[t.name])]


def _reached(name: str, dominators: dict[str, list[str]]) -> set[str]:
    """All that dominate it, directly or through others."""
    reached: set[str] = set()
    waiting = list(dominators[name])
    while waiting:
        other = waiting.pop()
        if other not in reached:
            reached.add(other)
            waiting += dominators[other]
    return reached


def pareto(trials: list[Trial], target: Target) -> list[str]:
    """Names of the tried candidates that none dominates."""
    tried = [
        t for t in trials if t.candidate is not None and t.failure is None and t.status != "skipped"
    ]
    return [trial.name for trial in front(tried, target)]


# --- which one is chosen


def ranking(fitting: list[Trial], objective: Objective, target: Target) -> Iterator[Trial]:
    """Best first. Among those that cannot be distinguished from the best by what is minimized, the
    most exact, then plan order; none that another one dominates comes before it.

    Of equal sizes the fastest; where nothing was timed, what needs the least of the chip, and
    integers from end to end before dynamic ranges, which few chips compute fast.
    """
    left = [trial for trial in fitting if value(trial, objective) is not None]
    while left:
        best = min(left, key=lambda t: value(t, objective) or 0.0)
        tied = [trial for trial in left if alike(trial, best, objective)]
        if objective == "size":
            tied = _of_equal_size(tied, target)
        names = {trial.name for trial in front(left, target)}
        undominated = [trial for trial in tied if trial.name in names]
        if undominated:
            pick = min(undominated, key=lambda t: target.exactness(t.recipe))
        else:  # noise is no ranking: what dominates the best may be worse than it beyond noise
            rest = [trial for trial in left if trial.name in names]
            pick = min(rest, key=lambda t: value(t, objective) or 0.0)
        yield pick
        left = [trial for trial in left if trial.name != pick.name]


def _of_equal_size(tied: list[Trial], target: Target) -> list[Trial]:
    if any(trial.rounds for trial in tied):
        return _least(tied, "latency")
    for cost in ("latency", "memory") if target.npu else ("memory",):
        tied = _least(tied, cost)  # of an NPU, latency is what Vela models of its cycles
    return [trial for trial in tied if not _dynamic(trial, target)] or tied


def _dynamic(trial: Trial, target: Target) -> bool:
    """Whether its activations are floats between its operators."""
    return target.recipe(trial.recipe, trial.runtime).quantized_by in ("dynamic", "weights")


def _least(tied: list[Trial], objective: Objective) -> list[Trial]:
    """Those that cannot be distinguished from the best in one respect; all, where it is unknown."""
    known = [trial for trial in tied if value(trial, objective) is not None]
    if not known:
        return tied
    best = min(known, key=lambda t: value(t, objective) or 0.0)
    return [trial for trial in known if alike(trial, best, objective)]


# --- what speaks against one


def objections(trial: Trial, budget: Budget, target: Target, higher_is_better: bool) -> list[str]:
    """Everything that speaks against a trial that ran: the budget, and what the hardware has."""
    found = budget.objections(trial, higher_is_better=higher_is_better)
    found += _unlike(trial, budget)
    limits, candidate, memory = target.limits, trial.candidate, trial.peak_memory_bytes
    if limits.storage_kib and candidate and candidate.size_bytes > limits.storage_kib * 1024:
        found.append(
            f"size {candidate.size_bytes} bytes is over the {limits.storage_kib * 1024} bytes "
            f"({limits.storage_kib} KiB) of the target"
        )
    if limits.memory_kib and memory is None and trial.latency_ms:
        why = trial.missing.get("peak_memory_bytes", "no reason given")
        found.append(f"peak memory, which the target limits, was not measured ({why})")
    if target.chip:
        found += chip_objections(trial, target.chip)
    if limits.memory_kib and memory and memory.value > limits.memory_kib * 1024:
        found.append(
            f"peak memory {memory.value:.0f} bytes is over the {limits.memory_kib * 1024} bytes "
            f"({limits.memory_kib} KiB) of the target"
        )
    return found


def likeness_objections(trial: Trial, budget: Budget, higher_is_better: bool) -> list[str]:
    """What speaks against its outputs alone."""
    return [*budget.accuracy_objections(trial, higher_is_better), *_unlike(trial, budget)]


def _unlike(trial: Trial, budget: Budget) -> list[str]:
    found = []
    if budget.max_accuracy_drop is not None and trial.recipe != EXACT:
        if trial.accuracy is None and not trial.sqnr_db and not trial.equal:
            found.append("neither accuracy nor fidelity is known")
        found += trial.unlike
    return [*found, *trial.collapsed]


def does_not_pay(trial: Trial, base: Trial | None, objective: Objective) -> str | None:
    """Why an inexact candidate has no point beside the baseline, where speed or energy is the aim;
    judged by what is minimized."""
    if objective not in TIMED or trial.recipe == EXACT or base is None:
        return None
    if trial.name == base.name or value(base, objective) is None:
        return None
    if better(trial, base, objective):
        return None
    how = "worse than" if better(base, trial, objective) else "no better, beyond noise, than"
    return f"its {objective} is {how} that of {base.name}, which is exact"


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


def why_not(trial: Trial, chosen: Trial, objective: Objective, target: Target) -> str:
    """Why a fitting trial was not chosen, in words."""
    if objective in ("latency", "throughput") and trial.rounds and chosen.rounds:
        versus = statistics.compare(chosen.rounds, trial.rounds, mean=objective == "throughput")
        if versus.verdict != "inconclusive":
            return f"{versus.verdict} than {chosen.name}: {versus.speedup:.2f}x its speed"
        low, high = versus.ci95
        return (
            f"no measurable difference in {objective} from {chosen.name} "
            f"({versus.speedup:.2f}x its speed [{low:.2f}, {high:.2f}]), which "
            f"{_preferred(trial, chosen, target)}"
        )
    mine, other = value(trial, objective), value(chosen, objective)
    if mine is None or other is None:
        return f"its {objective} is not known"
    show = report.size if objective in ("size", "memory") else "{:.4g}".format
    if better(chosen, trial, objective):
        what = "larger than" if objective == "size" else f"more {objective} than"
        return f"{what} {chosen.name}: {show(mine)} against {show(other)}"
    return (
        f"no real difference in {objective} from {chosen.name} ({show(mine)} against "
        f"{show(other)}), which {_preferred(trial, chosen, target)}"
    )


def _preferred(trial: Trial, chosen: Trial, target: Target) -> str:
    """What speaks for the chosen one of two that are equal in what is minimized."""
    if target.exactness(chosen.recipe) < target.exactness(trial.recipe):
        return "is more exact"
    costs: tuple[Objective, ...] = ("latency", "memory", "size", "energy")
    for cost in costs:
        if value(trial, cost) is not None and better(chosen, trial, cost):
            return f"has less {cost}" if cost != "latency" else "is faster"
    if _dynamic(trial, target) and not _dynamic(chosen, target):
        return "computes with integers from end to end"
    return "comes first in the plan"
