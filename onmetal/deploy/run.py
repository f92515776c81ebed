"""A deployment, from the model files to the bundle, in one straight line."""

import platform
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from onmetal import __version__, costs, targets
from onmetal.budget import Budget
from onmetal.bundles import builds, privacy, write
from onmetal.bundles.manifest import HALF_TOLERANCE, TOLERANCE
from onmetal.deploy import estimate, micro, rank
from onmetal.deploy.accuracy import judge_all
from onmetal.deploy.choose import choose, objective, resolve, settled
from onmetal.deploy.propose.mixed import add_fast
from onmetal.deploy.propose.plan import Planned
from onmetal.deploy.request import Clock, Request, Task, prepare
from onmetal.deploy.screen import drop_lost, look
from onmetal.deploy.trials import check_calibration, convert_all, examine_all, measure_all
from onmetal.deploy.vectors import keep_raw, write_feeds, write_golden
from onmetal.errors import BudgetError, DeviceError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.progress import Progress
from onmetal.records import NO_DATA, Trial, plain
from onmetal.reports import report, text
from onmetal.samples import Samples
from onmetal.texts.terminal import PLAIN, Screen


def deploy(request: Request, progress: Progress, screen: Screen = PLAIN) -> dict[str, Any]:
    """Do all of it. -> the document of `--json`, and under `table` the lines for a screen.

    Raises the errors of onmetal.errors; BudgetError and DeviceError carry the document where
    candidates were judged.
    """
    out = request.out or Path(f"{request.models[0].stem}-{Path(request.target).stem}")
    target = targets.load(request.target)
    builds.check_golden(target, request.golden)
    if not request.dry_run:
        write.check_out(out, request.force)
        if not request.keep_paths:
            privacy.secret()  # it is needed in the end
    if target.micro:
        progress.steps = 6 if request.device in (None, "none") else 7
    clock = Clock(request.time_limit_s)
    damages: list[str] = []
    with Cache(say=damages.append) as cache, cache.scratch() as scratch:
        progress.step("reading the model and the data")
        task = prepare(request, cache, progress)
        ended_well = False
        try:
            document = _deploy(task, out, cache, scratch, clock, progress, screen, damages)
            ended_well = True
        finally:
            if task.device:
                task.device.close(keep=ended_well)
        return document


def _deploy(
    task: Task,
    out: Path,
    cache: Cache,
    scratch: Path,
    clock: Clock,
    progress: Progress,
    screen: Screen,
    damages: list[str],
) -> dict[str, Any]:
    """What `deploy` does once all is read and checked. `damages`: of the cache, in words, as they
    are met."""
    if task.request.dry_run:
        return _dry_run(task)
    _check_plan(task.planned)
    progress.expect(estimate.steps_s(task), task.request.time_limit_s)
    feeds = write_feeds(task, scratch)
    if task.target.micro:
        micro.check_operators(task, cache)
    progress.step(estimate.CONVERTING)
    trials = convert_all(task, cache, clock, progress)
    check_calibration(task, cache, clock, progress)
    trials, seen = look(task, trials, feeds, cache, scratch, clock, progress)
    trials = add_fast(task, trials, seen, feeds, cache, clock, progress)
    timed_ms = {name: looked.p50_ms for name, looked in seen.items()}
    progress.expect(estimate.steps_s(task, trials, timed_ms), task.request.time_limit_s)
    progress.step(estimate.JUDGING)
    if task.board:
        micro.on_board(task, task.board, trials)
    trials, reference, value = judge_all(task, trials, feeds, cache, clock, progress)
    budget = resolve(task, reference, value)
    trials = drop_lost(task, trials, seen, budget)
    if task.target.micro:
        progress.step(estimate.COUNTING)
        trials = micro.examine_all(task, trials, feeds, progress)
    if task.board:
        progress.step(estimate.MEASURING)
        trials = micro.measure_board(task, task.board, trials, feeds, clock, progress)
    elif task.device:
        progress.step(estimate.PROFILING)
        trials = examine_all(task, task.device, trials, feeds, clock, progress)
        progress.step(estimate.MEASURING)
        enough = settled(task, budget, trials, reference)
        trials = measure_all(task, task.device, trials, feeds, clock, progress, enough)
    progress.step(estimate.DECIDING)
    trials, base, chosen = choose(task, budget, trials, reference, feeds, clock, progress)
    after = _state_after(task)
    task.warnings.extend(damages)
    document = _document(task, budget, trials, base, chosen)
    document["table"] = text.text(trials, base, chosen, _setting(task, budget), screen)
    measurements = keep_raw(trials, cache)
    if chosen is None:
        _refuse(task, document, trials, out)
    progress.step(estimate.WRITING)
    assert chosen
    document["bundle"] = str(out)
    try:
        _bundle(task, document, chosen, after, measurements, out, scratch)
    except DeviceError as error:  # the golden vectors run on the device: its figures are told
        document.update(chosen=None, bundle=None)
        raise DeviceError(f"the bundle could not be written: {error}", document) from None
    return document


def _check_plan(planned: list[Planned]) -> None:
    """Refuse where nothing that was asked for can be tried here."""
    if all(entry.skipped or entry.reference_only for entry in planned):
        said = [f"{entry.name}: {entry.skipped}" for entry in planned if entry.skipped]
        kind = UsageError if any(e.skipped == NO_DATA for e in planned) else UnsupportedError
        raise kind("none of the candidates asked for can run here:", details=said)


def _document(
    task: Task, budget: Budget, trials: list[Trial], base: Trial | None, chosen: Trial | None
) -> dict[str, Any]:
    request = task.request
    ran = [trial for trial in trials if trial.status in ("chosen", "ok", "over-budget")]
    return {
        "schema": 1,
        "target": task.target.name,
        "mode": request.mode,
        "decided_by": objective(task).name,
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
        "device": report.device_document(task.facts if task.device else None),
        "budget": budget.document(),
        "minimize": request.minimize,
        "batch": task.models[0].batch,
        "threads": task.threads,
        "candidates": [report.candidate_document(trial) for trial in trials],
        "baseline": base.name if base else None,
        "chosen": chosen.name if chosen else None,
        "pareto": rank.pareto(ran, task.target),
        "bundle": None,
    }


def _setting(task: Task, budget: Budget) -> text.Setting:
    """What the text for people says besides the trials."""
    return text.Setting(
        decided_by=objective(task).name,
        minimize=task.request.minimize,
        metric=task.metric.name if task.metric else None,
        higher_is_better=task.metric.higher_is_better if task.metric else True,
        proportion=task.metric.proportion if task.metric else True,
        several_models=len(task.models) > 1,
        original_size_bytes=task.models[0].size_bytes if len(task.models) == 1 else None,
        emulated=task.emulated,
        p90=costs.LATENCY.name in budget.limits,
        impossible=frozenset(entry.name for entry in task.planned if entry.skipped),
    )


def _state_after(task: Task) -> dict[str, Any] | None:
    """The device's state once all is measured; what got worse with it becomes a warning."""
    if task.device is None:
        return None
    try:
        after = task.device.state()
    except DeviceError as error:
        task.warnings.append(f"the device's state after measuring is not known: {error}")
        return None
    if task.remote:
        worse = task.remote.changed(after)
        task.warnings.extend(f"{task.remote.address}, after measuring: {said}" for said in worse)
    return after


def _dry_run(task: Task) -> dict[str, Any]:
    document = _document(task, resolve(task, task.models[0].stem, None), [], None, None)
    for entry in task.planned:
        trial = Trial(entry.name, entry.recipe.name, entry.runtime, entry.model.stem)
        reason = "as the reference only" if entry.reference_only else entry.skipped
        status: Literal["skipped", "planned"] = "skipped" if entry.skipped else "planned"
        document["candidates"].append(
            report.candidate_document(replace(trial, status=status, reason=reason))
        )
    document["dry_run"] = True
    document["table"] = report.planned(document)
    return document


def _refuse(task: Task, document: dict[str, Any], trials: list[Trial], out: Path) -> None:
    """No candidate: say why, by what kind of failure it was; of what was never to be tried, the
    document says why."""
    late = [t for t in trials if "--time-limit" in (t.missing.get("latency_ms") or t.reason or "")]
    if late and not any(trial.latency_ms for trial in trials):
        raise DeviceError("--time-limit ended before anything was measured; give more", document)
    tried = [trial for trial in trials if trial.status != "skipped"]
    planned = {entry.name for entry in task.planned if not entry.skipped}
    told = [t for t in trials if t.reason and t.name in planned]
    told.sort(key=lambda t: t.failure is None)  # what failed comes first
    said = [f"{t.name}: {t.reason}" for t in told]
    if tried and all(trial.failure for trial in tried):
        if all(trial.failure == "conversion" for trial in tried):
            raise UnsupportedError("no runtime of this target can run the model:", document, said)
        raise DeviceError("every candidate failed:", document, said)
    error = BudgetError(
        f"no candidate meets the budget; {out / write.REPORT} has every figure:", document, said
    )
    document["error"] = {"code": error.exit_code, "message": str(error)}
    written = {key: value for key, value in document.items() if key != "table"}
    write.write_report(out, _private(task, written, out), task.request.force)
    raise error


def _tolerance(task: Task, chosen: Trial) -> float:
    """Whole numbers by TFLite Micro are the same everywhere, unless a board was seen to differ."""
    differs = chosen.agreement is not None and not chosen.agreement["identical"]
    if chosen.embedded and chosen.embedded["flash"]["whole_numbers"] and not differs:
        return 0.0
    tolerance = TOLERANCE[task.target.recipe(chosen.recipe).compute]
    outputs = chosen.candidate.model.outputs if chosen.candidate else ()
    half = any(tensor.dtype == "float16" for tensor in outputs)
    return max(tolerance, HALF_TOLERANCE) if half else tolerance


def _bundle(
    task: Task,
    document: dict[str, Any],
    chosen: Trial,
    after: dict[str, Any] | None,
    measurements: Path | None,
    out: Path,
    scratch: Path,
) -> None:
    candidate = chosen.candidate
    assert candidate
    tolerance = _tolerance(task, chosen)
    golden = scratch / "golden.npz"
    vectors = write_golden(task, candidate, golden, scratch)
    kind = task.request.golden
    if kind == "real" and not (task.request.data or task.request.calibration_data):
        kind = "random"
    data = task.data[str(candidate.model.path)]
    manifest = {
        **{key: value for key, value in document.items() if key != "table"},
        "run": report.run_document(candidate),
        "golden": {"vectors": vectors, "inputs": kind, "tolerance": tolerance},
        "preprocessing": _preprocessing(data),
        "classes": _classes(data),
        "evaluation_indices": data.places().tolist() if task.labelled else [],
        "digests": {
            "models": {str(entry.path.name): entry.sha256 for entry in task.models},
            "data": data.digest,
            "artifact": candidate.sha256,
        },
        "tools": {
            "onmetal": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            **task.host.facts().runtimes,
        },
        "device_after": after,
        "measured": task.timed,
    }
    if task.device is None:
        manifest["unmeasured"] = "nothing was timed: no device was given"
    elif task.emulated:
        manifest["unmeasured"] = "the device is emulated: its timings are not the hardware's"
    ran = builds.Ran(task.facts, task.remote, task.board is not None, task.timed, task.counted)
    besides = builds.beside(task.target, ran, chosen, golden, tolerance)
    task.warnings.extend(besides.warnings)
    manifest["builds"] = besides.builds
    files = [*candidate.files, *([measurements] if measurements else [])]
    manifest = _private(task, manifest, out)
    readme = report.readme(manifest, _as_told(chosen, manifest), tolerance)
    write.write(
        out,
        candidate.runtime,
        files,
        besides.files,
        golden if vectors else None,
        manifest,
        readme,
        task.request.force,
        host=task.host,
        device=task.remote or task.host,
    )


def _private(task: Task, document: dict[str, Any], out: Path) -> dict[str, Any]:
    """The document for others, unless they are to have all of it."""
    if task.request.keep_paths:
        return document
    return privacy.shared(document, _known(task, out), privacy.secret())


def _as_told(chosen: Trial, manifest: dict[str, Any]) -> Trial:
    """With the sentences that the manifest has of it."""
    told = next(entry for entry in manifest["candidates"] if entry["name"] == chosen.name)
    memory = chosen.figures.get("peak_memory_bytes")
    if memory:
        memory = replace(memory, how=told["peak_memory_bytes"]["how"])
    return replace(chosen, missing=told["missing"]).with_figures(
        **({"peak_memory_bytes": memory} if memory else {})
    )


def _known(task: Task, out: Path) -> privacy.Known:
    request = task.request
    named = (*request.models, request.target, request.data, request.calibration_data, out)
    return privacy.known(named, task.device.address if task.device else "none")


def _preprocessing(data: Samples) -> dict[str, Any] | None:
    """How an image becomes an input; None where DATA is no folder of images."""
    if data.preprocessing is None:
        return None
    recorded: dict[str, Any] = plain(data.preprocessing)
    return {key: value for key, value in recorded.items() if key != "classes"}


def _classes(data: Samples) -> list[str] | None:
    """What the scores are called, in their order; None where DATA does not say."""
    names = getattr(data.preprocessing, "classes", None)
    return list(names) if names else None
