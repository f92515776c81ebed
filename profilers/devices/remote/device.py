"""A device at the other end of adb or ssh, asked as this machine is: its facts, its state, and
workers that open, time and run models on it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from onmetal.profilers.devices import Build, Fitness, Traits
from onmetal.profilers.devices.remote import native_runner
from onmetal.profilers.devices.remote.facts import affinity, fitness
from onmetal.profilers.devices.remote.facts.script import STATE_SCRIPT
from onmetal.profilers.devices.remote.facts.state import parse_state
from onmetal.profilers.devices.remote.folder import shell
from onmetal.profilers.devices.remote.reached import Reached
from onmetal.profilers.devices.remote.worker import RemoteWorker
from onmetal.profilers.meters import Meter
from onmetal.records import Candidate, DeviceFacts, plain
from onmetal.runtimes import spec

NEEDED_BYTES = 300_000_000
"""Free storage that is needed: for the runner with its libraries, artifacts, and samples."""
WORKER_START_S = 2.0


class Remote(Reached):
    """One device; its folder there is made at the first use and removed by `close`."""

    def take(self) -> None:
        """Make this run's folder there now. Raises DeviceError where another run has the device."""
        assert self.folder

    def facts(self) -> DeviceFacts:
        known = self.remote_facts
        more = {
            "model": known.model,
            "soc": known.soc,
            "abis": list(known.abis),
            "clusters": plain(known.clusters),
            "virtual": known.virtual,
            "emulated_why": known.emulated_why,
            "python": known.python,
            "meters": list(known.meters),
            "pinned_to": list(self.pinned),
        }
        return DeviceFacts(
            address=self.address,
            cpu=known.cpu,
            arch=known.arch or "unknown",
            os=known.os or "unknown",
            cores=known.cores or 1,
            memory_bytes=known.memory_bytes or 0,
            emulated=known.emulated,
            flags=known.flags,
            runtimes={name: self._version(name) for name in self._runnable()},
            state=known.state,
            more=more,
        )

    def pin(self, threads: int) -> None:
        """Run on the fastest cluster of cores that has as many cores as there are threads."""
        self.pinned = affinity.pin(self.remote_facts, threads)

    @property
    def traits(self) -> Traits:
        return Traits(
            time_is_real=not self.remote_facts.emulated,
            kernels_of_host=False,
            worker_start_s=WORKER_START_S,
        )

    holds: str | None = None
    meter: Meter | None = None
    no_meter = "no meter: onmetal has none for this device"

    def fitness(self) -> Fitness:
        refused, flagged = fitness.unfit(self.remote_facts, NEEDED_BYTES)
        return Fitness(tuple(refused), tuple(flagged))

    def build(self, candidate: Candidate) -> Candidate:
        return candidate

    def built(self, runtime: str) -> Build | None:
        runner = self.runner(runtime)
        origin = "the device's own Python"
        if runner.kind == "native":
            package = spec(runtime).packages[0]
            origin = (
                f"PyPI's {package} for AArch64, under onmetal's native runner with its own libc"
            )
        return Build(runner.kind, runtime, runner.version, origin)

    def execute(
        self, program: Path, files: Mapping[str, Path], arguments: Sequence[str], timeout_s: float
    ) -> str:
        device_paths = self.folder.put([program, *files.values()])
        file_options = [
            f"--{name}={path}" for name, path in zip(files, device_paths[1:], strict=True)
        ]
        argv = [device_paths[0], *file_options, *arguments]
        return shell(self.transport, " ".join(map(shlex.quote, argv)) + " 2>&1", timeout_s)

    def identity(self, runtime: str) -> list[Any]:
        facts, runner = self.facts(), self.runner(runtime)
        details = [facts.os, facts.more["model"], facts.more["soc"], runner.kind, runner.version]
        return [facts.cpu, facts.flags, *details]

    def lacks(self, runtime: str) -> str:
        package = spec(runtime).packages[0]
        if self.facts().arch != native_runner.ARCH:
            return f"is not in the Python of {self.address}; `pip install {package}` there"
        return f"is not installed here, so no runner has it; `pip install {package}`"

    def changed(self, state: dict[str, Any]) -> list[str]:
        """Reasons against measuring that hold in a later state and did not in the first, such as
        heat. The load is left out, since by then this run causes it."""
        later = {name: value for name, value in state.items() if name != "load_1min"}
        first = self.fitness()
        before = {_kind(sentence) for sentence in (*first.refused, *first.flagged)}
        after = fitness.unfit(replace(self.remote_facts, state=later), NEEDED_BYTES)
        return [sentence for part in after for sentence in part if _kind(sentence) not in before]

    def state(self) -> dict[str, Any]:
        """What may have changed since `facts`: clocks, load, temperatures, battery."""
        script = self._arguments + STATE_SCRIPT
        return parse_state(shell(self.transport, script))

    def worker(self, runtime: str | None = None) -> "RemoteWorker":
        return RemoteWorker(self)


def _kind(sentence: str) -> str:
    """A sentence without its figures."""
    return re.sub(r"[\d.]+", "", sentence)
