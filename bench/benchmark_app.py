"""Medians of `deploy bench` against OpenVINO's own benchmark_app, at equal settings, in turn.

    python bench/benchmark_app.py MODEL.onnx [MODEL.onnx …] [--threads 1] [--times 7]

benchmark_app comes with `pip install openvino`: -hint none, synchronous, f32, one stream, the
threads asked for. Both run the same IR file; the ratio is ours over theirs, pair by pair.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("models", nargs="+", type=Path)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--times", type=int, default=7)
    asked = options.parse_args()
    for path in asked.models:
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            job = f"--target x86-openvino --recipes fp32 --no-device --threads {asked.threads}"
            _run("-m", "onmetal.cli", path, "--out", bundle, *job.split())
            ratios, theirs = [], []
            for seed in range(asked.times):
                ours_ms = _ours(bundle / "model.xml", asked.threads, seed)
                theirs_ms = _theirs(bundle / "model.xml", asked.threads, Path(folder))
                ratios.append(ours_ms / theirs_ms)
                theirs.append(theirs_ms)
        low, middle, high = np.percentile(ratios, [0, 50, 100])
        print(
            f"{path.name}: benchmark_app {np.median(theirs):.4f} ms; ours over theirs "
            f"{middle:.4f} [{low:.4f}, {high:.4f}] over {asked.times} pairs",
            flush=True,
        )


def _run(*words: object) -> str:
    done = subprocess.run([sys.executable, *map(str, words)], check=True, capture_output=True)
    return done.stdout.decode()


def _ours(path: Path, threads: int, seed: int) -> float:
    options = f"--target x86-openvino --quick --json --threads {threads} --seed {seed}"
    text = _run("-m", "onmetal.cli", "bench", path, *options.split())
    return float(json.loads(text)["candidates"][0]["latency_ms"]["p50"])


def _theirs(path: Path, threads: int, folder: Path) -> float:
    options = (
        f"-d CPU -api sync -hint none -nstreams 1 -nthreads {threads} -infer_precision f32 -t 2"
    )
    program = Path(sys.executable).parent / "benchmark_app"
    # -report_folder keeps its statistics out of the current folder.
    text = _run(program, "-m", path, *options.split(), "-report_folder", folder)
    found = re.search(r"Median:\s+([0-9.]+) (ms|us)", text)
    if found is None:
        sys.exit(f"benchmark_app printed no median:\n{text[-2000:]}")
    return float(found[1]) * (1.0 if found[2] == "ms" else 1e-3)


if __name__ == "__main__":
    main()
