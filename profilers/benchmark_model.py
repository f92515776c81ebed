"""Google's `benchmark_model`, where the user points at a copy: run beside onmetal's own runner and
read, as a second opinion. It gives no single latencies, so nothing is paired with it or decided by
it. https://ai.google.dev/edge/litert/models/measurement"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from onmetal.errors import DeviceError, UsageError
from onmetal.profilers import Device
from onmetal.profilers.board import Board
from onmetal.profilers.folder import shell
from onmetal.profilers.local import Local

LIMIT_S = 300.0
RUNS, SECONDS = 50, 2.0
_NUMBER = r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
_COUNT = re.compile(r"count=(\d+)\b(.*)")
_VALUE = re.compile(rf"(\w+)={_NUMBER}(?![\w.])")
_TIMINGS = re.compile(rf"Init:\s*{_NUMBER}.*?First inference:\s*{_NUMBER}")
_MEMORY = re.compile(
    rf"(?:Memory footprint delta|Peak memory footprint).*?overall={_NUMBER}", re.DOTALL
)


def check(program: Path) -> None:
    """Raises UsageError where there is no such program."""
    if not program.is_file():
        raise UsageError(f"--benchmark-model {program}: there is no such file")


def run(device: Device, program: Path, artifact: Path, threads: int) -> dict[str, Any]:
    """What it says of a .tflite file on the device.

    Raises UsageError where there is no such program, DeviceError where it fails.
    """
    check(program)
    words = [
        f"--num_threads={threads}",
        f"--num_runs={RUNS}",
        f"--min_secs={SECONDS}",
        f"--max_secs={LIMIT_S / 2}",
        "--use_xnnpack=true",
        "--report_peak_memory_footprint=true",
    ]
    if isinstance(device, Local):
        text = _here([str(program.absolute()), f"--graph={artifact}", *words])
    elif isinstance(device, Board):
        raise DeviceError("benchmark_model is not for microcontrollers")
    else:
        there = device.folder.put([program, artifact])
        argv = [there[0], f"--graph={there[1]}", *words]
        text = shell(device.transport, " ".join(map(shlex.quote, argv)) + " 2>&1", LIMIT_S)
    return parse(text)


def _here(argv: list[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"benchmark_model could not be run: {error}") from None
    if done.returncode:
        said = " / ".join((done.stdout + done.stderr).strip().splitlines()[-2:])
        raise DeviceError(f"benchmark_model failed with code {done.returncode}: {said}")
    return done.stdout + done.stderr


def parse(text: str) -> dict[str, Any]:
    """Its log -> milliseconds and bytes; of its several `count=` lines the last are the timed ones.

    Raises DeviceError where there are none.
    """
    counts = [found for found in _COUNT.findall(text) if int(found[0])]
    if not counts:
        said = " / ".join(text.strip().splitlines()[-2:])
        raise DeviceError(f"benchmark_model gave no timings: {said}")
    values = {name: float(value) for name, value in _VALUE.findall(counts[-1][1])}
    if "avg" not in values and "curr" in values:  # one run, or all of one length
        values |= dict.fromkeys(("avg", "min", "max"), values["curr"])
    found: dict[str, Any] = {"runs": int(counts[-1][0])}
    for name in ("avg", "min", "max", "std", "median", "p5", "p95"):
        if name in values:
            found[f"{name}_ms"] = values[name] / 1e3
    if timings := _TIMINGS.search(text):
        found["init_ms"] = float(timings[1]) / 1e3
        found["first_ms"] = float(timings[2]) / 1e3
    if memory := _MEMORY.search(text):
        found["memory_bytes"] = float(memory[1]) * 2**20  # its MB are KiB / 1024
    return found
