"""A device at the other end of adb or ssh, asked as this machine is: its facts, its state, and
workers that open, time and run models on it.

What a worker is asked for names files of this machine; they are pushed, by digest, and what the
device writes is pulled. The programs that do the work there are native/runner.c for devices that
have nothing, and python_runner.py where the device's own Python has the runtime: what its run.py
will use is what is measured.
"""

import contextlib
import hashlib
import re
import shlex
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.errors import DeviceError, UnsupportedError
from onmetal.files.cache import Cache
from onmetal.profilers import memory
from onmetal.profilers.devices import Build, Fitness, Memory, Traits
from onmetal.profilers.devices.answers import (
    Hello,
    Opened,
    Ports,
    Profiled,
    Warmed,
    latencies,
)
from onmetal.profilers.devices.answers import (
    Memory as MemoryAnswer,
)
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import facts as device_facts
from onmetal.profilers.devices.remote import native_runner
from onmetal.profilers.devices.remote.folder import Folder, RemoteLine, Transport, shell
from onmetal.profilers.meters import Meter
from onmetal.profilers.operation import asked
from onmetal.profilers.tensor_bytes import (
    Edges,
    Rows,
    edges,
    order,
    pack,
    read_feeds,
    runtime_options,
    unpack,
)
from onmetal.progress import OnCount
from onmetal.records import Artifact, Candidate, DeviceFacts, Model, plain
from onmetal.runtimes import on_device, spec
from onmetal.runtimes.operations import shares_of_text
from onmetal.samples import Samples

START_S = 120.0
CHUNK_BYTES = 16_000_000
"""Of samples that lie on the device at a time."""
DATA_BYTES = 100_000_000
"""Evaluation data up to this size stay on the device while the run lasts, as other files do."""
NEEDED_BYTES = 300_000_000
"""Of free space: the runner with its libraries, artifacts, and samples."""
PROFILED_S = 0.5
PACED_S = 0.3
WORKER_START_S = 2.0
PROFILE_BYTES = 64 << 20
"""Most of a profile: ONNX Runtime's has about 400 bytes for each of an operator's runs."""
SPARE_BYTES = 1 << 20
"""An output that changes its shape may be larger than it was; that is said of it, then."""


class Runner(Struct, frozen=True):
    """A program for the device, and what it opens a runtime's models with."""

    kind: str
    """native or python"""
    version: str
    """Of the runtime."""
    files: dict[str, Path]
    """Name in the folder that it is started in -> the file here."""
    command: str
    library: str


class Remote:
    """One device; its folder there is made at the first use and removed by `close`."""

    def __init__(self, transport: Transport, cache: Cache) -> None:
        self.transport, self.cache = transport, cache
        self.address = transport.address
        self._scratch = tempfile.TemporaryDirectory(prefix="onmetal-")
        self.scratch = Path(self._scratch.name)
        self.pinned: tuple[int, ...] = ()
        self._folder: Folder | None = None
        self._programs: dict[str, str] = {}
        self._runners: dict[str, Runner] = {}
        self._arguments = (
            f'set -- "{transport.place.rpartition("/")[0]}" {shlex.quote(transport.python)}\n'
        )
        try:
            text = shell(transport, self._arguments + device_facts.SCRIPT)
            self.found = device_facts.parse(text)
        except BaseException:
            self.close()
            raise

    def take(self) -> None:
        """Make this run's folder there now. Raises DeviceError where another run has the device."""
        assert self.folder

    @property
    def folder(self) -> Folder:
        if self._folder is None:
            self._folder = Folder(self.transport)
        return self._folder

    def facts(self) -> DeviceFacts:
        found = self.found
        more = {
            "model": found.model,
            "soc": found.soc,
            "abis": list(found.abis),
            "clusters": plain(found.clusters),
            "virtual": found.virtual,
            "emulated_why": found.emulated_why,
            "python": found.python,
            "meters": list(found.meters),
            "pinned_to": list(self.pinned),
        }
        return DeviceFacts(
            address=self.address,
            cpu=found.cpu,
            arch=found.arch or "unknown",
            os=found.os or "unknown",
            cores=found.cores or 1,
            memory_bytes=found.memory_bytes or 0,
            emulated=found.emulated,
            flags=found.flags,
            runtimes={name: self._version(name) for name in self._runnable()},
            state=found.state,
            more=more,
        )

    def pin(self, threads: int) -> None:
        """Run on the fastest cluster of cores that has as many."""
        self.pinned = device_facts.pin(self.found, threads)

    @property
    def traits(self) -> Traits:
        return Traits(
            time_is_real=not self.found.emulated,
            kernels_of_host=False,
            worker_start_s=WORKER_START_S,
        )

    holds: str | None = None
    meter: Meter | None = None
    no_meter = "no meter: onmetal has none for this device"

    def fitness(self) -> Fitness:
        refused, flagged = device_facts.unfit(self.found, NEEDED_BYTES)
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
        there = self.folder.put([program, *files.values()])
        given = [f"--{name}={path}" for name, path in zip(files, there[1:], strict=True)]
        argv = [there[0], *given, *arguments]
        return shell(self.transport, " ".join(map(shlex.quote, argv)) + " 2>&1", timeout_s)

    def identity(self, runtime: str) -> list[Any]:
        facts, runner = self.facts(), self.runner(runtime)
        where = [facts.os, facts.more["model"], facts.more["soc"], runner.kind, runner.version]
        return [facts.cpu, facts.flags, *where]

    def lacks(self, runtime: str) -> str:
        package = spec(runtime).packages[0]
        if self.facts().arch != native_runner.ARCH:
            return f"is not in the Python of {self.address}; `pip install {package}` there"
        return f"is not installed here, so no runner has it; `pip install {package}`"

    def changed(self, state: dict[str, Any]) -> list[str]:
        """What speaks against it in a later state that did not in the first: it got hot. The load
        is left out, which is our own by then."""
        later = {name: value for name, value in state.items() if name != "load_1min"}
        first = self.fitness()
        before = {_kind(said) for said in (*first.refused, *first.flagged)}
        after = device_facts.unfit(replace(self.found, state=later), NEEDED_BYTES)
        return [said for part in after for said in part if _kind(said) not in before]

    def state(self) -> dict[str, Any]:
        """What may have changed since: clocks, load, temperatures, battery."""
        script = self._arguments + device_facts.STATE_SCRIPT
        return device_facts.parse_state(shell(self.transport, script))

    def _runnable(self) -> list[str]:
        ours = set(native_runner.versions()) if self.found.arch == native_runner.ARCH else set()
        return sorted(ours | set(self._in_python()))

    def _in_python(self) -> dict[str, str]:
        """Runtimes that the device's own Python has; Android has none."""
        return self.found.runtimes if self.found.numpy else {}

    def _version(self, runtime: str) -> str:
        return self._in_python().get(runtime) or native_runner.versions()[runtime]

    def runner(self, runtime: str) -> Runner:
        """What runs the runtime's models there. Raises DeviceError where nothing does."""
        if runtime not in self._runners:
            self._runners[runtime] = self._choose(runtime)
        return self._runners[runtime]

    def _choose(self, runtime: str) -> Runner:
        if number := self._in_python().get(runtime):
            program = Path(__file__).parent / "python_runner.py"
            command = f"{shlex.quote(self.transport.python)} {program.name}"
            files = {program.name: program, "engine.py": on_device(runtime)}
            return Runner("python", number, files, command, "-")
        if runtime not in self._runnable():
            raise DeviceError(
                f"{self.address} has no {runtime} in its Python, and onmetal's own runner, which "
                "needs none, is for 64-bit ARM and has the runtimes that are installed here"
            )
        built = native_runner.build(self.cache)
        names = ["runner", *native_runner.LIBC, native_runner.LIBRARIES[runtime]]
        return Runner(
            "native",
            native_runner.versions()[runtime],
            {name: built / name for name in names},
            f"./{native_runner.LOADER} --library-path . ./runner",
            f"./{native_runner.LIBRARIES[runtime]}",
        )

    def worker(self, runtime: str | None = None) -> "RemoteWorker":
        return RemoteWorker(self)

    def shares(self, artifact: Artifact, profile: str, runs: int) -> dict[str, Any]:
        """What really ran, from the profile that the runtime wrote there, as text."""
        with Local(self.cache).worker() as worker:
            return worker.do(
                asked(shares_of_text, artifact.runtime, profile, runs, artifact.files[0]),
                timeout_s=START_S,
            )

    def launch(self, runtime: str) -> tuple[RemoteLine, str, Hello]:
        """A fresh process of the runtime's runner. -> its line, the file of its number, and what
        it said first."""
        runner = self.runner(runtime)
        place = self._program(runtime, runner)
        number = self.folder.name("pid")
        pin = device_facts.mask(self.pinned) if self.pinned else ""
        script = (
            f"cd {shlex.quote(place)} || exit 71\n"
            f"export HOME={shlex.quote(self.folder.path)} ORT_DISABLE_TELEMETRY=1\n"
            'export TMPDIR="$HOME" XDG_CACHE_HOME="$HOME" XDG_DATA_HOME="$HOME"\n'
            f'pin=; [ -n "{pin}" ] && command -v taskset >/dev/null && pin="taskset {pin}"\n'
            f"number={shlex.quote(number)}\n"
            'sh -c \'echo $$ > "$1" || exit 71; shift; exec "$@"\' sh "$number" '
            f"$pin {runner.command}\n"
            's=$?; rm -f "$number"; exit $s'
        )
        line = RemoteLine(self.transport, script, f"the {runner.kind} runner on {self.address}")
        try:
            first = line.answer(START_S, "its start", Hello)
        except BaseException:
            line.close()
            self.end(number)
            raise
        return line, number, first

    def end(self, number: str) -> None:
        """Kill the process there whose number is in the file, if it still runs."""
        file = shlex.quote(number)
        script = f"[ ! -f {file} ] || {{ kill -9 $(cat {file}); rm -f {file}; }}"
        with contextlib.suppress(DeviceError):  # a line that is gone: the guard does it
            shell(self.transport, script, 10)

    def _program(self, runtime: str, runner: Runner) -> str:
        """The folder there that holds the runner's files under their names."""
        if runtime not in self._programs:
            place = f"{self.folder.path}/lib/{runtime}"
            there = self.folder.put(list(runner.files.values()))
            self.folder.link(dict(zip(runner.files, there, strict=True)), place)
            self._programs[runtime] = place
        return self._programs[runtime]

    def artifact(self, files: Sequence[Path]) -> str:
        """The path there of an artifact's first file; several lie together under their names."""
        there = self.folder.put(list(files))
        if len(files) == 1:
            return there[0]
        place = f"{self.folder.path}/lib/{Path(there[0]).name}"
        # The other files go by the names that are in the first one; OpenVINO's by its own stem.
        first = files[0].name if files[0].suffix == ".xml" else f"model{files[0].suffix}"
        if place not in self._programs:
            names = [first, *(file.name for file in files[1:])]
            self.folder.link(dict(zip(names, there, strict=True)), place)
            self._programs[place] = place
        return f"{place}/{first}"

    def content(self, data: bytes) -> str:
        """The path there of a file with this content, kept as others are."""
        return self.folder.put([self.written(data)])[0]

    def written(self, data: bytes) -> Path:
        """A file here with this content, by its digest."""
        file = self.scratch / hashlib.sha256(data).hexdigest()
        file.write_bytes(data)
        return file

    def close(self, *, keep: bool = False) -> None:
        """Remove the folder there; with `keep`, what was pushed stays for the next run."""
        with contextlib.suppress(DeviceError):  # a line that is gone: the guard removes it
            if self._folder is not None:
                self._folder.close(keep=keep)
        self.transport.close()
        self._scratch.cleanup()


class RemoteWorker:
    """A process on the device: the operations of a local Worker, as far as devices have them."""

    def __init__(self, device: Remote) -> None:
        self.device = device
        self._line: RemoteLine | None = None
        self._number = ""
        self._cores: tuple[int, ...] = ()
        """That the process may run on, as it says itself."""
        self._feeds: Path | None = None
        self._ports = Ports((), ())
        self._edges = Edges()
        self._names: tuple[list[str], list[str]] = ([], [])
        self._wanted: list[str] = []

    def __enter__(self) -> "RemoteWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process there, then the line to it."""
        line, self._line = self._line, None
        if line is None:
            return
        hung = line.closed  # it was given up: the process there may go on
        if not hung:
            line.hang_up(5)
            hung = line.running
        if hung:
            self.device.end(self._number)
        line.close()

    def kill(self) -> None:
        if self._line:
            self._line.kill()

    def _ask(
        self, words: Sequence[object], timeout_s: float, kind: Any, progress: OnCount | None = None
    ) -> Any:
        """`kind`: the type of the result."""
        assert self._line
        request = "\t".join(map(str, words))
        if "\n" in request or request.count("\t") != len(words) - 1:
            raise UnsupportedError("an option of the runtime holds a tab or a line break")
        return self._line.ask(
            request.encode(), repr(words[0]), timeout_s=timeout_s, progress=progress, kind=kind
        )

    def _start(self, runtime: str) -> None:
        if self._line is None:
            self._line, self._number, first = self.device.launch(runtime)
            self._cores = first.cores

    def open(self, artifact: Artifact, *, timeout_s: float) -> float:
        return self._opened(artifact, timeout_s)

    def _opened(self, artifact: Artifact, timeout_s: float, profile: str = "") -> float:
        """`profile`: the path there of the runtime's own profile, where it is to write one."""
        there = self.device.artifact(artifact.files)
        self._start(artifact.runtime)
        words = [*_words(artifact.options), *([f"profile={profile}"] if profile else [])]
        library = self.device.runner(artifact.runtime).library
        opened: Opened = self._ask(
            ["open", artifact.runtime, library, there, *words], timeout_s, Opened
        )
        self._ports = opened
        self._edges = edges(artifact.options)
        try:
            self._names = (
                order(opened.inputs, artifact.inputs),
                order(opened.outputs, artifact.outputs),
            )
        except DeviceError as error:
            raise self._wrong(str(error)) from None
        self._wanted = list(artifact.outputs)
        if self._feeds:
            self._give_feeds(timeout_s)
        return opened.load_ms

    def _wrong(self, why: str) -> DeviceError:
        return DeviceError(f"{self.device.address}: {why}")

    def keep_feeds(self, path: Path, *, timeout_s: float) -> None:
        self._feeds = path
        if self._line:
            self._give_feeds(timeout_s)

    def _give_feeds(self, timeout_s: float) -> None:
        assert self._feeds
        packed = [self._packed(feed) for feed in read_feeds(self._feeds)]
        there = self.device.content(b"".join(packed))
        self._ask(["feeds", there, len(packed)], timeout_s, NoneType)

    def _packed(self, feed: dict[str, np.ndarray]) -> bytes:
        try:
            return pack(feed, self._ports.inputs, self._names[0], self._edges)
        except DeviceError as error:
            raise self._wrong(str(error)) from None

    def warm(self, seconds: float, least: int, *, timeout_s: float) -> int:
        count: int = self._ask(["warm", seconds, least], timeout_s, Warmed)
        return count

    def round(
        self, seconds: float, least: int, *, warm_s: float, feed: int, timeout_s: float
    ) -> np.ndarray:
        began = time.monotonic()
        text: str = self._ask(["round", seconds, least, warm_s, feed], timeout_s, str)
        try:
            return latencies(text, least, time.monotonic() - began)
        except ValueError as error:
            raise self._wrong(f"its runner answered 'round' with {error}") from None

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
        """A chunk of the samples lies there at a time."""
        rows = Rows(folder, model, count)
        each = max(1, CHUNK_BYTES // max(1, self._ports.input_bytes, self._ports.output_bytes))
        starts = range(0, count, model.batch)
        for begin in range(0, len(starts), each):
            chunk = starts[begin : begin + each]
            packed = b"".join(self._packed(samples.feed(model, rows.indices(at))) for at in chunk)
            done = begin * model.batch

            def within_chunk(now: int, _: int, done: int = done) -> None:
                if progress:
                    progress(min(done + now * model.batch, count), count)

            outputs = self._through_chunk(packed, len(chunk), len(starts), timeout_s, within_chunk)
            for at, arrays in zip(chunk, outputs, strict=True):
                rows.add(at, arrays)
            within_chunk(len(chunk), 0)

    def _through_chunk(
        self, packed: bytes, count: int, of: int, timeout_s: float, progress: OnCount
    ) -> list[list[np.ndarray]]:
        """Inputs of `count` inferences of `of` in all: few enough of them stay on the device, for
        the next candidate and the next run."""
        if of * self._ports.input_bytes <= DATA_BYTES:
            return self._through(self.device.content(packed), count, timeout_s, progress)
        here = self.device.written(packed)
        given = self.device.folder.push(here, "in")
        here.unlink()
        found = self._through(given, count, timeout_s, progress)
        self.device.folder.remove(given)
        return found

    def _through(
        self, given: str, count: int, timeout_s: float, progress: OnCount | None
    ) -> list[list[np.ndarray]]:
        """The path there of inputs of `count` inferences -> the outputs of each."""
        folder, here = self.device.folder, self.device.scratch / "through"
        taken = folder.name("out")
        size = self._ports.output_bytes
        self._ask(["run", given, count, taken], timeout_s, NoneType, progress)
        folder.pull(taken, here, 2 * size * count + SPARE_BYTES)
        folder.remove(taken)
        content = memoryview(here.read_bytes())
        here.unlink()
        if len(content) != size * count:
            raise UnsupportedError(
                f"the model gave {len(content)} bytes for {count} samples where {size} each were "
                "expected: an output changes its shape from sample to sample"
            )
        return [
            unpack(
                content[i * size : (i + 1) * size],
                self._ports.outputs,
                self._names[1],
                self._edges,
                self._wanted,
            )
            for i in range(count)
        ]

    def run(self, feeds: Path, folder: Path, *, timeout_s: float) -> None:
        packed = [self._packed(feed) for feed in read_feeds(feeds)]
        given = self.device.content(b"".join(packed))
        for number, outputs in enumerate(self._through(given, len(packed), timeout_s, None)):
            for place, array in enumerate(outputs):
                np.save(folder / f"{number}-{place}.npy", array)

    def profile(self, artifact: Artifact, *, timeout_s: float) -> dict[str, Any]:
        there = self.device.folder.name("profile")
        self._opened(artifact, timeout_s, profile=there)
        runs = self._ask(["profile", PROFILED_S], timeout_s, Profiled).inferences
        here = self.device.scratch / "profile"
        self.device.folder.pull(there, here, PROFILE_BYTES)
        self.device.folder.remove(there)
        runner = self.device.runner(artifact.runtime)
        shares = self.device.shares(artifact, here.read_text(errors="replace"), runs)
        how = {"runner": runner.kind, "runtime_version": runner.version, "cores": [*self._cores]}
        return {**shares, **how}

    def layers(self, artifact: Artifact, *, timeout_s: float) -> list[dict[str, Any]]:
        raise UnsupportedError(
            "the time of every kernel is told on this machine only, not on a remote device"
        )

    def peak_memory(self, artifact: Artifact, *, timeout_s: float) -> Memory:
        first = self.device.content(memory.trivial(artifact.runtime))
        there = self.device.artifact(artifact.files)
        self._start(artifact.runtime)
        library = self.device.runner(artifact.runtime).library
        words = ["memory", artifact.runtime, library, first, there, *_words(artifact.options)]
        answer: MemoryAnswer = self._ask(words, timeout_s, MemoryAnswer)
        return Memory(answer.baseline, answer.peak)

    def pace(self, seconds: float, *, timeout_s: float) -> int:
        """By rounds of the runner, which runs for a time."""
        samples = self.round(min(seconds, PACED_S), 3, warm_s=0.0, feed=0, timeout_s=timeout_s)
        return max(1, int(seconds / (float(np.median(samples)) / 1e9)))

    def burst(self, count: int, *, timeout_s: float) -> None:
        self.round(0.0, count, warm_s=0.0, feed=0, timeout_s=timeout_s)


def _kind(said: str) -> str:
    """A sentence without its figures."""
    return re.sub(r"[\d.]+", "", said)


def _words(options: dict[str, Any]) -> list[str]:
    """A runtime's options as a runner reads them; what is done on this machine is left out."""
    return [
        f"{name}={int(value) if name == 'stateful' else value}"
        for name, value in runtime_options(options).items()
    ]
