"""8-bit matrix products, whose activations are quantized in every inference."""

from typing import Any

from onmetal.calibration import operations
from onmetal.calibration.steps import Making, Step
from onmetal.profilers.operation import asked
from onmetal.records import Source, plain


class Dynamic(Step):
    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        model = making.on(variant)
        if making.in_tflite:
            return model.tflite.dynamic()
        form = making.recipe.format
        return model.without_samples(
            {"method": "dynamic", "format": plain(form)},
            lambda graph, folder: asked(operations.dynamic, graph, form, folder),
        )


STEP: Step = Dynamic()
