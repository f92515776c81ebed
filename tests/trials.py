"""Made-up models, trials and tasks, for what ranks and chooses among them."""

import io
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from onmetal.budget import Budget
from onmetal.deploy import choose
from onmetal.deploy.context import Clock, Run, Standing, Task
from onmetal.deploy.propose.plan import Planned
from onmetal.deploy.request import Request
from onmetal.files.cache import Cache
from onmetal.profilers import intervals
from onmetal.profilers.devices.local import Local
from onmetal.progress import Progress
from onmetal.records import Accuracy, Candidate, DeviceFacts, Figure, Model, Rounds, Trial
from onmetal.runtimes import fit

TARGET = fit.load_target("x86-64")
PATH = Path("net.onnx")
MODEL = Model(PATH, PATH, "", "onnx", "", 1000, (), (), 0, 500, {}, 1)


def rounds(ms: float, seed: int = 0) -> Rounds:
    """Rounds around a median, with the noise of the seed; three blocks of four."""
    random = np.random.default_rng(seed)
    return Rounds(
        {
            (block, number): (ms * 1e6 * random.normal(1, 0.003, 20)).astype(np.int64)
            for block in range(3)
            for number in range(4)
        },
        (1.0, 1.0, 1.0),
    )


def figure(value: float) -> Figure:
    return Figure(value, None, 1, "measured", "read")


def known(**figures: Figure | None) -> dict[str, Figure]:
    return {key: measured for key, measured in figures.items() if measured}


def trial(
    name: str,
    ms: float | None = None,
    *,
    size: int = 1000,
    drop: float | None = None,
    interval: tuple[float, float] | None = None,
    memory: float | None = None,
    seed: int = 0,
    model: str = "net",
) -> Trial:
    recipe, _, runtime = name.rpartition("/")[2].partition("@")
    taken = None if ms is None else rounds(ms, seed)
    return Trial(
        name,
        recipe,
        runtime,
        model,
        candidate=Candidate(name, recipe, runtime, "1", MODEL, (), "", size, {}),
        accuracy=None if drop is None else Accuracy("top1", 0.9 - drop, drop, interval, 100),
        rounds=taken,
        latency_ms=intervals.latency(taken) if taken else None,
        figures=known(
            throughput_per_s=intervals.throughput(taken, 1) if taken else None,
            peak_memory_bytes=None if memory is None else figure(memory),
        ),
    )


def facts(*flags: str) -> DeviceFacts:
    return DeviceFacts("local", "a cpu", "x86_64", "an os", 2, 2**30, False, flags, {})


def task(cache: Cache, minimize: str = "latency", *, timed: bool = True) -> Task:
    """A task whose trials are made up."""
    local = Local(cache)
    request = Request((Path("net.onnx"),), "x86-64", minimize=minimize)
    return Task(
        request,
        TARGET,
        local if timed else None,
        local,
        facts(),
        [MODEL],
        1,
        [],
        {},
        {},
        {},
        False,
        None,
        None,
        (),
    )


def chosen_of(
    cache: Cache,
    *trials: Trial,
    minimize: str = "latency",
    reference_only: tuple[str, ...] = (),
    budget: Budget | None = None,
) -> tuple[str | None, dict[str, Trial]]:
    """The choice; the time limit has ended, so that nothing is measured again."""
    left_out = [
        Planned(name, MODEL, TARGET.recipe("fp32"), name.partition("@")[2], None, True)
        for name in reference_only
    ]
    of = replace(task(cache, minimize), planned=left_out)
    run = Run(
        of,
        cache,
        Path(),
        Clock(0.0),
        Progress(1, io.StringIO()),
        lambda candidate: Path(),
    )
    choice = choose.choose(run, Standing(trials), budget or Budget(), "net")
    found, pick = choice.standing.trials, choice.chosen
    assert [entry.name for entry in found if entry.status == "chosen"] == (
        [pick.name] if pick else []
    )
    return pick.name if pick else None, {entry.name: entry for entry in found}
