"""`int8-fast`: a runtime's fastest static 8-bit candidate, with some operators left in float.

Which ones, the runtime's own profile says.
"""

from collections.abc import Callable

import numpy as np
from msgspec.structs import replace

from onmetal.deploy.context import Clock, Task
from onmetal.deploy.convert import convert
from onmetal.deploy.propose.plan import Planned
from onmetal.deploy.screen import Looked, quantized_by, short_times
from onmetal.deploy.trials import Feeds, calibrated, convert_one, usable
from onmetal.errors import OnmetalError, UnsupportedError
from onmetal.files.cache import Cache
from onmetal.profilers import measure
from onmetal.progress import Progress
from onmetal.records import Candidate, Source, Trial
from onmetal.targets import EXACT


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
        if entry.recipe.does("mixed") and not entry.skipped:
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
        and quantized_by(task, other) == "static"
        and other.name in seen
        and seen[other.name].rounds_ms
        and not seen[other.name].hopeless
    ]
    if not static or task.device is None or clock.left_s(0.5) <= 0:
        why = "no static 8-bit candidate of this runtime was timed, which it would be made from"
        return replace(trial, status="skipped", reason=why)
    base = min(static, key=lambda other: seen[other.name].p50_ms)
    trial = replace(trial, lineage=replace(trial.lineage, parent=base.name))
    try:
        sources = _mixtures(task, entry, base, feeds, cache, progress)
    except OnmetalError as error:
        why = f"no mixture of {base.name} and float could be made: {error}"
        return replace(trial, status="failed", failure="conversion", reason=why)
    if not sources:
        why = f"by its profile no operator of {base.name} would be faster in float"
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
    times = short_times(task, [*numbered, base], feeds, clock, progress)
    best = min(range(len(good)), key=lambda i: np.median(times.get(numbered[i].name, [np.inf])))
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
    told = _quiet(progress, entry.name)
    made = calibrated(task, entry.model, cache)
    graph = made.float_graph()
    twin = convert(
        f"{entry.name} in float",
        entry.model,
        task.target.recipe(EXACT, entry.runtime),
        entry.runtime,
        task.target,
        task.threads,
        task.host,
        cache,
        made.float_source(),
    )
    form = task.target.recipe(base.recipe, base.runtime).format
    assert form
    profiles = [
        measure.layers(task.device, candidate, feeds(candidate))
        for candidate in (twin, base.candidate)
    ]
    kept = made.cuts(graph, form, profiles, told)
    found = []
    for names in kept:
        try:
            source = made.quantized(form, told, frozenset(names) | made.kept_float(entry.runtime))
        except UnsupportedError:
            continue
        how = {"made_from": base.name, "format": base.candidate.details.get("format")}
        found.append(replace(source, details={**source.details, **how}))
    return found


def _quiet(progress: Progress, name: str) -> Callable[[float, float, str], None]:
    return lambda done, total, what: progress(done, total, f"{name}: {what}")
