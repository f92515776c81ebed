"""Weights stored as float16 in a .tflite file."""

from typing import Any

from onmetal.calibration.steps import Making, Step
from onmetal.records import Source


class Half(Step):
    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        return making.on(variant).tflite.half()


STEP: Step = Half()
