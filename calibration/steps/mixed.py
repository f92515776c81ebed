"""8 bits, with operators left in float that the runtime's profile shows to be faster so.

Which ones is known once other candidates were timed: a proposer makes it
(onmetal.deploy.propose.mixed).
"""

from typing import Any

from onmetal.calibration.steps import Making, Step
from onmetal.errors import UnsupportedError
from onmetal.records import Source


class Mixed(Step):
    def apply(self, variant: Source, options: dict[str, Any], making: Making) -> Source:
        raise UnsupportedError("it is made from the profile of a candidate that was timed")


STEP: Step = Mixed()
