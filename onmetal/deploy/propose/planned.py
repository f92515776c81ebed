"""Proposes all planned candidates of the target's recipes at once."""

from msgspec.structs import replace

from onmetal.deploy.candidates import QUANTIZING, converted
from onmetal.deploy.context import Run, Standing
from onmetal.deploy.trials import each, out_of_time, planned_trial
from onmetal.records import Trial

WAITS = "is made after the others"
LATEST = 0.6
"""The part of --time-limit after which no float candidate is begun."""


def propose(run: Run, standing: Standing) -> Standing | None:
    """One trial for every planned candidate; where it cannot be converted, with the reason.
    Candidates that are made from others (`mixed`) wait for those."""
    if standing.trials:
        return None
    entries = {entry.name: entry for entry in run.task.planned}
    trials = []
    for entry in entries.values():
        reason = entry.skipped or (WAITS if entry.recipe.does("mixed") else None)
        trial = planned_trial(entry)
        trials.append(replace(trial, status="skipped", reason=reason) if reason else trial)

    def late(trial: Trial) -> Trial | None:
        share = QUANTIZING if entries[trial.name].recipe.quantized_by else LATEST
        return out_of_time(trial, "converted") if run.clock.left_s(share) <= 0 else None

    return standing.having(
        each(
            run,
            trials,
            lambda trial: converted(run, entries[trial.name], trial),
            late,
            tried=lambda trial: trial.status == "ok",
        )
    )
