"""A board as a device: its address, its facts, and what its workers do, beside TFLite Micro on this
machine. The board is a double that runs the very file; its line is real."""

import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onmetal.errors import DeviceError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers import energy
from onmetal.profilers.devices import Memory, connect
from onmetal.profilers.devices.board import address as boards
from onmetal.profilers.devices.board.device import Board
from onmetal.profilers.devices.board.link import Serial
from onmetal.profilers.devices.board.worker import BoardWorker
from onmetal.profilers.devices.local import Local
from onmetal.records import Artifact
from onmetal.runtimes import fit
from tests import peer
from tests.peer import Fault, Peer

SHAPE = (1, 3, 6, 4)
"""Of the model's input as a user has it; the file has the channels last."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peer.net_file(tmp_path_factory.mktemp("net"), both=True)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peer.net_file(tmp_path_factory.mktemp("net"))


@pytest.fixture
def cache(_own_cache: None) -> Iterator[Cache]:
    with Cache() as opened:
        yield opened


def artifact(*files: Path, runtime: str = "tflm") -> Artifact:
    """What a candidate's worker opens."""
    both = files[0].stem == "both"
    options = {"nhwc": ["image", "map"] if both else ["image"]}
    outputs = ("probabilities", "map") if both else ("probabilities",)
    return Artifact(runtime, files, options, ("image",), outputs)


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=SHAPE).astype(np.float32) for _ in range(count)]


def feeds(folder: Path, count: int = 3) -> Path:
    path = folder / "feeds.npz"
    arrays: dict[str, Any] = {f"{n}/image": array for n, array in enumerate(pictures(count))}
    np.savez(path, **arrays)
    return path


def opened(board: Board, file: Path, folder: Path) -> BoardWorker:
    worker = board.worker()
    worker.open(artifact(file), timeout_s=60)
    worker.keep_feeds(feeds(folder), timeout_s=60)
    return worker


def reached(there: Peer, cache: Cache) -> Board:
    found = connect.reach(there.address, cache)
    assert isinstance(found, Board)
    return found


def timed(worker: BoardWorker, seconds: float, least: int = 1, feed: int = 0) -> np.ndarray:
    return worker.round(seconds, least, warm_s=0.01, feed=feed, timeout_s=60)


def stacked(folder: Path) -> list[list[np.ndarray]]:
    count = len(list(folder.glob("*-0.npy")))
    numbers = itertools.count()
    found = []
    for number in range(count):
        places = itertools.takewhile(
            lambda p: p.exists(), (folder / f"{number}-{k}.npy" for k in numbers)
        )
        found.append([np.load(place) for place in places])
        numbers = itertools.count()
    return found


# --- addresses


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("serial:///dev/ttyACM0", {"path": "/dev/ttyACM0", "baud": 115200, "meter": ""}),
        ("serial:///dev/a:b?baud=9600", {"path": "/dev/a:b", "baud": 9600}),
        (
            "serial:///dev/ttyUSB0?meter=lpm01a:/dev/ttyACM1&baud=921600",
            {"path": "/dev/ttyUSB0", "baud": 921600, "meter": "lpm01a:/dev/ttyACM1"},
        ),
        ("socket://bridge.local:4000", {"host": "bridge.local", "port": 4000}),
        ("socket://[::1]:4000", {"host": "::1", "port": 4000}),
        ("socket://h:1?meter=lpm01a:/dev/ttyACM1", {"host": "h", "meter": "lpm01a:/dev/ttyACM1"}),
        ("qemu:a/b.elf", {"image": "a/b.elf", "machine": "mps3-an547"}),
        ("qemu:/b?c.elf?machine=mps2-an386", {"image": "/b?c.elf", "machine": "mps2-an386"}),
    ],
)
def test_addresses(address: str, wanted: dict[str, Any]) -> None:
    connect.check_address(address)
    found = boards.place(address)
    assert {name: getattr(found, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "address",
    [
        "serial:",
        "serial://",
        "serial:///",
        "serial:/dev/ttyACM0",
        "serial://host/dev/ttyACM0",
        "serial:///dev/ttyACM0?",
        "serial:///dev/ttyACM0?baud",
        "serial:///dev/ttyACM0?baud=",
        "serial:///dev/ttyACM0?baud=0",
        "serial:///dev/ttyACM0?baud=-9600",
        "serial:///dev/ttyACM0?baud=99999999",
        "serial:///dev/ttyACM0?baud=9600&baud=9600",
        "serial:///dev/ttyACM0?speed=9600",
        "serial:///dev/ttyACM0?meter=/dev/ttyACM1",
        "serial:///dev/ttyACM0?meter=lpm01a:",
        "serial:///dev/ttyACM0?meter=js220:/dev/ttyACM1",
        "serial:///dev/ttyACM0?meter=lpm01a:/dev/ttyACM0",
        "socket:",
        "socket://",
        "socket://host",
        "socket://host:",
        "socket://host:0",
        "socket://host:99999",
        "socket://host:4000/path",
        "socket://user@host:4000",
        "socket://ho st:4000",
        "socket://host:4000?baud=9600",
        "qemu:",
        "qemu:?machine=mps3-an547",
        "qemu:a.elf?machine=",
        "qemu:a.elf?machine=a b",
        "qemu:a.elf?machine=a?machine=b",
    ],
)
def test_malformed_addresses(address: str, cache: Cache) -> None:
    with pytest.raises(UsageError, match="--device"):
        connect.check_address(address)
    with pytest.raises(UsageError, match="--device"):
        connect.reach(address, cache)


def test_the_transports_are_named_where_one_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"serial:///dev/tty…\[\?baud=N\].*socket://.*qemu:IMAGE"):
        connect.check_address("jtag:0")


# --- what it is


def test_facts(file: Path, cache: Cache) -> None:
    with Peer(file, name="NUCLEO-L4R5ZI", model="both") as there:
        board = reached(there, cache)
        facts = board.facts()
        board.close()
    assert (facts.address, facts.cpu) == (there.address, "NUCLEO-L4R5ZI")
    assert (facts.arch, facts.os, facts.cores) == ("cortex-m", "bare metal", 1)
    assert not facts.emulated
    assert list(facts.runtimes) == ["tflm"]
    assert facts.runtimes["tflm"].startswith("0.dev")
    assert facts.more["model_digest"] == board.holds == there.sha256
    assert (facts.more["model"], facts.more["baud"]) == ("both", 115200)
    assert facts.more["arena_bytes_used"] == 12_345
    json.dumps(facts.more)


def test_firmware_of_others_is_taken_on_trust(file: Path, cache: Cache, tmp_path: Path) -> None:
    with Peer(file, digest=False, tcp=True) as there:
        board = reached(there, cache)
        facts = board.facts()
        assert board.holds is None
        opened(board, file, tmp_path)
        with pytest.raises(DeviceError, match="does not say what its arena takes"):
            board.worker().peak_memory(artifact(file), timeout_s=60)
        board.close()
    assert facts.more["model_digest"] is None
    assert facts.more["baud"] is None


def test_a_board_with_another_model(file: Path, cache: Cache) -> None:
    with Peer(file, model="kws01", sha256="ab" * 32) as there:
        board = reached(there, cache)
        worker = board.worker()
        for operation in (worker.open, worker.profile, worker.peak_memory):
            with pytest.raises(
                UnsupportedError,
                match=r"holds the model kws01 \(abababababab\), where both\.tflite "
                r"\([0-9a-f]{12}\) was wanted: build and flash",
            ):
                operation(artifact(file), timeout_s=60)
        board.close()


def test_a_model_that_does_not_fit_its_arena(file: Path, cache: Cache) -> None:
    with Peer(file, arena=0, says="the arena may be too small") as there:
        board = reached(there, cache)
        with pytest.raises(
            DeviceError, match=r"arena of 16384 bytes \(the arena may be too small\): build it with"
        ):
            board.worker().open(artifact(file), timeout_s=60)
        board.close()


def test_the_last_file_is_the_one_on_the_board(file: Path, single: Path, cache: Cache) -> None:
    with Peer(file) as there:
        board = reached(there, cache)
        with pytest.raises(UnsupportedError, match=r"where small\.tflite"):
            board.worker().open(artifact(file, single), timeout_s=60)
        board.worker().open(artifact(file, file), timeout_s=60)
        board.close()


def test_boards_run_one_runtime_and_a_few_operations(file: Path, cache: Cache) -> None:
    with Peer(file) as there:
        board = reached(there, cache)
        with pytest.raises(UnsupportedError, match="the runtime litert does not run on"):
            board.worker().open(artifact(file, runtime="litert"), timeout_s=60)
        with pytest.raises(UnsupportedError, match="on this machine only"):
            board.worker().layers(artifact(file), timeout_s=60)
        board.close()


# --- what it computes


@pytest.mark.parametrize("buffer", [31, 240])
def test_outputs_are_those_of_this_machine(
    file: Path, cache: Cache, tmp_path: Path, buffer: int
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    given = feeds(tmp_path)
    with Peer(file, buffer=buffer) as double:
        board = reached(double, cache)
        for folder, worker in ((here, Local(cache).worker()), (there, board.worker())):
            folder.mkdir()
            with worker:
                worker.open(artifact(file), timeout_s=60)
                worker.run(given, folder, timeout_s=60)
        board.close()
    mine, theirs = stacked(here), stacked(there)
    assert [len(row) for row in mine] == [2, 2, 2]
    assert mine[0][1].shape == (1, 10, 6, 4)
    for a, b in zip(itertools.chain(*mine), itertools.chain(*theirs), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)
    assert len({row[1].tobytes() for row in mine}) == 3


def test_three_decimals_tell_the_stored_numbers(single: Path, cache: Cache, tmp_path: Path) -> None:
    given = feeds(tmp_path)
    with Peer(single, digest=False) as double:
        board = reached(double, cache)
        for name, worker in (("here", Local(cache).worker()), ("there", board.worker())):
            (tmp_path / name).mkdir()
            with worker:
                worker.open(artifact(single), timeout_s=60)
                worker.run(given, tmp_path / name, timeout_s=60)
        board.close()
    for mine, theirs in zip(stacked(tmp_path / "here"), stacked(tmp_path / "there"), strict=True):
        np.testing.assert_array_equal(mine[0], theirs[0])


@pytest.mark.parametrize(
    ("named", "run", "said"),
    [
        ("both", "both", "gives its first output only, and the model has 2"),
        ("small", "wide", "printed 240 results, where the model's output has 10"),
    ],
)
def test_results_that_are_not_the_models(
    file: Path, single: Path, cache: Cache, tmp_path: Path, named: str, run: str, said: str
) -> None:
    wanted = {"both": file, "small": single}[named]
    there = {"both": file, "wide": peer.net_file(tmp_path, map_only=True)}[run]
    with Peer(there, digest=False) as double:
        board = reached(double, cache)
        worker = opened(board, wanted, tmp_path)
        with pytest.raises(DeviceError, match=said):
            worker.run(feeds(tmp_path), tmp_path, timeout_s=60)
        board.close()


def test_samples_go_through(single: Path, cache: Cache, tmp_path: Path) -> None:
    from onmetal.calibration import samples
    from onmetal.records import Model, Tensor

    np.savez(tmp_path / "data.npz", image=np.concatenate(pictures(5)))
    inputs, outputs = (
        (Tensor("image", "float32", SHAPE),),
        (Tensor("probabilities", "float32", (1, 10)),),
    )
    model = Model(single, single, "", "tflite", "", 0, inputs, outputs, 0, None, {}, 1)
    data = samples.load(str(tmp_path / "data.npz"), model, cache, option="--data", labelled=False)
    with Peer(single) as double:
        board = reached(double, cache)
        told: list[tuple[int, int]] = []
        for name, worker in (
            ("here", Local(cache).worker()),
            ("there", opened(board, single, tmp_path)),
        ):
            (tmp_path / name).mkdir()
            with worker:
                worker.open(artifact(single), timeout_s=60)
                worker.outputs(
                    data,
                    model,
                    5,
                    tmp_path / name,
                    timeout_s=60,
                    progress=lambda *now: told.append(now),
                )
        board.close()
    found = [np.load(tmp_path / name / "0.npy") for name in ("here", "there")]
    assert found[0].shape == (5, 10)
    np.testing.assert_array_equal(*found)
    assert told[-1] == (5, 5)


# --- what it costs


@pytest.fixture
def steady(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same file, which takes as long whatever else this machine does."""
    monkeypatch.setattr(peer, "Model", peer.Steady)
    (tmp_path / "steady").mkdir()
    return shutil.copyfile(file, tmp_path / "steady" / file.name)


def test_a_window_is_one_measurement(steady: Path, cache: Cache, tmp_path: Path) -> None:
    with Peer(steady) as there:
        board = reached(there, cache)
        worker = opened(board, steady, tmp_path)
        assert 1 <= worker.warm(0.05, 5, timeout_s=60) <= 5
        found = timed(worker, 0.4)
        counts = [int(c.split()[1]) for c in there.commands if c.startswith("infer")]
        again = timed(worker, 0.4, feed=1)
        after = [int(c.split()[1]) for c in there.commands if c.startswith("infer")][len(counts) :]
        board.close()
    assert found.shape == again.shape == (1,)
    for mine, (count, begin, end) in zip((found, again), there.windows[-2:], strict=True):
        assert mine[0] == round(1000 * (end - begin) / count)
        assert end - begin > 40_000
    assert len(after) == 1, "how many fit was remembered"
    assert there.commands.count("db load 72") == 3


def test_a_window_has_as_many_inferences_as_it_must(
    file: Path, cache: Cache, tmp_path: Path
) -> None:
    with Peer(file) as there:
        board = reached(there, cache)
        timed(opened(board, file, tmp_path), 0.001, least=777)
        board.close()
    assert there.commands[-1].startswith("infer 777 ")


def test_a_window_longer_than_the_clock_counts(file: Path, cache: Cache, tmp_path: Path) -> None:
    with Peer(file) as there:
        board = reached(there, cache)
        worker = opened(board, file, tmp_path)
        with pytest.raises(DeviceError, match="longer than the board's clock counts"):
            timed(worker, 4200)
        with pytest.raises(DeviceError, match="longer than the board's clock counts"):
            timed(worker, 0.01, least=1 << 30)
        board.close()


@pytest.mark.parametrize(("clock", "seconds"), [(0.6, 0.9), (1.7, 2.0)])
def test_a_clock_that_is_wrong(
    steady: Path, cache: Cache, tmp_path: Path, clock: float, seconds: float
) -> None:
    with Peer(steady, clock=clock) as there:
        board = reached(there, cache)
        with pytest.raises(DeviceError, match=r"clock of the board .* counted .*SystemCoreClock"):
            timed(opened(board, steady, tmp_path), seconds)
        board.close()


def test_a_clock_that_stands_still(file: Path, cache: Cache, tmp_path: Path) -> None:
    with Peer(file, clock=0.0) as there:
        board = reached(there, cache)
        began = time.monotonic()
        with pytest.raises(DeviceError, match=r"counted 0\.000 s"):
            timed(opened(board, file, tmp_path), 10)
        assert time.monotonic() - began < 120
        board.close()


@pytest.mark.parametrize("tcp", [False, True])
def test_a_clock_that_is_right(steady: Path, cache: Cache, tmp_path: Path, tcp: bool) -> None:
    with Peer(steady, tcp=tcp) as there:
        board = reached(there, cache)
        assert timed(opened(board, steady, tmp_path), 2.4)[0] > 0
        board.close()


def test_memory_and_what_ran(file: Path, cache: Cache, tmp_path: Path) -> None:
    with Peer(file, name="ACME") as there:
        board = reached(there, cache)
        memory = board.worker().peak_memory(artifact(file), timeout_s=60)
        ran = opened(board, file, tmp_path).profile(artifact(file), timeout_s=60)
        board.close()
    assert memory == Memory(0, 12_345)
    assert ran["precision"] == {"i8": 1.0}
    assert ran["operators"] == dict.fromkeys(
        ("CONV_2D", "RESHAPE", "FULLY_CONNECTED", "SOFTMAX"), 0.25
    )
    assert (ran["kernels"], ran["board"]) == (4, "ACME")
    assert ran["firmware"] == "onmetal firmware 1"
    assert "instructions_per_inference" not in ran


def test_golden_vectors_on_the_board(file: Path, cache: Cache) -> None:
    with Peer(file) as there:
        board = reached(there, cache)
        assert board.worker().check(timeout_s=60) == (3, 4)
        board.close()


def test_no_meter_and_no_emulator(file: Path, cache: Cache, tmp_path: Path) -> None:
    with Peer(file) as there:
        board = reached(there, cache)
        worker = opened(board, file, tmp_path)
        with pytest.raises(DeviceError, match=r"no meter.*`meter=lpm01a:"):
            energy.measure(board, artifact(file), feeds(tmp_path), 1.0)
        with pytest.raises(DeviceError, match="is a real board"):
            worker.instructions(timeout_s=60)
        board.close()


# --- what goes wrong


def test_samples_take_no_longer_than_they_may(file: Path, cache: Cache, tmp_path: Path) -> None:
    with Peer(file) as there:
        board = reached(there, cache)
        worker = opened(board, file, tmp_path)
        with pytest.raises(DeviceError, match=r"the board did 0 of 3 samples in 0 s, all that"):
            worker.run(feeds(tmp_path), tmp_path, timeout_s=0)
        board.close()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("infer", "reset"), "restarted while it was at"),
        (Fault("infer", "silence"), "did not answer `infer 1 0` in time"),
        (Fault("infer", "error"), "refuses 1 inferences: Something is wrong"),
        (Fault("infer", "hang-up"), "unplugged"),
        (Fault("db load", "reset"), "restarted while it was at `db load 72`"),
        (Fault("db", "short", -1), "damaged twice: it lacks some of 72 bytes"),
        (Fault("output", "short", -1), "damaged twice: output 1 has 224 bytes"),
        (Fault("output", "reset"), "restarted while it was at `output`"),
    ],
)
def test_a_run_that_breaks_off(
    file: Path, cache: Cache, tmp_path: Path, fault: Fault, said: str
) -> None:
    with Peer(file, faults=(fault,)) as there:
        board = reached(there, cache)
        worker = opened(board, file, tmp_path)
        began = time.monotonic()
        with pytest.raises(DeviceError, match=said):
            # Only of silence does time tell.
            limit_s = 3 if fault.kind == "silence" else 60
            worker.run(feeds(tmp_path), tmp_path, timeout_s=limit_s)
        assert time.monotonic() - began < 60
        board.close()


def test_a_board_of_the_wrong_kind_is_given_back(file: Path, cache: Cache) -> None:

    with Peer(file) as there:
        with pytest.raises(DeviceError, match="is cortex-m; the target x86-64 needs x86_64"):
            connect.connect(fit.load_target("x86-64"), there.address, cache)
        Serial(there.wire.place).close()
        device = connect.connect(fit.load_target("cortex-m4"), there.address, cache)
        device.close()
        device.close()
