"""Which runtime can run which recipe: a target file becomes a target here.

What a runtime can run stands in its own folder's spec; what it is to run, in the recipe.
"""

from pathlib import Path

from msgspec.structs import replace

from onmetal import runtimes, targets
from onmetal.targets import EXACT, Format, Recipe, Target, TargetFile, inline
from onmetal.targets import recipe as recipes
from onmetal.targets.recipe import STEPS, Named


def load_target(name: str) -> Target:
    """A built-in target by its name, or any by its file's path, with those recipes that its
    runtimes can run.

    Raises UsageError, naming the file and the field, where it is missing or wrong.
    """
    return resolve(targets.read(name))


def resolve(file: TargetFile) -> Target:
    """Raises UsageError where a runtime cannot do what the file asks of it."""
    try:
        _check_runtimes(file)
        runnable = tuple(recipe for entry in file.recipes for recipe in ways(entry, file))
        if EXACT not in [recipe.name for recipe in runnable] and not file.micro:
            raise ValueError(f"it has no {EXACT!r} recipe, which is run as the reference")
        warnings = _replacement_lines(file, runnable) if file.deprecated else ()
    except ValueError as error:
        raise targets.refused(file.source, str(error)) from None
    common = {
        key: getattr(file, key)
        for key in Target.__struct_fields__
        if key not in ("recipes", "warnings")
    }
    return Target(**common, recipes=runnable, warnings=warnings)


def for_one_runtime(name: str | None, runtime: str) -> Target:
    """A target with one of its runtimes alone, and those recipes that this runtime runs.

    `name`: as for `load_target`; None: the rules are those of the target for this kind of machine,
    and the recipes all built-in ones. Raises UsageError where the target is wrong.
    """
    file = targets.read(name or targets.default_for("local"))
    target = resolve(file)
    alone = replace(file, runtimes=tuple(entry for entry in file.runtimes if entry.name == runtime))
    if name is not None:
        recipes_of_target = target.recipes
    else:
        others = [word for word in recipes.names() if word not in [e.name for e in file.recipes]]
        every = [*file.recipes, *map(recipes.built_in, others)]
        recipes_of_target = tuple(
            recipe for entry in every for recipe in _runnable_ways(replace(entry, only=()), alone)
        )
    kept = tuple(
        replace(recipe, runtimes=(runtime,))
        for recipe in recipes_of_target
        if runtime in recipe.runtimes
    )
    return replace(target, runtimes=alone.runtimes, recipes=kept)


def why_not(recipe: str, runtime: str) -> str | None:
    """Why a runtime does not run a built-in recipe, in words that follow the recipe's name; None
    where it does. Raises ValueError where there is no such recipe."""
    ways_of_recipe = recipes.built_in(recipe).ways
    meant = [way for way in ways_of_recipe if runtime in (way.runtimes or (runtime,))]
    if not meant:
        named = " and ".join(name for way in ways_of_recipe for name in way.runtimes)
        return f"is for {named} alone"
    reasons = [misfit(way, runtime) for way in meant]
    return None if None in reasons else reasons[0]


def _check_runtimes(file: TargetFile) -> None:
    named, known = [runtime.name for runtime in file.runtimes], runtimes.RUNTIMES
    if unknown := sorted(set(named) - set(known)):
        raise ValueError(
            f"[[runtimes]] names {unknown[0]!r}, which is unknown; there are: {', '.join(known)}"
        )
    of_chips = [name for name in known if runtimes.spec(name).in_firmware]
    which = " or ".join(map(repr, of_chips))
    micro = [name for name in named if name in of_chips]
    if micro and len(named) > 1:
        raise ValueError(
            f"the runtime {micro[0]!r} stands beside others, which no device has together"
        )
    if not micro and (file.chip or file.npu):
        raise ValueError(
            f"[chip] and [npu] are of microcontrollers, which only the runtime {which} runs on"
        )
    if file.micro != bool(micro):
        raise ValueError(f"transport 'serial' and the runtime {which} go together")


def ways(entry: Named, file: TargetFile) -> list[Recipe]:
    """A recipe as the target's runtimes run it. Raises ValueError where none of them can, or where
    a runtime that is named for it cannot."""
    target_runtimes = [runtime.name for runtime in file.runtimes]
    reasons: dict[str, str] = {}
    runnable = []
    for way in entry.ways:
        for name in way.runtimes:
            if why := misfit(way, name):
                raise ValueError(f"recipe {way.name!r} {why}")
        meant = way.runtimes or target_runtimes
        requested = [
            name
            for name in target_runtimes
            if name in meant and name in (entry.only or target_runtimes)
        ]
        reasons |= {name: why for name in requested if (why := misfit(way, name))}
        if able := tuple(name for name in requested if name not in reasons):
            runnable.append(replace(way, runtimes=able))
    running = [name for way in runnable for name in way.runtimes]
    for name in entry.only:
        if name not in target_runtimes:
            raise ValueError(
                f"recipe '{entry.name}@{name}' names a runtime that is not among its [[runtimes]] "
                f"({', '.join(target_runtimes)})"
            )
        if name not in running:
            why = reasons.get(name, "is not meant for this runtime")
            raise ValueError(f"recipe '{entry.name}@{name}' {why}")
    if not runnable:
        refusals = [f"on {name}, it {why}" for name, why in reasons.items()]
        meant_for = " and ".join(name for way in entry.ways for name in way.runtimes)
        why = "; ".join(refusals) or f"it is for {meant_for} alone"
        raise ValueError(f"recipe {entry.name!r} runs on none of its [[runtimes]]: {why}")
    return runnable


def misfit(recipe: Recipe, name: str) -> str | None:
    """Why a runtime cannot run a recipe, in words that follow its name."""
    if name not in runtimes.RUNTIMES:
        known = ", ".join(runtimes.RUNTIMES)
        return f"names the runtime {name!r}, which is unknown; there are: {known}"
    spec = runtimes.spec(name)
    for step in [step for step in recipe.steps if STEPS[step.do].by_runtime]:
        if step.do not in spec.runs:
            return (
                f"has the step {step.do!r}, which runs on {' and '.join(_running(step.do))} alone"
            )
        if recipe.compute not in spec.runs[step.do]:
            can = " or ".join(spec.runs[step.do])
            return f"with the step {step.do!r} computes in {can} on {name}, not in {recipe.compute}"
    floats = spec.runs.get("float", ())
    if recipe.quantized_by is None and recipe.compute not in floats:
        can = " or ".join(floats) or "no type"
        why = spec.other_floats or f"which onmetal lets compute floats in {can} only, not {{type}}"
        return f"names {name}, {why.format(type=recipe.compute)}"
    if recipe.format is None:
        return None
    if spec.reads == "tflite":
        return _tflite_misfit(recipe, recipe.format, name)
    if recipe.format.activation == "s16":
        able = [
            known for known in _running("static") if "i16" in runtimes.spec(known).runs["static"]
        ]
        return f"has 16-bit activations, which only {' and '.join(able)} compute with"
    if not recipe.format.operators:
        return "lists no operators in its format"
    return None


def _running(step: str) -> list[str]:
    """The runtimes that run a step."""
    return [name for name in runtimes.RUNTIMES if step in runtimes.spec(name).runs]


def _tflite_misfit(recipe: Recipe, form: Format, name: str) -> str | None:
    """TFLite's quantization is one specification, of which only the activations may be chosen."""
    if form != Format(activation=form.activation) or form.activation == "u8":
        return (
            'has a format other than TFLite\'s: only `activation`, "s8" or "s16", can be said for '
            f"{name}"
        )
    in_16_bits = form.activation == "s16"
    if in_16_bits != (recipe.compute == "i16"):
        return f"with activations of {form.activation} computes in {'i16' if in_16_bits else 'i8'}"
    return None


def _replacement_lines(file: TargetFile, runnable: tuple[Recipe, ...]) -> tuple[str, ...]:
    """What to write in the place of a file's [[recipes]] tables."""
    words: list[str] = []
    new_files: dict[str, Recipe] = {}
    for recipe in runnable:
        equivalent = _built_in(recipe, file)
        name_taken = recipe.name == Path(file.source).stem  # by the target file itself
        path = f"./recipes/{recipe.name}.toml" if name_taken else f"./{recipe.name}.toml"
        words += equivalent or [path]
        if not equivalent:
            new_files[path] = recipe
    place = file.source
    warnings = [
        f"{place}: its tables of [[recipes]] are deprecated: delete them, and write above the "
        f"file's first [table] the line `{inline.list_line(words)}`"
    ]
    for path, recipe in new_files.items():
        everywhere = Named(recipe.name, (replace(recipe, runtimes=()),))
        if _runnable_ways(everywhere, file) == [recipe]:
            recipe = replace(recipe, runtimes=())
        lines = ", ".join(f"`{line}`" for line in inline.file_lines(recipe))
        beside = Path(place).parent / path
        warnings.append(f"{place}: and write the file {beside} of the lines {lines}")
    return tuple(warnings)


def _built_in(recipe: Recipe, file: TargetFile) -> list[str]:
    """How a target names the built-in recipe that does the same; empty: there is none."""
    if recipe.name not in recipes.names():
        return []
    entry = recipes.built_in(recipe.name)
    if _runnable_ways(entry, file) == [recipe]:
        return [recipe.name]
    if _runnable_ways(replace(entry, only=recipe.runtimes), file) == [recipe]:
        return [f"{recipe.name}@{name}" for name in recipe.runtimes]
    return []


def _runnable_ways(entry: Named, file: TargetFile) -> list[Recipe]:
    try:
        return ways(entry, file)
    except ValueError:
        return []
