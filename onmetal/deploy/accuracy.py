"""How good candidates are: accuracy and fidelity over the samples, by what will ship."""

from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from onmetal.bundles.manifest import TOLERANCE
from onmetal.calibration import accuracy
from onmetal.calibration.chance import chance_warning
from onmetal.calibration.fidelity import Extent, extent
from onmetal.calibration.metrics import Scorer
from onmetal.calibration.reach import range_warning
from onmetal.converters import format_named
from onmetal.deploy.agree import agreement, wrong_model
from onmetal.deploy.context import Clock, Task
from onmetal.deploy.likeness import compared
from onmetal.deploy.trials import Feeds, calibrated, original_trial, out_of_time, usable
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.files.stored import StoredArray
from onmetal.profilers.devices import Device, Worker
from onmetal.profilers.devices.local_worker import LocalWorker
from onmetal.progress import Progress
from onmetal.records import Model, Trial, plain
from onmetal.runtimes import defining
from onmetal.targets import EXACT

INFERENCE_S = 600
"""A candidate of which one inference takes longer is given up."""


class Judged(Struct, frozen=True):
    """Outputs of one candidate over the samples, on disk, and how they score."""

    outputs: dict[str, StoredArray]
    scorer: Scorer | None


def judge_all(
    task: Task,
    trials: list[Trial],
    feeds: Feeds,
    cache: Cache,
    clock: Clock,
    progress: Progress,
) -> tuple[list[Trial], str, float | None]:
    """Accuracy and fidelity of every candidate, by the artifact and runtime that ship.

    -> the trials, the stem of the reference: the most accurate float model (without labels, the
    first), and its value of the metric. Each candidate's fidelity is to its own original, its drop
    to the reference.
    """
    found: dict[str, Judged] = {}
    for number, trial in enumerate(trials):
        if not usable(trial):
            continue
        progress(number, len(trials), trial.name)
        try:
            trial = trials[number] = _agreed(task, trial, feeds)
            where = task.elsewhere if _on_device(trial) else None
            found[trial.name] = _judge(task, trial, cache, clock, progress, bool(found), where)
        except DeviceError as error:
            if clock.left_s(0.6) <= 0:
                trials[number] = out_of_time(trial, "judged")
            else:
                trials[number] = replace(
                    trial, status="failed", reason=str(error), failure="device"
                )
        except UnsupportedError as error:
            trials[number] = replace(
                trial, status="failed", reason=str(error), failure="conversion"
            )
    originals = {
        entry.stem: _original(task, entry, trials, found, cache, clock, progress)
        for entry in task.models
    }
    reference = _reference(task, originals)
    base = originals[reference]
    value = base.scorer(None) if base and base.scorer else None
    done = []
    if base and base.scorer and value is not None:
        task.warnings.extend(_no_better_than_chance(base.scorer, value))
    extents = {stem: _extents(original) for stem, original in originals.items()}
    for number, trial in enumerate(trials):
        judged, original = found.get(trial.name), originals[trial.model]
        if judged:
            progress(number, len(trials), f"{trial.name}: comparing outputs")
            trial = _scored(trial, judged, base)
        if judged and original:
            trial = compared(
                trial,
                task.target.recipe(trial.recipe, trial.runtime),
                judged.outputs,
                original.outputs,
                extents[trial.model],
                judged.scorer.read if judged.scorer else (),
            )
        done.append(trial)
    task.warnings.extend(_beyond_calibration(task, extents[task.models[0].stem], cache))
    return done, reference, value


def _no_better_than_chance(scorer: Scorer, value: float) -> list[str]:
    text = chance_warning(scorer.metric.name, scorer.labels, value, len(scorer.labels))
    return [text] if text else []


def _beyond_calibration(task: Task, extents: dict[str, Extent], cache: Cache) -> list[str]:
    """Outputs that reach beyond what calibration saw of them: 8 bits clip those."""
    model = task.models[0]
    if not task.labelled or str(model.path) not in task.calibration:
        return []
    try:
        ranges = calibrated(task, model, cache).output_ranges(lambda done, total, what: None)
    except OnmetalError:
        return []  # what is calibrated says why
    texts = [
        range_warning("output", name, ranges[name], ends)
        for name, known in extents.items()
        if name in ranges and (ends := known.ends)
    ]
    return [text for text in texts if text]


def _extents(original: Judged | None) -> dict[str, Extent]:
    return {name: extent(output) for name, output in original.outputs.items()} if original else {}


def _agreed(task: Task, trial: Trial, feeds: Feeds) -> Trial:
    """The trial with how a remote device's outputs differ from this machine's."""
    candidate = trial.candidate
    if task.elsewhere is None or candidate is None or not task.holds(candidate):
        return trial
    floats = task.target.recipe(trial.recipe, trial.runtime).compute not in ("i8", "i16")
    found = agreement(task.host, task.elsewhere, candidate, feeds(candidate), floats)
    warnings = list(trial.warnings)
    if found.largest_difference > TOLERANCE[candidate.details["compute"]] * found.peak:
        if task.one_model and task.elsewhere.holds is None:
            raise wrong_model(task.elsewhere.address, trial.name, found)
        warnings.append(
            f"its outputs on the device differ from this machine's by up to "
            f"{found.largest_difference:.3g}, where they reach {found.peak:.3g}"
        )
    elif task.one_model and not found.identical:
        warnings.append(
            f"the board's outputs are not TFLite Micro's here to the bit: off by "
            f"{found.largest_difference:.3g} where outputs reach {found.peak:.3g}; its accuracy is "
            "the board's"
        )
    return replace(trial, agreement=plain(found), warnings=tuple(warnings))


def _on_device(trial: Trial) -> bool:
    return trial.agreement is not None and trial.agreement["judged_on"] == "device"


def _judge(
    task: Task,
    trial: Trial,
    cache: Cache,
    clock: Clock,
    progress: Progress,
    late: bool,
    remote: Device | None = None,
) -> Judged:
    """Run the samples through the candidate, or find that in the cache; on this machine, or on the
    remote device."""
    candidate = trial.candidate
    assert candidate
    limit_s = _limit_s(clock, late)

    def run(worker: Worker, folder: Path) -> None:
        worker.open(candidate.artifact, timeout_s=3600)
        _run_samples(task, worker, candidate.model, trial.name, folder, limit_s, progress)

    def run_here(workers: list[LocalWorker], folder: Path) -> None:
        run(workers[0], folder)
        workers[0].let_go()

    def build(folder: Path) -> None:
        if remote:
            with remote.worker() as worker:
                run(worker, folder)
        else:
            task.host.helped(candidate.runtime, lambda workers: run_here(workers, folder))

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
    return _stored(task, candidate.model, cache.get("outputs", digest, build))


def _judge_model(
    task: Task, model: Model, cache: Cache, clock: Clock, progress: Progress, late: bool
) -> Judged:
    """Run the samples through the model itself, by what defines its format, on this machine."""
    limit_s = _limit_s(clock, late)

    def run(workers: list[LocalWorker], folder: Path) -> None:
        workers[0].open_reference(model, timeout_s=3600)
        _run_samples(task, workers[0], model, model.stem, folder, limit_s, progress)

    data, form = task.data[str(model.path)], format_named(model.format)
    digest = caches.key(
        model=model.prepared_sha256,
        format=model.format,
        version=form.reference_version(),
        inputs=plain(model.inputs),
        samples=data.digest,
        count=data.count,
        where=task.host.identity(""),
    )
    folder = cache.get(
        "outputs",
        digest,
        lambda folder: task.host.helped(None, lambda workers: run(workers, folder)),
    )
    return _stored(task, model, folder)


def _limit_s(clock: Clock, late: bool) -> float:
    """Raises DeviceError where there is no time left; what is judged first gets a second."""
    limit_s = clock.left_s(0.6)
    if limit_s <= 0 and late:
        raise DeviceError("no time left")
    return max(1.0, limit_s)


def _run_samples(
    task: Task,
    worker: Worker,
    model: Model,
    name: str,
    folder: Path,
    limit_s: float,
    progress: Progress,
) -> None:
    data = task.data[str(model.path)]
    worker.outputs(
        data,
        model,
        data.count,
        folder,
        timeout_s=limit_s,
        silence_s=INFERENCE_S,
        progress=lambda done, count: progress(done, count, f"{name}: sample {done} of {count}"),
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
    labels = task.data[str(model.path)].label_array()
    return Judged(outputs, Scorer(task.metric, outputs, name, labels))


def _original(
    task: Task,
    entry: Model,
    trials: list[Trial],
    found: dict[str, Judged],
    cache: Cache,
    clock: Clock,
    progress: Progress,
) -> Judged | None:
    """What the original model gives, by what defines its format, on this machine; where that fails,
    by the first exact candidate that runs."""
    here = [trial for trial in trials if not _on_device(trial)]
    original = original_trial(entry, here)
    if original and original.name in found:
        return found[original.name]
    try:
        return _judge_model(task, entry, cache, clock, progress, bool(found))
    except OnmetalError as error:
        exact = [t for t in trials if t.model == entry.stem and t.recipe == EXACT]
        exact = [trial for trial in exact if trial.name in found]
        against = exact[0].name if exact else "nothing"
        task.warnings.append(
            f"{entry.path.name} cannot be run by {defining(entry.format)}, which defines what it "
            f"computes ({error}): outputs of the candidates are compared with those of {against}"
        )
        return found[exact[0].name] if exact else None


def _reference(task: Task, originals: dict[str, Judged | None]) -> str:
    """The stem of the most accurate float model; without labels the first."""
    scored = {
        stem: judged.scorer(None) for stem, judged in originals.items() if judged and judged.scorer
    }
    if not scored or task.metric is None:
        return task.models[0].stem
    pick = max if task.metric.higher_is_better else min
    return pick(scored, key=lambda stem: scored[stem])


def _scored(trial: Trial, judged: Judged, base: Judged | None) -> Trial:
    """The trial with its accuracy, where there are labels."""
    if judged.scorer is None:
        return trial
    return replace(trial, accuracy=accuracy.judge(judged.scorer, base.scorer if base else None))
