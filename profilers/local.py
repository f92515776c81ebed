"""This machine as a device: its facts, and worker processes on it."""

import contextlib
import json
import os
import platform
import selectors
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from onmetal.cache import Cache
from onmetal.errors import BY_NAME, DeviceError
from onmetal.records import DeviceFacts
from onmetal.targets import RUNTIMES, packages


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

    def worker(self) -> "Worker":
        return Worker(quiet_environment(self.home))

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
        for package in packages(name)[::-1]:
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


class Worker:
    """One child process that runs models: requests and answers are lines of JSON.

    What it or a runtime prints goes to a log of its own, quoted where the process dies.
    """

    def __init__(
        self,
        environment: dict[str, str],
        program: Sequence[str] = ("-m", "onmetal.profilers.worker"),
    ) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
        # A session of its own: ^C at the terminal is for the parent, which ends its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-P", *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment | {"ONMETAL_PARENT": str(os.getpid())},
            start_new_session=True,
        )
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)
        self._buffer = b""

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(
        self,
        op: str,
        *,
        timeout_s: float,
        progress: Callable[[int, int], None] | None = None,
        **arguments: Any,
    ) -> Any:
        """Ask for one operation and wait for its answer.

        Raises the error that the operation raised; DeviceError where the process died or took
        longer than `timeout_s`, after which it is gone.
        """
        if self._log.closed:
            raise DeviceError(f"the worker was ended before it was asked for {op!r}")
        deadline = time.monotonic() + timeout_s
        self._send(json.dumps({"op": op, "arguments": arguments}).encode() + b"\n", deadline, op)
        while True:
            answer = json.loads(self._line(deadline, op))
            if "progress" in answer:
                if progress:
                    progress(*answer["progress"])
                continue
            if "error" in answer:
                raise BY_NAME.get(answer["error"], DeviceError)(answer["message"])
            return answer["result"]

    def _send(self, request: bytes, deadline: float, op: str) -> None:
        """In pieces: a pipe holds 64 KiB, and a worker that hangs does not empty it."""
        assert self._process.stdin
        descriptor = self._process.stdin.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_WRITE)
            while request:
                self._wait(selector, deadline, op)
                try:
                    request = request[os.write(descriptor, request) :]
                except BrokenPipeError:
                    raise self._death() from None

    def _wait(self, selector: selectors.BaseSelector, deadline: float, op: str) -> None:
        if not selector.select(max(0.0, deadline - time.monotonic())):
            self.close()
            raise DeviceError(f"the worker did not finish {op!r} in time and was ended")

    def _line(self, deadline: float, op: str) -> bytes:
        assert self._process.stdout
        descriptor = self._process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                self._wait(selector, deadline, op)
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    raise self._death()
                self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _death(self) -> DeviceError:
        code = self._process.wait(10)
        why = f"ended with code {code}"
        if code < 0:
            why = f"was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                why += " (out of memory?)"
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 2000))
        said = self._log.read().decode(errors="replace").strip().splitlines()[-3:]
        return DeviceError(f"the worker process {why}" + (f": {' / '.join(said)}" if said else ""))

    def kill(self) -> None:
        """End the process, from any thread: who waits for its answer gets the error."""
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._log.close()
