"""Doubles of a board and of a power meter, at the other end of a pseudo-terminal or a TCP port.

The board speaks the line protocol as a bundle's firmware does, or as that of others, and what it
computes is real: the .tflite file runs in `tflite_micro`, in a process of its own. Its clock is
this machine's. It fails when and how it is told to. The meter follows UM2269.

    with Peer(path) as peer:
        deploy(..., "--device", peer.address)
"""

import atexit
import contextlib
import hashlib
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

Kind = Literal["garbage", "cut", "odd", "short", "reset", "silence", "error", "hang-up"]


INFERENCE_S = 0.005
"""How long a steady model takes."""


class Fault(Struct, frozen=True):
    """Of the answer to a command: garbage between its lines; a line cut off; a digit of
    its hex lost; its last line of data lost; the board restarts in the middle; nothing comes; an
    error; the line is closed."""

    command: str
    kind: Kind
    times: int = 1
    """So often, then no more; -1: always."""


class Model:
    """A .tflite file in an interpreter of its own process."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.busy = False
        said = self._answer()
        self.input_bytes: int = said["input_bytes"]
        self.scale: float = said["scale"]
        self.zero: int = said["zero"]
        self.dtype: str = said["dtype"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def run(self, data: bytes, count: int) -> list[bytes]:
        """The outputs' bytes of the last of so many inferences."""
        assert self._process.stdin
        self.busy = True
        self._process.stdin.write(f"{count} {data.hex()}\n")
        self._process.stdin.flush()
        found = [bytes.fromhex(text) for text in self._answer()["outputs"]]
        self.busy = False
        return found

    def kill(self) -> None:
        """From any thread: who waits for an answer gets a JSONDecodeError."""
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Steady(Model):
    """It takes as long on a busy machine as on an idle one, and leaves that to the others."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._ended = threading.Event()

    def run(self, data: bytes, count: int) -> list[bytes]:
        end = time.monotonic() + count * INFERENCE_S
        found = super().run(data, 1)  # each gives the same
        self.busy = True
        self._ended.wait(max(0.0, end - time.monotonic()))
        self.busy = False
        return found

    def kill(self) -> None:
        self._ended.set()
        super().kill()


_IDLE: dict[Path, list[Model]] = {}
"""Processes that doubles which are gone left for the next ones: each takes a while to start."""


@atexit.register
def _end_idle() -> None:
    for models in _IDLE.values():
        for model in models:
            model.close()


class Wire:
    """A pseudo-terminal, or a TCP port where one caller at a time is served; ours is this end."""

    def __init__(self, *, tcp: bool) -> None:
        self._listener: socket.socket | None = None
        self._caller: socket.socket | None = None
        self._ends: list[int] = []
        if tcp:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.place = f"127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            # The far end is held open, so that ours sees nothing of who comes and goes.
            self._ends = list(os.openpty())
            tty.setraw(self._ends[1])
            self.place = os.ttyname(self._ends[1])
        # Whoever closes the double wakes it by this.
        self._woken, self._waker = os.pipe()

    def read(self, timeout_s: float | None = None) -> bytes | None:
        """None: it was closed."""
        while True:
            there = [*self._ends[:1], self._woken]
            if mine := self._caller or self._listener:
                there.append(mine.fileno())
            ready = select.select(there, [], [], timeout_s)[0]
            if self._woken in ready:
                return None
            if not ready:
                return b""
            if self._listener and self._caller is None:
                self._caller = self._listener.accept()[0]
                self._caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                continue
            if self._caller:
                with contextlib.suppress(ConnectionError):
                    if found := self._caller.recv(4096):
                        return found
                self.hang_up()
                continue
            return os.read(self._ends[0], 4096)

    def write(self, data: bytes) -> None:
        if self._caller:
            with contextlib.suppress(OSError):
                self._caller.sendall(data)
            return
        while data and self._ends:
            # In pieces that fit, and not for ever: whoever reads may have gone.
            if not select.select([], self._ends[:1], [], 5)[1]:
                return
            data = data[os.write(self._ends[0], data[:256]) :]

    def hang_up(self) -> None:
        if self._caller:
            self._caller.close()
            self._caller = None
        while self._ends:
            os.close(self._ends.pop())

    def wake(self) -> None:
        os.write(self._waker, b"x")

    def close(self) -> None:
        self.hang_up()
        if self._listener:
            self._listener.close()
        os.close(self._woken)
        os.close(self._waker)


class Peer:
    """A board's double; use it in a `with`."""

    def __init__(
        self,
        path: Path,
        *,
        digest: bool = True,
        sha256: str | None = None,
        name: str = "Double Board",
        model: str = "double",
        buffer: int = 240,
        capacity: int | None = None,
        clock: float = 1.0,
        began_us: int = 0,
        arena: int = 12_345,
        says: str = "",
        energy: Callable[[str], None] | None = None,
        laps: bool = True,
        faults: tuple[Fault, ...] = (),
        babble: bytes = b"",
        tcp: bool = False,
    ) -> None:
        """`digest`: off, it is the firmware of others, without what onmetal's says and answers
        besides. `sha256`: that of another model than it runs. `capacity`: of its input buffer, in
        bytes. `clock`: how fast its clock goes; `began_us`: what it shows first. `energy`: told
        "begin" and "end" of the timed part, as a meter is by a pin; `laps`: off, times are not
        printed, as in MLPerf's energy mode. `arena`: that it says to use; 0: its model does
        not run. `says`: at its start, as the port is opened. `babble`: all that it ever says."""
        self.path, self.ours, self.name, self.model_name = path, digest, name, model
        self.sha256 = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
        self.buffer, self.capacity, self.clock, self.began_us = buffer, capacity, clock, began_us
        self.energy, self.laps, self.babble = energy, laps, babble
        self.arena, self.says = arena, says
        self.faults = {fault.command: fault for fault in faults}
        self.commands: list[str] = []
        """All that it was asked, without the data."""
        self.wire = Wire(tcp=tcp)
        self.address = f"socket://{self.wire.place}" if tcp else f"serial://{self.wire.place}"
        idle = _IDLE.get(path, [])
        self._model = idle.pop() if idle else Model(path)
        self.windows: list[tuple[int, int, int]] = []
        """What was timed: inferences, and its clock about their begin and their end."""
        self._data = bytearray()
        self._wanted = 0
        self._outputs: list[bytes] = []
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "Peer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.wake()
        if self._model.busy:
            self._model.kill()  # an inference that goes on
        self._thread.join()
        if self._model.busy:
            self._model.close()
        else:
            _IDLE.setdefault(self.path, []).append(self._model)
        self.wire.close()

    def _serve(self) -> None:
        waiting = b""
        if not self.babble:
            self._say(["m-init-done", "m-ready"])
        while (piece := self.wire.read()) is not None:
            if self.babble:
                self.wire.write(self.babble)
                continue
            waiting += piece
            *commands, waiting = waiting.split(b"%")
            for command in commands:
                try:
                    self._obey(command.decode("ascii", "replace").strip())
                except json.JSONDecodeError:
                    return  # the model's process was ended, and so are we

    def _say(self, lines: list[str]) -> None:
        self.wire.write("".join(f"{line}\r\n" for line in lines).encode())

    def _obey(self, command: str) -> None:
        words = command.split() or [""]
        key = " ".join(words[:2]) if words[0] == "db" and words[1:2] == ["load"] else words[0]
        self.commands.append(command if len(command) < 40 else f"{command[:37]}...")
        kind = self._fault(key)
        if kind == "silence":
            return
        if kind == "hang-up":
            self.wire.hang_up()
            return
        if kind == "reset":
            self.wire.write(b"m-warmup-start-0\r\nm-war\0m-init-done\r\nm-ready\r\n")
            return
        if kind == "error":
            self._say(["e-[Something is wrong]", "m-ready"])
            return
        self._answer(words, kind)
        self._say(["m-ready"])

    def _fault(self, key: str) -> Kind | None:
        fault = self.faults.get(key)
        if fault is None or not fault.times:
            return None
        self.faults[key] = replace(fault, times=fault.times - 1)
        return fault.kind

    def _answer(self, words: list[str], kind: Kind | None) -> None:
        spoilt: dict[Kind | None, Callable[[list[str]], list[str]]] = {
            "cut": _cut,
            "odd": _odd,
            "short": lambda lines: lines[:-1],
        }
        said: list[str] = []

        def say(*lines: str) -> None:
            if kind == "garbage":
                self.wire.write(b"\xff\xfe\0\x80 noise\r\n\r\n[ 0.000] heap: 12 kB free\r\n")
            if kind in spoilt:
                said.extend(lines)  # spoilt as a whole
            else:
                self._say(list(lines))

        self._command(words, say)
        if kind in spoilt:
            self._say(spoilt[kind](said))

    def _command(self, words: list[str], say: Callable[..., None]) -> None:
        match words:
            case ["name"]:
                if self.says:
                    self._say([self.says, "m-init-done", "m-ready"])
                    self.says = ""
                say(f"m-name-dut-[{self.name}]")
            case ["timestamp"]:
                say(f"m-lap-us-{self._now()}")
            case ["profile"]:
                say("m-profile-[onmetal firmware 1]" if self.ours else "m-profile-[MLPerf Tiny]")
                say(f"m-model-[{self.model_name}]")
                if self.ours:
                    say(f"m-sha256-[{self.sha256}]", f"m-buffer-[{self.buffer}]")
                    say(f"m-arena-[{self.arena} 16384]")
            case ["db", "load", count]:
                self._load(int(count), say)
            case ["db", data] if self._wanted:
                self._take(data, say)
            case ["infer", count, warm]:
                self._infer(int(count), int(warm), say)
            case ["results"]:
                say(self._results())
            case ["output"] if self.ours:
                for number, found in enumerate(self._outputs):
                    for start in range(0, len(found), 16):
                        say(f"m-output-{number}-[{found[start : start + 16].hex()}]")
            case ["check"] if self.ours:
                say("m-check-[3 of 4]")
            case [word, *_]:
                say(f"e-[Unknown command: {word}]")

    def _load(self, count: int, say: Callable[..., None]) -> None:
        if self.ours and count != self._model.input_bytes:
            say(f"e-[The inputs have {self._model.input_bytes} bytes]")
        elif self.capacity is not None and count > self.capacity:
            say(f"Supplied buffer size {count} exceeds maximum of {self.capacity}")
        else:
            self._wanted, self._data = count, bytearray()
            say(f"m-[Expecting {count} bytes]")

    def _take(self, data: str, say: Callable[..., None]) -> None:
        room = self.buffer if self.ours else 31
        if len(data) % 2:
            say("e-[Insufficent number of hex digits]")
        elif len(data) > 2 * room:
            say(f"e-[More than {room} bytes]")
        else:
            self._data += bytes.fromhex(data)
            if len(self._data) >= self._wanted:
                say("m-load-done")

    def _infer(self, count: int, warm: int, say: Callable[..., None]) -> None:
        data = bytes(self._data).ljust(self._model.input_bytes, b"\0")
        say(f"m-warmup-start-{warm}")
        if warm:
            self._model.run(data, warm)
        say("m-warmup-done", f"m-infer-start-{count}")
        begin = self._stamp("begin")
        if self.laps and not self.ours:
            say(f"m-lap-us-{begin}")
        self._outputs = self._model.run(data, count)
        end = self._stamp("end")
        self.windows.append((count, begin, end))
        if self.laps:
            # onmetal's firmware says the times when both are known, others at once.
            say(*([f"m-lap-us-{begin}"] if self.ours else []), f"m-lap-us-{end}")
        say("m-infer-done", self._results())

    def _stamp(self, which: str) -> int:
        if self.energy:
            self.energy(which)
        return self._now()

    def _now(self) -> int:
        passed = (time.monotonic() - self._began) * self.clock
        return (self.began_us + int(passed * 1e6)) % (1 << 32)

    def _results(self) -> str:
        first = np.frombuffer(self._outputs[0], self._model.dtype).astype(np.float64)
        if self._model.scale:
            first = (first - self._model.zero) * self._model.scale
        return f"m-results-[{','.join(f'{value:.3f}' for value in first)}]"


def _cut(lines: list[str]) -> list[str]:
    """A time, where there is one, else the longest."""
    victim = next((line for line in lines if line.startswith("m-lap")), max(lines, key=len))
    return [line[: len(line) // 2] if line is victim else line for line in lines]


def _odd(lines: list[str]) -> list[str]:
    return [f"{line[:-2]}]" if line.startswith("m-output") else line for line in lines]


def until(something: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what gives no sign of itself."""
    end = time.monotonic() + seconds
    while not something():
        assert time.monotonic() < end
        time.sleep(0.01)


def net_file(folder: Path, *, both: bool = False, map_only: bool = False) -> Path:
    """A small int8 model, channels last: a convolution, a layer of ten, a softmax; `both`: it gives
    the convolution's map besides, `map_only`: instead."""
    from onmetal.converters.tflite.net import Net, Op, Tensor, constant
    from onmetal.converters.tflite.writing import write

    rng = np.random.default_rng(5)

    def stored(name: str, shape: tuple[int, ...], scale: float, zero: int) -> Tensor:
        steps, zeros = np.array([scale], np.float32), np.array([zero], np.int64)
        return Tensor(name, shape, np.dtype(np.int8), scale=steps, zero_point=zeros)

    def weight(name: str, shape: tuple[int, ...], scale: float, dtype: Any) -> Tensor:
        steps = np.full(shape[:1] if len(shape) > 1 else (10,), scale, np.float32)
        made = constant(name, rng.integers(-127, 128, shape), dtype)
        made.scale, made.zero_point = steps, np.zeros(len(steps), np.int64)
        return made

    image, seen = stored("image", (1, 6, 4, 3), 0.02, 3), stored("map", (1, 6, 4, 10), 0.03, -5)
    flat, scores = stored("flat", (1, 240), 0.03, -5), stored("scores", (1, 10), 0.05, 1)
    found = stored("probabilities", (1, 10), 1 / 256, -128)
    square = {"padding": 0, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
    taken = [image, weight("filter", (10, 3, 3, 3), 0.01, np.int8)]
    taken.append(weight("filter_bias", (10,), 0.0002, np.int32))
    dense: list[Tensor | None] = [flat, weight("dense", (10, 240), 0.002, np.int8), None]
    shape = constant("shape", [1, 240], np.int32)
    ops = [
        Op("CONV_2D", list(taken), [seen], square),
        Op("RESHAPE", [seen, shape], [flat], {"newShape": [1, 240]}),
        Op("FULLY_CONNECTED", dense, [scores], {}),
        Op("SOFTMAX", [scores], [found], {"beta": 1.0}),
    ]
    name, given = ("both", [found, seen]) if both else ("small", [found])
    if map_only:
        name, given, ops = "map", [seen], ops[:1]
    path = folder / f"{name}.tflite"
    path.write_bytes(write(Net([image], given, ops)))
    return path


# --- the meter


class MeterPeer:
    """A double of the LPM01A: samples at its pace, of what `mw` says that the board takes."""

    def __init__(
        self,
        *,
        idle_mw: float = 5.0,
        busy_mw: float = 25.0,
        wired: bool = True,
        refuses: str = "",
        deaf: bool = False,
        lost: int = 0,
        error: str = "",
    ) -> None:
        """`wired`: whether the board's pulses reach its D7. `refuses`: a command. `deaf`: answers
        nothing. `lost`: so many samples of each thousand never arrive. `error`: that it breaks off
        an acquisition with."""
        self.idle_mw, self.busy_mw, self.wired = idle_mw, busy_mw, wired
        self.refuses, self.deaf, self.lost, self.error = refuses, deaf, lost, error
        self.commands: list[str] = []
        self.wire = Wire(tcp=False)
        self.path = self.wire.place
        self._busy = False
        self._lock = threading.Lock()
        self._sending = False
        self._began = 0.0
        self._made = 0
        self._events = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "MeterPeer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.wake()
        self._thread.join()
        self.wire.close()

    def pulse(self, which: str) -> None:
        """The board's pin went down, at the begin or the end of its work."""
        with self._lock:
            self._catch_up()
            if self._sending and self.wired:
                self.wire.write(f"event {self._events} ris\r\n".encode())
                self._events += 1
            self._busy = which == "begin"

    def _catch_up(self) -> None:
        """All samples that are due by now."""
        if not self._sending:
            return
        due = int((time.monotonic() - self._began) * 1000)
        joules = (self.busy_mw if self._busy else self.idle_mw) * 1e-6
        text = []
        while self._made < due:
            self._made += 1
            if self._made % 1000 == 1 and self._made > 1:
                text.append(f"\r\nTimeStamp: {self._made // 1000:03d}s 000ms, buff 02%\r\n")
            if self._made % 1000 >= self.lost:
                text.append(f"{_four(joules)}\r\n")
        self.wire.write("".join(text).encode())

    def _serve(self) -> None:
        waiting = b""
        while (piece := self.wire.read(0.02 if self._sending else None)) is not None:
            waiting += piece
            *lines, waiting = waiting.split(b"\n")
            with self._lock:
                self._catch_up()
                for line in lines:
                    self._obey(line.decode().strip())

    def _obey(self, command: str) -> None:
        self.commands.append(command)
        if self.deaf:
            return
        if self.refuses and command.startswith(self.refuses):
            self.wire.write(f"PowerShield > error {command}\r\nError detail: no\r\n".encode())
            return
        if command == "stop":
            self._sending = False
            text = "\r\nend\r\nsummary beg\r\n1234-05\r\n9999-05\r\nsummary end\r\n"
            self.wire.write(f"{text}Acquisition completed\r\n".encode())
            return
        self.wire.write(f"PowerShield > ack {command}\r\n".encode())
        if command == "start":
            self._sending, self._began, self._made, self._events = True, time.monotonic(), 0, 0
            if self.error:
                self.wire.write(f"\r\nerror {self.error}\r\n".encode())


def _four(joules: float) -> str:
    """Four digits and a power of ten, as the meter writes them."""
    power = int(np.floor(np.log10(joules))) - 3
    return f"{round(joules / 10.0**power):04d}{power:+03d}"


# --- the model's process


def main(path: str) -> None:
    """Answers lines `<inferences> <hex of all inputs>` with the outputs' hex."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from tflite_micro.python.tflite_micro import runtime

    content = Path(path).read_bytes()
    engine = runtime.Interpreter.from_bytes(content, arena_size=1 << 24)
    inputs = _details(engine.get_input_details)
    outputs = _details(engine.get_output_details)
    sizes = [_size(entry) for entry in inputs]
    first = outputs[0]["quantization_parameters"]

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    say(
        input_bytes=sum(sizes),
        dtype=np.dtype(outputs[0]["dtype"]).name,
        scale=float(first["scales"][0]) if len(first["scales"]) else 0.0,
        zero=int(first["zero_points"][0]) if len(first["zero_points"]) else 0,
    )
    for line in sys.stdin:
        count, _, text = line.partition(" ")
        data = bytes.fromhex(text.strip())
        for _ in range(int(count)):
            place = 0
            for number, (entry, size) in enumerate(zip(inputs, sizes, strict=True)):
                flat = np.frombuffer(data[place : place + size], entry["dtype"])
                engine.set_input(flat.reshape(entry["shape"]), number)
                place += size
            engine.invoke()
        found = [engine.get_output(number) for number in range(len(outputs))]
        say(outputs=[np.ascontiguousarray(array).tobytes().hex() for array in found])


def _details(ask: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all inputs or outputs: there is no count, but an error beyond the last."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(Exception):
        while True:
            found.append(ask(len(found)))
    return found


def _size(entry: dict[str, Any]) -> int:
    return int(np.prod(entry["shape"], dtype=np.int64) * np.dtype(entry["dtype"]).itemsize)


if __name__ == "__main__":
    main(sys.argv[1])
