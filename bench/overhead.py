"""What the harness adds to an inference: an Identity model through it, and in a bare loop.

    python bench/overhead.py [--times 20]

Both in one process and one session, in turn. The harness: wall time of a round over its inferences,
so that its clock reads and its bookkeeping count too. The bare loop: session.run(outputs, feed) and
nothing else.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from onmetal.profilers.memory import IDENTITY
from onmetal.profilers.worker import timed
from onmetal.runtimes.onnxruntime import convert as converter
from onmetal.runtimes.onnxruntime.session import Session

COUNT = 20_000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--times", type=int, default=20)
    asked = options.parse_args()
    feed = {"x": np.zeros(1, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "identity.onnx"
        path.write_bytes(IDENTITY)
        session = Session([str(path)], converter.options("f32", 1), ["x"], ["y"])
    bare = session.session.run
    gaps, bases, shown = [], [], []
    for _ in range(asked.times):
        began = time.perf_counter_ns()
        samples = timed(session.run, feed, 0.1, COUNT)
        harness_us = (time.perf_counter_ns() - began) / len(samples) / 1e3
        began = time.perf_counter_ns()
        for _ in range(COUNT):
            bare(["y"], feed)
        bare_us = (time.perf_counter_ns() - began) / COUNT / 1e3
        gaps.append(harness_us - bare_us)
        bases.append(bare_us)
        shown.append(float(np.median(samples)) / 1e3 - bare_us)
    low, middle, high = np.percentile(gaps, [5, 50, 95])
    print(f"bare loop {np.median(bases):.2f} us an inference")
    print(f"the harness adds {middle:.2f} us of wall time [{low:.2f}, {high:.2f}]")
    print(f"of which the p50 that it reports shows {np.median(shown):.2f} us")


if __name__ == "__main__":
    main()
