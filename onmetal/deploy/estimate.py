"""Estimates how long each step of a run will take: from the plan at first, from the results of the
screening later on.

The schedule of a measurement is exact. The times to start processes, to convert and to calibrate
are rough figures of an idle machine, scaled by the load; Progress corrects them as steps end.
"""

import os

import numpy as np
from msgspec import Struct

from onmetal.deploy.context import Standing, Task
from onmetal.profilers.measure import Schedule, schedule
from onmetal.targets import EXACT

CONVERTING = "calibrating and converting"
JUDGING = "judging"
COUNTING = "counting memory"
PROFILING = "reading the runtimes' profiles and peak memory"
MEASURING = "measuring"
DECIDING = "deciding"
WRITING = "writing the bundle"
"""The titles of the steps, as progress shows them."""

CONVERSION_S = 0.6
QUANTIZATION_S = 0.8
"""Of one candidate, without the passes over the calibration samples."""
FAST_S = 4.0
"""A candidate of mixed precision: profiles, several variants, short timings."""
PASSES = 3
"""How often the float model, with all its tensors as outputs, is run over the calibration
samples."""
SCREENING_S = 0.9
"""Of one candidate: a short timing, and a few samples in a process of its own."""
SURVIVING = 0.5
"""The share of the quantized candidates that is tried further after the screening."""
STILL_TIMED = 0.5
"""The share of the measured candidates that is still timed after the least number of blocks."""
MACS_PER_S = 1.5e10
"""Multiply-accumulates in a second by one thread."""
MICRO_MACS_PER_S = 5e8
"""Multiply-accumulates in a second by TFLite Micro's reference kernels."""
LEAST_MS = 0.1
BUSIEST = 4.0


class Extent(Struct, frozen=True):
    """The number of candidates of each kind, and the time of one inference."""

    floats: int
    quantized: int
    fast: int
    tried: int
    """Candidates that are judged and measured."""
    inference_ms: float

    @property
    def planned(self) -> int:
        return self.floats + self.quantized + self.fast


def steps_s(task: Task, standing: Standing | None = None) -> dict[str, float]:
    """Title of each step -> its expected seconds. `standing`: the results of the screening, which
    say how many candidates are tried further; None before it."""
    extent = _extent(task, standing)
    process_s = _worker_start_s(task) * load(task)
    samples = task.data[str(task.models[0].path)].count
    calibrated = task.calibration_samples * PASSES if extent.quantized else 0
    sample_s = extent.inference_ms / 1e3
    micro, tried = task.target.micro, extent.tried
    seconds = {
        CONVERTING: load(task)
        * (
            extent.floats * CONVERSION_S
            + extent.quantized * (CONVERSION_S + QUANTIZATION_S)
            + extent.fast * FAST_S
            + (extent.planned * SCREENING_S if extent.quantized else 0.0)
        )
        + 2 * calibrated * sample_s * len(task.models),
        JUDGING: tried * (process_s + samples * sample_s),
    }
    if micro:
        seconds[COUNTING] = tried * 3 * process_s
    if task.device:
        plan = schedule(task.device, task.request.mode)
        if not task.one_model:
            seconds[PROFILING] = tried * process_s * (1 + plan.memory_runs)
        count = 1 if task.one_model else tried
        last = max(min(count, 2), round(STILL_TIMED * count)) if plan.least_blocks else count
        seconds[MEASURING] = measuring_s(plan, count, process_s, sample_s, last)
    seconds[DECIDING] = 0.5
    if task.device and task.interleaved:
        plan = schedule(task.device, task.request.mode)
        seconds[DECIDING] = measuring_s(plan, 2, process_s, sample_s)
    return {**seconds, WRITING: 3 * process_s}


def measuring_s(
    plan: Schedule,
    candidates: int,
    process_s: float,
    inference_s: float,
    last: int | None = None,
) -> float:
    """The seconds that a schedule takes; a round lasts for one inference at least. `last`: how many
    of the candidates are timed in every block, not only in the least number of blocks; None:
    all."""
    start_s = process_s + max(plan.warm_s, 5 * inference_s)
    round_s = max(plan.round_s, inference_s) + max(plan.round_warm_s, inference_s)
    least = plan.least_blocks or plan.blocks
    started = least * candidates + (plan.blocks - least) * (candidates if last is None else last)
    return started * (start_s + plan.rounds * round_s)


def _worker_start_s(task: Task) -> float:
    """The seconds to start a worker with its runtime and to open an artifact in it."""
    return (task.device or task.host).traits.worker_start_s


def load(task: Task) -> float:
    """How many times slower this machine is than an idle one, by its load average; at most
    BUSIEST."""
    return min(BUSIEST, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def _extent(task: Task, standing: Standing | None) -> Extent:
    planned = [entry for entry in task.planned if not entry.skipped]
    steps = [entry.recipe.quantized_by for entry in planned]
    floats, fast = steps.count(None), steps.count("mixed")
    quantized = len(planned) - floats - fast
    tried = floats + round(SURVIVING * (quantized + fast))
    if standing is not None:
        tried = sum(t.status == "ok" and t.failure is None for t in standing.trials)
    screened = standing.screened if standing else {}
    exact = [
        screened[entry.name].p50_ms
        for entry in planned
        if entry.recipe.name == EXACT
        and entry.name in screened
        and np.isfinite(screened[entry.name].p50_ms)
    ]
    return Extent(floats, quantized, fast, tried, min(exact) if exact else guessed_ms(task))


def guessed_ms(task: Task) -> float:
    """The guessed milliseconds of one inference, by the multiply-accumulates of the largest model
    and the load."""
    macs = max(entry.macs or 2 * entry.parameters for entry in task.models)
    per_s = MICRO_MACS_PER_S if task.target.micro else MACS_PER_S * task.threads
    return load(task) * max(LEAST_MS, 1e3 * macs / per_s)
