"""Power meters: their interface, and how a device's meter is found.

A further meter needs a module here that implements `Meter`. It offers `on_host`, where it measures
this machine, or `at`, where it is named in a board's address (`?meter=KIND:PORT`).
"""

from importlib import import_module
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from onmetal.errors import DeviceError
from onmetal.records import Window


class Meter(Protocol):
    """One meter that is ready to measure."""

    kind: str
    """Its name, as in addresses and facts."""
    name: str
    """As people call it, with what it measures by."""
    covers: str
    """What it measures the power of, in words: the whole board, the processor's package."""
    least_window_s: float
    """A shorter window is not resolved well enough."""

    def idle_mw(self, seconds: float) -> float:
        """The power taken while nothing is computed. Raises DeviceError where it cannot be read."""

    def begin(self) -> None:
        """Begin a window. Raises DeviceError where the meter does not answer."""

    def end(self, inferences: int) -> Window:
        """End the window. -> the energy taken since `begin`. Raises DeviceError where that is not
        known."""

    def abandon(self) -> None:
        """End the window without a result, where the inferences in it failed."""

    def least_mw(self, power_mw: float) -> float:
        """The least difference of powers that it can distinguish, near this one."""

    def close(self) -> None: ...


class Missing(Struct, frozen=True):
    """Why a kind of meter cannot be used here."""

    why: str
    fix: str | None = None
    """The command that mends it, where there is one."""


NONE = Missing("no meter: onmetal has none for this device")


class MeterKind(Protocol):
    """A kind of meter: `KIND` of a module here, which is named as the meter is."""

    addressed: bool = False
    """Whether it is named in a board's address, by the port that `at` takes."""

    def on_host(self) -> Meter | Missing | None:
        """The meter of this machine, or why there is none; None: it measures no machine."""
        return None

    def at(self, port: str) -> Meter:
        """The meter at a port. Raises DeviceError where nothing answers there."""
        raise DeviceError("this kind of meter is not reached by a port")


def kinds() -> dict[str, MeterKind]:
    """By name, in the order of the alphabet: of several that measure this machine the first is
    used."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    return {name: import_module(f"{__name__}.{name}").KIND for name in names}


def on_host() -> Meter | Missing:
    """The first meter that measures this machine; where none can be used, why, preferably of one
    that a command makes usable."""
    missing = NONE
    for name, kind in kinds().items():
        try:
            meter = kind.on_host()
        except (DeviceError, OSError, ValueError) as error:
            meter = Missing(f"no meter: {name}: {error}")
        if meter is None:
            continue
        if not isinstance(meter, Missing):
            return meter
        if meter.fix or missing is NONE:
            missing = meter
    return missing


def at(name: str, port: str) -> Meter:
    """The meter of a board's address. Raises DeviceError where nothing answers there."""
    if name not in named():
        raise DeviceError(f"there is no meter {name!r}; there are: {', '.join(named())}")
    return kinds()[name].at(port)


def named() -> list[str]:
    """Kinds of meters that may be named in a board's address."""
    return [name for name, kind in kinds().items() if kind.addressed]
