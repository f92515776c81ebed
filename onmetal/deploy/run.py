"""Runs a deployment step by step, from reading the model files to writing the bundle."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from msgspec import UNSET, UnsetType
from msgspec.structs import asdict, replace

from onmetal import __version__
from onmetal.budget import Budget
from onmetal.bundles import builds, privacy, write
from onmetal.bundles.manifest import HALF_TOLERANCE, TOLERANCE
from onmetal.deploy import estimate, micro, rank
from onmetal.deploy.accuracy import Reference, judge
from onmetal.deploy.candidates import calibration_warnings
from onmetal.deploy.choose import choose, objective, resolve, settled
from onmetal.deploy.context import Clock, Run, Standing, Task
from onmetal.deploy.examine import examine
from onmetal.deploy.measure import measure
from onmetal.deploy.prepare import prepare
from onmetal.deploy.propose.order import PROPOSERS
from onmetal.deploy.propose.plan import Planned
from onmetal.deploy.request import Request
from onmetal.deploy.screen import drop_lost, screen
from onmetal.deploy.trials import planned_trial
from onmetal.deploy.vectors import keep_raw, write_feeds, write_golden
from onmetal.errors import BudgetError, DeviceError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.progress import Progress
from onmetal.records import NO_DATA, Trial, plain, restore
from onmetal.reports import manifest_record, of_trials, record
from onmetal.reports.manifest_record import Manifest
from onmetal.reports.readme import readme
from onmetal.reports.record import Document, Report
from onmetal.runtimes.fit import load_target
from onmetal.samples import Samples


def deploy(request: Request, progress: Progress) -> Report[Document]:
    """Run a whole deployment and return its report.

    Raises the errors of onmetal.errors; BudgetError and DeviceError carry the report where
    candidates were judged.
    """
    out = request.out or Path(f"{request.models[0].stem}-{Path(request.target).stem}")
    target = load_target(request.target)
    builds.check_golden(target, request.golden)
    if not request.dry_run:
        write.check_out(out, request.force)
        if not request.keep_paths:
            privacy.secret()  # fails now, not when the bundle is written
    if target.micro:
        progress.steps = 6 if request.device in (None, "none") else 7
    clock = Clock(request.time_limit_s)
    cache_damages: list[str] = []
    with Cache(say=cache_damages.append) as cache, cache.scratch() as scratch:
        progress.step("reading the model and the data")
        task = prepare(request, cache, progress)
        ended_well = False
        try:
            report = _deploy(task, out, cache, scratch, clock, progress, cache_damages)
            ended_well = True
        finally:
            if task.device:
                task.device.close(keep=ended_well)
        return report


def _deploy(
    task: Task,
    out: Path,
    cache: Cache,
    scratch: Path,
    clock: Clock,
    progress: Progress,
    cache_damages: list[str],
) -> Report[Document]:
    """The steps of `deploy` after everything was read and checked.

    `cache_damages`: sentences about damaged cache entries; the cache appends them as it meets such
    entries.
    """
    if task.request.dry_run:
        return _dry_run(task)
    _check_plan(task.planned)
    progress.expect(estimate.steps_s(task), task.request.time_limit_s)
    run = Run(task, cache, scratch, clock, progress, write_feeds(task, scratch))
    if task.target.micro:
        micro.check_operators(task, cache)
    progress.step(estimate.CONVERTING)
    standing = Standing(warnings=task.warnings)
    for proposer in PROPOSERS:
        while (further := proposer.propose(run, standing)) is not None:
            standing = screen(run, further)
    standing = standing.warned(calibration_warnings(run))
    progress.expect(estimate.steps_s(task, standing), task.request.time_limit_s)
    progress.step(estimate.JUDGING)
    if task.device and task.one_model:
        micro.check_flashed(task, task.device, standing.trials)
    standing, reference = judge(run, standing)
    budget = resolve(task, reference.stem, reference.value)
    standing = drop_lost(task, standing, budget)
    standing = _measured(run, standing, budget, reference)
    progress.step(estimate.DECIDING)
    choice = choose(run, standing, budget, reference.stem)
    standing, base, chosen = choice.standing, choice.base, choice.chosen
    after, warnings = _state_after(task)
    standing = standing.warned([*warnings, *cache_damages])
    aside = _aside(task, base, chosen)
    measurements = keep_raw(standing.trials, cache)
    if chosen is None:
        failed = Report(_document(task, budget, standing, base, None), aside)
        _refuse(task, failed, standing.trials, out)
    progress.step(estimate.WRITING)
    document = _document(task, budget, standing, base, chosen, out)
    try:
        document = _bundle(run, document, chosen, after, measurements, out)
    except (
        DeviceError
    ) as error:  # the golden vectors run on the device; the report keeps all figures
        judged = Report(_document(task, budget, standing, base, None), aside)
        raise DeviceError(f"the bundle could not be written: {error}", judged) from None
    return Report(document, aside)


def _measured(run: Run, standing: Standing, budget: Budget, reference: Reference) -> Standing:
    """Measure memory, profile, latency and energy, as far as the target and the device allow."""
    task, progress = run.task, run.progress
    if task.target.micro:
        progress.step(estimate.COUNTING)
        standing = micro.count_memory(run, standing)
    if task.device and task.one_model:
        progress.step(estimate.MEASURING)
        return micro.measure_flashed(run, standing, task.device)
    if task.device:
        progress.step(estimate.PROFILING)
        standing = examine(run, standing, task.device)
        progress.step(estimate.MEASURING)
        enough = settled(task, budget, standing.trials, reference.stem)
        standing = measure(run, standing, task.device, enough)
    return standing


def _check_plan(planned: list[Planned]) -> None:
    """Raise UsageError or UnsupportedError where no planned candidate can be tried."""
    if all(entry.skipped or entry.reference_only for entry in planned):
        reasons = [f"{entry.name}: {entry.skipped}" for entry in planned if entry.skipped]
        kind = UsageError if any(e.skipped == NO_DATA for e in planned) else UnsupportedError
        raise kind("none of the candidates asked for can run here:", details=reasons)


def _document(
    task: Task,
    budget: Budget,
    standing: Standing,
    base: Trial | None,
    chosen: Trial | None,
    out: Path | None = None,
) -> Document:
    """The document of the report. `out`: the folder of the bundle; None where none is written."""
    request, trials = task.request, standing.trials
    ran = [trial for trial in trials if trial.status in ("chosen", "ok", "over-budget")]
    data = task.data[str(task.models[0].path)]
    return Document(
        schema=1,
        target=task.target.name,
        mode=request.mode,
        decided_by=objective(task).name,
        models=[of_trials.model(entry) for entry in task.models],
        data=record.Data(
            source=data.source,
            digest=data.digest,
            metric=task.metric.name if task.metric else None,
            output=task.output,
            calibration_samples=task.calibration_samples,
            evaluation_samples=data.count if task.labelled else 0,
            warnings=list(standing.warnings),
        ),
        device=of_trials.device(task.facts if task.device else None),
        budget=budget.document(),
        minimize=request.minimize,
        batch=task.models[0].batch,
        threads=task.threads,
        candidates=[of_trials.candidate(trial) for trial in trials],
        baseline=base.name if base else None,
        chosen=chosen.name if chosen else None,
        pareto=rank.pareto(ran, task.target),
        bundle=str(out) if out else None,
    )


def _aside(task: Task, base: Trial | None, chosen: Trial | None) -> record.Aside:
    """Facts for the text report that the JSON document does not hold."""
    again = chosen.again.get(base.name) if chosen and base else None
    baseline_ms = None
    if again:
        baseline_ms = float(np.median(np.concatenate(list(again.samples_ns.values())))) / 1e6
    throughput = None
    if chosen and base and objective(task).by_means:
        throughput = rank.latest(base, chosen, objective(task))
    return record.Aside(
        higher_is_better=task.metric.higher_is_better if task.metric else True,
        proportion=task.metric.proportion if task.metric else True,
        impossible=frozenset(entry.name for entry in task.planned if entry.skipped),
        throughput=of_trials.versus(throughput),
        baseline_again_ms=baseline_ms,
    )


def _state_after(task: Task) -> tuple[dict[str, Any] | None, list[str]]:
    """The device's state after all measurements, and warnings about what got worse during them."""
    if task.device is None:
        return None, []
    try:
        after = task.device.state()
    except DeviceError as error:
        return None, [f"the device's state after measuring is not known: {error}"]
    worse = task.device.changed(after)
    return after, [f"{task.device.address}, after measuring: {problem}" for problem in worse]


def _dry_run(task: Task) -> Report[Document]:
    trials = []
    for entry in task.planned:
        reason = "as the reference only" if entry.reference_only else entry.skipped
        status: Literal["skipped", "planned"] = "skipped" if entry.skipped else "planned"
        trials.append(replace(planned_trial(entry), status=status, reason=reason))
    budget = resolve(task, task.models[0].stem, None)
    standing = Standing(tuple(trials), warnings=task.warnings)
    return Report(replace(_document(task, budget, standing, None, None), dry_run=True))


def _refuse(task: Task, report: Report[Document], trials: Sequence[Trial], out: Path) -> NoReturn:
    """Raise the error that fits the reasons why no candidate was chosen.

    Reasons of candidates that were never to be tried are left to the document.
    """
    late = [t for t in trials if "--time-limit" in (t.missing.get("latency_ms") or t.reason or "")]
    if late and not any(trial.latency_ms for trial in trials):
        raise DeviceError("--time-limit ended before anything was measured; give more", report)
    tried = [trial for trial in trials if trial.status != "skipped"]
    planned = {entry.name for entry in task.planned if not entry.skipped}
    objected = [t for t in trials if t.reason and t.name in planned]
    objected.sort(key=lambda t: t.failure is None)  # what failed comes first
    reasons = [f"{t.name}: {t.reason}" for t in objected]
    if tried and all(trial.failure for trial in tried):
        if all(trial.failure == "conversion" for trial in tried):
            raise UnsupportedError("no runtime of this target can run the model:", report, reasons)
        raise DeviceError("every candidate failed:", report, reasons)
    error = BudgetError(
        f"no candidate meets the budget; {out / write.REPORT} has every figure:", report, reasons
    )
    failed = replace(report.document, error=record.Failure(error.exit_code, str(error)))
    write.write_report(out, _private(task, plain(failed), out), task.request.force)
    raise error


def _tolerance(task: Task, chosen: Trial) -> float:
    """The tolerance of the golden vectors, as a part of the largest magnitude of an output.

    It is 0 where TFLite Micro computes with integers alone, which gives the same outputs on every
    device, unless this board's outputs were measured to differ.
    """
    differs = chosen.agreement is not None and not chosen.agreement["identical"]
    if chosen.embedded and chosen.embedded["flash"]["whole_numbers"] and not differs:
        return 0.0
    tolerance = TOLERANCE[task.target.recipe(chosen.recipe, chosen.runtime).compute]
    outputs = chosen.candidate.model.outputs if chosen.candidate else ()
    half = any(tensor.dtype == "float16" for tensor in outputs)
    return max(tolerance, HALF_TOLERANCE) if half else tolerance


def _bundle(
    run: Run,
    document: Document,
    chosen: Trial,
    after: dict[str, Any] | None,
    measurements: Path | None,
    out: Path,
) -> Document:
    """Write the bundle. -> the document, with the warnings about the bundle added."""
    task, candidate = run.task, chosen.candidate
    assert candidate
    tolerance = _tolerance(task, chosen)
    golden = run.scratch / "golden.npz"
    vectors = write_golden(run, candidate, golden)
    kind = task.request.golden
    if kind == "real" and not (task.request.data or task.request.calibration_data):
        kind = "random"
    data = task.data[str(candidate.model.path)]
    additions = builds.beside(task.target, task.device, chosen, golden, tolerance)
    warnings = [*document.data.warnings, *additions.warnings]
    document = replace(document, data=replace(document.data, warnings=warnings))
    manifest = Manifest(
        **asdict(document),
        run=of_trials.run(candidate),
        golden=manifest_record.Golden(vectors, kind, tolerance),
        preprocessing=_preprocessing(data),
        classes=_classes(data),
        evaluation_indices=data.places().tolist() if task.labelled else [],
        digests=manifest_record.Digests(
            models={str(entry.path.name): entry.sha256 for entry in task.models},
            data=data.digest,
            artifact=candidate.sha256,
        ),
        tools={
            "onmetal": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            **task.host.facts().runtimes,
        },
        device_after=after,
        measured=task.timed,
        unmeasured=_unmeasured(task),
        builds=of_trials.typed(additions.builds, manifest_record.Builds)
        if additions.builds
        else None,
    )
    written = _private(task, plain(manifest), out)
    write.write(
        out,
        candidate.runtime,
        [*candidate.files, *([measurements] if measurements else [])],
        additions.files,
        golden if vectors else None,
        written,
        readme(restore(written, Manifest)),
        task.request.force,
        host=task.host,
        device=task.ships_on,
    )
    return document


def _unmeasured(task: Task) -> str | UnsetType:
    if task.device is None:
        return "nothing was timed: no device was given"
    if task.emulated:
        return "the device is emulated: its timings are not the hardware's"
    return UNSET


def _private(task: Task, document: dict[str, Any], out: Path) -> dict[str, Any]:
    """The document without private paths and addresses, unless --keep-paths was given."""
    if task.request.keep_paths:
        return document
    return privacy.shared(document, _known(task, out), privacy.secret())


def _known(task: Task, out: Path) -> privacy.Known:
    request = task.request
    named = (*request.models, request.target, request.data, request.calibration_data, out)
    return privacy.known(named, task.device.address if task.device else "none")


def _preprocessing(data: Samples) -> dict[str, Any] | None:
    """The preprocessing of images, without class names; None where DATA is no folder of images."""
    if data.preprocessing is None:
        return None
    recorded: dict[str, Any] = plain(data.preprocessing)
    return {key: value for key, value in recorded.items() if key != "classes"}


def _classes(data: Samples) -> list[str] | None:
    """The names of the classes, in the order of the scores; None where DATA names none."""
    names = getattr(data.preprocessing, "classes", None)
    return list(names) if names else None
