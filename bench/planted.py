"""How often a planted slow-down is found: one model against itself plus a busy-wait.

    python bench/planted.py [--model FILE] [--percent 5] [--times 20] [--mode default]

The wait is that share of the median latency, which is measured first. The seed of comparison k is
k. Everything but the wait is what `deploy bench` does.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from onmetal.calibration import samples
from onmetal.deploy import model
from onmetal.deploy.convert import convert
from onmetal.files.cache import Cache
from onmetal.profilers import intervals, measure
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker, quiet_environment
from onmetal.records import Candidate
from onmetal.runtimes import fit

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples/digits/digits_cnn.onnx"


class Slowing(Local):
    def worker(self, runtime: str | None = None) -> LocalWorker:
        return LocalWorker(quiet_environment(self.home), [str(HERE / "slow_worker.py")])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", type=Path, default=EXAMPLE)
    options.add_argument("--percent", type=float, default=5.0)
    options.add_argument("--times", type=int, default=20)
    options.add_argument("--mode", choices=tuple(measure.MODES), default="default")
    asked = options.parse_args()
    with Cache() as cache, cache.scratch() as folder:
        plain, slow, feeds = _prepare(asked.model, cache, folder)
        device = Slowing(cache)
        found, longest = 0, 0.0
        for seed in range(asked.times):
            os.environ["ONMETAL_BENCH_WAIT_NS"] = "0"
            before = measure.measure(
                device, [plain], lambda _: feeds, measure.MODES["quick"], _quiet, seed=seed
            )
            p50_ns = intervals.latency(before.rounds[plain.name]).p50 * 1e6
            os.environ["ONMETAL_BENCH_WAIT_NS"] = str(int(p50_ns * asked.percent / 100))
            began = time.monotonic()
            outcome = measure.measure(
                device, [plain, slow], lambda _: feeds, measure.MODES[asked.mode], _quiet, seed=seed
            )
            longest = max(longest, time.monotonic() - began)
            versus = intervals.compare(outcome.rounds[plain.name], outcome.rounds[slow.name])
            found += versus.verdict == "slower"
            low, high = versus.ci95
            print(
                f"seed {seed}: p50 {p50_ns / 1e6:.4f} ms, {versus.speedup:.4f} "
                f"[{low:.4f}, {high:.4f}] {versus.verdict}",
                flush=True,
            )
    print(f"{found} of {asked.times} found slower; the longest took {longest:.0f} s")


def _prepare(path: Path, cache: Cache, folder: Path) -> tuple[Candidate, Candidate, Path]:
    target = fit.load_target("x86-onnxruntime")
    device = Local(cache)
    found = model.read(path, {}, None, cache, device)
    threads = device.facts().cores
    recipe = target.recipe("fp32")
    plain = convert("plain", found, recipe, "onnxruntime", target, threads, device, cache)
    copy = Path(tempfile.mkdtemp(dir=folder)) / "slow.onnx"
    shutil.copyfile(plain.files[0], copy)
    data = samples.random(found, cache, found.batch)
    feeds = folder / "feeds.npz"
    fed = data.feed(found, range(found.batch))
    np.savez(feeds, **{f"0/{name}": array for name, array in fed.items()})  # type: ignore[arg-type]
    return plain, replace(plain, name="slow", files=(copy,)), feeds


def _quiet(done: float, total: float, what: str) -> None:
    pass


if __name__ == "__main__":
    main()
