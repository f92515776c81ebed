"""RAM, flash and measurements of candidates for microcontrollers.

RAM is counted by TFLite Micro's own recording allocator on this machine, and also modelled for the
chip's kernels; flash is the file and the code that runs it. Figures of an NPU come from Vela's
model: they are reported as modelled, never as measured.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from onmetal import costs, runtimes
from onmetal.calibration.calibrated import CalibratedModel
from onmetal.deploy import agree
from onmetal.deploy.context import Run, Standing, Task, digest
from onmetal.deploy.measure import CUT_SHORT, LATEST, timed, with_energy
from onmetal.deploy.propose.plan import Planned
from onmetal.deploy.trials import each, usable
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError
from onmetal.files.cache import Cache
from onmetal.profilers import measure
from onmetal.profilers.devices import Device
from onmetal.profilers.devices.local import Local
from onmetal.profilers.operation import asked
from onmetal.records import Candidate, Figure, Latency, Trial, plain
from onmetal.runtimes import defining, for_runtime, operations, shipped, spec
from onmetal.runtimes.protocol import Activation
from onmetal.targets import Target

LIMIT_S = 3600.0
FIGURES = tuple(cost.key for cost in costs.MEASURED if not cost.known_on_chips)
"""Keys of the figures that only a board can measure."""
ACTIVATIONS: dict[str, Activation | None] = {"i8": "s8", "i16": "s16", "f32": None}


# --- operators that TFLite Micro lacks


def check_operators(task: Task, cache: Cache) -> None:
    """Check the operators of all planned candidates, before anything is calibrated.

    Raises UnsupportedError, which names everything that TFLite Micro lacks, where it runs none of
    the candidates.
    """
    lacking_reasons: dict[tuple[str, str], list[str]] = {}
    for entry in task.planned:
        key = str(entry.model.path), entry.recipe.compute
        if not entry.skipped and key not in lacking_reasons:
            lacking_reasons[key] = lacking(entry, task.target, task.host, cache)
    reasons = list(
        dict.fromkeys(reason for reasons in lacking_reasons.values() for reason in reasons)
    )
    if lacking_reasons and all(lacking_reasons.values()):
        raise UnsupportedError("TFLite Micro does not run:", details=reasons)


def lacking(entry: Planned, target: Target, host: Local, cache: Cache) -> list[str]:
    """Sentences about the operators of the model that TFLite Micro does not run in the recipe's
    format.

    Raises UnsupportedError where the model does not even become a .tflite file.
    """
    path = CalibratedModel(entry.model, target, None, host, cache).tflite.path()
    activation = None if entry.model.quantized else ACTIVATIONS[entry.recipe.compute]
    with host.worker() as worker:
        rows = worker.do(
            asked(operations.lacking, entry.runtime, path, activation), timeout_s=LIMIT_S
        )
    if rows and not rows[0]["operator"]:
        return [f"{entry.model.path}: {rows[0]['reason']}"]
    return [
        f"{row['operator']}, made for {row['node']} of {entry.model.path}: {row['reason']}"
        for row in rows
    ]


def preview(entry: Planned, target: Target, host: Local, cache: Cache) -> dict[str, Any]:
    """The memory that the model will need in the recipe's format, before it is calibrated."""
    path = CalibratedModel(entry.model, target, None, host, cache).tflite.path()
    activation = None if entry.model.quantized else ACTIVATIONS[entry.recipe.compute]
    hardware_options = runtimes.hardware(entry.runtime, entry.recipe, target)
    with host.worker() as worker:
        needs = worker.do(
            asked(operations.preview, entry.runtime, path, activation, target.io, hardware_options),
            timeout_s=LIMIT_S,
        )
    return {"candidate": entry.name, **needs}


# --- memory of a candidate


def count_memory(run: Run, standing: Standing) -> Standing:
    """RAM, flash, agreement with the format's own runtime and an NPU's model of every candidate."""
    return standing.having(
        each(
            run,
            standing.trials,
            lambda trial: _counted(run, trial),
            tried=lambda trial: usable(trial) and spec(trial.runtime).in_firmware,
        )
    )


def _counted(run: Run, trial: Trial) -> Trial:
    task, candidate = run.task, trial.candidate
    assert candidate
    feed = run.feeds(candidate)
    try:
        arena, planned = _arena(task, candidate, feed)
        flash = _flash(task, candidate)
    except OnmetalError as error:
        why = f"its memory could not be counted: {error}"
        return replace(trial, status="failed", failure="device", reason=why)
    npu = candidate.details.get("npu")
    figures = {
        "arena": arena,
        "flash": flash,
        "plan": planned,
        "agreement_with_litert": _against_reference(task, candidate, feed),
        "npu": npu,
        "chip": plain(task.target.chip),
    }
    memory = {costs.MEMORY.key: _memory(arena, npu)}
    trial = replace(trial, embedded=figures).with_figures(**memory)
    return _with_npu(trial, npu) if npu else trial


def _arena(task: Task, candidate: Candidate, feed: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """-> the size of the arena, counted on this machine and modelled for the chip; the plan of its
    buffers over time."""
    core = task.target.chip.core if task.target.chip else None
    with task.host.worker() as worker:
        worker.keep_feeds(feed, timeout_s=LIMIT_S)
        host = worker.arena(candidate.artifact, timeout_s=LIMIT_S)
    with task.host.worker() as worker:
        plan = worker.do(
            asked(operations.plan, candidate.runtime, candidate.files[0], core, host["tail"]),
            timeout_s=LIMIT_S,
        )
    return {"host": host, "modelled": plan.pop("modelled")}, plan


def _memory(arena: dict[str, Any], npu: dict[str, Any] | None) -> Figure:
    """The peak memory that the budget judges: the larger of the counted and the modelled arena; for
    an NPU, the memory that Vela models."""
    if npu:
        used = {name: count for name, count in npu["memory_bytes"].items() if "flash" not in name}
        parts = ", ".join(f"{name} {count}" for name, count in used.items() if count)
        method = f"by Vela, of what the NPU takes ({parts}); the core's own operators come on top"
        return Figure(float(sum(used.values())), None, 1, "modelled", method)
    host, modelled = arena["host"]["total"], arena["modelled"]
    counted_text = f"counted by TFLite Micro here: {host} (64 bits, reference kernels)"
    if modelled is None:
        return Figure(float(host), None, 1, "measured", f"the arena, {counted_text}")
    total, scratch = modelled["total_bytes"], modelled["scratch_bytes"]
    method = (
        f"the arena, the larger of two figures; {counted_text}; modelled with CMSIS-NN's "
        f"kernels: {total}, "
        f"their scratch memory, at most {scratch}, planned with the rest"
    )
    if total > host:
        return Figure(float(total), None, 1, "modelled", method)
    return Figure(float(host), None, 1, "measured", method)


def _flash(task: Task, candidate: Candidate) -> dict[str, Any]:
    core = task.target.chip.core if task.target.chip else None
    model_file = shipped(candidate.runtime, candidate.files)[0]
    with task.host.worker() as worker:
        return worker.do(
            asked(operations.flash, candidate.runtime, model_file, core), timeout_s=LIMIT_S
        )


def _against_reference(task: Task, candidate: Candidate, feed: Path) -> dict[str, Any]:
    """How the candidate's outputs differ from those that the runtime which defines the format gives
    for the same file: their kernels differ."""
    name = defining(spec(candidate.runtime).reads)
    assert name
    options = {**candidate.options, **for_runtime(name).options("f32", 1)}
    reference_candidate = replace(
        candidate, runtime=name, files=candidate.files[:1], options=options
    )
    try:
        reference_outputs = agree.outputs(task.host, reference_candidate, feed)
        candidate_outputs = agree.outputs(task.host, candidate, feed)
    except OnmetalError as error:
        return {"missing": f"{spec(name).title} does not run it: {error}"}
    return dict(plain(agree.compared(candidate_outputs, reference_outputs, "host")))


def _with_npu(trial: Trial, npu: dict[str, Any]) -> Trial:
    """The trial with the latency that Vela models, where the whole model runs on the NPU; else with
    a warning and the reason why there is none."""
    cpu_rows: list[dict[str, str]] = npu["on_cpu"]
    if npu["cpu_operators"] or not npu["cycles"].get("total"):
        operators_text = ", ".join(
            sorted({f"{row['operator']} {row['output']!r}" for row in cpu_rows})
        )
        why = (
            f"{npu['cpu_operators']} operator(s) are left to the core, whose cycles are not in "
            f"Vela's sum: {operators_text[:300]}"
        )
        warning = f"not all of it runs on the NPU: {why}"
        missing = {**trial.missing, "latency_ms": why}
        return replace(trial, missing=missing, warnings=(*trial.warnings, warning))
    ms = npu["inference_ms"]
    return replace(trial, latency_ms=Latency(ms, ms, None, None, 0, 0, "modelled"))


# --- on a board


def check_flashed(task: Task, board: Device, trials: Sequence[Trial]) -> None:
    """Raises DeviceError where the board holds none of the candidates, or does not say which."""
    tried = [trial for trial in trials if usable(trial) and trial.candidate]
    if board.holds is None and len(tried) > 1:
        candidates_text = ", ".join(trial.name for trial in tried)
        raise DeviceError(
            f"the firmware at {board.address} does not say which model it holds, and several are "
            f"candidates ({candidates_text}): name the one that was flashed by --recipes"
        )
    if tried and not any(task.holds(trial.candidate) for trial in tried if trial.candidate):
        candidates_text = ", ".join(
            f"{trial.name} {digest(trial.candidate)[:12]}" for trial in tried if trial.candidate
        )
        raise DeviceError(
            f"the board at {board.address} holds the model {(board.holds or '')[:12]}, which is "
            f"none of the candidates ({candidates_text}): build and flash the firmware of the "
            "one to be measured, which `--no-device` writes"
        )


def measure_flashed(run: Run, standing: Standing, board: Device) -> Standing:
    """Measure latency, memory and energy of the candidate that the board holds; the other trials
    get the reason why they were not measured."""
    warnings: list[str] = []

    def measured(trial: Trial) -> Trial:
        candidate = trial.candidate
        assert candidate
        if run.task.holds(candidate):
            trial, trial_warnings = _measured(run, board, trial)
            warnings.extend(trial_warnings)
            return trial
        why = f"not measured: the board holds another model, not {digest(candidate)[:12]}"
        missing = dict.fromkeys(FIGURES, why)
        return replace(trial, status="skipped", reason=why, missing=missing)

    return standing.having(each(run, standing.trials, measured)).warned(warnings)


def _measured(run: Run, board: Device, trial: Trial) -> tuple[Trial, list[str]]:
    """-> the trial with its figures, warnings."""
    task, candidate = run.task, trial.candidate
    assert candidate
    feed = run.feeds(candidate)
    missing = {**trial.missing, "load_ms": "the model is part of the firmware, and is not loaded"}
    try:
        trial = replace(trial, ran_on=measure.profile(board, candidate, feed))
    except OnmetalError as error:
        missing["ran_on"] = str(error)
    try:
        used = measure.peak_memory(board, candidate, feed, 1)
        how = "the arena that was used, counted by the interpreter on the board"
        trial = trial.with_figures(peak_memory_bytes=replace(used, how=how))
    except OnmetalError as error:
        missing["peak_memory_on_board"] = str(error)
    if task.counted:
        return replace(trial, missing=missing), []
    schedule = measure.schedule(board, task.request.mode)
    end = run.clock.deadline(LATEST)
    outcome = measure.measure(board, [candidate], run.feeds, schedule, run.progress, end)
    trial = timed(trial, outcome, emulated=task.emulated)
    trial = trial.without_figure("load_ms", missing["load_ms"])
    trial = replace(trial, missing={**missing, **trial.missing})
    warnings = [CUT_SHORT] if outcome.cut_short else []
    return with_energy(trial, board, feed, schedule), warnings
