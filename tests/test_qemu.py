"""An image under qemu as a board: a Cortex-M55's firmware is built, run and asked over a socket."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from onmetal.errors import DeviceError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices import connect
from onmetal.profilers.devices.board import qemu
from onmetal.profilers.devices.board.device import Board
from onmetal.profilers.devices.board.qemu import Qemu
from onmetal.records import Artifact
from tests import firmware_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image, the model that is in it, and its golden inputs as feeds."""
    place = tmp_path_factory.mktemp("qemu")
    firmware_image.image(place)
    (place / "model.tflite").write_bytes(firmware_image.content())
    arrays: dict[str, Any] = {
        f"{name.rpartition('/')[2]}/image": array
        for name, array in firmware_image.golden().items()
        if name.startswith("input/")
    }
    np.savez(place / "feeds.npz", **arrays)
    return place


@pytest.fixture
def cache(_own_cache: None) -> Iterator[Cache]:
    with Cache() as opened:
        yield opened


def reached(folder: Path, cache: Cache) -> Board:
    found = connect.reach(f"qemu:{folder / 'firmware.elf'}?machine=mps3-an547", cache)
    assert isinstance(found, Board)
    return found


def artifact(folder: Path) -> Artifact:
    options = {"nhwc": list(firmware_image.TURNED)}
    return Artifact("tflm", (folder / "model.tflite",), options, ("image",), ("scores", "map"))


def counted(board: Board, folder: Path) -> dict[str, Any]:
    worker = board.worker()
    worker.open(artifact(folder), timeout_s=60)
    worker.keep_feeds(folder / "feeds.npz", timeout_s=60)
    found: dict[str, Any] = worker.instructions(timeout_s=60)
    return found


def test_what_is_emulated_is_said(folder: Path, cache: Cache) -> None:
    board = reached(folder, cache)
    facts = board.facts()
    board.close()
    assert facts.emulated
    assert facts.arch == "cortex-m"
    assert "Cortex-M55" in facts.more["soc"]
    assert facts.more["baud"] is None
    assert board.holds is not None


def test_outputs_are_those_of_this_machine(folder: Path, cache: Cache, tmp_path: Path) -> None:
    board = reached(folder, cache)
    with board.worker() as worker:
        worker.open(artifact(folder), timeout_s=60)
        worker.run(folder / "feeds.npz", tmp_path, timeout_s=60)
        vectors = firmware_image.VECTORS
        assert worker.check(timeout_s=60) == (vectors, vectors)
    board.close()
    golden = firmware_image.golden()
    for number in range(firmware_image.VECTORS):
        for place, name in enumerate(("scores", "map")):
            found = np.load(tmp_path / f"{number}-{place}.npy")
            np.testing.assert_array_equal(found, golden[f"output/{name}/{number}"])


def test_instructions_repeat_exactly(folder: Path, cache: Cache) -> None:
    """In one emulator and in another, whenever the commands arrive."""
    first, second = reached(folder, cache), reached(folder, cache)
    found = [counted(board, folder) for board in (first, second, first)]
    profile = first.worker()
    profile.keep_feeds(folder / "feeds.npz", timeout_s=60)
    ran = profile.profile(artifact(folder), timeout_s=60)
    first.close()
    second.close()
    assert found[0] == found[1] == found[2]
    assert "exact" in found[0]["how"] and "icount" in found[0]["how"]
    # A convolution of 4 x 3 x 4 outputs of 18 products each and a layer of 5 x 48, one by one.
    assert 1_104 < found[0]["instructions_per_inference"] < 1_104 * 100
    assert ran["instructions_per_inference"] == found[0]["instructions_per_inference"]
    assert ran["precision"] == {"i8": 1.0}


def test_instructions_that_the_clock_is_too_coarse_for(
    folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = reached(folder, cache)
    wanted = counted(exact, folder)["instructions_per_inference"]
    monkeypatch.setattr("onmetal.profilers.devices.board.inferences.MOST_INSTRUCTIONS", 1)
    found = [counted(exact, folder) for _ in range(5)]
    exact.close()
    # A clock of 32 MHz counts one inference to two of its ticks of 31.25 instructions.
    assert all(entry == found[0] for entry in found)
    assert found[0]["instructions_per_inference"] == round(wanted, -4)
    assert "2 inferences less one" in found[0]["how"] and "next 10,000" in found[0]["how"]


def test_its_clock_is_not_held_against_this_machines(folder: Path, cache: Cache) -> None:
    """Its time is not ours, and an image's windows are as long as ours are."""
    board = reached(folder, cache)
    with board.worker() as worker:
        worker.open(artifact(folder), timeout_s=60)
        worker.keep_feeds(folder / "feeds.npz", timeout_s=60)
        assert worker.round(1.2, 1, warm_s=0.0, feed=0, timeout_s=60)
    board.close()


# --- images and machines


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a linked ELF image"),
        (b"\x7fELF\x01\x01\x01" + bytes(11) + b"\x28", "not a linked ELF image"),
        (b"\x7fELF\x02\x01\x01" + bytes(11) + b"\x3e\x00" + bytes(40), "not a linked ELF image"),
        (b"\x7fELF\x01\x01\x01" + bytes(11) + b"\xf3\x00" + bytes(40), "not a linked ELF image"),
    ],
)
def test_a_file_that_is_no_image(tmp_path: Path, cache: Cache, content: bytes, said: str) -> None:
    (tmp_path / "a.elf").write_bytes(content)
    with pytest.raises(UsageError, match=said):
        connect.reach(f"qemu:{tmp_path / 'a.elf'}", cache)


def test_an_image_that_is_a_pipe(tmp_path: Path, cache: Cache) -> None:
    os.mkfifo(tmp_path / "a.elf")
    with pytest.raises(UsageError, match="not a regular file but a pipe"):
        connect.reach(f"qemu:{tmp_path / 'a.elf'}", cache)


def test_an_image_that_is_not_there(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        connect.reach(f"qemu:{tmp_path / 'a.elf'}", cache)


def test_a_machine_that_qemu_does_not_know(folder: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match=r"no such board with a Cortex-M; it has: .*mps2-an385.*"):
        connect.reach(f"qemu:{folder / 'firmware.elf'}?machine=mps9-an1", cache)
    with pytest.raises(UsageError, match="no such board with a Cortex-M"):
        connect.reach(f"qemu:{folder / 'firmware.elf'}?machine=raspi0", cache)


def test_an_image_for_another_board(
    folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It crashes, or says nothing; either way there is an end and a reason."""
    monkeypatch.setattr("onmetal.profilers.devices.board.protocol.HELLO_S", 0.3)
    with pytest.raises(DeviceError, match="qemu"):
        connect.reach(f"qemu:{folder / 'firmware.elf'}?machine=mps2-an385", cache)


def test_no_qemu(folder: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(DeviceError, match="`apt install qemu-system-arm`"):
        connect.reach(f"qemu:{folder / 'firmware.elf'}", cache)


# --- its end


def test_it_ends_with_its_link(folder: Path) -> None:
    found = Qemu(folder / "firmware.elf")
    process = psutil.Process(found.pid)
    assert process.is_running()
    found.close()
    found.close()
    assert not process.is_running()
    with pytest.raises(DeviceError, match="was ended before"):
        found.write(b"name%")


def test_its_death_is_told(folder: Path, cache: Cache) -> None:
    board = reached(folder, cache)
    assert board.qemu
    os.kill(board.qemu.pid, signal.SIGKILL)
    with pytest.raises(DeviceError, match=r"qemu \(mps3-an547\) was ended by SIGKILL"):
        board.tiny.results()
    board.close()


def test_it_does_not_outlive_a_killed_parent(folder: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from onmetal.profilers.devices.board.qemu import Qemu\n"
        "q = Qemu(Path(sys.argv[1])); print(q.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "firmware.elf")], stdout=subprocess.PIPE
    )
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    assert qemu.PROGRAM in " ".join(child.cmdline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, _ = psutil.wait_procs([child], timeout=60)
    assert gone
