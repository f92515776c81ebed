"""The steps of recipes: one module for each step, which defines `STEP`, a `Step`.

A recipe's steps are done in order, each to the file that the step before it made. The name of a
step and its properties that must be known beforehand stand in `STEPS` of targets/recipe.py.
"""

from importlib import import_module
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from onmetal.calibration.calibrated import CalibratedModel
from onmetal.progress import OnProgress
from onmetal.records import Source
from onmetal.runtimes import spec
from onmetal.targets import Recipe


class Making(Struct, frozen=True):
    """What a step needs besides the file and its options."""

    model: CalibratedModel
    """The model as it was read, with the samples that calibrate it."""
    recipe: Recipe
    runtime: str
    """The name of the candidate's runtime."""
    progress: OnProgress

    @property
    def in_tflite(self) -> bool:
        """Whether the runtime reads .tflite files."""
        return spec(self.runtime).reads == "tflite"

    def on(self, variant: Source) -> CalibratedModel:
        """The model with the file that the steps before made, to be calibrated with that file."""
        model = self.model
        if variant.sha256 == model.model.prepared_sha256:
            return model
        changed = replace(model.model, prepared=variant.path, prepared_sha256=variant.sha256)
        return CalibratedModel(changed, model.target, model.samples, model.host, model.cache)


class Step(Protocol):
    """One thing that can be done to a model."""

    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        """The variant after this step; `options`: of the step, as the recipe has them.

        Raises UnsupportedError, with the reason, where it cannot be done to this model, and
        NeedlessError where it would change nothing.
        """


def step(name: str) -> Step:
    implementation: Step = import_module(f"{__name__}.{name.replace('-', '_')}").STEP
    return implementation


def source(
    model: CalibratedModel, recipe: Recipe, runtime: str, progress: OnProgress = lambda *_: None
) -> Source:
    """The file that a recipe's artifact for a runtime is converted from.

    Raises UnsupportedError, with the reason, where the recipe cannot be made of this model.
    """
    making = Making(model, recipe, runtime, progress)
    variant = Source(model.model.prepared, model.model.prepared_sha256)
    for entry in recipe.steps:
        variant = _following(variant, step(entry.do).apply(variant, entry.options, making))
    if recipe.quantized_by is None and making.in_tflite:
        return _following(variant, making.on(variant).tflite.in_float(recipe))
    return variant


def _following(before: Source, after: Source) -> Source:
    """The variant after a step, with what was said of the variants before it."""
    return replace(
        after,
        details={**before.details, **after.details},
        options={**before.options, **after.options},
    )
