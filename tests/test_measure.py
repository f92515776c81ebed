"""Measuring for real, on this machine: rounds, failures, the clock, memory, what really ran."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

from onmetal.deploy import model
from onmetal.deploy.convert import convert
from onmetal.errors import DeviceError
from onmetal.files.cache import Cache
from onmetal.profilers import memory
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker
from onmetal.profilers.measure import (
    MODES,
    Outcome,
    Schedule,
    load_figure,
    measure,
    peak_memory,
    profile,
)
from onmetal.records import Candidate, Rounds
from onmetal.runtimes import fit
from tests import onnx_models
from tests.conftest import DIGITS

BRIEF = Schedule(2, 3, 0.01, 0.01, 0.0, 1)
KEYS = [(block, number) for block in range(2) for number in range(3)]
BF16 = {"avx512_bf16", "amx_bf16"}


@pytest.fixture
def cache(_own_cache: None) -> Iterator[Cache]:
    with Cache() as opened:
        yield opened


@pytest.fixture
def device(cache: Cache) -> Local:
    return Local(cache)


class Recording(Local):
    """The real device, that remembers what its workers were asked, and of which artifact."""

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache)
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[LocalWorker, str, str], object] = lambda *_: None

    def worker(self, runtime: str | None = None) -> LocalWorker:
        worker = super().worker(runtime)
        real, opened = worker.call, ""

        def call(op: str, **arguments: Any) -> Any:
            nonlocal opened
            if op == "open":
                opened = arguments["files"][0]
            self.before(worker, op, opened)
            self.calls.append((op, opened))
            return real(op, **arguments)

        worker.call = call  # type: ignore[method-assign]
        return worker

    def order(self, op: str) -> list[str]:
        return [file for called, file in self.calls if called == op]


def made(
    path: Path, device: Local, cache: Cache, recipe: str = "fp32", runtime: str = "onnxruntime"
) -> Candidate:
    target = fit.load_target("x86-64")
    found = model.read(path, {}, None, cache, device)
    how = target.recipe(recipe)
    return convert(f"{recipe}@{runtime}", found, how, runtime, target, 1, device, cache)


@pytest.fixture
def pair(device: Local, cache: Cache) -> list[Candidate]:
    """The example by both runtimes."""
    path = DIGITS / "digits_cnn.onnx"
    return [made(path, device, cache, runtime=name) for name in ("onnxruntime", "openvino")]


@pytest.fixture
def feeds(tmp_path: Path) -> Path:
    path = tmp_path / "feeds.npz"
    with np.load(DIGITS / "digits.npz") as data:
        np.savez(path, **{f"{n}/image": data["x"][n : n + 1] for n in range(2)})
    return path


def observe(
    device: Local, candidates: list[Candidate], feeds: Path, seed: int = 0, schedule: Any = BRIEF
) -> Outcome:
    return measure(device, candidates, lambda _: feeds, schedule, lambda *_: None, seed=seed)


# --- rounds


def test_rounds_are_paired_and_complete(device: Local, pair: list[Candidate], feeds: Path) -> None:
    outcome = observe(device, pair, feeds)
    assert outcome.failures == {}
    assert not outcome.cut_short
    assert list(outcome.rounds) == [candidate.name for candidate in pair]
    for rounds in outcome.rounds.values():
        assert sorted(rounds.samples_ns) == KEYS
        assert len(rounds.load_ms) == 2
        assert min(rounds.load_ms) > 0
        for samples in rounds.samples_ns.values():
            assert samples.dtype == np.int64
            assert len(samples) >= 1
            assert samples.min() > 0
        assert rounds.count == sum(len(samples) for samples in rounds.samples_ns.values())
        assert load_figure(rounds).samples == 2


def test_every_block_starts_afresh_and_every_round_runs_all(
    cache: Cache, pair: list[Candidate], feeds: Path
) -> None:
    device = Recording(cache)
    observe(device, pair, feeds)
    files = sorted(str(candidate.files[0]) for candidate in pair)
    opened, run = device.order("open"), device.order("round")
    assert [sorted(opened[n : n + 2]) for n in (0, 2)] == [files] * 2
    assert [sorted(run[n : n + 2]) for n in range(0, 12, 2)] == [files] * 6


def test_the_order_changes_from_round_to_round_and_follows_the_seed(
    cache: Cache, pair: list[Candidate], feeds: Path
) -> None:
    schedule = Schedule(1, 12, 0.0, 0.0, 0.0, 1)
    orders = []
    for seed in (0, 0, 1):
        device = Recording(cache)
        observe(device, pair, feeds, seed, schedule)
        orders.append(device.order("round"))
    same, again, other = orders
    assert len({tuple(same[n : n + 2]) for n in range(0, 24, 2)}) == 2
    assert same == again
    assert same != other


def test_progress_goes_from_nothing_to_almost_all(
    device: Local, pair: list[Candidate], feeds: Path
) -> None:
    seen: list[tuple[float, float, str]] = []
    measure(device, pair, lambda _: feeds, BRIEF, lambda *words: seen.append(words), seed=0)
    done = [part for part, _, _ in seen]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == 5
    assert {total for _, total, _ in seen} == {6}
    assert any(pair[0].name in what for _, _, what in seen)


def test_modes_are_as_documented() -> None:
    assert set(MODES) == {"quick", "default", "thorough"}
    thorough = MODES["thorough"]
    assert thorough.blocks >= 5
    assert thorough.rounds * thorough.round_s >= 10


def test_what_is_settled_is_timed_no_further(
    device: Local, pair: list[Candidate], feeds: Path
) -> None:
    """And keeps its rounds, which are paired with those of the others."""
    asked: list[dict[str, int]] = []

    def settled(rounds: dict[str, Rounds]) -> set[str]:
        asked.append({name: len(of.samples_ns) for name, of in rounds.items()})
        return {pair[0].name}

    schedule = Schedule(4, 2, 0.01, 0.01, 0.0, 1, least_blocks=2)
    outcome = measure(device, pair, lambda _: feeds, schedule, lambda *_: None, settled=settled)
    one, other = (outcome.rounds[candidate.name] for candidate in pair)
    assert asked == [dict.fromkeys(outcome.rounds, 4), {pair[0].name: 4, pair[1].name: 6}]
    assert sorted(one.samples_ns) == [(block, n) for block in range(2) for n in range(2)]
    assert sorted(other.samples_ns) == [(block, n) for block in range(4) for n in range(2)]
    assert (len(one.load_ms), len(other.load_ms)) == (2, 4)
    assert outcome.failures == {}


# --- failures


@pytest.mark.parametrize("harm", ["removed", "cut", "other"])
def test_a_broken_artifact_fails_alone(
    harm: str, device: Local, pair: list[Candidate], feeds: Path, tmp_path: Path
) -> None:
    good, bad = pair
    copies = tuple(Path(shutil.copy(file, tmp_path / file.name)) for file in bad.files)
    bad = replace(bad, files=copies)
    if harm == "removed":
        copies[0].unlink()
    elif harm == "cut":
        copies[1].write_bytes(copies[1].read_bytes()[:100])
    else:
        copies[0].write_bytes(b"no model")
    outcome = observe(device, [bad, good], feeds)
    assert list(outcome.failures) == [bad.name]
    assert outcome.failures[bad.name]
    assert list(outcome.rounds) == [good.name]
    assert sorted(outcome.rounds[good.name].samples_ns) == KEYS


def test_a_worker_that_dies_costs_one_candidate(
    cache: Cache, pair: list[Candidate], feeds: Path
) -> None:
    doomed, other = pair
    device = Recording(cache)

    def kill(worker: LocalWorker, op: str, file: str) -> None:
        if op == "round" and file == str(doomed.files[0]) and device.order("round").count(file) > 1:
            os.kill(worker.pid, signal.SIGKILL)

    device.before = kill
    outcome = observe(device, pair, feeds)
    assert list(outcome.failures) == [doomed.name]
    assert "SIGKILL" in outcome.failures[doomed.name]
    assert list(outcome.rounds) == [other.name]
    assert sorted(outcome.rounds[other.name].samples_ns) == KEYS


def test_where_all_fail_nothing_is_left(
    device: Local, pair: list[Candidate], tmp_path: Path
) -> None:
    outcome = observe(device, pair, tmp_path / "missing.npz")
    assert set(outcome.failures) == {candidate.name for candidate in pair}
    assert outcome.rounds == {}


def test_inputs_that_do_not_fit_fail_in_words(
    device: Local, pair: list[Candidate], tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", **{"0/image": np.zeros((1, 1, 9, 9), np.float32)})  # type: ignore[arg-type]
    outcome = observe(device, pair, tmp_path / "bad.npz")
    assert set(outcome.failures) == {candidate.name for candidate in pair}
    assert all("9" in why for why in outcome.failures.values())


# --- the clock


def test_a_deadline_cuts_short(device: Local, pair: list[Candidate], feeds: Path) -> None:
    schedule = Schedule(50, 1000, 0.01, 0.01, 0.0, 1)
    outcome = measure(
        device, pair, lambda _: feeds, schedule, lambda *_: None, time.monotonic() + 3
    )
    assert outcome.cut_short
    counts = {len(rounds.samples_ns) for rounds in outcome.rounds.values()}
    assert len(counts) <= 1
    assert all(count < 50_000 for count in counts)


def test_a_deadline_that_is_over_leaves_nothing(
    device: Local, pair: list[Candidate], feeds: Path
) -> None:
    outcome = measure(device, pair, lambda _: feeds, BRIEF, lambda *_: None, time.monotonic() - 1)
    assert outcome.cut_short
    assert outcome.rounds == {}
    assert outcome.failures == {}


# --- small and large models


def weighty(path: Path, width: int) -> Path:
    product = onnx_models.build(
        [onnx_models.node("MatMul", "x weight", "y")],
        [onnx_models.value("x", [1, width])],
        [onnx_models.value("y", [1, width])],
        [onnx_models.weights("weight", width, width)],
    )
    return onnx_models.save(product, path)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_identity_is_measured(runtime: str, device: Local, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "identity.onnx").write_bytes(memory.IDENTITY)
    candidate = made(tmp_path / "identity.onnx", device, cache, runtime=runtime)
    np.savez(tmp_path / "x.npz", **{"0/x": np.ones(1, np.float32)})  # type: ignore[arg-type]
    outcome = observe(device, [candidate], tmp_path / "x.npz")
    assert outcome.failures == {}
    assert sorted(outcome.rounds[candidate.name].samples_ns) == KEYS
    assert peak_memory(device, candidate, tmp_path / "x.npz", 1).value >= 0
    assert profile(device, candidate, tmp_path / "x.npz")["provider"] is not None


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_peak_memory_grows_with_the_model(
    runtime: str, device: Local, cache: Cache, tmp_path: Path
) -> None:
    peaks = []
    for width in (500, 2500):
        path = weighty(tmp_path / f"w{width}.onnx", width)
        candidate = made(path, device, cache, runtime=runtime)
        np.savez(tmp_path / "x.npz", **{"0/x": np.ones((1, width), np.float32)})  # type: ignore[arg-type]
        figure = peak_memory(device, candidate, tmp_path / "x.npz", 1)
        assert figure.basis == "measured"
        assert figure.samples == 1
        assert figure.how
        peaks.append(figure.value)
    small, large = peaks
    assert small > 0
    assert large > small + 2500 * 2500 * 4 / 2


def test_peak_memory_of_what_does_not_open_says_why(
    device: Local, pair: list[Candidate], feeds: Path, tmp_path: Path
) -> None:
    missing = replace(pair[0], files=(tmp_path / "missing.onnx",))
    with pytest.raises(DeviceError, match=r"missing\.onnx"):
        peak_memory(device, missing, feeds, 1)


def test_the_trivial_model_is_onnxs_own() -> None:
    wanted = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["x"], ["y"])],
            "identity",
            [onnx_models.value("x", [1])],
            [onnx_models.value("y", [1])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 13)],
        ir_version=8,
        producer_name="",
    )
    found = onnx.load_model_from_string(memory.IDENTITY)
    onnx.checker.check_model(found, full_check=True)
    assert found == wanted
    assert found.SerializeToString(deterministic=True) == memory.IDENTITY


# --- what really ran


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_fp32_runs_in_f32(runtime: str, device: Local, cache: Cache, feeds: Path) -> None:
    candidate = made(DIGITS / "digits_cnn.onnx", device, cache, runtime=runtime)
    ran = profile(device, candidate, feeds)
    assert ran["precision"] == {"f32": 1.0}
    assert sum(ran["operators"].values()) == pytest.approx(1, abs=0.01)
    assert sum(ran["provider"].values()) == pytest.approx(1, abs=0.01)
    assert ran["kernels"] > 0
    assert any("Conv" in name for name in ran["operators"])


def test_bf16_runs_in_bf16_where_the_cpu_can(device: Local, cache: Cache, feeds: Path) -> None:
    path = DIGITS / "digits_cnn.onnx"
    candidate = made(path, device, cache, recipe="bf16", runtime="openvino")
    share = profile(device, candidate, feeds)["precision"].get("bf16", 0.0)
    assert (share > 0.05) is bool(BF16 & set(device.facts().flags))


def test_measuring_leaves_no_file_behind(
    device: Local, pair: list[Candidate], feeds: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    for candidate in pair:
        profile(device, candidate, feeds)
        peak_memory(device, candidate, feeds, 1)
    assert list((tmp_path / "temporary").iterdir()) == []
