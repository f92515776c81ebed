"""Which candidates a target offers for the models, most exact first, and which not, and why."""

from msgspec import Struct

from onmetal.errors import UsageError
from onmetal.records import DeviceFacts, Model
from onmetal.targets import EXACT, Recipe, Target


class Planned(Struct, frozen=True):
    name: str
    model: Model
    recipe: Recipe
    runtime: str
    skipped: str | None = None
    """Why it is not tried; None: it is."""
    reference_only: bool = False
    """Run as the reference, but left out of the choice by --recipes."""


def plan(
    target: Target, models: list[Model], facts: DeviceFacts, asked: list[str] | None
) -> list[Planned]:
    """In plan order: by recipe, then model, then runtime as the target lists them.

    `asked`: families of recipes (a recipe's name, or the word it starts with); None: all.
    Raises UsageError for a family that the target does not know.
    """
    for family in asked or []:
        if not any(_belongs(recipe.name, family) for recipe in target.recipes):
            known = ", ".join(recipe.name for recipe in target.recipes)
            raise UsageError(f"--recipes {family}: the target {target.name} has: {known}")
    return [
        _planned(target, model, recipe, runtime.name, facts, asked, several=len(models) > 1)
        for recipe in target.recipes
        for model in models
        for runtime in target.runtimes
    ]


def _belongs(recipe: str, family: str) -> bool:
    return recipe.startswith(family) and family != ""


def _planned(
    target: Target,
    model: Model,
    recipe: Recipe,
    runtime: str,
    facts: DeviceFacts,
    asked: list[str] | None,
    several: bool,
) -> Planned:
    left_out = asked is not None and not any(_belongs(recipe.name, family) for family in asked)
    skipped = None
    if runtime not in recipe.runtimes:
        skipped = f"{runtime} does not compute in {recipe.compute} on this target"
    elif recipe.requires_any_flag and not set(recipe.requires_any_flag) & set(facts.flags):
        wanted = " or ".join(recipe.requires_any_flag)
        skipped = f"this CPU has no {wanted}, so it cannot compute in {recipe.compute}"
    elif left_out and recipe.name != EXACT:
        skipped = "left out by --recipes"
    name = f"{recipe.name}@{runtime}"
    return Planned(
        name=f"{model.stem}/{name}" if several else name,
        model=model,
        recipe=recipe,
        runtime=runtime,
        skipped=skipped,
        reference_only=left_out and recipe.name == EXACT,
    )
