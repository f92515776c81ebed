"""Operators in bands of rows: the same numbers, less of them in memory at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from onmetal.converters.tflite import check
from onmetal.converters.tflite.net import VALID, Net, Tensor, constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from onmetal.runtimes.tflm import memory, regions, reorder, split
from onmetal.runtimes.tflm.bands import banded
from tests.integer_nets import Builder, arena, by_litert, by_tflm, residual, same, samples


def strided(build: Builder) -> Net:
    x = build.conv(build.input(1, 17, 12, 3), 8, stride=2, activation=1)
    x = build.conv(build.depthwise(x, 3), 8, 1)
    return build.net(build.depthwise(x, 3, stride=2))


def dilated(build: Builder) -> Net:
    x = build.conv(build.input(1, 16, 9, 3), 4, (3, 5), dilation=2)
    return build.net(build.depthwise(x, 2, times=2, dilation=2))


def padded(build: Builder) -> Net:
    """As other frameworks pad: by an operator of its own, on all sides."""
    x = build.pad(build.input(1, 13, 13, 3), [[0, 0], [1, 1], [1, 1], [0, 0]])
    x = build.conv(x, 6, 3, stride=2, padding=VALID)
    x = build.pad(x, [[0, 0], [2, 1], [0, 1], [0, 2]])
    return build.net(build.conv(x, 4, (3, 2), padding=VALID))


def pooled(build: Builder) -> Net:
    x = build.conv(build.input(1, 16, 16, 3), 4)
    x = build.pool(x, 3, stride=2, padding=VALID)
    return build.net(build.pool(x, 2, "AVERAGE_POOL_2D", padding=VALID))


def branched(build: Builder) -> Net:
    """A sum of what reaches over 5 rows and what reaches over 1, and channels side by side."""
    x = build.conv(build.input(1, 12, 10, 3), 4, 5)
    y = build.add(build.conv(build.conv(x, 4), 4), x)
    both = build.joined(y, build.relu(x))
    return build.net(build.conv(both, 2, 1))


def weighted(build: Builder) -> Net:
    """By constants of each channel."""
    x = build.conv(build.input(1, 12, 8, 3), 4)
    factors = build.tensor(1, 1, 1, 4)
    factors.data = build.chance.integers(-100, 100, (1, 1, 1, 4)).astype(x.dtype)
    out = build.tensor(*x.shape, scale=0.2)
    return build.net(build.conv(build.made("MUL", [x, factors], out), 4))


def rising(build: Builder) -> Net:
    """PADV2 pads by a number of its own: pooling of what was padded by the least one."""
    x = build.conv(build.input(1, 14, 10, 3), 4)
    low = build.like(x)
    low.data = np.array(np.iinfo(x.dtype).min, x.dtype)
    pads = constant("pads", [[0, 0], [1, 1], [1, 1], [0, 0]], np.int32)
    x = build.made("PADV2", [x, pads, low], build.like(x, 1, 16, 12, 4))
    return build.net(build.pool(x, 3, stride=2, padding=VALID))


SHAPES: dict[str, Callable[[Builder], Net]] = {
    made.__name__: made for made in (strided, dilated, padded, pooled, branched, weighted, rising)
}
INT16 = {"strided", "dilated", "padded", "branched"}
CASES = [(name, np.int8) for name in SHAPES] + [(name, np.int16) for name in sorted(INT16)]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_bands_give_the_same_numbers(name: str, dtype: Any) -> None:
    """Of every region and several numbers of bands, in TFLite Micro and in LiteRT."""
    net = SHAPES[name](Builder(3, dtype))
    feeds = samples(net)
    here, there = by_tflm(write(net), feeds), by_litert(write(net), feeds)
    tried = set()
    for region in regions.regions(net):
        for bands in (2, 3, 5):
            made = banded(net, region, bands)
            if bands > region.result.shape[1] or made is None:
                continue
            assert not check.problems(made)
            content = write(made)
            assert same(here, by_tflm(content, feeds)), (region, bands)
            if region.last == len(net.ops) - 1:
                assert same(there, by_litert(content, feeds)), (region, bands)
            tried.add((region.first, region.last))
    assert (0, len(net.ops) - 1) in tried
    assert len(tried) >= len(net.ops)


def test_every_number_of_bands_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    net = branched(Builder(5))
    feeds = samples(net)
    wanted = by_tflm(write(net), feeds)
    whole = regions.Region(0, len(net.ops) - 1, net.inputs[0], net.outputs[0])
    assert whole in regions.regions(net)
    for bands in split.BANDS:
        made = banded(net, whole, bands)
        assert made
        assert [op.kind for op in made.ops].count("CONCATENATION") == bands + 1
        assert same(wanted, by_tflm(write(made), feeds))


def test_weights_are_shared_by_the_bands() -> None:
    net = strided(Builder())
    whole = regions.Region(0, len(net.ops) - 1, net.inputs[0], net.outputs[0])
    made = banded(net, whole, 2)
    assert made
    before = {t for op in net.ops for t in op.taken[1:]}
    kernels = {t for op in made.ops if op.kind in regions.WINDOWS for t in op.taken[1:]}
    assert kernels == before


def test_what_nothing_takes_is_in_no_region() -> None:
    build = Builder()
    x = build.conv(build.input(1, 12, 12, 4), 8)
    build.relu(x)
    net = build.net(build.conv(build.conv(x, 8), 4))
    assert {(r.first, r.last) for r in regions.regions(net)} == {(0, 0), (1, 1), (3, 3)}
    best, _ = split.split(net)
    feeds = samples(net)
    assert same(by_tflm(write(net), feeds), by_tflm(write(best), feeds))


@pytest.mark.parametrize(
    "kind", ["mean", "padded pool", "float", "two outputs", "taken from outside"]
)
def test_what_cannot_be_split_is_in_no_region(kind: str) -> None:
    build = Builder()
    x = build.input(1, 12, 12, 4)
    y = build.conv(x, 8)
    number = 1
    if kind == "mean":
        net = build.net(build.mean(y))
    elif kind == "padded pool":
        net = build.net(build.pool(y, 3, stride=2))
    elif kind == "float":
        net = build.net(y)
        for tensor in net.tensors():
            tensor.dtype = np.dtype(np.float32)
        number = 0
    elif kind == "two outputs":
        halves = [build.like(y, 1, 12, 12, 4) for _ in range(2)]
        build.made("SPLIT", [constant("axis", 3, np.int32), y], halves[0], numSplits=2)
        build.ops[-1].outputs = halves
        net = build.net(*halves)
    else:
        z = build.conv(y, 8)
        net = build.net(z, build.relu(y))
    within = [region for region in regions.regions(net) if region.first <= number <= region.last]
    if kind == "taken from outside":
        # The second convolution alone may be; not the two, because of what lies between.
        assert {(region.first, region.last) for region in within} == {(1, 1)}
    else:
        assert not within


def test_a_band_of_padding_alone_is_refused() -> None:
    build = Builder()
    x = build.pad(build.input(1, 4, 4, 2), [[0, 0], [8, 0], [0, 0], [0, 0]])
    net = build.net(build.conv(x, 2, 1))
    assert banded(net, regions.Region(0, 1, net.inputs[0], net.outputs[0]), 4) is None


# --- what pays


def grown(size: int = 96) -> Net:
    """As mobile networks begin: an image is widened, and soon small."""
    build = Builder()
    x = build.conv(build.input(1, size, size, 3), 16, stride=2)
    x = build.conv(build.depthwise(x), 8, 1)
    x = build.depthwise(build.conv(x, 48, 1), stride=2)
    x = build.conv(x, 12, 1)
    return build.net(build.mean(build.conv(x, 24, stride=2)))


def test_what_is_large_early_is_split_and_needs_less() -> None:
    net = grown()
    best, why = split.split(net)
    assert why.regions and why.before_bytes == reorder.needs(net, None, reorder.places(net))
    content = reorder.write(best, reorder.places(best))
    before, after = arena(write(net)), arena(content)
    assert (why.before_bytes, why.after_bytes) == (before["head"], after["head"])
    assert after["total"] < 0.7 * before["total"]
    grows = after["tail"] - before["tail"]
    assert grows <= why.tail_bytes <= 1.1 * grows
    assert why.operators_added == len(best.ops) - len(net.ops)
    assert why.flash_bytes == len(write(best)) - len(write(net))
    macs = [sum(map(split.macs, some.ops)) for some in (net, best)]
    assert why.recomputed == round(macs[1] / macs[0] - 1, 4) > 0
    feeds = samples(net)
    assert same(by_tflm(write(net), feeds), by_tflm(content, feeds))
    assert same(by_litert(write(net), feeds), by_litert(content, feeds))
    again, said = split.split(net)
    assert said == why and write(again) == write(best)


def test_several_peaks_are_split_each() -> None:
    """Of two equal ones, one alone gains nothing."""
    build = Builder()
    x = build.input(1, 24, 24, 2)
    for _ in range(2):
        x = build.conv(build.depthwise(build.conv(x, 64, 1)), 2, 1)
    x = build.conv(build.pool(x, 24, "AVERAGE_POOL_2D", padding=VALID), 4, 1)
    net = build.net(x)
    best, why = split.split(net)
    content = reorder.write(best, reorder.places(best))
    assert arena(content)["head"] == why.after_bytes < 0.5 * why.before_bytes
    feeds = samples(net)
    assert same(by_tflm(write(net), feeds), by_tflm(content, feeds))


def test_the_scratch_memory_of_the_core_is_weighed_too() -> None:
    net = grown()
    best, why = split.split(net, "cortex-m55")
    assert why.before_bytes > reorder.needs(net)
    given = reorder.places(best, "cortex-m55")
    assert why.after_bytes == reorder.needs(best, "cortex-m55", given) < why.before_bytes


def test_what_does_not_pay_is_left_as_it_is() -> None:
    """Small, or as large at its end as anywhere."""
    for net in (grown(8), residual(size=8), flat()):
        best, why = split.split(net)
        assert best is net
        assert why == split.Why(why.before_bytes, why.before_bytes, (), 0.0, 0, 0, 0)


def flat() -> Net:
    build = Builder()
    x = build.input(1, 16, 16, 8)
    for _ in range(4):
        x = build.conv(x, 8)
    return build.net(x)


# --- of a file


def test_a_file_that_needs_less_is_written(tmp_path: Path) -> None:
    path, folder = tmp_path / "given.tflite", tmp_path / "folder"
    folder.mkdir()
    net = grown()
    path.write_bytes(write(net))
    found = split.shrink_arena(str(path), str(folder), None)
    assert set(json.loads(msgspec.json.encode(found))) == set(found)
    content = (folder / "model.tflite").read_bytes()
    before, after = arena(path.read_bytes()), arena(content)
    assert found["found"] and found["head_bytes"] == [before["head"], after["head"]]
    assert after["tail"] - before["tail"] <= found["tail_bytes"]
    assert found["how"]["split"]["regions"][0]["source"] == net.inputs[0].name
    assert not check.problems(read(folder / "model.tflite"))
    feeds = samples(net)
    assert same(by_tflm(path.read_bytes(), feeds), by_tflm(content, feeds))


def test_places_alone_may_be_enough(tmp_path: Path) -> None:
    path = tmp_path / "given.tflite"
    path.write_bytes(write(residual(stages=(3, 3, 3))))
    found = split.shrink_arena(str(path), str(tmp_path), "cortex-m4", splitting=False)
    assert found["found"] and found["how"]["split"] is None and found["tail_bytes"] == 0
    assert found["how"]["reordered"]["placed"]
    stored = memory.stored(tmp_path / "model.tflite")
    assert stored.given
    assert (
        arena((tmp_path / "model.tflite").read_bytes())["head"] < arena(path.read_bytes())["head"]
    )


def test_nothing_is_written_where_nothing_is_gained(tmp_path: Path) -> None:
    path = tmp_path / "given.tflite"
    path.write_bytes(write(flat()))
    found = split.shrink_arena(str(path), str(tmp_path), None, splitting=False)
    assert not found["found"] and found["head_bytes"][0] == found["head_bytes"][1]
    with pytest.raises(UnsupportedError, match="does not pay"):
        split.shrink_arena(str(path), str(tmp_path), None)
    assert not (tmp_path / "model.tflite").exists()


def test_a_tensor_that_is_an_output_is_kept_whole() -> None:
    build = Builder()
    x = build.input(1, 16, 16, 4)
    y = build.conv(x, 8)
    net = build.net(y, build.conv(y, 4))
    assert not [region for region in regions.regions(net) if region.last > region.first]


def test_regions_start_at_any_image() -> None:
    build = Builder()
    first, second = build.input(1, 8, 8, 4), build.input(1, 8, 8, 4)
    net = build.net(build.add(build.conv(first, 4), second))
    sources: set[Tensor] = {region.source for region in regions.regions(net)}
    assert sources == {first}, "the sum needs two tensors of which neither is made of the other"
