"""Raw samples are kept, and the figures are those that can be computed from them again."""

from pathlib import Path

import numpy as np

from onmetal.deploy.vectors import keep_raw
from onmetal.files.cache import Cache
from onmetal.profilers import energy
from onmetal.records import Energy, Rounds, Trial, Window

WINDOWS = (Window(30.0, 2.0, 10, 2000), Window(32.5, 2.5, 10, 2500), Window(25.0, 2.0, 10, 2000))
METERED = Energy(WINDOWS, 5.0, "a meter", "the board")


def arrays(path: Path | None) -> dict[str, np.ndarray]:
    assert path
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def test_latencies_and_a_meters_windows_are_kept() -> None:
    first, again = np.array([5, 6, 7], np.int64), np.array([8], np.int64)
    trial = Trial(
        *("int8@a", "int8", "a", "m"),
        status="chosen",
        rounds=Rounds({(0, 1): first}, (1.0,)),
        again={"fp32@a": Rounds({(0, 0): again}, (1.0,))},
        energy_windows=METERED,
    )
    with Cache() as cache:
        raw = arrays(keep_raw([trial], cache))
    assert raw["int8@a/0/1"].tolist() == [5, 6, 7]
    assert raw["again/fp32@a/0/0"].tolist() == [8]
    kept = {name.rpartition("/")[2]: values for name, values in raw.items() if "energy_mj" in name}
    windows = zip(*(kept[field].tolist() for field in Window.__struct_fields__), strict=True)
    assert tuple(Window(*values) for values in windows) == WINDOWS
    assert float(kept["idle_mw"]) == METERED.idle_mw
    each = (kept["energy_mj"] - kept["idle_mw"] * kept["seconds"]) / kept["inferences"]
    assert float(np.median(each)) == energy.figure(METERED).value == 2.0


def test_where_nothing_was_measured_nothing_is_kept() -> None:
    with Cache() as cache:
        assert keep_raw([Trial("int8@a", "int8", "a", "m")], cache) is None
