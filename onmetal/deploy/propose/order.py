"""Who proposes candidates, in which order."""

from onmetal.deploy.propose import mixed, planned
from onmetal.deploy.propose.proposer import Proposer

PROPOSERS: tuple[Proposer, ...] = (planned, mixed)
