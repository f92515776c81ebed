"""Recipes: the steps that make a candidate of a model, one TOML file each in targets/recipes/.

Which runtimes can run a recipe follows from the runtimes' specs (`onmetal.runtimes.fit`). A
recipe's file names runtimes only where the recipe differs between them, or is meant for some alone.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from onmetal.files.reading import TOML_BYTES, parse_toml, read_bytes
from onmetal.records import Step
from onmetal.texts.suggest import did_you_mean, near

FOLDER = files("onmetal.targets").joinpath("recipes")
NAME = r"^[a-z][a-z0-9]*(-[a-z0-9]+)*\Z"

EXACT = "fp32"
"""The recipe that computes what the original model computes. It is always run, as the reference,
where a target has it; the target of a microcontroller need not have it."""

OPERATORS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Concat", "Reshape"}
    | {"Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "Gather", "Resize"}
    | {"MaxPool", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "AveragePool", "ReduceMean"}
    | {"GlobalAveragePool", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Elu"}
    | {"Softmax"}
)
"""ONNX's names of the operators that the quantizer supports. A Relu or Clip is quantized together
with the operator that it follows."""

Compute = Literal["f32", "f16", "bf16", "i8", "i16"]
Kind = Literal["u8", "s8"]


class Format(Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of one 8-bit format, which the quantizer follows."""

    operators: tuple[str, ...] = ()
    """Which operators run in 8 bits; all others stay float. A runtime of .tflite files lists none:
    it runs all those that TFLite's quantization specification does."""
    activation: Literal["u8", "s8", "s16"] = "u8"
    weight: Kind = "s8"
    activation_symmetric: bool = False
    """Whether the zero point is 0 (s8) or 128 (u8); else the calibrated range decides it."""
    weight_symmetric: bool = True
    per_channel: bool = True
    """Whether a weight has a scale for every output channel; else it has one scale."""
    weight_bits: Literal[7, 8] = 8
    """7: a reduced range, where 16-bit accumulators of 8-bit products would saturate."""
    same_scale: tuple[str, ...] = ()
    """Operators whose outputs must have the scale of their inputs."""


class StepKind(Struct, frozen=True):
    """What is to be known of a step before it is done. The step itself is a module of its name in
    calibration/steps/."""

    what: str
    options: dict[str, type] = {}
    """What a recipe may say besides: `{ do = NAME, OPTION = VALUE }`, each with its type."""
    quantizes: bool = False
    """Whether it decides the numbers' format: a recipe has one such step at most."""
    by_runtime: bool = False
    """Whether the runtime must be able to do it (its Spec.runs): a step that decides the numbers'
    format, and one that is done where the artifact is converted."""
    calibrated: bool = False
    """Whether samples decide how it is done."""
    formatted: bool = False
    """Whether it follows the rules of [format]."""
    after: str | None = None
    """The step that it must follow; None: it comes before the one that quantizes."""


def _quantizing(what: str, *, calibrated: bool = False, formatted: bool = False) -> StepKind:
    return StepKind(
        what, quantizes=True, by_runtime=True, calibrated=calibrated, formatted=formatted
    )


STEPS = {
    "half": _quantizing("weights stored as f16"),
    "static": _quantizing("8 bits by calibrated ranges", calibrated=True, formatted=True),
    "weights": _quantizing("8-bit weights, computed with in float", formatted=True),
    "dynamic": _quantizing("8-bit matrix products, ranges of activations taken in every inference"),
    "nncf": _quantizing("8 bits by Intel's NNCF, after its own rules", calibrated=True),
    "mixed": _quantizing(
        "the runtime's fastest `static` candidate, some operators in float by its profile",
        calibrated=True,
    ),
    "split": StepKind("early operators in bands of rows", by_runtime=True, after="static"),
}
"""What can be done to a model. No step: it is computed as it is."""


class Recipe(Struct, frozen=True):
    """How a candidate is made, for the runtimes that run it in the same way."""

    name: str
    runtimes: tuple[str, ...]
    """In a target: those of its runtimes that run the recipe. In a recipe's file: the runtimes that
    it is meant for; empty: all that can run it."""
    compute: Compute
    """The type that the runtime computes in; its profile must confirm it."""
    steps: tuple[Step, ...] = ()
    requires_any_flag: tuple[str, ...] = ()
    """CPU flags (as /proc/cpuinfo spells them) of which one must be present to run this at all."""
    format: Format | None = None

    @property
    def quantized_by(self) -> str | None:
        """The step that decides the numbers' format; None: the model's own."""
        return next((step.do for step in self.steps if STEPS[step.do].quantizes), None)

    @property
    def calibrated(self) -> bool:
        """Whether making it needs calibration samples."""
        return any(STEPS[step.do].calibrated for step in self.steps)

    def does(self, step: str) -> bool:
        return any(known.do == step for known in self.steps)


class Named(Struct, frozen=True):
    """A recipe as a target names it."""

    name: str
    ways: tuple[Recipe, ...]
    """One recipe, or one for each group of runtimes that the file treats differently."""
    only: tuple[str, ...] = ()
    """The target's runtimes that are to run it (NAME@RUNTIME); empty: all that can."""


class _Way(Struct, frozen=True, forbid_unknown_fields=True):
    """A recipe's file, or a [[for]] table of it."""

    compute: Compute
    steps: tuple[str | dict[str, Any], ...] = ()
    runtimes: tuple[str, ...] = ()
    requires_any_flag: tuple[str, ...] = ()
    format: Format | None = None


class _Ways(Struct, frozen=True, forbid_unknown_fields=True):
    ways: Annotated[tuple[_Way, ...], Meta(min_length=1)] = msgspec.field(name="for")


def names() -> list[str]:
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in FOLDER.iterdir()
        if entry.name.endswith(".toml")
    )


def listed(words: tuple[str, ...], folder: Path) -> tuple[Named, ...]:
    """The recipes that a target lists: NAME, or the path of a .toml file of the user's own, from
    the target file's folder; each may go on with @RUNTIME.

    Raises ValueError, saying what is wrong with them.
    """
    recipes: dict[str, Named] = {}
    for word in words:
        what, separator, runtime = (
            word.partition("@") if not word.endswith(".toml") else (word, "", "")
        )
        entry = own(what, folder) if what.endswith(".toml") else built_in(what)
        before = recipes.get(entry.name)
        if before is None:
            recipes[entry.name] = replace(entry, only=(runtime,)) if separator else entry
        elif separator and before.only and runtime not in before.only and before.ways == entry.ways:
            recipes[entry.name] = replace(before, only=(*before.only, runtime))
        else:
            raise ValueError(f"the recipe {entry.name!r} stands there twice")
    return tuple(recipes.values())


def built_in(name: str) -> Named:
    if name not in names():
        raise ValueError(
            f"there is no recipe {name!r}{did_you_mean(name, names())}; there are: "
            f"{', '.join(names())}, or give the path of a .toml file of your own"
        )
    return parse(name, FOLDER.joinpath(f"{name}.toml").read_text("utf-8"))


def own(word: str, folder: Path) -> Named:
    """A user's own recipe, named as its file is."""
    path = folder / word
    try:
        text = read_bytes(path, TOML_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"recipe {word}: there is no such file{near(path, ('.toml',))}") from None
    except OSError as error:
        raise ValueError(f"recipe {word}: cannot read this file ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"recipe {word}: cannot read this file: {error}") from None
    if not re.fullmatch(NAME, path.stem):
        raise ValueError(
            f"recipe {word}: the file's name is the recipe's, of lower-case letters and digits "
            "with single hyphens inside"
        )
    try:
        return parse(path.stem, text)
    except ValueError as error:  # msgspec.ValidationError is one
        raise ValueError(f"recipe {word}: {error}") from None


def parse(name: str, text: str) -> Named:
    """Raises ValueError, saying what is wrong with it."""
    fields = parse_toml(text)
    if "for" in fields:
        ways = msgspec.convert(fields, _Ways).ways
        runtimes = [runtime for way in ways for runtime in way.runtimes]
        if not all(way.runtimes for way in ways):
            raise ValueError("a [[for]] table names no runtimes")
        if double := sorted({name for name in runtimes if runtimes.count(name) > 1}):
            raise ValueError(f"[[for]] tables name the runtime {double[0]!r} twice")
    else:
        ways = (msgspec.convert(fields, _Way),)
    recipes = tuple(
        Recipe(
            name,
            way.runtimes,
            way.compute,
            tuple(map(_step, way.steps)),
            way.requires_any_flag,
            way.format,
        )
        for way in ways
    )
    for recipe in recipes:
        check(recipe)
    return Named(name, recipes)


def _step(entry: str | dict[str, Any]) -> Step:
    """A step's name, or a table of it and its options: `{ do = NAME, … }`."""
    fields = {"do": entry} if isinstance(entry, str) else entry
    name = fields.get("do")
    if not isinstance(name, str) or name not in STEPS:
        what = f"there is no step {name!r}" if "do" in fields else "a step's table has no `do`"
        suggestion = did_you_mean(name, STEPS) if isinstance(name, str) else ""
        raise ValueError(f"{what}{suggestion}; there are: {', '.join(STEPS)}")
    return Step(name, _options(name, {key: fields[key] for key in fields.keys() - {"do"}}))


def _options(step: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a step, in the order of its row. Raises ValueError for one that it has not,
    or a value of another type."""
    types = STEPS[step].options
    if unknown := sorted(options.keys() - types):
        known = f"there are: {', '.join(types)}" if types else "it has none"
        suggestion = did_you_mean(unknown[0], types)
        raise ValueError(f"the step {step!r} has no option {unknown[0]!r}{suggestion}; {known}")
    checked: dict[str, Any] = {}
    for name in types.keys() & options.keys():
        try:
            checked[name] = msgspec.convert(options[name], types[name])
        except msgspec.ValidationError as error:
            raise ValueError(f"the option {name!r} of the step {step!r}: {error}") from None
    return {name: checked[name] for name in types if name in checked}


def check(recipe: Recipe) -> None:
    """Raises ValueError where a recipe contradicts itself, whatever the runtime."""
    if why := _contradiction(recipe):
        raise ValueError(f"recipe {recipe.name!r} {why}")


def _contradiction(recipe: Recipe) -> str | None:
    steps, form = [step.do for step in recipe.steps], recipe.format
    if double := sorted({step for step in steps if steps.count(step) > 1}):
        return f"has the step {double[0]!r} twice"
    quantizing = [step for step in steps if STEPS[step].quantizes]
    if len(quantizing) > 1:
        return f"has the steps {' and '.join(map(repr, quantizing))}, of which there can be one"
    for place, step in enumerate(steps):
        if (first := STEPS[step].after) and first not in steps[:place]:
            return f"has the step {step!r} ({STEPS[step].what}), which must follow {first!r}"
        if STEPS[step].after is None and set(quantizing) & set(steps[:place]):
            return (
                f"has the step {step!r} ({STEPS[step].what}), which must precede {quantizing[0]!r}"
            )
    if (recipe.name == EXACT) != (not steps and recipe.compute == "f32"):
        return (
            f"with compute {recipe.compute!r}: {EXACT!r}, and only it, computes the float model "
            "in f32"
        )
    formatted = next((step for step in steps if STEPS[step].formatted), None)
    if formatted and form is None:
        return f"has the step {formatted!r}, which needs the rules of a format"
    if form and not formatted:
        formatted_steps = " or ".join(repr(step) for step, kind in STEPS.items() if kind.formatted)
        return f"has the rules of a format, but no step {formatted_steps} that follows them"
    if form is None:
        return None
    if unknown := sorted({*form.operators, *form.same_scale} - OPERATORS):
        return f"lists the operator {unknown[0]!r}; there are: {', '.join(sorted(OPERATORS))}"
    if form.weight_symmetric and form.weight == "u8" and form.weight_bits == 7:
        return "has u8 weights of 7 bits, which are asymmetric: set weight_symmetric = false"
    return None
