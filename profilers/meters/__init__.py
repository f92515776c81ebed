"""Power meters: their interface, and how a device's meter is found.

A further meter needs a module here that implements `Meter`. It offers `on_host`, where it measures
this machine, or `at`, where it is named in a board's address (`?meter=KIND:PORT`).
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

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


def kinds() -> list[str]:
    """The modules here, each of which is named as its meter."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def on_host() -> Meter | Missing:
    """The first meter that measures this machine; where none can be used, why, preferably of one
    that a command makes usable."""
    missing = NONE
    for kind in kinds():
        find: Callable[[], Meter | Missing] | None = getattr(_module(kind), "on_host", None)
        if find is None:
            continue
        meter = find()
        if not isinstance(meter, Missing):
            return meter
        if meter.fix or missing is NONE:
            missing = meter
    return missing


def at(kind: str, port: str) -> Meter:
    """The meter of a board's address. Raises DeviceError where nothing answers there."""
    connect: Callable[[str], Meter] = _module(kind).at
    return connect(port)


def named() -> list[str]:
    """Kinds of meters that may be named in a board's address."""
    return [kind for kind in kinds() if hasattr(_module(kind), "at")]


def _module(kind: str) -> Any:
    if kind not in kinds():
        raise DeviceError(f"there is no meter {kind!r}; there are: {', '.join(kinds())}")
    return import_module(f"onmetal.profilers.meters.{kind}")
