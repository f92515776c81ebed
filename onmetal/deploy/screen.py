"""A cheap first look at quantized candidates, before much time goes into each: which to drop."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal import costs
from onmetal.budget import Budget
from onmetal.calibration.fidelity import PERFECT_DB, compare
from onmetal.deploy import rank
from onmetal.deploy.choose import objective, resolve
from onmetal.deploy.likeness import LOST_DB, least_float_db
from onmetal.deploy.request import Clock, Task
from onmetal.deploy.trials import Feeds, original_trial, usable
from onmetal.deploy.vectors import numbered, write_npz
from onmetal.errors import OnmetalError
from onmetal.files.cache import Cache
from onmetal.profilers import measure
from onmetal.profilers.devices.local_worker import LocalWorker
from onmetal.profilers.measure import Schedule
from onmetal.progress import Progress
from onmetal.records import Model, Trial
from onmetal.targets import EXACT

SCHEDULE = Schedule(blocks=1, rounds=7, round_s=0.03, warm_s=0.15, round_warm_s=0.01, memory_runs=0)
SAMPLES = 8
LATEST = 0.35
"""The part of --time-limit after which there is no time for a look."""
SLOWER = 1.10
"""A short timing is trusted from this ratio on, where all rounds but one agree on who is slower."""
BETTER_DB = 3.0
"""So much closer to the original is closer on other samples too."""


class Looked(Struct, frozen=True):
    """What the first look saw of a candidate."""

    rounds_ms: list[float]
    """The median of each round; empty: not timed."""
    sqnr_db: float | None
    """None: not compared."""

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.rounds_ms or [np.inf]))

    @property
    def hopeless(self) -> bool:
        return self.sqnr_db is not None and self.sqnr_db < LOST_DB


def look(
    task: Task,
    trials: list[Trial],
    feeds: Feeds,
    cache: Cache,
    scratch: Path,
    clock: Clock,
    progress: Progress,
) -> tuple[list[Trial], dict[str, Looked]]:
    """Drop quantized candidates that another one makes pointless. -> trials, what was seen.

    Nothing is dropped unless something that may meet the budget is at least as good in all that
    the budget and the aim ask.
    """
    quantized = [t for t in trials if usable(t) and quantized_by(task, t)]
    if not quantized or clock.left_s(LATEST) <= 0:
        return trials, {}
    times = short_times(task, [t for t in trials if usable(t)], feeds, clock, progress)
    fidelity = _fidelities(task, trials, cache, scratch, progress)
    seen = {
        trial.name: Looked(times.get(trial.name, []), fidelity.get(trial.name))
        for trial in trials
        if usable(trial)
    }
    reasons = pointless(task, trials, seen)
    return [
        replace(trial, status="skipped", reason=reasons[trial.name])
        if trial.name in reasons
        else trial
        for trial in trials
    ], seen


def pointless(task: Task, trials: list[Trial], seen: dict[str, Looked]) -> dict[str, str]:
    """Name -> why the trial is not tried further. What is dropped drops no other."""
    if not _comparable(task):
        return {}
    reasons: dict[str, str] = {}
    running = [trial for trial in trials if usable(trial)]
    for trial in sorted(running, key=lambda t: seen[t.name].p50_ms):
        if not quantized_by(task, trial):
            continue
        others = [t for t in running if t.model == trial.model and t.name not in reasons]
        if why := _beaten_by_any(task, trial, others, seen):
            reasons[trial.name] = f"first look: {why}"
    return reasons


def quantized_by(task: Task, trial: Trial) -> str | None:
    return task.target.recipe(trial.recipe, trial.runtime).quantized_by


def _comparable(task: Task) -> bool:
    """Whether a short timing, sizes and a few samples are all that the budget and the aim ask:
    memory and energy are not known yet."""
    asked, limits = task.request.budget.limits, task.target.limits
    unknown = any(cost.name in asked and not cost.paired for cost in costs.MEASURED)
    return objective(task).paired and not (unknown or limits.memory_kib or task.target.chip)


def _beaten_by_any(
    task: Task, trial: Trial, others: list[Trial], seen: dict[str, Looked]
) -> str | None:
    """Why the trial is not tried further, where one of the others is at least as good."""
    mine = seen[trial.name]
    for other in others:
        if other.name == trial.name or not _may_meet(task, other):
            continue
        theirs = seen[other.name]
        if other.recipe == EXACT:
            wrong = theirs.sqnr_db is None or theirs.sqnr_db < least_float_db(trial)
            if not wrong and (ratio := _slower(mine, theirs)):
                return f"{ratio:.2f} times as slow as {other.name} in a short timing"
        elif quantized_by(task, other) and other.candidate and trial.candidate:
            if other.candidate.size_bytes > 1.1 * trial.candidate.size_bytes:
                continue
            if not theirs.hopeless and (why := _beaten(mine, theirs, other.name)):
                return why
    return None


def _may_meet(task: Task, trial: Trial) -> bool:
    """Whether a candidate meets what of the budget is known before anything is judged: its size
    and its multiply-accumulates. Of several models the strictest limit counts."""
    limits, candidate = task.target.limits, trial.candidate
    if candidate is None:
        return False
    if limits.storage_kib and candidate.size_bytes > limits.storage_kib * 1024:
        return False
    budgets = [resolve(task, entry.stem, None) for entry in task.models]
    return not any(budget.static_objections(trial) for budget in budgets)


def drop_lost(
    task: Task, trials: list[Trial], seen: dict[str, Looked], budget: Budget
) -> list[Trial]:
    """Once all are judged: those of which nothing is left, and which the accuracy budget rejects,
    are not timed."""
    higher = task.metric.higher_is_better if task.metric else True
    done = []
    for trial in trials:
        look = seen.get(trial.name)
        reasons: list[str] = []
        if look and look.hopeless and usable(trial):
            reasons = rank.likeness_objections(trial, budget, higher)
        if look and reasons:
            lost = f"its outputs have only {look.sqnr_db:.1f} dB of fidelity on calibration samples"
            reason = f"not timed: {lost}; {'; '.join(reasons)}"
            trial = replace(trial, status="over-budget", reason=reason)
        done.append(trial)
    return done


def _beaten(mine: Looked, other: Looked, name: str) -> str | None:
    """Whether another candidate is clearly better in one thing and no worse in the other."""
    if mine.sqnr_db is None or other.sqnr_db is None or not mine.rounds_ms or not other.rounds_ms:
        return None
    gain = other.sqnr_db - mine.sqnr_db
    if gain >= 0 and (ratio := _slower(mine, other)):
        slow = f"{ratio:.2f} times as slow as {name} in a short timing"
        return f"{slow}, and not closer to the original's outputs"
    if gain >= BETTER_DB and not _faster(mine, other):
        return f"{gain:.0f} dB less fidelity than {name}, and not faster in a short timing"
    return None


def _slower(mine: Looked, other: Looked) -> float | None:
    """How many times as slow, where that is plain."""
    if not mine.rounds_ms or not other.rounds_ms:
        return None
    ratios = np.array(mine.rounds_ms) / np.array(other.rounds_ms)
    ratio = float(np.median(ratios))
    return ratio if ratio >= SLOWER and np.sum(ratios < 1) <= 1 else None


def _faster(mine: Looked, other: Looked) -> bool:
    """Whether it was faster in all rounds but one, by however little."""
    return int(np.sum(np.array(mine.rounds_ms) >= np.array(other.rounds_ms))) <= 1


def short_times(
    task: Task, trials: list[Trial], feeds: Feeds, clock: Clock, progress: Progress
) -> dict[str, list[float]]:
    """The medians in ms of the rounds of a short interleaved timing; empty without a device, or on
    an emulated one."""
    if task.device is None or not task.interleaved:
        return {}
    outcome = measure.measure(
        task.device,
        [trial.candidate for trial in trials if trial.candidate],
        feeds,
        SCHEDULE,
        progress,
        clock.deadline(0.5),
        seed=2,
    )
    return {
        name: [float(np.median(taken)) / 1e6 for taken in rounds.samples_ns.values()]
        for name, rounds in outcome.rounds.items()
    }


def _fidelities(
    task: Task, trials: list[Trial], cache: Cache, scratch: Path, progress: Progress
) -> dict[str, float]:
    """The worst output's SQNR against the original over a few calibration samples."""
    fidelities: dict[str, float] = {}
    for model in task.models:
        mine = [t for t in trials if usable(t) and t.model == model.stem]
        if str(model.path) not in task.calibration:
            continue
        original = original_trial(model, trials)
        feed = _few(task, model, scratch / f"look-{model.stem}.npz")
        reference = (
            _outputs(task, original, feed, scratch)
            if original
            else _reference_outputs(task, model, feed, scratch)
        )
        if reference is None:
            continue  # judging says why
        for number, trial in enumerate(mine):
            progress(number, len(mine), f"{trial.name} on a few calibration samples")
            if not quantized_by(task, trial) and trial.recipe != EXACT:
                continue
            same = trial is original
            outputs = reference if same else _outputs(task, trial, feed, scratch)
            if outputs is not None:
                fidelities[trial.name] = _least_db(reference, outputs)
    return fidelities


def _least_db(reference: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> float:
    """Of every output of real numbers, in the whole and by slices."""
    least = PERFECT_DB
    for name, wanted in reference.items():
        if wanted.shape != outputs[name].shape:
            return -PERFECT_DB
        known = compare(wanted, outputs[name]).least_db
        least = least if known is None else min(least, known)
    return least


def _few(task: Task, model: Model, path: Path) -> Path:
    write_npz(path, numbered(task.calibration[str(model.path)].spread(model, SAMPLES)))
    return path


def _outputs(task: Task, trial: Trial, feed: Path, scratch: Path) -> dict[str, np.ndarray] | None:
    """By output, over all feeds; None where it does not run: judging it will say why."""
    candidate = trial.candidate
    assert candidate
    folder = scratch / f"look-{trial.name.replace('/', '.')}"

    def open_(worker: LocalWorker) -> None:
        worker.open(candidate.artifact, timeout_s=3600)

    return _run(task, candidate.runtime, open_, candidate.model, feed, folder)


def _reference_outputs(
    task: Task, model: Model, feed: Path, scratch: Path
) -> dict[str, np.ndarray] | None:
    """The same of the model itself."""

    def open_(worker: LocalWorker) -> None:
        worker.open_reference(model, timeout_s=3600)

    return _run(task, None, open_, model, feed, scratch / f"look-{model.stem}")


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
        tensor.name: np.stack([np.load(folder / f"{i}-{place}.npy") for i in range(count)])
        for place, tensor in enumerate(model.outputs)
    }
