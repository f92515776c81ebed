"""The interface of the devices that candidates are measured on, and of their workers.

A further kind of device needs a module that implements `Device` and its worker, and its address in
`connect`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from msgspec import Struct

from onmetal.profilers.meters import Meter
from onmetal.progress import OnCount
from onmetal.records import Artifact, Candidate, DeviceFacts, Model
from onmetal.samples import Samples


class Traits(Struct, frozen=True):
    """How a device differs from others in what can be measured on it."""

    time_is_real: bool = True
    """Whether its timings are the hardware's; an emulator's mean nothing."""
    counts_instructions: bool = False
    """Whether it counts instructions, and has no time at all."""
    holds_one_model: bool = False
    """Whether it runs the one model that was built into its firmware, and no other."""
    kernels_of_host: bool = True
    """Whether what it computes is what this machine computes, to the bit."""
    worker_start_s: float = 0.4
    """About how long it takes until a fresh worker answers."""


class Fitness(Struct, frozen=True):
    """Whether a device should be measured on now, in sentences."""

    refused: tuple[str, ...] = ()
    """Why it must not be."""
    flagged: tuple[str, ...] = ()
    """Reasons to distrust what is measured on it now."""


class Build(Struct, frozen=True):
    """Whose build of a runtime gave the figures."""

    runner: str
    runtime: str
    runtime_version: str
    origin: str


class Memory(Struct, frozen=True):
    """The memory that a model takes while it is opened and runs."""

    baseline_bytes: int
    """Memory that is in use without the model."""
    peak_bytes: int


class Worker(Protocol):
    """A process or a board that has one artifact open and runs it.

    Every operation raises DeviceError where the device fails or `timeout_s` is over, and
    UnsupportedError where the device does not do it, or the runtime does not run the model.
    """

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def open(self, artifact: Artifact, *, timeout_s: float) -> float:
        """Open the artifact. -> how long that took in ms, the runtime already imported."""

    def keep_feeds(self, path: Path, *, timeout_s: float) -> None:
        """The inputs to be timed with: an .npz of `<number>/<input name>`."""

    def warm(self, seconds: float, least: int, *, timeout_s: float) -> int:
        """Run until the time of an inference is steady. -> how many inferences were run."""

    def round(
        self, seconds: float, least: int, *, warm_s: float, feed: int, timeout_s: float
    ) -> np.ndarray:
        """One timed round on one of the feeds. -> [inferences] int64 nanoseconds."""

    def outputs(
        self,
        samples: Samples,
        model: Model,
        count: int,
        folder: Path,
        *,
        timeout_s: float,
        silence_s: float | None = None,
        progress: OnCount | None = None,
    ) -> None:
        """Run the first `count` samples; every output's rows go to `<number of output>.npy`.

        `silence_s`: how long one inference may take, where the worker reports progress.
        """

    def run(self, feeds: Path, folder: Path, *, timeout_s: float) -> None:
        """Run every feed of an .npz; outputs go to `<feed>-<output>.npy`."""

    def profile(self, artifact: Artifact, *, timeout_s: float) -> dict[str, Any]:
        """The operators that really ran, from the runtime's own profile; opens the artifact."""

    def layers(self, artifact: Artifact, *, timeout_s: float) -> list[dict[str, Any]]:
        """The time of every kernel, from the runtime's own profile."""

    def peak_memory(self, artifact: Artifact, *, timeout_s: float) -> Memory:
        """The model's memory, in a worker that has done nothing else."""

    def pace(self, seconds: float, *, timeout_s: float) -> int:
        """How many inferences last `seconds`, for `burst`."""

    def burst(self, count: int, *, timeout_s: float) -> None:
        """Run `count` inferences one after another, on one of the feeds, for a meter to measure."""

    def kill(self) -> None:
        """End what is going on, from any thread."""

    def close(self) -> None: ...


class Device(Protocol):
    """A machine that runs candidates. The run that connected to it has it until `close`."""

    address: str

    @property
    def traits(self) -> Traits: ...

    @property
    def holds(self) -> str | None:
        """SHA-256 of the one model file that it holds; None: of any model, or it does not say."""

    @property
    def meter(self) -> Meter | None:
        """The power meter that covers it; None: there is none."""

    @property
    def no_meter(self) -> str:
        """Why there is no meter, in words."""

    def facts(self) -> DeviceFacts: ...

    def state(self) -> dict[str, Any]:
        """What may have changed since `facts`: clocks, load, temperatures, battery."""

    def fitness(self) -> Fitness: ...

    def changed(self, state: dict[str, Any]) -> list[str]:
        """Reasons against measuring that hold in a later state and did not in the first."""

    def take(self) -> None:
        """Claim it for this run. Raises DeviceError where another run has it."""

    def pin(self, threads: int) -> None:
        """Run on the fastest cores that can hold as many threads."""

    def worker(self, runtime: str | None = None) -> Worker:
        """A fresh worker. `runtime`: it imports this runtime before it answers anything."""

    def build(self, candidate: Candidate) -> Candidate:
        """The candidate as this device runs it: compiled on it, where its runtime does that."""

    def built(self, runtime: str) -> Build | None:
        """Whose build of the runtime runs there; None: this machine's own."""

    def execute(
        self, program: Path, files: Mapping[str, Path], arguments: Sequence[str], timeout_s: float
    ) -> str:
        """Run a program there, with files of this machine, each as `--NAME=PATH`, and other
        arguments. -> what it prints. Raises DeviceError where it fails, or where none can be run.
        """

    def identity(self, runtime: str) -> list[Any]:
        """The properties of the device that may change outputs: a part of their cache keys."""

    def lacks(self, runtime: str) -> str:
        """Why it does not have a runtime, and what to do, after the words "the runtime NAME"."""

    def close(self, *, keep: bool = False) -> None:
        """`keep`: what was copied to it stays for the next run."""
