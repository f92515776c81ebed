"""This machine as a device: its facts, and worker processes on it."""

import base64
import contextlib
import functools
import json
import os
import platform
import site
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from onmetal import limits
from onmetal.errors import DeviceError, NeedlessError, OnmetalError
from onmetal.files.cache import Cache
from onmetal.profilers import meters
from onmetal.profilers.devices import Build, Fitness, Memory, Traits
from onmetal.profilers.devices.line import Line
from onmetal.profilers.meters import Meter
from onmetal.profilers.operation import Operation
from onmetal.profilers.output import collect, quoted
from onmetal.progress import OnCount
from onmetal.records import Artifact, Candidate, DeviceFacts, Model, plain
from onmetal.runtimes import RUNTIMES, install, installed, spec
from onmetal.samples import Samples

R = TypeVar("R")
T = TypeVar("T")

UNWATCHED = frozenset({"round", "warm", "let_go", "pace", "burst"})
"""Operations that are timed, or take no memory."""


def quiet_environment(home: Path) -> dict[str, str]:
    """The environment of a process that imports a runtime: without telemetry, and with a home
    folder of its own, so that nothing it writes lands in the user's."""
    for name in RUNTIMES:
        for path, content in spec(name).home_files.items():
            (home / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            (home / path).write_text(content)
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
        self._idle: dict[str, list[LocalWorker]] = {}
        weakref.finalize(self, _end, self._idle)

    @property
    def traits(self) -> Traits:
        return Traits(time_is_real=not self.facts().emulated)

    holds: str | None = None

    @property
    def meter(self) -> Meter | None:
        return self._meters[0]

    @property
    def no_meter(self) -> str:
        return self._meters[1]

    @functools.cached_property
    def _meters(self) -> tuple[Meter | None, str]:
        return meters.on_host()

    def fitness(self) -> Fitness:
        """Whoever measures on this machine sees to it that it is idle."""
        return Fitness()

    def changed(self, state: dict[str, Any]) -> list[str]:
        return []

    def take(self) -> None:
        """It is shared."""

    def pin(self, threads: int) -> None:
        """The system's scheduler places threads."""

    def build(self, candidate: Candidate) -> Candidate:
        return candidate

    def built(self, runtime: str) -> Build | None:
        return None

    def execute(
        self, program: Path, files: Mapping[str, Path], arguments: Sequence[str], timeout_s: float
    ) -> str:
        given = [f"--{name}={path}" for name, path in files.items()]
        try:
            done = collect([str(program.absolute()), *given, *arguments], timeout_s, program.name)
        except OSError as error:
            raise DeviceError(f"{program.name} could not be run: {error}") from None
        text = (done.out + done.err).decode(errors="replace")
        if done.code:
            raise DeviceError(f"{program.name} failed with code {done.code}: {quoted(text, 2)}")
        return text

    def identity(self, runtime: str) -> list[Any]:
        facts = self.facts()
        return [facts.cpu, facts.flags]

    def lacks(self, runtime: str) -> str:
        return f"is not installed here; `{install(runtime)}`"

    def worker(self, runtime: str | None = None) -> "LocalWorker":
        """A fresh process, beside which none of the helpers is left. `runtime`: it imports this one
        before it answers anything."""
        _end(self._idle)
        program = ("-m", "onmetal.profilers.worker", *([runtime] if runtime else []))
        return LocalWorker(quiet_environment(self.home), program)

    def helped(
        self, kind: str | None, work: Callable[[list["LocalWorker"]], T], count: int = 1
    ) -> T:
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
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
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


class LocalWorker(Line):
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

    def __enter__(self) -> "LocalWorker":
        return self

    # --- what every device does

    def open(
        self,
        artifact: Artifact,
        *,
        timeout_s: float,
        memory_bytes: int | None = None,
        cpu_s: float | None = None,
    ) -> float:
        opened = self.call(
            "open",
            timeout_s=timeout_s,
            memory_bytes=memory_bytes,
            cpu_s=cpu_s,
            **_given(artifact),
        )
        return float(opened["load_ms"])

    def keep_feeds(self, path: Path, *, timeout_s: float) -> None:
        self.call("feeds", timeout_s=timeout_s, path=str(path))

    def warm(self, seconds: float, least: int, *, timeout_s: float) -> int:
        count: int = self.call("warm", timeout_s=timeout_s, seconds=seconds, least=least)
        return count

    def round(
        self, seconds: float, least: int, *, warm_s: float, feed: int, timeout_s: float
    ) -> np.ndarray:
        text = self.call(
            "round",
            timeout_s=timeout_s,
            seconds=seconds,
            least=least,
            warm_seconds=warm_s,
            feed=feed,
        )
        return np.frombuffer(base64.b64decode(text), np.int64)

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
        self.call(
            "outputs",
            timeout_s=timeout_s,
            silence_s=silence_s,
            progress=progress,
            samples=plain(samples),
            model=plain(model),
            count=count,
            folder=str(folder),
        )

    def run(self, feeds: Path, folder: Path, *, timeout_s: float) -> None:
        self.call("run", timeout_s=timeout_s, path=str(feeds), folder=str(folder))

    def profile(self, artifact: Artifact, *, timeout_s: float) -> dict[str, Any]:
        shares: dict[str, Any] = self.call("profile", timeout_s=timeout_s, **_given(artifact))
        return shares

    def layers(self, artifact: Artifact, *, timeout_s: float) -> list[dict[str, Any]]:
        kernels: list[dict[str, Any]] = self.call("layers", timeout_s=timeout_s, **_given(artifact))
        return kernels

    def peak_memory(self, artifact: Artifact, *, timeout_s: float) -> Memory:
        bytes_ = self.call("peak_memory", timeout_s=timeout_s, **_given(artifact))
        return Memory(bytes_["baseline"], bytes_["peak"])

    def pace(self, seconds: float, *, timeout_s: float) -> int:
        count: int = self.call("pace", timeout_s=timeout_s, seconds=seconds)
        return count

    def burst(self, count: int, *, timeout_s: float) -> None:
        self.call("burst", timeout_s=timeout_s, count=count)

    # --- what only this machine does

    def arena(self, artifact: Artifact, *, timeout_s: float) -> dict[str, Any]:
        """What an inference takes of the arena of a runtime in firmware, in bytes."""
        used: dict[str, Any] = self.call("arena", timeout_s=timeout_s, **_given(artifact))
        return used

    def open_reference(self, model: Model, *, timeout_s: float) -> None:
        """Open the model by what defines its format; `outputs` and `run` are then its own."""
        self.call(
            "open_reference",
            timeout_s=timeout_s,
            form=model.format,
            path=str(model.prepared),
            inputs=[tensor.name for tensor in model.inputs],
            outputs=[tensor.name for tensor in model.outputs],
        )

    def let_go(self) -> None:
        """Close what is open: a process that serves again does not hold the memory of it."""
        self.call("let_go", timeout_s=600)

    def restrict_reading(self, size_bytes: int) -> None:
        """Limit the process, from now on, to what reading a model file of this size takes."""
        self.call("restrict_reading", timeout_s=600, size_bytes=size_bytes)

    def do(
        self,
        operation: Operation[R],
        *,
        timeout_s: float,
        progress: OnCount | None = None,
        memory_bytes: int | None = None,
        cpu_s: float | None = None,
    ) -> R:
        """Make a call there, and give its result; limits as those of `call`."""
        value = self.call(
            "call",
            timeout_s=timeout_s,
            progress=progress,
            memory_bytes=memory_bytes,
            cpu_s=cpu_s,
            **operation.request(),
        )
        return operation.result(value)

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
        """Ask for one operation of profilers.worker and wait for its answer; errors as `ask`.

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


def _given(artifact: Artifact) -> dict[str, Any]:
    """What a worker process needs to open an artifact, as JSON values."""
    return dict(plain(artifact))
