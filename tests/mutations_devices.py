"""What devices answer, honestly, and how it is read: for whoever damages it.

    for kind, data in seeds():
        read(kind, damaged(data))  # raises nothing but OnmetalError

Nothing here starts a process or waits: what a device would send comes out of memory, through the
very code that reads it.
"""

import base64
import json
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from onmetal.errors import DeviceError
from onmetal.files.reading import decode
from onmetal.profilers import benchmark_model
from onmetal.profilers.devices import answers
from onmetal.profilers.devices.board.exchange import QUIET_S
from onmetal.profilers.devices.board.protocol import Tiny
from onmetal.profilers.devices.line import Envelope
from onmetal.profilers.devices.remote import adb
from onmetal.profilers.devices.remote.facts import affinity, fitness, lines, parsing, state
from onmetal.profilers.devices.remote.folder import Held
from onmetal.profilers.meters.lpm01a import Stream
from onmetal.profilers.tensor_bytes import Edges, order, pack, unpack
from tests.text_profiles import shares_of_text

DIGEST = "0f" * 32
SIZES = (4, 8)


class Replay:
    """A link that has been recorded: each command is followed by the next answer."""

    name = "replay:1"

    def __init__(self, data: bytes) -> None:
        whole = data.split(b"m-ready\n")
        self._answers = [piece + b"m-ready\n" for piece in whole[:-1]] + whole[-1:]
        self._answers.reverse()
        self._now = b""

    def read(self, timeout_s: float) -> bytes:
        found, self._now = self._now, b""
        if not found and timeout_s > QUIET_S:
            raise DeviceError(f"{self.name} hung up")
        return found

    def write(self, data: bytes) -> None:
        if self._answers:
            self._now += self._answers.pop()

    def close(self) -> None:
        pass


def seeds() -> list[tuple[str, bytes]]:
    """(kind, an honest answer)"""
    return [
        ("facts", _phone().encode()),
        ("facts", _server().encode()),
        ("runner", _runner(PORTS)),
        ("guard", b'{"kept": "%s %s "}' % (b"ab" * 32, b"cd" * 32)),
        ("guard", b'{"busy": "someone@host"}'),
        ("board", BOARD),
        ("board", OTHERS),
        ("meter", METER),
        ("adb devices", ATTACHED),
        ("benchmark_model", LOG),
        ("profile litert", json.dumps(GRAPH).encode()),
        ("profile onnxruntime", json.dumps(TRACE).encode()),
        ("summary", SUMMARY),
    ]


def read(kind: str, data: bytes) -> None:
    """Raises OnmetalError, and nothing else, where it is damaged and that shows."""
    READERS[kind](data)


def _read_facts(data: bytes) -> None:
    text = data.decode(errors="replace")
    found = parsing.parse(text)
    assert len(msgspec.json.encode(found)) < 1_000_000
    assert found.cores is None or 0 < found.cores <= lines.MAX_CPUS
    assert state.parse_state(text) == found.state
    fitness.unfit(found, 1)
    if cpus := affinity.pin(found, 4):
        affinity.mask(cpus)


def _read_runner(data: bytes) -> None:
    """A runner's lines: its greeting, then what it answers to one operation after another."""
    kinds: tuple[Any, ...] = (
        answers.Opened,
        type(None),
        answers.Warmed,
        str,
        answers.Profiled,
        answers.Memory,
    )
    try:
        greeting, *lines = data.split(b"\n")
        decode(greeting, answers.Hello)
        for line, kind in zip(lines, kinds, strict=False):
            envelope = decode(line, Envelope)
            if envelope.error is not None or envelope.progress is not None:
                continue
            found: Any = decode(envelope.result, kind)
            if kind is str:
                answers.latencies(found, 1, 10.0)
            if kind is answers.Opened:
                _through(found)
    except ValueError as error:
        raise DeviceError(f"ssh://board: {error}") from None


def _through(tensors: answers.Opened) -> None:
    """Inputs there and outputs back, by what the device says that its model takes and gives."""
    if max(tensors.input_bytes, tensors.output_bytes) > 1_000_000:
        raise DeviceError("too large for a test")
    names = order(tensors.inputs, ["image"]), order(tensors.outputs, ["logits"])
    feed = {"image": np.zeros((1, 2, 2, 1), np.float32)}
    pack(feed, tensors.inputs, names[0], Edges())
    for array in unpack(
        bytes(tensors.output_bytes), tensors.outputs, names[1], Edges(), ["logits"]
    ):
        assert array.nbytes <= 4 * tensors.output_bytes


def _read_guard(data: bytes) -> None:
    try:
        decode(data, Held)
    except ValueError as error:
        raise DeviceError(f"ssh://board: {error}") from None


def _read_board(data: bytes) -> None:
    board = Tiny(Replay(data))
    board.load(bytes(4))
    laps = board.infer(10, 1, 5)
    assert 0 <= laps.us < 1 << 32
    if board.profile.sha256:
        assert [len(output) for output in board.outputs([*SIZES])] == [*SIZES]
        passed, of = board.check(5)
        assert 0 <= passed <= of
    else:
        board.results()


def _read_meter(data: bytes) -> None:
    stream = Stream()
    for line in data.decode("ascii", "replace").split("\n"):
        stream.line(line)
    assert all(joules >= 0 or joules != joules for joules in stream.joules)


def _read_attached(data: bytes) -> None:
    for one in adb.listed(data.decode(errors="replace")):
        assert one.serial and "\n" not in one.serial
        assert one.trouble != ""


def _read_log(data: bytes) -> None:
    found = benchmark_model.parse(data.decode(errors="replace"))
    assert all(np.isfinite(value) and value >= 0 for value in found.values())


def _reader(runtime: str) -> Callable[[bytes], None]:
    def reader(data: bytes) -> None:
        found = shares_of_text(runtime, data.decode(errors="replace"), 2, {"CONV_2D": "f32"})
        json.dumps(found, allow_nan=False)

    return reader


READERS: dict[str, Callable[[bytes], None]] = {
    "facts": _read_facts,
    "runner": _read_runner,
    "guard": _read_guard,
    "board": _read_board,
    "meter": _read_meter,
    "adb devices": _read_attached,
    "benchmark_model": _read_log,
    "profile litert": _reader("litert"),
    "profile onnxruntime": _reader("onnxruntime"),
    "summary": _reader("litert"),
}

# --- what honest devices say ----------------------------------------------------------------------

PORTS = {
    "inputs": [
        {
            "name": "image",
            "dtype": "int8",
            "bytes": 4,
            "scale": 0.0078125,
            "zero": -1,
            "shape": [1, 2, 2, 1],
        }
    ],
    "outputs": [
        {
            "name": "logits",
            "dtype": "float32",
            "bytes": 40,
            "scale": 0,
            "zero": 0,
            "shape": [1, 10],
        }
    ],
}


def _runner(tensors: dict[str, Any]) -> bytes:
    each = np.array([51_000, 49_870, 50_112, 50_440] * 8, "<i8").tobytes()
    results: list[Any] = [
        {"load_ms": 3.217, **tensors},
        None,
        25,
        base64.b64encode(each).decode(),
        {"inferences": 12},
        {"baseline": 9_000_000, "peak": 12_582_912, "exact": True},
    ]
    lines = [json.dumps({"result": result}) for result in results]
    hello = json.dumps({"runner": "native", "pid": 4321, "cores": [0, 1, 2, 3]})
    return "\n".join([hello, *lines, ""]).encode()


BOARD = b"\n".join(
    [
        b"m-name-dut-[Nucleo L4R5ZI]\nm-ready",
        b"m-profile-[onmetal]\nm-model-[digits]\nm-sha256-[" + DIGEST.encode() + b"]",
        b"m-buffer-[512]\nm-arena-[12345 20000]\nm-ready",
        b"m-[Expecting 4 bytes]\nm-ready",
        b"m-load-done\nm-ready",
        b"m-infer-start-10\nm-lap-us-123456\nm-lap-us-223456\nm-ticks-[8000000 80000000]",
        b"m-results-[0.125,0.875,-1.000]\nm-ready",
        b"m-output-0-[00ff7f80]\nm-output-1-[00000000]\nm-output-1-[0000803f]\nm-ready",
        b"m-check-[4 of 4]\nm-ready",
        b"",
    ]
)
OTHERS = b"\n".join(
    [
        b"m-name-dut-[unspecified]\nm-ready",
        b"m-profile-[ULPMark for tinyML Firmware V0.0.1]\nm-model-[ic01]\nm-ready",
        b"m-[Expecting 4 bytes]\nm-ready",
        b"m-load-done\nm-ready",
        b"m-warmup-start-1\nm-warmup-done\nm-infer-start-10\nm-lap-us-1000\nm-lap-us-101000",
        b"m-infer-done\nm-ready",
        b"m-results-[0.996,0.000,0.004]\nm-ready",
        b"",
    ]
)
METER = b"".join(
    [
        b"PowerShield > ack start\r\n",
        b"".join(b"%d-09\r\n" % (1000 + n) for n in range(40)),
        b"event 1 ris\r\n1500-09\r\n1501-09\r\nevent 2 ris\r\n",
        b"TimeStamp: 001s 000ms, buff 02%\r\n1500-09\r\n",
        b"end\r\nsummary beg\r\nAcquisition completed\r\n",
    ]
)
ATTACHED = b"""\
List of devices attached
8A1X0ABCD              device usb:1-4 product:husky model:Pixel_8_Pro device:husky transport_id:1
adb-RF8 (2)._adb-tls-connect._tcp offline transport_id:5
(no serial number)     no permissions (user in plugdev group; are your udev rules wrong?)

"""
LOG = b"""\
INFO: STARTING!
INFO: Initialized session in 3.337ms.
INFO: count=9 first=81913 curr=55502 min=55502 max=81913 avg=58984.7 std=8115

INFO: count=1061 first=56576 curr=56299 min=54669 max=60236 avg=56265.8 std=982 median=56201

INFO: Inference timings in us: Init: 3337, First inference: 81913, Warmup (avg): 58984.7
INFO: Memory footprint delta from the start of the tool (MB): init=2.4375 overall=20.543
"""
GRAPH = {
    "ops": [
        {"index": 0, "op_name": "CONV_2D", "inputs": [0, 1], "outputs": [2]},
        {"index": 1, "op_name": "SOFTMAX", "inputs": [2], "outputs": [3]},
        {"index": 2, "op_name": "DELEGATE", "inputs": [0], "outputs": [2]},
    ],
    "types": {"0": "int8", "1": "int8", "2": "int8", "3": "float32"},
}
TRACE = [
    {
        "cat": "Node",
        "pid": 7,
        "dur": 12 + number,
        "ts": 1000 * number,
        "ph": "X",
        "name": f"{name}_kernel_time",
        "args": {
            "op_name": name,
            "provider": "CPUExecutionProvider",
            "output_type_shape": [{"float": [1, 8]}],
        },
    }
    for number in range(4)
    for name in ("Conv", "Relu")
]
SUMMARY = b"""\
============================== Run Order ==============================
[node type] [first] [avg ms] [%] [cdf%] [mem KB] [times called] [Name]
  Delegate/Convolution (NHWC, F32) 0.011 0.012 0.013 60.0% 60.0% 0.0 1 [conv]:0
  CONV_2D 0.001 0.002 0.003 40.0% 100.0% 0.0 1 [other]:1
=====
"""


def _phone() -> str:
    return """
@@uname
Linux
5.15.123-android14
#1 SMP PREEMPT
aarch64
@@cpuinfo
processor : 0
BogoMIPS : 49.15
Features : fp asimd dotprod i8mm
CPU implementer : 0x41
CPU part : 0xd05
processor : 1
Features : fp asimd dotprod
CPU implementer : 0x41
CPU part : 0xd44
@@allowed
Cpus_allowed_list: 0-1
@@getprop
[ro.product.cpu.abilist]: [arm64-v8a,armeabi-v7a]
[ro.product.model]: [Pixel 8 Pro]
[ro.soc.manufacturer]: [Google]
[ro.soc.model]: [Tensor G3]
[ro.build.version.release]: [14]
[ro.build.version.sdk]: [34]
[ro.build.fingerprint]: [google/husky/husky:14/UD1A/1:user/release-keys]
@@meters
odpm
battery
@@clocks
online:0-1
cpu0/cpu_capacity:160
cpu1/cpu_capacity:1024
cpu0/cpufreq/cpuinfo_max_freq:1704000
cpu1/cpufreq/cpuinfo_max_freq:2914000
cpu0/cpufreq/scaling_max_freq:1704000
cpu1/cpufreq/scaling_max_freq:2914000
cpu0/cpufreq/scaling_governor:sched_pixel
@@meminfo
MemTotal:       11700000 kB
MemAvailable:    7000000 kB
@@loadavg
0.52 0.58 0.59 1/100 4242
@@df
Filesystem 1K-blocks Used Available Use% Mounted on
/dev/block/dm-49 113000000 40000000 72000000 36% /data
@@battery
Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  present: true
  level: 87
  scale: 100
  temperature: 281
@@thermalservice
Thermal Status: 0
Current temperatures from HAL:
\tTemperature{mValue=41.2, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=36.4, mType=3, mName=VIRTUAL-SKIN, mStatus=1}
@@end
"""


def _server() -> str:
    return """
@@uname
Linux
6.1.0-18-amd64
#1 SMP
x86_64
@@exe
 7f 45 4c 46 02 01 01 00 00 00 00 00 00 00 00 00
 03 00 3e 00
@@cpuinfo
processor : 0
model name : AMD EPYC 7763
flags : fpu sse2 avx2
physical id : 0
core id : 0
processor : 1
model name : AMD EPYC 7763
flags : fpu sse2 avx2
physical id : 0
core id : 1
@@topology
/sys/devices/system/cpu/cpu0/topology/thread_siblings_list:0
/sys/devices/system/cpu/cpu1/topology/thread_siblings_list:1
@@boot_id
0f0f0f0f-aaaa-bbbb-cccc-123456789abc
@@os_release
NAME="Debian GNU/Linux"
VERSION_ID="12"
@@dmi
/sys/class/dmi/id/sys_vendor:Supermicro
/sys/class/dmi/id/product_name:H12
@@python
python 3.11.2
numpy 1.26.4
onnxruntime 1.19.2
@@zones
/sys/class/thermal/thermal_zone0/type:x86_pkg_temp
/sys/class/thermal/thermal_zone0/temp:41000
@@supply
/sys/class/power_supply/BAT0/type:Battery
/sys/class/power_supply/BAT0/capacity:80
/sys/class/power_supply/BAT0/status:Discharging
@@vcgencmd
throttled=0x50005
temp=61.2'C
@@end
"""
