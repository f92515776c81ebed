"""Measures the best candidate again, to confirm its figures."""

from msgspec.structs import replace

from onmetal.deploy.context import Run
from onmetal.deploy.measure import timed
from onmetal.profilers import intervals, measure
from onmetal.records import Trial


def confirm(run: Run, pick: Trial, base: Trial | None) -> tuple[Trial, list[str]]:
    """Measure the best trial, `pick`, again in fresh blocks against the baseline: the best of
    several noisy figures looks better than it is, so the first figures are not reported.

    -> the trial with its new figures, or unchanged where nothing is timed; warnings.
    """
    task, clock = run.task, run.clock
    late_warnings = [f"{pick.name} was not measured again: --time-limit had ended"]
    if task.device is None or not task.interleaved or pick.rounds is None or pick.candidate is None:
        return pick, []
    again = [pick.candidate]
    if base and base.candidate and base.name != pick.name:
        again.append(base.candidate)
    if clock.left_s(1.0) <= 0:
        return pick, late_warnings
    outcome = measure.measure(
        task.device,
        again,
        run.feeds,
        measure.schedule(task.device, task.request.mode),
        lambda done, total, what: run.progress(done, total, f"{pick.name} again, {what}"),
        clock.deadline(1.0),
        seed=1,
    )
    if why := outcome.failures.get(pick.name):
        reason = f"measured again: {why}"
        return replace(pick, status="failed", failure="device", reason=reason), []
    if outcome.cut_short or pick.name not in outcome.rounds:
        return pick, late_warnings
    fresh = timed(pick, outcome, emulated=task.emulated)
    fresh = replace(fresh, rounds=pick.rounds, again=outcome.rounds)
    if base is None:  # the speed-up is that of the first blocks
        return fresh, []
    if base.name not in outcome.rounds:
        return fresh, [f"{base.name} failed when measured again, beside {pick.name}"]
    versus = intervals.compare(outcome.rounds[base.name], outcome.rounds[pick.name])
    return replace(fresh, versus_baseline=versus), []
