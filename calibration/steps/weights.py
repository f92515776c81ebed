"""8-bit weights, computed with in float."""

from typing import Any

from onmetal.calibration import operations
from onmetal.calibration.steps import Making, Step
from onmetal.profilers.operation import asked
from onmetal.records import Source, plain


class Weights(Step):
    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        form = making.recipe.format
        return making.on(variant).without_samples(
            {"method": "weights", "format": plain(form)},
            lambda graph, folder: asked(operations.weights, graph, form, folder),
        )


STEP: Step = Weights()
