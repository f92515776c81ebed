"""Judges candidates: the accuracy and fidelity of the artifacts that will ship, over the
samples."""

from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.bundles.manifest import TOLERANCE
from onmetal.calibration import accuracy
from onmetal.calibration.chance import chance_warning
from onmetal.calibration.detection import metric as detection
from onmetal.calibration.fidelity import Extent, extent
from onmetal.calibration.metrics import Scorer
from onmetal.calibration.reach import range_warning
from onmetal.converters import format_named
from onmetal.deploy.agree import agreement, wrong_model
from onmetal.deploy.candidates import calibrated
from onmetal.deploy.context import Clock, Run, Standing, Task
from onmetal.deploy.likeness import compared
from onmetal.deploy.trials import each, original_trial, out_of_time
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError
from onmetal.files import cache as caches
from onmetal.files.stored import StoredArray
from onmetal.profilers.devices import Device, Worker
from onmetal.profilers.devices.local_worker import LocalWorker
from onmetal.records import Model, Trial, plain
from onmetal.runtimes import defining
from onmetal.targets import EXACT

LATEST = 0.6
"""The part of --time-limit after which nothing more is judged."""
INFERENCE_S = 600
"""A candidate fails where one inference takes longer than this many seconds."""


class Judged(Struct, frozen=True):
    """Outputs of one candidate over the samples, on disk, and how they score."""

    outputs: dict[str, StoredArray]
    scorer: Scorer | None


class Reference(Struct, frozen=True):
    """The model that the accuracy of all candidates is compared with."""

    stem: str
    """The stem of the most accurate float model; without labels, of the first model."""
    value: float | None
    """Its value of the metric; None without labels."""


def judge(run: Run, standing: Standing) -> tuple[Standing, Reference]:
    """Judge accuracy and fidelity of every candidate, by the artifact and runtime that ship.

    Fidelity is measured against the candidate's own original model, the accuracy drop against the
    reference.
    """
    task = run.task
    judged: dict[str, Judged] = {}

    def late(trial: Trial) -> Trial | None:
        return out_of_time(trial, "judged") if run.clock.left_s(LATEST) <= 0 else None

    def computed(trial: Trial) -> Trial:
        where = task.elsewhere if _on_device(trial) else None
        judged[trial.name] = _judge(run, trial, bool(judged), where)
        return trial

    trials = each(run, standing.trials, lambda trial: _agreed(run, trial), late)
    trials = each(run, trials, computed, late)
    originals, warnings = {}, []
    for entry in task.models:
        originals[entry.stem], original_warnings = _original(run, entry, trials, judged)
        warnings += original_warnings
    reference = _reference(task, originals)
    base = originals[reference.stem]
    if base and base.scorer and reference.value is not None:
        warnings += _no_better_than_chance(base.scorer, reference.value)
    extents = {stem: _extents(original) for stem, original in originals.items()}

    def compared_with_original(trial: Trial) -> Trial:
        judged_trial, original = judged[trial.name], originals[trial.model]
        trial = _scored(trial, judged_trial, base)
        if original is None:
            return trial
        recipe = task.target.recipe(trial.recipe, trial.runtime)
        read = judged_trial.scorer.read if judged_trial.scorer else ()
        extent_of = extents[trial.model]
        return compared(trial, recipe, judged_trial.outputs, original.outputs, extent_of, read)

    trials = each(
        run,
        trials,
        compared_with_original,
        tried=lambda trial: trial.name in judged,
        doing=": comparing outputs",
    )
    warnings += _beyond_calibration(run, extents[task.models[0].stem])
    return standing.having(trials).warned(warnings), reference


def judge_alone(run: Run, trial: Trial) -> Trial:
    """The trial with the fidelity of its outputs to those of the model in the framework that
    defines its format, without labels.

    Unlike in `judge`, that framework computes the model also where the candidate itself runs in it.
    Raises UnsupportedError where it cannot, since there is nothing to compare with then.
    """
    assert trial.candidate
    path = trial.candidate.model.path  # the candidate may have it as another graph
    model = next(known for known in run.task.models if known.path == path)
    judged = _judge(run, trial, late=False)
    try:
        original = _judge_model(run, model, late=False)
    except OnmetalError as error:
        raise UnsupportedError(
            f"{model.path.name} cannot be run by {_definer(model)}, which defines what it "
            f"computes, so nothing can be compared with it: {error}"
        ) from None
    recipe = run.task.target.recipe(trial.recipe, trial.runtime)
    return compared(trial, recipe, judged.outputs, original.outputs, _extents(original), ())


def _no_better_than_chance(scorer: Scorer, value: float) -> list[str]:
    if scorer.metric.whole is not None:
        text = detection.warning(value) if scorer.metric.name == "map" else None
        return [text] if text else []
    assert isinstance(scorer.labels, np.ndarray)
    text = chance_warning(scorer.metric.name, scorer.labels, value, len(scorer.labels))
    return [text] if text else []


def _beyond_calibration(run: Run, extents: dict[str, Extent]) -> list[str]:
    """Warnings about outputs whose values go beyond their range during calibration: 8 bits clip
    such values."""
    task, model = run.task, run.task.models[0]
    if not task.labelled or str(model.path) not in task.calibration:
        return []
    try:
        ranges = calibrated(run, model).output_ranges(lambda done, total, what: None)
    except OnmetalError:
        return []  # the trials of calibrated candidates hold the reason
    texts = [
        range_warning("output", name, ranges[name], ends)
        for name, known in extents.items()
        if name in ranges and (ends := known.ends)
    ]
    return [text for text in texts if text]


def _extents(original: Judged | None) -> dict[str, Extent]:
    return {name: extent(output) for name, output in original.outputs.items()} if original else {}


def _agreed(run: Run, trial: Trial) -> Trial:
    """The trial with the differences between a remote device's outputs and this machine's."""
    task, candidate = run.task, trial.candidate
    if task.elsewhere is None or candidate is None or not task.holds(candidate):
        return trial
    floats = task.target.recipe(trial.recipe, trial.runtime).compute not in ("i8", "i16")
    comparison = agreement(task.host, task.elsewhere, candidate, run.feeds(candidate), floats)
    warnings = list(trial.warnings)
    if comparison.largest_difference > TOLERANCE[candidate.details["compute"]] * comparison.peak:
        if task.one_model and task.elsewhere.holds is None:
            raise wrong_model(task.elsewhere.address, trial.name, comparison)
        warnings.append(
            f"its outputs on the device differ from this machine's by up to "
            f"{comparison.largest_difference:.3g}, where they reach {comparison.peak:.3g}"
        )
    elif task.one_model and not comparison.identical:
        warnings.append(
            f"the board's outputs are not TFLite Micro's here to the bit: off by "
            f"{comparison.largest_difference:.3g} where outputs reach {comparison.peak:.3g}; its "
            "accuracy is the board's"
        )
    return replace(trial, agreement=plain(comparison), warnings=tuple(warnings))


def _on_device(trial: Trial) -> bool:
    return trial.agreement is not None and trial.agreement["judged_on"] == "device"


def _judge(run: Run, trial: Trial, late: bool, remote: Device | None = None) -> Judged:
    """Run the samples through the candidate, on this machine or on the remote device, or take its
    outputs from the cache."""
    task, candidate = run.task, trial.candidate
    assert candidate
    limit_s = _limit_s(run.clock, late)

    def compute(worker: Worker, folder: Path) -> None:
        worker.open(candidate.artifact, timeout_s=3600)
        _run_samples(run, worker, candidate.model, trial.name, folder, limit_s)

    def compute_here(workers: list[LocalWorker], folder: Path) -> None:
        compute(workers[0], folder)
        workers[0].let_go()

    def build(folder: Path) -> None:
        if remote:
            with remote.worker() as worker:
                compute(worker, folder)
        else:
            task.host.helped(candidate.runtime, lambda workers: compute_here(workers, folder))

    data = task.data[str(candidate.model.path)]
    digest = caches.key(
        artifact=candidate.sha256,
        runtime=candidate.runtime,
        version=candidate.runtime_version,
        options=candidate.options,
        inputs=plain(candidate.model.inputs),
        samples=data.digest,
        count=data.count,
        where=(remote or task.host).identity(candidate.runtime),
        code=2,
    )
    return _stored(task, candidate.model, run.cache.get("outputs", digest, build))


def _judge_model(run: Run, model: Model, late: bool) -> Judged:
    """Run the samples through the model itself on this machine, by the runtime that defines its
    format."""
    task, limit_s = run.task, _limit_s(run.clock, late)

    def compute(workers: list[LocalWorker], folder: Path) -> None:
        workers[0].open_reference(model, timeout_s=3600)
        _run_samples(run, workers[0], model, model.stem, folder, limit_s)

    data, form = task.data[str(model.path)], format_named(model.defining_format)
    digest = caches.key(
        model=model.prepared_sha256,
        format=model.defining_format,
        version=form.reference_version(),
        inputs=plain(model.inputs),
        samples=data.digest,
        count=data.count,
        where=task.host.identity(""),
    )
    folder = run.cache.get(
        "outputs",
        digest,
        lambda folder: task.host.helped(None, lambda workers: compute(workers, folder)),
    )
    return _stored(task, model, folder)


def _limit_s(clock: Clock, late: bool) -> float:
    """The seconds left for judging. Raises DeviceError where there are none, except for the first
    candidate, which gets one second."""
    limit_s = clock.left_s(LATEST)
    if limit_s <= 0 and late:
        raise DeviceError("no time left")
    return max(1.0, limit_s)


def _run_samples(
    run: Run, worker: Worker, model: Model, name: str, folder: Path, limit_s: float
) -> None:
    data = run.task.data[str(model.path)]
    worker.outputs(
        data,
        model,
        data.count,
        folder,
        timeout_s=limit_s,
        silence_s=INFERENCE_S,
        progress=lambda done, count: run.progress(done, count, f"{name}: sample {done} of {count}"),
    )


def _stored(task: Task, model: Model, folder: Path) -> Judged:
    outputs = {
        tensor.name: StoredArray.at(folder / f"{number}.npy")
        for number, tensor in enumerate(model.outputs)
    }
    if task.metric is None:
        return Judged(outputs, None)
    name = task.output if task.output in outputs else model.outputs[0].name
    assert name
    data, metric = task.data[str(model.path)], task.metrics[str(model.path)]
    labels = data.label_array() if metric.whole is None else data.label_rows()
    return Judged(outputs, Scorer(metric, outputs, name, labels))


def _original(
    run: Run, entry: Model, trials: list[Trial], judged: dict[str, Judged]
) -> tuple[Judged | None, list[str]]:
    """The outputs of the original model on this machine, by the runtime that defines its format.

    Where that fails, those of the first exact candidate that runs, with a warning.
    """
    on_host = [trial for trial in trials if not _on_device(trial)]
    original = original_trial(entry, on_host)
    if original and original.name in judged:
        return judged[original.name], []
    try:
        return _judge_model(run, entry, bool(judged)), []
    except OnmetalError as error:
        exact = [t for t in trials if t.model == entry.stem and t.recipe == EXACT]
        exact = [trial for trial in exact if trial.name in judged]
        compared_name = exact[0].name if exact else "nothing"
        warning = (
            f"{entry.path.name} cannot be run by {_definer(entry)}, which defines what it "
            f"computes ({error}): outputs of the candidates are compared with those of "
            f"{compared_name}"
        )
        return judged[exact[0].name] if exact else None, [warning]


def _definer(entry: Model) -> str:
    """Who says what the model computes, in words."""
    form = entry.defining_format
    return defining(form) or format_named(form).title


def _reference(task: Task, originals: dict[str, Judged | None]) -> Reference:
    scored = {
        stem: judged.scorer(None) for stem, judged in originals.items() if judged and judged.scorer
    }
    if not scored or task.metric is None:
        return Reference(task.models[0].stem, None)
    pick = max if task.metric.higher_is_better else min
    stem = pick(scored, key=lambda stem: scored[stem])
    return Reference(stem, scored[stem])


def _scored(trial: Trial, judged: Judged, base: Judged | None) -> Trial:
    """The trial with its accuracy, where there are labels."""
    if judged.scorer is None:
        return trial
    return replace(trial, accuracy=accuracy.judge(judged.scorer, base.scorer if base else None))
