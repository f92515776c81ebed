"""8-bit matrix products, whose activations are quantized in every inference."""

from typing import Any

from onmetal.calibration import operations
from onmetal.calibration.steps import Making, Step
from onmetal.records import Source


class Dynamic(Step):
    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        model = making.on(variant)
        if making.in_tflite:
            return model.tflite.dynamic()
        return model.without_samples("dynamic", operations.dynamic, making.recipe.format)


STEP: Step = Dynamic()
