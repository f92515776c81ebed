"""The same operators in the order, and their buffers at the places, that need the least memory.

The outputs stay the same to the bit. The order of the operators decides which tensors are live at
the same time. The offsets of the buffers decide how much of the head stays unused between them:
TFLite Micro places the largest first, which leaves a third of the head unused in some networks. A
file can state better offsets in metadata that TFLite Micro follows and other runtimes ignore
(memory.OFFLINE).
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import Builder
from msgspec import Struct

from onmetal.converters.tflite import writing
from onmetal.converters.tflite.net import IDENTIFIER, Net, Op, Tensor
from onmetal.runtimes.tflm import cmsis_nn, memory
from onmetal.runtimes.tflm.memory import Scratch, Wanted

MOST_STATES = 50_000
"""Most sets of operators that are examined, in all."""
MOST_PLACED = 100_000
"""Most buffers that are placed in search of better offsets, in all."""
STATEFUL = frozenset({"ASSIGN_VARIABLE", "CALL_ONCE", "READ_VARIABLE", "VAR_HANDLE"})

Placement = Mapping[Tensor, int]
"""Offsets that a file states in its metadata; empty: TFLite Micro places everything."""


class Why(Struct, frozen=True):
    """Bytes of the arena's head (`needs`) before and after the reordering."""

    before_bytes: int
    after_bytes: int
    lowest_bytes: int | None
    """No order of the operators needs less; None: there are too many to examine all."""
    moved: int
    """How many operators have another place in the order than before."""
    placed: bool
    """Whether the file has to state offsets (`places`)."""

    @property
    def exact(self) -> bool:
        """Whether nothing better is possible."""
        return self.after_bytes == self.lowest_bytes


def needs(net: Net, core: str | None = None, placement: Placement | None = None) -> int:
    """Bytes of the arena's head: of TFLite Micro's reference kernels or, where they need more, of
    CMSIS-NN's on the core."""
    return max(
        memory.plan(net, kernels, None, placement).head_bytes
        for kernels in kernel_scratch(net, core)
    )


def kernel_scratch(net: Net, core: str | None) -> list[dict[int, list[int]]]:
    """Scratch memory, as memory.plan takes it, of all kernels that `needs` considers."""
    kernels = [memory.reference(net)]
    return [*kernels, cmsis_nn.scratch(net, core)] if core else kernels


def lowest(net: Net, core: str | None) -> list[int]:
    """The live bytes at each operator, with the kernels that ask for more."""
    tracks = [memory.over_time(net, kernels) for kernels in kernel_scratch(net, core)]
    return [max(some) for some in zip(*tracks, strict=True)]


# --- the places of the buffers


def places(net: Net, core: str | None = None) -> dict[Tensor, int]:
    """Offsets of all tensors, which the file is to state; empty, where TFLite Micro's own are as
    good. The same for the same graph: the random search has a fixed seed."""
    bound, default_bytes = max(lowest(net, core), default=0), needs(net, core)
    if default_bytes <= bound:
        return {}
    wanted = memory.buffers_of(net, _largest(kernel_scratch(net, core)))
    turns = min((_sorted(wanted, key) for key in _TURNS), key=lambda some: _height(wanted, some))
    offsets = memory.placed(wanted, _improved_turns(wanted, turns, bound))
    tensors = [tensor for tensor in net.tensors() if memory.held(tensor)]
    placement = dict(
        zip(tensors, offsets, strict=False)
    )  # without scratch memory, which comes last
    return placement if needs(net, core, placement) < default_bytes else {}


def _largest(kernels: Sequence[Scratch]) -> dict[int, Sequence[int]]:
    """The scratch memory of each operator, by the kernel that asks for most."""
    numbers = {number for scratch in kernels for number in scratch}
    return {n: max((scratch.get(n, ()) for scratch in kernels), key=sum) for n in sorted(numbers)}


_TURNS: list[Callable[[Wanted], tuple[int, ...]]] = [
    lambda entry: (-entry.size, entry.first - entry.last),
    lambda entry: (-entry.size, -entry.last),
    lambda entry: (entry.first - entry.last, -entry.size),
    lambda entry: (entry.first, -entry.last),
]
"""Orders in which to place buffers, each at the lowest free place: which is best differs."""


def _sorted(wanted: Sequence[Wanted], key: Callable[[Wanted], tuple[int, ...]]) -> list[int]:
    return sorted(range(len(wanted)), key=lambda number: key(wanted[number]))


def _height(wanted: Sequence[Wanted], turns: Sequence[int]) -> int:
    offsets = memory.placed(wanted, turns)
    return max(offset + entry.size for entry, offset in zip(wanted, offsets, strict=True))


def _improved_turns(wanted: Sequence[Wanted], turns: Sequence[int], bound: int) -> Sequence[int]:
    """The order, improved by random search: a buffer is placed earlier, and stays there where the
    head does not grow, until the head is as small as `bound` or MOST_PLACED is reached."""
    chance, least = random.Random(0), _height(wanted, turns)
    for _ in range(MOST_PLACED // len(wanted)):
        if least <= bound:
            break
        new_turns = list(turns)
        old = chance.randrange(len(new_turns))
        new_turns.insert(chance.randrange(old + 1), new_turns.pop(old))
        if (height := _height(wanted, new_turns)) <= least:
            turns, least = new_turns, height
    return turns


def write(net: Net, placement: Placement) -> bytes:
    """As writing.write, and with these offsets in its metadata."""
    content = writing.write(net)
    if not placement:
        return content
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(memory.offline(net.tensors(), placement).tobytes(), np.uint8)
    entry.name, entry.buffer = memory.OFFLINE, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


# --- the order of the operators


def reordered(net: Net, core: str | None = None, states: int = MOST_STATES) -> tuple[Net, Why]:
    """The graph whose head is smallest, its buffers at their `places`; the same one, where no order
    that was examined needs less. All sets of operators that can run first are examined where they
    are no more than `states`, else the most promising of them. Operators with state keep their
    order."""
    before = needs(net, core)
    best, placement = net, places(net, core)
    after = needs(net, core, placement)
    order, least = _search(net, core, states)
    if order is not None and after != least:
        other = Net(net.inputs, net.outputs, order, net.names)
        new_placement = places(other, core)
        if (size := needs(other, core, new_placement)) < after:
            best, placement, after = other, new_placement, size
    moved = sum(old is not new for old, new in zip(net.ops, best.ops, strict=True))
    return best, Why(before, after, least, moved, bool(placement))


class _Step(Struct):
    """The best order in which a set of operators can run first."""

    peak: int
    total: int
    """Sum of the live bytes at each operator; of equal peaks the smaller one is better."""
    live: int
    """Live bytes after the last of them."""
    op: int
    """The last of them."""
    ready: int
    """The operators that can run next, as bits."""


class _Problem:
    """Operators as numbers, sets of them as bits."""

    def __init__(self, net: Net, core: str | None) -> None:
        self.count = len(net.ops)
        scratch = _largest(kernel_scratch(net, core))
        self.scratch = [sum(map(memory.aligned, scratch.get(n, ()))) for n in range(self.count)]
        sizes = {tensor: size for tensor in net.tensors() if (size := memory.held(tensor))}
        makers = {tensor: n for n, op in enumerate(net.ops) for tensor in op.outputs}
        self.takers = dict.fromkeys(sizes, 0)
        self.before = [0] * self.count
        last = None
        for n, op in enumerate(net.ops):
            for tensor in op.taken:
                if tensor in sizes:
                    self.takers[tensor] |= 1 << n
                if tensor in makers:
                    self.before[n] |= 1 << makers[tensor]
            if op.kind in STATEFUL or any(tensor.variable for tensor in op.taken):
                self.before[n] |= 0 if last is None else 1 << last
                last = n
        taken = [t for t in dict.fromkeys(net.inputs) if self.takers.get(t) or t in net.outputs]
        self.live = sum(sizes.get(tensor, 0) for tensor in taken)
        self.output_bytes = [sum(sizes.get(t, 0) for t in op.outputs) for op in net.ops]
        passing = {tensor: size for tensor, size in sizes.items() if tensor not in net.outputs}
        self.freed = [
            [(passing[t], self.takers[t]) for t in dict.fromkeys(op.taken) if t in passing]
            for op in net.ops
        ]
        self.wasted = [
            sum(passing.get(t, 0) for t in op.outputs if not self.takers.get(t)) for op in net.ops
        ]
        self.behind: list[list[int]] = [[] for _ in net.ops]
        for n, before in enumerate(self.before):
            for other in _bits(before):
                self.behind[other].append(n)

    def start(self) -> _Step:
        ready = sum(1 << n for n, before in enumerate(self.before) if not before)
        return _Step(self.live, 0, self.live, -1, ready)

    def after(self, done: int, step: _Step, n: int) -> _Step:
        """The step once operator `n` has run too. `done`: those that ran before, as bits."""
        during = step.live + self.output_bytes[n] + self.scratch[n]
        done_after = done | 1 << n
        live = step.live + self.output_bytes[n] - self.wasted[n]
        live -= sum(size for size, takers in self.freed[n] if not takers & ~done_after)
        ready = step.ready & ~(1 << n)
        for other in self.behind[n]:
            if not self.before[other] & ~done_after:
                ready |= 1 << other
        return _Step(max(step.peak, during), step.total + during, live, n, ready)


def _bits(some: int) -> Iterator[int]:
    """The numbers in a set, the smallest first."""
    while some:
        lowest_bit = some & -some
        yield lowest_bit.bit_length() - 1
        some ^= lowest_bit


def _search(net: Net, core: str | None, states: int) -> tuple[list[Op] | None, int | None]:
    """The order with the lowest peak, and that peak where all orders were examined. (Sets of
    operators by their size, each from the smaller ones by one operator: dynamic programming.)"""
    problem = _Problem(net, core)
    layers: list[dict[int, _Step]] = [{0: problem.start()}]
    bound = _peak(problem)
    examined, complete = 1, True
    for _ in range(problem.count):
        following: dict[int, _Step] = {}
        for done, step in layers[-1].items():
            for n in _bits(step.ready):
                new = problem.after(done, step, n)
                if new.peak > bound:
                    continue
                incumbent = following.get(done | 1 << n)
                if incumbent is None or (new.peak, new.total) < (incumbent.peak, incumbent.total):
                    following[done | 1 << n] = new
        examined += len(following)
        width = max(1, states // (problem.count + 1))
        if examined > states and len(following) > width:
            complete = False
            best = sorted(following.items(), key=lambda item: _promise(item[1]))
            following = dict(best[:width])
        layers.append(following)
    last = layers[-1].get((1 << problem.count) - 1)
    if last is None:
        return None, None
    return _order_through(net, layers), last.peak if complete else None


def _promise(step: _Step) -> tuple[int, int, int]:
    return step.peak, step.live, step.total


def _peak(problem: _Problem) -> int:
    """The peak of the order that the graph has."""
    done, step = 0, problem.start()
    for n in range(problem.count):
        step = problem.after(done, step, n)
        done |= 1 << n
    return step.peak


def _order_through(net: Net, layers: Sequence[dict[int, _Step]]) -> list[Op]:
    done, order = (1 << len(net.ops)) - 1, []
    for layer in reversed(layers[1:]):
        n = layer[done].op
        order.append(net.ops[n])
        done ^= 1 << n
    return order[::-1]
