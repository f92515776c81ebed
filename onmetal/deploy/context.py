"""What a deployment knows while it runs: what was settled before it began, and where it stands."""

import time

from msgspec import Struct

from onmetal.calibration.metric_table import Metric
from onmetal.deploy.propose.plan import Planned
from onmetal.deploy.request import Request
from onmetal.files import cache as caches
from onmetal.profilers.devices import Device
from onmetal.profilers.devices.local import Local
from onmetal.records import Candidate, DeviceFacts, Model
from onmetal.runtimes import shipped
from onmetal.samples import Samples
from onmetal.targets import Target


class Clock:
    """The time limit, shared out: judging may take 60 % of it, measuring goes on until 85 %."""

    def __init__(self, limit_s: float | None) -> None:
        self.began, self.limit_s = time.monotonic(), limit_s

    def deadline(self, share: float) -> float | None:
        return None if self.limit_s is None else self.began + share * self.limit_s

    def left_s(self, share: float) -> float:
        end = self.deadline(share)
        return 86400.0 if end is None else end - time.monotonic()


class Task(Struct, frozen=True):
    """What is judged, on what: settled before anything long begins."""

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
    """Model path -> the samples that it is calibrated with; empty where nothing is."""
    labelled: bool
    metric: Metric | None
    output: str | None
    warnings: list[str]

    def holds(self, candidate: Candidate) -> bool:
        """Whether the device can run the candidate: a board only what was flashed, if it says."""
        return self.device is None or self.device.holds in (None, digest(candidate))

    @property
    def elsewhere(self) -> Device | None:
        """The device, where its kernels are not this machine's."""
        return self.device if self.device and not self.device.traits.kernels_of_host else None

    @property
    def ships_on(self) -> Device:
        """Where the bundle's golden outputs come from: the device, where it can run any candidate
        and its kernels are its own; else this machine."""
        there = self.elsewhere
        return there if there and not there.traits.holds_one_model else self.host

    @property
    def one_model(self) -> bool:
        """Whether the device holds one model in its firmware, and runs no other."""
        return self.device is not None and self.device.traits.holds_one_model

    @property
    def counted(self) -> bool:
        """Whether the device counts instructions, and has no time."""
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
        return next((found.count for found in self.calibration.values()), 0)


def digest(candidate: Candidate) -> str:
    """SHA-256 of the file that a board is flashed with."""
    return caches.sha256(*shipped(candidate.runtime, candidate.files))
