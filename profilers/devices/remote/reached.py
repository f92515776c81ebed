"""The connection to a device over adb or ssh: its folder there, and the programs that run models.

Requests to a worker name files of this machine; they are pushed, by digest, and files that the
device writes are pulled. The programs that do the work there are native/runner.c for devices that
have nothing, and python_runner.py where the device's own Python has the runtime: then the runtime
that the bundle's run.py will use is the one that is measured.
"""

import contextlib
import hashlib
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from onmetal.errors import DeviceError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.answers import (
    Hello,
)
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import native_runner
from onmetal.profilers.devices.remote.facts import affinity
from onmetal.profilers.devices.remote.facts.parsing import parse
from onmetal.profilers.devices.remote.facts.script import SCRIPT
from onmetal.profilers.devices.remote.folder import Folder, RemoteLine, Transport, shell
from onmetal.profilers.operation import asked
from onmetal.records import Artifact
from onmetal.runtimes import on_device
from onmetal.runtimes.operations import shares_of_text

START_S = 120.0


class Runner(Struct, frozen=True):
    """A program for the device, and what it opens a runtime's models with."""

    kind: str
    """native or python"""
    version: str
    """The runtime's version."""
    files: dict[str, Path]
    """Name in the folder that it is started in -> the file here."""
    command: str
    library: str


class Reached:
    """The connection to one device; its folder there is made at the first use and removed by
    `close`."""

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
            text = shell(transport, self._arguments + SCRIPT)
            self.remote_facts = parse(text)
        except BaseException:
            self.close()
            raise

    @property
    def folder(self) -> Folder:
        if self._folder is None:
            self._folder = Folder(self.transport)
        return self._folder

    def _runnable(self) -> list[str]:
        native_runtimes = (
            set(native_runner.versions()) if self.remote_facts.arch == native_runner.ARCH else set()
        )
        return sorted(native_runtimes | set(self._in_python()))

    def _in_python(self) -> dict[str, str]:
        """Runtimes that the device's own Python has; Android has none."""
        return self.remote_facts.runtimes if self.remote_facts.numpy else {}

    def _version(self, runtime: str) -> str:
        return self._in_python().get(runtime) or native_runner.versions()[runtime]

    def runner(self, runtime: str) -> Runner:
        """The program that runs the runtime's models there. Raises DeviceError where none does."""
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

    def shares(self, artifact: Artifact, profile: str, runs: int) -> dict[str, Any]:
        """The operators that really ran, from the text of the runtime's profile of a run there."""
        with Local(self.cache).worker() as worker:
            return worker.do(
                asked(shares_of_text, artifact.runtime, profile, runs, artifact.files[0]),
                timeout_s=START_S,
            )

    def launch(self, runtime: str) -> tuple[RemoteLine, str, Hello]:
        """Start a fresh process of the runtime's runner. -> its line, the path there of the file
        with its process number, and its first answer."""
        runner = self.runner(runtime)
        place = self._program(runtime, runner)
        number = self.folder.name("pid")
        pin = affinity.mask(self.pinned) if self.pinned else ""
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
        with contextlib.suppress(DeviceError):  # where the connection is cut, the guard does it
            shell(self.transport, script, 10)

    def _program(self, runtime: str, runner: Runner) -> str:
        """The folder there that holds the runner's files under their names."""
        if runtime not in self._programs:
            place = f"{self.folder.path}/lib/{runtime}"
            paths = self.folder.put(list(runner.files.values()))
            self.folder.link(dict(zip(runner.files, paths, strict=True)), place)
            self._programs[runtime] = place
        return self._programs[runtime]

    def artifact(self, files: Sequence[Path]) -> str:
        """The path there of an artifact's first file; several lie together under their names."""
        paths = self.folder.put(list(files))
        if len(files) == 1:
            return paths[0]
        place = f"{self.folder.path}/lib/{Path(paths[0]).name}"
        # The other files go by the names that are in the first one; OpenVINO's by its own stem.
        first = files[0].name if files[0].suffix == ".xml" else f"model{files[0].suffix}"
        if place not in self._programs:
            names = [first, *(file.name for file in files[1:])]
            self.folder.link(dict(zip(names, paths, strict=True)), place)
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
        with contextlib.suppress(DeviceError):  # where the connection is cut, the guard does it
            if self._folder is not None:
                self._folder.close(keep=keep)
        self.transport.close()
        self._scratch.cleanup()
