"""Energy by RAPL: counters of what a processor's packages take, as Linux's powercap gives them.

https://www.kernel.org/doc/html/latest/power/powercap/powercap.html: each zone
`intel-rapl:N` (AMD's processors since Zen have them too) holds `name`, `energy_uj` and
`max_energy_range_uj`, after which the counter begins anew. Counters are updated about once a
millisecond, so a window begins and ends with an update, and lasts for many. Since Linux 5.10 they
are root's alone to read. Virtual machines have none, or counters that stand still.

Tried on trees of files as these are on such machines; on no processor.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from onmetal.errors import DeviceError
from onmetal.profilers.meters import MeterKind, Missing
from onmetal.records import Window

POWERCAP = Path("/sys/class/powercap")
FIX = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
STILL_S = 0.25
"""A counter that has not changed after this time stands still."""
UPDATES = 20
"""How many updates are timed to know how long one takes."""
LEAST_S = 0.5
WINDOW_UPDATES = 200
"""A window of as many updates has edges of less than one in a hundred."""
MOST_W = 1000.0
"""No package takes more: a window in which it could have begun anew twice is refused."""
ACCURACY = 0.02
"""The part of a power below which a difference says nothing: the counters rest on a model."""


class Zone:
    """One zone of powercap and its counter."""

    def __init__(self, folder: Path) -> None:
        self.name = (folder / "name").read_text().strip()
        self.path = folder / "energy_uj"
        self.range_uj = int((folder / "max_energy_range_uj").read_text())

    def read_uj(self) -> int:
        return int(self.path.read_text())

    def since_uj(self, before: int, after: int) -> int:
        """The energy between two readings, between which the counter began anew at most once."""
        return after - before if after >= before else after - before + self.range_uj


class Rapl:
    """The packages of this machine, and their memory where it is counted."""

    kind = "rapl"

    def __init__(self, zones: list[Zone]) -> None:
        """Raises DeviceError where a counter stands still."""
        self.zones = zones
        self.name = f"RAPL ({', '.join(zone.name for zone in zones)})"
        self.covers = "the processor" + (
            " with its memory" if any(zone.name == "dram" for zone in zones) else ""
        )
        began = self._update()
        for _ in range(UPDATES):
            ended = self._update()
        self.update_s = (ended - began) / UPDATES
        self.least_window_s = max(LEAST_S, WINDOW_UPDATES * self.update_s)
        self._began_s, self._before = 0.0, [0] * len(zones)

    def idle_mw(self, seconds: float) -> float:
        self.begin()
        time.sleep(max(seconds, self.least_window_s))
        window = self.end(1)
        return window.energy_mj / window.seconds

    def begin(self) -> None:
        self._began_s = self._update()
        self._before = [zone.read_uj() for zone in self.zones]

    def end(self, inferences: int) -> Window:
        seconds = self._update() - self._began_s
        after = [zone.read_uj() for zone in self.zones]
        least_uj = min(zone.range_uj for zone in self.zones)
        if seconds * MOST_W * 1e6 > least_uj:
            raise DeviceError(
                f"a window of {seconds:.0f} s is too long for RAPL: its counters begin anew after "
                f"{least_uj / 1e6:.0f} J, and may have done so more than once"
            )
        taken_uj = sum(
            zone.since_uj(before, now)
            for zone, before, now in zip(self.zones, self._before, after, strict=True)
        )
        return Window(taken_uj / 1e3, seconds, inferences, 2 * len(self.zones))

    def abandon(self) -> None:
        """A counter needs no end."""

    def least_mw(self, power_mw: float) -> float:
        return ACCURACY * power_mw

    def close(self) -> None:
        """Counters are shared by all who may read them."""

    def _update(self) -> float:
        """Wait until the first package is counted anew. -> the time then, in s."""
        zone = self.zones[0]
        began, before = time.monotonic(), zone.read_uj()
        while time.monotonic() - began < STILL_S:
            if zone.read_uj() != before:
                return time.monotonic()
        raise DeviceError(
            f"RAPL's counter of {zone.name} stands still, as in a virtual machine whose host does "
            "not pass it on"
        )


def on_host(powercap: Path | None = None) -> Rapl | Missing:
    """The counters of this machine, or why they cannot be used."""
    folders = list(_folders(powercap or POWERCAP))
    if not folders:
        return Missing("no meter: this machine has no RAPL counters (/sys/class/powercap)")
    if not all(os.access(folder / "energy_uj", os.R_OK) for folder in folders):
        return Missing("no meter: RAPL's counters are root's alone to read", FIX)
    try:
        return Rapl([Zone(folder) for folder in folders])
    except (DeviceError, OSError, ValueError) as error:
        return Missing(f"no meter: {error}")


def _folders(powercap: Path) -> Iterator[Path]:
    """The zones of every package, and of its memory; `core` and `uncore` are parts of a package,
    and the zones of `intel-rapl-mmio` are the same counters again."""
    for folder in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (folder / "name").read_text().strip()
        except OSError:
            continue
        if name.startswith("package-") or name == "dram":
            yield folder


class Kind(MeterKind):
    def on_host(self) -> Rapl | Missing:
        return on_host()


KIND: MeterKind = Kind()
