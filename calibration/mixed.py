"""Which operators to keep in float, so that an 8-bit graph is as fast as it can be.

Every operator has a measured time in float and one in 8 bits, and every tensor between an operator
in float and one in 8 bits has a cost of quantizing or dequantizing. The cheapest division of the
graph is a minimum cut, which is found exactly. (Ford and Fulkerson, 1956; labels with pairwise
costs as in Greig et al., 1989.)
"""

import math
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import onnx

from onmetal.calibration import placement
from onmetal.calibration.statistics import Statistics
from onmetal.converters.onnx.graph import Graph
from onmetal.targets import Format

CROSSING_US = 0.5
"""Microseconds of the additional operator at a boundary, however small its tensor."""
CROSSING_NS = 0.25
"""Nanoseconds for each element of the tensor that is quantized or dequantized there."""
WEIGHTS = (1.0, 0.3, 3.0)
"""The crossing costs are estimates: a cut is made with each of these factors to them, and the
resulting candidates are timed."""

Layers = list[dict[str, Any]]


def cuts(
    path: str, statistics: str, form: Format, in_float: Layers, in_8_bits: Layers
) -> list[list[str]]:
    """Names of nodes to keep in float, for each division worth trying; divisions that keep all
    nodes or none in float are left out. `in_float`, `in_8_bits`: profiles of the float graph at
    `path` and of its QDQ graph.
    """
    graph = Graph(onnx.load(path))
    rules, observed = form, Statistics(Path(statistics))
    placed = placement.place(graph, rules, frozenset(), observed.not_finite, observed.extremes)
    units = _Units(graph, placed, in_float, in_8_bits)
    divisions: list[list[str]] = []
    for weight in WEIGHTS:
        keep = units.kept_float(weight)
        if keep and len(keep) < len(placed.integer) and keep not in divisions:
            divisions.append(keep)
    return divisions


class _Units:
    """Units of nodes that must be on one side of a cut: those that a runtime fused into one kernel
    in either profile."""

    def __init__(
        self, graph: Graph, placed: placement.Placement, in_float: Layers, in_8_bits: Layers
    ) -> None:
        self.graph = graph
        self.nodes = [node for node in graph.nodes if node.name in placed.integer]
        self.unit = {node.name: node.name for node in self.nodes}
        self.by_tensor = {name: node.name for node in graph.nodes for name in node.output if name}
        self.by_tensor |= {node.name: node.name for node in graph.nodes}
        owner = {follower: name for name, follower in placed.after.items()}
        self.by_tensor = {key: owner.get(name, name) for key, name in self.by_tensor.items()}
        self.cost: dict[bool, dict[str, float]] = {}
        self.times = {True: self._events(in_float), False: self._events(in_8_bits)}
        for events in self.times.values():
            for names, _ in events:
                for member in names[1:]:
                    self._join(names[0], member)
        self.cost = {kind: self._costs(events) for kind, events in self.times.items()}

    def root(self, name: str) -> str:
        while self.unit[name] != name:
            name = self.unit[name]
        return name

    def _join(self, first: str, second: str) -> None:
        self.unit[self.root(second)] = self.root(first)

    def _events(self, layers: Layers) -> list[tuple[list[str], float]]:
        """-> (the nodes of each kernel, its microseconds). A node without a kernel of its own was
        fused into the kernel of the node that reads its output."""
        kernels: list[tuple[list[str], float]] = []
        covered: set[str] = set()
        for layer in layers:
            names = {self.by_tensor[name] for name in layer["names"] if name in self.by_tensor}
            members = sorted(names & self.unit.keys())
            if members:
                kernels.append((members, layer["us"]))
                covered |= set(members)
        at = {name: names for names, _ in kernels for name in names}
        for node in reversed(self.nodes):
            if node.name in covered or node.op_type not in placement.WEIGHTED:
                continue
            for tensor in node.output:
                for taker in self.graph.consumers.get(tensor, []):
                    place = self.by_tensor.get(taker.name, "")
                    if place in at and place != node.name:
                        at[place].append(node.name)
                        at[node.name] = at[place]
                        break
        return kernels

    def _costs(self, events: list[tuple[list[str], float]]) -> dict[str, float]:
        costs: dict[str, float] = defaultdict(float)
        for names, us in events:
            costs[self.root(names[0])] += us
        return costs

    def kept_float(self, weight: float) -> list[str]:
        """The nodes on the float side of the cheapest cut."""
        flow: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        source, sink = "\0float", "\0integer"
        for name in {self.root(node.name) for node in self.nodes}:
            flow[source][name] += self.cost[False][name]  # cut where it runs in 8 bits
            flow[name][sink] += self.cost[True][name]
        for node in self.nodes:
            unit = self.root(node.name)
            for tensor in placement.activations(node, self.graph):
                maker = self.by_tensor.get(tensor, "")
                maker_unit = self.root(maker) if maker in self.unit else source
                if maker_unit == unit:
                    continue
                numbers = math.prod(self.graph.shape(tensor) or (1,))
                price = weight * (CROSSING_US + numbers * CROSSING_NS * 1e-3)
                flow[maker_unit][unit] += price
                if maker_unit != source:
                    flow[unit][maker_unit] += price
        reached = _reachable(flow, source, sink)
        return sorted(node.name for node in self.nodes if self.root(node.name) in reached)


def _reachable(flow: dict[str, dict[str, float]], source: str, sink: str) -> set[str]:
    """The source's side of a minimum cut, by augmenting shortest paths (Edmonds and Karp, 1972).

    `flow` holds capacities, and is changed to the residual capacities.
    """
    while True:
        previous: dict[str, str] = {source: source}
        queue = deque([source])
        while queue and sink not in previous:
            vertex = queue.popleft()
            for neighbour, capacity in list(flow[vertex].items()):
                if capacity > 1e-9 and neighbour not in previous:
                    previous[neighbour] = vertex
                    queue.append(neighbour)
        if sink not in previous:
            return set(previous)
        path, end = [], sink
        while end != source:
            path.append((previous[end], end))
            end = previous[end]
        least = min(flow[a][b] for a, b in path)
        for a, b in path:
            flow[a][b] -= least
            flow[b][a] += least
