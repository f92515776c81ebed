"""This machine as a device: its facts, and worker processes on it."""

import contextlib
import json
import os
import platform
import site
import sys
import weakref
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import psutil

from onmetal import limits
from onmetal.errors import DeviceError, NeedlessError, OnmetalError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.line import Line
from onmetal.progress import OnCount
from onmetal.records import DeviceFacts
from onmetal.runtimes import RUNTIMES, spec

T = TypeVar("T")

UNWATCHED = frozenset({"round", "warm", "let_go"})
"""Operations that are timed, or take no memory."""


def quiet_environment(home: Path) -> dict[str, str]:
    """The environment of a process that imports a runtime: without telemetry, and with a home
    folder of its own, so that nothing it writes lands in the user's."""
    kept = dict(os.environ)
    # Found from HOME otherwise: an installation by `pip install --user` must stay importable.
    kept.setdefault("PYTHONUSERBASE", site.getuserbase())
    return kept | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }


class Local:
    address = "local"

    def __init__(self, cache: Cache) -> None:
        self.home = cache.root / "home"
        self._idle: dict[str, list[Worker]] = {}
        weakref.finalize(self, _end, self._idle)

    def worker(self, runtime: str | None = None) -> "Worker":
        """A fresh process, beside which none of the helpers is left. `runtime`: it imports this one
        before it answers anything."""
        _end(self._idle)
        program = ("-m", "onmetal.profilers.worker", *([runtime] if runtime else []))
        return Worker(quiet_environment(self.home), program)

    def helped(self, kind: str | None, work: Callable[[list["Worker"]], T], count: int = 1) -> T:
        """What `work` gives with `count` helpers: processes in which models are read and converted,
        and never timed, so that they serve again for work of the same kind (None: they do not).

        Where it fails with helpers that have served before, it is done again with fresh ones: what
        one model did to a process costs no other model its candidate.
        """
        idle = self._idle.setdefault(kind, []) if kind else []
        while True:
            served = [idle.pop() for _ in range(min(count, len(idle)))]
            helpers = [*served]
            try:
                while len(helpers) < count:
                    helpers.append(Worker(quiet_environment(self.home)))
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
        """The helpers are ended; a remote device's folder is removed so."""
        _end(self._idle)

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
            runtimes=_runtimes(),
            state=state(),
        )


def _end(idle: dict[str, list["Worker"]]) -> None:
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
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    return found


def _runtimes() -> dict[str, str]:
    found = {}
    for name in RUNTIMES:
        for package in spec(name).packages[::-1]:
            with contextlib.suppress(PackageNotFoundError):
                found[name] = version(package)
    return found


def state() -> dict[str, Any]:
    """What may disturb a measurement: governor, clock, load, temperature; absent is not known."""
    found: dict[str, Any] = {"load_1min": round(os.getloadavg()[0], 2)}
    policy = Path("/sys/devices/system/cpu/cpu0/cpufreq")
    for name, key in (("scaling_governor", "governor"), ("scaling_cur_freq", "clock_khz")):
        with contextlib.suppress(OSError):
            text = (policy / name).read_text().strip()
            found[key] = int(text) if text.isdigit() else text
    with contextlib.suppress(OSError, ValueError):
        zones = Path("/sys/class/thermal").glob("thermal_zone*/temp")
        temperatures = [int(zone.read_text()) / 1000 for zone in zones]
        if temperatures:
            found["temperature_c"] = max(temperatures)
    found["virtual_machine"] = "hypervisor" in _cpuinfo().get("flags", "").split()
    return found


class Worker(Line):
    """One child process that runs models: requests and answers are lines of JSON."""

    def __init__(
        self,
        environment: dict[str, str],
        program: Sequence[str] = ("-m", "onmetal.profilers.worker"),
    ) -> None:
        argv = [sys.executable, "-P", *program]
        super().__init__(
            argv, environment | {"ONMETAL_PARENT": str(os.getpid())}, "the worker process"
        )

    def __enter__(self) -> "Worker":
        return self

    def call(
        self,
        op: str,
        *,
        timeout_s: float,
        progress: OnCount | None = None,
        memory_bytes: int | None = None,
        cpu_s: float | None = None,
        silence_s: float | None = None,
        **arguments: Any,
    ) -> Any:
        """Ask for one operation of profilers/worker.py and wait for its answer; errors as `ask`.

        `silence_s`: as `ask` has it. Where the process takes more than `memory_bytes` (None: than
        is free), or `cpu_s` of processor time, it is ended, which is a DeviceError; not while it
        is timed.
        """
        request = json.dumps({"op": op, "arguments": arguments}).encode()
        if op in UNWATCHED:
            return self.ask(
                request, repr(op), timeout_s=timeout_s, progress=progress, silence_s=silence_s
            )
        with limits.watched(self, memory_bytes, cpu_s) as watch:
            try:
                return self.ask(
                    request, repr(op), timeout_s=timeout_s, progress=progress, silence_s=silence_s
                )
            except DeviceError:
                if not watch.exceeded:
                    raise
        free = "" if memory_bytes or "memory" not in watch.exceeded else ", all that is free here,"
        raise DeviceError(f"it took more than {watch.exceeded}{free} and was ended")
