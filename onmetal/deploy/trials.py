"""Candidates become trials: converted, examined and timed. A failure is a result, not an end."""

from collections.abc import Callable
from pathlib import Path

from msgspec.structs import replace

from onmetal.calibration.calibrated import CalibratedModel
from onmetal.deploy.convert import convert
from onmetal.deploy.propose.plan import Planned, calibrates
from onmetal.deploy.request import Clock, Task
from onmetal.errors import NeedlessError, OnmetalError, UnsupportedError
from onmetal.files.cache import Cache
from onmetal.profilers import energy, measure, statistics
from onmetal.profilers.devices import Device
from onmetal.profilers.measure import Schedule, Settled
from onmetal.progress import Progress
from onmetal.records import Basis, Candidate, Model, Rounds, Source, Trial
from onmetal.runtimes import defining
from onmetal.targets import EXACT

COMPUTED = 0.05
"""A candidate in fewer bits must spend at least this share of its time in that precision."""

QUANTIZING = 0.1
"""The part of --time-limit in which an 8-bit candidate may be begun: float must be judged and timed
too, and a calibration is not cut short."""

WAITS = "is made after the others"

Feeds = Callable[[Candidate], Path]
"""The .npz of inputs that a candidate is timed with."""


def convert_all(task: Task, cache: Cache, clock: Clock, progress: Progress) -> list[Trial]:
    """One trial for everything planned; what cannot be converted carries the reason. What is made
    of others (`mixed`) waits for them."""
    trials = []
    for number, entry in enumerate(task.planned):
        trial = planned_trial(entry)
        progress(number, len(task.planned), entry.name)
        if entry.skipped:
            trial = replace(trial, status="skipped", reason=entry.skipped)
        elif entry.recipe.does("mixed"):
            trial = replace(trial, status="skipped", reason=WAITS)
        elif clock.left_s(QUANTIZING if entry.recipe.quantized_by else 0.6) <= 0 and number:
            trial = out_of_time(trial, "converted")
        else:
            trial = convert_one(task, entry, trial, cache, progress)
        trials.append(trial)
    return trials


def planned_trial(entry: Planned) -> Trial:
    return Trial(
        entry.name, entry.recipe.name, entry.runtime, entry.model.stem, lineage=entry.lineage
    )


def check_calibration(task: Task, cache: Cache, clock: Clock, progress: Progress) -> None:
    """Warn of what is suspicious about the samples that candidates are calibrated with; where none
    is, about the inputs that they are judged by."""
    if clock.left_s(QUANTIZING) <= 0:
        return
    model = task.models[0]
    place = str(model.path)

    def told(done: float, total: float, what: str) -> None:
        progress(done, total, what)

    try:
        if calibrates(task.planned) and place in task.calibration:
            judged = task.data[place] if task.labelled else None
            task.warnings.extend(calibrated(task, model, cache).warnings(judged, told))
        elif task.request.data or task.request.calibration_data:
            task.warnings.extend(calibrated(task, model, cache).input_warnings(task.data[place]))
    except UnsupportedError:
        return  # each candidate says why


def calibrated(task: Task, model: Model, cache: Cache) -> CalibratedModel:
    samples = task.calibration.get(str(model.path))
    return CalibratedModel(model, task.target, samples, task.host, cache)


def convert_one(
    task: Task,
    entry: Planned,
    trial: Trial,
    cache: Cache,
    progress: Progress,
    source: Source | None = None,
) -> Trial:
    def told(done: float, total: float, what: str) -> None:
        progress(done, total, f"{entry.name}: {what}")

    try:
        candidate = convert(
            entry.name,
            entry.model,
            entry.recipe,
            entry.runtime,
            task.target,
            task.threads,
            task.host,
            cache,
            source
            or calibrated(task, entry.model, cache).source(entry.recipe, entry.runtime, told),
            task.calibration.get(str(entry.model.path)),
        )
    except NeedlessError as error:
        return replace(trial, status="skipped", reason=str(error))
    except UnsupportedError as error:
        return replace(trial, status="failed", reason=str(error), failure="conversion")
    if task.ships_on is task.device:  # it ships with the version that it was measured with
        candidate = replace(candidate, runtime_version=task.facts.runtimes[entry.runtime])
    return replace(trial, candidate=task.device.build(candidate) if task.device else candidate)


def original_trial(model: Model, trials: list[Trial]) -> Trial | None:
    """The candidate that is just the model itself, by the runtime that defines its format."""
    name = defining(model.format)
    for trial in trials:
        kind = (trial.model, trial.recipe, trial.runtime)
        if kind == (model.stem, EXACT, name) and usable(trial):
            return trial
    return None


def out_of_time(trial: Trial, what: str) -> Trial:
    return replace(trial, status="skipped", reason=f"--time-limit ended before it was {what}")


def usable(trial: Trial) -> bool:
    """Whether there is something to judge and to time, and nothing speaks against it yet."""
    return trial.candidate is not None and trial.failure is None and trial.status == "ok"


def examine_all(
    task: Task,
    device: Device,
    trials: list[Trial],
    feeds: Feeds,
    clock: Clock,
    progress: Progress,
) -> list[Trial]:
    """What really ran by the runtime's own profile, and the peak memory."""
    runs = measure.schedule(device, task.request.mode).memory_runs
    done = []
    for number, trial in enumerate(trials):
        if not usable(trial):
            done.append(trial)
            continue
        if clock.left_s(0.6) <= 0 and number:
            done.append(_unexamined(trial))
            continue
        progress(number, len(trials), trial.name)
        done.append(_examine(task, device, trial, feeds, runs))
    return done


def _unexamined(trial: Trial) -> Trial:
    """What computes in fewer bits must be seen to; the rest lacks figures."""
    if trial.recipe != EXACT:
        return out_of_time(trial, "examined")
    why = "--time-limit left no time for it"
    missing = dict.fromkeys(("ran_on", "peak_memory_bytes", "energy_mj"), why)
    return replace(trial, missing={**trial.missing, **missing})


def _examine(task: Task, device: Device, trial: Trial, feeds: Feeds, runs: int) -> Trial:
    candidate = trial.candidate
    assert candidate
    missing = dict(trial.missing)
    ran_on, memory = None, trial.figures.get("peak_memory_bytes")
    try:
        ran_on = measure.profile(device, candidate, feeds(candidate))
    except OnmetalError as error:
        missing["ran_on"] = str(error)
    try:
        # TFLite Micro's arena is known by now, and is what it takes.
        memory = memory or measure.peak_memory(device, candidate, feeds(candidate), runs)
    except OnmetalError as error:
        missing["peak_memory_bytes"] = str(error)
    trial = replace(trial, ran_on=ran_on, missing=missing)
    trial = trial.with_figures(peak_memory_bytes=memory) if memory else trial
    compute = task.target.recipe(trial.recipe, trial.runtime).compute
    if compute == "f32" and trial.recipe != EXACT:
        return trial
    if trial.recipe == EXACT:
        half = ran_on["precision"].get("bf16", 0.0) if ran_on else 0.0
        if half < COMPUTED:
            return trial
        reason = f"{trial.runtime} computed {half:.0%} of it in bf16, so it is not fp32"
        return replace(trial, status="failed", failure="conversion", reason=reason)
    if ran_on is None:
        reason = f"whether it computes in {compute} could not be determined: {missing['ran_on']}"
        return replace(trial, status="failed", failure="device", reason=reason)
    if ran_on["precision"].get(compute, 0.0) < COMPUTED:
        ran = ", ".join(f"{kind} {share:.0%}" for kind, share in ran_on["precision"].items())
        return replace(
            trial,
            status="failed",
            failure="conversion",
            reason=f"{trial.runtime} did not compute it in {compute} but in {ran}",
        )
    return trial


def with_energy(trial: Trial, device: Device, feed: Path, schedule: Schedule) -> Trial:
    """The trial with the energy of an inference by the device's meter, or why there is none."""
    candidate = trial.candidate
    assert candidate
    try:
        windows = energy.measure(device, candidate.artifact, feed, schedule.round_s)
    except OnmetalError as error:
        return replace(trial, missing={**trial.missing, "energy_mj": str(error)})
    return replace(trial, energy_windows=windows).with_figures(energy_mj=energy.figure(windows))


def measure_all(
    task: Task,
    device: Device,
    trials: list[Trial],
    feeds: Feeds,
    clock: Clock,
    progress: Progress,
    settled: Settled | None = None,
) -> list[Trial]:
    """Time all that are usable; `settled` says which need no more of it."""
    running = [trial.candidate for trial in trials if usable(trial) and trial.candidate]
    schedule = measure.schedule(device, task.request.mode)
    outcome = measure.measure(
        device, running, feeds, schedule, progress, clock.deadline(0.85), settled=settled
    )
    if outcome.cut_short:
        task.warnings.append("--time-limit ended the measurements early: their intervals are wider")
    return [
        with_energy(timed(task, trial, outcome), device, feeds(trial.candidate), schedule)
        if usable(trial) and trial.candidate
        else trial
        for trial in trials
    ]


def timed(task: Task, trial: Trial, outcome: measure.Outcome) -> Trial:
    if why := outcome.failures.get(trial.name):
        return replace(trial, status="failed", reason=why, failure="device")
    rounds = outcome.rounds.get(trial.name)
    assert trial.candidate
    if rounds is None or not rounds.samples_ns:
        why = "--time-limit ended before it was measured"
        return replace(trial, missing={**trial.missing, "latency_ms": why})
    return with_figures(trial, rounds, trial.candidate.model.batch, emulated=task.emulated)


def with_figures(trial: Trial, rounds: Rounds, batch: int, *, emulated: bool) -> Trial:
    """The trial with its rounds and what they come to."""
    basis: Basis = "emulated" if emulated else "measured"
    latency = replace(statistics.latency(rounds), basis=basis)
    return replace(trial, rounds=rounds, latency_ms=latency).with_figures(
        throughput_per_s=replace(statistics.throughput(rounds, batch), basis=basis),
        load_ms=replace(measure.load_figure(rounds), basis=basis),
    )
