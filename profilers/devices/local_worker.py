"""One child process of this machine in which models are read, converted and run."""

import base64
import json
import os
import site
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from onmetal import limits
from onmetal.errors import DeviceError
from onmetal.profilers.devices import Memory
from onmetal.profilers.devices.line import Line
from onmetal.profilers.operation import Operation
from onmetal.progress import OnCount
from onmetal.records import Artifact, Model, plain
from onmetal.runtimes import RUNTIMES, spec
from onmetal.samples import Samples

R = TypeVar("R")

UNWATCHED = frozenset({"round", "warm", "let_go", "pace", "burst"})
"""Operations whose memory and processor time are not watched: they are timed, or take none."""


def quiet_environment(home: Path) -> dict[str, str]:
    """The environment of a process that imports a runtime: without telemetry, and with a home
    folder of its own, so that nothing it writes lands in the user's."""
    for name in RUNTIMES:
        for path, content in spec(name).home_files.items():
            (home / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            (home / path).write_text(content)
    inherited = dict(os.environ)
    # By default it follows from HOME; an installation by `pip install --user` must stay importable.
    inherited.setdefault("PYTHONUSERBASE", site.getuserbase())
    return inherited | {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }


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
            **_artifact_arguments(artifact),
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
        shares: dict[str, Any] = self.call(
            "profile", timeout_s=timeout_s, **_artifact_arguments(artifact)
        )
        return shares

    def layers(self, artifact: Artifact, *, timeout_s: float) -> list[dict[str, Any]]:
        kernels: list[dict[str, Any]] = self.call(
            "layers", timeout_s=timeout_s, **_artifact_arguments(artifact)
        )
        return kernels

    def peak_memory(self, artifact: Artifact, *, timeout_s: float) -> Memory:
        bytes_ = self.call("peak_memory", timeout_s=timeout_s, **_artifact_arguments(artifact))
        return Memory(bytes_["baseline"], bytes_["peak"])

    def pace(self, seconds: float, *, timeout_s: float) -> int:
        count: int = self.call("pace", timeout_s=timeout_s, seconds=seconds)
        return count

    def burst(self, count: int, *, timeout_s: float) -> None:
        self.call("burst", timeout_s=timeout_s, count=count)

    # --- what only this machine does

    def arena(self, artifact: Artifact, *, timeout_s: float) -> dict[str, Any]:
        """What an inference takes of the arena of a runtime in firmware, in bytes."""
        used: dict[str, Any] = self.call(
            "arena", timeout_s=timeout_s, **_artifact_arguments(artifact)
        )
        return used

    def open_reference(self, model: Model, *, timeout_s: float) -> None:
        """Open the model by what defines its format; `outputs` and `run` are then its own."""
        self.call(
            "open_reference",
            timeout_s=timeout_s,
            form=model.defining_format,
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
        """Make a call in the process. -> its result. Limits as those of `call`."""
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


def _artifact_arguments(artifact: Artifact) -> dict[str, Any]:
    """The arguments with which a worker process opens an artifact, as JSON values."""
    return dict(plain(artifact))
