"""This machine as a device: its facts, and worker processes on it."""

import contextlib
import functools
import os
import platform
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from onmetal.errors import DeviceError, NeedlessError, OnmetalError
from onmetal.files.cache import Cache
from onmetal.profilers import meters
from onmetal.profilers.devices import Build, Fitness, Traits
from onmetal.profilers.devices.local_worker import LocalWorker, quiet_environment
from onmetal.profilers.meters import Meter, Missing
from onmetal.profilers.output import collect, quoted
from onmetal.records import Candidate, DeviceFacts
from onmetal.runtimes import install, installed

T = TypeVar("T")


class Local:
    address = "local"

    def __init__(self, cache: Cache) -> None:
        self.home = cache.root / "home"
        self._idle: dict[str, list[LocalWorker]] = {}
        weakref.finalize(self, _end, self._idle)

    @property
    def traits(self) -> Traits:
        return Traits(time_is_real=not self.facts().emulated)

    holds: str | None = None

    @functools.cached_property
    def _meter(self) -> Meter | Missing:
        return meters.on_host()

    @property
    def meter(self) -> Meter | None:
        return None if isinstance(self._meter, Missing) else self._meter

    @property
    def no_meter(self) -> str:
        return self._meter.why if isinstance(self._meter, Missing) else ""

    def fitness(self) -> Fitness:
        """No reasons are reported: the user sees to it that this machine is idle."""
        return Fitness()

    def changed(self, state: dict[str, Any]) -> list[str]:
        return []

    def take(self) -> None:
        """Nothing is to be done: this machine is shared."""

    def pin(self, threads: int) -> None:
        """Nothing is to be done: the system's scheduler places threads."""

    def build(self, candidate: Candidate) -> Candidate:
        return candidate

    def built(self, runtime: str) -> Build | None:
        return None

    def execute(
        self, program: Path, files: Mapping[str, Path], arguments: Sequence[str], timeout_s: float
    ) -> str:
        file_options = [f"--{name}={path}" for name, path in files.items()]
        try:
            finished = collect(
                [str(program.absolute()), *file_options, *arguments], timeout_s, program.name
            )
        except OSError as error:
            raise DeviceError(f"{program.name} could not be run: {error}") from None
        text = (finished.out + finished.err).decode(errors="replace")
        if finished.code:
            raise DeviceError(f"{program.name} failed with code {finished.code}: {quoted(text, 2)}")
        return text

    def identity(self, runtime: str) -> list[Any]:
        facts = self.facts()
        return [facts.cpu, facts.flags]

    def lacks(self, runtime: str) -> str:
        return f"is not installed here; `{install(runtime)}`"

    def worker(self, runtime: str | None = None) -> "LocalWorker":
        """A fresh process; all helpers are ended first. `runtime`: it imports this runtime before
        it answers anything."""
        _end(self._idle)
        program = ("-m", "onmetal.profilers.worker", *([runtime] if runtime else []))
        return LocalWorker(quiet_environment(self.home), program)

    def helped(
        self, kind: str | None, work: Callable[[list["LocalWorker"]], T], count: int = 1
    ) -> T:
        """The result of `work` with `count` helpers: processes in which models are read and
        converted, and never timed, so that they are reused for work of the same kind (None: they
        are not).

        Where `work` fails with reused helpers, it is called again with fresh ones, so that no model
        loses a candidate by what another model did to a process.
        """
        idle = self._idle.setdefault(kind, []) if kind else []
        while True:
            served = [idle.pop() for _ in range(min(count, len(idle)))]
            helpers = [*served]
            try:
                while len(helpers) < count:
                    helpers.append(LocalWorker(quiet_environment(self.home)))
                result = work(helpers)
            except BaseException as error:
                for helper in helpers:
                    helper.close()
                ordinary = isinstance(error, OnmetalError) and not isinstance(error, NeedlessError)
                if not served or not ordinary:
                    raise
                _end(self._idle)
            else:
                if kind:
                    idle.extend(helpers)
                else:
                    for helper in helpers:
                        helper.close()
                return result

    def state(self) -> dict[str, Any]:
        """What may have changed since `facts`."""
        return state()

    def close(self, *, keep: bool = False) -> None:
        """The helpers are ended, and the meter is given back where it was asked for."""
        _end(self._idle)
        if "_meter" in vars(self) and self.meter:
            self.meter.close()

    def facts(self) -> DeviceFacts:
        lines = _cpuinfo()
        return DeviceFacts(
            address=self.address,
            cpu=lines.get("model name") or platform.processor() or "unknown",
            arch={"AMD64": "x86_64"}.get(platform.machine(), platform.machine()),
            os=f"{platform.system()} {platform.release()}",
            cores=_cores(),
            memory_bytes=psutil.virtual_memory().total,
            emulated="TCG" in lines.get("model name", ""),  # qemu without hardware behind it
            flags=tuple(sorted(lines.get("flags", "").split())),
            runtimes=installed(),
            state=state(),
        )


def _end(idle: dict[str, list["LocalWorker"]]) -> None:
    for helpers in idle.values():
        while helpers:
            helpers.pop().close()


def _cores() -> int:
    """Physical cores, or as many as this process may run on, where those are fewer."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return min(physical, len(os.sched_getaffinity(0)))
    return physical


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo; empty where there is none."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


def state() -> dict[str, Any]:
    """What may disturb a measurement: governor, clock, load, temperature; absent is not known."""
    fields: dict[str, Any] = {"load_1min": round(os.getloadavg()[0], 2)}
    policy = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    for name, key in (("scaling_governor", "governor"), ("scaling_cur_freq", "clock_khz")):
        with contextlib.suppress(OSError):
            text = (policy / name).read_text().strip()
            fields[key] = int(text) if text.isdigit() else text
    with contextlib.suppress(OSError, ValueError):
        zones = Path("/sys/class/thermal").glob("thermal_zone*/temp")
        temperatures = [int(zone.read_text()) / 1000 for zone in zones]
        if temperatures:
            fields["temperature_c"] = max(temperatures)
    fields["virtual_machine"] = "hypervisor" in _cpuinfo().get("flags", "").split()
    return fields
