"""[[recipes]] tables in a target file: deprecated, still read, with the lines to write instead."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from onmetal.records import Step
from onmetal.targets.recipe import NAME, Compute, Format, Named, Recipe, check

METHODS: dict[str, tuple[str, ...]] = {
    "float": (),
    "half": ("half",),
    "static": ("static",),
    "weights": ("weights",),
    "dynamic": ("dynamic",),
    "nncf": ("nncf",),
    "fast": ("mixed",),
}
"""`method` of such a table -> the steps of a recipe."""

Method = Literal["float", "half", "static", "weights", "dynamic", "nncf", "fast"]


class Table(Struct, frozen=True, forbid_unknown_fields=True):
    """One of [[recipes]]."""

    name: Annotated[str, Meta(pattern=NAME)]
    runtimes: tuple[str, ...]
    compute: Compute
    method: Method = "float"
    requires_any_flag: tuple[str, ...] = ()
    format: Format | None = None
    split: bool = False


def named(tables: tuple[Table, ...], runtimes: list[str]) -> tuple[Named, ...]:
    """`runtimes`: the target's. Raises ValueError, saying what is wrong with the tables."""
    names = [table.name for table in tables]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the recipe {double[0]!r} stands there twice")
    recipes = []
    for table in tables:
        if not table.runtimes:
            raise ValueError(f"recipe {table.name!r} has no runtime")
        if unknown := sorted(set(table.runtimes) - set(runtimes)):
            raise ValueError(
                f"recipe {table.name!r} names the runtime {unknown[0]!r}, "
                f"which is not among its [[runtimes]] ({', '.join(runtimes)})"
            )
        steps = METHODS[table.method] + (("split",) if table.split else ())
        recipe = Recipe(
            table.name,
            table.runtimes,
            table.compute,
            tuple(map(Step, steps)),
            table.requires_any_flag,
            table.format,
        )
        check(recipe)
        recipes.append(Named(table.name, (recipe,)))
    return tuple(recipes)


def method(recipe: Recipe) -> str:
    """The `method` of a [[recipes]] table for the step of a recipe that quantizes."""
    quantizing = recipe.quantized_by
    words = {step_names[0]: word for word, step_names in METHODS.items() if step_names}
    return words.get(quantizing, quantizing) if quantizing else "float"


def file_lines(recipe: Recipe) -> list[str]:
    """The lines of a recipe's own file."""
    lines = [f"steps = [{', '.join(map(_step_text, recipe.steps))}]"] if recipe.steps else []
    lines.append(f"compute = {_toml(recipe.compute)}")
    if recipe.runtimes:
        lines.append(f"runtimes = {_toml(recipe.runtimes)}")
    if recipe.requires_any_flag:
        lines.append(f"requires_any_flag = {_toml(recipe.requires_any_flag)}")
    if recipe.format:
        lines.append("[format]")
        usual = Format()
        for key in Format.__struct_fields__:
            value = getattr(recipe.format, key)
            if value != getattr(usual, key):
                lines.append(f"{key} = {_toml(value)}")
    return lines


def _step_text(step: Step) -> str:
    options = "".join(f", {name} = {_toml(value)}" for name, value in step.options.items())
    return f"{{ do = {_toml(step.do)}{options} }}" if options else _toml(step.do)


def list_line(words: list[str]) -> str:
    return f"recipes = {_toml(words)}"


def _toml(value: Any) -> str:
    """JSON's way to write texts, lists of them, whole numbers and truth values is TOML's too."""
    return msgspec.json.encode(value).decode().replace('","', '", "')
