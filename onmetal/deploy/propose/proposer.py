"""What a proposer is: who says which candidates are tried next."""

from typing import Protocol

from onmetal.deploy.context import Run, Standing


class Proposer(Protocol):
    """`propose` of a module in this folder, which order.py names."""

    def propose(self, run: Run, standing: Standing) -> Standing | None:
        """The standing with further candidates, converted; None: it has none, or no more.

        It is asked again until it has none, each time with all that is known by then.
        """
