"""The state of a deployment: what was settled before it began, and what is known so far.

Stages are functions: they take a Run and a Standing and return the next Standing.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.calibration.metric_table import Metric
from onmetal.deploy.propose.plan import Planned
from onmetal.deploy.request import Request
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices import Device
from onmetal.profilers.devices.local import Local
from onmetal.progress import Progress
from onmetal.records import Candidate, DeviceFacts, Model, Trial
from onmetal.runtimes import shipped
from onmetal.samples import Samples
from onmetal.targets import Target


class Clock:
    """The time limit of a run; stages ask for the time left of their share of it (judging may take
    60 % of it, measuring goes on until 85 %)."""

    def __init__(self, limit_s: float | None) -> None:
        self.began, self.limit_s = time.monotonic(), limit_s

    def deadline(self, share: float) -> float | None:
        return None if self.limit_s is None else self.began + share * self.limit_s

    def left_s(self, share: float) -> float:
        end = self.deadline(share)
        return 86400.0 if end is None else end - time.monotonic()


class Task(Struct, frozen=True):
    """What is judged and on which device: settled before any long step begins."""

    request: Request
    target: Target
    device: Device | None
    """None: nothing is timed; accuracy is judged on the host all the same."""
    host: Local
    facts: DeviceFacts
    """Of the device; without one, of the host."""
    models: list[Model]
    threads: int
    planned: list[Planned]
    data: dict[str, Samples]
    """Model path -> the samples that it is judged and timed with."""
    calibration: dict[str, Samples]
    """Model path -> the samples that it is calibrated with; empty where nothing is calibrated."""
    training: dict[str, Samples]
    """Model path -> the samples that it is trained with; empty until a recipe asks for it."""
    labelled: bool
    metric: Metric | None
    output: str | None
    warnings: tuple[str, ...]
    metrics: dict[str, Metric] = {}
    """Model path -> the metric as it reads this model's outputs."""

    def holds(self, candidate: Candidate) -> bool:
        """Whether the device can run the candidate. A board can run only the model that was
        flashed, where it reports which one that is."""
        return self.device is None or self.device.holds in (None, digest(candidate))

    @property
    def elsewhere(self) -> Device | None:
        """The device, where its kernels are not this machine's; else None."""
        return self.device if self.device and not self.device.traits.kernels_of_host else None

    @property
    def ships_on(self) -> Device:
        """The device that computes the bundle's golden outputs: the target device, where it can run
        any candidate and has kernels of its own; else this machine."""
        remote = self.elsewhere
        return remote if remote and not remote.traits.holds_one_model else self.host

    @property
    def one_model(self) -> bool:
        """Whether the device holds one model in its firmware, and runs no other."""
        return self.device is not None and self.device.traits.holds_one_model

    @property
    def counted(self) -> bool:
        """Whether the device counts instructions instead of measuring time."""
        return self.device is not None and self.device.traits.counts_instructions

    @property
    def timed(self) -> bool:
        """Whether there is a device whose timings decide."""
        return self.device is not None and self.device.traits.time_is_real

    @property
    def interleaved(self) -> bool:
        """Whether there is a device on which candidates are timed in turn."""
        return self.timed and not self.one_model

    @property
    def emulated(self) -> bool:
        """Whether there is a device whose timings mean nothing."""
        return self.device is not None and not self.device.traits.time_is_real

    @property
    def calibration_samples(self) -> int:
        return next((samples.count for samples in self.calibration.values()), 0)


def digest(candidate: Candidate) -> str:
    """SHA-256 of the file that a board is flashed with."""
    return caches.sha256(*shipped(candidate.runtime, candidate.files))


Feeds = Callable[[Candidate], Path]
"""The .npz of inputs that a candidate is timed with."""


class Run(Struct, frozen=True):
    """A running deployment: what every stage gets besides the trials."""

    task: Task
    cache: Cache
    scratch: Path
    """A folder for temporary files."""
    clock: Clock
    progress: Progress
    feeds: Feeds


class Screened(Struct, frozen=True):
    """The results of screening one candidate: a short timing and the fidelity on a few samples."""

    rounds_ms: list[float]
    """The median of each round; empty: not timed."""
    sqnr_db: float | None
    """None: not compared."""

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.rounds_ms or [np.inf]))


class Standing(Struct, frozen=True):
    """What is known of the candidates so far."""

    trials: tuple[Trial, ...] = ()
    """In the order of the report."""
    screened: dict[str, Screened] = {}
    """By the trial's name, of those that were screened."""
    warnings: tuple[str, ...] = ()

    def having(self, trials: Sequence[Trial]) -> "Standing":
        return replace(self, trials=tuple(trials))

    def warned(self, warnings: Sequence[str]) -> "Standing":
        return replace(self, warnings=(*self.warnings, *warnings))
