"""How often two copies of one artifact are called different: `deploy bench A B`, many times over.

    python bench/false_alarms.py [--model FILE] [--times 60] [--mode default]

Half of the comparisons run in ONNX Runtime, half in OpenVINO. The seed of comparison k is k. At
five per cent a comparison, three of sixty would be expected; onmetal's intervals aim lower.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/digits/digits_cnn.onnx"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", type=Path, default=EXAMPLE)
    options.add_argument("--times", type=int, default=60)
    options.add_argument("--mode", choices=("default", "quick", "thorough"), default="default")
    asked = options.parse_args()
    mode = [] if asked.mode == "default" else [f"--{asked.mode}"]
    verdicts: dict[str, int] = {}
    longest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / "a.onnx", Path(folder) / "b.onnx"]
        for copy in copies:
            shutil.copyfile(asked.model, copy)
        for seed in range(asked.times):
            target = ("x86-onnxruntime", "x86-openvino")[seed % 2]
            began = time.monotonic()
            words = ["bench", *map(str, copies), "--target", target, "--seed", str(seed), "--json"]
            done = subprocess.run(
                [sys.executable, "-m", "onmetal.cli", *words, *mode],
                check=True,
                capture_output=True,
            )
            longest = max(longest, time.monotonic() - began)
            second = json.loads(done.stdout)["candidates"][1]["versus_baseline"]
            verdicts[second["verdict"]] = verdicts.get(second["verdict"], 0) + 1
            low, high = second["ci95"]
            print(
                f"seed {seed} {target}: {second['speedup']:.4f} [{low:.4f}, {high:.4f}] "
                f"{second['verdict']}",
                flush=True,
            )
    wrong = asked.times - verdicts.get("inconclusive", 0)
    print(f"{wrong} of {asked.times} called faster or slower; the longest took {longest:.0f} s")


if __name__ == "__main__":
    main()
