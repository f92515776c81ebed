"""The child process in which foreign files are read, candidates converted and models run.

It answers requests, one line of JSON each, on the pipe that was its standard output; what runtimes
print goes to standard error instead.
"""

import base64
import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onmetal import limits, runtimes
from onmetal.converters import format_named
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError, reason
from onmetal.profilers import memory
from onmetal.profilers.operation import perform
from onmetal.profilers.tensor_bytes import Rows, read_feeds
from onmetal.runtimes import firmware

PACED_S = 0.3
"""How long inferences are timed to know how many of them fill a longer time."""

_answers = sys.stdout


def answer(**message: Any) -> None:
    _answers.write(json.dumps(message) + "\n")
    _answers.flush()


class State:
    """What one worker holds open: a session and the inputs it is timed with."""

    session: Any = None
    feeds: list[dict[str, np.ndarray]] = []  # noqa: RUF012  one State a process


def call(function: str, arguments: dict[str, Any]) -> Any:
    """Any `module:function` of onmetal's own, by name."""
    return perform(function, arguments, _report_progress)


_last_told = 0.0


def _report_progress(done: int, total: int) -> None:
    global _last_told
    if time.monotonic() - _last_told > 0.5:
        _last_told = time.monotonic()
        answer(progress=[done, total])


def open_(
    runtime: str, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
) -> dict[str, float]:
    """Open the artifact. -> how long that took, the runtime already imported."""
    module = runtimes.runtime(runtime).session()
    began = time.perf_counter()
    try:
        State.session = module.Session(files, options, inputs, outputs)
    except Exception as error:
        raise UnsupportedError(reason(error)) from None
    return {"load_ms": (time.perf_counter() - began) * 1e3}


def open_reference(form: str, path: str, inputs: list[str], outputs: list[str]) -> None:
    """Open a prepared model by what defines its format."""
    try:
        State.session = format_named(form).reference(Path(path), inputs, outputs)
    except Exception as error:
        raise UnsupportedError(reason(error)) from None


def let_go() -> None:
    """Close what is open: a process that serves again does not hold the memory of it."""
    State.session = None
    gc.collect()


def feeds(path: str) -> None:
    """The inputs to be timed with."""
    State.feeds = read_feeds(Path(path))


def warm(seconds: float, least: int) -> int:
    """Run for a time and a count until the running median is steady. -> inferences run.

    Steady: the medians of the last two thirds differ by less than 3 %. Given up after three times
    `seconds`: a noisy machine is never steady, and a slow model warms in few inferences.
    """
    run, feed = State.session.run, State.feeds[0]
    began = time.perf_counter()
    samples: list[int] = []
    while True:
        samples += timed(run, feed, seconds / 6, 1)
        elapsed_s = time.perf_counter() - began
        if elapsed_s > 3 * seconds and len(samples) > 1:
            return len(samples)
        if elapsed_s < seconds or len(samples) < max(least, 6):
            continue
        third = len(samples) // 3
        middle, last = np.median(samples[third : 2 * third]), np.median(samples[2 * third :])
        if abs(middle - last) < 0.03 * last:
            return len(samples)


def timed(
    run: Callable[[dict[str, np.ndarray]], Any],
    feed: dict[str, np.ndarray],
    seconds: float,
    least: int,
) -> list[int]:
    """Inference after inference for a time and a count. -> nanoseconds of each."""
    clock = time.perf_counter_ns
    samples: list[int] = []
    keep = samples.append
    before = clock()
    end = before + int(seconds * 1e9)
    while True:
        run(feed)
        after = clock()
        keep(after - before)
        if after >= end and len(samples) >= least:
            return samples
        before = clock()


def round_(seconds: float, least: int, warm_seconds: float, feed: int) -> str:
    """One timed round on one of the feeds. -> base64 of int64 nanoseconds."""
    run, chosen = State.session.run, State.feeds[feed % len(State.feeds)]
    with _without_collector():
        timed(run, chosen, warm_seconds, 2)
        samples = timed(run, chosen, seconds, least)
    return base64.b64encode(np.array(samples, np.int64).tobytes()).decode()


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def pace(seconds: float) -> int:
    """How many inferences on the first feed last `seconds`."""
    run, feed = State.session.run, State.feeds[0]
    samples = timed(run, feed, min(seconds, PACED_S), 3)
    return max(1, round(seconds / (float(np.median(samples)) / 1e9)))


def burst(count: int) -> None:
    """Run `count` inferences, one after another."""
    run, feed = State.session.run, State.feeds[0]
    with _without_collector():
        for _ in range(count):
            run(feed)


def outputs(samples: dict[str, Any], model: dict[str, Any], count: int, folder: str) -> None:
    """Run the first `count` samples; every output's rows go to `<number of output>.npy`."""
    from onmetal.records import Model, restore
    from onmetal.samples import Samples

    data, model_record = restore(samples, Samples), restore(model, Model)
    rows = Rows(Path(folder), model_record, count)
    for start in range(0, count, model_record.batch):
        rows.add(start, State.session.run(data.feed(model_record, rows.indices(start))))
        _report_progress(min(start + model_record.batch, count), count)


def run(path: str, folder: str) -> None:
    """Run every feed of an .npz as `feeds` reads it; outputs go to `<feed>-<output>.npy`."""
    feeds(path)
    for number, feed in enumerate(State.feeds):
        for place, array in enumerate(State.session.run(feed)):
            np.save(Path(folder) / f"{number}-{place}.npy", array)


def profile(runtime: str, **arguments: Any) -> dict[str, Any]:
    """The operators that really ran, from the runtime's own profile."""
    figures: dict[str, Any] = (
        runtimes.runtime(runtime).profiler().profile(feed=State.feeds[0], **arguments)
    )
    return figures


def arena(runtime: str, **arguments: Any) -> dict[str, Any]:
    """What an inference takes of TFLite Micro's arena, in bytes."""
    figures: dict[str, Any] = firmware(runtime).arena(feed=State.feeds[0], **arguments)
    return figures


def layers(runtime: str, **arguments: Any) -> list[dict[str, Any]]:
    """The time of every kernel, from the runtime's own profile."""
    figures: list[dict[str, Any]] = (
        runtimes.runtime(runtime).profiler().layers(feed=State.feeds[0], **arguments)
    )
    return figures


def peak_memory(runtime: str, options: dict[str, Any], **arguments: Any) -> dict[str, int]:
    """Bytes of this process before the artifact is opened, and at its peak while it runs."""
    return memory.peak(runtime, State.feeds[0], options, arguments)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "restrict_reading": limits.restrict_reading,
    "call": call,
    "open": open_,
    "open_reference": open_reference,
    "let_go": let_go,
    "feeds": feeds,
    "warm": warm,
    "round": round_,
    "pace": pace,
    "burst": burst,
    "outputs": outputs,
    "run": run,
    "profile": profile,
    "layers": layers,
    "arena": arena,
    "peak_memory": peak_memory,
}


def _die_with_parent() -> None:
    """Linux: end this process when its parent is killed, even in the middle of an inference."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if str(os.getppid()) != os.environ.get("ONMETAL_PARENT"):
            sys.exit(0)  # the parent had ended before prctl was called


def main() -> None:
    global _answers
    _die_with_parent()
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for runtime in sys.argv[1:]:
        with contextlib.suppress(Exception):  # opening an artifact reports what is wrong with it
            runtimes.runtime(runtime).session()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(result=OPERATIONS[request["op"]](**request["arguments"]))
        except OnmetalError as error:
            answer(error=type(error).__name__, message=str(error))
        except MemoryError:
            answer(error=DeviceError.__name__, message="out of memory")
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            answer(error=DeviceError.__name__, message=f"{type(error).__name__}: {reason(error)}")


if __name__ == "__main__":
    main()
