"""Target profiles: what hardware is, one TOML file each, named as on the command line.

A target says *what* (which runtimes, which formats under which rules, which limits), never *where*:
the device comes from `--device`. Facts carry their unit in the key; unknown keys are errors; there
is no inheritance. A path that ends in `.toml` works wherever a target's name does.
"""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

import onmetal
from onmetal.errors import UsageError

RUNTIMES = tuple(
    sorted(
        path.stem.removeprefix("run_")
        for path in (Path(onmetal.__file__).parent / "profilers").glob("run_*.py")
    )
)
"""A runtime is a module: what profilers/run_*.py there is."""

Positive = Annotated[int, Meta(gt=0)]


class Runtime(Struct, frozen=True, forbid_unknown_fields=True):
    """An engine that executes models: picks converters/<name>.py and profilers/run_<name>.py."""

    name: str
    options: dict[str, str | int | float | bool] = {}
    """The runtime's own options, over those that onmetal sets."""


class Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    """One numeric format and its rules. The order in the file is from most exact to least."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$")]
    runtimes: tuple[str, ...]
    compute: Literal["f32", "f16", "bf16"]
    """The type that the runtime computes in; its profile must confirm it."""
    requires_any_flag: tuple[str, ...] = ()
    """CPU flags (as /proc/cpuinfo spells them) of which one must be present to run this at all."""


class Device(Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach a device of this kind; which one is the user's to say (--device)."""

    transport: Literal["local"]
    required: bool = False
    """Whether deploying without a device needs the user's word (--no-device)."""


class Limits(Struct, frozen=True, forbid_unknown_fields=True):
    """What the hardware has: a candidate that exceeds it is rejected."""

    storage_kib: Positive | None = None
    memory_kib: Positive | None = None


class Target(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    description: str
    arch: Literal["x86_64"]
    device: Device
    runtimes: tuple[Runtime, ...]
    recipes: tuple[Recipe, ...]
    threads: Positive | None = None
    """None: as many as the device has physical cores."""
    limits: Limits = Limits()

    def recipe(self, name: str) -> Recipe:
        return next(recipe for recipe in self.recipes if recipe.name == name)

    def exactness(self, recipe: str) -> int:
        """Lower is more exact: the recipe's place in the file."""
        return [known.name for known in self.recipes].index(recipe)


EXACT = "fp32"
"""The recipe that computes what the original does; always run, as the reference."""


def names() -> list[str]:
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files(__name__).iterdir()
        if entry.name.endswith(".toml")
    )


def load(name: str) -> Target:
    """Load a built-in target by its name, or any profile by the path of its TOML file.

    Raises UsageError, naming the file and the field, where it is missing or wrong.
    """
    if name.endswith(".toml"):
        source = name
        try:
            text = Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--target {name}: cannot read this file: {error}") from None
    elif name in names():
        source = f"{name}.toml"
        text = files(__name__).joinpath(source).read_text("utf-8")
    else:
        raise UsageError(
            f"no target {name!r}; there are: {', '.join(names())}, "
            "or give the path of a .toml file of your own"
        )
    return parse(text, source)


def parse(text: str, source: str) -> Target:
    try:
        fields = tomllib.loads(text)
        target = msgspec.convert({"name": Path(source).stem, **fields}, Target)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise UsageError(f"target file {source}: {error}; see docs/targets.md") from None
    _check(target, source)
    return target


def _check(target: Target, source: str) -> None:
    """What the types cannot say: combinations that could never run."""

    def refuse(why: str) -> None:
        raise UsageError(f"target file {source}: {why}; see docs/targets.md")

    runtimes = [runtime.name for runtime in target.runtimes]
    recipes = [recipe.name for recipe in target.recipes]
    if unknown := sorted(set(runtimes) - set(RUNTIMES)):
        refuse(
            f"[[runtimes]] names {unknown[0]!r}, which is unknown; there are: {', '.join(RUNTIMES)}"
        )
    if not runtimes:
        refuse("it has no [[runtimes]], so nothing could run the model")
    for kind, found in (("runtime", runtimes), ("recipe", recipes)):
        if double := sorted({name for name in found if found.count(name) > 1}):
            refuse(f"the {kind} {double[0]!r} stands there twice")
    if EXACT not in recipes:
        refuse(f"it has no {EXACT!r} recipe, which is run as the reference")
    if recipes[0] != EXACT:
        refuse(f"{EXACT!r} must come first: the order is from the most exact to the least")
    for recipe in target.recipes:
        if unknown := sorted(set(recipe.runtimes) - set(runtimes)):
            refuse(
                f"recipe {recipe.name!r} names the runtime {unknown[0]!r}, "
                f"which is not among its [[runtimes]] ({', '.join(runtimes)})"
            )
        if not recipe.runtimes:
            refuse(f"recipe {recipe.name!r} has no runtime")
        if (recipe.name == EXACT) != (recipe.compute == "f32"):
            refuse(
                f"recipe {recipe.name!r} with compute {recipe.compute!r}: "
                f"{EXACT!r}, and only it, computes in f32"
            )
        if recipe.compute != "f32" and set(recipe.runtimes) & {"onnxruntime"}:
            refuse(
                f"recipe {recipe.name!r}: onnxruntime's CPU kernels on x86 compute "
                f"{recipe.compute} by casting to f32, which is no {recipe.compute}"
            )
