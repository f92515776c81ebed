"""8-bit weights, computed with in float."""

from typing import Any

from onmetal.calibration import operations
from onmetal.calibration.steps import Making, Step
from onmetal.records import Source


class Weights(Step):
    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        form = making.recipe.format
        return making.on(variant).without_samples("weights", operations.weights, form)


STEP: Step = Weights()
