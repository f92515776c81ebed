"""Converts planned candidates, and warns about suspicious calibration samples."""

from msgspec.structs import replace

from onmetal.calibration import steps
from onmetal.calibration.calibrated import CalibratedModel
from onmetal.converters import operations
from onmetal.deploy.context import Run
from onmetal.deploy.convert import convert
from onmetal.deploy.propose.plan import Planned, calibrates, is_calibrated
from onmetal.errors import NeedlessError, UnsupportedError
from onmetal.profilers.operation import asked
from onmetal.records import Model, Source, Trial

QUANTIZING = 0.1
"""The part of --time-limit in which the conversion of an 8-bit candidate may begin: float
candidates must be judged and timed too, and a calibration is not cut short."""


def calibrated(run: Run, model: Model) -> CalibratedModel:
    samples = run.task.calibration.get(str(model.path))
    return CalibratedModel(model, run.task.target, samples, run.task.host, run.cache)


def converted(run: Run, entry: Planned, trial: Trial, source: Source | None = None) -> Trial:
    """The trial with its converted candidate. `source`: the file to convert, by default the one
    that the recipe makes from the model. Raises UnsupportedError where the candidate cannot be
    made, NeedlessError where it would gain nothing."""
    task = run.task

    def progress(done: float, total: float, what: str) -> None:
        run.progress(done, total, f"{entry.name}: {what}")

    if source is None:
        _check_needed(run, entry)
        model = calibrated(run, entry.model)
        source = steps.source(model, entry.recipe, entry.runtime, progress)
    candidate = convert(
        entry.name,
        entry.model,
        entry.recipe,
        entry.runtime,
        task.target,
        task.threads,
        task.host,
        run.cache,
        source,
        task.calibration.get(str(entry.model.path)),
    )
    if task.ships_on is task.device:  # it ships with the runtime version of the device
        candidate = replace(candidate, runtime_version=task.facts.runtimes[entry.runtime])
    return replace(trial, candidate=task.device.build(candidate) if task.device else candidate)


def _check_needed(run: Run, entry: Planned) -> None:
    """Raises NeedlessError where another way from the model to TFLite gives the same graph as the
    usual one."""
    model = entry.model
    if not model.way or model.graph_format != "tflite" or model.format == "tflite":
        return
    usual = next(known for known in run.task.models if known.path == model.path)
    try:
        path = calibrated(run, usual).tflite.path()
    except UnsupportedError:
        return
    layouts = [
        calibrated(run, model).call(asked(operations.layout, file))
        for file in (path, model.prepared)
    ]
    if layouts[0] == layouts[1]:
        by = model.imported.by if model.imported else model.way
        raise NeedlessError(f"{by} gives the same operators, of the same shapes, as the usual way")


def calibration_warnings(run: Run) -> list[str]:
    """Warnings about the samples that candidates are calibrated with; where none is calibrated,
    about the inputs that they are judged with."""
    task, model = run.task, run.task.models[0]
    model_path = str(model.path)
    if run.clock.left_s(QUANTIZING) <= 0:
        return []
    try:
        if calibrates(task.planned) and model_path in task.calibration:
            judged = task.data[model_path] if task.labelled else None
            calibrates_first = next(entry.model for entry in task.planned if is_calibrated(entry))
            return calibrated(run, calibrates_first).warnings(judged, run.progress)
        if task.request.data or task.request.calibration_data:
            return calibrated(run, model).input_warnings(task.data[model_path])
    except UnsupportedError:
        pass  # the trial of each candidate holds the reason
    return []
