"""The answers of a runner on a device (native/runner.c, python_runner.py), as types with limits.

All of it comes from the device, which may be broken or hostile. Answers of another form, negative,
endless or contradictory ones raise ValueError, saying what is wrong.
"""

import base64
import binascii
import math
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct

MOST_CPUS = 4096
MOST_BYTES = 1 << 50
SCALES = (1e-45, 3.5e38)
"""The range of float32 numbers above zero."""
CLOCK_OFF = 0.2
"""A device's clock must agree with this machine's to this part..."""
DELAY_S = 0.1
"""...and this much."""

Count = Annotated[int, Meta(ge=0, le=MOST_BYTES)]
Number = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]
Cpu = Annotated[int, Meta(ge=0, lt=MOST_CPUS)]
DType = Literal[
    "float16",
    "float32",
    "float64",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
]


class Hello(Struct, frozen=True):
    """The first line of a runner."""

    cores: Annotated[tuple[Cpu, ...], Meta(max_length=MOST_CPUS)]
    """The CPUs that the runner may run on."""
    pid: Count


class TensorOnDevice(Struct, frozen=True):
    """An input or output as the runner on the device reports it. `scale` 0: not quantized."""

    name: Annotated[str, Meta(max_length=10_000)]
    dtype: DType
    bytes: Count
    scale: float
    zero: Number
    shape: Annotated[tuple[Count, ...], Meta(max_length=64)]

    def __post_init__(self) -> None:
        if self.bytes != math.prod(self.shape) * np.dtype(self.dtype).itemsize:
            raise ValueError(f"{self.bytes} bytes for a {self.dtype} tensor of {list(self.shape)}")
        if self.scale and not SCALES[0] <= self.scale <= SCALES[1]:
            raise ValueError(f"a scale of {self.scale}")


Side = Annotated[tuple[TensorOnDevice, ...], Meta(max_length=10_000)]


class TensorsOnDevice(Struct, frozen=True):
    """All inputs and outputs of a model, in the runner's order."""

    inputs: Side
    outputs: Side

    @property
    def input_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.inputs)

    @property
    def output_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.outputs)


class Opened(TensorsOnDevice, frozen=True):
    load_ms: Annotated[float, Meta(ge=0, le=1e9)]


Warmed = Annotated[int, Meta(ge=1, le=1 << 40)]
"""How many inferences it ran."""


class Profiled(Struct, frozen=True):
    inferences: Annotated[int, Meta(ge=1, le=1 << 40)]


class Memory(Struct, frozen=True):
    baseline: Count
    peak: Count
    exact: bool = True


def latencies(text: str, least: int, took_s: float) -> np.ndarray:
    """The nanoseconds of a round's inferences, from base64 of int64. Raises ValueError where they
    are not `least` or more, or do not fit into the `took_s` that the round took here."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("latencies that are no base64") from None
    if len(data) % 8:
        raise ValueError(f"latencies of {len(data)} bytes, where each has 8")
    samples_ns = np.frombuffer(data, "<i8")
    if len(samples_ns) < max(1, least):
        raise ValueError(
            f"{len(samples_ns)} latencies, where {max(1, least)} or more were asked for"
        )
    if samples_ns.min() <= 0:
        raise ValueError(f"a latency of {samples_ns.min()} ns")
    spent_s = float(samples_ns.sum(dtype=np.float64)) / 1e9
    if spent_s > (1 + CLOCK_OFF) * took_s + DELAY_S:
        raise ValueError(
            f"latencies of {spent_s:.3g} s in all, where {took_s:.3g} s passed on this machine"
        )
    return samples_ns
