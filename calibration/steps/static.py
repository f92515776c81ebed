"""8 bits by ranges that were calibrated, after the rules of the recipe's [format]."""

from typing import Any

from onmetal.calibration.steps import Making, Step
from onmetal.records import Source


class Static(Step):
    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        model, form = making.on(variant), making.recipe.format
        if making.in_tflite and model.model.quantized:
            return model.tflite.as_it_is()
        assert form
        if making.in_tflite:
            return model.tflite.static(form, making.progress)
        return model.quantized(form, making.progress, model.kept_float(making.runtime))


STEP: Step = Static()
