"""A cheap first look at quantized candidates, before much time goes into each: which to drop."""

from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.calibration.fidelity import sqnr_db
from onmetal.choice import objective
from onmetal.decide import TIMED
from onmetal.errors import OnmetalError
from onmetal.profilers import measure
from onmetal.profilers.measure import Schedule
from onmetal.progress import Progress
from onmetal.records import Model, Trial
from onmetal.targets import EXACT
from onmetal.task import Clock, Task
from onmetal.trials import Feeds, usable
from onmetal.vectors import numbered, write_npz

SCHEDULE = Schedule(blocks=1, rounds=7, round_s=0.03, warm_s=0.15, round_warm_s=0.01, memory_runs=0)
SAMPLES = 8
LATEST = 0.35
"""The part of --time-limit after which there is no time for a look."""
HOPELESS_DB = 3.0
"""Fidelity under which nothing of the model is left."""
SLOWER = 1.10
"""A short timing is trusted from this ratio on, where all rounds but one agree on who is slower."""
ALIKE_DB, BETTER_DB = 1.0, 3.0


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
        return self.sqnr_db is not None and self.sqnr_db < HOPELESS_DB


def look(
    task: Task,
    trials: list[Trial],
    feeds: Feeds,
    scratch: Path,
    clock: Clock,
    progress: Progress,
) -> tuple[list[Trial], dict[str, Looked]]:
    """Drop hopeless quantized candidates, each with the reason. -> trials, what was seen."""
    quantized = [t for t in trials if usable(t) and method(task, t) != "float"]
    if not quantized or clock.left_s(LATEST) <= 0:
        return trials, {}
    times = short_times(task, [t for t in trials if usable(t)], feeds, clock, progress)
    seen: dict[str, Looked] = {}
    fidelity = _fidelities(task, trials, scratch, progress)
    for trial in trials:
        if usable(trial):
            seen[trial.name] = Looked(times.get(trial.name, []), fidelity.get(trial.name))
    return [
        _dropped(task, trial, trials, seen) if trial in quantized else trial for trial in trials
    ], seen


def method(task: Task, trial: Trial) -> str:
    return task.target.recipe(trial.recipe).method


def _dropped(task: Task, trial: Trial, trials: list[Trial], seen: dict[str, Looked]) -> Trial:
    """The trial, or why it is not tried further."""
    mine = seen[trial.name]
    if mine.hopeless:
        why = f"{mine.sqnr_db:.1f} dB of fidelity on calibration samples: nothing of it is left"
        return replace(trial, status="skipped", reason=f"first look: {why}")
    if objective(task) not in TIMED or not mine.rounds_ms:
        return trial
    same = [t for t in trials if t.model == trial.model and t.name != trial.name and usable(t)]
    exact = [t for t in same if t.recipe == EXACT and seen[t.name].rounds_ms]
    best = min(exact, key=lambda t: seen[t.name].p50_ms, default=None)
    if best and (ratio := _slower(mine, seen[best.name])):
        why = f"{ratio:.2f} times as slow as {best.name} in a short timing"
        return replace(trial, status="skipped", reason=f"first look: {why}")
    for other in same:
        if method(task, other) == "float" or seen[other.name].hopeless:
            continue
        if other.candidate is None or trial.candidate is None:
            continue
        if other.candidate.size_bytes > 1.1 * trial.candidate.size_bytes:
            continue
        if found := _beaten(mine, seen[other.name], other.name):
            return replace(trial, status="skipped", reason=f"first look: {found}")
    return trial


def _beaten(mine: Looked, other: Looked, name: str) -> str | None:
    """Whether another candidate is clearly better in one thing and no worse in the other."""
    if mine.sqnr_db is None or other.sqnr_db is None or not mine.rounds_ms or not other.rounds_ms:
        return None
    gain = other.sqnr_db - mine.sqnr_db
    if gain >= -ALIKE_DB and (ratio := _slower(mine, other)):
        return f"{ratio:.2f} times as slow as {name} in a short timing, and no closer to the float"
    if gain >= BETTER_DB and paired_ratio(mine.rounds_ms, other.rounds_ms) >= 1:
        return f"{gain:.0f} dB further from the float than {name}, and no faster in a short timing"
    return None


def _slower(mine: Looked, other: Looked) -> float | None:
    """How many times as slow, where that is plain."""
    ratios = np.array(mine.rounds_ms) / np.array(other.rounds_ms)
    ratio = float(np.median(ratios))
    return ratio if ratio >= SLOWER and np.sum(ratios < 1) <= 1 else None


def paired_ratio(mine: list[float], other: list[float]) -> float:
    """The median over rounds of how many times as slow."""
    return float(np.median(np.array(mine) / np.array(other)))


def short_times(
    task: Task, trials: list[Trial], feeds: Feeds, clock: Clock, progress: Progress
) -> dict[str, list[float]]:
    """The medians in ms of the rounds of a short interleaved timing; empty without a device, or on
    an emulated one."""
    if task.device is None or not task.timed or task.board:
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
    task: Task, trials: list[Trial], scratch: Path, progress: Progress
) -> dict[str, float]:
    """The worst output's SQNR against the float model over a few calibration samples."""
    found: dict[str, float] = {}
    for model in task.models:
        mine = [t for t in trials if usable(t) and t.model == model.stem]
        exact = next((t for t in mine if t.recipe == EXACT), None)
        if exact is None or str(model.path) not in task.calibration:
            continue
        feed = _few(task, model, scratch / f"look-{model.stem}.npz")
        reference = _outputs(task, exact, feed, scratch)
        if reference is None:
            continue
        for number, trial in enumerate(mine):
            progress(number, len(mine), f"{trial.name} on a few calibration samples")
            if method(task, trial) == "float":
                continue
            outputs = _outputs(task, trial, feed, scratch)
            if outputs is not None:
                found[trial.name] = min(
                    sqnr_db(reference[name], outputs[name]) for name in reference
                )
    return found


def _few(task: Task, model: Model, path: Path) -> Path:
    write_npz(path, numbered(task.calibration[str(model.path)].spread(model, SAMPLES)))
    return path


def _outputs(task: Task, trial: Trial, feed: Path, scratch: Path) -> dict[str, np.ndarray] | None:
    """By output, over all feeds; None where it does not run: judging it will say why."""
    candidate = trial.candidate
    assert candidate
    folder = scratch / f"look-{trial.name.replace('/', '.')}"
    folder.mkdir(exist_ok=True)
    try:
        with task.host.worker() as worker:
            worker.call(
                "open", timeout_s=3600, runtime=candidate.runtime, **measure.arguments(candidate)
            )
            worker.call("run", timeout_s=3600, path=str(feed), folder=str(folder))
    except OnmetalError:
        return None
    count = len(list(folder.glob("*-0.npy")))
    return {
        tensor.name: np.stack([np.load(folder / f"{i}-{place}.npy") for i in range(count)])
        for place, tensor in enumerate(candidate.model.outputs)
    }
