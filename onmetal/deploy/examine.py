"""Reads which operators and precisions really ran, by the runtime's profile, and the peak
memory."""

from msgspec.structs import replace

from onmetal.deploy.context import Run, Standing
from onmetal.deploy.trials import each, out_of_time
from onmetal.errors import OnmetalError
from onmetal.profilers import measure
from onmetal.profilers.devices import Device
from onmetal.records import Trial
from onmetal.targets import EXACT

COMPUTED = 0.05
"""A candidate in fewer bits must spend at least this share of its time in that precision."""
LATEST = 0.6
"""The part of --time-limit after which nothing more is examined."""


def examine(run: Run, standing: Standing, device: Device) -> Standing:
    runs = measure.schedule(device, run.task.request.mode).memory_runs

    def late(trial: Trial) -> Trial | None:
        return _unexamined(trial) if run.clock.left_s(LATEST) <= 0 else None

    return standing.having(
        each(run, standing.trials, lambda trial: _examined(run, device, trial, runs), late)
    )


def _unexamined(trial: Trial) -> Trial:
    """The result of a trial that there was no time to examine. A candidate in fewer bits is
    skipped, since its precision must be confirmed; an exact one only lacks figures."""
    if trial.recipe != EXACT:
        return out_of_time(trial, "examined")
    why = "--time-limit left no time for it"
    missing = dict.fromkeys(("ran_on", "peak_memory_bytes", "energy_mj"), why)
    return replace(trial, missing={**trial.missing, **missing})


def _examined(run: Run, device: Device, trial: Trial, runs: int) -> Trial:
    candidate = trial.candidate
    assert candidate
    missing = dict(trial.missing)
    ran_on, memory = None, trial.figures.get("peak_memory_bytes")
    try:
        ran_on = measure.profile(device, candidate, run.feeds(candidate))
    except OnmetalError as error:
        missing["ran_on"] = str(error)
    try:
        # TFLite Micro's arena was counted before, and is its peak memory.
        memory = memory or measure.peak_memory(device, candidate, run.feeds(candidate), runs)
    except OnmetalError as error:
        missing["peak_memory_bytes"] = str(error)
    trial = replace(trial, ran_on=ran_on, missing=missing)
    trial = trial.with_figures(peak_memory_bytes=memory) if memory else trial
    compute = run.task.target.recipe(trial.recipe, trial.runtime).compute
    return _exact(trial) if trial.recipe == EXACT else _computed_in(trial, compute)


def _exact(trial: Trial) -> Trial:
    """The trial of an fp32 candidate; failed where the runtime computed it in bf16."""
    bf16_share = trial.ran_on["precision"].get("bf16", 0.0) if trial.ran_on else 0.0
    if bf16_share < COMPUTED:
        return trial
    reason = f"{trial.runtime} computed {bf16_share:.0%} of it in bf16, so it is not fp32"
    return replace(trial, status="failed", failure="conversion", reason=reason)


def _computed_in(trial: Trial, compute: str) -> Trial:
    if compute == "f32":
        return trial
    if trial.ran_on is None:
        why = trial.missing["ran_on"]
        reason = f"whether it computes in {compute} could not be determined: {why}"
        return replace(trial, status="failed", failure="device", reason=reason)
    shares = trial.ran_on["precision"]
    if shares.get(compute, 0.0) >= COMPUTED:
        return trial
    precisions = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
    reason = f"{trial.runtime} did not compute it in {compute} but in {precisions}"
    return replace(trial, status="failed", failure="conversion", reason=reason)
