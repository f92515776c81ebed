"""The modules that propose candidates, in the order in which they are asked."""

from onmetal.deploy.propose import mixed, planned
from onmetal.deploy.propose.proposer import Proposer

PROPOSERS: tuple[Proposer, ...] = (planned, mixed)
