"""How good candidates are: accuracy and fidelity over the samples, by what will ship."""

from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal import cache as caches
from onmetal.agree import agreement, wrong_model
from onmetal.bundle import TOLERANCE
from onmetal.cache import Cache
from onmetal.calibration import accuracy, collapse, fidelity
from onmetal.calibration.metrics import Scorer
from onmetal.converters import convert
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError
from onmetal.look import HOPELESS_DB
from onmetal.profilers import Device, measure
from onmetal.profilers.board import Board
from onmetal.profilers.remote import Remote
from onmetal.progress import Progress
from onmetal.records import Accuracy, Model, Trial, plain
from onmetal.targets import EXACT, Recipe
from onmetal.task import Clock, Task
from onmetal.trials import Feeds, out_of_time, usable


class Judged(Struct, frozen=True):
    """Outputs of one candidate over the samples, memory-mapped, and how they score."""

    outputs: dict[str, np.ndarray]
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
    judged = [
        _judged(trial, found.get(trial.name), originals[trial.model], base) for trial in trials
    ]
    return judged, reference, value


def _agreed(task: Task, trial: Trial, feeds: Feeds) -> Trial:
    """The trial with how a remote device's outputs differ from this machine's."""
    candidate = trial.candidate
    if task.elsewhere is None or candidate is None or not task.holds(candidate):
        return trial
    floats = task.target.recipe(trial.recipe).compute not in ("i8", "i16")
    found = agreement(task.host, task.elsewhere, candidate, feeds(candidate), floats)
    warnings = list(trial.warnings)
    if found.largest_difference > TOLERANCE[candidate.details["compute"]] * found.peak:
        if task.board and task.board.holds is None:
            raise wrong_model(task.board.address, trial.name, found)
        warnings.append(
            f"on the device it computes otherwise than here: off by "
            f"{found.largest_difference:.3g} where outputs reach {found.peak:.3g}"
        )
    elif task.board and not found.identical:
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
    remote: Remote | Board | None = None,
) -> Judged:
    """Run the samples through the candidate, or find that in the cache; on this machine, or on the
    remote device."""
    candidate = trial.candidate
    assert candidate
    limit_s = clock.left_s(0.6)
    if limit_s <= 0 and late:
        raise DeviceError("no time left")
    data = task.data[str(candidate.model.path)]

    def build(folder: Path) -> None:
        with (remote or task.host).worker() as worker:
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
        where=_where(remote or task.host, candidate.runtime),
        code=2,
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


def _where(device: Device, runtime: str) -> list[Any]:
    """What of a device may change outputs."""
    facts = device.facts()
    more = []
    if isinstance(device, Remote):
        runner = device.runner(runtime)
        more = [facts.os, facts.more["model"], facts.more["soc"], runner.kind, runner.version]
    elif isinstance(device, Board):
        more = [facts.more["model_digest"], facts.more["profile"], facts.emulated]
    return [facts.cpu, facts.flags, *more]


def _original(
    task: Task,
    entry: Model,
    trials: list[Trial],
    found: dict[str, Judged],
    cache: Cache,
    clock: Clock,
    progress: Progress,
) -> Judged | None:
    """What the original model gives: by ONNX Runtime in f32, as ONNX is defined by (a .tflite file
    by LiteRT) on this machine; where that fails, by the first exact candidate that runs."""
    runtime = "litert" if entry.format == "tflite" else "onnxruntime"
    exact = [t for t in trials if t.model == entry.stem and t.recipe == EXACT and t.name in found]
    if ours := next((t for t in exact if t.runtime == runtime and not _on_device(t)), None):
        return found[ours.name]
    name = f"{entry.stem} by {runtime}"
    recipe = Recipe(EXACT, (runtime,), "f32")
    trial = Trial(name, EXACT, runtime, entry.stem)
    try:
        trial = replace(
            trial,
            candidate=convert(
                name, entry, recipe, runtime, task.target, task.threads, task.host, cache
            ),
        )
        return _judge(task, trial, cache, clock, progress, bool(found))
    except OnmetalError:
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
    if trial.recipe != EXACT and sqnr and min(sqnr.values()) < HOPELESS_DB:
        warnings.append(
            f"an output follows the float model with {min(sqnr.values()):.1f} dB only: "
            "hardly anything of it is left"
        )
    lost: list[str] = []
    if original and trial.recipe != EXACT:
        for name, output in judged.outputs.items():
            lost += collapse.collapsed(name, original.outputs[name], output)
    return replace(
        trial, accuracy=found, sqnr_db=sqnr, warnings=tuple(warnings), collapsed=tuple(lost)
    )
