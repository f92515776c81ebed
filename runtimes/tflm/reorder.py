"""The same operators in the order, and their buffers at the places, that need the least memory.

What is computed stays the same to the bit. The order of the operators decides what lives together.
The places decide how much of the head stays unused between buffers: TFLite Micro places them from
the largest on, which leaves a third of it unused in some networks. A file can bring better places
along, as metadata that TFLite Micro follows and other runtimes pass over (memory.OFFLINE).
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
"""Sets of operators that are looked at, in all."""
MOST_PLACED = 100_000
"""Buffers that are placed in search of better places, in all."""
STATEFUL = frozenset({"ASSIGN_VARIABLE", "CALL_ONCE", "READ_VARIABLE", "VAR_HANDLE"})

Given = Mapping[Tensor, int]
"""Offsets that a file brings along; empty: TFLite Micro places everything."""


class Why(Struct, frozen=True):
    """Head of the arena in bytes (`needs`), as the graph was and as it is."""

    before_bytes: int
    after_bytes: int
    lowest_bytes: int | None
    """No order of the operators needs less; None: there are too many to look at all."""
    moved: int
    """Operators that stand elsewhere than they did."""
    placed: bool
    """Whether the file has to bring offsets along (`places`)."""

    @property
    def exact(self) -> bool:
        """Whether nothing better is possible."""
        return self.after_bytes == self.lowest_bytes


def needs(found: Net, core: str | None = None, given: Given | None = None) -> int:
    """Bytes of the arena's head: of TFLite Micro's reference kernels or, where they need more, of
    CMSIS-NN's on the core."""
    return max(
        memory.plan(found, kernels, None, given).head_bytes for kernels in asked(found, core)
    )


def asked(found: Net, core: str | None) -> list[dict[int, list[int]]]:
    """Scratch memory, as memory.plan takes it, of all kernels that `needs` considers."""
    kernels = [memory.reference(found)]
    return [*kernels, cmsis_nn.scratch(found, core)] if core else kernels


def lowest(found: Net, core: str | None) -> list[int]:
    """Bytes that live at each operator, by the kernels that ask for more."""
    tracks = [memory.over_time(found, kernels) for kernels in asked(found, core)]
    return [max(some) for some in zip(*tracks, strict=True)]


# --- the places of the buffers


def places(found: Net, core: str | None = None) -> dict[Tensor, int]:
    """Offsets of all tensors, to be brought along by the file; empty, where TFLite Micro's own are
    as good. The same for the same graph: chance starts from the same seed."""
    bound, own = max(lowest(found, core), default=0), needs(found, core)
    if own <= bound:
        return {}
    wanted = memory.buffers_of(found, _largest(asked(found, core)))
    turns = min((_sorted(wanted, key) for key in _TURNS), key=lambda some: _height(wanted, some))
    offsets = memory.placed(wanted, _climbed(wanted, turns, bound))
    tensors = [tensor for tensor in found.tensors() if memory.held(tensor)]
    given = dict(zip(tensors, offsets, strict=False))  # without scratch memory, which comes last
    return given if needs(found, core, given) < own else {}


def _largest(kernels: Sequence[Scratch]) -> dict[int, Sequence[int]]:
    """Of each operator, by the kernel that asks for most."""
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


def _climbed(wanted: Sequence[Wanted], turns: Sequence[int], bound: int) -> Sequence[int]:
    """The order, improved: time and again a buffer is placed earlier, and stays where that is no
    worse, until nothing can be better."""
    chance, least = random.Random(0), _height(wanted, turns)
    for _ in range(MOST_PLACED // len(wanted)):
        if least <= bound:
            break
        tried = list(turns)
        old = chance.randrange(len(tried))
        tried.insert(chance.randrange(old + 1), tried.pop(old))
        if (height := _height(wanted, tried)) <= least:
            turns, least = tried, height
    return turns


def write(found: Net, given: Given) -> bytes:
    """As writing.write, and with these offsets in its metadata."""
    content = writing.write(found)
    if not given:
        return content
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(memory.offline(found.tensors(), given).tobytes(), np.uint8)
    entry.name, entry.buffer = memory.OFFLINE, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


# --- the order of the operators


def reordered(found: Net, core: str | None = None, states: int = MOST_STATES) -> tuple[Net, Why]:
    """The graph whose head is smallest, its buffers at their `places`; the same one, where no order
    that was looked at needs less. Sets of operators that can come first are looked through in full
    where they are no more than `states`, else the most promising of them. Operators with state
    keep their order."""
    before = needs(found, core)
    best, given = found, places(found, core)
    after = needs(found, core, given)
    order, least = _search(found, core, states)
    if order is not None and after != least:
        other = Net(found.inputs, found.outputs, order, found.names)
        there = places(other, core)
        if (size := needs(other, core, there)) < after:
            best, given, after = other, there, size
    moved = sum(old is not new for old, new in zip(found.ops, best.ops, strict=True))
    return best, Why(before, after, least, moved, bool(given))


class _Step(Struct):
    """The best way to have a set of operators done."""

    peak: int
    total: int
    """Sum of what lives at each operator; of equal peaks the smaller one is better."""
    live: int
    """Bytes, afterwards."""
    op: int
    """The last of them."""
    ready: int
    """Operators that can come next."""


class _Problem:
    """Operators as numbers, sets of them as bits."""

    def __init__(self, found: Net, core: str | None) -> None:
        self.count = len(found.ops)
        scratch = _largest(asked(found, core))
        self.scratch = [sum(map(memory.aligned, scratch.get(n, ()))) for n in range(self.count)]
        sizes = {tensor: size for tensor in found.tensors() if (size := memory.held(tensor))}
        makers = {tensor: n for n, op in enumerate(found.ops) for tensor in op.outputs}
        self.takers = dict.fromkeys(sizes, 0)
        self.before = [0] * self.count
        last = None
        for n, op in enumerate(found.ops):
            for tensor in op.taken:
                if tensor in sizes:
                    self.takers[tensor] |= 1 << n
                if tensor in makers:
                    self.before[n] |= 1 << makers[tensor]
            if op.kind in STATEFUL or any(tensor.variable for tensor in op.taken):
                self.before[n] |= 0 if last is None else 1 << last
                last = n
        taken = [t for t in dict.fromkeys(found.inputs) if self.takers.get(t) or t in found.outputs]
        self.live = sum(sizes.get(tensor, 0) for tensor in taken)
        self.made = [sum(sizes.get(t, 0) for t in op.outputs) for op in found.ops]
        passing = {tensor: size for tensor, size in sizes.items() if tensor not in found.outputs}
        self.freed = [
            [(passing[t], self.takers[t]) for t in dict.fromkeys(op.taken) if t in passing]
            for op in found.ops
        ]
        self.wasted = [
            sum(passing.get(t, 0) for t in op.outputs if not self.takers.get(t)) for op in found.ops
        ]
        self.behind: list[list[int]] = [[] for _ in found.ops]
        for n, before in enumerate(self.before):
            for other in _bits(before):
                self.behind[other].append(n)

    def start(self) -> _Step:
        ready = sum(1 << n for n, before in enumerate(self.before) if not before)
        return _Step(self.live, 0, self.live, -1, ready)

    def after(self, done: int, step: _Step, n: int) -> _Step:
        """Once operator `n` has run too."""
        during = step.live + self.made[n] + self.scratch[n]
        now = done | 1 << n
        live = step.live + self.made[n] - self.wasted[n]
        live -= sum(size for size, takers in self.freed[n] if not takers & ~now)
        ready = step.ready & ~(1 << n)
        for other in self.behind[n]:
            if not self.before[other] & ~now:
                ready |= 1 << other
        return _Step(max(step.peak, during), step.total + during, live, n, ready)


def _bits(some: int) -> Iterator[int]:
    """The numbers in a set, the smallest first."""
    while some:
        lowest_bit = some & -some
        yield lowest_bit.bit_length() - 1
        some ^= lowest_bit


def _search(found: Net, core: str | None, states: int) -> tuple[list[Op] | None, int | None]:
    """The order with the lowest peak, and that peak where all were looked at. (Sets of operators by
    their size, each from the smaller ones by one operator: dynamic programming.)"""
    problem = _Problem(found, core)
    layers: list[dict[int, _Step]] = [{0: problem.start()}]
    bound = _peak(problem)
    looked, whole = 1, True
    for _ in range(problem.count):
        following: dict[int, _Step] = {}
        for done, step in layers[-1].items():
            for n in _bits(step.ready):
                new = problem.after(done, step, n)
                if new.peak > bound:
                    continue
                known = following.get(done | 1 << n)
                if known is None or (new.peak, new.total) < (known.peak, known.total):
                    following[done | 1 << n] = new
        looked += len(following)
        width = max(1, states // (problem.count + 1))
        if looked > states and len(following) > width:
            whole = False
            best = sorted(following.items(), key=lambda item: _promise(item[1]))
            following = dict(best[:width])
        layers.append(following)
    last = layers[-1].get((1 << problem.count) - 1)
    if last is None:
        return None, None
    return _traced(found, layers), last.peak if whole else None


def _promise(step: _Step) -> tuple[int, int, int]:
    return step.peak, step.live, step.total


def _peak(problem: _Problem) -> int:
    """Of the given order."""
    done, step = 0, problem.start()
    for n in range(problem.count):
        step = problem.after(done, step, n)
        done |= 1 << n
    return step.peak


def _traced(found: Net, layers: Sequence[dict[int, _Step]]) -> list[Op]:
    done, order = (1 << len(found.ops)) - 1, []
    for layer in reversed(layers[1:]):
        n = layer[done].op
        order.append(found.ops[n])
        done ^= 1 << n
    return order[::-1]
