"""A stage runs over the candidates, one trial each. A failure is a result, not an end."""

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
"""What becomes of a trial whose part of --time-limit is over; None: there is time for it."""


def usable(trial: Trial) -> bool:
    """Whether there is something to judge and to time, and nothing speaks against it yet."""
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
    """What `verb` makes of those trials that are `tried`, one after another; all others stay as
    they are. The first one is tried whatever the time. What the verb raises becomes the trial's
    reason. `doing`: told with the progress.
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
    """The candidate that is just the model itself, by the runtime that defines its format."""
    name = defining(model.format)
    for trial in trials:
        kind = (trial.model, trial.recipe, trial.runtime)
        if kind == (model.stem, EXACT, name) and usable(trial):
            return trial
    return None


def out_of_time(trial: Trial, step: str) -> Trial:
    return replace(trial, status="skipped", reason=f"--time-limit ended before it was {step}")
