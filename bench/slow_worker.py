"""A worker whose ONNX Runtime sessions waste time after every inference of a file named `slow…`.

Started by planted.py in place of onmetal's own worker; it is that worker but for the wait.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.profilers import worker
from onmetal.runtimes.onnxruntime import session

WAIT_NS = int(os.environ["ONMETAL_BENCH_WAIT_NS"])


class Slowed(session.Session):
    def __init__(self, files: list[str], *rest: Any) -> None:
        super().__init__(files, *rest)
        self.wait_ns = WAIT_NS if Path(files[0]).name.startswith("slow") else 0

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        found = super().run(feed)
        end = time.perf_counter_ns() + self.wait_ns
        while time.perf_counter_ns() < end:
            pass
        return found


if __name__ == "__main__":
    session.Session = Slowed  # type: ignore[misc, assignment]
    worker.main()
