"""Converts a model to one file, with the checks of a deployment and without its measurements."""

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from onmetal.calibration import samples
from onmetal.deploy import conversion_record, model, output_file
from onmetal.deploy.accuracy import judge_alone
from onmetal.deploy.candidates import converted
from onmetal.deploy.context import Clock, Run, Task
from onmetal.deploy.data import RANDOM_SAMPLES
from onmetal.deploy.likeness import ADVICE
from onmetal.deploy.propose.plan import Planned, calibrates, plan
from onmetal.deploy.request import ConversionRequest, Request, check_runtimes, choose_threads
from onmetal.deploy.trials import planned_trial
from onmetal.deploy.ways import Ways, ways
from onmetal.errors import DeviceError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.operation import asked
from onmetal.progress import Progress
from onmetal.records import NO_DATA, Candidate, Model, Trial, plain
from onmetal.reports.command_records import Conversion, NotTaken
from onmetal.reports.record import Failure
from onmetal.runtimes import (
    RUNTIMES,
    check_options,
    fit,
    operations,
    shipped,
    spec,
)
from onmetal.samples import Samples
from onmetal.targets import EXACT, Target
from onmetal.targets import recipe as recipes
from onmetal.texts.suggest import did_you_mean

CALIBRATED = "int8"
"""The family of recipes that is taken where there are calibration data and none is named."""


def convert_model(request: ConversionRequest, progress: Progress) -> Conversion:
    """Convert a model to the file that was asked for, and say what was written.

    Raises UsageError, UnsupportedError (with the record, where its outputs are not the model's),
    or DeviceError where a tool is missing.
    """
    runtime = _runtime(request)
    output_file.check(request.file, request.model, runtime, request.force)
    rules = fit.for_one_runtime(request.target, runtime)
    check_options(rules)
    _check_recipe(request, rules, runtime)
    with Cache() as cache, cache.scratch() as scratch:
        host = Local(cache)
        check_runtimes(rules, host)
        progress.step("reading the model and the data")
        shapes = model.parse_shapes(list(request.input_shapes))
        source = model.read(
            request.model, shapes, request.batch, cache, host, request.trust, request.cut_at
        )
        if (source.prepared.parent / "model.data").exists():
            data_file = output_file.data_beside(request.file)
            output_file.check_beside(data_file, request.file, request.model, request.force)
        planned = _chosen(request, rules, source, ways([source], rules, cache, host), host)
        data = _samples(request, source, cache, progress)
        task = _task(request, rules, source, host, planned, data)
        run = Run(task, cache, scratch, Clock(None), progress, lambda candidate: scratch)
        trial, not_taken = _first_faithful(run, planned, request.file)
        progress.step("writing the file")
        return _write(request, run, trial, not_taken)


# --- what is converted to what


def _runtime(request: ConversionRequest) -> str:
    """The runtime whose artifacts have the suffix of the file; with a target, one of its runtimes.

    Raises UsageError where there is none.
    """
    if request.file.is_dir():
        raise UsageError(f"-o {request.file}: this is a folder; give the name of a file")
    rules = fit.load_target(request.target) if request.target else None
    known = [entry.name for entry in rules.runtimes] if rules else list(RUNTIMES)
    known = [name for name in known if rules or not spec(name).in_firmware]
    fitting = [name for name in known if spec(name).suffixes[0] == request.file.suffix]
    if fitting:
        return fitting[0]
    suffixes = ", ".join(f"{spec(name).suffixes[0]} ({spec(name).title})" for name in known)
    whose = f"the target {request.target} runs" if request.target else "there are"
    ends = f"ends in {request.file.suffix}" if request.file.suffix else "has no suffix"
    raise UsageError(
        f"-o {request.file}: the suffix says what is written, and the name {ends}; {whose}: "
        f"{suffixes}"
    )


def _check_recipe(request: ConversionRequest, rules: Target, runtime: str) -> None:
    """Raises UsageError where there is no such recipe, UnsupportedError where the runtime does not
    run it, before the model is read."""
    word, known = (
        _word(request, rules),
        list(dict.fromkeys(recipe.name for recipe in rules.recipes)),
    )
    if any(name.startswith(word) for name in known):
        return
    if word not in recipes.names():
        raise UsageError(
            f"--recipe {word}: there is no such recipe{did_you_mean(word, recipes.names())}; for "
            f"{request.file.suffix} files there are: {', '.join(known)}"
        )
    reason = fit.why_not(word, runtime) or f"is not one of the target {rules.name}"
    raise UnsupportedError(
        f"--recipe {word}: {spec(runtime).title} does not run it: {word} {reason}; for "
        f"{request.file.suffix} files there are: {', '.join(known)}"
    )


def _word(request: ConversionRequest, rules: Target) -> str:
    """The recipe or family that was named; else what fits the data and the target."""
    has_float = any(recipe.name == EXACT for recipe in rules.recipes)
    return request.recipe or (EXACT if has_float and not request.calibration_data else CALIBRATED)


def _chosen(
    request: ConversionRequest, rules: Target, source: Model, known_ways: Ways, host: Local
) -> list[Planned]:
    """The recipe of this name; else the calibrated ones of this family, in the target's order; each
    by every way from the model to the runtime.

    Raises UnsupportedError or UsageError, with the reason, where none can be made of the model.
    """
    word = _word(request, rules)
    entries = plan(
        rules,
        [source],
        host.facts(),
        None,
        samples=request.calibration_data is not None,
        timed=False,
        ways=known_ways,
    )
    chosen = [entry for entry in entries if entry.recipe.name == word] or [
        entry
        for entry in entries
        if entry.recipe.name.startswith(word)
        and [step.do for step in entry.recipe.steps] == ["static"]
    ]
    if not chosen:
        names = dict.fromkeys(e.recipe.name for e in entries if e.recipe.name.startswith(word))
        raise UsageError(
            f"--recipe {word}: none of this family is calibrated by onmetal itself; name one of: "
            f"{', '.join(names)}"
        )
    able = [entry for entry in chosen if not entry.skipped]
    if not able:
        raise _refusal(chosen[0], request)
    return able


def _refusal(entry: Planned, request: ConversionRequest) -> UsageError | UnsupportedError:
    if entry.skipped == NO_DATA:
        return UsageError(
            f"--recipe {entry.recipe.name}: no data to calibrate and compare it with: give "
            "--calibration-data"
        )
    advice = ""
    if entry.recipe.quantized_by and (entry.model.quantized or entry.model.stateful):
        advice = f"; --recipe {EXACT} converts it as it is"
    elif entry.recipe.does("mixed") or entry.recipe.requires_any_flag:
        advice = (
            "; `deploy MODEL --target … --device …` tries it where it will run, which a conversion "
            "alone does not"
        )
    return UnsupportedError(
        f"{request.model} cannot become {request.file.name} by the recipe {entry.recipe.name}: "
        f"{entry.skipped}{advice}"
    )


# --- the parts of a deployment that a conversion needs


def _samples(
    request: ConversionRequest, source: Model, cache: Cache, progress: Progress
) -> Samples:
    """What the outputs are compared on, and what is calibrated with where there are data."""
    if request.calibration_data is None:
        return samples.random(source, cache, RANDOM_SAMPLES)
    return samples.load(
        request.calibration_data,
        source,
        cache,
        option="--calibration-data",
        labelled=False,
        follow_links=request.follow_links,
        progress=progress,
    )


def _task(
    request: ConversionRequest,
    rules: Target,
    source: Model,
    host: Local,
    planned: list[Planned],
    data: Samples,
) -> Task:
    deployment = Request(
        models=(request.model,),
        target=rules.name,
        calibration_data=request.calibration_data,
        device="none",
    )
    key, facts = str(source.path), host.facts()
    return Task(
        request=deployment,
        target=rules,
        device=None,
        host=host,
        facts=facts,
        models=[source],
        threads=choose_threads(None, rules, facts),
        planned=planned,
        data={key: data},
        calibration={key: data} if calibrates(planned) else {},
        training={},
        labelled=False,
        metric=None,
        output=None,
        warnings=tuple(source.notes),
    )


def _first_faithful(run: Run, planned: list[Planned], file: Path) -> tuple[Trial, list[NotTaken]]:
    """The first recipe whose outputs are the model's; where there is none, the first that could be
    made. -> its trial; the other recipes that were tried, each with the reason.

    Raises UnsupportedError where none could be made, DeviceError where none ran.
    """
    calibrating = calibrates(planned)
    run.progress.step("calibrating and converting" if calibrating else "converting")
    unlike: dict[str, Trial] = {}
    reasons: dict[str, str] = {}
    for entry in planned:
        name = entry.name.partition("@")[0]
        try:
            trial = judge_alone(run, converted(run, entry, planned_trial(entry)))
        except (UnsupportedError, DeviceError) as error:
            reasons[name], kind = str(error), type(error)
            continue
        if not (objections := _objections(trial)):
            return trial, [NotTaken(name, reason) for name, reason in reasons.items()]
        unlike[name], reasons[name] = trial, "; ".join(objections)
    if unlike:
        first = next(iter(unlike))
        others = {name: reason for name, reason in reasons.items() if name != first}
        return unlike[first], [NotTaken(name, reason) for name, reason in others.items()]
    details = [f"{name}: {reason}" for name, reason in reasons.items()]
    raise kind(f"{run.task.models[0].path} cannot become {file.name}:", details=details)


def _objections(trial: Trial) -> list[str]:
    """Why the outputs are not the model's."""
    if trial.failure:
        return [trial.reason or ""]
    return [*(reason.removesuffix(ADVICE[False]) for reason in trial.unlike), *trial.collapsed]


# --- what comes of it


def _write(
    request: ConversionRequest, run: Run, trial: Trial, not_taken: list[NotTaken]
) -> Conversion:
    """Write the file, unless its outputs are not the model's."""
    candidate, host = trial.candidate, run.task.host
    assert candidate
    artifact = shipped(candidate.runtime, candidate.files)
    if objections := _objections(trial):
        conversion = conversion_record.record(
            request, run, trial, not_taken, (), _ends(host, candidate, artifact[0])
        )
        message = (
            f"{request.file} was not written: the outputs of {candidate.recipe} are not the "
            f"model's on {conversion_record.compared_on(request)}:"
        )
        error = UnsupportedError(message, details=_figures(conversion, objections))
        failed = replace(conversion, error=Failure(error.exit_code, str(error)))
        raise UnsupportedError(message, plain(failed), _figures(conversion, objections))
    with output_file.written(artifact, request.file, candidate.runtime, host) as files:
        ends = _ends(host, candidate, files[0])  # of the file that is written: it can be opened
        places = [request.file.parent / path.name for path in files]
        output_file.check_free(request.file, request.model, request.force)
        for place in places[1:]:
            output_file.check_beside(place, request.file, request.model, request.force)
        conversion = conversion_record.record(request, run, trial, not_taken, places, ends)
    return conversion


def _figures(conversion: Conversion, objections: list[str]) -> list[str]:
    fidelity = conversion.fidelity
    figures = [f"{name}: {value:.1f} dB" for name, value in fidelity.sqnr_db.items() if value]
    figures += [f"{name}: {value:.1%} equal" for name, value in fidelity.equal.items() if value]
    earlier = [f"{entry.recipe}: {entry.reason}" for entry in conversion.not_taken]
    advice = "give more or other --calibration-data, or another --recipe"
    if conversion.compared_on == "random inputs":
        advice = "give real inputs by --calibration-data, or another --recipe"
    return [*objections, *figures, *earlier, advice]


def _ends(host: Local, candidate: Candidate, path: Path) -> dict[str, list[dict[str, Any]]]:
    """The inputs and outputs of an artifact itself."""
    with host.worker() as worker:
        return worker.do(asked(operations.describe, candidate.runtime, path), timeout_s=600)
