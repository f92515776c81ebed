"""From trials and a budget to a choice: baseline, verdicts, ranking, Pareto set, reasons.

Two trials are compared by one cost at a time. Their values count as different only where the
difference is larger than the noise of that cost.
"""

import math
from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from onmetal import costs
from onmetal.budget import Budget
from onmetal.costs import Cost
from onmetal.profilers import intervals
from onmetal.records import Trial, Versus
from onmetal.targets import EXACT, Chip, Target


def baseline(trials: list[Trial], model: str) -> Trial | None:
    """The fastest exact float candidate of the reference model among those with the most timed
    rounds; the first one in plan order where none was timed."""
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
        replace(t, versus_baseline=intervals.compare(base.rounds, t.rounds)) if t.rounds else t
        for t in trials
    ]


def better(trial: Trial, rival: Trial, cost: Cost) -> bool:
    """Whether `trial` is better than `rival` by one cost, beyond noise. A trial without
    a value is never better; one with a value is better than one without.

    Speeds are compared by paired rounds alone: figures that were measured again are from another
    time, when the whole machine may have been slower.
    """
    trial_value, rival_value = cost.minimized(trial), cost.minimized(rival)
    if trial_value is None or rival_value is None:
        return trial_value is not None
    if cost.paired and trial.rounds and rival.rounds:
        mean = cost.by_means
        if not intervals.speedup(rival.rounds, trial.rounds, mean=mean) > 1:
            return False
        return intervals.compare(rival.rounds, trial.rounds, mean=mean).verdict == "faster"
    if trial_value >= rival_value:
        return False
    if cost.noise == "interval of the drop":
        return not (_within(trial_value, rival) or _within(rival_value, trial))
    if cost.noise == "interval":
        own, other = _interval(trial, cost), _interval(rival, cost)
        if own and other:
            return own[1] < other[0]
    return abs(rival_value - trial_value) > costs.RELATIVE * abs(trial_value)


def _interval(trial: Trial, cost: Cost) -> tuple[float, float] | None:
    """The 95 % interval of the value that is minimized (negated where more is better), the lower
    end first; None where the trial has no interval."""
    figure = trial.figures.get(cost.key)
    if figure is None or figure.ci95 is None:
        return None
    low, high = figure.ci95
    return (-high, -low) if cost.more_is_better else (low, high)


def _within(drop: float, trial: Trial) -> bool:
    """Whether the interval of the trial's accuracy drop contains `drop`, that of another trial."""
    if trial.accuracy is None or trial.accuracy.drop_ci95 is None:
        return costs.DROP.of(trial) == drop
    low, high = trial.accuracy.drop_ci95
    return low <= drop <= high


def alike(trial: Trial, best: Trial, cost: Cost) -> bool:
    """Whether the trial cannot be distinguished from the best one by this cost."""
    if trial.name == best.name:
        return True
    return cost.of(trial) is not None and not better(best, trial, cost)


def latest(base: Trial, chosen: Trial, cost: Cost) -> Versus | None:
    """The speed-up of the chosen trial over the baseline, from the blocks that were measured again
    where both were; None where rounds are missing."""
    chosen_rounds, base_rounds = chosen.rounds, base.rounds
    if {chosen.name, base.name} <= chosen.again.keys():
        chosen_rounds, base_rounds = chosen.again[chosen.name], chosen.again[base.name]
    return (
        intervals.compare(base_rounds, chosen_rounds, mean=cost.by_means)
        if chosen_rounds and base_rounds
        else None
    )


# --- dominance over all costs


def dominates(trial: Trial, rival: Trial, target: Target) -> bool:
    """Whether a trial is at least as good as another in everything (the budget, exactness,
    accuracy and every cost that is a goal) and better in something, beyond noise.

    A difference of latency or throughput counts only beyond noise.
    """
    if (trial.status == "over-budget") > (rival.status == "over-budget"):
        return False
    if _dynamic(trial, target) and not _dynamic(rival, target) and trial.latency_ms is None:
        return False  # its speed, the purpose of integers, is not known
    ranks = target.exactness(trial.recipe), target.exactness(rival.recipe)
    unpaired_costs = [cost for cost in costs.GOALS if not cost.paired]
    if ranks[0] > ranks[1] or any(
        _least(trial, one) > _least(rival, one) for one in unpaired_costs
    ):
        return False
    if any(better(rival, trial, cost) for cost in costs.GOALS if cost.paired):
        return False
    lossless = _least(trial, costs.DROP) < _least(rival, costs.DROP)
    costs_besides_drop = [cost for cost in costs.GOALS if cost is not costs.DROP]
    return (
        ranks[0] < ranks[1]
        or lossless
        or any(better(trial, rival, cost) for cost in costs_besides_drop)
    )


def _least(trial: Trial, cost: Cost) -> float:
    """The value that is minimized; infinity where it is not known."""
    value = cost.minimized(trial)
    return math.inf if value is None else value


def front(trials: Sequence[Trial], target: Target) -> list[Trial]:
    """The trials that no other trial dominates. Noise makes cycles possible, in which each trial
    dominates the next one: all trials of a cycle stay, unless one from outside of it dominates
    any of them."""
    dominators = {
        t.name: [o.name for o in trials if o.name != t.name and dominates(o, t, target)]
        for t in trials
    }
    above = {name: _reached(name, dominators) for name in dominators}
    return [t for t in trials if all(t.name in above[name] for name in above[t.name])]


def _reached(name: str, dominators: dict[str, list[str]]) -> set[str]:
    """The names of all trials that dominate the named one, directly or through other trials.

    `dominators`: name of a trial -> the names of those that dominate it directly.
    """
    reached: set[str] = set()
    waiting = list(dominators[name])
    while waiting:
        dominator = waiting.pop()
        if dominator not in reached:
            reached.add(dominator)
            waiting += dominators[dominator]
    return reached


def pareto(trials: list[Trial], target: Target) -> list[str]:
    """Names of the tried candidates that none dominates."""
    tried = [
        t for t in trials if t.candidate is not None and t.failure is None and t.status != "skipped"
    ]
    return [trial.name for trial in front(tried, target)]


# --- the order of choice


def ranking(fitting: list[Trial], goal: Cost, target: Target) -> Iterator[Trial]:
    """Best first. Among those that cannot be distinguished from the best by what is minimized, the
    most exact, then plan order; none that another one dominates comes before it.

    Of equal sizes the fastest; where nothing was timed, what needs the least of the chip, and
    integers from end to end before dynamic ranges, which few chips compute fast.
    """
    remaining = [trial for trial in fitting if goal.of(trial) is not None]
    while remaining:
        best = min(remaining, key=lambda t: _least(t, goal))
        tied = [trial for trial in remaining if alike(trial, best, goal)]
        if goal.stands_in:
            tied = _of_equal_size(tied, target)
        names = {trial.name for trial in front(remaining, target)}
        undominated = [trial for trial in tied if trial.name in names]
        if undominated:
            pick = min(undominated, key=lambda t: target.exactness(t.recipe))
        else:  # trials that are not tied with the best one dominate all tied ones
            leaders = [trial for trial in remaining if trial.name in names]
            pick = min(leaders, key=lambda t: _least(t, goal))
        yield pick
        remaining = [trial for trial in remaining if trial.name != pick.name]


def _of_equal_size(tied: list[Trial], target: Target) -> list[Trial]:
    if any(trial.rounds for trial in tied):
        return _best(tied, costs.LATENCY)
    for cost in (costs.LATENCY, costs.MEMORY) if target.npu else (costs.MEMORY,):
        tied = _best(tied, cost)  # of an NPU, latency is what Vela models of its cycles
    return [trial for trial in tied if not _dynamic(trial, target)] or tied


def _dynamic(trial: Trial, target: Target) -> bool:
    """Whether activations between operators are floats: a dynamic-range or weight-only recipe."""
    return target.recipe(trial.recipe, trial.runtime).quantized_by in ("dynamic", "weights")


def _best(tied: list[Trial], cost: Cost) -> list[Trial]:
    """The trials that cannot be distinguished from the best one by this cost; all of them where
    the cost of none is known."""
    known = [trial for trial in tied if cost.of(trial) is not None]
    if not known:
        return tied
    best = min(known, key=lambda t: _least(t, cost))
    return [trial for trial in known if alike(trial, best, cost)]


# --- objections to one candidate


def objections(trial: Trial, budget: Budget, target: Target, higher_is_better: bool) -> list[str]:
    """The reasons against a trial that ran: limits of the budget and of the target's hardware."""
    reasons = budget.objections(trial, higher_is_better=higher_is_better)
    reasons += _unlike(trial, budget)
    limits, candidate, memory_bytes = target.limits, trial.candidate, costs.MEMORY.of(trial)
    if limits.storage_kib and candidate and candidate.size_bytes > limits.storage_kib * 1024:
        reasons.append(
            f"size {candidate.size_bytes} bytes is over the {limits.storage_kib * 1024} bytes "
            f"({limits.storage_kib} KiB) of the target"
        )
    if limits.memory_kib and memory_bytes is None and trial.latency_ms:
        why = costs.MEMORY.why_missing(trial)
        reasons.append(f"peak memory, which the target limits, was not measured ({why})")
    if target.chip:
        reasons += _chip_objections(trial, target.chip, target)
    if limits.memory_kib and memory_bytes and memory_bytes > limits.memory_kib * 1024:
        reasons.append(
            f"peak memory {memory_bytes:.0f} bytes is over the {limits.memory_kib * 1024} bytes "
            f"({limits.memory_kib} KiB) of the target"
        )
    return reasons


def likeness_objections(trial: Trial, budget: Budget, higher_is_better: bool) -> list[str]:
    """The reasons against a trial that follow from its outputs: accuracy and fidelity."""
    return [*budget.accuracy_objections(trial, higher_is_better), *_unlike(trial, budget)]


def _unlike(trial: Trial, budget: Budget) -> list[str]:
    reasons = []
    if budget.max_accuracy_drop is not None and trial.recipe != EXACT:
        if trial.accuracy is None and not trial.sqnr_db and not trial.equal:
            reasons.append("neither accuracy nor fidelity is known")
        reasons += trial.unlike
    return [*reasons, *trial.collapsed]


def does_not_pay(trial: Trial, base: Trial | None, goal: Cost) -> str | None:
    """Why an inexact candidate has no point beside the baseline, where speed or energy is the aim;
    judged by what is minimized."""
    if not goal.must_pay or trial.recipe == EXACT or base is None:
        return None
    if trial.name == base.name or goal.of(base) is None:
        return None
    if better(trial, base, goal):
        return None
    how = "worse than" if better(base, trial, goal) else "no better, beyond noise, than"
    return f"its {goal.name} is {how} that of {base.name}, which is exact"


def _chip_objections(trial: Trial, chip: Chip, target: Target) -> list[str]:
    """By how much a candidate is too large for the chip, and what to try."""
    reasons = []
    memory_bytes, flash = costs.MEMORY.of(trial), (trial.embedded or {}).get("flash")
    room = (chip.ram_kib - chip.application_ram_kib) * 1024
    if memory_bytes and memory_bytes > room:
        over = int(memory_bytes) - room
        reasons.append(
            f"its arena of {memory_bytes:.0f} bytes is {over} bytes more than the {room} of RAM "
            f"that are there for it; try {_smaller(trial, target)}a smaller --input-shape, or "
            "a model with fewer channels in its first layers"
        )
    room = (chip.flash_kib - chip.application_flash_kib) * 1024
    if flash and flash["total_bytes"] > room:
        over = flash["total_bytes"] - room
        reasons.append(
            f"it needs {flash['total_bytes']} bytes of flash (weights {flash['weights_bytes']}, "
            f"graph {flash['graph_bytes']}, code about {flash['code_bytes']}), {over} bytes more "
            f"than the {room} that are there for it; try a smaller model"
        )
    return reasons


def _smaller(trial: Trial, target: Target) -> str:
    """The recipes of the target that need a smaller arena, in words that precede other advice."""
    recipe = target.recipe(trial.recipe, trial.runtime)
    smaller = [known for known in target.recipes if known.quantized_by == "static"]
    if recipe.compute == "i16":
        halves = [known.name for known in smaller if known.compute == "i8"]
        return f"{halves[0]}, which halves it, " if halves else ""
    splits = (
        [] if recipe.does("split") else [known.name for known in smaller if known.does("split")]
    )
    return f"{splits[0]}, " if splits else ""


def why_not(trial: Trial, chosen: Trial, goal: Cost, target: Target) -> str:
    """Why a fitting trial was not chosen, in words."""
    if goal.paired and trial.rounds and chosen.rounds:
        versus = intervals.compare(chosen.rounds, trial.rounds, mean=goal.by_means)
        if versus.verdict != "inconclusive":
            return f"{versus.verdict} than {chosen.name}: {versus.speedup:.2f}x its speed"
        low, high = versus.ci95
        return (
            f"no measurable difference in {goal.name} from {chosen.name} "
            f"({versus.speedup:.2f}x its speed [{low:.2f}, {high:.2f}]), which "
            f"{_preferred(trial, chosen, target)}"
        )
    trial_value, chosen_value = goal.of(trial), goal.of(chosen)
    if trial_value is None or chosen_value is None:
        return f"its {goal.name} is not known"
    figures = f"{goal.figure(trial_value)} against {goal.figure(chosen_value)}"
    if better(chosen, trial, goal):
        return f"{goal.comparison.format(name=goal.name)} {chosen.name}: {figures}"
    preferred = _preferred(trial, chosen, target)
    return f"no real difference in {goal.name} from {chosen.name} ({figures}), which {preferred}"


def _preferred(trial: Trial, chosen: Trial, target: Target) -> str:
    """Why the chosen trial is preferred to another one that is equal in the cost minimized."""
    if target.exactness(chosen.recipe) < target.exactness(trial.recipe):
        return "is more exact"
    for cost, merit in costs.MERITS:
        if cost.of(trial) is not None and better(chosen, trial, cost):
            return merit
    if _dynamic(trial, target) and not _dynamic(chosen, target):
        return "computes with integers from end to end"
    return "comes first in the plan"
