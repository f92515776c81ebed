"""A cheap first look at quantized candidates, before much time goes into each: which are hopeless,
and which operators are better left in float."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.cache import Cache
from onmetal.calibration.fidelity import sqnr_db
from onmetal.choice import objective
from onmetal.decide import TIMED
from onmetal.errors import OnmetalError, UnsupportedError
from onmetal.plan import Planned
from onmetal.profilers import measure
from onmetal.profilers.measure import Schedule
from onmetal.progress import Progress
from onmetal.records import Candidate, Model, Source, Trial
from onmetal.targets import EXACT
from onmetal.task import Clock, Task
from onmetal.trials import Feeds, convert_one, hub, usable
from onmetal.vectors import write_npz

SCHEDULE = Schedule(blocks=1, rounds=5, round_s=0.04, warm_s=0.15, round_warm_s=0.01, memory_runs=0)
SAMPLES = 8
HOPELESS_DB = 3.0
"""Fidelity under which nothing of the model is left."""
SLOWER = 1.10
"""A short timing is trusted from this ratio on."""
ALIKE_DB, BETTER_DB = 1.0, 3.0


class Looked(Struct, frozen=True):
    """What the first look saw of a candidate; None: not seen."""

    p50_ms: float | None
    sqnr_db: float | None


def look(
    task: Task,
    trials: list[Trial],
    feeds: Feeds,
    scratch: Path,
    clock: Clock,
    progress: Progress,
) -> tuple[list[Trial], dict[str, Looked]]:
    """Drop hopeless quantized candidates, each with the reason. -> trials, what was seen."""
    quantized = [t for t in trials if usable(t) and _method(task, t) != "float"]
    if not quantized:
        return trials, {}
    times = _times(task, [t for t in trials if usable(t)], feeds, clock, progress)
    seen: dict[str, Looked] = {}
    fidelity = _fidelities(task, trials, scratch, progress)
    for trial in trials:
        if usable(trial):
            seen[trial.name] = Looked(times.get(trial.name), fidelity.get(trial.name))
    return [
        _dropped(task, trial, trials, seen) if trial in quantized else trial for trial in trials
    ], seen


def _method(task: Task, trial: Trial) -> str:
    return task.target.recipe(trial.recipe).method


def _dropped(task: Task, trial: Trial, trials: list[Trial], seen: dict[str, Looked]) -> Trial:
    """The trial, or why it is not tried further."""
    mine = seen[trial.name]
    if mine.sqnr_db is not None and mine.sqnr_db < HOPELESS_DB:
        why = f"{mine.sqnr_db:.1f} dB of fidelity on calibration samples: nothing of it is left"
        return replace(trial, status="skipped", reason=f"first look: {why}")
    if objective(task) not in TIMED or mine.p50_ms is None:
        return trial
    same = [t for t in trials if t.model == trial.model and t.name != trial.name and usable(t)]
    exact = [t for t in same if t.recipe == EXACT and seen[t.name].p50_ms]
    best = min(exact, key=lambda t: seen[t.name].p50_ms or 0.0, default=None)
    if best and mine.p50_ms > SLOWER * (seen[best.name].p50_ms or 0.0):
        ratio = mine.p50_ms / (seen[best.name].p50_ms or 1.0)
        why = f"{ratio:.2f} times as slow as {best.name} in a short timing"
        return replace(trial, status="skipped", reason=f"first look: {why}")
    for other in same:
        if _method(task, other) == "float" or other.candidate is None or trial.candidate is None:
            continue
        if other.candidate.size_bytes > 1.1 * trial.candidate.size_bytes:
            continue
        if found := _beaten(mine, seen[other.name], other.name):
            return replace(trial, status="skipped", reason=f"first look: {found}")
    return trial


def _beaten(mine: Looked, other: Looked, name: str) -> str | None:
    """Whether another candidate is clearly better in one thing and no worse in the other."""
    if None in (mine.p50_ms, other.p50_ms, mine.sqnr_db, other.sqnr_db):
        return None
    assert mine.p50_ms and other.p50_ms and mine.sqnr_db is not None and other.sqnr_db is not None
    ratio, gain = mine.p50_ms / other.p50_ms, other.sqnr_db - mine.sqnr_db
    if ratio >= SLOWER and gain >= -ALIKE_DB:
        return f"{ratio:.2f} times as slow as {name} in a short timing, and no closer to the float"
    if ratio >= 1.0 and gain >= BETTER_DB:
        return f"{gain:.0f} dB further from the float than {name}, and no faster in a short timing"
    return None


def _times(
    task: Task, trials: list[Trial], feeds: Feeds, clock: Clock, progress: Progress
) -> dict[str, float]:
    """Medians in ms of a short interleaved timing; empty without a device."""
    if task.device is None:
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
        name: float(np.median(np.concatenate(list(rounds.samples_ns.values())))) / 1e6
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
            if _method(task, trial) == "float":
                continue
            outputs = _outputs(task, trial, feed, scratch)
            if outputs is not None:
                found[trial.name] = min(
                    sqnr_db(reference[name], outputs[name]) for name in reference
                )
    return found


def _few(task: Task, model: Model, path: Path) -> Path:
    samples = task.calibration[str(model.path)]
    count = max(1, min(SAMPLES, samples.count // model.batch))
    arrays = {}
    for number in range(count):
        start = number * samples.count // count
        indices = [min(start + place, samples.count - 1) for place in range(model.batch)]
        for name, array in samples.feed(model, indices).items():
            arrays[f"{number}/{name}"] = array
    write_npz(path, arrays)
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


# --- the mixed candidate


def add_fast(
    task: Task,
    trials: list[Trial],
    seen: dict[str, Looked],
    feeds: Feeds,
    cache: Cache,
    clock: Clock,
    progress: Progress,
) -> list[Trial]:
    """Make what waits: the fastest static candidate of a runtime, some operators left in float."""
    made = []
    for trial, entry in zip(trials, task.planned, strict=True):
        if entry.recipe.method == "fast" and not entry.skipped:
            progress(0, 1, entry.name)
            trial = _fast(task, entry, trial, trials, seen, feeds, cache, clock, progress)
        made.append(trial)
    return made


def _fast(
    task: Task,
    entry: Planned,
    trial: Trial,
    trials: list[Trial],
    seen: dict[str, Looked],
    feeds: Feeds,
    cache: Cache,
    clock: Clock,
    progress: Progress,
) -> Trial:
    static = [
        other
        for other in trials
        if other.runtime == entry.runtime
        and other.model == trial.model
        and _method(task, other) == "static"
        and other.name in seen
        and seen[other.name].p50_ms
        and (seen[other.name].sqnr_db or 99.0) >= HOPELESS_DB
    ]
    if not static or task.device is None or clock.left_s(0.5) <= 0:
        why = "no static 8-bit candidate of this runtime was timed, from which to make it"
        return replace(trial, status="skipped", reason=why)
    base = min(static, key=lambda other: seen[other.name].p50_ms or 0.0)
    try:
        sources = _mixtures(task, entry, base, feeds, cache, progress)
    except OnmetalError as error:
        return replace(trial, status="failed", failure="conversion", reason=str(error))
    if not sources:
        why = f"by its profile every operator of {base.name} is best as it is"
        return replace(trial, status="skipped", reason=why)
    fresh = replace(trial, status="ok", reason=None)
    tried = [convert_one(task, entry, fresh, cache, progress, source) for source in sources]
    good = [other for other in tried if usable(other)]
    if not good:
        return tried[0]
    numbered = [
        replace(other, name=f"{other.name} #{number}", candidate=_named(other, number))
        for number, other in enumerate(good)
    ]
    times = _times(task, [*numbered, base], feeds, clock, progress)
    best = min(range(len(good)), key=lambda i: times.get(numbered[i].name, float("inf")))
    mine, plain = times.get(numbered[best].name), times.get(base.name)
    if mine and plain and mine > plain:
        why = (
            f"its profile promised more than it kept: {mine / plain:.2f} times as slow as "
            f"{base.name} in a short timing"
        )
        return replace(trial, status="skipped", reason=f"first look: {why}")
    return good[best]


def _named(trial: Trial, number: int) -> Candidate:
    assert trial.candidate
    return replace(trial.candidate, name=f"{trial.name} #{number}")


def _mixtures(
    task: Task,
    entry: Planned,
    base: Trial,
    feeds: Feeds,
    cache: Cache,
    progress: Progress,
) -> list[Source]:
    """Graphs with some operators in float, by profiles of this runtime with and without 8 bits."""
    assert task.device and base.candidate
    from onmetal.converters import convert

    told = _quiet(progress, entry.name)
    made = hub(task, entry.model, cache)
    graph = made.float_graph()
    twin = convert(
        f"{entry.name} in float",
        entry.model,
        task.target.recipe(EXACT),
        entry.runtime,
        task.target,
        task.threads,
        task.host,
        cache,
        made.float_source(),
    )
    form = task.target.recipe(base.recipe).format
    assert form
    profiles = [
        measure.layers(task.device, candidate, feeds(candidate))
        for candidate in (twin, base.candidate)
    ]
    kept = made.cuts(graph, form, profiles, told)
    found = []
    for names in kept:
        try:
            source = made.quantized(form, told, frozenset(names))
        except UnsupportedError:
            continue
        how = {"made_from": base.name, "format": base.candidate.details.get("format")}
        found.append(replace(source, details={**source.details, **how}))
    return found


def _quiet(progress: Progress, name: str) -> Callable[[float, float, str], None]:
    return lambda done, total, what: progress(done, total, f"{name}: {what}")
