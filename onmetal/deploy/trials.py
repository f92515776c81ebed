"""Runs a stage over all candidates, one trial each. A failure becomes the trial's result and does
not end the run."""

from collections.abc import Callable, Iterable

from msgspec.structs import replace

from onmetal.deploy.context import Run
from onmetal.deploy.propose.plan import Planned
from onmetal.errors import DeviceError, NeedlessError, UnsupportedError
from onmetal.records import Model, Trial
from onmetal.runtimes import defining
from onmetal.targets import EXACT

Verb = Callable[[Trial], Trial]
Late = Callable[[Trial], Trial | None]
"""Gives the result of a trial where the stage's part of --time-limit is over; None: there is
time."""


def usable(trial: Trial) -> bool:
    """Whether the trial has a candidate that can be judged and timed, and has not failed so far."""
    return trial.candidate is not None and trial.failure is None and trial.status == "ok"


def each(
    run: Run,
    trials: Iterable[Trial],
    verb: Verb,
    late: Late = lambda trial: None,
    *,
    tried: Callable[[Trial], bool] = usable,
    doing: str = "",
) -> list[Trial]:
    """Apply `verb` to those trials for which `tried` is true, one after another; the others stay as
    they are. -> all trials, in the same order.

    The first trial is always tried; before each later one, `late` may end it for lack of time. An
    error that the verb raises becomes the trial's reason. `doing`: text after the trial's name in
    the progress line.
    """
    results: list[Trial] = []
    all_trials = list(trials)
    begun = False
    for number, trial in enumerate(all_trials):
        if not tried(trial):
            results.append(trial)
        elif begun and (ended_trial := late(trial)):
            results.append(ended_trial)
        else:
            begun = True
            run.progress(number, len(all_trials), f"{trial.name}{doing}")
            results.append(_attempt(verb, late, trial))
    return results


def _attempt(verb: Verb, late: Late, trial: Trial) -> Trial:
    try:
        return verb(trial)
    except NeedlessError as error:
        return replace(trial, status="skipped", reason=str(error))
    except UnsupportedError as error:
        return replace(trial, status="failed", failure="conversion", reason=str(error))
    except DeviceError as error:
        failed = replace(trial, status="failed", failure="device", reason=str(error))
        return late(trial) or failed


def planned_trial(entry: Planned) -> Trial:
    return Trial(
        entry.name, entry.recipe.name, entry.runtime, entry.model.stem, lineage=entry.lineage
    )


def original_trial(model: Model, trials: Iterable[Trial]) -> Trial | None:
    """The usable trial of the unchanged model by the runtime that defines its format; None where
    there is none."""
    name = defining(model.defining_format)
    for trial in trials:
        kind = (trial.model, trial.recipe, trial.runtime)
        if kind == (model.stem, EXACT, name) and usable(trial):
            return trial
    return None


def out_of_time(trial: Trial, step: str) -> Trial:
    return replace(trial, status="skipped", reason=f"--time-limit ended before it was {step}")
