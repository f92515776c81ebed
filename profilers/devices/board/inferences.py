"""Inferences on a board, in windows that its own clock measures or that a meter or counter does."""

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from onmetal.errors import DeviceError, UnsupportedError
from onmetal.profilers.devices.answers import TensorOnDevice, TensorsOnDevice
from onmetal.profilers.devices.board.protocol import WRAP_US, Laps, Tiny
from onmetal.profilers.devices.board.qemu import Qemu
from onmetal.profilers.devices.local import Local
from onmetal.profilers.operation import asked
from onmetal.runtimes import in_firmware, operations

FIRST_S = 300.0
"""For inferences of a model whose speed on the board is not known yet."""
SLACK_S = 20.0
TIMED_S = 0.1
"""A window this long gives an inference's time well enough to plan by: a clock of microseconds is
read to 1e-5 of it."""
STILL_S = 2.0
"""Longest time by this machine's clock for that window: by a board's clock that stands still, it
would never be long enough."""
LONGER = 1.03
"""A window is planned this much longer than it must be: it hardly ever comes out shorter."""
PACED_LONGER = 1.1
"""The same, where it is planned by this machine's clock and cannot be looked at afterwards."""
LONGEST_S = 0.9 * WRAP_US / 1e6
CLOCK_OFF = 0.2
"""The board's clock must agree with this machine's to this part,"""
JUDGED_S = 1.0
"""in windows from this length on: shorter ones are lost among the delays of USB."""
PACED_S = 0.3
"""Length of a window that is timed by this machine's clock: the delays of a line are little of it.
"""
MOST_WINDOW = 1_000_000_000
"""No board runs so many inferences in the shortest window that is timed: it would take less than a
nanosecond for each."""
MOST_INFERENCES = 200
"""Most inferences by which instructions are counted."""
MOST_INSTRUCTIONS = 1_000_000_000
"""Most instructions of all these inferences: about half a minute of emulation. A bound of time on
this machine would make the figure depend on how busy this machine is."""


class Inferences:
    """The requests that a board's workers make of its firmware."""

    def __init__(self, address: str, tiny: Tiny, qemu: Qemu | None, host: Local) -> None:
        """`tiny`: its firmware, already greeted."""
        self.address, self.tiny, self.qemu, self._host = address, tiny, qemu, host
        self.inference_s: float | None = None
        """How long an inference takes by the board's own clock; None: not known yet."""
        self.host_s: float | None = None
        """The same by this machine's clock, which differs where the board is emulated."""
        self._rests_on_us = 0
        """Length in microseconds of the window from which these two times were computed."""
        self._tensors: dict[str, TensorsOnDevice] = {}

    @property
    def holds(self) -> str | None:
        """SHA-256 of the .tflite file that is compiled in; None where the firmware states none."""
        return self.tiny.profile.sha256

    def check_holds(self, files: Sequence[Path]) -> None:
        """Raises UnsupportedError where another model than this artifact's is on the board."""
        file_digest = hashlib.sha256(files[-1].read_bytes()).hexdigest()
        if self.holds not in (None, file_digest):
            assert self.holds
            raise UnsupportedError(
                f"the board at {self.address} holds the model {self.tiny.profile.model} "
                f"({self.holds[:12]}), where {files[-1].name} ({file_digest[:12]}) was wanted: "
                "build and flash the firmware of this candidate's bundle"
            )

    def check_ready(self) -> None:
        """Raises DeviceError where the firmware runs and its model does not."""
        if self.tiny.profile.arena_used == 0:
            arena = self.tiny.profile.arena_given
            messages = " / ".join(self.tiny.said_first)
            raise DeviceError(
                f"the firmware at {self.address} could not set its model up in an arena of {arena} "
                f"bytes{f' ({messages})' if messages else ''}: build it with a larger one "
                "(-DONMETAL_ARENA_BYTES=…)"
            )

    def tensors(self, file: Path) -> TensorsOnDevice:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest not in self._tensors:
            with self._host.worker() as worker:
                tensors = worker.do(asked(operations.tensors, _firmware(), file), timeout_s=600)
            try:
                self._tensors[digest] = msgspec.convert(tensors, TensorsOnDevice)
            except msgspec.ValidationError as error:
                why = f"a board cannot be handed the tensors of this model: {error}"
                raise UnsupportedError(why) from None
        return self._tensors[digest]

    def operators(self, file: Path) -> dict[str, Any]:
        """Shares of the operators in an artifact's file."""
        with self._host.worker() as worker:
            return worker.do(asked(operations.operators, _firmware(), file), timeout_s=600)

    def infer(self, count: int, warm: int, timeout_s: float) -> Laps:
        """Run a window, after which the time of an inference is known. Raises DeviceError where the
        board's clock is wrong, or would wrap around."""
        runs = count + warm
        if self.inference_s and runs * self.inference_s > LONGEST_S:
            raise DeviceError(
                f"{runs} inferences of {self.inference_s:.3g} s take longer than the board's clock "
                f"counts ({WRAP_US / 1e6:.0f} s): measure in a shorter window"
            )
        limit_s = FIRST_S if self.host_s is None else SLACK_S + 3 * runs * self.host_s
        laps = self.tiny.infer(count, warm, min(timeout_s, limit_s))
        if laps.whole_s > LONGEST_S:
            raise DeviceError(
                f"{count} inferences took {laps.whole_s:.0f} s, longer than the board's clock "
                "counts: measure in a shorter window"
            )
        if self.qemu is None:
            self._check_clock(laps, warm)
        if laps.us >= min(self._rests_on_us, TIMED_S * 1e6):
            self._rests_on_us = laps.us
            self.inference_s, self.host_s = max(laps.us, 1) / 1e6 / count, laps.whole_s / runs
        return laps

    def _check_clock(self, laps: Laps, warm: int) -> None:
        """Raises DeviceError where the board's clock differs from this machine's. The window takes
        at least the time between the arrivals of its time stamps, which may be delayed, and at most
        its part of the time of the whole answer."""
        board_s = laps.us / 1e6
        least_s = laps.host_s
        most_s = laps.whole_s * laps.count / (laps.count + warm)
        if max(board_s, least_s) < JUDGED_S:
            return
        if board_s < (1 - CLOCK_OFF) * least_s or board_s > (1 + CLOCK_OFF) * most_s:
            raise DeviceError(
                f"the clock of the board at {self.address} counted {board_s:.3f} s where "
                f"{max(least_s, most_s) if board_s > most_s else least_s:.3f} s passed here: its "
                "timer does not run as fast as the firmware thinks (SystemCoreClock, or the "
                "timer's prescaler, in its port)"
            )

    def window(self, seconds: float, least: int, timeout_s: float) -> int:
        """How many inferences last `seconds`, but at least `least`. Where the time of an inference
        is not known, inferences on the loaded inputs are timed first."""
        if seconds > LONGEST_S:
            raise DeviceError(
                f"a window of {seconds:.0f} s is longer than the board's clock counts "
                f"({WRAP_US / 1e6:.0f} s)"
            )
        wanted_s, count, more = min(TIMED_S, seconds), 0, 1
        while self._rests_on_us < 1e6 * wanted_s and more > count:
            count = more
            self._check_count(count)
            self.infer(count, 0, timeout_s)
            assert self.inference_s and self.host_s
            fit = 1 + min(1.2 * wanted_s / self.inference_s, STILL_S / self.host_s)
            more = min(1000 * count, int(fit))
        assert self.inference_s and self.host_s
        each_s = max(self.inference_s, self.host_s) if self.qemu else self.inference_s
        return max(least, _inference_count(LONGER * seconds, each_s))

    def _check_count(self, count: int) -> None:
        if count > MOST_WINDOW:
            raise DeviceError(
                f"the board at {self.address} answers at once, however many inferences it is asked "
                "for: its firmware does not run them"
            )

    def instructions(self, timeout_s: float) -> dict[str, Any]:
        """The instructions of an inference on the loaded inputs, as counted by an emulator that
        runs one instruction in each nanosecond of its own time.

        The count of a window less that of a shorter one is that of the inferences alone. The clock
        is read in whole ticks, and each window may be off by one; where enough inferences fit, that
        is less than half an instruction in each, and the count is exact. Raises DeviceError where
        the device is not emulated.
        """
        if self.qemu is None:
            raise DeviceError(
                f"{self.address} is a real board: its instructions are not counted, its time is"
            )
        first = self.infer(1, 0, timeout_s)
        tick = _tick(first)
        fit = int(MOST_INSTRUCTIONS / max(1.0, _nanoseconds(first)))
        more = max(1, min(MOST_INFERENCES, int(5 * tick), fit))
        longer = self.infer(1 + more, 0, timeout_s)
        nanoseconds_each = (_nanoseconds(longer) - _nanoseconds(first)) / more
        if nanoseconds_each <= 0:
            raise DeviceError(
                f"the clock of {self.address} counted no more for {more + 1} inferences than for "
                "one: its firmware does not run them, or its timer stands still"
            )
        off = 2 * tick / more
        # Else rounded so coarsely that the error hardly ever shows: every run gives one figure.
        unit = 1 if off < 0.5 else 10 ** math.ceil(math.log10(100 * off))
        return {
            "instructions_per_inference": round(nanoseconds_each / unit) * unit,
            "how": f"{more + 1} inferences less one, under {self.qemu.how}; "
            + ("exact" if unit == 1 else f"to the next {unit:,}"),
        }

    def paced(self, seconds: float, timeout_s: float) -> int:
        """How many inferences last `seconds` by this machine's clock: firmware that pulses a pin
        for a meter may report no times."""
        count, limit_s = 1, min(timeout_s, FIRST_S)
        while True:
            began = time.monotonic()
            self.metered(count, limit_s)
            took_s = time.monotonic() - began
            if took_s >= min(PACED_S, seconds):
                return max(1, _inference_count(PACED_LONGER * seconds, took_s / count))
            count *= 4
            self._check_count(count)

    def metered(self, count: int, timeout_s: float) -> None:
        self.tiny.infer_untimed(count, 0, timeout_s)

    def outputs(self, of: TensorsOnDevice, timeout_s: float) -> bytes:
        """Run one inference on the loaded inputs. -> every output's stored bytes, one after
        another."""
        laps = self.infer(1, 0, timeout_s)
        if self.holds is not None:
            return b"".join(self.tiny.outputs([tensor.bytes for tensor in of.outputs]))
        results = laps.results if laps.results is not None else self.tiny.results()
        return _stored_bytes(results, of.outputs, self.address)


def _inference_count(seconds: float, each_s: float) -> int:
    return round(seconds / each_s)


def _tick(laps: Laps) -> float:
    """A tick of the firmware's finest clock, in nanoseconds."""
    return 1e9 / laps.ticks_per_s if laps.ticks and laps.ticks_per_s else 1000.0


def _nanoseconds(laps: Laps) -> float:
    if laps.ticks and laps.ticks_per_s:
        return laps.ticks * 1e9 / laps.ticks_per_s
    return laps.us * 1000.0


def _stored_bytes(
    printed: tuple[float, ...], outputs: tuple[TensorOnDevice, ...], address: str
) -> bytes:
    """The first output's stored bytes, from its reals as they were printed to three decimals.
    Exact where a step of the stored number is larger than what was rounded away."""
    first = outputs[0]
    if len(outputs) != 1:
        raise DeviceError(
            f"the firmware of {address} gives its first output only, and the model has "
            f"{len(outputs)}; the firmware of a bundle gives all"
        )
    reals = np.array(printed, np.float64)
    kind = np.dtype(first.dtype)
    if reals.size * kind.itemsize != first.bytes:
        raise DeviceError(
            f"the firmware of {address} printed {reals.size} results, where the model's output has "
            f"{first.bytes // kind.itemsize} numbers: is another model on the board?"
        )
    if kind.kind == "f":
        return bytes(reals.astype(kind).tobytes())
    if not np.isfinite(reals).all():
        raise DeviceError(
            f"the firmware of {address} printed results that are no numbers, where the model's "
            f"output is {first.dtype}"
        )
    if kind.kind == "b":
        return bytes((reals != 0).tobytes())
    limits = np.iinfo(kind)
    integers = np.rint(reals / first.scale) + first.zero if first.scale else np.rint(reals)
    return bytes(np.clip(integers, limits.min, limits.max).astype(kind).tobytes())


def _firmware() -> str:
    """The runtime that boards' firmware consists of."""
    (name,) = in_firmware()
    return name
