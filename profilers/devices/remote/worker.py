"""A process on a device at the other end of adb or ssh, which opens, times and runs models."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from onmetal.errors import DeviceError, UnsupportedError
from onmetal.profilers import memory
from onmetal.profilers.devices import Memory
from onmetal.profilers.devices.answers import (
    Memory as MemoryAnswer,
)
from onmetal.profilers.devices.answers import (
    Opened,
    Profiled,
    TensorsOnDevice,
    Warmed,
    latencies,
)
from onmetal.profilers.devices.remote.folder import RemoteLine
from onmetal.profilers.devices.remote.reached import Reached
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
from onmetal.records import Artifact, Model
from onmetal.samples import Samples

CHUNK_BYTES = 16_000_000
"""Bytes of samples that lie on the device at a time."""
DATA_BYTES = 100_000_000
"""Evaluation data up to this size stay on the device while the run lasts, as other files do."""
PROFILED_S = 0.5
PACED_S = 0.3
PROFILE_BYTES = 64 << 20
"""Most of a profile: ONNX Runtime's has about 400 bytes for each of an operator's runs."""
SPARE_BYTES = 1 << 20
"""Bytes that may come beyond the expected ones: an output that changes its shape may be larger,
which is then the error."""


class RemoteWorker:
    """A process on the device: the operations of a local Worker, as far as devices have them."""

    def __init__(self, device: Reached) -> None:
        self.device = device
        self._line: RemoteLine | None = None
        self._number = ""
        self._cores: tuple[int, ...] = ()
        """The cores that the process may run on, as it reports them."""
        self._feeds: Path | None = None
        self._tensors = TensorsOnDevice((), ())
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
        still_running = line.closed  # the line was given up: the process there may go on
        if not still_running:
            line.hang_up(5)
            still_running = line.running
        if still_running:
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
        return self._open_artifact(artifact, timeout_s)

    def _open_artifact(self, artifact: Artifact, timeout_s: float, profile: str = "") -> float:
        """`profile`: the path there of the runtime's own profile, where it is to write one."""
        device_path = self.device.artifact(artifact.files)
        self._start(artifact.runtime)
        words = [*_option_words(artifact.options), *([f"profile={profile}"] if profile else [])]
        library = self.device.runner(artifact.runtime).library
        opened: Opened = self._ask(
            ["open", artifact.runtime, library, device_path, *words], timeout_s, Opened
        )
        self._tensors = opened
        self._edges = edges(artifact.options)
        try:
            self._names = (
                order(opened.inputs, artifact.inputs),
                order(opened.outputs, artifact.outputs),
            )
        except DeviceError as error:
            raise self._device_error(str(error)) from None
        self._wanted = list(artifact.outputs)
        if self._feeds:
            self._give_feeds(timeout_s)
        return opened.load_ms

    def _device_error(self, why: str) -> DeviceError:
        return DeviceError(f"{self.device.address}: {why}")

    def keep_feeds(self, path: Path, *, timeout_s: float) -> None:
        self._feeds = path
        if self._line:
            self._give_feeds(timeout_s)

    def _give_feeds(self, timeout_s: float) -> None:
        assert self._feeds
        packed = [self._packed(feed) for feed in read_feeds(self._feeds)]
        device_path = self.device.content(b"".join(packed))
        self._ask(["feeds", device_path, len(packed)], timeout_s, NoneType)

    def _packed(self, feed: dict[str, np.ndarray]) -> bytes:
        try:
            return pack(feed, self._tensors.inputs, self._names[0], self._edges)
        except DeviceError as error:
            raise self._device_error(str(error)) from None

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
            raise self._device_error(f"its runner answered 'round' with {error}") from None

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
        """The samples are pushed in chunks, of which the device holds one at a time."""
        rows = Rows(folder, model, count)
        per_chunk = max(
            1, CHUNK_BYTES // max(1, self._tensors.input_bytes, self._tensors.output_bytes)
        )
        starts = range(0, count, model.batch)
        for begin in range(0, len(starts), per_chunk):
            chunk = starts[begin : begin + per_chunk]
            packed = b"".join(
                self._packed(samples.feed(model, rows.indices(start))) for start in chunk
            )
            samples_done = begin * model.batch

            def within_chunk(now: int, _: int, samples_done: int = samples_done) -> None:
                if progress:
                    progress(min(samples_done + now * model.batch, count), count)

            outputs = self._run_chunk(packed, len(chunk), len(starts), timeout_s, within_chunk)
            for start, arrays in zip(chunk, outputs, strict=True):
                rows.add(start, arrays)
            within_chunk(len(chunk), 0)

    def _run_chunk(
        self, packed: bytes, count: int, total: int, timeout_s: float, progress: OnCount
    ) -> list[list[np.ndarray]]:
        """Run the inputs of `count` inferences, of `total` in all, and return the outputs of each.
        Inputs of DATA_BYTES or less in all stay on the device for the next candidate and run."""
        if total * self._tensors.input_bytes <= DATA_BYTES:
            return self._run_inputs(self.device.content(packed), count, timeout_s, progress)
        local_path = self.device.written(packed)
        inputs_path = self.device.folder.push(local_path, "in")
        local_path.unlink()
        results = self._run_inputs(inputs_path, count, timeout_s, progress)
        self.device.folder.remove(inputs_path)
        return results

    def _run_inputs(
        self, inputs_path: str, count: int, timeout_s: float, progress: OnCount | None
    ) -> list[list[np.ndarray]]:
        """Run `count` inferences on the inputs in a file there. -> the outputs of each."""
        folder, local_path = self.device.folder, self.device.scratch / "through"
        outputs_path = folder.name("out")
        size = self._tensors.output_bytes
        self._ask(["run", inputs_path, count, outputs_path], timeout_s, NoneType, progress)
        folder.pull(outputs_path, local_path, 2 * size * count + SPARE_BYTES)
        folder.remove(outputs_path)
        content = memoryview(local_path.read_bytes())
        local_path.unlink()
        if len(content) != size * count:
            raise UnsupportedError(
                f"the model gave {len(content)} bytes for {count} samples where {size} each were "
                "expected: an output changes its shape from sample to sample"
            )
        return [
            unpack(
                content[i * size : (i + 1) * size],
                self._tensors.outputs,
                self._names[1],
                self._edges,
                self._wanted,
            )
            for i in range(count)
        ]

    def run(self, feeds: Path, folder: Path, *, timeout_s: float) -> None:
        packed = [self._packed(feed) for feed in read_feeds(feeds)]
        inputs_path = self.device.content(b"".join(packed))
        for number, outputs in enumerate(
            self._run_inputs(inputs_path, len(packed), timeout_s, None)
        ):
            for place, array in enumerate(outputs):
                np.save(folder / f"{number}-{place}.npy", array)

    def profile(self, artifact: Artifact, *, timeout_s: float) -> dict[str, Any]:
        device_path = self.device.folder.name("profile")
        self._open_artifact(artifact, timeout_s, profile=device_path)
        runs = self._ask(["profile", PROFILED_S], timeout_s, Profiled).inferences
        local_path = self.device.scratch / "profile"
        self.device.folder.pull(device_path, local_path, PROFILE_BYTES)
        self.device.folder.remove(device_path)
        runner = self.device.runner(artifact.runtime)
        shares = self.device.shares(artifact, local_path.read_text(errors="replace"), runs)
        provenance = {
            "runner": runner.kind,
            "runtime_version": runner.version,
            "cores": [*self._cores],
        }
        return {**shares, **provenance}

    def layers(self, artifact: Artifact, *, timeout_s: float) -> list[dict[str, Any]]:
        raise UnsupportedError(
            "the time of every kernel is told on this machine only, not on a remote device"
        )

    def peak_memory(self, artifact: Artifact, *, timeout_s: float) -> Memory:
        first = self.device.content(memory.trivial(artifact.runtime))
        device_path = self.device.artifact(artifact.files)
        self._start(artifact.runtime)
        library = self.device.runner(artifact.runtime).library
        words = [
            "memory",
            artifact.runtime,
            library,
            first,
            device_path,
            *_option_words(artifact.options),
        ]
        answer: MemoryAnswer = self._ask(words, timeout_s, MemoryAnswer)
        return Memory(answer.baseline, answer.peak)

    def pace(self, seconds: float, *, timeout_s: float) -> int:
        """By rounds of the runner, which runs for a time."""
        samples = self.round(min(seconds, PACED_S), 3, warm_s=0.0, feed=0, timeout_s=timeout_s)
        return max(1, int(seconds / (float(np.median(samples)) / 1e9)))

    def burst(self, count: int, *, timeout_s: float) -> None:
        self.round(0.0, count, warm_s=0.0, feed=0, timeout_s=timeout_s)


def _option_words(options: dict[str, Any]) -> list[str]:
    """A runtime's options as a runner reads them; what is done on this machine is left out."""
    return [
        f"{name}={int(value) if name == 'stateful' else value}"
        for name, value in runtime_options(options).items()
    ]
