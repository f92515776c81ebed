"""Runs and times models on a device that has Python: pushed there as this one file.

It uses whichever of ai_edge_litert, tflite_runtime, onnxruntime and openvino the device has, and
says which in its first line. Requests and answers are those of the native runner (see
native/runner.c); needs NumPy and Python 3.7, nothing of onmetal's.
"""

from __future__ import annotations

import base64
import gc
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


class LiteRT:
    def __init__(self, path: str, options: dict[str, str]) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            from tflite_runtime.interpreter import Interpreter
        self.interpreter = Interpreter(
            model_path=path, num_threads=int(options.get("num_threads", 1))
        )
        self.interpreter.allocate_tensors()
        self.stateful = options.get("stateful", "0") != "0"
        signatures = self.interpreter.get_signature_list()
        takes, gives = {}, {}
        if len(signatures) == 1:
            runner = self.interpreter.get_signature_runner(next(iter(signatures)))
            takes, gives = (
                {entry["index"]: name for name, entry in found.items()}
                for found in (runner.get_input_details(), runner.get_output_details())
            )
        self.taken = self.interpreter.get_input_details()
        self.given = self.interpreter.get_output_details()
        self.inputs = [self._port(entry, takes) for entry in self.taken]
        self.outputs = [self._port(entry, gives) for entry in self.given]

    @staticmethod
    def _port(entry: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
        scale, zero = entry["quantization"]
        name = names.get(entry["index"], entry["name"])
        return port(name, entry["dtype"], entry["shape"], scale, zero)

    def run(self, arrays: list[Any]) -> list[Any]:
        for entry, array in zip(self.taken, arrays):
            self.interpreter.set_tensor(entry["index"], array)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(entry["index"]) for entry in self.given]

    def reset(self) -> None:
        if self.stateful:
            self.interpreter.reset_all_variables()

    def profile(self, path: str) -> None:
        ops = [
            {
                "index": int(op["index"]),
                "op_name": str(op["op_name"]),
                "inputs": [int(tensor) for tensor in op["inputs"]],
                "outputs": [int(tensor) for tensor in op["outputs"]],
            }
            for op in self.interpreter._get_ops_details()
        ]
        types = {
            int(entry["index"]): np.dtype(entry["dtype"]).name
            for entry in self.interpreter.get_tensor_details()
            if entry["name"]
        }
        with open(path, "w") as file:
            json.dump({"ops": ops, "types": types}, file)


class OnnxRuntime:
    TYPES: ClassVar = {
        "tensor(float)": "float32",
        "tensor(float16)": "float16",
        "tensor(double)": "float64",
        "tensor(bool)": "bool",
    }

    def __init__(self, path: str, options: dict[str, str]) -> None:
        import onnxruntime

        enums = {
            "execution_mode": onnxruntime.ExecutionMode,
            "graph_optimization_level": onnxruntime.GraphOptimizationLevel,
        }
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for name, value in options.items():
            if name == "profile":
                settings.enable_profiling = True
                settings.profile_file_prefix = value
            elif "." in name:
                settings.add_session_config_entry(name, value)
            elif name in enums:
                setattr(settings, name, getattr(enums[name], value))
            elif hasattr(settings, name):
                kind = type(getattr(settings, name))
                setattr(settings, name, value in ("True", "1") if kind is bool else kind(value))
            elif name != "stateful":
                raise ValueError("onnxruntime has no option " + name)
        self.session = onnxruntime.InferenceSession(
            path, settings, providers=["CPUExecutionProvider"]
        )
        self.inputs = [self._port(entry) for entry in self.session.get_inputs()]
        self.outputs = [self._port(entry) for entry in self.session.get_outputs()]
        self.names = [entry["name"] for entry in self.inputs]

    def _port(self, entry: Any) -> dict[str, Any]:
        kind = self.TYPES.get(entry.type) or entry.type[len("tensor(") : -1]
        return port(entry.name, kind, entry.shape, 0.0, 0)

    def run(self, arrays: list[Any]) -> list[Any]:
        found: list[Any] = self.session.run(None, dict(zip(self.names, arrays)))
        return found

    def reset(self) -> None:
        pass

    def profile(self, path: str) -> None:
        os.replace(self.session.end_profiling(), path)


class OpenVINO:
    def __init__(self, path: str, options: dict[str, str]) -> None:
        import openvino

        ours = ("stateful", "profile")
        properties = {name: value for name, value in options.items() if name not in ours}
        model = openvino.Core().compile_model(path, "CPU", properties)
        self.request = model.create_infer_request()
        self.inputs = [self._port(entry) for entry in model.inputs]
        self.outputs = [self._port(entry) for entry in model.outputs]

    @staticmethod
    def _port(entry: Any) -> dict[str, Any]:
        kind = entry.get_element_type().to_dtype()
        return port(entry.get_any_name(), kind, list(entry.get_shape()), 0.0, 0)

    def run(self, arrays: list[Any]) -> list[Any]:
        self.request.infer(dict(enumerate(arrays)), share_inputs=True)
        return [self.request.get_output_tensor(i).data.copy() for i in range(len(self.outputs))]

    def reset(self) -> None:
        self.request.reset_state()

    def profile(self, path: str) -> None:
        raise RuntimeError("OpenVINO's profile can only be read where onmetal runs itself")


RUNTIMES: dict[str, Any] = {"litert": LiteRT, "onnxruntime": OnnxRuntime, "openvino": OpenVINO}


def port(name: str, dtype: Any, shape: Any, scale: float, zero: int) -> dict[str, Any]:
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
    told = 0.0
    path = ""


def answer(**message: Any) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def options_of(words: Any) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def imported(runtime: str) -> None:
    """Loading a model is timed with its runtime already imported."""
    if runtime == "litert":
        try:
            import ai_edge_litert.interpreter  # noqa: F401
        except ImportError:
            import tflite_runtime.interpreter  # noqa: F401
    else:
        __import__(runtime)


def open_(runtime: str, library: str, path: str, *words: str) -> dict[str, Any]:
    imported(runtime)
    began = time.perf_counter()
    State.session = RUNTIMES[runtime](path, options_of(words))
    took = (time.perf_counter() - began) * 1e3
    return {"load_ms": took, "inputs": State.session.inputs, "outputs": State.session.outputs}


def arrays_of(content: bytes, ports: list[dict[str, Any]]) -> list[Any]:
    found, place = [], 0
    for entry in ports:
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
            if time.monotonic() - State.told > 0.5:
                State.told = time.monotonic()
                answer(progress=[number + 1, int(count)])


def status(field: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no " + field)


def memory(runtime: str, library: str, trivial: str, path: str, *words: str) -> dict[str, Any]:
    options = options_of(words)
    imported(runtime)

    def zeros(session: Any) -> list[Any]:
        return [np.zeros(entry["shape"], entry["dtype"]) for entry in session.inputs]

    first = RUNTIMES[runtime](trivial, options)
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
    session = RUNTIMES[runtime](path, options)
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
