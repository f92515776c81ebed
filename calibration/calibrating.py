"""Calibration of one float graph by processes of this machine, its results kept in the cache.

All results are cached under content-addressed keys. One set of statistics serves every format and
every estimator.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from onmetal.calibration import operations
from onmetal.errors import OnmetalError, UnsupportedError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker
from onmetal.profilers.operation import Operation, asked
from onmetal.progress import OnCount, OnProgress
from onmetal.records import Model
from onmetal.samples import Samples

R = TypeVar("R")

NO_SAMPLES = "there are no samples to calibrate it with"
VERSION = 5
HELPERS = "calibrating"
MOST_WORKERS = 4
"""Calibration runs in up to so many processes at once, each with the memory of one batch."""


class Calibrating:
    """One model, the samples that it is calibrated with, and the processes that do it."""

    def __init__(self, model: Model, samples: Samples | None, host: Local, cache: Cache) -> None:
        self.model, self.samples, self.host, self.cache = model, samples, host, cache

    def call(self, operation: Operation[R], progress: OnCount | None = None) -> R:
        """Run an operation in a child process, because runtimes may crash on a user's model."""
        return self.host.helped(HELPERS, lambda workers: _ask(workers[0], operation, progress))

    def chosen(
        self, operation: Operation[dict[str, Any]], keys: dict[str, Any], progress: OnProgress
    ) -> dict[str, Any]:
        """The choice of an estimator that an operation returns, or the cached one."""

        def build(folder: Path) -> None:
            choice = self.call(
                operation, lambda done, total: progress(done, total, f"estimator {done} of {total}")
            )
            (folder / "estimator.json").write_bytes(msgspec.json.encode(choice))

        folder = self.cache.get("estimator", caches.key(**keys, code=VERSION), build)
        choice: dict[str, Any] = msgspec.json.decode((folder / "estimator.json").read_bytes())
        return choice

    def collected(
        self, graph: Path, tensors: Operation[list[str]], by: Any, progress: OnProgress
    ) -> Path:
        """The folder with the files of calibration.statistics over all samples. `tensors`: an
        operation that returns the names of the graph's tensors to observe; `by`: whatever else the
        statistics depend on, for the cache's key."""
        samples = self.samples
        if samples is None:
            raise UnsupportedError(NO_SAMPLES)
        digest = caches.key(
            graph=caches.sha256(graph),
            samples=samples.digest,
            count=samples.count,
            by=by,
            code=VERSION,
        )
        parts = max(1, min(self.host.facts().cores, MOST_WORKERS, samples.count // 8))

        def build(folder: Path) -> None:
            with self.cache.scratch() as scratch:
                self._collect(graph, self.call(tensors), samples, parts, scratch, progress)
                for name in ("statistics.npz", "statistics.json"):
                    (scratch / name).rename(folder / name)

        return self.cache.get("statistics", digest, build)

    def _collect(
        self,
        graph: Path,
        tensors: list[str],
        samples: Samples,
        parts: int,
        scratch: Path,
        progress: OnProgress,
    ) -> None:
        path, folder, model = str(graph), str(scratch), self.model

        def extremes(part: int) -> Operation[None]:
            return asked(operations.extremes, path, tensors, samples, model, part, parts, folder)

        self._side_by_side(extremes, parts, "ranges", progress)
        ranges = self.call(asked(operations.ranges_of, folder, parts))

        def histograms(part: int) -> Operation[None]:
            return asked(
                operations.histograms, path, tensors, ranges, samples, model, part, parts, folder
            )

        self._side_by_side(histograms, parts, "histograms", progress)
        self.call(asked(operations.finish, folder, parts, tensors, samples.count))

    def _side_by_side(
        self,
        operation: Callable[[int], Operation[None]],
        parts: int,
        stage: str,
        progress: OnProgress,
    ) -> None:
        """Run every part in a process of its own; the first part reports progress."""

        def run(worker: LocalWorker, part: int) -> None:
            def first_part(done: int, total: int) -> None:
                if not part:
                    progress(done, total, f"calibrating: {stage}, {done / max(total, 1):.0%}")

            _ask(worker, operation(part), first_part)

        def all_parts(workers: list[LocalWorker]) -> None:
            with ThreadPoolExecutor(parts) as pool:
                futures = [pool.submit(run, worker, part) for part, worker in enumerate(workers)]
                try:
                    for future in futures:
                        future.result()
                except BaseException:  # ^C too: the threads wait for workers, so end these first
                    for worker in workers:
                        worker.kill()
                    raise

        self.host.helped(HELPERS, all_parts, parts)


def _ask(worker: LocalWorker, operation: Operation[R], progress: OnCount | None) -> R:
    """Raises UnsupportedError for whatever goes wrong in the worker."""
    try:
        return worker.do(operation, timeout_s=86400, progress=progress)
    except UnsupportedError:
        raise
    except OnmetalError as error:
        raise UnsupportedError(f"it cannot be quantized: {error}") from None
