"""8 bits by a runtime's own quantizer. The conversion of the artifact runs it on the float model;
the step itself changes nothing."""

from typing import Any

from onmetal.calibration.steps import Making, Step
from onmetal.records import Source


class Nncf(Step):
    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        return variant


STEP: Step = Nncf()
