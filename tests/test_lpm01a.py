"""Energy by a meter's double that follows UM2269, beside a board's double that pulses its pin."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onmetal.errors import DeviceError
from onmetal.files.cache import Cache
from onmetal.profilers import energy
from onmetal.profilers.devices import connect
from onmetal.profilers.devices.board.device import Board
from onmetal.profilers.devices.board.link import Serial
from onmetal.profilers.meters import lpm01a
from onmetal.profilers.meters.lpm01a import Meter, Stream
from onmetal.records import Artifact, Energy, Window
from tests import peer
from tests.peer import Fault, MeterPeer, Peer, until


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peer.net_file(tmp_path_factory.mktemp("net"))


@pytest.fixture
def cache(_own_cache: None) -> Iterator[Cache]:
    with Cache() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onmetal.profilers.energy.IDLE_S", 0.4)
    monkeypatch.setattr(lpm01a, "ANSWER_S", 1.0)


def reached(there: Peer, meter: MeterPeer, cache: Cache) -> Board:
    found = connect.reach(f"{there.address}?meter=lpm01a:{meter.path}", cache)
    assert isinstance(found, Board)
    return found


def measured(board: Board, file: Path, folder: Path, seconds: float) -> Energy:
    artifact = Artifact("tflm", (file,), {"nhwc": ["image"]}, ("image",), ("probabilities",))
    arrays = {"0/image": np.zeros((1, 3, 6, 4), np.float32)}
    np.savez(folder / "feeds.npz", **arrays)  # type: ignore[arg-type]
    return energy.measure(board, artifact, folder / "feeds.npz", seconds)


# --- a stream


def test_a_stream_as_the_meter_sends_it() -> None:
    stream = Stream()
    lines = ["1234-05", "PowerShield > ack start", "", "6409-07", "TimeStamp: 001s 000ms, buff 02%"]
    lines += ["event 0 ris", "1958-09", "19580-09", "0000+00", "event 1 ris"]
    lines += ["end", "summary beg", "0001-01", "summary end", "event 2 ris"]
    for line in lines:
        stream.line(line)
    np.testing.assert_allclose(stream.joules, [6409e-7, 1958e-9, np.nan, 0], rtol=1e-12)
    assert stream.events == [(0, 1), (1, 4)]
    assert stream.stamps == [1]
    assert stream.begun and stream.ended


def test_what_is_idle_is_subtracted() -> None:
    windows = tuple(Window(mj, 2.0, 100, 2000) for mj in (50.0, 52.0, 60.0))
    found = energy.figure(Energy(windows, 5.0, Meter.name, Meter.covers))
    # The middle one: 52 mJ in 2 s, of which 10 mJ would have gone without work; 100 inferences.
    assert found.value == pytest.approx(0.42)
    assert found.samples == 6000
    assert "LPM01A" in found.how and "median of 3 windows of 2 s" in found.how
    assert "with it: 0.52 mJ" in found.how


def test_what_the_meter_can_tell() -> None:
    with MeterPeer() as double:
        meter = Meter(Serial(double.path, lpm01a.BAUD))
        assert meter.least_mw(25.0) == pytest.approx(0.5)
        assert meter.least_mw(0.0) == pytest.approx(3.3e-4)
        meter.close()


# --- with a board


def test_energy_of_an_inference(file: Path, cache: Cache, tmp_path: Path) -> None:
    with MeterPeer(idle_mw=5, busy_mw=25) as meter, Peer(file, energy=meter.pulse) as there:
        board = reached(there, meter, cache)
        assert board.facts().more["meters"] == ["lpm01a"]
        found = measured(board, file, tmp_path, 0.5)
        inferences = int(there.commands[-1].split()[1])
        acquisitions = meter.commands.count("start")
        board.close()
        until(lambda: "hrc" in meter.commands)
    assert len(found.windows) == 3
    assert found.idle_mw == pytest.approx(5, rel=0.01)
    # Twenty milliwatts of work for as long as an inference takes.
    for window, mj, total_mj in zip(found.windows, found.each_mj, found.total_mj, strict=True):
        assert window.inferences == inferences
        assert mj == pytest.approx(20 * window.seconds / inferences, rel=0.1)
        assert total_mj == pytest.approx(25 * window.seconds / inferences, rel=0.1)
    assert acquisitions == 4, "one acquisition of the board at rest, three of it at work"
    setup = ["htc", *lpm01a.SETUP]
    assert meter.commands[: len(setup)] == setup
    assert meter.commands[-2:] == ["pwr off", "hrc"]


def test_firmware_that_pulses_and_prints_no_times(file: Path, cache: Cache, tmp_path: Path) -> None:
    with MeterPeer() as meter, Peer(file, digest=False, laps=False, energy=meter.pulse) as there:
        board = reached(there, meter, cache)
        found = measured(board, file, tmp_path, 0.3)
        board.close()
    assert (found.each_mj > 0).all()


def test_no_pulses(file: Path, cache: Cache, tmp_path: Path) -> None:
    with MeterPeer(wired=False) as meter, Peer(file, energy=meter.pulse) as there:
        board = reached(there, meter, cache)
        with pytest.raises(DeviceError, match=r"saw 0 pulses.*not wired to the meter's D7.*energy"):
            measured(board, file, tmp_path, 0.1)
        board.close()


def test_a_board_that_waits_as_it_works(file: Path, cache: Cache, tmp_path: Path) -> None:
    with MeterPeer(idle_mw=24.9, busy_mw=25) as meter, Peer(file, energy=meter.pulse) as there:
        board = reached(there, meter, cache)
        with pytest.raises(DeviceError, match=r"distinguish less.*it sleeps while it waits"):
            measured(board, file, tmp_path, 0.1)
        board.close()


def test_a_window_from_which_samples_are_lost(file: Path, cache: Cache, tmp_path: Path) -> None:
    with MeterPeer(lost=3) as meter, Peer(file, energy=meter.pulse) as there:
        board = reached(there, meter, cache)
        with pytest.raises(DeviceError, match=r"3 samples of 1000 were lost.*busy"):
            measured(board, file, tmp_path, 2.5)
        board.close()


def test_a_meter_that_breaks_off(file: Path, cache: Cache, tmp_path: Path) -> None:
    with MeterPeer(error="overcurrent") as meter, Peer(file, energy=meter.pulse) as there:
        board = reached(there, meter, cache)
        with pytest.raises(DeviceError, match="error overcurrent"):
            measured(board, file, tmp_path, 0.1)
        board.close()


def test_a_board_that_breaks_off_leaves_the_meter_usable(
    file: Path, cache: Cache, tmp_path: Path
) -> None:
    faults = (Fault("infer", "reset"),)
    with MeterPeer() as meter, Peer(file, energy=meter.pulse, faults=faults) as there:
        board = reached(there, meter, cache)
        with pytest.raises(DeviceError, match="restarted"):
            measured(board, file, tmp_path, 0.1)
        assert (measured(board, file, tmp_path, 0.2).each_mj > 0).all()
        board.close()


@pytest.mark.parametrize(
    ("double", "said"),
    [
        (MeterPeer(deaf=True), "does not answer take over: is it an X-NUCLEO-LPM01A"),
        (MeterPeer(refuses="volt"), "refuses `volt 3300m`: error volt 3300m"),
        (MeterPeer(refuses="eventsrc"), "refuses `eventsrc d7 fal`"),
    ],
)
def test_a_meter_that_is_none(file: Path, cache: Cache, double: MeterPeer, said: str) -> None:
    with double, Peer(file) as there:
        with pytest.raises(DeviceError, match=said):
            reached(there, double, cache)
        # Both ports were given back.
        Serial(double.path, lpm01a.BAUD).close()
        Serial(there.wire.place).close()
