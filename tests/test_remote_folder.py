"""The folder on a device: pushed once, checked, limited, locked, and gone after a run."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from onmetal.errors import DeviceError
from onmetal.profilers.devices.remote import folder as folders
from onmetal.profilers.devices.remote.folder import Folder, shell
from tests.devices import Board, Phone, wait_for
from tests.far import BOARD, BOTH, LONG_S, PHONE, PHONES, Far, digest, run_of, sized, tidied


def test_what_lies_there_is_not_pushed_again(far: Far, tmp_path: Path) -> None:
    first, second = sized(tmp_path, "first", 3000), sized(tmp_path, "second", 4000)
    try:
        with run_of(far, keep=True) as run:
            there = run.put([first, second, first])
            assert there[0] == there[2]
            for path, file in zip(there, (first, second, first), strict=True):
                assert far.here(path).read_bytes() == file.read_bytes()
            inside = far.left()
            assert sum(name.endswith(digest(first)) for name in inside) == 1
        kept = far.left()
        assert sorted(Path(name).name for name in kept if len(Path(name).name) == 64) == sorted(
            [digest(first), digest(second)]
        )
        assert not [name for name in kept if "run-" in name or "lock" in name]
        if isinstance(far.device, Phone):
            far.device.report(forget=True)
        stamp = {name: far.here(there[0]).exists() for name in kept}
        assert stamp
        with run_of(far, keep=True) as run:
            again = run.put([second, first])
            assert all("/kept/" in path for path in again)
            assert far.here(again[1]).read_bytes() == first.read_bytes()
            if isinstance(far.device, Phone):
                assert far.device.report().pushed == []
            # Of a file that changed only its bytes count, not its name.
            first.write_bytes(first.read_bytes()[::-1])
            (changed,) = run.put([first])
            assert far.here(changed).read_bytes() == first.read_bytes()
            if isinstance(far.device, Phone):
                assert [push.bytes for push in far.device.report().pushed] == [3000]
    finally:
        far.clear()


def test_a_run_that_failed_leaves_nothing(far: Far, tmp_path: Path) -> None:
    with run_of(far, keep=False) as run:
        run.put([sized(tmp_path, "file", 5000)])
        run.push(tmp_path / "file", "in")
        assert any("run-" in name for name in far.left())
    assert far.left() == []
    far.device.wait_until_idle()


@PHONE
def test_what_arrives_damaged_is_noticed(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a client that spoils every file on its way."""
    assert isinstance(far.device, Phone)
    client = tmp_path / "adb"
    client.write_text(
        "#!/bin/sh\n"
        f'if [ "$3" = push ]; then (cat "$4"; echo) > {tmp_path}/spoilt; '
        f'set -- "$1" "$2" push {tmp_path}/spoilt "$5"; fi\n'
        f'exec {far.device.adb} "$@"\n'
    )
    client.chmod(0o755)
    monkeypatch.setenv("ADB", str(client))
    with (
        run_of(far, keep=True) as run,
        pytest.raises(DeviceError, match="a pushed file arrived damaged"),
    ):
        run.put([sized(tmp_path, "file", 5000)])
    assert far.left() == [], "nor is what is damaged kept"
    far.device.wait_until_idle()


@BOTH
def test_what_was_damaged_since_is_noticed(far: Far, tmp_path: Path) -> None:
    """A kept file that lost its end, as when the power failed."""
    file = sized(tmp_path, "file", 5000)
    try:
        with run_of(far, keep=True) as run:
            run.put([file])
        with run_of(far, keep=True) as run:
            (path,) = run.put([file])
            with far.here(path).open("r+b") as kept:
                kept.truncate(1000)
        with run_of(far, keep=True) as run:
            (path,) = run.put([file])
            assert far.here(path).read_bytes() == file.read_bytes()
    finally:
        far.clear()


@PHONE
def test_what_is_kept_has_a_limit(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those unused for longest go first: that is not those that were pushed first."""
    monkeypatch.setattr(folders, "KEPT_MB", 1)
    names = ("old", "used", "new")
    files = {name: sized(tmp_path, name, 400_000) for name in names}
    for age, name in ((3000, "used"), (2000, "old")):
        past = time.time() - age
        os.utime(files[name], (past, past))
    try:
        for chosen in (("used",), ("old",), ("used",), ("new",)):
            with run_of(far, keep=True) as run:
                run.put([files[name] for name in chosen])
            time.sleep(1.1)  # busybox's ls sorts by whole seconds
        kept = {Path(name).name for name in far.left()}
        assert {name for name in names if digest(files[name]) in kept} == {"used", "new"}
    finally:
        far.clear()


@BOTH
def test_a_file_larger_than_the_limit_is_not_kept(
    far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "KEPT_MB", 1)
    with run_of(far, keep=True) as run:
        run.put([sized(tmp_path, "large", 1_500_000)])
    assert not [name for name in far.left() if len(Path(name).name) == 64]
    far.clear()


@BOTH
def test_a_device_that_sends_more_than_is_wanted(far: Far, tmp_path: Path) -> None:
    with run_of(far) as run:
        large = run.push(sized(tmp_path, "file", 3_000_000), "in")
        with pytest.raises(DeviceError, match=f"{far.address}.*more than 1 MB"):
            run.pull(large, tmp_path / "pulled", 1_000_000)
        assert (tmp_path / "pulled").stat().st_size <= 1_000_000
        run.pull(large, tmp_path / "pulled", 3_000_000)
        assert digest(tmp_path / "pulled") == digest(tmp_path / "file")
        with pytest.raises(DeviceError, match=f"{far.address} sent more than 8 MB"):
            shell(run.transport, "yes", LONG_S)
        with pytest.raises(DeviceError, match=f"{far.address} did not answer within 1 s"):
            shell(run.transport, "for n in 1 2 3 4 5 6; do echo x; sleep 0.5; done", 1)
    assert far.left() == []
    far.device.wait_until_idle()


@PHONES
def test_a_full_phone(far: Far, tmp_path: Path) -> None:
    assert isinstance(far.device, Phone)
    small, large = sized(tmp_path, "small", 5000), sized(tmp_path, "large", 200_000)
    try:
        far.device.faults(quota=100_000)
        with run_of(far, keep=True) as run:
            run.put([small])
            with pytest.raises(DeviceError, match="No space left on device"):
                run.put([large])
            assert far.here(run.put([small])[0]).exists(), "the run goes on with what is there"
        names = [Path(name).name for name in far.left()]
        assert names == ["onmetal", "kept", digest(small)]
    finally:
        far.clear()


@BOARD
def test_a_full_board(far: Far, tmp_path: Path) -> None:
    """ssh has no quota to set: the file's place is a device that is always full."""
    small, large = sized(tmp_path, "small", 5000), sized(tmp_path, "large", 200_000)
    try:
        with run_of(far, keep=True) as run:
            run.put([small])
            place = far.here(f"{run.path}/new/{digest(large)}.part")
            shell(run.transport, f"ln -s /dev/full {run.path}/new/{digest(large)}.part")
            assert place.is_symlink()
            with pytest.raises(DeviceError, match="No space left on device"):
                run.put([large])
        names = [Path(name).name for name in far.left()]
        assert names == ["onmetal-device", "kept", digest(small)]
    finally:
        far.clear()


def test_two_users_of_one_device(far: Far, tmp_path: Path) -> None:
    with run_of(far) as first:
        first.put([sized(tmp_path, "file", 3000)])
        before = far.left()
        with contextlib.closing(far.transport()) as transport:
            with pytest.raises(DeviceError, match=r"in use by another run of onmetal \(\S+@") as e:
                Folder(transport)
            assert transport.lock in str(e.value)
        assert far.left() == before, "who is refused touches nothing"
    assert far.left() == []
    with run_of(far):
        pass


@BOTH
def test_a_lock_that_is_left_over_is_taken(far: Far) -> None:
    boot = far.device.machine.output("cat /proc/sys/kernel/random/boot_id").strip()
    with contextlib.closing(far.transport()) as transport:
        alive = "$$"
        for owner in ("2147483646:" + boot, "1:00000000-0000-0000-0000-000000000000", "", "x"):
            shell(transport, f"ln -s '{owner}:someone@there' {transport.lock}")
            run = Folder(transport)
            run.close(keep=False)
            assert far.left() == [], owner
        # Whoever holds it lives: even where signals to him are forbidden.
        shell(transport, f"ln -s {alive}:{boot}:me@elsewhere {transport.lock}")
        shell(transport, f"rm {transport.lock}; ln -s 1:{boot}:me@elsewhere {transport.lock}")
        with pytest.raises(DeviceError, match=r"in use by .*\(me@elsewhere\)"):
            Folder(transport)
        shell(transport, f"rm {transport.lock}")
        # Of a crash of the whole device its run's folder is left, too.
        shell(transport, f'mkdir -p "{transport.place}/run-abc/new"')
    with run_of(far):
        assert not [name for name in far.left() if "run-abc" in name]
    assert far.left() == []


HOSTILE_NAMES = (
    "a b",
    "it's",
    'say "hi"',
    "$(touch injected)",
    "`touch injected`",
    "-rf",
    "--help",
    "new\nline",
    "back\\slash",
    "*",
    "ünï😀",
    ";touch injected",
    ".hidden",
)


@BOTH
def test_hostile_file_names(far: Far, tmp_path: Path) -> None:
    files = []
    for name in HOSTILE_NAMES:
        files.append(tmp_path / name)
        files[-1].write_text(name)
    with run_of(far) as run:
        there = run.put(files)
        place = f"{run.path}/lib/$(touch injected) 'x"
        run.link(dict(zip(HOSTILE_NAMES, there, strict=True)), place)
        found = {path.name: path.read_text() for path in far.here(place).iterdir()}
        assert found == {name: name for name in HOSTILE_NAMES}
        for name in HOSTILE_NAMES:
            run.pull(f"{place}/{name}", tmp_path / "pulled", 1000)
            assert (tmp_path / "pulled").read_text() == name
        odd = f"{place}/{HOSTILE_NAMES[3]}"
        run.remove(odd, f"{place}/-rf")
        assert len(list(far.here(place).iterdir())) == len(HOSTILE_NAMES) - 2
        assert not list(far.here(run.path).rglob("injected"))
    assert far.left() == []


@PHONES
def test_a_line_cut_amid_a_push(far: Far, tmp_path: Path) -> None:
    assert isinstance(far.device, Phone)
    try:
        with run_of(far) as run:
            run.put([sized(tmp_path, "before", 5000)])
            far.device.faults(cut_after_pushed=50_000, keep_partial=True)
            with pytest.raises(DeviceError, match=r"adb:.*: `adb push` failed"):
                run.put([sized(tmp_path, "file", 200_000)])
        tidied(far)
        far.device.wait_until_idle()
    finally:
        far.clear()


@BOARD
def test_a_line_cut_amid_a_copy(far: Far, tmp_path: Path) -> None:
    """Held up by a pipe in the file's place, so that it is surely under way."""
    assert isinstance(far.device, Board)
    board = far.device
    large = sized(tmp_path, "large", 2_000_000)
    with run_of(far) as run:
        run.put([sized(tmp_path, "before", 5000)])
        shell(run.transport, f"mkfifo {run.path}/new/{digest(large)}.part")

        def cut() -> None:
            wait_for(lambda: any(f"{digest(large)}.part" in x for x in board.processes().values()),
                     "it copies")  # fmt: skip
            board.cut()

        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(DeviceError, match="a copy failed"):
            run.put([large])
        thread.join()
    tidied(far)
    for number, line in board.processes().items():
        if digest(large) in line:  # it waits for a reader of the pipe, which is gone by now
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(number).kill()
    board.wait_until_idle()


@BOTH
def test_a_killed_run_leaves_nothing(far: Far, tmp_path: Path) -> None:
    """What the guard is for: nobody is left here who could tidy up."""
    sized(tmp_path, "file", 5000)
    kind = "ssh" if far.on_board else "adb"
    where = far.address if far.on_board else far.address.removeprefix("adb:")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from onmetal.profilers.devices.remote import adb, ssh\n"
        "from onmetal.profilers.devices.remote.folder import Folder\n"
        f"run = Folder({kind}.choose({where!r})); run.put([Path({str(tmp_path / 'file')!r})])\n"
        "print('there', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"there\n"
        assert far.left()
        other.kill()
    tidied(far)
    far.device.wait_until_idle()
