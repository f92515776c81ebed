"""The plan of a microcontroller's memory, beside the one that TFLite Micro itself makes."""

import json
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import Builder as Flat

from onmetal.converters.tflite.net import IDENTIFIER, SAME, VALID, Net, Op, Tensor, constant
from onmetal.converters.tflite.writing import write
from onmetal.runtimes.tflm import cmsis_nn, examine, memory, timeline
from tests.integer_nets import Builder, arena, residual, tangled
from tests.tflite_graphs import lowered, single
from tests.tflite_nets import CELLS, lstm

SVG = "{http://www.w3.org/2000/svg}"


def planned(content: bytes, folder: Path) -> memory.Plan:
    path = folder / "model.tflite"
    path.write_bytes(content)
    net, order, given = memory.stored(path)
    return memory.plan(net, None, order, given)


def sound(plan: memory.Plan, net: Net) -> None:
    """What lives together does not share bytes, and the figures are of the buffers."""
    for a, b in combinations(plan.buffers, 2):
        if a.first <= b.last and b.first <= a.last:
            assert a.end <= b.offset or b.end <= a.offset, (a, b)
    assert plan.head_bytes == max(buffer.end for buffer in plan.buffers)
    assert plan.peak
    live = [plan.live_bytes(number + 1) for number in range(len(net.ops))]
    assert plan.peak.live_bytes == max(live) == live[plan.peak.number] <= plan.head_bytes
    assert live == memory.over_time(net, memory.reference(net))


@pytest.mark.parametrize("seed", range(25))
def test_the_head_is_the_one_that_tflite_micro_reports(seed: int, tmp_path: Path) -> None:
    net = tangled(seed, operators=6 + seed)
    plan = memory.plan(net)
    assert plan.head_bytes == arena(write(net))["head"]
    sound(plan, net)
    assert planned(write(net), tmp_path) == plan


def test_so_it_is_where_the_largest_buffers_leave_gaps() -> None:
    net = residual(stages=(3, 3, 3))
    assert memory.plan(net).head_bytes == arena(write(net))["head"]


ONNX: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "softmax": ("Softmax", [(1, 4, 9)], {}),
    "mean": ("ReduceMean", [(1, 4, 6, 9)], {"axes": [1, 2], "keepdims": 0}),
    "maximum": ("ReduceMax", [(1, 4, 6, 9)], {"axes": [2], "keepdims": 0}),
    "product": ("MatMul", [(1, 4, 6), (1, 6, 5)], {}),
    "reflected": ("Pad", [(1, 3, 8, 8), np.array([0, 0, 1, 1, 0, 0, 1, 1])], {"mode": "reflect"}),
    "transposed": ("ConvTranspose", [(1, 3, 6, 6), np.ones((3, 2, 3, 3), np.float32)], {}),
    "turned": ("Transpose", [(1, 4, 6, 9)], {"perm": [0, 2, 3, 1]}),
}


@pytest.mark.parametrize("name", ONNX)
def test_so_it_is_with_float_operators(name: str, tmp_path: Path) -> None:
    kind, inputs, attributes = ONNX[name]
    net = lowered(single(kind, inputs, **attributes).model, tmp_path)
    assert memory.plan(net).head_bytes == arena(write(net))["head"]


def with_scratch() -> dict[str, tuple[Net, list[int]]]:
    """Of one operator each, the bytes that its kernel asks for."""
    found: dict[str, tuple[Net, list[int]]] = {}
    for dtype in (np.int8, np.int16):
        build = Builder(dtype=dtype)
        name = np.dtype(dtype).name
        found[f"MEAN {name}"] = build.net(build.mean(build.input(1, 5, 6, 70))), [280, 16, 8]
        build = Builder(dtype=dtype)
        x = build.input(1, 5, 6, 4)
        weights, bias = build.weights((7, 3, 3, 4), 0, x)
        shape = constant("shape", [1, 10, 12, 7], np.int32)
        out = build.tensor(1, 10, 12, 7, scale=0.2)
        options = {"padding": SAME, "strideH": 2, "strideW": 2}
        build.made("TRANSPOSE_CONV", [shape, weights, x, bias], out, **options)
        found[f"TRANSPOSE_CONV {name}"] = build.net(out), [840 * (4 if dtype == np.int8 else 8)]
    build = Builder()
    x = build.input(1, 5, 6, 4)
    axes = constant("axes", [1, 2], np.int32)
    found["REDUCE_MAX"] = (
        build.net(build.made("REDUCE_MAX", [x, axes], build.like(x, 1, 4), keepDims=False)),
        [16, 8],
    )
    build = Builder()
    x = build.input(1, 5, 6, 4)
    found["ADD_N"] = build.net(build.made("ADD_N", [x, x, x], build.like(x, *x.shape))), [24]
    return found


@pytest.mark.parametrize("name", with_scratch())
def test_scratch_memory_of_reference_kernels_is_counted(name: str) -> None:
    net, wanted = with_scratch()[name]
    assert memory.reference(net) == {0: wanted}
    assert memory.plan(net).head_bytes == arena(write(net))["head"]
    without = memory.plan(net, {})
    assert memory.plan(net).head_bytes > without.head_bytes


def test_a_filter_with_memory_keeps_its_state_out_of_the_head() -> None:
    """SVDF: two scratch buffers, and a variable tensor."""
    build = Builder()
    x = build.input(1, 10)
    x.zero_point = np.array([0])
    features, times = (
        constant("features", build.chance.integers(-9, 9, (8, 10)), np.int8),
        constant("times", build.chance.integers(-9, 9, (8, 4)), np.int16),
    )
    state = Tensor("state", (1, 32), np.dtype(np.int16), variable=True)
    bias = constant("bias", np.zeros(4), np.int32)
    for tensor, scale in ((features, 0.1), (times, 0.1), (state, 0.1), (bias, 0.01)):
        tensor.scale, tensor.zero_point = np.array([scale], np.float32), np.array([0])
    out = build.tensor(1, 4)
    options = {"rank": 2, "fusedActivationFunction": 0}
    net = build.net(build.made("SVDF", [x, features, times, bias, state], out, **options))
    assert memory.reference(net) == {0: [32, 16]}
    assert "state" not in [buffer.name for buffer in memory.plan(net).buffers]
    assert memory.plan(net).head_bytes == arena(write(net))["head"]
    assert cmsis_nn.modelled(net, "cortex-m4", 1000).kept_bytes == 0
    assert cmsis_nn.modelled(net, "cortex-m55", 1000).kept_bytes == 32


def test_recurrent_operators_ask_for_their_gates(tmp_path: Path) -> None:
    path = lstm(tmp_path / "lstm.tflite")
    net, order, given = memory.stored(path)
    assert memory.reference(net) == {0: [4 * CELLS] * 4} == cmsis_nn.scratch(net, "cortex-m4")
    assert memory.plan(net, None, order, given).head_bytes == arena(path.read_bytes())["head"]


# --- of files that others wrote


def rearranged(net: Net, seed: int) -> bytes:
    """The file, with its tensors in another order and one more, that nothing takes."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(write(net)))
    graph = model.subgraphs[0]
    extra = schema.TensorT()
    extra.name, extra.type, extra.shape = "unused", schema.TensorType.INT8, [1, 50_000]
    graph.tensors.append(extra)
    order = np.random.default_rng(seed).permutation(len(graph.tensors)).tolist()
    moved = {old: new for new, old in enumerate(order)}
    graph.tensors = [graph.tensors[old] for old in order]
    for entry in (graph, *graph.operators):
        entry.inputs = [moved[int(place)] for place in entry.inputs]
        entry.outputs = [moved[int(place)] for place in entry.outputs]
    model.signatureDefs = []
    flat = Flat(1 << 16)
    flat.Finish(model.Pack(flat), IDENTIFIER)
    return bytes(flat.Output())


@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_the_tensors_in_the_file_is_followed(seed: int, tmp_path: Path) -> None:
    content = rearranged(residual(stages=(2, 2), size=8), seed)
    plan = planned(content, tmp_path)
    assert plan.head_bytes == arena(content)["head"]
    assert [b.size_bytes for b in plan.buffers if b.name == "unused"] == [50_000]


# --- the core's kernels


COLUMNS = ("cortex-m3", "cortex-m4", "cortex-m55")
SIZES = [
    # What CMSIS-NN's own functions gave, compiled for a PC, with padding SAME unless said.
    ("CONV_2D", np.int8, (32, 32, 3), (3, 3), 16, {}, (112, 112, 128)),
    ("CONV_2D", np.int8, (32, 32, 16), (3, 3), 16, {}, (576, 576, 576)),
    ("CONV_2D", np.int8, (25, 5, 64), (1, 1), 64, {}, (0, 0, 0)),
    ("CONV_2D", np.int8, (32, 32, 16), (1, 1), 32, {"stride": 2}, (0, 0, 0)),
    ("CONV_2D", np.int8, (49, 10, 1), (10, 4), 64, {"stride": 2}, (160, 160, 192)),
    ("CONV_2D", np.int8, (1, 33, 8), (1, 3), 32, {}, (96, 96, 32)),
    ("CONV_2D", np.int8, (1, 40, 8), (1, 7), 5, {"stride": 2, "padding": VALID}, (224, 224, 56)),
    ("CONV_2D", np.int8, (20, 20, 5), (5, 5), 7, {"dilation": 2}, (512, 512, 512)),
    ("CONV_2D", np.int16, (32, 32, 3), (3, 3), 16, {}, (108, 108, 256)),
    ("CONV_2D", np.int16, (25, 5, 64), (1, 1), 64, {}, (256, 256, 512)),
    ("DEPTHWISE_CONV_2D", np.int8, (25, 5, 64), (3, 3), 64, {}, (0, 0, 4464)),
    ("DEPTHWISE_CONV_2D", np.int8, (56, 56, 144), (5, 5), 144, {"stride": 2}, (0, 7200, 12400)),
    ("DEPTHWISE_CONV_2D", np.int8, (20, 20, 1), (3, 3), 8, {}, (0, 0, 136)),
    ("DEPTHWISE_CONV_2D", np.int8, (20, 20, 4), (3, 3), 8, {}, (0, 0, 0)),
    ("DEPTHWISE_CONV_2D", np.int8, (20, 20, 16), (3, 3), 16, {"dilation": 2}, (0, 0, 0)),
    ("DEPTHWISE_CONV_2D", np.int16, (25, 5, 64), (3, 3), 64, {}, (0, 0, 0)),
    ("AVERAGE_POOL_2D", np.int8, (8, 8, 64), (8, 8), 64, {"padding": VALID}, (0, 256, 0)),
    ("AVERAGE_POOL_2D", np.int16, (8, 8, 64), (8, 8), 64, {"padding": VALID}, (0, 256, 0)),
    ("MAX_POOL_2D", np.int8, (8, 8, 64), (2, 2), 64, {}, (0, 0, 0)),
]


@pytest.mark.parametrize(("kind", "dtype", "image", "k", "channels", "given", "sizes"), SIZES)
def test_scratch_memory_is_what_cmsis_nn_asks_for(
    kind: str,
    dtype: Any,
    image: tuple[int, int, int],
    k: tuple[int, int],
    channels: int,
    given: dict[str, Any],
    sizes: tuple[int, int, int],
) -> None:
    build = Builder(dtype=dtype)
    net = build.net(build.window(kind, build.input(1, *image), channels, k, **given))
    assert tuple(sum(cmsis_nn.scratch(net, core).get(0, [])) for core in COLUMNS) == sizes


@pytest.mark.parametrize(
    ("channels", "k", "stride", "wanted"),
    [(32, 3, 2, [1152, 2304]), (8, 3, 2, [1632]), (32, 4, 3, [3200])],
)
def test_a_transposed_convolution_is_turned_where_that_pays(
    channels: int, k: int, stride: int, wanted: list[int]
) -> None:
    build = Builder()
    x = build.input(1, 8, 8, channels)
    out = build.tensor(1, 8 * stride, 8 * stride, 8)
    shape = constant("shape", out.shape, np.int32)
    weights, bias = build.weights((8, k, k, channels), 0, x)
    options = {"padding": SAME, "strideH": stride, "strideW": stride}
    build.made("TRANSPOSE_CONV", [shape, weights, x, bias], out, **options)
    assert all(cmsis_nn.scratch(build.net(out), core) == {0: wanted} for core in COLUMNS)


def dense(shape: tuple[int, ...], constants: bool = True, per_channel: bool = False) -> Net:
    build = Builder()
    x = build.input(*shape)
    weights, bias = build.weights((12, shape[-1]), 0, x)
    if not per_channel:
        weights.scale, weights.zero_point = np.array([0.01], np.float32), np.array([0])
    if not constants:
        weights.data = None
        build.inputs.append(weights)
    out = build.tensor(*shape[:-1], 12)
    keep = len(shape) > 2
    return build.net(build.made("FULLY_CONNECTED", [x, weights, bias], out, keepNumDims=keep))


def test_fully_connected_keeps_sums_or_writes_multipliers_out() -> None:
    flat, kept = dense((1, 20)), "cortex-m55"
    assert all(not cmsis_nn.scratch(flat, core) for core in cmsis_nn.CORES)
    assert cmsis_nn.modelled(flat, kept, 0).kept_bytes == 48
    assert cmsis_nn.modelled(flat, "cortex-m4", 0).kept_bytes == 0
    assert cmsis_nn.scratch(dense((1, 20), constants=False), kept) == {0: [48]}
    image = dense((1, 3, 3, 20))
    assert all(cmsis_nn.scratch(image, core) == {0: [96]} for core in cmsis_nn.CORES)
    assert not cmsis_nn.scratch(dense((1, 3, 3, 20), per_channel=True), kept)


def test_the_model_of_a_core_adds_up() -> None:
    net = residual()
    made = cmsis_nn.modelled(net, "cortex-m4", 5000)
    assert made.head_bytes == memory.plan(net, cmsis_nn.scratch(net, "cortex-m4")).head_bytes
    assert made.head_bytes > memory.plan(net).head_bytes
    assert (made.tail_bytes, made.total_bytes) == (5000, made.head_bytes + 5000)
    counts = 12 * len(net.tensors()) + 32 * (len(net.ops) + 2)
    assert made.tail_32_bytes == 5000 - counts
    # Two patches of 3x3 of 16 channels, each number in 16 bits.
    assert made.scratch_bytes == 576
    assert made.scratch_operator == f"CONV_2D that gives {net.ops[5].outputs[0].name!r}"


# --- told and drawn


def test_the_timeline_has_a_line_an_operator_and_marks_the_peak() -> None:
    net = residual()
    plan = memory.plan(net)
    assert plan.peak
    lines = timeline.text(plan, net, width=72).splitlines()
    assert max(map(len, lines)) <= 72
    marked = [number for number, line in enumerate(lines) if line.endswith("<")]
    assert marked == [plan.peak.number]
    for number, op in enumerate(net.ops):
        words = lines[number].split()
        assert words[:2] == [str(number), op.kind]
        assert words[3] == f"{plan.live_bytes(number + 1):,}"
    bars = [line.count(timeline.BAR) for line in lines[: len(net.ops)]]
    assert max(bars) == bars[plan.peak.number]
    told = "\n".join(lines[len(net.ops) :])
    assert f"peak: {plan.peak.live_bytes:,} bytes" in told
    assert all(buffer.name in told for buffer in plan.live(plan.peak.number + 1))
    assert f"head of the arena: {plan.head_bytes:,} bytes" in told


def test_long_names_lose_their_middle() -> None:
    net = residual()
    for tensor in net.tensors():
        tensor.name = f"{tensor.name}{'/again' * 40}/end"
    lines = timeline.text(memory.plan(net), net).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("\u2026" in line and line.endswith("/end") for line in lines)


def test_the_drawing_shows_every_buffer_at_its_place() -> None:
    net = residual()
    net.ops[0].outputs[0].name = "a <name> & more"
    plan = memory.plan(net)
    root = ET.fromstring(timeline.svg(plan, net))
    groups = root.findall(f"{SVG}g")
    assert len(groups) == len(plan.buffers)
    scale = timeline.HEIGHT / plan.head_bytes
    for group, buffer in zip(groups, plan.buffers, strict=True):
        said = group.findtext(f"{SVG}title")
        assert said and said.startswith(f"{buffer.name}: {buffer.size_bytes:,} bytes")
        box = group.find(f"{SVG}rect")
        assert box is not None
        assert float(box.attrib["height"]) == pytest.approx(buffer.size_bytes * scale, abs=0.06)
        below = timeline.TOP + timeline.HEIGHT - float(box.attrib["y"])
        assert below == pytest.approx(buffer.end * scale, abs=0.06)
    written = [entry.text for entry in root.iter(f"{SVG}text")]
    assert plan.peak and f"{plan.peak.number} {plan.peak.kind}" in written


def test_a_file_is_examined_in_words_and_figures(tmp_path: Path) -> None:
    net = residual()
    path = tmp_path / "model.tflite"
    path.write_bytes(write(net))
    tail = arena(write(net))["tail"]
    found = examine.examine(str(path), "cortex-m55", tail)
    assert json.loads(msgspec.json.encode(found)) == found
    assert set(found) == {"head_bytes", "peak", "buffers", "timeline", "svg", "modelled"}
    assert found["head_bytes"] == arena(write(net))["head"]
    assert found["modelled"]["total_bytes"] == found["modelled"]["head_bytes"] + tail
    assert examine.examine(str(path), None, tail)["modelled"] is None


def test_a_graph_without_operators_needs_its_inputs() -> None:
    tensor = Tensor("x", (1, 20), np.dtype(np.int8))
    net = Net([tensor], [tensor], list[Op]())
    plan = memory.plan(net)
    assert (plan.head_bytes, plan.peak) == (32, None)
    assert timeline.text(plan, net) == "no operators"
    assert "Head of the arena: 32 bytes" in timeline.svg(plan, net)
