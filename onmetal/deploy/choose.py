"""Which trial is chosen: judged by the budget, ranked, and measured again before it is believed."""

import numpy as np
from msgspec.structs import replace

from onmetal import costs
from onmetal.budget import Budget
from onmetal.costs import Cost
from onmetal.deploy import rank
from onmetal.deploy.request import Clock, Task
from onmetal.deploy.trials import Feeds, timed, usable, with_figures
from onmetal.profilers import measure, statistics
from onmetal.profilers.measure import Settled
from onmetal.progress import Progress
from onmetal.records import Rounds, Trial
from onmetal.targets import EXACT

FAR_BEHIND = 0.9
"""A candidate of less than this part of another's speed, beyond noise, is timed no further."""


def resolve(task: Task, reference: str, value: float | None) -> Budget:
    """The budget in base units; `value`: of the metric, that the reference model has."""
    original = next(entry for entry in task.models if entry.stem == reference)
    return task.request.budget.resolve(
        original,
        proportion=task.metric.proportion if task.metric else True,
        float_value=value,
    )


def objective(task: Task) -> Cost:
    """What decides: without a device, or on an emulated one, whose timings mean nothing, the
    smallest wins."""
    wanted = costs.goal(task.request.minimize)
    known = wanted.needs == "nothing" or (wanted.known_on_chips and task.target.micro)
    return wanted if known or task.timed else costs.stand_in()


def settled(task: Task, budget: Budget, trials: list[Trial], reference: str) -> Settled | None:
    """Which candidates are so much slower than one that fits the budget that no further round
    changes the choice; None where it is not speed that decides.

    The fastest exact one is timed to the end: it is the baseline.
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
    versus = statistics.compare(best.rounds, trial.rounds, mean=goal.by_means)
    return versus.verdict == "slower" and versus.speedup < FAR_BEHIND


def _median_ns(trial: Trial) -> float:
    assert trial.rounds
    return float(np.median(np.concatenate(list(trial.rounds.samples_ns.values()))))


def _with_figures(trial: Trial) -> Trial:
    assert trial.rounds and trial.candidate
    return with_figures(trial, trial.rounds, trial.candidate.model.batch, emulated=False)


def choose(
    task: Task,
    budget: Budget,
    trials: list[Trial],
    reference: str,
    feeds: Feeds,
    clock: Clock,
    progress: Progress,
) -> tuple[list[Trial], Trial | None, Trial | None]:
    """-> (every trial with its verdict and status, the baseline, the chosen one or None)."""
    base = rank.baseline(trials, reference)
    if task.timed:  # of an emulator's timings no ratio says anything
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
    goal = objective(task)
    fitting = [trial for trial in trials if trial.status == "ok"]
    by_name = {trial.name: trial for trial in trials}
    chosen = None
    rival = base if base and _fits(by_name[base.name], budget, task, higher) else None
    for pick in rank.ranking(fitting, goal, task.target):
        confirmed = _confirm(task, pick, base, feeds, clock, progress)
        if confirmed.failure:
            by_name[pick.name] = confirmed
            continue
        reasons = rank.objections(confirmed, budget, task.target, higher)
        if not reasons and rival and (why := _no_longer_pays(confirmed, rival, goal)):
            reasons = [why]
        if reasons:
            reason = "measured again: " + "; ".join(reasons)
            by_name[pick.name] = replace(confirmed, status="over-budget", reason=reason)
            continue
        chosen = replace(confirmed, status="chosen")
        by_name[pick.name] = chosen
        break
    if chosen:
        for trial in fitting:
            if by_name[trial.name].status == "ok":
                why = rank.why_not(trial, chosen, goal, task.target)
                by_name[trial.name] = replace(by_name[trial.name], reason=why)
        doubts = (*chosen.warnings, *chosen.unlike)
        task.warnings.extend(f"{chosen.name}: {doubt}" for doubt in doubts)
    else:
        for name, trial in by_name.items():
            if trial.status == "ok":  # it fits, but nothing is known of it that it could win by
                by_name[name] = _unranked(trial, goal)
    return [by_name[trial.name] for trial in trials], base, chosen


def _unranked(trial: Trial, goal: Cost) -> Trial:
    reason = f"its {goal.name} is not known: {goal.why_missing(trial)}"
    return replace(trial, status="skipped", reason=reason)


def _fits(trial: Trial, budget: Budget, task: Task, higher: bool) -> bool:
    """Whether it meets the budget, be it left out by --recipes or not."""
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
    """With a warning where samples are too few to be sure; not of the reference in fp32, which is
    the same computation in another runtime."""
    if not budget.crossed(trial) or (trial.recipe == EXACT and trial.model == reference):
        return trial
    warning = "the 95 % interval of its accuracy drop reaches beyond the budget: give more samples"
    return replace(trial, warnings=(*trial.warnings, warning))


def _confirm(
    task: Task,
    pick: Trial,
    base: Trial | None,
    feeds: Feeds,
    clock: Clock,
    progress: Progress,
) -> Trial:
    """Measure the pick again, in fresh blocks against the baseline: of several noisy figures the
    best looks better than it is, so the first one is not reported."""
    if task.device is None or not task.interleaved or pick.rounds is None or pick.candidate is None:
        return pick
    again = [pick.candidate]
    if base and base.candidate and base.name != pick.name:
        again.append(base.candidate)
    if clock.left_s(1.0) <= 0:
        task.warnings.append(f"{pick.name} was not measured again: --time-limit had ended")
        return pick
    outcome = measure.measure(
        task.device,
        again,
        feeds,
        measure.schedule(task.device, task.request.mode),
        lambda done, total, what: progress(done, total, f"{pick.name} again, {what}"),
        clock.deadline(1.0),
        seed=1,
    )
    if why := outcome.failures.get(pick.name):
        return replace(pick, status="failed", failure="device", reason=f"measured again: {why}")
    if outcome.cut_short or pick.name not in outcome.rounds:
        task.warnings.append(f"{pick.name} was not measured again: --time-limit had ended")
        return pick
    fresh = replace(timed(task, pick, outcome), rounds=pick.rounds, again=outcome.rounds)
    if base is None or base.name not in outcome.rounds:  # the speed-up is that of the first blocks
        if base:
            task.warnings.append(f"{base.name} failed when measured again, beside {pick.name}")
        return fresh
    versus = statistics.compare(outcome.rounds[base.name], outcome.rounds[pick.name])
    return replace(fresh, versus_baseline=versus)


def _no_longer_pays(trial: Trial, base: Trial, goal: Cost) -> str | None:
    """An inexact candidate that is not better beyond noise has no point where speed or energy is
    the aim, and a float one fits. What was measured again decides."""
    fresh = trial.again.get(base.name)
    if fresh and base.candidate and trial.name in trial.again:
        base = with_figures(base, fresh, base.candidate.model.batch, emulated=False)
        trial = replace(trial, rounds=trial.again[trial.name])
    return rank.does_not_pay(trial, base, goal)
