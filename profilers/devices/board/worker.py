"""The worker of a board: it runs the model in the firmware, asked as a worker process is."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.errors import DeviceError, UnsupportedError
from onmetal.profilers.devices import Memory
from onmetal.profilers.devices.answers import TensorsOnDevice
from onmetal.profilers.devices.board.inferences import Inferences
from onmetal.profilers.tensor_bytes import Edges, Rows, edges, order, pack, read_feeds, unpack
from onmetal.progress import OnCount
from onmetal.records import Artifact, Model
from onmetal.runtimes import in_firmware, spec
from onmetal.samples import Samples

TRIES = 3
"""How often a window is repeated that came out shorter than was asked for."""


class BoardWorker:
    """The operations of a local Worker, as far as a board has them."""

    def __init__(self, board: Inferences) -> None:
        self.board = board
        self._feeds: list[dict[str, np.ndarray]] = []
        self._tensors = TensorsOnDevice((), ())
        self._edges = Edges()
        self._names: tuple[list[str], list[str]] = ([], [])
        self._wanted: list[str] = []

    def __enter__(self) -> "BoardWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The port is the board's, and stays open for the next worker."""

    def kill(self) -> None:
        """End what is going on, from any thread: the port is closed under it."""
        self.board.tiny.close()

    def open(self, artifact: Artifact, *, timeout_s: float) -> float:
        """Nothing is loaded: the model lies in flash. Raises UnsupportedError where another model
        does."""
        if artifact.runtime not in in_firmware():
            raise UnsupportedError(
                f"the runtime {artifact.runtime} does not run on {self.board.address}, a board"
            )
        self.board.check_holds(artifact.files)
        self.board.check_ready()
        self._tensors = self.board.tensors(artifact.files[0])
        self._edges = edges(artifact.options)
        self._names = (
            order(self._tensors.inputs, artifact.inputs),
            order(self._tensors.outputs, artifact.outputs),
        )
        self._wanted = list(artifact.outputs)
        return 0.0

    def keep_feeds(self, path: Path, *, timeout_s: float) -> None:
        self._feeds = read_feeds(path)

    def _load(self, feed: dict[str, np.ndarray]) -> None:
        """Each time anew: TFLite Micro may use an input's memory for what comes after it."""
        self.board.tiny.load(pack(feed, self._tensors.inputs, self._names[0], self._edges))

    def warm(self, seconds: float, least: int, *, timeout_s: float) -> int:
        """Boards have caches and no clocks that rise: a few inferences are enough."""
        self._load(self._feeds[0])
        count = min(max(1, least), self.board.window(seconds, 1, timeout_s))
        self.board.infer(count, 0, timeout_s)
        return count

    def round(
        self, seconds: float, least: int, *, warm_s: float, feed: int, timeout_s: float
    ) -> np.ndarray:
        """One window. -> one int64: the nanoseconds of an inference in it."""
        self._load(self._feeds[feed % len(self._feeds)])
        count = self.board.window(seconds, least, timeout_s)
        assert self.board.inference_s
        warm = _inference_count(warm_s, self.board.inference_s)
        laps = self.board.infer(count, warm, timeout_s)
        for _ in range(TRIES):
            if laps.us >= 1e6 * seconds:
                break  # else inferences were faster than when `window` timed them
            count = math.ceil(1.05 * count * 1e6 * seconds / max(1, laps.us))
            laps = self.board.infer(count, warm, timeout_s)
        inference_ns = np.array([round(laps.us * 1000 / count)], np.int64)
        if inference_ns[0] <= 0:
            raise DeviceError(
                f"the clock of the board at {self.board.address} counted {laps.us} µs for {count} "
                "inferences: its timer stands still, or its firmware does not run them"
            )
        return inference_ns

    def _outputs_of(self, feed: dict[str, np.ndarray], timeout_s: float) -> list[np.ndarray]:
        self._load(feed)
        stored = self.board.outputs(self._tensors, timeout_s)
        return unpack(stored, self._tensors.outputs, self._names[1], self._edges, self._wanted)

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
        rows = Rows(folder, model, count)
        left_s = _countdown(timeout_s)
        for start in range(0, count, model.batch):
            feed = samples.feed(model, rows.indices(start))
            rows.add(start, self._outputs_of(feed, left_s(f"{start} of {count} samples")))
            if progress:
                progress(min(start + model.batch, count), count)

    def run(self, feeds: Path, folder: Path, *, timeout_s: float) -> None:
        loaded_feeds, left_s = read_feeds(feeds), _countdown(timeout_s)
        for number, feed in enumerate(loaded_feeds):
            limit_s = left_s(f"{number} of {len(loaded_feeds)} samples")
            for place, array in enumerate(self._outputs_of(feed, limit_s)):
                np.save(folder / f"{number}-{place}.npy", array)

    def profile(self, artifact: Artifact, *, timeout_s: float) -> dict[str, Any]:
        self.open(artifact, timeout_s=timeout_s)
        firmware_profile = self.board.tiny.profile
        shares = {
            "provider": {f"{spec(artifact.runtime).title} on {firmware_profile.name}": 1.0},
            **self.board.operators(artifact.files[0]),
            "firmware": firmware_profile.firmware,
            "board": firmware_profile.name,
        }
        if self.board.qemu and self._feeds:
            shares |= self.instructions(timeout_s=timeout_s)
        return shares

    def layers(self, artifact: Artifact, *, timeout_s: float) -> list[dict[str, Any]]:
        raise UnsupportedError(
            "the time of every kernel is told on this machine only, not by a board"
        )

    def peak_memory(self, artifact: Artifact, *, timeout_s: float) -> Memory:
        self.open(artifact, timeout_s=timeout_s)
        if self.board.tiny.profile.arena_used is None:
            raise DeviceError(
                f"the firmware of {self.board.address} does not say what its arena takes; that of "
                "a bundle does"
            )
        return Memory(0, self.board.tiny.profile.arena_used)

    def instructions(self, *, timeout_s: float, feed: int = 0) -> dict[str, Any]:
        """As Board.instructions, on one of the feeds."""
        self._load(self._feeds[feed % len(self._feeds)])
        return self.board.instructions(timeout_s)

    def pace(self, seconds: float, *, timeout_s: float) -> int:
        self._load(self._feeds[0])
        return self.board.paced(seconds, timeout_s)

    def burst(self, count: int, *, timeout_s: float) -> None:
        """On the inputs that `pace` loaded; the firmware pulses a pin before and after."""
        self.board.metered(count, timeout_s)

    def check(self, *, timeout_s: float) -> tuple[int, int]:
        """The golden vectors that are compiled in. -> how many passed, of how many."""
        return self.board.tiny.check(timeout_s)


def _countdown(timeout_s: float) -> Callable[[str], float]:
    """A function that returns the seconds that are left, and raises DeviceError where none are. Its
    argument says in the error what was done so far."""
    end = time.monotonic() + timeout_s

    def left_s(done: str) -> float:
        remaining_s = end - time.monotonic()
        if remaining_s <= 0:
            raise DeviceError(f"the board did {done} in {timeout_s:.0f} s, all that there was")
        return remaining_s

    return left_s


def _inference_count(seconds: float, each_s: float) -> int:
    return round(seconds / each_s)
