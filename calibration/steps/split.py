"""Early operators in bands of rows: done where the artifact is converted, whose arena shrinks."""

from typing import Any

from onmetal.calibration.steps import Making, Step
from onmetal.records import Source


class Split(Step):
    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        return variant


STEP: Step = Split()
