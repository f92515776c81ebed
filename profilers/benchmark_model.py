"""Google's `benchmark_model`, where the user points at a copy: run beside onmetal's own runner and
read, as a second opinion. It gives no single latencies, so nothing is paired with it or decided by
it. https://ai.google.dev/edge/litert/models/measurement"""

import re
from pathlib import Path
from typing import Any

from onmetal.errors import DeviceError, UsageError
from onmetal.profilers.devices import Device
from onmetal.profilers.output import quoted

LIMIT_S = 300.0
RUNS, SECONDS = 50, 2.0
LOG_LENGTH, LINE_LENGTH = 1 << 20, 1000
"""Most characters of its log, and of a line in it, that are read; an ordinary log has 5000."""
_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,2})?)(?![\w.])"
_COUNT = re.compile(r"\bcount=([0-9]{1,9})\b(.*)")
_VALUE = re.compile(rf"\b(\w{{1,20}})={_NUMBER}")
_INIT = re.compile(rf"Init:\s?{_NUMBER}")
_FIRST = re.compile(rf"First inference:\s?{_NUMBER}")
_FOOTPRINT = re.compile("Memory footprint delta|Peak memory footprint")
_OVERALL = re.compile(rf"overall={_NUMBER}")


def check(program: Path) -> None:
    """Raises UsageError where there is no such program."""
    if not program.is_file():
        raise UsageError(f"--benchmark-model {program}: there is no such file")


def run(device: Device, program: Path, artifact: Path, threads: int) -> dict[str, Any]:
    """Run it with a .tflite file on the device. -> its figures, as `parse` reads them.

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
    text = device.execute(program, {"graph": artifact}, words, LIMIT_S)
    try:
        return parse(text)
    except DeviceError as error:
        raise DeviceError(f"{device.address}: {error}") from None


def parse(text: str) -> dict[str, Any]:
    """Its log -> milliseconds and bytes; of its several `count=` lines the last is the timed runs'.

    Raises DeviceError where there are none.
    """
    lines = [line[:LINE_LENGTH] for line in text[-LOG_LENGTH:].splitlines()]
    matches = [match for line in lines if (match := _COUNT.search(line))]
    counts = [match.groups() for match in matches if int(match[1])]
    if not counts:
        raise DeviceError(f"benchmark_model gave no timings: {quoted(text, 2)}")
    values = {name: float(value) for name, value in _VALUE.findall(counts[-1][1])}
    if "avg" not in values and "curr" in values:  # one run, or all of one length
        values |= dict.fromkeys(("avg", "min", "max"), values["curr"])
    figures: dict[str, Any] = {"runs": int(counts[-1][0])}
    for name in ("avg", "min", "max", "std", "median", "p5", "p95"):
        if name in values:
            figures[f"{name}_ms"] = values[name] / 1e3
    timings = [(_INIT.search(line), _FIRST.search(line)) for line in lines if "Init:" in line]
    for init, first in timings:
        if init and first:
            figures |= {"init_ms": float(init[1]) / 1e3, "first_ms": float(first[1]) / 1e3}
            break
    first_footprint = next(
        (n for n, line in enumerate(lines) if _FOOTPRINT.search(line)), len(lines)
    )
    memory = next(
        (match for line in lines[first_footprint:] if (match := _OVERALL.search(line))), None
    )
    if memory:
        figures["memory_bytes"] = float(memory[1]) * 2**20  # its MB are KiB / 1024
    return figures
