"""Screens quantized candidates by a short timing and a few samples, and drops the pointless
ones."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from onmetal import costs
from onmetal.budget import Budget
from onmetal.calibration.fidelity import PERFECT_DB, compare
from onmetal.deploy import rank
from onmetal.deploy.choose import objective, resolve
from onmetal.deploy.context import Run, Screened, Standing, Task
from onmetal.deploy.likeness import LOST_DB, least_float_db
from onmetal.deploy.trials import original_trial, usable
from onmetal.deploy.vectors import numbered, write_npz
from onmetal.errors import OnmetalError
from onmetal.profilers import measure
from onmetal.profilers.devices.local_worker import LocalWorker
from onmetal.profilers.measure import Schedule
from onmetal.records import Model, Trial
from onmetal.targets import EXACT

SCHEDULE = Schedule(blocks=1, rounds=7, round_s=0.03, warm_s=0.15, round_warm_s=0.01, memory_runs=0)
SAMPLES = 8
LATEST = 0.35
"""The part of --time-limit after which candidates are no longer screened."""
SLOWER = 1.10
"""From this ratio of latencies on, a short timing is trusted, where all rounds but one agree on
which candidate is slower."""
BETTER_DB = 3.0
"""A fidelity that is better by this much on a few samples is better on other samples too."""


def screen(run: Run, standing: Standing) -> Standing:
    """Screen the quantized candidates that were not screened yet, and drop the pointless ones.

    A candidate is dropped only where another one that may meet the budget is at least as good in
    everything that the budget and --minimize ask for.
    """
    task, trials = run.task, standing.trials
    fresh = [t for t in trials if usable(t) and quantized_by(task, t)]
    fresh = [trial for trial in fresh if trial.name not in standing.screened]
    if not fresh or run.clock.left_s(LATEST) <= 0:
        return standing
    running = [trial for trial in trials if usable(trial)]
    times = short_times(run, running)
    fidelity = _fidelities(run, running)
    screened = {
        trial.name: Screened(times.get(trial.name, []), fidelity.get(trial.name))
        for trial in running
    }
    reasons = pointless(task, trials, screened)
    screened_trials = [
        replace(trial, status="skipped", reason=reasons[trial.name])
        if trial.name in reasons
        else trial
        for trial in trials
    ]
    return replace(standing.having(screened_trials), screened={**standing.screened, **screened})


def hopeless(screened: Screened) -> bool:
    """Whether the fidelity on calibration samples is below LOST_DB."""
    return screened.sqnr_db is not None and screened.sqnr_db < LOST_DB


def pointless(task: Task, trials: Sequence[Trial], screened: dict[str, Screened]) -> dict[str, str]:
    """Name of a trial -> why it is not tried further. A dropped trial cannot cause others to be
    dropped."""
    if not _comparable(task):
        return {}
    reasons: dict[str, str] = {}
    running = [trial for trial in trials if usable(trial)]
    for trial in sorted(running, key=lambda t: screened[t.name].p50_ms):
        if not quantized_by(task, trial):
            continue
        alternatives = [t for t in running if t.model == trial.model and t.name not in reasons]
        if why := _beaten_by_any(task, trial, alternatives, screened):
            reasons[trial.name] = f"first look: {why}"
    return reasons


def quantized_by(task: Task, trial: Trial) -> str | None:
    return task.target.recipe(trial.recipe, trial.runtime).quantized_by


def _comparable(task: Task) -> bool:
    """Whether a short timing, sizes and a few samples cover everything that the budget and
    --minimize ask for: memory and energy are not known at this stage."""
    budget_limits, limits = task.request.budget.limits, task.target.limits
    unknown = any(cost.name in budget_limits and not cost.paired for cost in costs.MEASURED)
    return objective(task).paired and not (unknown or limits.memory_kib or task.target.chip)


def _beaten_by_any(
    task: Task, trial: Trial, alternatives: list[Trial], screened: dict[str, Screened]
) -> str | None:
    """Why the trial is not tried further, where one of `alternatives` is at least as good; else
    None."""
    trial_screened = screened[trial.name]
    for alternative in alternatives:
        if alternative.name == trial.name or not _may_meet(task, alternative):
            continue
        alternative_screened = screened[alternative.name]
        if alternative.recipe == EXACT:
            wrong = (
                alternative_screened.sqnr_db is None
                or alternative_screened.sqnr_db < least_float_db(trial)
            )
            if not wrong and (ratio := _slower(trial_screened, alternative_screened)):
                return f"{ratio:.2f} times as slow as {alternative.name} in a short timing"
        elif quantized_by(task, alternative) and alternative.candidate and trial.candidate:
            if alternative.candidate.size_bytes > 1.1 * trial.candidate.size_bytes:
                continue
            if not hopeless(alternative_screened) and (
                why := _beaten(trial_screened, alternative_screened, alternative.name)
            ):
                return why
    return None


def _may_meet(task: Task, trial: Trial) -> bool:
    """Whether a candidate meets the limits that are known before anything is judged: its size and
    its multiply-accumulates. With several models the strictest limit counts."""
    limits, candidate = task.target.limits, trial.candidate
    if candidate is None:
        return False
    if limits.storage_kib and candidate.size_bytes > limits.storage_kib * 1024:
        return False
    budgets = [resolve(task, entry.stem, None) for entry in task.models]
    return not any(budget.static_objections(trial) for budget in budgets)


def drop_lost(task: Task, standing: Standing, budget: Budget) -> Standing:
    """Mark judged candidates as over the budget, so that they are not timed, where their fidelity
    is below LOST_DB and the accuracy budget rejects them."""
    higher = task.metric.higher_is_better if task.metric else True

    def after_judging(trial: Trial) -> Trial:
        screening = standing.screened.get(trial.name)
        if screening is None or not hopeless(screening) or not usable(trial):
            return trial
        reasons = rank.likeness_objections(trial, budget, higher)
        if not reasons:
            return trial
        lost = (
            f"its outputs have only {screening.sqnr_db:.1f} dB of fidelity on calibration samples"
        )
        reason = f"not timed: {lost}; {'; '.join(reasons)}"
        return replace(trial, status="over-budget", reason=reason)

    return standing.having([after_judging(trial) for trial in standing.trials])


def _beaten(screened: Screened, rival: Screened, name: str) -> str | None:
    """Why candidate `screened` is dropped in favour of `rival`, whose name is `name`: the rival is
    clearly better in latency or fidelity and no worse in the second of them. Else None."""
    if (
        screened.sqnr_db is None
        or rival.sqnr_db is None
        or not screened.rounds_ms
        or not rival.rounds_ms
    ):
        return None
    gain_db = rival.sqnr_db - screened.sqnr_db
    if gain_db >= 0 and (ratio := _slower(screened, rival)):
        slow = f"{ratio:.2f} times as slow as {name} in a short timing"
        return f"{slow}, and not closer to the original's outputs"
    if gain_db >= BETTER_DB and not _faster(screened, rival):
        return f"{gain_db:.0f} dB less fidelity than {name}, and not faster in a short timing"
    return None


def _slower(screened: Screened, rival: Screened) -> float | None:
    """How many times as slow `screened` is as `rival`; None where the timing does not show it."""
    if not screened.rounds_ms or not rival.rounds_ms:
        return None
    ratios = np.array(screened.rounds_ms) / np.array(rival.rounds_ms)
    ratio = float(np.median(ratios))
    return ratio if ratio >= SLOWER and np.sum(ratios < 1) <= 1 else None


def _faster(screened: Screened, rival: Screened) -> bool:
    """Whether `screened` was faster than `rival` in all rounds but at most one."""
    return int(np.sum(np.array(screened.rounds_ms) >= np.array(rival.rounds_ms))) <= 1


def short_times(run: Run, trials: Sequence[Trial]) -> dict[str, list[float]]:
    """The medians in ms of the rounds of a short interleaved timing; empty without a device, or on
    an emulated one."""
    task = run.task
    if task.device is None or not task.interleaved:
        return {}
    outcome = measure.measure(
        task.device,
        [trial.candidate for trial in trials if trial.candidate],
        run.feeds,
        SCHEDULE,
        run.progress,
        run.clock.deadline(0.5),
        seed=2,
    )
    return {
        name: [float(np.median(samples_ns)) / 1e6 for samples_ns in rounds.samples_ns.values()]
        for name, rounds in outcome.rounds.items()
    }


def _fidelities(run: Run, trials: Sequence[Trial]) -> dict[str, float]:
    """Name of a trial -> the SQNR in dB of its worst output against the original model, over a few
    calibration samples."""
    task, scratch = run.task, run.scratch
    fidelities: dict[str, float] = {}
    for model in task.models:
        model_trials = [trial for trial in trials if trial.model == model.stem]
        if str(model.path) not in task.calibration:
            continue
        original = original_trial(model, trials)
        feed = _some_samples(task, model, scratch / f"screen-{model.stem}.npz")
        reference = (
            _outputs(task, original, feed, scratch)
            if original
            else _reference_outputs(task, model, feed, scratch)
        )
        if reference is None:
            continue  # the same failure is reported when the model is judged
        for number, trial in enumerate(model_trials):
            run.progress(number, len(model_trials), f"{trial.name} on a few calibration samples")
            if not quantized_by(task, trial) and trial.recipe != EXACT:
                continue
            is_original = trial is original
            outputs = reference if is_original else _outputs(task, trial, feed, scratch)
            if outputs is not None:
                fidelities[trial.name] = _least_db(reference, outputs)
    return fidelities


def _least_db(reference: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> float:
    """The least SQNR in dB over all floating-point outputs, as a whole and by slices."""
    least = PERFECT_DB
    for name, reference_output in reference.items():
        if reference_output.shape != outputs[name].shape:
            return -PERFECT_DB
        fidelity_db = compare(reference_output, outputs[name]).least_db
        least = least if fidelity_db is None else min(least, fidelity_db)
    return least


def _some_samples(task: Task, model: Model, path: Path) -> Path:
    write_npz(path, numbered(task.calibration[str(model.path)].spread(model, SAMPLES)))
    return path


def _outputs(task: Task, trial: Trial, feed: Path, scratch: Path) -> dict[str, np.ndarray] | None:
    """Output name -> its values for all feeds; None where the candidate does not run, which is
    reported when it is judged."""
    candidate = trial.candidate
    assert candidate
    folder = scratch / f"screen-{trial.name.replace('/', '.')}"

    def open_(worker: LocalWorker) -> None:
        worker.open(candidate.artifact, timeout_s=3600)

    return _run(task, candidate.runtime, open_, candidate.model, feed, folder)


def _reference_outputs(
    task: Task, model: Model, feed: Path, scratch: Path
) -> dict[str, np.ndarray] | None:
    """Output name -> its values for all feeds, by the model itself; None where it does not run."""

    def open_(worker: LocalWorker) -> None:
        worker.open_reference(model, timeout_s=3600)

    return _run(task, None, open_, model, feed, scratch / f"screen-{model.stem}")


def _run(
    task: Task,
    runtime: str | None,
    open_: Callable[[LocalWorker], None],
    model: Model,
    feed: Path,
    folder: Path,
) -> dict[str, np.ndarray] | None:
    folder.mkdir(exist_ok=True)

    def run(workers: list[LocalWorker]) -> None:
        open_(workers[0])
        workers[0].run(feed, folder, timeout_s=3600)
        workers[0].let_go()

    try:
        task.host.helped(runtime, run)
    except OnmetalError:
        return None
    count = len(list(folder.glob("*-0.npy")))
    return {
        tensor.name: np.stack([np.load(folder / f"{i}-{index}.npy") for i in range(count)])
        for index, tensor in enumerate(model.outputs)
    }
