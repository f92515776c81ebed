"""Runs and times models on a device that has Python: pushed there beside engine.py.

engine.py is the on_device.py of the runtime's folder: it says how the models of that runtime are
opened and run. Requests and answers are those of the native runner (see native/runner.c); needs
NumPy and Python 3.7, nothing of onmetal's.
"""

from __future__ import annotations

import base64
import gc
import importlib
import json
import os
import resource
import select
import sys
import threading
import time
from typing import Any, Callable, ClassVar

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a runtime prints must not come between answers

IDLE_S = 3600


def engine() -> Any:
    """The module beside this one that runs the models of the runtime."""
    return importlib.import_module("engine")


def described(name: str, dtype: Any, shape: Any, scale: float, zero: int) -> dict[str, Any]:
    dtype, shape = np.dtype(dtype), [int(n) for n in shape]
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return {
        "name": name,
        "dtype": dtype.name,
        "bytes": size,
        "scale": float(scale),
        "zero": int(zero),
        "shape": shape,
    }


class State:
    session: Any = None
    feeds: ClassVar[list[list[Any]]] = []
    reported_s = 0.0
    path = ""


def answer(**message: Any) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def options_of(words: Any) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def open_(runtime: str, library: str, path: str, *words: str) -> dict[str, Any]:
    engine().load()  # loading a model is timed with its runtime already imported
    began = time.perf_counter()
    State.session = engine().Model(path, options_of(words), described)
    took = (time.perf_counter() - began) * 1e3
    return {"load_ms": took, "inputs": State.session.inputs, "outputs": State.session.outputs}


def arrays_of(content: bytes, tensors: list[dict[str, Any]]) -> list[Any]:
    found, place = [], 0
    for entry in tensors:
        piece = content[place : place + entry["bytes"]]
        found.append(np.frombuffer(piece, np.dtype(entry["dtype"])).reshape(entry["shape"]))
        place += entry["bytes"]
    return found


def input_bytes() -> int:
    return sum(entry["bytes"] for entry in State.session.inputs)


def feeds(path: str, count: str) -> None:
    each = input_bytes()
    with open(path, "rb") as file:
        content = file.read()
    State.feeds = [
        arrays_of(content[i * each : (i + 1) * each], State.session.inputs)
        for i in range(int(count))
    ]


def burst(feed: list[Any], seconds: float, least: int) -> list[int]:
    clock, run = time.perf_counter_ns, State.session.run
    samples: list[int] = []
    before = clock()
    end = before + int(seconds * 1e9)
    while True:
        run(feed)
        after = clock()
        samples.append(after - before)
        if after >= end and len(samples) >= least:
            return samples
        before = clock()


def warm(seconds: str, least: str) -> int:
    long, most = float(seconds), max(int(least), 6)
    samples: list[int] = []
    began = time.perf_counter()
    while True:
        samples += burst(State.feeds[0], long / 6, 1)
        spent = time.perf_counter() - began
        if spent > 3 * long and len(samples) > 1:
            return len(samples)
        if spent < long or len(samples) < most:
            continue
        third = len(samples) // 3
        middle, last = np.median(samples[third : 2 * third]), np.median(samples[2 * third :])
        if abs(middle - last) < 0.03 * last:
            return len(samples)


def round_(seconds: str, least: str, warm_seconds: str, feed: str) -> str:
    chosen = State.feeds[int(feed) % len(State.feeds)]
    gc.collect()
    gc.disable()
    try:
        burst(chosen, float(warm_seconds), 2)
        samples = burst(chosen, float(seconds), int(least))
    finally:
        gc.enable()
    return base64.b64encode(np.array(samples, np.int64).tobytes()).decode()


def run(source: str, count: str, target: str) -> None:
    each = input_bytes()
    with open(source, "rb") as taken, open(target, "wb") as given:
        for number in range(int(count)):
            State.session.reset()
            for array in State.session.run(arrays_of(taken.read(each), State.session.inputs)):
                given.write(np.ascontiguousarray(array).tobytes())
            if time.monotonic() - State.reported_s > 0.5:
                State.reported_s = time.monotonic()
                answer(progress=[number + 1, int(count)])


def status(field: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no " + field)


def memory(runtime: str, library: str, trivial: str, path: str, *words: str) -> dict[str, Any]:
    options = options_of(words)
    engine().load()

    def zeros(session: Any) -> list[Any]:
        return [np.zeros(entry["shape"], entry["dtype"]) for entry in session.inputs]

    first = engine().Model(trivial, options, described)
    first.run(zeros(first))
    del first
    gc.collect()
    exact = True
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        exact = False
    baseline = status("VmRSS")
    session = engine().Model(path, options, described)
    for _ in range(5):
        session.run(zeros(session))
    peak = status("VmHWM") if exact else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"baseline": baseline, "peak": peak, "exact": exact}


def profile(seconds: str) -> dict[str, int]:
    samples = burst(State.feeds[0], float(seconds), 3)
    State.session.profile(State.path)
    return {"inferences": len(samples)}


OPERATIONS: dict[str, Callable[..., Any]] = {
    "open": open_,
    "feeds": feeds,
    "warm": warm,
    "round": round_,
    "run": run,
    "memory": memory,
    "profile": profile,
}


def watch() -> None:
    """End when nobody can ask any more, even in the middle of an inference."""
    poller = select.poll()
    poller.register(0, select.POLLRDHUP if hasattr(select, "POLLRDHUP") else 0)
    poller.poll()
    os._exit(0)


def main() -> None:
    threading.Thread(target=watch, daemon=True).start()
    cores = sorted(os.sched_getaffinity(0))
    answer(runner="python", pid=os.getpid(), cores=cores, python=sys.version.split()[0])
    while select.select([0], [], [], IDLE_S)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        op, *words = line.rstrip("\r\n").split("\t")
        for word in words:
            if op == "open" and word.startswith("profile="):
                State.path = word[len("profile=") :]
        try:
            answer(result=OPERATIONS[op](*words))
        except MemoryError:
            answer(error="DeviceError", message="out of memory")
        except Exception as error:
            kind = "UnsupportedError" if op == "open" else "DeviceError"
            said = " ".join(str(error).split())[:600] or type(error).__name__
            answer(error=kind, message=said)


if __name__ == "__main__":
    main()
