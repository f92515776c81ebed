"""`int8-fast`: which operators stay float, by their times in both precisions."""

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onmetal.calibration import mixed, placement
from onmetal.converters.onnx.graph import Graph
from onmetal.ranges import BINS
from tests.int8_models import random
from tests.int8_runs import FORMAT, Document, Made, candidates
from tests.onnx_models import build, constant, node, save, value


def no_statistics(folder: Path) -> Path:
    """Statistics that know of no tensor that is not finite."""
    facts_of = {"tensors": [], "not_finite": [], "samples": 1}
    (folder / "statistics.json").write_text(json.dumps(facts_of))
    empty = np.zeros(0, np.float32)
    np.savez(
        folder / "statistics.npz",
        low=empty,
        high=empty,
        half=np.zeros((0, 2), np.float32),
        average=np.zeros((0, 2), np.float32),
        counts=np.zeros((0, BINS), np.int64),
    )
    return folder


def saved(built: Any, folder: Path) -> Path:
    return save(onnx.shape_inference.infer_shapes(built, strict_mode=True), folder / "graph.onnx")


CHANNELS, SIDE = 4, 6
Layers = list[dict[str, Any]]


def layers(times: Iterable[tuple[str, float]]) -> Layers:
    return [{"names": [name], "us": us} for name, us in times]


def cut(path: Path, folder: Path, in_float: Layers, in_8_bits: Layers) -> list[list[str]]:
    return mixed.cuts(str(path), str(no_statistics(folder)), FORMAT, in_float, in_8_bits)


def wild(random_of: np.random.Generator, count: int) -> Any:
    """Convolutions (some with Relu), sums and operators that stay float, each of any before it."""
    nodes: list[Any] = []
    tensors, quantized = ["x"], ["x"]
    for number in range(count):
        kind = random_of.choice(["Conv", "Conv", "Relu", "Add", "Float"])
        taken = str(random_of.choice(tensors[-4:]))
        given_name = f"t{number}"
        if kind == "Add" and len(quantized) > 2:
            both = random_of.choice(quantized[1:], 2, replace=False)
            nodes.append(node("Add", " ".join(map(str, both)), given_name, name=f"n{number}"))
            quantized.append(given_name)
        elif kind == "Float":
            nodes.append(node("Abs", taken, given_name, name=f"n{number}"))
        elif kind == "Relu":
            nodes.append(node("Conv", f"{taken} w", f"c{number}", name=f"n{number}"))
            nodes.append(node("Relu", f"c{number}", given_name, name=f"r{number}"))
            quantized.append(given_name)
        else:
            nodes.append(node("Conv", f"{taken} w", given_name, name=f"n{number}"))
            quantized.append(given_name)
        tensors.append(given_name)
    nodes.append(node("Conv", f"{tensors[-1]} w", "y", name="last"))
    shape = [1, CHANNELS, SIDE, SIDE]
    weight = constant("w", random(CHANNELS, CHANNELS, 1, 1))
    return build(nodes, [value("x", shape)], [value("y", shape)], [weight])


def cheapest(path: Path, times: dict[bool, dict[str, float]], weight: float) -> list[str]:
    """By trying every division of the graph. `times`: whether in float -> node -> microseconds."""
    graph = Graph(onnx.load(str(path)))
    placed = placement.place(graph, FORMAT)
    nodes = [n for n in graph.nodes if n.name in placed.integer]
    owner = {follower: name for name, follower in placed.after.items()}
    edges = []  # (maker or None, taker)
    for taker in nodes:
        for tensor in dict.fromkeys(name for name in taker.input if name != "w"):
            maker = graph.producer[tensor].name if tensor in graph.producer else ""
            maker = owner.get(maker, maker)
            edges.append((maker if maker in placed.integer else None, taker.name))
    price = weight * (mixed.CROSSING_US + CHANNELS * SIDE**2 * mixed.CROSSING_NS / 1000)
    best, least = [""], float("inf")
    for chosen in itertools.product([False, True], repeat=len(nodes)):
        in_float = {n.name: side for n, side in zip(nodes, chosen, strict=True)}
        total = sum(times[side][name] for name, side in in_float.items())
        total += price * sum(
            in_float[taker] != (maker is None or in_float[maker]) for maker, taker in edges
        )
        if total < least:
            best, least = sorted(name for name, side in in_float.items() if side), total
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(2, 7))
def test_the_division_is_the_cheapest_of_all(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    folder = tmp_path_factory.mktemp("wild")
    random_of = np.random.default_rng(seed)
    path = saved(wild(random_of, count), folder)
    graph = onnx.load(str(path)).graph
    names = [n.name for n in graph.node]
    placed = placement.place(Graph(onnx.load(str(path))), FORMAT)
    owner = {follower: name for name, follower in placed.after.items()}
    profiles, times = [], {}
    for in_float in (True, False):
        spent = {name: float(random_of.uniform(0, 4)) for name in names}
        profiles.append(layers(spent.items()))
        times[in_float] = {name: 0.0 for name in names}
        for name, us in spent.items():
            times[in_float][owner.get(name, name)] += us
    expected: list[list[str]] = []
    for weight in mixed.WEIGHTS:
        best = cheapest(path, times, weight)
        if best and len(best) < len(placed.integer) and best not in expected:
            expected.append(best)
    assert cut(path, folder, *profiles) == expected


def chain(count: int) -> Any:
    """`count` convolutions, one after the other, `c0` first; each with a Relu."""
    nodes = []
    for number in range(count):
        taken = f"r{number - 1}" if number else "x"
        nodes.append(node("Conv", f"{taken} w", f"t{number}", name=f"c{number}"))
        nodes.append(node("Relu", f"t{number}", f"r{number}", name=f"relu{number}"))
    shape = [1, CHANNELS, SIDE, SIDE]
    weight = constant("w", random(CHANNELS, CHANNELS, 1, 1))
    outputs = [value(f"r{count - 1}", shape)]
    return build(nodes, [value("x", shape)], outputs, [weight])


def test_exactly_what_is_slow_in_8_bits_stays_float(tmp_path: Path) -> None:
    path = saved(chain(8), tmp_path)
    names = [f"c{number}" for number in range(8)]
    slow = {"c2", "c5", "c6"}
    in_float = layers((name, 1.0 if name in slow else 60.0) for name in names)
    in_8_bits = layers((name, 60.0 if name in slow else 1.0) for name in names)
    assert cut(path, tmp_path, in_float, in_8_bits) == [sorted(slow)]


def test_where_8_bits_pay_everywhere_or_nowhere_there_is_nothing_to_cut(tmp_path: Path) -> None:
    path = saved(chain(5), tmp_path)
    fast, slow = (layers((f"c{number}", us) for number in range(5)) for us in (1.0, 9.0))
    assert cut(path, tmp_path, slow, fast) == []
    assert cut(path, tmp_path, fast, slow) == []


def test_a_gain_smaller_than_the_boundaries_cost_is_left(tmp_path: Path) -> None:
    path = saved(chain(5), tmp_path)
    price = mixed.CROSSING_US + CHANNELS * SIDE**2 * mixed.CROSSING_NS / 1000
    in_8_bits = layers((f"c{number}", 10.0) for number in range(5))
    for gain, expected in ((0.5 * price, []), (7 * price, [["c2"]])):
        in_float = layers((f"c{n}", 10.0 - gain if n == 2 else 30.0) for n in range(5))
        assert cut(path, tmp_path, in_float, in_8_bits) == expected
    in_float = layers((f"c{n}", 10.0 - price if n == 2 else 30.0) for n in range(5))
    assert cut(path, tmp_path, in_float, in_8_bits) == [["c2"]]  # where boundaries cost the least


def test_time_may_be_told_of_the_relu_or_of_a_tensor(tmp_path: Path) -> None:
    path = saved(chain(4), tmp_path)
    in_float = [{"names": ["relu2"], "us": 1.0}, *layers((n, 50.0) for n in ("c0", "c1", "c3"))]
    in_8_bits = [
        {"names": ["an_unknown_name", "r2"], "us": 50.0},
        {"names": ["nowhere"], "us": 1000.0},
        *layers((n, 1.0) for n in ("c0", "c1", "c3")),
    ]
    assert cut(path, tmp_path, in_float, in_8_bits) == [["c2"]]


def test_what_a_kernel_holds_together_stays_together(tmp_path: Path) -> None:
    """OpenVINO computes a sum within the convolution before it."""
    shape = [1, CHANNELS, SIDE, SIDE]
    built = build(
        [
            node("Conv", "x w", "a", name="first"),
            node("Conv", "a w", "b", name="second"),
            node("Add", "a b", "s", name="sum"),
            node("Conv", "s w", "y", name="last"),
        ],
        [value("x", shape)],
        [value("y", shape)],
        [constant("w", random(CHANNELS, CHANNELS, 1, 1))],
    )
    path = saved(built, tmp_path)
    in_float = layers([("first", 50.0), ("second", 5.0), ("sum", 1.0), ("last", 50.0)])
    apart_in_8_bits = layers([("first", 1.0), ("second", 1.0), ("sum", 40.0), ("last", 1.0)])
    assert cut(path, tmp_path, in_float, apart_in_8_bits) == [["sum"]]
    one_name = layers([("first", 1.0), ("sum", 41.0), ("last", 1.0)])
    both_names = [
        *layers([("first", 1.0), ("last", 1.0)]),
        {"names": ["second", "sum"], "us": 41.0},
    ]
    for in_8_bits in (one_name, both_names):
        assert cut(path, tmp_path, in_float, in_8_bits) == [["second", "sum"]]


def test_what_is_kept_float_is_float_in_the_graph(tmp_path: Path) -> None:
    path = saved(chain(4), tmp_path)
    graph = Graph(onnx.load(str(path)))
    assert placement.place(graph, FORMAT, frozenset(["c1"])).integer == {"c0", "c2", "c3"}


def test_int8_fast_is_measured_or_says_why_not(measured: Made, document: Document) -> None:
    for found, runtime in itertools.product(
        (measured.document, document), ("onnxruntime", "openvino")
    ):
        entry = candidates(found)[f"int8-fast@{runtime}"]
        if entry["status"] == "skipped":
            assert re.match(
                r"by its profile no operator of int8-\S+ would be faster in float"
                r"|first look: slower than its profile predicted: \d+\.\d\d times as slow as",
                entry["reason"],
            ), entry["reason"]
            assert f"@{runtime}" in entry["reason"]
            continue
        if entry["status"] == "failed":  # hardly anything of the mixture is in 8 bits
            assert "did not compute it in i8" in entry["reason"]
            continue
        assert entry["status"] in ("ok", "chosen", "over-budget")
        assert entry["latency_ms"]["p50"] > 0
        assert entry["accuracy"]["samples"] == 450
        details = entry["details"]
        base = candidates(found)[details["made_from"]]
        assert entry["lineage"]["parent"] == base["name"]
        assert (base["runtime"], base["details"]["format"]) == (runtime, details["format"])
        assert details["operators_in_float"] or details["operators_in_8_bits"] == 10
        assert details["operators_in_8_bits"] + len(details["operators_in_float"]) == 10
        assert details["estimator"] == base["details"]["estimator"]
