"""Quantizes a float TFLite graph by TFLite's specification, as `specification` tells it.

Activations are int8 (asymmetric) or int16 (zero point 0), weights int8 in [-127, 127], biases int32
(int64 beside int16). What has no integer kernel stays float between DEQUANTIZE and QUANTIZE.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from onmetal.converters import unlike
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.specification import (
    BIAS_MOST,
    FIXED,
    LEAST_RATIO,
    MOST_RATIO,
    SHARED,
    WEIGHTED,
    supported,
)
from onmetal.errors import UnsupportedError
from onmetal.ranges import Range

Activation = Literal["s8", "s16"]
FELT: dict[Activation, float] = {"s8": 2.0, "s16": 32.0}
"""How many times as wide as attention's scores their mask may be on one grid with them."""
HUGE = 1e30
"""Constants beyond stand for no number but a limit."""
FARTHEST = 1e32
"""No tensor that reaches farther is quantized: kernels shift its scale by up to 20 bits in float32,
and end the process where that overflows."""
TINY = float(np.finfo(np.float32).tiny)
INT8, INT16 = np.dtype(np.int8), np.dtype(np.int16)


class Grid:
    """The scale and zero point of a group of tensors that share them."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation
        self.low = self.high = 0.0
        self.scale, self.zero_point = 0.0, 0
        self.fixed = False
        self.empty = True

    def hold(self, low: float, high: float) -> None:
        self.low, self.high, self.empty = min(self.low, low), max(self.high, high), False

    def settle(self) -> None:
        """From the range. (Jacob et al., 2018, arXiv:1712.05877.)"""
        if self.fixed:
            return
        if self.activation == "s16":
            scale = max(-self.low, self.high) / 32767
        else:
            scale = (self.high - self.low) / 255
        self.scale = float(np.float32(scale))
        self.place()

    def raise_to(self, scale: float) -> bool:
        """A coarser scale, where the one from the range is finer than kernels can compute with."""
        if self.fixed or self.scale >= scale:
            return False
        self.scale = float(np.float32(scale))
        self.place()
        return True

    def place(self) -> None:
        if self.activation == "s16":
            self.zero_point = 0
        elif self.scale > TINY:
            self.zero_point = -128 + int(np.clip(np.round(-self.low / self.scale), 0, 255))
        else:
            self.zero_point = -128

    @property
    def holds(self) -> Range:
        least, most = (-128, 127) if self.activation == "s8" else (-32768, 32767)
        return (least - self.zero_point) * self.scale, (most - self.zero_point) * self.scale


def quantize(
    net: Net,
    ranges: Mapping[str, Range],
    activation: Activation = "s8",
    keep_float: frozenset[str] = frozenset(),
    extremes: Mapping[str, Range] | None = None,
) -> Net:
    """A new graph; inputs and outputs stay float.

    `ranges`: name of a tensor -> (low, high), finite; a tensor without one stays float.
    `keep_float`: names of first outputs of operators that must stay float.
    `extremes`: all that was seen of each tensor, where `ranges` may be less; empty where the scales
    are the model's own, and are to stay.
    Raises UnsupportedError where nothing can be quantized.
    """
    if extremes is None:
        extremes = ranges
    steps, outputs = [_step(op, extremes) for op in net.ops], [t.name for t in net.outputs]
    floats = unlike.stay_float(steps, outputs, extremes, FELT[activation])
    return _Quantizer(net, ranges, activation, keep_float | floats).quantized()


def products(
    net: Net, ranges: Mapping[str, Range], activation: Activation = "s8"
) -> tuple[list[Op], frozenset[str]]:
    """The operators that multiply by weights, or two tensors, and are computed in integers; and the
    names of the first outputs of all that are. Raises UnsupportedError where there are none."""
    whole = _Quantizer(net, ranges, activation, frozenset())
    chosen = [op for op in net.ops if op in whole.integer]
    heavy = [op for op in chosen if op.kind in WEIGHTED or op.kind == "BATCH_MATMUL"]
    return heavy, frozenset(op.outputs[0].name for op in chosen)


def activations(op: Op) -> list[Tensor]:
    """The float tensors that an operator takes as computed values or operands: not its weights."""
    if op.kind in WEIGHTED:
        taken = op.inputs[WEIGHTED[op.kind].taken]
        return [taken] if taken is not None and taken.is_float else []
    return [tensor for tensor in op.taken if tensor.is_float]


def results(op: Op) -> list[Tensor]:
    return [tensor for tensor in op.outputs if tensor.is_float]


def selects(op: Op) -> bool:
    """A convolution that only moves values: by ones, at most one of them an output."""
    if op.kind != "CONV_2D" or op.activation:
        return False
    weight, bias = op.taken[1].data, op.taken[2].data if len(op.taken) > 2 else None
    assert weight is not None
    if weight.shape[1:3] != (1, 1) or (bias is not None and bias.any()):
        return False
    flat = weight.reshape(weight.shape[0], -1)
    return bool(np.isin(flat, (0, 1)).all() and (flat.sum(axis=1) <= 1).all())


MOVES = SHARED - {"AVERAGE_POOL_2D", "CONCATENATION", "MAXIMUM", "MAX_POOL_2D", "MINIMUM", "PACK"}
MOVES -= {"PADV2", "REDUCE_MAX", "REDUCE_MIN", "RESIZE_BILINEAR", "SELECT_V2", "TOPK_V2"}
_ROLES: dict[str, unlike.Role] = {
    **dict.fromkeys(MOVES, "move"),
    **dict.fromkeys(("CONCATENATION", "PACK", "PADV2"), "join"),
    **dict.fromkeys(("ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC"), "each"),
    **dict.fromkeys(("NEG", "PRELU", "RELU", "RELU6", "RELU_N1_TO_1", "SQUARE", "TANH"), "each"),
    **dict.fromkeys(("ADD", "ADD_N", "SELECT", "SELECT_V2", "SUB"), "sum"),
    **dict.fromkeys(("DIV", "MUL"), "product"),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), "bound"),
    **dict.fromkeys(("LOG_SOFTMAX", "SOFTMAX"), "softmax"),
    **dict.fromkeys(("CEIL", "FLOOR", "FLOOR_DIV", "FLOOR_MOD", "ROUND"), "whole"),
    **dict.fromkeys(("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"), "compare"),
    "NOT_EQUAL": "compare",
    **dict.fromkeys((*WEIGHTED, "BATCH_MATMUL"), "heavy"),
}


def _step(op: Op, extremes: Mapping[str, Range]) -> unlike.Step:
    """What an operator does to values, for calibration.unlike."""
    role, floats = _ROLES.get(op.kind, "other"), activations(op)
    if op.kind == "DIV" and op.taken[1].data is None:
        role = "other"
    if op.kind == "CAST" and op.outputs[0].dtype.kind in "iu":
        role = "whole"
    constants = [tensor.data for tensor in floats if tensor.data is not None]
    if op.kind == "PADV2" and _limit(op):
        constants = []  # it may saturate
    return unlike.Step(
        op.outputs[0].name,
        role,
        tuple(tensor.name for tensor in floats if tensor.data is None),
        tuple(tensor.name for tensor in results(op)),
        tuple(constants),
        _channels(op, extremes),
        op.kind == "DIV",
    )


def _channels(op: Op, extremes: Mapping[str, Range]) -> tuple[float, ...]:
    if op.kind not in WEIGHTED:
        return ()
    rule = WEIGHTED[op.kind]
    taken, weight = op.inputs[rule.taken], op.inputs[rule.weight]
    bias = op.inputs[rule.bias] if len(op.inputs) > rule.bias else None
    if taken is None or taken.name not in extremes or weight is None or weight.data is None:
        return ()
    offsets = bias.data if bias is not None else None
    return unlike.channels(weight.data, rule.axis or 0, offsets, extremes[taken.name])


def _limit(pad: Op) -> bool:
    """Whether what is padded is the least number there is, as for a maximum."""
    return _limited(pad.taken[2])


def _limited(tensor: Tensor) -> bool:
    return tensor.data is not None and tensor.is_float and bool(np.any(np.abs(tensor.data) >= HUGE))


def observed(net: Net) -> list[str]:
    """Names of the tensors whose ranges decide: computed floats beside an integer operator."""
    found: dict[str, None] = {}
    for op in net.ops:
        if _fits(op, "s8") or _fits(op, "s16"):
            for tensor in (*activations(op), *results(op)):
                if tensor.data is None:
                    found[tensor.name] = None
    return list(found)


def _fits(op: Op, activation: Activation) -> bool:
    """Whether it has an integer kernel for what it computes with."""
    if not supported(op.kind, activation):
        return False
    if not activations(op) or any(tensor.size == 0 for tensor in op.taken):
        return False
    if op.kind in WEIGHTED:
        rule = WEIGHTED[op.kind]
        weight = op.inputs[rule.weight]
        bias = op.inputs[rule.bias] if len(op.inputs) > rule.bias else None
        known = weight is not None and weight.data is not None and weight.is_float
        finite = known and weight is not None and np.isfinite(weight.data).all()  # type: ignore[arg-type]
        return bool(finite) and (bias is None or (bias.data is not None and bias.is_float))
    if op.kind in ("DIV", "MUL") and any(_limited(tensor) for tensor in op.taken):
        return False
    if op.kind == "BATCH_MATMUL":
        return all(len(tensor.shape) <= 5 for tensor in op.taken)
    if op.kind in ("PRELU",):
        return op.taken[1].data is not None
    return True


class _Quantizer:
    def __init__(
        self,
        net: Net,
        ranges: Mapping[str, Range],
        activation: Activation,
        keep_float: frozenset[str],
    ) -> None:
        self.net, self.ranges, self.activation = net, ranges, activation
        self.dtype = INT8 if activation == "s8" else INT16
        self.producers, self.consumers = net.producers(), net.consumers()
        self.integer = self._chosen(keep_float)
        if not self.integer:
            raise UnsupportedError("nothing in it can be quantized in TFLite")
        self.grids: dict[Tensor, Grid] = {}
        self.apart: set[Tensor] = set()
        """Outputs of a fixed scale that others share another scale with: requantized after."""
        self.groups = self._grouped()
        self._settled()
        self.ops: list[Op] = []
        self.made: dict[Tensor, Tensor] = {}
        """Float tensor -> its integer form."""
        self.operands: dict[tuple[Tensor, float, int], Tensor] = {}
        """Constants in integers, by what they stand for and their grid."""
        self.named = {
            tensor.name: 1
            for op in net.ops
            if op not in self.integer
            for tensor in op.taken
            if tensor.data is not None
        }
        """How many forms of a constant there are: what floats take keeps its name."""
        self.floats: dict[Tensor, Tensor] = {tensor: tensor for tensor in net.inputs}

    # --- which

    def _chosen(self, keep_float: frozenset[str]) -> set[Op]:
        chosen = {
            op
            for op in self.net.ops
            if _fits(op, self.activation)
            and op.outputs[0].name not in keep_float
            and all(self._ranged(tensor) for tensor in (*activations(op), *results(op)))
            and self._multiplies(op)
        }
        while True:
            lost = {
                taker
                for op in self.net.ops
                if op.kind == "PADV2" and op not in chosen and _limit(op)
                for taker in self.consumers.get(op.outputs[0], [])
            }
            if not lost & chosen:
                break
            chosen -= lost  # an infinity in floats has no place on a grid
        chosen = self._linked(chosen)
        # Worth it only for products by weights and what lies between them.
        return chosen if any(self._heavy(op) for op in chosen) else set()

    def _ranged(self, tensor: Tensor) -> bool:
        """Whether a grid can hold it."""
        if tensor.data is not None:
            return True
        maker = self.producers.get(tensor)
        if maker is not None and maker.kind == "PADV2" and _limit(maker):
            return tensor.name in self.ranges
        low, high = self.ranges.get(tensor.name, (-np.inf, np.inf))
        width = unlike.width((low, high))
        finest = width == 0.0 or width >= unlike.LEAST_WIDTH
        return bool(low > -FARTHEST and high < FARTHEST and finest)

    def _multiplies(self, op: Op) -> bool:
        """Whether the scale of its products is one."""
        if op.kind not in (*WEIGHTED, "BATCH_MATMUL", "DIV", "MUL", "SQUARED_DIFFERENCE"):
            return True
        numbers = [tensor for tensor in op.taken if tensor.is_float]
        widths = [
            unlike.width(self.ranges[t.name] if t.data is None else t.data) for t in numbers[:2]
        ]
        if op.kind == "DIV":
            return widths[0] < FARTHEST * widths[1] or not widths[1]
        if op.kind == "SQUARED_DIFFERENCE":
            return max(widths) ** 2 < FARTHEST
        return bool(np.prod(widths) < FARTHEST)

    def _linked(self, chosen: set[Op]) -> set[Op]:
        """What only moves values does so in integers where that leads, over others of its kind,
        from or to an operator that computes in them."""
        waiting = [op for op in chosen if op.kind not in SHARED]
        found = set(waiting)
        while waiting:
            op = waiting.pop()
            makers = [self.producers.get(t) for t in activations(op) if t.data is None]
            takers = [taker for out in op.outputs for taker in self.consumers.get(out, [])]
            for near in (*makers, *takers):
                if near is not None and near in chosen and near not in found:
                    found.add(near)
                    waiting.append(near)
        return found

    def _heavy(self, op: Op) -> bool:
        return op.kind in WEIGHTED or op.kind == "BATCH_MATMUL"

    # --- scales

    def _grouped(self) -> dict[Tensor, Tensor]:
        """Tensor -> the first of those that share its scale."""
        roots: dict[Tensor, Tensor] = {}

        def root(tensor: Tensor) -> Tensor:
            while roots.setdefault(tensor, tensor) is not tensor:
                tensor = roots[tensor]
            return tensor

        for op in self.net.ops:
            if op not in self.integer:
                continue
            members = [t for t in (*activations(op), *results(op)) if t.data is None]
            for tensor in members:
                root(tensor)
            if op.kind in SHARED or selects(op):
                for tensor in members[1:]:
                    roots[root(tensor)] = root(members[0])
        return {tensor: root(tensor) for tensor in roots}

    def _settled(self) -> None:
        fixed = FIXED[self.activation]
        kinds: dict[Tensor, list[tuple[Tensor, tuple[float, int]]]] = {}
        grids: dict[Tensor, Grid] = {}
        for tensor, first in self.groups.items():
            grid = grids.setdefault(first, Grid(self.activation))
            maker = self.producers.get(tensor)
            if maker in self.integer and maker is not None and maker.kind in fixed:
                kinds.setdefault(first, []).append((tensor, fixed[maker.kind]))
            elif maker is not None and maker.kind == "PADV2" and _limit(maker):
                continue  # what is padded saturates: the range is that of what it surrounds
            else:
                grid.hold(*self.ranges[tensor.name])
        for first, found in kinds.items():
            self._fix(grids[first], found)
        for grid in grids.values():
            grid.settle()
        self.grids = {tensor: grids[first] for tensor, first in self.groups.items()}
        self._reach()

    def _fix(self, grid: Grid, found: list[tuple[Tensor, tuple[float, int]]]) -> None:
        """A group takes the one fixed scale in it if all its values fit; else what is fixed is
        requantized to the group's."""
        scales = {parameters for _, parameters in found}
        if len(scales) == 1:
            trial = Grid(self.activation)
            trial.scale, trial.zero_point = found[0][1]
            low, high = trial.holds
            slack = trial.scale
            if grid.empty or (low - slack <= grid.low and grid.high <= high + slack):
                grid.scale, grid.zero_point, grid.fixed = trial.scale, trial.zero_point, True
                return
        for tensor, _ in found:
            grid.hold(*self.ranges[tensor.name])
            self.apart.add(tensor)

    def _reach(self) -> None:
        """Scales that kernels can multiply between: a tensor that hardly moves beside its inputs
        gets a coarser scale than its range asks for."""
        for _ in range(64):
            changed = False
            for op in self.net.ops:
                if op not in self.integer or not results(op):
                    continue
                out = self.grids[results(op)[0]]
                taken = [self.grids[t].scale for t in activations(op) if t.data is None]
                if op.kind in WEIGHTED:
                    most = taken[0] * self._weight_scale(op) / MOST_RATIO
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
                    most = max(most, self._greatest(op) / BIAS_MOST["s8"])
                if out.scale <= TINY:
                    most = max(most, *taken, TINY * 2)
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

    def _greatest(self, op: Op) -> float:
        """What of products 16-bit activations can sum up to: rescaled, it must fit in 32 bits, or
        it wraps around."""
        if op.kind in WEIGHTED:
            rule = WEIGHTED[op.kind]
            weight, taken = op.inputs[rule.weight], op.inputs[rule.taken]
            assert weight is not None and weight.data is not None and taken is not None
            axes = tuple(place for place in range(weight.data.ndim) if place != (rule.axis or 0))
            heaviest = float(np.abs(weight.data).sum(axis=axes, dtype=np.float64).max(initial=0.0))
            return 32767 * self._scale(taken) * heaviest
        if op.kind in ("MUL", "BATCH_MATMUL"):
            depth = op.taken[0].shape[-1] if op.kind == "BATCH_MATMUL" else 1
            scales = [self._scale(tensor) for tensor in activations(op)]
            return float(32767.0**2 * np.prod(scales)) * depth
        return 0.0

    def _scale(self, tensor: Tensor) -> float:
        if tensor.data is None:
            return self.grids[tensor].scale
        return self._operand_grid(tensor).scale

    def _weight_scale(self, op: Op) -> float:
        weight = op.inputs[WEIGHTED[op.kind].weight]
        assert weight is not None and weight.data is not None
        return float(np.abs(weight.data).max(initial=0.0)) / 127

    # --- writing

    def quantized(self) -> Net:
        for op in self.net.ops:
            if op in self.integer:
                self._integer(op)
            else:
                inputs = [t if t is None else self._float(t) for t in op.inputs]
                self.ops.append(replace(op, inputs=inputs))
                for tensor in op.outputs:
                    self.floats[tensor] = tensor
        outputs = [self._float(tensor) for tensor in self.net.outputs]
        return Net(list(self.net.inputs), outputs, self.ops, self.net.names)

    def _float(self, tensor: Tensor) -> Tensor:
        if tensor.data is not None or not tensor.is_float:
            return tensor
        if tensor not in self.floats:
            # The float tensor keeps its name; what it is made of is called after it.
            self.ops.append(Op("DEQUANTIZE", [self.made[tensor]], [tensor]))
            self.floats[tensor] = tensor
        return self.floats[tensor]

    def _tensor(self, tensor: Tensor, scale: float, zero_point: int, name: str) -> Tensor:
        return Tensor(
            name,
            tensor.shape,
            self.dtype,
            scale=np.array([scale], np.float32),
            zero_point=np.array([zero_point], np.int64),
        )

    def _quantized(self, tensor: Tensor) -> Tensor:
        """The integer form of what an integer operator takes."""
        if tensor.data is not None:
            return self._operand(tensor)
        if tensor not in self.made:
            grid = self.grids[tensor]
            new = self._tensor(tensor, grid.scale, grid.zero_point, f"{tensor.name}/quantized")
            self.ops.append(Op("QUANTIZE", [self.floats[tensor]], [new]))
            self.made[tensor] = new
        return self.made[tensor]

    def _name(self, wanted: str) -> str:
        """A constant that several operators take gets a form for each, and each a name."""
        self.named[wanted] = self.named.get(wanted, 0) + 1
        count = self.named[wanted]
        return wanted if count == 1 else f"{wanted}.{count}"

    def _operand_grid(self, tensor: Tensor) -> Grid:
        assert tensor.data is not None
        grid = Grid(self.activation)
        values = tensor.data[np.abs(tensor.data) < HUGE]
        grid.hold(float(values.min(initial=0.0)), float(values.max(initial=0.0)))
        grid.settle()
        grid.raise_to(1 / 255 if grid.scale <= TINY else grid.scale)
        return grid

    def _term(self, op: Op, tensor: Tensor) -> Grid | None:
        """For a constant far smaller than the sum that it is added to (an epsilon): a scale that
        kernels can still compute with."""
        if op.kind not in ("ADD", "SUB"):
            return None
        grid = self._operand_grid(tensor)
        grid.raise_to(self.grids[results(op)[0]].scale * LEAST_RATIO)
        return grid

    def _operand(self, tensor: Tensor, grid: Grid | None = None) -> Tensor:
        """A constant as an activation; beyond the grid it saturates."""
        assert tensor.data is not None
        grid = grid or self._operand_grid(tensor)
        key = (tensor, grid.scale, grid.zero_point)
        if key in self.operands:
            return self.operands[key]
        limits = np.iinfo(self.dtype)
        integers = np.round(tensor.data.astype(np.float64) / grid.scale) + grid.zero_point
        new = self._tensor(tensor, grid.scale, grid.zero_point, f"{tensor.name}/quantized")
        new.data = np.clip(integers, limits.min, limits.max).astype(self.dtype)
        new.name = self._name(new.name)
        self.operands[key] = new
        return new

    def _integer(self, op: Op) -> None:
        if op.kind in WEIGHTED:
            inputs = self._weighted(op)
        else:
            shared = self.grids[results(op)[0]] if op.kind in SHARED and results(op) else None
            inputs = [
                t
                if t is None or not t.is_float
                else self._operand(t, shared or self._term(op, t))
                if t.data is not None
                else self._quantized(t)
                for t in op.inputs
            ]
        outputs = [self._output(tensor) if tensor.is_float else tensor for tensor in op.outputs]
        options = dict(op.options)
        if op.kind in ("ADD", "SUB") and self.activation == "s16":
            options["potScaleInt16"] = False
        self.ops.append(Op(op.kind, inputs, outputs, options))
        for tensor, new in zip(op.outputs, outputs, strict=True):
            if not tensor.is_float:
                self.floats[tensor] = tensor
            elif tensor in self.apart:
                grid = self.grids[tensor]
                again = self._tensor(tensor, grid.scale, grid.zero_point, f"{new.name}/rescaled")
                self.ops.append(Op("QUANTIZE", [new], [again]))
                self.made[tensor] = again
            else:
                self.made[tensor] = new

    def _output(self, tensor: Tensor) -> Tensor:
        grid = self.grids[tensor]
        scale, zero_point = grid.scale, grid.zero_point
        if tensor in self.apart:
            scale, zero_point = FIXED[self.activation][self.producers[tensor].kind]
        return self._tensor(tensor, scale, zero_point, f"{tensor.name}/quantized")

    def _weighted(self, op: Op) -> list[Tensor | None]:
        rule = WEIGHTED[op.kind]
        inputs = list(op.inputs)
        taken, weight = inputs[rule.taken], inputs[rule.weight]
        assert taken is not None and weight is not None and weight.data is not None
        entry = self._quantized(taken)
        assert entry.scale is not None
        bias = inputs[rule.bias] if len(inputs) > rule.bias else None
        channels = op.outputs[0].shape[-1]
        offsets = np.zeros(channels) if bias is None else np.asarray(bias.data, np.float64)
        scale_in = float(entry.scale[0])
        most = BIAS_MOST[self.activation]
        integers, scales = rounded(weight.data, rule.axis, np.abs(offsets) / most / scale_in)
        inputs[rule.taken] = entry
        inputs[rule.weight] = Tensor(
            self._name(weight.name),
            weight.shape,
            INT8,
            integers,
            scales,
            np.zeros(scales.shape, np.int64),
            rule.axis or 0,
        )
        products = (scale_in * scales.astype(np.float64)).astype(np.float32)
        wide = np.dtype(np.int32 if self.activation == "s8" else np.int64)
        stored = np.round(offsets / products.astype(np.float64)).astype(wide)
        name = bias.name if bias is not None else f"{weight.name}/bias"
        given = Tensor(
            self._name(name),
            (channels,),
            wide,
            stored,
            products,
            np.zeros(products.shape, np.int64),
        )
        inputs[rule.bias :] = [given]
        return inputs


def rounded(
    weight: np.ndarray, axis: int | None, least: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights as int8 in [-127, 127], symmetric. -> integers, float32 scales [channels] or [1].

    `least` [channels]: scales are at least this, so that a bias fits in the accumulator.
    """
    axes = tuple(place for place in range(weight.ndim) if place != axis)
    peak = np.abs(weight).max(axis=axes if axis is not None else None, initial=0.0)
    scale = np.atleast_1d(peak.astype(np.float64) / 127)
    if least is not None:
        scale = np.maximum(scale, least if axis is not None else least.max(initial=0.0))
    scale = np.where(scale > TINY, scale, 1 / 127).astype(np.float32)
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = -1
    steps = np.round(weight.astype(np.float64) / scale.reshape(shape).astype(np.float64))
    return np.clip(steps, -127, 127).astype(np.int8), scale
