"""Energy by STMicroelectronics' X-NUCLEO-LPM01A, which supplies the board and measures its energy.

The meter sends joules a thousand times a second, in ASCII (UM2269, "Getting started with
PowerShield firmware", sections 4.3 and 4.4), and a line `event N ris` whenever the board pulls its
pin D7 down, as MLPerf Tiny's firmware does at the begin and the end of a window (mlcommons/tiny,
benchmark/runner/power_manager). What lies between the last two of these is the window's.

Written from these documents and tried on a double that follows them, not on the meter itself.
"""

import contextlib
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np

from onmetal.errors import DeviceError
from onmetal.profilers.devices.board.link import Link, Serial
from onmetal.profilers.meters import MeterKind
from onmetal.profilers.output import QUOTED, Lines
from onmetal.records import Window

BAUD = 3_686_400
RATE_HZ = 1000
"""Samples a second: each is the energy of a millisecond."""
VOLTS = 3.3
"""The voltage that the board is fed with."""
RESOLUTION_A = 1e-7
"""The least current that the meter resolves while the current changes,"""
ACCURACY = 0.02
"""and its relative error at most (UM2243, dynamic mode)."""
ANSWER_S = 5.0
TAIL_S = 0.3
"""After a window, until the event at its end has surely come."""
MOST_J = 1.0
"""A sample of more came damaged: in a millisecond that would be a kilowatt."""
MOST_LINES = 5_000_000
"""Most lines of an acquisition: more than an hour of samples."""
LONGEST_LINE = 1 << 16
DAMAGED = 1e-3
"""Most of a window's samples that may have come damaged."""

_PROMPT = "PowerShield >"
_SAMPLE = re.compile(r"([0-9]{4})([+-][0-9]{2})")
_EVENT = re.compile(r"event ([0-9]{1,9}) ris.*")
_STAMP = re.compile(r"TimeStamp:[^0-9]*[0-9]+s [0-9]+ms, buff [0-9]+%")
_ENDS = ("end", "summary beg", "Acquisition completed")

SETUP = (
    f"volt {VOLTS * 1000:.0f}m",
    "acqtime inf",
    "trigdelay 0",
    "trigsrc sw",
    "eventsrc d7 fal",
    "output energy",
    "format ascii_dec",
    f"freq {RATE_HZ}",
    "pwr on nostatus",
)
"""Commands to measure from `start` on, until `stop`."""


class Stream:
    """The samples and events of one acquisition, in the order in which the meter sent them."""

    def __init__(self) -> None:
        self.joules: list[float] = []
        """NaN: a sample that came damaged."""
        self.events: list[tuple[int, int]] = []
        """Number, and how many samples came before it."""
        self.stamps: list[int] = []
        """How many samples came before each; 1000 lie between two."""
        self.errors: list[str] = []
        self.lines = 0
        self.begun = False
        self.ended = False

    def line(self, text: str) -> None:
        """Read a line. The figures of the summary that follows the end are no samples. Raises
        ValueError where there are too many lines."""
        self.lines += 1
        if self.lines > MOST_LINES:
            raise ValueError(f"it sent more than {MOST_LINES} lines")
        text = text.removeprefix(_PROMPT).strip()
        if text.startswith("ack start"):
            self.begun = True
        elif text.startswith(_ENDS):
            self.ended = True
        elif text.startswith("err"):
            self.errors.append(text[:QUOTED])
        elif self.ended or not self.begun or not text:
            return
        elif sample := _SAMPLE.fullmatch(text):
            joules = int(sample[1]) * 10.0 ** int(sample[2])
            self.joules.append(joules if joules <= MOST_J else math.nan)
        elif event := _EVENT.fullmatch(text):
            self.events.append((int(event[1]), len(self.joules)))
        elif _STAMP.fullmatch(text):
            self.stamps.append(len(self.joules))
        elif text[0].isdigit():
            self.joules.append(math.nan)


class Meter:
    """One meter, which supplies the board that it measures with power until `close`."""

    kind = "lpm01a"
    name = f"X-NUCLEO-LPM01A at {VOLTS} V, {RATE_HZ} samples/s"
    covers = "the board that it feeds"
    least_window_s = 0.0

    def __init__(self, link: Link) -> None:
        """Takes the meter over and feeds the board. Raises DeviceError where it is no such meter
        or refuses."""
        self.link = link
        self._came = Lines()
        self._began_s, self._stream = 0.0, Stream()
        self._acquisition = contextlib.ExitStack()
        self._command("htc", "take over")
        for command in SETUP:
            self._command(command, f"`{command}`")

    def close(self) -> None:
        """The board is without power from here on."""
        try:
            with contextlib.suppress(DeviceError):  # the meter is gone already
                self._command("pwr off", "`pwr off`")
                self._command("hrc", "`hrc`")
        finally:
            self.link.close()

    def idle_mw(self, seconds: float) -> float:
        """The power that the board takes while it waits for a command."""
        with self._recording() as stream:
            time.sleep(seconds)
        if not stream.joules:
            raise self._meter_error("it sent no samples", stream)
        self._check_damage(stream.joules, stream)
        return _milliwatts(_sum(stream.joules), len(stream.joules) / RATE_HZ)

    def begin(self) -> None:
        """Raises DeviceError where the meter does not begin its acquisition."""
        self._began_s = time.monotonic()
        with contextlib.ExitStack() as stack:
            self._stream = stack.enter_context(self._recording())
            self._acquisition = stack.pop_all()

    def end(self, inferences: int) -> Window:
        """Cut out what the board took between its last two pulses, which enclose the inferences.
        Raises DeviceError where the pulses do not show where that was."""
        stream, took_s = self._stream, time.monotonic() - self._began_s
        with self._acquisition:
            time.sleep(TAIL_S)
        if len(stream.events) < 2:
            raise DeviceError(
                f"the meter saw {len(stream.events)} pulses where two enclose a window: the pin "
                "that the board pulls down at each time stamp is not wired to the meter's D7, or "
                "its firmware was built without pulses (energy mode)"
            )
        (first, begin), (last, end) = stream.events[-2:]
        if last != first + 1:
            raise self._meter_error(
                f"of its events, those between {first} and {last} were lost", stream
            )
        if (end - begin) / RATE_HZ > took_s + TAIL_S or end == begin:
            raise self._meter_error(
                f"its last two pulses lie {(end - begin) / RATE_HZ:.3f} s apart, which is not the "
                f"window of {took_s:.3f} s",
                stream,
            )
        for before, after in zip(stream.stamps, stream.stamps[1:], strict=False):
            if after - before != 1000 and after > begin and before < end:
                raise self._meter_error(
                    f"{1000 - (after - before)} samples of 1000 were lost on their way (is this "
                    "machine, or its USB bus, busy?)",
                    stream,
                )
        inside = stream.joules[begin:end]
        self._check_damage(inside, stream)
        return Window(1e3 * _sum(inside), len(inside) / RATE_HZ, inferences, len(inside))

    def abandon(self) -> None:
        """End the acquisition where what it was begun for failed; its own errors do not matter."""
        with contextlib.suppress(DeviceError), self._acquisition:
            pass

    def _check_damage(self, joules: Sequence[float], stream: Stream) -> None:
        if sum(map(math.isnan, joules)) > DAMAGED * len(joules):
            raise self._meter_error("many of its samples came damaged", stream)

    def least_mw(self, power_mw: float) -> float:
        """By its data sheet (UM2243, dynamic mode)."""
        return max(RESOLUTION_A * VOLTS * 1e3, ACCURACY * power_mw)

    # --- the line

    def _lines(self, timeout_s: float) -> list[str]:
        """Read from the link once. -> the lines that are complete then, which may be none."""
        self._came.add(self.link.read(timeout_s))
        if len(self._came.part) > LONGEST_LINE:
            self._came.part.clear()  # the meter sends no line as long as this
        return [line.decode("ascii", "replace").strip("\r\0 ") for line in self._came.take()]

    def _command(self, command: str, label: str) -> None:
        """Raises DeviceError where it is refused, or not answered in time."""
        self.link.write(f"{command}\r\n".encode())
        self._acknowledged(command, label)

    def _acknowledged(self, command: str, label: str) -> None:
        word, deadline = command.split()[0], time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            for line in self._lines(0.1):
                text = line.removeprefix(_PROMPT).strip()
                if text.startswith(f"ack {word}"):
                    return
                if text.startswith(("err ", "error ")) and word in text:
                    refusal = text[:QUOTED]
                    raise DeviceError(f"the meter at {self.link.name} refuses {label}: {refusal}")
        raise DeviceError(
            f"the meter at {self.link.name} does not answer {label}: is it an X-NUCLEO-LPM01A, "
            "powered, and is this its USB port?"
        )

    @contextlib.contextmanager
    def _recording(self) -> Iterator[Stream]:
        """An acquisition as long as the block. A thread takes what comes: in the meter's own
        memory there is little room."""
        stream, begun, stop = Stream(), threading.Event(), threading.Event()
        lost: list[DeviceError] = []

        def listen() -> None:
            end = math.inf
            try:
                while not stream.ended and time.monotonic() < end:
                    for line in self._lines(0.1):
                        stream.line(line)
                    if stream.begun:
                        begun.set()
                    if stop.is_set() and end == math.inf:
                        end = time.monotonic() + ANSWER_S
            except DeviceError as error:
                lost.append(error)
                begun.set()
            except ValueError as error:
                lost.append(self._meter_error(str(error), stream))
                begun.set()

        self.link.write(b"start\r\n")
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        try:
            # A pulse before the meter listens would be lost.
            if not begun.wait(ANSWER_S):
                raise self._meter_error(
                    "it did not begin its acquisition when it was told to", stream
                )
            yield stream
        finally:
            stop.set()
            with contextlib.suppress(DeviceError):  # the listener reports a lost link itself
                self.link.write(b"stop\r\n")
            listener.join()
        if lost:
            raise lost[0]
        if stream.errors:
            raise self._meter_error("; ".join(stream.errors[:2]), stream)
        if not stream.ended:
            raise self._meter_error("it did not end its acquisition when it was told to", stream)

    def _meter_error(self, why: str, stream: Stream) -> DeviceError:
        return DeviceError(
            f"the meter at {self.link.name}: {why}; {len(stream.joules)} samples and "
            f"{len(stream.events)} pulses came"
        )


def at(port: str) -> Meter:
    """The meter at a serial port. Raises DeviceError where there is none."""
    link = Serial(port, BAUD)
    try:
        return Meter(link)
    except BaseException:
        link.close()
        raise


def _sum(joules: Sequence[float]) -> float:
    """The sum of all samples; a damaged one counts as the mean of the others."""
    values = np.array(joules)
    return float(np.nanmean(values) * values.size)


def _milliwatts(joules: float, seconds: float) -> float:
    return 1e3 * joules / seconds


class Kind(MeterKind):
    addressed = True

    def at(self, port: str) -> Meter:
        return at(port)


KIND: MeterKind = Kind()
