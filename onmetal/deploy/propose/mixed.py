"""`int8-fast`: a runtime's fastest static 8-bit candidate, with some operators left in float.

The runtime's own profile says which operators.
"""

import numpy as np
from msgspec.structs import replace

from onmetal.deploy.candidates import calibrated, converted
from onmetal.deploy.context import Run, Screened, Standing
from onmetal.deploy.convert import convert
from onmetal.deploy.propose.plan import Planned
from onmetal.deploy.propose.planned import WAITS
from onmetal.deploy.screen import hopeless, short_times
from onmetal.deploy.trials import each, usable
from onmetal.errors import NeedlessError, OnmetalError, UnsupportedError
from onmetal.profilers import measure
from onmetal.records import Candidate, Source, Step, Trial
from onmetal.targets import EXACT

LATEST = 0.5
"""The part of --time-limit after which no mixture is begun."""
STATIC = (Step("static"),)
"""The steps of the candidates that mixtures are made from: a model that other steps have changed
is not the float model that the rest of a mixture is taken from."""


def propose(run: Run, standing: Standing) -> Standing | None:
    """Make the mixed candidates that wait for the static 8-bit ones; None where none waits."""
    waiting = {t.name: t for t in standing.trials if t.status == "skipped" and t.reason == WAITS}
    if not waiting:
        return None
    entries = {entry.name: entry for entry in run.task.planned}
    timings_ms: dict[str, list[float]] = {}

    def mixture(trial: Trial) -> Trial:
        best, timings_ms[trial.name] = _fastest(run, standing, entries[trial.name], trial)
        return best

    trials = each(run, standing.trials, mixture, tried=lambda trial: trial.name in waiting)
    screened = {name: Screened(rounds_ms, None) for name, rounds_ms in timings_ms.items()}
    return replace(standing.having(trials), screened={**standing.screened, **screened})


def _fastest(
    run: Run, standing: Standing, entry: Planned, trial: Trial
) -> tuple[Trial, list[float]]:
    """-> the trial of the fastest mixture of 8 bits and float, or with the reason why there is
    none; the medians in ms of the rounds of its short timing."""
    screened = standing.screened
    static = [
        variant
        for variant in standing.trials
        if variant.runtime == entry.runtime
        and variant.model == trial.model
        and run.task.target.recipe(variant.recipe, variant.runtime).steps == STATIC
        and variant.name in screened
        and screened[variant.name].rounds_ms
        and not hopeless(screened[variant.name])
    ]
    if not static or run.task.device is None or run.clock.left_s(LATEST) <= 0:
        why = "no static 8-bit candidate of this runtime was timed, which it would be made from"
        return replace(trial, reason=why), []
    base = min(static, key=lambda variant: screened[variant.name].p50_ms)
    trial = replace(trial, lineage=replace(trial.lineage, parent=base.name))
    try:
        sources = _mixtures(run, entry, base)
    except OnmetalError as error:
        why = f"no mixture of {base.name} and float could be made: {error}"
        return replace(trial, status="failed", failure="conversion", reason=why), []
    if not sources:
        why = f"by its profile no operator of {base.name} would be faster in float"
        return replace(trial, reason=why), []
    fresh = replace(trial, status="ok", reason=None)
    tried = [_tried(run, entry, fresh, source) for source in sources]
    usable_trials = [variant for variant in tried if usable(variant)]
    if not usable_trials:
        return tried[0], []
    numbered = [
        replace(variant, name=f"{variant.name} #{number}", candidate=_named(variant, number))
        for number, variant in enumerate(usable_trials)
    ]
    times = short_times(run, [*numbered, base])
    rounds_ms = [times.get(variant.name, []) for variant in numbered]
    best = min(range(len(usable_trials)), key=lambda i: np.median(rounds_ms[i] or [np.inf]))
    return usable_trials[best], rounds_ms[best]


def _tried(run: Run, entry: Planned, trial: Trial, source: Source) -> Trial:
    try:
        return converted(run, entry, trial, source)
    except NeedlessError as error:
        return replace(trial, status="skipped", reason=str(error))
    except UnsupportedError as error:
        return replace(trial, status="failed", failure="conversion", reason=str(error))


def _named(trial: Trial, number: int) -> Candidate:
    assert trial.candidate
    return replace(trial.candidate, name=f"{trial.name} #{number}")


def _mixtures(run: Run, entry: Planned, base: Trial) -> list[Source]:
    """Quantized graphs with some operators in float, which are selected by this runtime's profiles
    of the float and the 8-bit candidate."""
    task = run.task
    assert task.device and base.candidate

    def progress(done: float, total: float, what: str) -> None:
        run.progress(done, total, f"{entry.name}: {what}")

    model = calibrated(run, entry.model)
    graph = model.float_graph()
    twin = convert(
        f"{entry.name} in float",
        entry.model,
        task.target.recipe(EXACT, entry.runtime),
        entry.runtime,
        task.target,
        task.threads,
        task.host,
        run.cache,
        model.float_source(),
    )
    form = task.target.recipe(base.recipe, base.runtime).format
    assert form
    profiles = [
        measure.layers(task.device, candidate, run.feeds(candidate))
        for candidate in (twin, base.candidate)
    ]
    sources = []
    for names in model.cuts(graph, form, profiles, progress):
        in_float = frozenset(names) | model.kept_float(entry.runtime)
        try:
            source = model.quantized(form, progress, in_float)
        except UnsupportedError:
            continue
        origin = {"made_from": base.name, "format": base.candidate.details.get("format")}
        sources.append(replace(source, details={**source.details, **origin}))
    return sources
