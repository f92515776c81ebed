"""Chooses a trial: judges by the budget, ranks, and measures the best one again to confirm it."""

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal import costs
from onmetal.budget import Budget
from onmetal.costs import Cost
from onmetal.deploy import rank
from onmetal.deploy.confirm import confirm
from onmetal.deploy.context import Run, Standing, Task
from onmetal.deploy.measure import with_figures
from onmetal.deploy.trials import usable
from onmetal.profilers import intervals
from onmetal.profilers.measure import Settled
from onmetal.records import Rounds, Trial
from onmetal.targets import EXACT

FAR_BEHIND = 0.9
"""A candidate with less than this part of another one's speed, beyond noise, is timed no
further."""


def resolve(task: Task, reference: str, value: float | None) -> Budget:
    """The budget in base units. `reference`: the stem of the reference model; `value`: its value of
    the metric."""
    original = next(entry for entry in task.models if entry.stem == reference)
    return task.request.budget.resolve(
        original,
        proportion=task.metric.proportion if task.metric else True,
        float_value=value,
    )


def objective(task: Task) -> Cost:
    """The cost that decides: the one that --minimize names, or a stand-in (size) where there is no
    device, or only an emulated one, whose timings mean nothing."""
    requested = costs.goal(task.request.minimize)
    known = requested.needs == "nothing" or (requested.known_on_chips and task.target.micro)
    return requested if known or task.timed else costs.stand_in()


def settled(task: Task, budget: Budget, trials: Sequence[Trial], reference: str) -> Settled | None:
    """A function that names the candidates which are timed no further: those that are so much
    slower than one that fits the budget that no further round changes the choice. None where
    speed does not decide.

    The fastest exact candidate is timed to the end: it is the baseline.
    """
    goal = objective(task)
    if not goal.paired:
        return None
    higher = task.metric.higher_is_better if task.metric else True
    left_out = {entry.name for entry in task.planned if entry.reference_only}

    def far_behind(rounds: dict[str, Rounds]) -> set[str]:
        timed = sorted(
            (replace(trial, rounds=rounds[trial.name]) for trial in trials if trial.name in rounds),
            key=_median_ns,
        )
        base = next((t for t in timed if t.recipe == EXACT and t.model == reference), None)
        fitting = (t for t in timed if t.name not in left_out)
        best = next((t for t in fitting if _fits(_with_figures(t), budget, task, higher)), None)
        behind = {t.name for t in timed if best and _far_behind(t, best, goal)}
        return behind - ({base.name} if base else set())

    return far_behind


def _far_behind(trial: Trial, best: Trial, goal: Cost) -> bool:
    if trial.rounds is None or best.rounds is None or trial.name == best.name:
        return False
    versus = intervals.compare(best.rounds, trial.rounds, mean=goal.by_means)
    return versus.verdict == "slower" and versus.speedup < FAR_BEHIND


def _median_ns(trial: Trial) -> float:
    assert trial.rounds
    return float(np.median(np.concatenate(list(trial.rounds.samples_ns.values()))))


def _with_figures(trial: Trial) -> Trial:
    assert trial.rounds and trial.candidate
    return with_figures(trial, trial.rounds, trial.candidate.model.batch, emulated=False)


class Choice(Struct, frozen=True):
    """The outcome of `choose`."""

    standing: Standing
    """Every trial with its verdict and status."""
    base: Trial | None
    """The baseline."""
    chosen: Trial | None
    """None: nothing meets the budget."""


def choose(run: Run, standing: Standing, budget: Budget, reference: str) -> Choice:
    """`reference`: the stem of the model that the others are compared with."""
    task, trials = run.task, list(standing.trials)
    base = rank.baseline(trials, reference)
    if task.timed:  # ratios of an emulator's timings mean nothing
        trials = rank.against(trials, base)
    base = next((t for t in trials if base and t.name == base.name), None)
    if task.device is None:
        trials = [_unmeasured(trial, "unmeasured: no device was given") for trial in trials]
    elif task.counted:
        trials = [_unmeasured(trial, INSTRUCTIONS) for trial in trials]
    higher = task.metric.higher_is_better if task.metric else True
    left_out = {entry.name for entry in task.planned if entry.reference_only}
    trials = [_weigh(task, trial, budget, higher, left_out) for trial in trials]
    trials = [_flagged(trial, budget, reference) for trial in trials]
    by_name = {trial.name: trial for trial in trials}
    rival = base if base and _fits(by_name[base.name], budget, task, higher) else None
    fitting = [trial for trial in trials if trial.status == "ok"]
    confirmed, chosen, warnings = _first_confirmed(run, fitting, budget, base, rival)
    by_name |= confirmed
    goal = objective(task)
    for name, trial in by_name.items():
        if trial.status == "ok" and chosen:
            why = rank.why_not(trial, chosen, goal, task.target)
            by_name[name] = replace(trial, reason=why)
        elif trial.status == "ok":  # it fits, but its value of the deciding cost is not known
            by_name[name] = _unranked(trial, goal)
    if chosen:
        doubts = (*chosen.warnings, *chosen.unlike)
        warnings += [f"{chosen.name}: {doubt}" for doubt in doubts]
    after = standing.having([by_name[trial.name] for trial in trials]).warned(warnings)
    return Choice(after, base, chosen)


def _first_confirmed(
    run: Run, fitting: list[Trial], budget: Budget, base: Trial | None, rival: Trial | None
) -> tuple[dict[str, Trial], Trial | None, list[str]]:
    """Measure the fitting trials again, the best first, until one still meets the budget.

    `rival`: the baseline, where it fits the budget. -> the trials that were measured again, by
    name; the chosen one; warnings.
    """
    task, goal = run.task, objective(run.task)
    higher = task.metric.higher_is_better if task.metric else True
    by_name: dict[str, Trial] = {}
    warnings: list[str] = []
    for pick in rank.ranking(fitting, goal, task.target):
        fresh, confirm_warnings = confirm(run, pick, base)
        warnings += confirm_warnings
        reasons: list[str] = []
        if not fresh.failure:
            reasons = rank.objections(fresh, budget, task.target, higher)
        if not fresh.failure and not reasons and rival:
            why = _no_longer_pays(fresh, rival, goal)
            reasons = [why] if why else []
        if fresh.failure:
            by_name[pick.name] = fresh
        elif reasons:
            reason = "measured again: " + "; ".join(reasons)
            by_name[pick.name] = replace(fresh, status="over-budget", reason=reason)
        else:
            chosen = by_name[pick.name] = replace(fresh, status="chosen")
            return by_name, chosen, warnings
    return by_name, None, warnings


def _unranked(trial: Trial, goal: Cost) -> Trial:
    reason = f"its {goal.name} is not known: {goal.why_missing(trial)}"
    return replace(trial, status="skipped", reason=reason)


def _fits(trial: Trial, budget: Budget, task: Task, higher: bool) -> bool:
    """Whether the trial meets the budget, even where --recipes leaves it out of the choice."""
    return trial.failure is None and not rank.objections(trial, budget, task.target, higher)


INSTRUCTIONS = "unmeasured: the device is emulated, where instructions are counted and not time"


def _unmeasured(trial: Trial, why: str) -> Trial:
    missing = {cost.key: why for cost in costs.MEASURED if cost.of(trial) is None}
    return replace(trial, missing={**missing, **trial.missing})


def _weigh(task: Task, trial: Trial, budget: Budget, higher: bool, left_out: set[str]) -> Trial:
    if not usable(trial):
        return trial
    if trial.name in left_out:
        return replace(
            trial, status="skipped", reason="run as the reference; left out by --recipes"
        )
    timed = task.device is not None and not task.counted
    if why := trial.missing.get(costs.LATENCY.key, "") if timed else "":
        return replace(trial, status="skipped", reason=why)
    if reasons := rank.objections(trial, budget, task.target, higher):
        return replace(trial, status="over-budget", reason="; ".join(reasons))
    return trial


def _flagged(trial: Trial, budget: Budget, reference: str) -> Trial:
    """The trial, with a warning where there are too few samples to be sure that it meets the
    accuracy budget. The reference model in fp32 gets none: it is the same computation in another
    runtime."""
    if not budget.crossed(trial) or (trial.recipe == EXACT and trial.model == reference):
        return trial
    warning = "the 95 % interval of its accuracy drop reaches beyond the budget: give more samples"
    return replace(trial, warnings=(*trial.warnings, warning))


def _no_longer_pays(trial: Trial, base: Trial, goal: Cost) -> str | None:
    """Why an inexact trial has no point beside the baseline `base`, by what was measured again:
    where speed or energy is minimized, it must be better beyond noise. None where it is."""
    fresh = trial.again.get(base.name)
    if fresh and base.candidate and trial.name in trial.again:
        base = with_figures(base, fresh, base.candidate.model.batch, emulated=False)
        trial = replace(trial, rounds=trial.again[trial.name])
    return rank.does_not_pay(trial, base, goal)
