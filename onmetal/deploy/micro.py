"""What a microcontroller needs of a candidate, and whether it has it.

RAM is counted by TFLite Micro's own recording allocator on this machine, and modelled for the
chip's kernels besides; flash is the file and the code that runs it. What an NPU does is Vela's
model: told as such, and never as measured.
"""

from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from onmetal import costs
from onmetal.calibration.calibrated import Hub
from onmetal.deploy import agree
from onmetal.deploy.propose.plan import Planned
from onmetal.deploy.request import Clock, Task, digest
from onmetal.deploy.trials import Feeds, timed, usable
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError
from onmetal.files.cache import Cache
from onmetal.profilers import measure, statistics
from onmetal.profilers.devices.board.device import Board
from onmetal.profilers.devices.local import Local
from onmetal.progress import Progress
from onmetal.records import Candidate, Figure, Latency, Trial, Windows, plain
from onmetal.runtimes import for_runtime, shipped
from onmetal.targets import Target

LIMIT_S = 3600.0
FIGURES = tuple(cost.key for cost in costs.MEASURED if not cost.known_on_chips)
"""What only the board tells."""
ACTIVATIONS = {"i8": "s8", "i16": "s16", "f32": None}


# --- first: what TFLite Micro lacks


def check_operators(task: Task, cache: Cache) -> None:
    """Before anything is calibrated. Raises UnsupportedError naming all that TFLite Micro lacks,
    where no candidate is left that it runs."""
    said: dict[tuple[str, str], list[str]] = {}
    for entry in task.planned:
        key = str(entry.model.path), entry.recipe.compute
        if not entry.skipped and key not in said:
            said[key] = lacking(entry, task.target, task.host, cache)
    reasons = list(dict.fromkeys(reason for reasons in said.values() for reason in reasons))
    if said and all(said.values()):
        raise UnsupportedError("TFLite Micro does not run:", details=reasons)


def lacking(entry: Planned, target: Target, host: Local, cache: Cache) -> list[str]:
    """What of the model TFLite Micro does not run in the recipe's format, in words.

    Raises UnsupportedError where the model does not even become a .tflite file.
    """
    path = Hub(entry.model, target, None, host, cache).flat.path()
    activation = None if entry.model.quantized else ACTIVATIONS[entry.recipe.compute]
    with host.worker() as worker:
        found: list[dict[str, str]] = worker.call(
            "call",
            timeout_s=LIMIT_S,
            function="onmetal.runtimes.tflm.micro:lacking",
            path=str(path),
            activation=activation,
        )
    if found and not found[0]["operator"]:
        return [f"{entry.model.path}: {found[0]['reason']}"]
    return [
        f"{row['operator']}, made for {row['node']} of {entry.model.path}: {row['reason']}"
        for row in found
    ]


def preview(entry: Planned, target: Target, host: Local, cache: Cache) -> dict[str, Any]:
    """What the model will need in the recipe's format, before it is calibrated."""
    path = Hub(entry.model, target, None, host, cache).flat.path()
    with host.worker() as worker:
        found: dict[str, Any] = worker.call(
            "call",
            timeout_s=LIMIT_S,
            function="onmetal.runtimes.tflm.micro:preview",
            path=str(path),
            activation=None if entry.model.quantized else ACTIVATIONS[entry.recipe.compute],
            target_io=plain(target.io),
            core=target.chip.core if target.chip else None,
            npu=plain(target.npu),
        )
    return {"candidate": entry.name, **found}


# --- what a candidate needs


def examine_all(task: Task, trials: list[Trial], feeds: Feeds, progress: Progress) -> list[Trial]:
    """RAM, flash, agreement with LiteRT and an NPU's model of every candidate."""
    done = []
    for number, trial in enumerate(trials):
        if usable(trial) and trial.runtime == "tflm":
            progress(number, len(trials), trial.name)
            trial = _examine(task, trial, feeds)
        done.append(trial)
    return done


def _examine(task: Task, trial: Trial, feeds: Feeds) -> Trial:
    candidate = trial.candidate
    assert candidate
    try:
        arena, planned = _arena(task, candidate, feeds(candidate))
        flash = _flash(task, candidate)
    except OnmetalError as error:
        why = f"its memory could not be counted: {error}"
        return replace(trial, status="failed", failure="device", reason=why)
    npu = candidate.details.get("npu")
    found = {
        "arena": arena,
        "flash": flash,
        "plan": planned,
        "agreement_with_litert": _against_litert(task, candidate, feeds(candidate)),
        "npu": npu,
        "chip": plain(task.target.chip),
    }
    memory = {costs.MEMORY.key: _memory(arena, npu)}
    trial = replace(trial, embedded=found).with_figures(**memory)
    return _with_npu(trial, npu) if npu else trial


def _arena(task: Task, candidate: Candidate, feed: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the arena takes, counted and modelled; and the plan of its buffers over time."""
    with task.host.worker() as worker:
        worker.call("feeds", timeout_s=LIMIT_S, path=str(feed))
        host: dict[str, Any] = worker.call(
            "arena", timeout_s=LIMIT_S, runtime="tflm", **measure.arguments(candidate)
        )
    with task.host.worker() as worker:
        planned: dict[str, Any] = worker.call(
            "call",
            timeout_s=LIMIT_S,
            function="onmetal.runtimes.tflm.examine:examine",
            path=str(candidate.files[0]),
            core=task.target.chip.core if task.target.chip else None,
            host_tail_bytes=host["tail"],
        )
    return {"host": host, "modelled": planned.pop("modelled")}, planned


def _memory(arena: dict[str, Any], npu: dict[str, Any] | None) -> Figure:
    """What the budget judges: the larger of what was counted here and what is modelled."""
    if npu:
        used = {name: count for name, count in npu["memory_bytes"].items() if "flash" not in name}
        parts = ", ".join(f"{name} {count}" for name, count in used.items() if count)
        how = f"by Vela, of what the NPU takes ({parts}); the core's own operators come on top"
        return Figure(float(sum(used.values())), None, 1, "modelled", how)
    host, modelled = arena["host"]["total"], arena["modelled"]
    said = f"counted by TFLite Micro here: {host} (64 bits, reference kernels)"
    if modelled is None:
        return Figure(float(host), None, 1, "measured", f"the arena, {said}")
    total, scratch = modelled["total_bytes"], modelled["scratch_bytes"]
    how = (
        f"the arena, the larger of two figures; {said}; modelled with CMSIS-NN's kernels: {total}, "
        f"their scratch memory, at most {scratch}, planned with the rest"
    )
    if total > host:
        return Figure(float(total), None, 1, "modelled", how)
    return Figure(float(host), None, 1, "measured", how)


def _flash(task: Task, candidate: Candidate) -> dict[str, Any]:
    with task.host.worker() as worker:
        found: dict[str, Any] = worker.call(
            "call",
            timeout_s=LIMIT_S,
            function="onmetal.runtimes.tflm.flash:needs",
            path=str(shipped(candidate.runtime, candidate.files)[0]),
            core=task.target.chip.core if task.target.chip else None,
        )
    return found


def _against_litert(task: Task, candidate: Candidate, feed: Path) -> dict[str, Any]:
    """How TFLite Micro's outputs differ from those of LiteRT, of the same file: kernels differ."""
    options = {**candidate.options, **for_runtime("litert").options("f32", 1)}
    other = replace(candidate, runtime="litert", files=candidate.files[:1], options=options)
    try:
        there = agree.outputs(task.host, other, feed)
        here = agree.outputs(task.host, candidate, feed)
    except OnmetalError as error:
        return {"missing": f"LiteRT does not run it: {error}"}
    return dict(plain(agree.compared(here, there, "host")))


def _with_npu(trial: Trial, npu: dict[str, Any]) -> Trial:
    """Vela's latency, where it is of the whole model."""
    left: list[dict[str, str]] = npu["on_cpu"]
    if npu["cpu_operators"] or not npu["cycles"].get("total"):
        named = ", ".join(sorted({f"{row['operator']} {row['output']!r}" for row in left}))
        why = (
            f"{npu['cpu_operators']} operator(s) are left to the core, whose cycles are not in "
            f"Vela's sum: {named[:300]}"
        )
        said = f"not all of it runs on the NPU: {why}"
        missing = {**trial.missing, "latency_ms": why}
        return replace(trial, missing=missing, warnings=(*trial.warnings, said))
    ms = npu["inference_ms"]
    return replace(trial, latency_ms=Latency(ms, ms, None, None, 0, 0, "modelled"))


# --- on a board


def on_board(task: Task, board: Board, trials: list[Trial]) -> None:
    """Raises DeviceError where the board holds none of the candidates, or does not say which."""
    tried = [trial for trial in trials if usable(trial) and trial.candidate]
    if board.holds is None and len(tried) > 1:
        named = ", ".join(trial.name for trial in tried)
        raise DeviceError(
            f"the firmware at {board.address} does not say which model it holds, and several are "
            f"candidates ({named}): name the one that was flashed by --recipes"
        )
    if tried and not any(task.holds(trial.candidate) for trial in tried if trial.candidate):
        named = ", ".join(
            f"{trial.name} {digest(trial.candidate)[:12]}" for trial in tried if trial.candidate
        )
        raise DeviceError(
            f"the board at {board.address} holds the model {(board.holds or '')[:12]}, which is "
            f"none of the candidates ({named}): build and flash the firmware of the one to be "
            "measured, which `--no-device` writes"
        )


def measure_board(
    task: Task, board: Board, trials: list[Trial], feeds: Feeds, clock: Clock, progress: Progress
) -> list[Trial]:
    """Latency, memory and energy of the one that the board holds; the others say why not."""
    done = []
    for trial in trials:
        candidate = trial.candidate
        if not usable(trial) or candidate is None:
            done.append(trial)
        elif task.holds(candidate):
            done.append(_measured(task, board, trial, feeds, clock, progress))
        else:
            why = f"not measured: the board holds another model, not {digest(candidate)[:12]}"
            missing = dict.fromkeys(FIGURES, why)
            done.append(replace(trial, status="skipped", reason=why, missing=missing))
    return done


def _measured(
    task: Task, board: Board, trial: Trial, feeds: Feeds, clock: Clock, progress: Progress
) -> Trial:
    candidate = trial.candidate
    assert candidate
    feed = feeds(candidate)
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
        return replace(trial, missing=missing)
    schedule = measure.BOARD[task.request.mode]
    outcome = measure.measure(board, [candidate], feeds, schedule, progress, clock.deadline(0.85))
    if outcome.cut_short:
        task.warnings.append("--time-limit ended the measurements early: their intervals are wider")
    trial = timed(task, trial, outcome).without_figure("load_ms", missing["load_ms"])
    trial = replace(trial, missing={**missing, **trial.missing})
    return _with_energy(trial, board, candidate, feed, schedule.round_s)


def _with_energy(
    trial: Trial, board: Board, candidate: Candidate, feed: Path, seconds: float
) -> Trial:
    """Of one inference, by the meter that the board's address names; else why not."""
    key = costs.ENERGY.key
    if board.meter is None:
        why = "no meter: the board's address names none (`meter=lpm01a:/dev/…`)"
        return trial.without_figure(key, why)
    try:
        with board.worker() as worker:
            worker.call(
                "open", timeout_s=LIMIT_S, runtime=candidate.runtime, **measure.arguments(candidate)
            )
            worker.call("feeds", timeout_s=LIMIT_S, path=str(feed))
            metered = worker.call("energy", timeout_s=LIMIT_S, seconds=seconds, feed=0)
    except OnmetalError as error:
        return trial.without_figure(key, str(error))
    arrays = {name: np.array(values) for name, values in metered["raw"].items()}
    windows = Windows(**arrays, idle_per_s=metered["idle_mw"])
    trial = replace(trial, windows={**trial.windows, key: windows})
    return trial.with_figures(energy_mj=statistics.metered(windows, metered["how"]))
