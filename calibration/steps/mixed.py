"""8 bits, with those operators left in float that are faster in float by the runtime's profile.

They are known only after other candidates were timed, so a proposer makes such candidates
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
