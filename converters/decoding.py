"""Which operators only turn a network's last products into results: post-processing, kept in float.

Boxes are decoded, scores squashed, results selected and gathered after the last convolution or
matrix product. Rounding there costs accuracy (pixels of a box, the order of scores) and saves no
time, since no product is left to compute.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """An operator: its name, the tensors that it reads and gives, and what it does."""

    name: str
    reads: Sequence[str]
    gives: Sequence[str]
    product: bool
    """Whether it is a convolution or a matrix product."""
    selects: bool
    """Whether it chooses among results, as NonMaxSuppression, TopK and ArgMax do, or joins results
    that no one scale holds, as boxes in pixels and scores."""
    expects: bool = False
    """Whether it is a product that only averages the bins of a distribution, as the box decoding of
    YOLOv8 and later does: Softmax, then a convolution by 0, 1, 2 …"""


def post_processing(nodes: Iterable[Node]) -> frozenset[str]:
    """Names of the operators that stay float, by two rules:

    1. An operator that no product depends on and that an operator which selects depends on, or that
       depends on one; the selecting operators themselves are among these.
    2. A product that only averages a distribution. For rule 1 it is none.
    """
    ordered = list(nodes)
    averaging = frozenset(node.name for node in ordered if node.expects)
    products = [n for n in ordered if n.product and n.name not in averaging]
    selecting = [n for n in ordered if n.selects]
    if not selecting:
        return averaging
    before_products = _ancestors(ordered, products) | {n.name for n in products}
    around = {n.name for n in selecting} | _ancestors(ordered, selecting)
    around |= _descendants(ordered, selecting)
    return averaging | frozenset(around - before_products)


def _ancestors(nodes: Sequence[Node], of: Sequence[Node]) -> set[str]:
    """Names of the operators that any of these depends on. `nodes` are in the order of
    computation."""
    wanted = {name for node in of for name in node.reads}
    before: set[str] = set()
    for node in reversed(nodes):
        if not wanted.isdisjoint(node.gives):
            before.add(node.name)
            wanted.update(node.reads)
    return before


def _descendants(nodes: Sequence[Node], of: Sequence[Node]) -> set[str]:
    """Names of the operators that depend on any of these."""
    given = {name for node in of for name in node.gives}
    after: set[str] = set()
    for node in nodes:
        if not given.isdisjoint(node.reads):
            after.add(node.name)
            given.update(node.gives)
    return after
