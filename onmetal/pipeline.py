"""A deployment, from the model files to the bundle, in one straight line."""

import io
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal import __version__, bundle, decide, model, plan, profilers, report, targets
from onmetal import cache as caches
from onmetal.budget import Asked, Budget, Share
from onmetal.cache import Cache
from onmetal.calibration import accuracy, fidelity, metrics, samples
from onmetal.calibration.metrics import Metric, Scorer
from onmetal.calibration.samples import Samples
from onmetal.converters import check_options, convert
from onmetal.decide import Objective
from onmetal.errors import (
    BudgetError,
    DeviceError,
    OnmetalError,
    UnsupportedError,
    UsageError,
)
from onmetal.plan import Planned
from onmetal.profilers import measure, statistics
from onmetal.profilers.local import Local, state
from onmetal.profilers.measure import MODES
from onmetal.progress import Progress
from onmetal.records import Accuracy, Candidate, DeviceFacts, Model, Trial, plain
from onmetal.targets import EXACT, Recipe, Target

FEEDS = 8
"""Samples that inferences are timed with, one a round, so that no single one decides."""
GOLDEN_BYTES = 8_000_000
"""Golden vectors are at most this large together, but at least one."""
RANDOM_SAMPLES = 8
FEW_SAMPLES = 100
TOLERANCE = {"f32": 1e-4, "f16": 2e-2, "bf16": 1e-1}
"""Of the largest magnitude of an output: what other CPUs' kernels may round differently."""
COMPUTED = 0.05
"""A half-precision candidate must spend at least this share of its time in that precision."""


class Request(Struct, frozen=True):
    """Everything that was asked for on the command line."""

    models: tuple[Path, ...]
    target: str
    data: str | None = None
    calibration_data: str | None = None
    metric: str | None = None
    output: str | None = None
    device: str | None = None
    budget: Asked = Asked()
    budget_given: tuple[str, ...] = ()
    """The budget options that the user gave, as against the default ones."""
    minimize: Objective = "latency"
    recipes: tuple[str, ...] | None = None
    batch: int | None = None
    threads: int | None = None
    input_shapes: tuple[str, ...] = ()
    out: Path | None = None
    force: bool = False
    time_limit_s: float | None = None
    mode: Literal["quick", "default", "thorough"] = "default"
    dry_run: bool = False


class Clock:
    """The time limit, shared out: judging may take 60 % of it, measuring goes on until 85 %."""

    def __init__(self, limit_s: float | None) -> None:
        self.began, self.limit_s = time.monotonic(), limit_s

    def deadline(self, share: float) -> float | None:
        return None if self.limit_s is None else self.began + share * self.limit_s

    def left_s(self, share: float) -> float:
        end = self.deadline(share)
        return 86400.0 if end is None else end - time.monotonic()


class Task(Struct, frozen=True):
    """What is judged, on what: settled before anything long begins."""

    request: Request
    target: Target
    device: Local | None
    """None: nothing is timed; accuracy is judged on the host all the same."""
    host: Local
    facts: DeviceFacts
    models: list[Model]
    threads: int
    data: dict[str, Samples]
    """Model path -> the samples that it is judged and timed with."""
    labelled: bool
    metric: Metric | None
    output: str | None
    calibration_samples: int
    warnings: list[str]


def deploy(request: Request, progress: Progress) -> dict[str, Any]:
    """Do all of it. -> the document of `--json`.

    Raises the errors of onmetal.errors; BudgetError and DeviceError carry the document where
    candidates were judged.
    """
    out = request.out or Path(f"{request.models[0].stem}-{Path(request.target).stem}")
    bundle.check_out(out, request.force)
    clock = Clock(request.time_limit_s)
    with Cache() as cache, cache.scratch() as scratch:
        progress.step("reading the model and the data")
        task = prepare(request, cache)
        planned = plan.plan(task.target, task.models, task.facts, _families(request))
        if request.dry_run:
            return _dry_run(task, planned)
        progress.step("converting")
        trials = convert_all(task, planned, cache, clock, progress)
        progress.step("judging")
        trials, reference = judge_all(task, trials, cache, clock, progress)
        feeds = _write_feeds(task, scratch)
        if task.device:
            progress.step("asking the runtimes what really ran")
            trials = examine_all(task, task.device, trials, feeds, clock, progress)
            progress.step("measuring")
            trials = measure_all(task, task.device, trials, feeds, clock, progress)
        progress.step("deciding")
        budget = _resolve(task, reference, trials)
        trials, base, chosen = choose(task, planned, budget, trials, reference, feeds, clock, progress)
        document = _document(task, budget, trials, base, chosen)
        if chosen is None:
            _refuse(document, trials, out)
        progress.step("writing the bundle")
        assert chosen
        document["bundle"] = str(out)
        _bundle(task, document, chosen, trials, out, scratch)
        return document


def _families(request: Request) -> list[str] | None:
    return None if request.recipes is None else list(request.recipes)


# --- before anything long


def prepare(request: Request, cache: Cache) -> Task:
    """Read and check everything that the user gave."""
    target = targets.load(request.target)
    check_options(target)
    host = Local(cache)
    facts = host.facts()
    device = _connect(request, target, cache)
    _check_budget(request, device)
    shapes = model.parse_shapes(list(request.input_shapes))
    models = [model.read(path, shapes, request.batch, cache, host) for path in request.models]
    _check_same_task(models)
    threads = request.threads or target.threads or facts.cores
    if threads > (facts.cores if device is None else device.facts().cores) * 4:
        raise UsageError(f"--threads {threads}: this machine has {facts.cores} cores")
    data, labelled, calibration_samples, warnings = _load_data(request, models, cache)
    output, metric = None, None
    if labelled:
        output, metric = _metric(request, models[0], data[str(models[0].path)])
    elif request.metric or request.output:
        raise UsageError("--metric and --output judge labelled data: give it with --data")
    warnings += [note for entry in models for note in entry.notes]
    warnings += _few(request, labelled, data[str(models[0].path)].count, metric)
    return Task(
        request,
        target,
        device,
        host,
        facts,
        models,
        threads,
        data,
        labelled,
        metric,
        output,
        calibration_samples,
        warnings,
    )


def _connect(request: Request, target: Target, cache: Cache) -> Local | None:
    if request.device == "none":
        return None
    if request.device is None and target.device.required:
        raise DeviceError(
            f"the target {target.name} needs a device: name it with --device, or use --no-device "
            "to choose by size alone, unmeasured"
        )
    return profilers.connect(target, request.device or target.device.transport, cache)


def _check_budget(request: Request, device: Local | None) -> None:
    """Refuse what cannot be measured, before hours are spent."""
    wanted = []
    if request.budget.max_latency_ms is not None or request.minimize in ("latency", "throughput"):
        wanted.append(("latency", request.budget.max_latency_ms is not None))
    if request.budget.max_memory_bytes is not None or request.minimize == "memory":
        wanted.append(("memory", True))
    if device is None and any(limit for _, limit in wanted):
        raise DeviceError(
            "a budget of latency or memory cannot be met without a device: leave --no-device out"
        )
    if request.budget.max_energy_mj is not None or request.minimize == "energy":
        raise DeviceError(
            "energy cannot be measured here: onmetal has no power meter for this device; "
            "leave --max-energy or --minimize energy out"
        )
    if request.data is None:
        for option in ("--max-accuracy-drop", "--min-accuracy"):
            if option in request.budget_given and request.budget != Asked(max_accuracy_drop=None):
                raise UsageError(f"{option} needs labelled data: give it with --data")
        if request.minimize == "accuracy-drop":
            raise UsageError("--minimize accuracy-drop needs labelled data: give it with --data")


def _check_same_task(models: list[Model]) -> None:
    stems = [entry.stem for entry in models]
    if double := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UsageError(f"two models are named {double[0]!r}: rename one file")
    first = models[0]
    for other in models[1:]:
        for kind, mine, theirs in (
            ("inputs", first.inputs, other.inputs),
            ("outputs", first.outputs, other.outputs),
        ):
            names = sorted(t.name for t in mine), sorted(t.name for t in theirs)
            single = len(mine) == len(theirs) == 1
            if names[0] != names[1] and not single:
                raise UsageError(
                    f"{other.path} and {first.path} do not compete: their {kind} differ "
                    f"({', '.join(names[1])} against {', '.join(names[0])})"
                )


def _load_data(
    request: Request, models: list[Model], cache: Cache
) -> tuple[dict[str, Samples], bool, int, list[str]]:
    """-> samples by model, whether they have labels, how many calibrate, warnings."""
    data: dict[str, Samples] = {}
    warnings: list[str] = []
    calibration_samples = 0
    for entry in models:
        calibration = None
        if request.calibration_data:
            calibration = samples.load(
                request.calibration_data, entry, cache, option="--calibration-data", labelled=False
            )
            calibration_samples = calibration.count
        if request.data:
            found = samples.load(request.data, entry, cache, option="--data", labelled=True)
        elif calibration:
            found = calibration
        else:
            found = samples.random(entry, cache, RANDOM_SAMPLES)
        data[str(entry.path)] = found
        if entry is not models[0]:
            continue
        warnings += found.warnings
        if request.data and calibration:
            warnings += calibration.warnings
            warnings += _shared(found, calibration, entry, cache)
    if not request.data:
        what = "the calibration data" if request.calibration_data else "random inputs"
        warnings.append(
            f"no labelled data: no task metric was measured; outputs on {what} are compared "
            "with the original model's"
        )
    return data, request.data is not None, calibration_samples, warnings


def _shared(found: Samples, calibration: Samples, entry: Model, cache: Cache) -> list[str]:
    both = np.intersect1d(
        samples.hashes(found, entry, cache), samples.hashes(calibration, entry, cache)
    )
    if not len(both):
        return []
    return [
        f"{len(both)} samples are in --calibration-data and in --data too: the accuracy of "
        "calibrated candidates will look better than it is"
    ]


def _metric(request: Request, entry: Model, data: Samples) -> tuple[str, Metric]:
    names = [tensor.name for tensor in entry.outputs]
    output = request.output or names[0]
    if output not in names:
        raise UsageError(f"--output {output}: no such output; the model has: {', '.join(names)}")
    tensor = entry.output(output)
    shape = entry.sample_shape(tensor)
    return output, metrics.choose(request.metric, tensor, shape, data.label_array())


def _few(request: Request, labelled: bool, count: int, metric: Metric | None) -> list[str]:
    drop = request.budget.max_accuracy_drop
    if not labelled or metric is None:
        return []
    if metric.proportion and isinstance(drop, Share) and 0 < drop.value < 1 / count:
        return [
            f"{count} samples cannot show a drop of {drop.value:.2%}: a single one is worth "
            f"{1 / count:.2%}; give more data"
        ]
    if count < FEW_SAMPLES:
        return [f"{count} samples are few: the interval of the accuracy will be wide"]
    return []


# --- candidates


def convert_all(
    task: Task, planned: list[Planned], cache: Cache, clock: Clock, progress: Progress
) -> list[Trial]:
    """One trial for everything planned; what cannot be converted carries the reason."""
    trials = []
    for number, entry in enumerate(planned):
        trial = Trial(entry.name, entry.recipe.name, entry.runtime, entry.model.stem)
        progress(number, len(planned), entry.name)
        if entry.skipped:
            trial = replace(trial, status="skipped", reason=entry.skipped)
        elif clock.left_s(0.6) <= 0 and number:
            trial = _out_of_time(trial, "converted")
        else:
            trial = _convert(task, entry, trial, cache)
        trials.append(trial)
    return trials


def _convert(task: Task, entry: Planned, trial: Trial, cache: Cache) -> Trial:
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
        )
    except UnsupportedError as error:
        return replace(trial, status="failed", reason=str(error), failure="conversion")
    return replace(trial, candidate=candidate)


def _out_of_time(trial: Trial, what: str) -> Trial:
    return replace(trial, status="skipped", reason=f"--time-limit ended before it was {what}")


def _usable(trial: Trial) -> bool:
    return trial.candidate is not None and trial.failure is None and trial.status != "skipped"


# --- accuracy and fidelity


class Judged(Struct, frozen=True):
    """Outputs of one candidate over the samples, memory-mapped, and how they score."""

    outputs: dict[str, np.ndarray]
    scorer: Scorer | None


def judge_all(
    task: Task, trials: list[Trial], cache: Cache, clock: Clock, progress: Progress
) -> tuple[list[Trial], str]:
    """Accuracy and fidelity of every candidate, by the artifact and runtime that ship.

    -> the trials, and the stem of the reference: the most accurate float model (without labels,
    the first). Each candidate's fidelity is to its own original, its drop to the reference.
    """
    found: dict[str, Judged] = {}
    for number, trial in enumerate(trials):
        if not _usable(trial):
            continue
        progress(number, len(trials), trial.name)
        try:
            found[trial.name] = _judge(task, trial, cache, clock, progress, bool(found))
        except DeviceError as error:
            if clock.left_s(0.6) <= 0:
                trials[number] = _out_of_time(trial, "judged")
            else:
                trials[number] = replace(
                    trial, status="failed", reason=str(error), failure="device"
                )
        except UnsupportedError as error:
            trials[number] = replace(
                trial, status="failed", reason=str(error), failure="conversion"
            )
    originals = {entry.stem: _original(task, entry, trials, found, cache, clock, progress)
                 for entry in task.models}
    reference = _reference(task, originals)
    base = originals[reference]
    return [
        _judged(trial, found.get(trial.name), originals[trial.model], base) for trial in trials
    ], reference


def _judge(
    task: Task, trial: Trial, cache: Cache, clock: Clock, progress: Progress, late: bool
) -> Judged:
    """Run the samples through the candidate, or find that in the cache."""
    candidate = trial.candidate
    assert candidate
    limit_s = clock.left_s(0.6)
    if limit_s <= 0 and late:
        raise DeviceError("no time left")
    data = task.data[str(candidate.model.path)]

    def build(folder: Path) -> None:
        with task.host.worker() as worker:
            worker.call(
                "open", timeout_s=3600, runtime=candidate.runtime, **measure.arguments(candidate)
            )
            worker.call(
                "outputs",
                timeout_s=max(1.0, limit_s),
                progress=lambda done, count: progress(
                    done, count, f"{trial.name}: sample {done} of {count}"
                ),
                samples=plain(data),
                model=plain(candidate.model),
                count=data.count,
                folder=str(folder),
            )

    digest = caches.key(
        artifact=candidate.sha256,
        runtime=candidate.runtime,
        version=candidate.runtime_version,
        options=candidate.options,
        inputs=plain(candidate.model.inputs),
        samples=data.digest,
        count=data.count,
        cpu=[task.facts.cpu, task.facts.flags],
        code=1,
    )
    folder = cache.get("outputs", digest, build)
    outputs = {
        tensor.name: np.load(folder / f"{number}.npy", mmap_mode="r", allow_pickle=False)
        for number, tensor in enumerate(candidate.model.outputs)
    }
    if task.metric is None:
        return Judged(outputs, None)
    name = task.output if task.output in outputs else candidate.model.outputs[0].name
    assert name
    return Judged(outputs, Scorer(task.metric, outputs, name, data.label_array()))


def _original(
    task: Task,
    entry: Model,
    trials: list[Trial],
    found: dict[str, Judged],
    cache: Cache,
    clock: Clock,
    progress: Progress,
) -> Judged | None:
    """What the original model gives: by ONNX Runtime in f32, as ONNX is defined by; where that
    fails, by the first exact candidate that runs."""
    exact = [t for t in trials if t.model == entry.stem and t.recipe == EXACT and t.name in found]
    if ours := next((t for t in exact if t.runtime == "onnxruntime"), None):
        return found[ours.name]
    name = f"{entry.stem} by onnxruntime"
    recipe = Recipe(EXACT, ("onnxruntime",), "f32")
    trial = Trial(name, EXACT, "onnxruntime", entry.stem)
    try:
        trial = replace(
            trial,
            candidate=convert(
                name, entry, recipe, "onnxruntime", task.target, task.threads, task.host, cache
            ),
        )
        return _judge(task, trial, cache, clock, progress, bool(found))
    except OnmetalError:
        return found[exact[0].name] if exact else None


def _reference(task: Task, originals: dict[str, Judged | None]) -> str:
    """The stem of the most accurate float model; without labels the first."""
    scored = {stem: judged.scorer(None) for stem, judged in originals.items()
              if judged and judged.scorer}
    if not scored or task.metric is None:
        return task.models[0].stem
    pick = max if task.metric.higher_is_better else min
    return pick(scored, key=lambda stem: scored[stem])


def _judged(
    trial: Trial, judged: Judged | None, original: Judged | None, base: Judged | None
) -> Trial:
    if judged is None:
        return trial
    found: Accuracy | None = None
    if judged.scorer:
        found = accuracy.judge(judged.scorer, base.scorer if base else None)
    sqnr = {}
    if original:
        sqnr = {
            name: fidelity.sqnr_db(original.outputs[name], output)
            for name, output in judged.outputs.items()
        }
    warnings = list(trial.warnings)
    if trial.recipe == EXACT and sqnr and min(sqnr.values()) < 60:
        warnings.append(
            f"{trial.runtime} does not compute this model as ONNX Runtime does: "
            f"{min(sqnr.values()):.0f} dB where over 60 dB is usual for fp32"
        )
    return replace(trial, accuracy=found, sqnr_db=sqnr, warnings=tuple(warnings))


# --- what really ran, memory, time


def _write_feeds(task: Task, scratch: Path) -> Callable[[Candidate], Path]:
    """The inputs to time and to make golden vectors with: samples spread over the data."""
    places: dict[str, Path] = {}
    for entry in task.models:
        data = task.data[str(entry.path)]
        count = max(1, min(FEEDS, data.count // entry.batch))
        arrays = {}
        for number in range(count):
            start = number * data.count // count
            indices = [min(start + place, data.count - 1) for place in range(entry.batch)]
            for name, array in data.feed(entry, indices).items():
                arrays[f"{number}/{name}"] = array
        places[str(entry.path)] = scratch / f"feeds-{len(places)}.npz"
        _write_npz(places[str(entry.path)], arrays)
    return lambda candidate: places[str(candidate.model.path)]


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """As np.savez_compressed, but with a fixed date, so that equal arrays are equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content.getvalue())


def examine_all(
    task: Task,
    device: Local,
    trials: list[Trial],
    feeds: Callable[[Candidate], Path],
    clock: Clock,
    progress: Progress,
) -> list[Trial]:
    """What really ran by the runtime's own profile, and the peak memory."""
    runs = MODES[task.request.mode].memory_runs
    done = []
    for number, trial in enumerate(trials):
        if not _usable(trial) or (clock.left_s(0.6) <= 0 and number):
            done.append(trial)
            continue
        progress(number, len(trials), trial.name)
        done.append(_examine(task, device, trial, feeds, runs))
    return done


def _examine(
    task: Task, device: Local, trial: Trial, feeds: Callable[[Candidate], Path], runs: int
) -> Trial:
    candidate = trial.candidate
    assert candidate
    missing = dict(trial.missing)
    missing["energy_mj"] = "no meter: onmetal has none for this device"
    ran_on, memory = None, None
    try:
        ran_on = measure.profile(device, candidate, feeds(candidate))
    except OnmetalError as error:
        missing["ran_on"] = str(error)
    try:
        memory = measure.peak_memory(device, candidate, feeds(candidate), runs)
    except OnmetalError as error:
        missing["peak_memory_bytes"] = str(error)
    trial = replace(trial, ran_on=ran_on, peak_memory_bytes=memory, missing=missing)
    compute = task.target.recipe(trial.recipe).compute
    if ran_on and trial.recipe != EXACT and ran_on["precision"].get(compute, 0.0) < COMPUTED:
        ran = ", ".join(f"{kind} {share:.0%}" for kind, share in ran_on["precision"].items())
        return replace(
            trial,
            status="failed",
            failure="conversion",
            reason=f"{trial.runtime} did not compute it in {compute} but in {ran}",
        )
    return trial


def measure_all(
    task: Task,
    device: Local,
    trials: list[Trial],
    feeds: Callable[[Candidate], Path],
    clock: Clock,
    progress: Progress,
) -> list[Trial]:
    running = [trial.candidate for trial in trials if _usable(trial) and trial.candidate]
    schedule = MODES[task.request.mode]
    outcome = measure.measure(
        device, running, feeds, schedule, progress, clock.deadline(0.85)
    )
    if outcome.cut_short:
        task.warnings.append("--time-limit cut the measuring short: its intervals are wider for it")
    return [_timed(trial, outcome) if _usable(trial) else trial for trial in trials]


def _timed(trial: Trial, outcome: measure.Outcome) -> Trial:
    if why := outcome.failures.get(trial.name):
        return replace(trial, status="failed", reason=why, failure="device")
    rounds = outcome.rounds.get(trial.name)
    assert trial.candidate
    if rounds is None or not rounds.samples_ns:
        why = "--time-limit ended before it was measured"
        return replace(trial, missing={**trial.missing, "latency_ms": why})
    return replace(
        trial,
        rounds=rounds,
        latency_ms=statistics.latency(rounds),
        throughput_per_s=statistics.throughput(rounds, trial.candidate.model.batch),
        load_ms=measure.load_figure(rounds),
    )


# --- the choice


def _resolve(task: Task, reference: str, trials: list[Trial]) -> Budget:
    original = next(entry for entry in task.models if entry.stem == reference)
    exact = [t for t in trials if t.model == reference and t.recipe == EXACT and t.accuracy]
    value = exact[0].accuracy.value if exact and exact[0].accuracy else None
    return task.request.budget.resolve(
        original_size_bytes=original.size_bytes,
        original_macs=original.macs,
        proportion=task.metric.proportion if task.metric else True,
        float_value=value,
    )


def objective(task: Task) -> Objective:
    """What decides: without a device nothing is timed, and the smallest wins."""
    timed = task.request.minimize in ("latency", "throughput", "memory", "energy")
    return "size" if task.device is None and timed else task.request.minimize


def choose(
    task: Task,
    planned: list[Planned],
    budget: Budget,
    trials: list[Trial],
    reference: str,
    feeds: Callable[[Candidate], Path],
    clock: Clock,
    progress: Progress,
) -> tuple[list[Trial], Trial | None, Trial | None]:
    """-> (every trial with its verdict and status, the baseline, the chosen one or None)."""
    base = decide.baseline(trials, reference)
    trials = decide.against(trials, base)
    base = next((t for t in trials if base and t.name == base.name), None)
    if task.device is None:
        trials = [_unmeasured(trial) for trial in trials]
    higher = task.metric.higher_is_better if task.metric else True
    left_out = {entry.name for entry in planned if entry.reference_only}
    trials = [_weigh(trial, budget, task.target, higher, left_out) for trial in trials]
    goal = objective(task)
    fitting = [trial for trial in trials if trial.status == "ok"]
    by_name = {trial.name: trial for trial in trials}
    chosen = None
    for pick in decide.ranking(fitting, goal, task.target.exactness):
        confirmed = _confirm(task, pick, base, feeds, clock, progress)
        found = decide.objections(confirmed, budget, task.target, higher)
        if not found and (why := _no_longer_pays(confirmed, base, goal)):
            found = [why]
        if found:
            reason = "measured again: " + "; ".join(found)
            by_name[pick.name] = replace(confirmed, status="over-budget", reason=reason)
            continue
        chosen = replace(confirmed, status="chosen")
        by_name[pick.name] = chosen
        break
    if chosen:
        for trial in fitting:
            if by_name[trial.name].status == "ok":
                why = decide.why_not(trial, chosen, goal)
                by_name[trial.name] = replace(by_name[trial.name], reason=why)
        if budget.crossed(chosen) and chosen.recipe != EXACT:
            task.warnings.append(
                f"{chosen.name}: the 95 % interval of its accuracy drop reaches over the budget; "
                "more samples would settle it"
            )
    return [by_name[trial.name] for trial in trials], base, chosen


def _unmeasured(trial: Trial) -> Trial:
    keys = ("latency_ms", "throughput_per_s", "load_ms", "peak_memory_bytes", "energy_mj")
    return replace(trial, missing=dict.fromkeys(keys, "unmeasured: no device was given"))


def _weigh(
    trial: Trial, budget: Budget, target: Target, higher: bool, left_out: set[str]
) -> Trial:
    if not _usable(trial):
        return trial
    if trial.name in left_out:
        return replace(trial, status="skipped", reason="run as the reference; left out by --recipes")
    if found := decide.objections(trial, budget, target, higher):
        return replace(trial, status="over-budget", reason="; ".join(found))
    return trial


def _confirm(
    task: Task,
    pick: Trial,
    base: Trial | None,
    feeds: Callable[[Candidate], Path],
    clock: Clock,
    progress: Progress,
) -> Trial:
    """Measure the pick again, in fresh blocks against the baseline: of several noisy figures the
    best looks better than it is, so the first one is not reported."""
    if task.device is None or pick.rounds is None or pick.candidate is None:
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
        MODES[task.request.mode],
        lambda done, total, what: progress(done, total, f"{pick.name} again, {what}"),
        clock.deadline(1.0),
        seed=1,
    )
    if pick.name in outcome.failures:
        raise DeviceError(f"{pick.name} failed when measured again: {outcome.failures[pick.name]}")
    if pick.name not in outcome.rounds:
        task.warnings.append(f"{pick.name} was not measured again: --time-limit had ended")
        return pick
    fresh = _timed(pick, outcome)
    assert fresh.rounds
    if base is None:
        return fresh
    other = outcome.rounds.get(base.name, fresh.rounds)
    return replace(fresh, versus_baseline=statistics.compare(other, fresh.rounds))


def _no_longer_pays(trial: Trial, base: Trial | None, goal: Objective) -> str | None:
    """An inexact candidate that is not faster beyond noise has no point where speed is the aim."""
    versus = trial.versus_baseline
    if goal not in decide.TIMED or trial.recipe == EXACT or base is None or versus is None:
        return None
    if versus.verdict == "faster":
        return None
    return f"{versus.verdict} against {base.name}, and less exact"


# --- what is told


def _document(
    task: Task, budget: Budget, trials: list[Trial], base: Trial | None, chosen: Trial | None
) -> dict[str, Any]:
    request = task.request
    ran = [trial for trial in trials if trial.status in ("chosen", "ok", "over-budget")]
    return {
        "schema": 1,
        "target": task.target.name,
        "mode": request.mode,
        "decided_by": objective(task),
        "models": [report.model_document(entry) for entry in task.models],
        "data": {
            "source": task.data[str(task.models[0].path)].source,
            "digest": task.data[str(task.models[0].path)].digest,
            "metric": task.metric.name if task.metric else None,
            "output": task.output,
            "calibration_samples": task.calibration_samples,
            "evaluation_samples": task.data[str(task.models[0].path)].count if task.labelled else 0,
            "warnings": task.warnings,
        },
        "device": report.device_document(task.facts) if task.device else None,
        "budget": plain(budget),
        "minimize": request.minimize,
        "batch": task.models[0].batch,
        "threads": task.threads,
        "candidates": [report.candidate_document(trial) for trial in trials],
        "baseline": base.name if base else None,
        "chosen": chosen.name if chosen else None,
        "pareto": decide.pareto(ran),
        "bundle": None,
        "table": report.table(trials, task.metric.name if task.metric else None),
    }


def _dry_run(task: Task, planned: list[Planned]) -> dict[str, Any]:
    document = _document(task, _resolve(task, task.models[0].stem, []), [], None, None)
    for entry in planned:
        trial = Trial(entry.name, entry.recipe.name, entry.runtime, entry.model.stem)
        reason = "as the reference only" if entry.reference_only else entry.skipped
        status: Literal["skipped", "planned"] = "skipped" if entry.skipped else "planned"
        document["candidates"].append(
            report.candidate_document(replace(trial, status=status, reason=reason))
        )
    document["dry_run"] = True
    document["table"] = report.planned(document)
    return document


def _refuse(document: dict[str, Any], trials: list[Trial], out: Path) -> None:
    """No candidate: say why, by what kind of failure it was."""
    tried = [trial for trial in trials if trial.status != "skipped" or trial.candidate]
    said = "\n".join(f"  {t.name}: {t.reason}" for t in trials if t.reason)
    if tried and all(trial.failure for trial in tried):
        if all(trial.failure == "conversion" for trial in tried):
            raise UnsupportedError(f"no runtime of this target can run the model:\n{said}", document)
        raise DeviceError(f"every candidate failed:\n{said}", document)
    if not any(trial.latency_ms for trial in trials) and any(
        "--time-limit" in (trial.missing.get("latency_ms") or trial.reason or "")
        for trial in trials
    ):
        raise DeviceError("--time-limit ended before anything was measured; give more", document)
    error = BudgetError(
        f"no candidate meets the budget; {out / bundle.REPORT} has every figure:\n{said}", document
    )
    document["error"] = {"code": error.exit_code, "message": str(error)}
    bundle.write_report(out, document)
    raise error


# --- the bundle


def _bundle(
    task: Task,
    document: dict[str, Any],
    chosen: Trial,
    trials: list[Trial],
    out: Path,
    scratch: Path,
) -> None:
    candidate = chosen.candidate
    assert candidate
    tolerance = TOLERANCE[task.target.recipe(chosen.recipe).compute]
    golden = scratch / "golden.npz"
    vectors = _golden(task, candidate, golden, scratch)
    data = task.data[str(candidate.model.path)]
    manifest = {
        **{key: value for key, value in document.items() if key != "table"},
        "run": report.run_document(candidate),
        "golden": {"vectors": vectors, "tolerance": tolerance},
        "evaluation_indices": list(range(data.count)) if task.labelled else [],
        "digests": {
            "models": {str(entry.path.name): entry.sha256 for entry in task.models},
            "data": data.digest,
            "artifact": candidate.sha256,
        },
        "tools": {"onmetal": __version__, **task.facts.runtimes},
        "device_after": state() if task.device else None,
        "measured": task.device is not None,
    }
    if task.device is None:
        manifest["unmeasured"] = "nothing was timed: no device was given"
    extra = {}
    for trial in trials:
        if trial.rounds:
            for (block, number), found in trial.rounds.samples_ns.items():
                extra[f"{trial.name}/{block}/{number}"] = found
    files = [*candidate.files]
    if extra:
        _write_npz(scratch / "measurements.npz", extra)
        files.append(scratch / "measurements.npz")
    readme = report.readme(document, chosen, tolerance)
    bundle.write(out, candidate.runtime, tuple(files), golden, manifest, readme)


def _golden(task: Task, candidate: Candidate, path: Path, scratch: Path) -> int:
    """Inputs and what the artifact gives for them, by the runtime that ships. -> how many."""
    data, entry = task.data[str(candidate.model.path)], candidate.model
    one = data.feed(entry, [min(i, data.count - 1) for i in range(entry.batch)])
    size = sum(array.nbytes for array in one.values())
    count = max(1, min(4, data.count // entry.batch, GOLDEN_BYTES // max(1, size)))
    arrays, inputs = {}, {}
    for number in range(count):
        start = number * data.count // count
        indices = [min(start + place, data.count - 1) for place in range(entry.batch)]
        for name, array in data.feed(entry, indices).items():
            inputs[f"{number}/{name}"] = array
            arrays[f"input/{name}/{number}"] = array
    _write_npz(scratch / "golden-inputs.npz", inputs)
    folder = scratch / "golden-outputs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with task.host.worker() as worker:
        worker.call(
            "open", timeout_s=3600, runtime=candidate.runtime, **measure.arguments(candidate)
        )
        worker.call(
            "run", timeout_s=3600, path=str(scratch / "golden-inputs.npz"), folder=str(folder)
        )
    for number in range(count):
        for place, tensor in enumerate(entry.outputs):
            arrays[f"output/{tensor.name}/{number}"] = np.load(folder / f"{number}-{place}.npy")
    _write_npz(path, arrays)
    return count
