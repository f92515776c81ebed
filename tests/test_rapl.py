"""RAPL's counters, on trees of files as Linux shows them on such machines."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onmetal import cli
from onmetal.errors import DeviceError
from onmetal.profilers import energy, meters
from onmetal.profilers.devices.local import Local
from onmetal.profilers.meters import Missing, rapl
from onmetal.profilers.meters.rapl import Rapl, Zone
from tests.conftest import DIGITS

LAPTOP = {
    "intel-rapl:0": ("package-0", 18_210_033_111, 262_143_328_850),
    "intel-rapl:0:0": ("core", 11_900_000_123, 262_143_328_850),
    "intel-rapl:0:1": ("uncore", 90_000_456, 262_143_328_850),
    "intel-rapl:0:2": ("dram", 2_400_000_789, 262_143_328_850),
    "intel-rapl:1": ("psys", 40_000_000_000, 262_143_328_850),
    "intel-rapl-mmio:0": ("package-0", 18_210_033_111, 262_143_328_850),
}
"""A Core i7 of a laptop: two zones of top level, the second of the whole board."""
SERVER = {
    "intel-rapl:0": ("package-0", 115_010_203_040, 262_143_328_850),
    "intel-rapl:0:0": ("dram", 9_876_543_210, 65_712_999_613),
    "intel-rapl:1": ("package-1", 261_000_000_000, 262_143_328_850),
    "intel-rapl:1:0": ("dram", 65_712_000_000, 65_712_999_613),
}
"""A Xeon of two sockets, whose memory is counted in other units."""
ZEN = {
    "intel-rapl:0": ("package-0", 65_500_000_000, 65_532_610_987),
    "intel-rapl:0:0": ("core", 1_000_000, 65_532_610_987),
}
"""A Ryzen, whose counter is about to begin anew."""
TREES = {"laptop": LAPTOP, "server": SERVER, "zen": ZEN}
COUNTED = {
    "laptop": ["package-0", "dram"],
    "server": ["package-0", "dram", "package-1", "dram"],
    "zen": ["package-0"],
}
STEP_UJ = 20_000
"""Twenty watts, where a counter is updated each millisecond."""


def tree(folder: Path, name: str) -> Path:
    for zone, (title, value, most) in TREES[name].items():
        place = folder / zone
        place.mkdir(parents=True)
        (place / "name").write_text(f"{title}\n")
        (place / "energy_uj").write_text(f"{value}\n")
        (place / "max_energy_range_uj").write_text(f"{most}\n")
    return folder


class Counting:
    """Writes every counter of a tree anew each millisecond, by one step."""

    def __init__(self, powercap: Path) -> None:
        self.zones = [path.parent for path in sorted(powercap.glob("*/energy_uj"))]
        self.values = [int((zone / "energy_uj").read_text()) for zone in self.zones]
        self.ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self.zones]
        self.updates = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def __enter__(self) -> "Counting":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _count(self) -> None:
        while not self._over.wait(0.001):
            self.updates += 1
            for place, zone in enumerate(self.zones):
                self.values[place] = (self.values[place] + STEP_UJ) % self.ranges[place]
                new = zone / "new"  # a reader never meets half of a number
                new.write_text(f"{self.values[place]}\n")
                new.replace(zone / "energy_uj")


@pytest.fixture(params=sorted(TREES))
def counted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Rapl, Counting, str]]:
    powercap = tree(tmp_path, request.param)
    with Counting(powercap) as counting:
        meter = rapl.on_host(powercap)
        assert isinstance(meter, Rapl), meter
        yield meter, counting, request.param


def test_what_is_counted(counted: tuple[Rapl, Counting, str]) -> None:
    meter, _, name = counted
    assert [zone.name for zone in meter.zones] == COUNTED[name]
    assert meter.covers.endswith("memory") == ("dram" in COUNTED[name])
    assert meter.least_window_s >= max(0.5, 200 * meter.update_s)
    assert "package-0" in meter.name


def test_a_window_holds_what_was_counted_in_it(counted: tuple[Rapl, Counting, str]) -> None:
    """Also where a counter begins anew meanwhile, as that of the last tree does."""
    meter, counting, name = counted
    before = counting.updates
    meter.begin()
    at_begin = counting.updates
    while counting.updates < before + 2200 and name == "zen":
        time.sleep(0.01)
    time.sleep(0.2)
    at_end = counting.updates
    window = meter.end(10)
    each_mj = STEP_UJ / 1e3 * len(meter.zones)
    least, most = (at_end - at_begin - 2) * each_mj, (counting.updates - before + 2) * each_mj
    assert 0 < least <= window.energy_mj <= most
    assert (window.inferences, window.samples) == (10, 2 * len(meter.zones))
    assert window.seconds > 0.19


def test_idle_is_a_power(counted: tuple[Rapl, Counting, str]) -> None:
    meter, _, _ = counted
    watts = meter.idle_mw(0.1) / 1e3
    assert 0 < watts < 1000


@pytest.mark.parametrize(
    ("before", "after", "taken"), [(10, 30, 20), (95, 5, 10), (0, 0, 0), (99, 0, 1)]
)
def test_a_counter_that_begins_anew(before: int, after: int, taken: int, tmp_path: Path) -> None:
    zone = Zone(tree(tmp_path, "zen") / "intel-rapl:0")
    zone.range_uj = 100
    assert zone.since_uj(before, after) == taken


def test_a_window_in_which_it_could_have_begun_anew_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    powercap = tree(tmp_path, "zen")
    with Counting(powercap):
        meter = rapl.on_host(powercap)
        assert isinstance(meter, Rapl)
        monkeypatch.setattr(rapl, "MOST_W", 1e12)
        meter.begin()
        with pytest.raises(DeviceError, match="too long for RAPL: its counters begin anew after"):
            meter.end(1)


def test_no_counters(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        found = rapl.on_host(folder)
        assert isinstance(found, Missing) and found.fix is None
        assert found.why == "no meter: this machine has no RAPL counters (/sys/class/powercap)"


def test_counters_that_stand_still(tmp_path: Path) -> None:
    """As in a virtual machine: it is said, and no energy is ever zero."""
    found = rapl.on_host(tree(tmp_path, "server"))
    assert isinstance(found, Missing)
    assert "stands still, as in a virtual machine" in found.why


def test_a_counter_that_stops_in_a_window(tmp_path: Path) -> None:
    powercap = tree(tmp_path, "laptop")
    with Counting(powercap):
        meter = rapl.on_host(powercap)
        assert isinstance(meter, Rapl)
        meter.begin()
    with pytest.raises(DeviceError, match="stands still"):
        meter.end(1)


def test_counters_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    powercap = tree(tmp_path, "laptop")
    real: Callable[..., bool] = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: "energy_uj" not in str(path) and real(path, mode)
    )
    found = rapl.on_host(powercap)
    assert isinstance(found, Missing)
    assert "root's alone" in found.why and found.fix and "chmod a+r" in found.fix


@pytest.mark.parametrize("content", ["", "many", "1.5", "0x10"])
def test_a_counter_that_is_no_number(tmp_path: Path, content: str) -> None:
    powercap = tree(tmp_path, "zen")
    (powercap / "intel-rapl:0" / "energy_uj").write_text(content)
    found = rapl.on_host(powercap)
    assert isinstance(found, Missing) and found.why.startswith("no meter: ")


def test_it_is_the_meter_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _own_cache: None
) -> None:
    from onmetal.files.cache import Cache

    powercap = tree(tmp_path, "server")
    with Counting(powercap), Cache() as cache:
        meter = rapl.on_host(powercap)
        monkeypatch.setattr(meters, "on_host", lambda: meter)
        device = Local(cache)
        assert device.meter is meter and device.no_meter == ""
    monkeypatch.setattr(meters, "on_host", lambda: Missing("no meter: none"))
    with Cache() as cache, pytest.raises(DeviceError, match="no meter: none"):
        from onmetal.records import Artifact

        energy.measure(Local(cache), Artifact("onnxruntime", (), {}, (), ()), tmp_path, 0.1)


def test_a_deployment_that_saves_energy(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    _own_cache: None,
) -> None:
    """The counters know nothing of work here: what is idle is said to be half of it."""
    powercap, out = tree(tmp_path / "powercap", "server"), tmp_path / "bundle"
    monkeypatch.setattr(rapl, "POWERCAP", powercap)
    monkeypatch.setattr(rapl.Rapl, "idle_mw", lambda meter, seconds: 1_000.0)
    words = [str(DIGITS / "digits_cnn.onnx"), "--target", "x86-onnxruntime", "--recipes", "fp32"]
    words += ["--minimize", "energy", "--quick", "--json", "--out", str(out)]
    with Counting(powercap):
        assert cli.main(words) == 0
    document = json.loads(capsys.readouterr().out)
    (chosen,) = [c for c in document["candidates"] if c["status"] == "chosen"]
    assert document["decided_by"] == "energy"
    assert chosen["energy_mj"]["value"] > 0 and "energy_mj" not in chosen["missing"]
    assert chosen["energy_mj"]["how"].startswith("RAPL (package-0, dram, package-1, dram), median")
