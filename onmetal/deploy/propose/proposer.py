"""The protocol of a proposer: a module that proposes the candidates to be tried next."""

from typing import Protocol

from onmetal.deploy.context import Run, Standing


class Proposer(Protocol):
    """A module in this folder with a function `propose`; order.py lists them."""

    def propose(self, run: Run, standing: Standing) -> Standing | None:
        """The standing with further candidates, converted; None: it proposes no more.

        It is called until it returns None, each time with everything that is known by then.
        """
