"""The order of the operators and the places of their buffers that need the least memory."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from onmetal.converters.tflite.net import Net, Op, Tensor, constant
from onmetal.converters.tflite.writing import write
from onmetal.runtimes.tflm import memory, reorder
from tests.integer_nets import (
    Builder,
    arena,
    by_litert,
    by_tflm,
    residual,
    same,
    samples,
    tangled,
)


def orders(net: Net) -> Iterator[list[Op]]:
    """All of them in which every tensor is made before it is taken."""

    def further(done: list[Op], there: set[Tensor]) -> Iterator[list[Op]]:
        if len(done) == len(net.ops):
            yield list(done)
        for op in net.ops:
            if op not in done and all(t.data is not None or t in there for t in op.taken):
                yield from further([*done, op], there | set(op.outputs))

    yield from further([], set(net.inputs))


def least(net: Net) -> int:
    """What lives at the peak of the best order, by trying every one."""
    found = []
    for order in orders(net):
        way = Net(net.inputs, net.outputs, order)
        found.append(max(memory.over_time(way, memory.reference(way))))
    return min(found)


def bushy(seed: int) -> Net:
    """Seven operators on few tensors, several of which are outputs."""
    build, chance = Builder(seed), np.random.default_rng(seed)
    images = [build.input(1, 6, 6, 4)]
    for _ in range(7):
        x = images[chance.integers(len(images))]
        images.append(build.conv(x, int(chance.choice([2, 8, 32])), 1))
    taken = {tensor for op in build.ops for tensor in op.taken}
    return build.net(*(x for x in images[-4:] if x not in taken))


@pytest.mark.parametrize("seed", range(12))
def test_the_best_order_is_found(seed: int) -> None:
    net = bushy(seed)
    best, why = reorder.reordered(net)
    assert why.lowest_bytes == least(net)
    assert why.before_bytes == reorder.needs(net)
    assert why.after_bytes == reorder.needs(best, None, reorder.places(best))
    assert why.lowest_bytes <= why.after_bytes <= why.before_bytes
    again, said = reorder.reordered(net)
    assert again.ops == best.ops and said == why


def crossed() -> Net:
    """Two branches that grow and shrink again, first both grown, then both shrunk."""
    build = Builder()
    x = build.input(1, 8, 8, 4)
    wide = [build.conv(x, 64, 1) for _ in range(3)]
    small = [build.conv(y, 4, 1) for y in wide]
    return build.net(build.add(build.add(small[0], small[1]), small[2]))


def test_what_grows_and_shrinks_does_so_one_after_the_other() -> None:
    net = crossed()
    best, why = reorder.reordered(net)
    assert why.exact and why.moved >= 2
    assert why.after_bytes < 0.5 * why.before_bytes
    assert sorted(map(id, best.ops)) == sorted(map(id, net.ops))
    content = reorder.write(best, reorder.places(best))
    assert arena(content)["head"] == why.after_bytes
    assert arena(write(net))["head"] == why.before_bytes
    feeds = samples(net)
    assert same(by_tflm(write(net), feeds), by_tflm(content, feeds))


def test_of_too_many_orders_the_promising_ones_are_looked_at() -> None:
    net = crossed()
    _, whole = reorder.reordered(net)
    _, why = reorder.reordered(net, states=12)
    assert why.lowest_bytes is None and not why.exact
    assert whole.after_bytes <= why.after_bytes <= why.before_bytes


def test_the_same_graph_comes_back_where_nothing_is_gained() -> None:
    build = Builder()
    net = build.net(build.mean(build.conv(build.conv(build.input(1, 8, 8, 4), 8), 4)))
    best, why = reorder.reordered(net)
    assert best is net
    assert (why.moved, why.placed, why.exact) == (0, False, True)
    assert reorder.write(best, reorder.places(best)) == write(net)


def test_operators_with_state_keep_their_order() -> None:
    """What takes a state may have changed it, so it must not overtake another that does."""
    state = Tensor("state", (1, 64, 4), np.dtype(np.float32), variable=True)
    x = Tensor("x", (1, 64, 4), np.dtype(np.float32))
    ops, small = [], []
    axes = constant("axes", [1], np.int32)
    for name in "abc":
        wide = Tensor(f"{name}.wide", (1, 64, 4), np.dtype(np.float32))
        narrow = Tensor(f"{name}.narrow", (1, 4), np.dtype(np.float32))
        ops.append(Op("ADD", [x, state], [wide], {"fusedActivationFunction": 0}))
        small.append(Op("MEAN", [wide, axes], [narrow], {"keepDims": False}))
    joined = Tensor("joined", (1, 12), np.dtype(np.float32))
    last = Op("CONCATENATION", [op.outputs[0] for op in small], [joined], {"axis": 1})
    # The state is best taken last first: only the rule holds them.
    net = Net([x], [joined], [*ops, *small, last])
    best, why = reorder.reordered(net)
    assert why.after_bytes < why.before_bytes
    assert [op for op in best.ops if state in op.taken] == ops


# --- places


def gappy() -> Net:
    return residual(stages=(3, 3, 3))


def test_places_leave_no_gaps_where_tflite_micro_would() -> None:
    net = gappy()
    low = max(reorder.lowest(net, None))
    assert reorder.needs(net) > low
    given = reorder.places(net)
    assert set(given) == {tensor for tensor in net.tensors() if memory.held(tensor)}
    assert reorder.needs(net, None, given) == low
    assert reorder.places(net) == given


def test_the_file_brings_its_places_along(tmp_path: Path) -> None:
    net = gappy()
    given = reorder.places(net)
    content = reorder.write(net, given)
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    found, order, read = memory.stored(path)
    assert sorted(read.values()) == sorted(given.values())
    plan = memory.plan(found, None, order, read)
    assert plan.head_bytes == arena(content)["head"] < arena(write(net))["head"]
    assert arena(content)["tail"] == arena(write(net))["tail"]
    for a, b in combinations(plan.buffers, 2):
        if a.first <= b.last and b.first <= a.last:
            assert a.end <= b.offset or b.end <= a.offset
    feeds = samples(net)
    assert same(by_tflm(write(net), feeds), by_tflm(content, feeds))
    assert same(by_litert(write(net), feeds), by_litert(content, feeds))


@pytest.mark.parametrize("seed", range(4))
def test_places_beside_scratch_memory_hold_for_the_core_too(seed: int) -> None:
    net = tangled(seed, operators=16)
    best, why = reorder.reordered(net, "cortex-m4")
    given = reorder.places(best, "cortex-m4")
    assert reorder.needs(best, "cortex-m4", given) == why.after_bytes <= why.before_bytes
    content = reorder.write(best, given)
    assert arena(content)["head"] <= why.after_bytes
    feeds = samples(net, 3)
    assert same(by_tflm(write(net), feeds), by_tflm(content, feeds))
