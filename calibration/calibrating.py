"""Calibration of one float graph by processes of this machine, its results kept in the cache.

All that is made here is kept under content-addressed keys. One set of statistics serves every
format and every estimator.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from onmetal.errors import OnmetalError, UnsupportedError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local, Worker
from onmetal.progress import OnProgress
from onmetal.records import Model, plain
from onmetal.samples import Samples

VERSION = 4
HELPERS = "calibrating"
MOST_WORKERS = 4
"""Calibration runs in up to so many processes at once, each with the memory of one batch."""


class Calibrating:
    """One model, the samples that it is calibrated with, and the processes that do it."""

    def __init__(self, model: Model, samples: Samples | None, host: Local, cache: Cache) -> None:
        self.model, self.samples, self.host, self.cache = model, samples, host, cache

    def call(
        self,
        function: str,
        progress: Callable[[int, int], None] | None = None,
        **arguments: Any,
    ) -> Any:
        """In a child process: models are foreign, and runtimes may crash on them."""
        return self.host.helped(
            HELPERS, lambda workers: _ask(workers[0], function, progress, **arguments)
        )

    def chosen(
        self, function: str, given: dict[str, Any], keys: dict[str, Any], told: OnProgress
    ) -> dict[str, Any]:
        """What `function` says of the estimators, from the cache where it is there."""

        def build(folder: Path) -> None:
            found = self.call(
                function,
                lambda done, total: told(done, total, f"estimator {done} of {total}"),
                told=True,
                **given,
            )
            (folder / "estimator.json").write_bytes(msgspec.json.encode(found))

        folder = self.cache.get("estimator", caches.key(**keys, code=VERSION), build)
        found: dict[str, Any] = msgspec.json.decode((folder / "estimator.json").read_bytes())
        return found

    def collected(
        self, graph: Path, tensors: Callable[[], list[str]], by: Any, told: OnProgress
    ) -> Path:
        """The statistics of some tensors of a float graph. `by`: what else they depend on."""
        samples = self.samples
        if samples is None:
            raise UnsupportedError("there are no samples to calibrate it with")
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
                self._collect(graph, tensors(), samples, parts, scratch, told)
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
        told: OnProgress,
    ) -> None:
        given: dict[str, Any] = {
            "path": str(graph),
            "tensors": tensors,
            "samples": plain(samples),
            "model": plain(self.model),
            "parts": parts,
            "folder": str(scratch),
        }
        self._side_by_side("calibration.statistics:extremes", given, "ranges", told)
        given["ranges"] = self.call(
            "calibration.statistics:ranges_of", folder=str(scratch), parts=parts
        )
        self._side_by_side("calibration.statistics:histograms", given, "histograms", told)
        self.call(
            "calibration.statistics:finish",
            folder=str(scratch),
            parts=parts,
            tensors=given["tensors"],
            count=samples.count,
        )

    def _side_by_side(
        self, function: str, given: dict[str, Any], what: str, told: OnProgress
    ) -> None:
        """Every part in a process of its own; the first one tells how far it is."""

        def run(worker: Worker, part: int) -> None:
            def tell(done: float, total: float) -> None:
                if not part:
                    told(done, total, f"calibrating: {what}, {done / max(total, 1):.0%}")

            _ask(worker, function, tell, part=part, told=True, **given)

        def all_of_them(workers: list[Worker]) -> None:
            with ThreadPoolExecutor(given["parts"]) as pool:
                asked = [pool.submit(run, worker, part) for part, worker in enumerate(workers)]
                try:
                    for future in asked:
                        future.result()
                except BaseException:  # ^C too: the threads wait for workers, so end these first
                    for worker in workers:
                        worker.kill()
                    raise

        self.host.helped(HELPERS, all_of_them, given["parts"])


def _ask(
    worker: Worker,
    function: str,
    progress: Callable[[int, int], None] | None,
    **arguments: Any,
) -> Any:
    """Raises UnsupportedError for whatever goes wrong in the worker."""
    try:
        return worker.call(
            "call",
            timeout_s=86400,
            progress=progress,
            function=f"onmetal.{function}",
            **arguments,
        )
    except UnsupportedError:
        raise
    except OnmetalError as error:
        raise UnsupportedError(f"it cannot be quantized: {error}") from None
