"""Which operators only turn a network's last products into results: post-processing, kept in float.

Boxes are decoded, scores squashed, results selected and gathered after the last convolution or
matrix product. Rounding there costs accuracy (pixels of a box, the order of scores) and saves no
time, since no product is left to compute.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple


class Node(NamedTuple):
    """An operator: its name, the tensors that it reads and gives, and what it does."""

    name: str
    reads: Sequence[str]
    gives: Sequence[str]
    product: bool = False
    """Whether it is a convolution or a matrix product."""
    selects: bool = False
    """Whether it chooses among results, as NonMaxSuppression, TopK and ArgMax do, or averages the
    bins of a distribution, as YOLOv8's box decoding does by a convolution of 0, 1, 2 … behind a
    Softmax."""
    joins: bool = False
    computes: str = ""
    """What kind of operator it is, where it computes values; empty where it moves or joins them."""


def post_processing(nodes: Iterable[Node]) -> frozenset[str]:
    """Names of the operators that stay float: those that select, those that lead to one, and those
    that follow one, unless a product depends on them.

    A product that selects (the average of bins) counts as no product. An operator that joins parts
    which are computed by different operators after the last products, as boxes and scores are,
    counts as one that selects.
    """
    ordered = list(nodes)
    products = [node for node in ordered if node.product and not node.selects]
    before_products = _ancestors(ordered, products) | {node.name for node in products}
    selecting = [*(n for n in ordered if n.selects), *_uneven_joins(ordered, before_products)]
    if not selecting:
        return frozenset()
    around = {node.name for node in selecting} | _ancestors(ordered, selecting)
    around |= _descendants(ordered, selecting)
    return frozenset(around - before_products)


def _uneven_joins(nodes: Sequence[Node], before_products: Collection[str]) -> list[Node]:
    """The operators after the last products that join tensors which are computed by different kinds
    of operators since. Constants are not looked at."""
    kinds: dict[str, frozenset[str]] = {}
    joins = []
    for node in nodes:
        if node.name in before_products:
            kinds |= dict.fromkeys(node.gives, frozenset())
            continue
        parts = [kinds[name] for name in node.reads if name in kinds]
        if not parts:
            continue
        if node.joins and len(set(parts)) > 1:
            joins.append(node)
        own = frozenset([node.computes] if node.computes else [])
        kinds |= dict.fromkeys(node.gives, own.union(*parts))
    return joins


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
