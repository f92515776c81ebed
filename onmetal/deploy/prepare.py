"""Reads and checks everything that the user gave, before any long step begins."""

from msgspec.structs import replace

from onmetal.calibration import metric_table
from onmetal.calibration.metric_table import Metric
from onmetal.deploy import model
from onmetal.deploy.context import Task
from onmetal.deploy.data import choose_metric, few_samples, load_data
from onmetal.deploy.metric_check import settle_whole, try_metric
from onmetal.deploy.propose.plan import calibrates, plan, without_samples
from onmetal.deploy.request import (
    Request,
    check_budget,
    check_fit,
    check_meant,
    check_runtimes,
    choose_threads,
    connect_device,
)
from onmetal.deploy.ways import ways
from onmetal.errors import ShapeError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices import Device
from onmetal.profilers.devices.local import Local
from onmetal.progress import OnProgress
from onmetal.records import Model
from onmetal.runtimes import check_options
from onmetal.runtimes.fit import load_target
from onmetal.targets import Target


def prepare(
    request: Request, cache: Cache, progress: OnProgress = lambda done, total, what: None
) -> Task:
    """Read and check everything that the user gave; close the task's device afterwards."""
    target = load_target(request.target)
    check_options(target)
    if known_metric := metric_table.known(request.metric):
        check_meant(request, known_metric)  # as early as the metric is known
    device = connect_device(request, target, cache)
    try:
        return _prepared(request, target, device, cache, progress)
    except BaseException:
        if device:
            device.close()
        raise


def _prepared(
    request: Request, target: Target, device: Device | None, cache: Cache, progress: OnProgress
) -> Task:
    host = device if isinstance(device, Local) else Local(cache)
    facts = device.facts() if device else host.facts()
    check_runtimes(target, host)
    check_budget(request, target, device, facts)
    warnings = [*target.warnings, *check_fit(device)]
    if device and not request.dry_run:
        device.take()
    shapes = model.parse_shapes(list(request.input_shapes))
    models = _read(request, target, shapes, cache, host)
    _check_same_task(models)
    request.budget.check_shares(models[0])
    threads = choose_threads(request.threads, target, facts)
    if device:
        device.pin(threads)
        facts = device.facts()
    planned = plan(
        target,
        models,
        facts,
        None if request.recipes is None else list(request.recipes),
        samples=bool(request.data or request.calibration_data),
        timed=device is not None,
        ways=ways(models, target, cache, host),
    )
    parts, data_warnings = load_data(request, models, calibrates(planned), cache, progress)
    data = parts.evaluation
    warnings += data_warnings
    labelled = request.data is not None
    if not parts.calibration:
        planned = without_samples(
            planned,
            f"{data[str(models[0].path)].count} samples are too few to set some aside "
            "for calibration: give more, or --calibration-data",
        )
    output, metric = None, None
    metrics: dict[str, Metric] = {}
    if labelled:
        # Every model must fit the labels and the metric; the output of the first model is kept.
        for entry in reversed(models):
            model_path = str(entry.path)
            output, metric, data[model_path], data_warnings = choose_metric(
                request, entry, data[model_path], cache
            )
            if metric.function is not None:
                try_metric(metric, entry, data[model_path], host, cache)
            if metric.whole is not None:
                metric, settling = settle_whole(metric, entry, data[model_path], host, cache)
                data_warnings = [*data_warnings, *settling]
            metrics[model_path] = metric
        warnings += data_warnings
        if metric:
            check_meant(request, metric)
    elif request.metric or request.output:
        raise UsageError("--metric and --output need labelled data: give it with --data")
    warnings += [note for entry in models for note in entry.notes]
    warnings += few_samples(request, labelled, data[str(models[0].path)].count, metric)
    return Task(
        request,
        target,
        device,
        host,
        facts,
        models,
        threads,
        planned,
        data,
        parts.calibration,
        parts.training,
        labelled,
        metric,
        output,
        tuple(warnings),
        metrics,
    )


def _read(
    request: Request, target: Target, shapes: dict[str, tuple[int, ...]], cache: Cache, host: Local
) -> list[Model]:
    try:
        models = [
            model.read(path, shapes, request.batch, cache, host, request.trust, request.cut_at)
            for path in request.models
        ]
        return [replace(entry, notes=(*request.notes, *entry.notes)) for entry in models]
    except ShapeError as error:
        if not target.micro:
            raise
        raise UnsupportedError(
            f"{error}; TFLite Micro plans its memory once, for static shapes"
        ) from None


def _check_same_task(models: list[Model]) -> None:
    stems = [entry.stem for entry in models]
    if duplicates := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UsageError(f"two models are named {duplicates[0]!r}: rename one file")
    first = models[0]
    for other_model in models[1:]:
        for kind, first_tensors, other_tensors in (
            ("inputs", first.inputs, other_model.inputs),
            ("outputs", first.outputs, other_model.outputs),
        ):
            names = sorted(t.name for t in first_tensors), sorted(t.name for t in other_tensors)
            single = len(first_tensors) == len(other_tensors) == 1
            if names[0] != names[1] and not single:
                raise UsageError(
                    f"{other_model.path} and {first.path} cannot be compared: their {kind} differ "
                    f"({', '.join(names[1])} against {', '.join(names[0])})"
                )
