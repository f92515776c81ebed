"""Times candidates in turn on the device, and meters their energy."""

from pathlib import Path

from msgspec.structs import replace

from onmetal.deploy.context import Run, Standing
from onmetal.deploy.trials import each, usable
from onmetal.errors import OnmetalError
from onmetal.profilers import energy, intervals
from onmetal.profilers import measure as measuring
from onmetal.profilers.devices import Device
from onmetal.profilers.measure import Outcome, Schedule, Settled
from onmetal.records import Basis, Rounds, Trial

LATEST = 0.85
"""The part of --time-limit after which no round is begun."""
CUT_SHORT = "--time-limit ended the measurements early: their intervals are wider"


def measure(
    run: Run, standing: Standing, device: Device, settled: Settled | None = None
) -> Standing:
    """Time all usable trials; `settled` names those that need no further rounds."""
    running = [trial.candidate for trial in standing.trials if usable(trial) and trial.candidate]
    schedule = measuring.schedule(device, run.task.request.mode)
    outcome = measuring.measure(
        device,
        running,
        run.feeds,
        schedule,
        run.progress,
        run.clock.deadline(LATEST),
        settled=settled,
    )

    def figures(trial: Trial) -> Trial:
        assert trial.candidate
        fresh = timed(trial, outcome, emulated=run.task.emulated)
        return with_energy(fresh, device, run.feeds(trial.candidate), schedule)

    standing = standing.having(each(run, standing.trials, figures))
    return standing.warned([CUT_SHORT] if outcome.cut_short else [])


def timed(trial: Trial, outcome: Outcome, *, emulated: bool) -> Trial:
    """The trial with its figures from a measurement, or with the reason why there are none."""
    if why := outcome.failures.get(trial.name):
        return replace(trial, status="failed", reason=why, failure="device")
    rounds = outcome.rounds.get(trial.name)
    assert trial.candidate
    if rounds is None or not rounds.samples_ns:
        why = "--time-limit ended before it was measured"
        return replace(trial, missing={**trial.missing, "latency_ms": why})
    return with_figures(trial, rounds, trial.candidate.model.batch, emulated=emulated)


def with_figures(trial: Trial, rounds: Rounds, batch: int, *, emulated: bool) -> Trial:
    """The trial with its rounds, and with latency, throughput and load time computed from them."""
    basis: Basis = "emulated" if emulated else "measured"
    latency = replace(intervals.latency(rounds), basis=basis)
    return replace(trial, rounds=rounds, latency_ms=latency).with_figures(
        throughput_per_s=replace(intervals.throughput(rounds, batch), basis=basis),
        load_ms=replace(measuring.load_figure(rounds), basis=basis),
    )


def with_energy(trial: Trial, device: Device, feed: Path, schedule: Schedule) -> Trial:
    """The trial with the energy of an inference by the device's meter, or why there is none."""
    candidate = trial.candidate
    assert candidate
    try:
        windows = energy.measure(device, candidate.artifact, feed, schedule.round_s)
    except OnmetalError as error:
        return replace(trial, missing={**trial.missing, "energy_mj": str(error)})
    return replace(trial, energy_windows=windows).with_figures(energy_mj=energy.figure(windows))
