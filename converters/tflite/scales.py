"""The scales of a TFLite graph's tensors that are computed in integers."""

from collections.abc import Mapping

import numpy as np

from onmetal.converters.tflite.grid import TINY, Activation, Grid
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.operands import (
    HUGE,
    activations,
    pads_with_limit,
    results,
    selects,
)
from onmetal.converters.tflite.specification import (
    BIAS_MOST,
    FIXED,
    LEAST_RATIO,
    MOST_RATIO,
    SHARED,
    WEIGHTED,
)
from onmetal.ranges import Range


class Scales:
    """The grid of each tensor of the integer operators, from its range and from the limits of
    TFLite's kernels."""

    def __init__(
        self,
        net: Net,
        operators: set[Op],
        ranges: Mapping[str, Range],
        activation: Activation,
    ) -> None:
        self.net, self.operators = net, operators
        self.ranges, self.activation = ranges, activation
        self.producers = net.producers()
        self.grids: dict[Tensor, Grid] = {}
        self.apart: set[Tensor] = set()
        """Outputs of operators with a fixed scale that belong to a group with another scale. They
        are requantized after the operator."""
        self._settle()
        self._coarsen()

    def output(self, tensor: Tensor) -> tuple[float, int]:
        """The scale and zero point with which an operator writes its output."""
        if tensor in self.apart:
            return FIXED[self.activation][self.producers[tensor].kind]
        grid = self.grids[tensor]
        return grid.scale, grid.zero_point

    def operand(self, tensor: Tensor) -> Grid:
        """The grid of a constant operand from its own values."""
        assert tensor.data is not None
        grid = Grid(self.activation)
        values = tensor.data[np.abs(tensor.data) < HUGE]
        grid.hold(float(values.min(initial=0.0)), float(values.max(initial=0.0)))
        grid.settle()
        grid.raise_to(1 / 255 if grid.scale <= TINY else grid.scale)
        return grid

    def term(self, op: Op, tensor: Tensor) -> Grid | None:
        """The grid of a constant that is added; None for operators that do not add. A constant far
        smaller than the sum (an epsilon) gets a scale that kernels can still compute with."""
        if op.kind not in ("ADD", "SUB"):
            return None
        grid = self.operand(tensor)
        grid.raise_to(self.grids[results(op)[0]].scale * LEAST_RATIO)
        return grid

    def _groups(self) -> dict[Tensor, Tensor]:
        """Tensor -> the first of the tensors that share its scale."""
        roots: dict[Tensor, Tensor] = {}

        def root(tensor: Tensor) -> Tensor:
            while roots.setdefault(tensor, tensor) is not tensor:
                tensor = roots[tensor]
            return tensor

        for op in self.net.ops:
            if op not in self.operators:
                continue
            members = [t for t in (*activations(op), *results(op)) if t.data is None]
            for tensor in members:
                root(tensor)
            if op.kind in SHARED or selects(op):
                for tensor in members[1:]:
                    roots[root(tensor)] = root(members[0])
        return {tensor: root(tensor) for tensor in roots}

    def _settle(self) -> None:
        """Set a grid for each group that holds the ranges of all its tensors."""
        fixed = FIXED[self.activation]
        fixed_in: dict[Tensor, list[tuple[Tensor, tuple[float, int]]]] = {}
        grids: dict[Tensor, Grid] = {}
        groups = self._groups()
        for tensor, first in groups.items():
            grid = grids.setdefault(first, Grid(self.activation))
            maker = self.producers.get(tensor)
            if maker in self.operators and maker is not None and maker.kind in fixed:
                fixed_in.setdefault(first, []).append((tensor, fixed[maker.kind]))
            elif maker is not None and maker.kind == "PADV2" and pads_with_limit(maker):
                continue  # the padding saturates: the range is that of the values inside it
            else:
                grid.hold(*self.ranges[tensor.name])
        for first, members in fixed_in.items():
            self._fix(grids[first], members)
        for grid in grids.values():
            grid.settle()
        self.grids = {tensor: grids[first] for tensor, first in groups.items()}

    def _fix(self, grid: Grid, members: list[tuple[Tensor, tuple[float, int]]]) -> None:
        """`members`: the tensors of a group whose operators have fixed scales. If there is only one
        fixed scale and all values of the group fit, the group gets that scale; else the members
        are requantized to the group's scale."""
        scales = {parameters for _, parameters in members}
        if len(scales) == 1:
            trial = Grid(self.activation)
            trial.scale, trial.zero_point = members[0][1]
            low, high = trial.holds
            slack = trial.scale
            if grid.empty or (low - slack <= grid.low and grid.high <= high + slack):
                grid.scale, grid.zero_point, grid.fixed = trial.scale, trial.zero_point, True
                return
        for tensor, _ in members:
            grid.hold(*self.ranges[tensor.name])
            self.apart.add(tensor)

    def _coarsen(self) -> None:
        """Raise scales until kernels can rescale between them: a tensor whose range is far smaller
        than its inputs' gets a coarser scale than its range needs."""
        for _ in range(64):
            changed = False
            for op in self.net.ops:
                if op not in self.operators or not results(op):
                    continue
                out = self.grids[results(op)[0]]
                inputs = [self.grids[t].scale for t in activations(op) if t.data is None]
                if op.kind in WEIGHTED:
                    most = inputs[0] * self._weight_scale(op) / MOST_RATIO
                elif op.kind in ("MUL", "BATCH_MATMUL"):
                    operands = [self._scale(t) for t in activations(op)]
                    most = float(np.prod(operands)) / MOST_RATIO
                elif op.kind == "SQUARED_DIFFERENCE":
                    most = max(self._scale(t) for t in activations(op)) ** 2 / MOST_RATIO
                elif op.kind == "DIV":
                    above, below = (self._scale(t) for t in activations(op))
                    most = above / max(below, TINY) / MOST_RATIO
                else:
                    most = max([self._scale(t) for t in activations(op)]) / MOST_RATIO
                if self.activation == "s16":
                    most = max(most, self._greatest_sum(op) / BIAS_MOST["s8"])
                if out.scale <= TINY:
                    most = max(most, *inputs, TINY * 2)
                changed |= out.raise_to(most)
                if op.kind in ("ADD", "SUB"):
                    for tensor in activations(op):
                        if tensor.data is None:
                            changed |= self.grids[tensor].raise_to(out.scale * LEAST_RATIO)
            for grid in self.grids.values():
                if grid.scale <= TINY:
                    changed |= grid.raise_to(1 / 255)
            if not changed:
                return

    def _greatest_sum(self, op: Op) -> float:
        """The largest sum of products with 16-bit activations. After rescaling it must fit in 32
        bits, or it wraps around."""
        if op.kind in WEIGHTED:
            rule = WEIGHTED[op.kind]
            weight, source = op.inputs[rule.weight], op.inputs[rule.taken]
            assert weight is not None and weight.data is not None and source is not None
            axes = tuple(place for place in range(weight.data.ndim) if place != (rule.axis or 0))
            heaviest = float(np.abs(weight.data).sum(axis=axes, dtype=np.float64).max(initial=0.0))
            return 32767 * self._scale(source) * heaviest
        if op.kind in ("MUL", "BATCH_MATMUL"):
            depth = op.taken[0].shape[-1] if op.kind == "BATCH_MATMUL" else 1
            scales = [self._scale(tensor) for tensor in activations(op)]
            return float(32767.0**2 * np.prod(scales)) * depth
        return 0.0

    def _scale(self, tensor: Tensor) -> float:
        if tensor.data is None:
            return self.grids[tensor].scale
        return self.operand(tensor).scale

    def _weight_scale(self, op: Op) -> float:
        weight = op.inputs[WEIGHTED[op.kind].weight]
        assert weight is not None and weight.data is not None
        return float(np.abs(weight.data).max(initial=0.0)) / 127
