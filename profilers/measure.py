"""Measures candidates against each other: blocks of fresh workers, rounds in random order."""

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from msgspec import Struct

from onmetal.errors import OnmetalError
from onmetal.profilers.devices import Device, Worker
from onmetal.records import Candidate, Figure, Rounds


class Schedule(Struct, frozen=True):
    """How long candidates are timed. Every block starts every candidate afresh."""

    blocks: int
    rounds: int
    """A block's rounds; each runs every candidate once, in random order."""
    round_s: float
    warm_s: float
    """How long a fresh worker runs before its first round."""
    round_warm_s: float
    """Before each timed part of a round, since the other candidates disturbed caches and clocks."""
    memory_runs: int
    least_blocks: int | None = None
    """After so many blocks, candidates that cannot be chosen any more are not timed further; None:
    all are."""


Mode = Literal["quick", "default", "thorough"]
MODES: dict[Mode, Schedule] = {
    "quick": Schedule(3, 5, 0.08, 0.2, 0.02, 1),
    "default": Schedule(5, 5, 0.1, 0.25, 0.03, 3, least_blocks=3),
    "thorough": Schedule(5, 10, 1.0, 1.0, 0.1, 3),
}
"""`--thorough`: five windows of ten seconds each, as MLPerf and pyperf advise for publication."""


EMULATED = Schedule(1, 3, 0.05, 0.1, 0.01, 1)
"""An emulator's timings mean nothing: enough of them to see that it runs."""

BOARD: dict[Mode, Schedule] = {
    "quick": Schedule(1, 2, 10.0, 1.0, 0.0, 1),
    "default": Schedule(5, 1, 10.0, 1.0, 0.0, 1),
    "thorough": Schedule(5, 2, 10.0, 1.0, 0.0, 1),
}
"""For microcontrollers: windows of ten seconds, as MLPerf Tiny has them, each one sample."""


class Progress(Protocol):
    def __call__(self, done: float, total: float, what: str) -> None: ...


class Settled(Protocol):
    """Says which candidates need not be timed further, by the rounds so far."""

    def __call__(self, rounds: dict[str, Rounds]) -> set[str]: ...


class Outcome(Struct, frozen=True):
    rounds: dict[str, Rounds]
    """Candidate name -> what was measured; a candidate that failed is not there."""
    failures: dict[str, str]
    cut_short: bool
    """Whether the time limit ended it before the schedule did."""


def schedule(device: Device, mode: Mode) -> Schedule:
    """How long candidates are timed on this device."""
    if not device.traits.time_is_real:
        return EMULATED
    return (BOARD if device.traits.holds_one_model else MODES)[mode]


def timeout_s(schedule: Schedule) -> float:
    """Seconds without an answer after which a worker is taken to hang."""
    return 600 + 20 * (schedule.round_s + schedule.warm_s)


def measure(
    device: Device,
    candidates: Sequence[Candidate],
    feeds: Callable[[Candidate], Path],
    schedule: Schedule,
    progress: Progress,
    deadline: float | None = None,
    seed: int = 0,
    settled: Settled | None = None,
) -> Outcome:
    """Time the candidates, interleaved; `feeds` gives the .npz of a candidate's inputs.

    Only rounds that every candidate timed in them finished are kept, so that all are paired.
    `deadline` is a time.monotonic(). A candidate that fails is left out from then on; one that is
    settled after the schedule's least number of blocks keeps what it has.
    """
    shuffled = random.Random(seed)
    samples: dict[str, dict[tuple[int, int], np.ndarray]] = {c.name: {} for c in candidates}
    loads: dict[str, list[float]] = {c.name: [] for c in candidates}
    failures: dict[str, str] = {}
    ended: dict[str, int] = {}
    total = schedule.blocks * schedule.rounds
    cut_short = False
    for block in range(schedule.blocks):
        if settled and schedule.least_blocks and block >= schedule.least_blocks:
            so_far = _paired(samples, loads, failures, ended)
            ended |= {name: block for name in settled(so_far) if name not in ended}
        alive = [c for c in candidates if c.name not in failures and c.name not in ended]
        if cut_short or not alive:
            break
        with contextlib.ExitStack() as stack:
            workers: dict[str, Worker] = {}
            order = shuffled.sample(alive, len(alive))
            for candidate in order:  # all at once: they import side by side
                try:
                    workers[candidate.name] = device.worker(candidate.runtime)
                    stack.callback(workers[candidate.name].close)
                except OnmetalError as error:
                    failures[candidate.name] = str(error)
            for step in (_ready, _start):  # none is opened before all have imported
                for candidate in order:
                    if candidate.name in failures:
                        continue
                    progress(block * schedule.rounds, total, f"starting {candidate.name}")
                    try:
                        worker = workers[candidate.name]
                        loads[candidate.name] += step(worker, candidate, feeds, schedule)
                    except OnmetalError as error:
                        failures[candidate.name] = str(error)
                        del workers[candidate.name]
            for number in range(schedule.rounds):
                if deadline is not None and time.monotonic() > deadline:
                    cut_short = True
                    break
                done = block * schedule.rounds + number
                progress(done, total, f"round {done + 1} of {total}, {len(workers)} candidates")
                for name in shuffled.sample(sorted(workers), len(workers)):
                    try:
                        latencies_ns = _round(workers[name], schedule, done)
                        samples[name][block, number] = latencies_ns
                    except OnmetalError as error:
                        failures[name] = str(error)
                        del workers[name]
    return Outcome(_paired(samples, loads, failures, ended), failures, cut_short)


def _paired(
    samples: dict[str, dict[tuple[int, int], np.ndarray]],
    loads: dict[str, list[float]],
    failures: dict[str, str],
    ended: dict[str, int],
) -> dict[str, Rounds]:
    """The rounds that every candidate timed in them finished. `ended`: name -> the first block in
    which it was timed no more."""
    alive = [name for name in samples if name not in failures]
    started = sorted(set().union(*(samples[name] for name in alive)))
    complete = [
        key
        for key in started
        if all(key in samples[name] or ended.get(name, key[0] + 1) <= key[0] for name in alive)
    ]
    common = {name: [key for key in complete if key in samples[name]] for name in alive}
    return {
        name: Rounds({key: samples[name][key] for key in keys}, tuple(loads[name]))
        for name, keys in common.items()
        if keys
    }


def _ready(
    worker: Worker, candidate: Candidate, feeds: Callable[[Candidate], Path], schedule: Schedule
) -> list[float]:
    """A worker on this machine answers once it has imported its runtime."""
    worker.keep_feeds(feeds(candidate), timeout_s=timeout_s(schedule))
    return []


def _start(
    worker: Worker, candidate: Candidate, feeds: Callable[[Candidate], Path], schedule: Schedule
) -> list[float]:
    """-> how long opening took, in ms."""
    limit = timeout_s(schedule)
    load_ms = worker.open(candidate.artifact, timeout_s=limit)
    worker.warm(schedule.warm_s, 5, timeout_s=limit)
    return [load_ms]


def _round(worker: Worker, schedule: Schedule, number: int) -> np.ndarray:
    return worker.round(
        schedule.round_s,
        1,
        warm_s=schedule.round_warm_s,
        feed=number,
        timeout_s=timeout_s(schedule),
    )


def load_figure(rounds: Rounds) -> Figure:
    low, high = min(rounds.load_ms), max(rounds.load_ms)
    return Figure(
        value=float(np.median(rounds.load_ms)),
        ci95=None,
        samples=len(rounds.load_ms),
        basis="measured",
        how=f"median of {len(rounds.load_ms)} fresh processes, {low:.3g} to {high:.3g} ms; "
        "files in the page cache, the runtime already imported",
    )


def peak_memory(device: Device, candidate: Candidate, feeds: Path, runs: int) -> Figure:
    """In processes of its own, since watching memory would disturb the clock.

    Raises DeviceError, with the reason, where it cannot be measured.
    """
    peaks = []
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        for _ in range(runs):
            workers.append(device.worker(candidate.runtime))
            stack.callback(workers[-1].close)
        for worker in workers:  # the others import meanwhile, which does not count as its memory
            worker.keep_feeds(feeds, timeout_s=600)
            memory = worker.peak_memory(candidate.artifact, timeout_s=3600)
            peaks.append(max(0, memory.peak_bytes - memory.baseline_bytes))
            worker.close()  # one model at a time
    return Figure(
        value=float(np.median(peaks)),
        ci95=None,
        samples=len(peaks),
        basis="emulated" if device.facts().emulated else "measured",
        how="peak resident set of a fresh process while it opens and runs the model, above the "
        "same process with the runtime loaded and a trivial model run",
    )


def profile(device: Device, candidate: Candidate, feeds: Path) -> dict[str, Any]:
    """What really ran, from the runtime's own profile, in a process of its own."""
    with device.worker() as worker:
        worker.keep_feeds(feeds, timeout_s=600)
        return worker.profile(candidate.artifact, timeout_s=3600)


def layers(device: Device, candidate: Candidate, feeds: Path) -> list[dict[str, Any]]:
    """The time of every kernel, from the runtime's own profile, in a process of its own."""
    with device.worker() as worker:
        worker.keep_feeds(feeds, timeout_s=600)
        return worker.layers(candidate.artifact, timeout_s=3600)
