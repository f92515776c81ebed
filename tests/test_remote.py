"""What lies beyond a line: transports, the folder there with its guard, runners and workers.

Everything runs against real clients and servers, with arm64 programs at the other end; whole
deployments are in test_remote_deploy.py.
"""

import base64
import contextlib
import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import psutil
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from onmetal.deploy import agree
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers import measure
from onmetal.profilers.devices import connect
from onmetal.profilers.devices.line import Line
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import adb as adbs
from onmetal.profilers.devices.remote import folder as folders
from onmetal.profilers.devices.remote import native_runner
from onmetal.profilers.devices.remote import ssh as sshs
from onmetal.profilers.devices.remote.device import Remote, RemoteWorker
from onmetal.profilers.devices.remote.folder import Folder, Transport, shell
from onmetal.records import Artifact, Candidate
from tests import adbd, deployed
from tests.arm64 import needs
from tests.conftest import ROOT
from tests.devices import CLIENTS, Board, Phone, adb_client, free_port, wait_for

TMP = "/data/local/tmp"
LONG_S = 120.0
"""A limit that only a defect reaches."""


class Far:
    """A device with its address, and what a run of onmetal has left there."""

    def __init__(self, device: Phone | Board) -> None:
        self.device = device

    @property
    def on_board(self) -> bool:
        return isinstance(self.device, Board)

    @property
    def address(self) -> str:
        if isinstance(self.device, Board):
            return self.device.address
        return f"adb:{self.device.serial}"

    def transport(self) -> Transport:
        if isinstance(self.device, Board):
            return sshs.choose(self.device.address)
        return adbs.choose(self.device.serial)

    def left(self) -> list[str]:
        """Files and folders of onmetal's on the device."""
        with contextlib.suppress(FileNotFoundError):
            return self._left()
        return self.left()  # something went while it was looked at

    def _left(self) -> list[str]:
        if isinstance(self.device, Phone):
            return self.device.leftovers()
        tops = [self.device.root / "tmp", self.device.root / "root/.cache"]
        found = {str(path.relative_to(top)) for top in tops for path in top.rglob("*")}
        return sorted(found)

    def here(self, path: str) -> Path:
        """A path of the device as this machine sees it."""
        return self.device.root / path.lstrip("/")

    def runners(self) -> list[int]:
        """The processes there that run models."""
        ends = ("./runner", "python_runner.py")
        return [pid for pid, line in self.device.processes().items() if line.endswith(ends)]

    def clear(self) -> None:
        """As it was: connected, and nothing on it."""
        if isinstance(self.device, Phone):
            self.device.thaw()
            self.device.faults(**dataclasses.asdict(adbd.Faults()))
            self.device.connect()
        with contextlib.closing(self.transport()) as transport:
            shell(transport, f'rm -rf "{transport.place}" {transport.lock}')


@pytest.fixture(scope="module", params=(*CLIENTS, "board"))
def far(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    """A phone behind each adb client in turn, and a board."""
    place = tmp_path_factory.mktemp("far")
    board = request.param == "board"
    with (
        Board(place) if board else Phone(place, adb_client(request.param)) as device,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in device.environment.items():
            patch.setenv(name, value)
        yield Far(device)


PHONES = pytest.mark.parametrize("far", CLIENTS, indirect=True)
PHONE = pytest.mark.parametrize("far", CLIENTS[:1], indirect=True)
BOARD = pytest.mark.parametrize("far", ["board"], indirect=True)
BOTH = pytest.mark.parametrize("far", [CLIENTS[0], "board"], indirect=True)


@pytest.fixture(scope="session")
def built(shared_home: Path) -> Path:
    """The native runner, built once."""
    with Cache(shared_home) as cache:
        return native_runner.build(cache)


class Artifacts:
    """Candidates by their kind (see deployed.KINDS), each made once."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self._made: dict[str, Candidate] = {}

    def __call__(self, kind: str) -> Candidate:
        if kind not in self._made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ONMETAL_HOME", str(self.home))
                self._made[kind] = deployed.candidate(deployed.bundle(kind, self.folder))
        return self._made[kind]


@pytest.fixture(scope="session")
def artifacts(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(tmp_path_factory.mktemp("artifacts"), shared_home)


@contextlib.contextmanager
def run_of(far: Far, keep: bool = False) -> Iterator[Folder]:
    """A run's folder on the device, with its transport closed at the end."""
    with contextlib.closing(far.transport()) as transport:
        run = Folder(transport)
        try:
            yield run
        finally:
            run.close(keep=keep)


def tidied(far: Far) -> None:
    """The guard has removed everything of the run's."""
    try:
        wait_for(lambda: far.left() == [], "the guard has tidied up")
    except TimeoutError:
        assert (far.left(), far.device.processes()) == ([], {})


def sized(folder: Path, name: str, size: int) -> Path:
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def feeds_of(candidate: Candidate, path: Path, count: int = 3) -> Path:
    """An .npz of inputs as a worker reads them."""
    rng = np.random.default_rng(7)
    arrays = {
        f"{number}/{tensor.name}": rng.normal(size=tensor.shape).astype(np.float32)
        for number in range(count)
        for tensor in candidate.model.inputs
    }
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


# --- Which device ---------------------------------------------------------------------------------


def environment(monkeypatch: pytest.MonkeyPatch, device: Phone | Board) -> None:
    for name, value in device.environment.items():
        monkeypatch.setenv(name, value)


def test_of_several_phones_one_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    client = adb_client("debian")
    with Phone(tmp_path / "one", client) as one, Phone(tmp_path / "two", client) as two:
        environment(monkeypatch, one)
        one.run("connect", two.serial)
        wait_for(lambda: "device" in one.run("-s", two.serial, "get-state").stdout, "both ready")
        with pytest.raises(DeviceError, match="2 devices: say --device adb:SERIAL") as error:
            adbs.choose(None)
        assert one.serial in str(error.value) and two.serial in str(error.value)
        assert adbs.choose(two.serial).serial == two.serial
        monkeypatch.setenv("ANDROID_SERIAL", one.serial)
        assert adbs.choose(None).serial == one.serial
        # What is said on the command line goes before the environment.
        assert adbs.choose(two.serial).serial == two.serial
        monkeypatch.setenv("ANDROID_SERIAL", "gone:1")
        with pytest.raises(DeviceError, match="adb sees no device gone:1; attached: 127") as error:
            adbs.choose(None)
        monkeypatch.delenv("ANDROID_SERIAL")
        # Of one that is ready and one that is not, no one need say which.
        two.faults(auth="never")
        two.cut()
        one.run("disconnect", two.serial)
        one.run("connect", two.serial)
        wait_for(lambda: f"{two.serial}\tunauthorized" in one.run("devices").stdout, "unauthorized")
        assert adbs.choose(None).serial == one.serial
        for serial in (one.serial, two.serial):
            one.run("disconnect", serial)
        with pytest.raises(DeviceError, match="adb sees no device: plug one in"):
            adbs.choose(None)


def test_there_may_be_no_adb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADB", str(tmp_path / "adb"))
    with pytest.raises(DeviceError, match=r"\$ADB is .*adb, which is no program") as error:
        adbs.choose(None)
    assert error.value.exit_code == 4
    monkeypatch.delenv("ADB")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert adbs.client() == str(adb_client("adbutils")), "PyPI's adbutils brings one"
    monkeypatch.setattr(adbs, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match="there is no adb program: `apt install adb`") as error:
        adbs.choose(None)
    assert error.value.exit_code == 4


def test_an_adb_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "adb"
    program.write_text("#!/bin/sh\necho 'protocol fault (no status)' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("ADB", str(program))
    with pytest.raises(DeviceError, match="`adb devices` failed: protocol fault"):
        adbs.choose(None)
    program.write_text("not a program")
    with pytest.raises(DeviceError, match="cannot be run"):
        adbs.choose(None)


@PHONES
def test_the_client_is_the_users(far: Far) -> None:
    transport = far.transport()
    assert isinstance(transport, adbs.Adb) and isinstance(far.device, Phone)
    assert transport.adb == str(far.device.adb)
    assert shell(transport, "echo $((6 * 7))") == "42"


@PHONES
def test_an_unauthorized_phone_is_refused(far: Far) -> None:
    assert isinstance(far.device, Phone)
    phone = far.device
    try:
        phone.faults(auth="never")
        phone.connect(ready=False)
        wait_for(lambda: phone.state() == "unauthorized", "adb says so")
        with pytest.raises(DeviceError, match="unauthorized: unlock it and allow this computer"):
            far.transport()
    finally:
        far.clear()


@pytest.mark.parametrize(
    "address",
    [
        "ssh://-oProxyCommand=touch@h",
        "ssh://-oProxyCommand=touch",
        "ssh://-h",
        "ssh://u@-h",
        "ssh://u@h/path",
        "ssh://h;reboot",
        "ssh://h$(reboot)",
        "ssh://h`reboot`",
        "ssh://u'@h",
        "ssh://u@h u",
        "ssh://u@h\nu",
        "ssh://u:secret@h",
        "ssh://h:0x",
        "ssh://h:99999",
        "ssh://h?x",
        "ssh://h#x",
        "ssh://",
        "ssh:h",
        "ssh://[h",
    ],
)
def test_hostile_ssh_addresses_are_refused(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = tmp_path / "called"
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\ntouch {called}\n")
    program.chmod(0o755)
    monkeypatch.setenv("ONMETAL_SSH", str(program))
    with pytest.raises(UsageError, match=r"ssh://\[user@\]host\[:port\]"), Cache() as cache:
        connect.reach(address, cache)
    assert not called.exists()


def test_ordinary_ssh_addresses_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONMETAL_SSH", raising=False)
    for address, ending in {
        "ssh://pi.local": ["-T", "pi.local", "--"],
        "ssh://me@Board:2222": ["-T", "-p", "2222", "me@Board", "--"],
        "ssh://u@[fe80::1]:22": ["-T", "-p", "22", "u@fe80::1", "--"],
        "ssh://a-b_c.d@10.0.0.1/": ["-T", "a-b_c.d@10.0.0.1", "--"],
    }.items():
        with contextlib.closing(sshs.choose(address)) as transport:
            argv = transport.argv("true", stream=True)
            assert argv[-1 - len(ending) : -1] == ending
            assert argv[0] == "ssh"


@PHONE
@pytest.mark.parametrize("serial", ["-s", "--help", "$(reboot)", "x;y", "a b"])
def test_hostile_serials_are_no_options(far: Far, serial: str) -> None:
    with pytest.raises(DeviceError, match="adb sees no device "), Cache() as cache:
        connect.reach(f"adb:{serial}", cache)


# --- ssh ------------------------------------------------------------------------------------------


def test_a_changed_host_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Board(tmp_path) as board:
        environment(monkeypatch, board)
        with contextlib.closing(sshs.choose(board.address)) as transport:
            assert shell(transport, "echo in") == "in"
        board.change_host_key()
        with (
            contextlib.closing(sshs.choose(board.address)) as transport,
            pytest.raises(DeviceError, match="its host key is not the one in known_hosts"),
        ):
            shell(transport, "true")
        board.forget()
        # One that was never seen is refused even where the user's configuration would take it.
        text = board.config.read_text()
        board.config.write_text(text.replace("Checking yes", "Checking no"))
        with (
            contextlib.closing(sshs.choose(board.address)) as transport,
            pytest.raises(DeviceError, match="its host key is unknown: connect once by hand"),
        ):
            shell(transport, "true")
        assert not (tmp_path / "known_hosts").read_text()
        board.trust()
        (tmp_path / "authorized_keys").write_text("")
        with (
            contextlib.closing(sshs.choose(board.address)) as transport,
            pytest.raises(DeviceError, match="the login was refused: set up a key"),
        ):
            shell(transport, "true")


def test_a_board_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONMETAL_SSH", "ssh -F none")
    with (
        contextlib.closing(sshs.choose(f"ssh://x@127.0.0.1:{free_port()}")) as transport,
        pytest.raises(DeviceError, match=r"the line to ssh://x@127.* Connection refused"),
    ):
        shell(transport, "true")


def test_there_may_be_no_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    for said in ("/no/such/ssh -v", " "):
        monkeypatch.setenv("ONMETAL_SSH", said)
        with pytest.raises(DeviceError, match="there is no ssh program"):
            sshs.choose("ssh://h")


@BOARD
def test_the_users_ssh_configuration_holds(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that only the configuration knows, with the port and user that it says."""
    assert isinstance(far.device, Board)
    board = far.device
    config = board.config.with_name("own")
    config.write_text(
        f"Host kitchen\n  HostName 127.0.0.1\n  Port {board.port}\n  User {board.user}\n"
        f"  HostKeyAlias [127.0.0.1]:{board.port}\n" + board.config.read_text()
    )
    monkeypatch.setenv("ONMETAL_SSH", f"ssh -F '{config}'")
    with contextlib.closing(sshs.choose("ssh://kitchen")) as transport:
        assert shell(transport, "uname -m") == "aarch64"


# --- Commands -------------------------------------------------------------------------------------


def test_a_failing_command_fails(far: Far) -> None:
    with contextlib.closing(far.transport()) as transport:
        assert shell(transport, "printf 'a\\nb'; true") == "a\nb"
        for script in ("false", "exit 3", "echo why >&2; false", "no-such-program", "kill -9 $$"):
            with pytest.raises(DeviceError, match=r"why|code|not found|was cut|ill"):
                shell(transport, script)
        with pytest.raises(DeviceError, match="did not answer within"):
            shell(transport, "sleep 3", 0.5)
    far.device.wait_until_idle()


@PHONES
def test_a_failure_that_an_old_phone_reports_as_success(far: Far) -> None:
    """Before Android 7 adb's exit code is 0 whatever happened."""
    assert isinstance(far.device, Phone)
    try:
        far.device.faults(features="cmd")
        far.device.connect()
        assert far.device.shell("false").returncode == 0
        transport = far.transport()
        assert shell(transport, "echo out; true") == "out"
        with pytest.raises(DeviceError, match="why"):
            shell(transport, "echo why; false")
        with pytest.raises(DeviceError, match="Android 7 or newer is needed"):
            Folder(transport)
        assert far.left() == []
    finally:
        far.clear()


@PHONES
def test_a_phone_that_vanishes_amid_a_command(far: Far) -> None:
    assert isinstance(far.device, Phone)
    try:
        transport = far.transport()
        far.device.faults(cut_after_output=5, refuse=True)
        with pytest.raises(DeviceError, match="was cut"):
            shell(transport, "echo 1234567890; true")
        with pytest.raises(DeviceError):
            shell(transport, "true")
    finally:
        far.clear()


# --- The folder there -----------------------------------------------------------------------------


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


@PHONE
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


# --- Workers --------------------------------------------------------------------------------------

KINDS = ("litert-fp32-nhwc", "litert-int8", "onnxruntime-fp32")


class Here(NamedTuple):
    far: Far
    remote: Remote
    host: Local


@pytest.fixture(scope="class")
def there(far: Far, built: Path, shared_home: Path) -> Iterator[Here]:
    """One run on the device, for tests that leave it whole."""
    with Cache(shared_home) as cache:
        remote = Remote(far.transport(), cache)
        try:
            yield Here(far, remote, Local(cache))
        finally:
            remote.close()
        tidied(far)


@BOTH
class TestWorkers:
    """By the native runner on a phone, by Python's own runtimes on a board."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_computes_what_this_machine_does(
        self, there: Here, artifacts: Artifacts, kind: str, tmp_path: Path
    ) -> None:
        candidate = artifacts(kind)
        feeds = feeds_of(candidate, tmp_path / "feeds.npz")
        here = agree.outputs(there.host, candidate, feeds)
        far = agree.outputs(there.remote, candidate, feeds)
        assert len(here) == len(far) == 3
        for mine, theirs in zip(here, far, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                assert np.array_equal(a.argmax(-1), b.argmax(-1))
                if "int8" in kind:
                    step = np.diff(np.unique(np.concatenate([a.ravel(), b.ravel()]))).min()
                    assert np.abs(a - b).max() <= 1.01 * step
                else:
                    assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
        name = there.remote.runner(candidate.runtime).kind
        assert name == ("python" if there.far.on_board else "native")

    def test_threads(self, there: Here, artifacts: Artifacts, tmp_path: Path) -> None:
        candidate = artifacts("litert-fp32-nhwc")
        feeds = feeds_of(candidate, tmp_path / "feeds.npz", 1)
        counts, found = [], []
        for threads in (1, 4):
            asked = replace(candidate, options={**candidate.options, "num_threads": threads})
            found.append(agree.outputs(there.remote, asked, feeds)[0][0])
            with there.remote.worker() as worker:
                worker.open(asked.artifact, timeout_s=LONG_S)
                worker.keep_feeds(feeds, timeout_s=LONG_S)
                worker.warm(0.01, 2, timeout_s=LONG_S)
                (pid,) = there.far.runners()
                counts.append(len(list(Path(f"/proc/{pid}/task").iterdir())))
        assert counts[1] - counts[0] == 3
        assert np.allclose(found[0], found[1], atol=1e-5)

    @pytest.mark.parametrize("kind", ["litert-int8", "litert-fp32-nhwc", "onnxruntime-fp32"])
    def test_what_ran_is_seen(
        self, there: Here, artifacts: Artifacts, kind: str, tmp_path: Path
    ) -> None:
        candidate = artifacts(kind)
        feeds = feeds_of(candidate, tmp_path / "feeds.npz", 1)
        found = measure.profile(there.remote, candidate, feeds)
        runtime = candidate.runtime
        assert found["runtime_version"] == metadata.version(
            {"litert": "ai-edge-litert"}.get(runtime, runtime)
        )
        assert found["runner"] == ("python" if there.far.on_board else "native")
        for shares in ("provider", "precision", "operators"):
            assert sum(found[shares].values()) == pytest.approx(1, abs=0.01)
        provider = "XNNPACK" if runtime == "litert" else "CPUExecutionProvider"
        assert max(found["provider"], key=found["provider"].__getitem__) == provider
        precision = "i8" if "int8" in kind else "f32"
        assert max(found["precision"], key=found["precision"].__getitem__) == precision

    @pytest.mark.parametrize("kind", ["litert-int8", "onnxruntime-fp32"])
    def test_memory(self, there: Here, artifacts: Artifacts, kind: str, tmp_path: Path) -> None:
        candidate = artifacts(kind)
        figure = measure.peak_memory(
            there.remote, candidate, feeds_of(candidate, tmp_path / "feeds.npz", 1), 1
        )
        assert figure.basis == "emulated"
        assert 0 < figure.value < 200e6

    def test_rounds(self, there: Here, artifacts: Artifacts, tmp_path: Path) -> None:
        """Timings mean nothing here; that they are timings does."""
        candidate = artifacts("litert-int8")
        feeds = feeds_of(candidate, tmp_path / "feeds.npz")
        outcome = measure.measure(
            there.remote,
            [candidate],
            lambda _: feeds,
            measure.EMULATED,
            lambda done, total, what: None,
        )
        assert not outcome.failures
        rounds = outcome.rounds[candidate.name]
        assert len(rounds.samples_ns) == measure.EMULATED.rounds
        assert all(len(ns) and (ns > 0).all() for ns in rounds.samples_ns.values())
        assert rounds.load_ms[0] > 0

    def test_a_worker_closed_amid_a_round_ends(
        self, there: Here, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        candidate = artifacts("litert-int8")
        worker = opened(there.remote, candidate, feeds_of(candidate, tmp_path / "feeds.npz"))
        said: list[str] = []

        def ask() -> None:
            try:
                a_round(worker, seconds=600)
            except OnmetalError as error:
                said.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: there.far.runners(), "it runs")
        worker.kill()
        thread.join(30)
        worker.close()
        assert said and not thread.is_alive()
        wait_for(lambda: not there.far.runners(), "the process there ends")

    @pytest.mark.parametrize(
        ("number", "said"),
        [
            (signal.SIGKILL, r"was killed \(SIGKILL\): out of memory\?"),
            (signal.SIGSEGV, r"crashed \(SIGSEGV\)"),
            (signal.SIGABRT, r"aborted \(SIGABRT\)"),
        ],
    )
    def test_a_runner_that_dies(
        self,
        there: Here,
        artifacts: Artifacts,
        tmp_path: Path,
        number: signal.Signals,
        said: str,
    ) -> None:
        candidate = artifacts("litert-int8")
        feeds = feeds_of(candidate, tmp_path / "feeds.npz")
        with opened(there.remote, candidate, feeds) as worker:
            (pid,) = there.far.runners()
            psutil.Process(pid).send_signal(number)
            line = worker._line
            wait_for(lambda: line is not None and not line.running, "the line ends with it")
            with pytest.raises(DeviceError, match=rf"runner on \S+ {said}") as error:
                a_round(worker, seconds=0.01)
            assert error.value.exit_code == 4
        with opened(there.remote, candidate, feeds) as another:
            assert a_round(another, seconds=0.01)

    def test_a_runner_that_hangs(self, there: Here, artifacts: Artifacts, tmp_path: Path) -> None:
        candidate = artifacts("litert-int8")
        feeds = feeds_of(candidate, tmp_path / "feeds.npz")
        with opened(there.remote, candidate, feeds) as worker:
            (pid,) = there.far.runners()
            psutil.Process(pid).suspend()
            with pytest.raises(DeviceError, match="did not finish 'round' in time and was ended"):
                a_round(worker, seconds=0.01, timeout_s=1)
        wait_for(lambda: not there.far.runners(), "it is ended before the next is measured")

    def test_what_cannot_be_opened(self, there: Here, artifacts: Artifacts, tmp_path: Path) -> None:
        broken = tmp_path / "-$(touch x) 'b\nr.tflite"
        broken.write_bytes(b"TFL3" * 100)
        candidate = replace(artifacts("litert-int8"), files=(broken,))
        refused = pytest.raises((UnsupportedError, DeviceError))
        with there.remote.worker() as worker, refused:
            worker.open(candidate.artifact, timeout_s=LONG_S)

    def test_hostile_artifact_names(
        self, there: Here, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        """Two files, as of a model with weights of its own, have to keep their names there."""
        candidate = artifacts("litert-int8")
        files = []
        for name in ("-m $(touch injected) '\".tflite", "`w`"):
            files.append(tmp_path / name)
            shutil.copy(candidate.files[0], files[-1])
        odd = replace(candidate, files=tuple(files))
        feeds = feeds_of(candidate, tmp_path / "feeds.npz", 1)
        found = agree.outputs(there.remote, odd, feeds)
        assert np.array_equal(found[0][0], agree.outputs(there.remote, candidate, feeds)[0][0])
        assert not list(there.far.here(there.remote.folder.path).rglob("injected"))

    def test_options_that_would_break_a_request(self, there: Here, artifacts: Artifacts) -> None:
        candidate = artifacts("litert-int8")
        for value in ("1\tprofile=/x", "1\nround"):
            odd = replace(candidate, options={"num_threads": value})
            with (
                there.remote.worker() as worker,
                pytest.raises(UnsupportedError, match="a tab or a line break"),
            ):
                worker.open(odd.artifact, timeout_s=LONG_S)

    def test_what_is_done_on_this_machine_only(self, there: Here) -> None:
        refused = pytest.raises(UnsupportedError, match="on this machine only")
        artifact = Artifact("litert", (), {}, (), ())
        with there.remote.worker() as worker, refused:
            worker.layers(artifact, timeout_s=LONG_S)

    def test_equal_sizes_are_not_equal_contents(self, there: Here) -> None:
        """Written within one tick of the file system's clock, under one name."""
        contents = [bytes([number]) * 8 for number in range(2)]
        places = [there.remote.content(content) for content in contents]
        assert places[0] != places[1]
        for _ in range(300):
            assert [there.remote.content(content) for content in contents] == places


def opened(remote: Remote, candidate: Candidate, feeds: Path) -> RemoteWorker:
    worker = remote.worker()
    worker.open(candidate.artifact, timeout_s=LONG_S)
    worker.keep_feeds(feeds, timeout_s=LONG_S)
    return worker


def a_round(worker: RemoteWorker, seconds: float, timeout_s: float = LONG_S) -> np.ndarray:
    return worker.round(seconds, 1, warm_s=0.0, feed=0, timeout_s=timeout_s)


@BOTH
def test_a_line_cut_amid_a_run(
    far: Far, built: Path, shared_home: Path, artifacts: Artifacts, tmp_path: Path
) -> None:
    """What is asked for afterwards fails too, or works in a folder with a guard of its own."""
    candidate = artifacts("litert-int8")
    feeds = feeds_of(candidate, tmp_path / "feeds.npz")
    try:
        with Cache(shared_home) as cache:
            remote = Remote(far.transport(), cache)
            try:
                with opened(remote, candidate, feeds) as worker:
                    far.device.cut()
                    with pytest.raises(DeviceError, match=r"the line to \S+ was cut"):
                        a_round(worker, seconds=600)
                if isinstance(far.device, Phone):
                    far.device.connect()
                tidied(far)
                with contextlib.suppress(DeviceError):
                    agree.outputs(remote, candidate, feeds)
            finally:
                remote.close()
        tidied(far)
        wait_for(lambda: not far.runners(), "no runner goes on")
    finally:
        far.clear()


@PHONE
def test_a_phone_that_stops_answering(
    far: Far, built: Path, shared_home: Path, artifacts: Artifacts, tmp_path: Path
) -> None:
    assert isinstance(far.device, Phone)
    candidate = artifacts("litert-int8")
    try:
        with Cache(shared_home) as cache:
            remote = Remote(far.transport(), cache)
            try:
                feeds = feeds_of(candidate, tmp_path / "feeds.npz")
                with opened(remote, candidate, feeds) as worker:
                    far.device.freeze()
                    with pytest.raises(DeviceError, match="did not finish 'round' in time"):
                        a_round(worker, seconds=0.01, timeout_s=1)
            finally:
                far.device.thaw()
                remote.close()
        tidied(far)
    finally:
        far.clear()


@BOARD
def test_a_home_with_an_odd_name(
    far: Far, built: Path, shared_home: Path, artifacts: Artifacts, tmp_path: Path
) -> None:
    """Nothing there is split at blanks or run: a user's home folder may be called anything."""
    candidate = artifacts("litert-int8")
    transport = far.transport()
    home = "/root/my 'home' ü"
    shell(transport, f"mkdir -p {home!r}")
    assert isinstance(transport, sshs.Ssh)
    transport.place = f"{home}/onmetal-device"
    with Cache(shared_home) as cache:
        remote = Remote(transport, cache)
        try:
            feeds = feeds_of(candidate, tmp_path / "feeds.npz", 1)
            assert agree.outputs(remote, candidate, feeds)
        finally:
            remote.close()
    assert list(far.here(home).iterdir()) == []
    assert far.left() == []
    shutil.rmtree(far.here(home))


@BOARD
def test_free_space_is_seen_where_nothing_was_made_yet(far: Far, shared_home: Path) -> None:
    """A user who never had a cache has no folder for it either."""
    cached = far.here("/root/.cache")
    if cached.exists():
        shutil.rmtree(cached)
    with Cache(shared_home) as cache:
        remote = Remote(far.transport(), cache)
        remote.close()
    assert remote.found.free_bytes


# --- What is spoken over the line -----------------------------------------------------------------


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native runner for this machine: the same code, its libraries those of the wheels here."""
    gcc = needs("gcc", "gcc")
    target = tmp_path_factory.mktemp("native") / "runner"
    code = sorted((ROOT / "profilers/devices/remote/native").glob("*.c"))
    command = [gcc, *native_runner.FLAGS, "-Werror", "-g", *map(str, code)]
    subprocess.run([*command, "-o", str(target), "-ldl", "-lpthread"], check=True)
    return target


def library(runtime: str) -> str:
    """A runtime's C library of this machine."""
    package, pattern = {
        "litert": ("ai_edge_litert", "libLiteRt.so"),
        "onnxruntime": ("onnxruntime", "capi/libonnxruntime.so*"),
    }[runtime]
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    (found,) = Path(spec.origin).parent.glob(pattern)
    return str(found)


class Spoken:
    """One of the two programs, asked in its own words."""

    def __init__(self, kind: str, compiled: Path) -> None:
        worker = ROOT / "profilers/devices/remote/python_runner.py"
        argv = [str(compiled)] if kind == "native" else [sys.executable, "-P", str(worker)]
        self.line = Line(argv, None, f"the {kind} runner")
        first = self.line.answer(LONG_S, "its start", dict)
        assert first["runner"] == kind and first["pid"] == self.line.pid

    def __enter__(self) -> "Spoken":
        return self

    def __exit__(self, *_: object) -> None:
        self.line.close()

    def ask(self, *words: object) -> Any:
        request = "\t".join(map(str, words)).encode()
        return self.line.ask(request, str(words[0]), timeout_s=LONG_S)

    def open(self, candidate: Candidate, *options: str) -> Any:
        words = [f"{name}={value}" for name, value in candidate.options.items() if name != "nhwc"]
        runtime = candidate.runtime
        return self.ask("open", runtime, library(runtime), candidate.files[0], *words, *options)


SPEAKERS = ("native", "python")


@pytest.fixture(params=SPEAKERS)
def spoken(request: pytest.FixtureRequest, compiled: Path) -> Iterator[Spoken]:
    with Spoken(request.param, compiled) as speaker:
        yield speaker


@pytest.mark.parametrize("kind", ["litert-int8", "litert-fp32-nhwc", "onnxruntime-fp32"])
def test_both_programs_answer_alike(
    compiled: Path, artifacts: Artifacts, kind: str, tmp_path: Path
) -> None:
    candidate = artifacts(kind)
    answers, outputs, rng = [], [], np.random.default_rng(1)
    content: bytes | None = None
    for name in SPEAKERS:
        with Spoken(name, compiled) as speaker:
            found = speaker.open(candidate)
            assert found.pop("load_ms") > 0
            size = sum(port["bytes"] for port in found["inputs"])
            if content is None:
                content = b"".join(
                    rng.normal(size=port["bytes"] // 4).astype(np.float32).tobytes()
                    if port["dtype"] == "float32"
                    else rng.integers(0, 255, port["bytes"], np.uint8).tobytes()
                    for _ in range(2)
                    for port in found["inputs"]
                )
            given, taken = tmp_path / "in", tmp_path / f"out-{name}"
            given.write_bytes(content)
            assert len(content) == 2 * size
            assert speaker.ask("feeds", given, 2) is None
            assert speaker.ask("warm", 0.01, 3) >= 6
            rounds = np.frombuffer(base64.b64decode(speaker.ask("round", 0.01, 3, 0, 1)), np.int64)
            assert len(rounds) >= 3 and (rounds > 0).all()
            # Feeds go round.
            assert speaker.ask("round", 0.0, 1, 0, 7)
            assert speaker.ask("run", given, 2, taken) is None
            assert taken.stat().st_size == 2 * sum(port["bytes"] for port in found["outputs"])
            answers.append(found)
            outputs.append(taken.read_bytes())
    for ports in ("inputs", "outputs"):
        for one, other in zip(answers[0][ports], answers[1][ports], strict=True):
            assert one.pop("scale") == pytest.approx(other.pop("scale"), rel=1e-6)
            assert one == other
    dtype = np.dtype(answers[0]["outputs"][0]["dtype"])
    arrays = [np.frombuffer(output, dtype).astype(np.float64) for output in outputs]
    gap = 1 if dtype == np.int8 else 1e-5 * np.abs(arrays[0]).max()
    assert np.abs(arrays[0] - arrays[1]).max() <= gap


@pytest.mark.parametrize("kind", ["litert-int8", "onnxruntime-fp32"])
def test_both_programs_measure_memory(spoken: Spoken, artifacts: Artifacts, kind: str) -> None:
    candidate = artifacts(kind)
    file = candidate.files[0]
    found = spoken.ask("memory", candidate.runtime, library(candidate.runtime), file, file)
    assert found["exact"] is True
    assert 0 < found["baseline"] <= found["peak"]


@pytest.mark.parametrize("kind", ["litert-int8", "onnxruntime-fp32"])
def test_both_programs_profile(
    spoken: Spoken, artifacts: Artifacts, kind: str, tmp_path: Path
) -> None:
    candidate = artifacts(kind)
    found = spoken.open(candidate, f"profile={tmp_path}/profile")
    size = sum(port["bytes"] for port in found["inputs"])
    (tmp_path / "in").write_bytes(bytes(size))
    spoken.ask("feeds", tmp_path / "in", 1)
    assert spoken.ask("profile", 0.01)["inferences"] >= 3
    assert (tmp_path / "profile").stat().st_size > 100


def test_bad_requests(spoken: Spoken, artifacts: Artifacts, tmp_path: Path) -> None:
    """Each is answered by an error, after which the program goes on."""
    candidate = artifacts("litert-int8")
    runtime, model = candidate.runtime, candidate.files[0]
    here = library(runtime)
    (tmp_path / "broken").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    before: list[tuple[object, ...]] = [
        ("",),
        ("nonsense",),
        ('"\\\x01\x7f',),
        ("open",),
        ("open", runtime),
        ("open", "other", here, model),
        ("open", runtime, here, tmp_path / "absent"),
        ("open", runtime, here, tmp_path / "broken"),
        ("open", runtime, here, tmp_path),
        ("feeds", tmp_path / "absent", 1),
        ("warm", 0.1, 1),
        ("round", 0.1, 1, 0, 0),
        ("run", model, 1, tmp_path / "out"),
        ("profile", 0.1),
        ("memory", runtime),
        ("memory", runtime, here, tmp_path / "absent", model),
    ]
    for words in before:
        with pytest.raises(OnmetalError) as error:
            spoken.ask(*words)
        kind = UnsupportedError if words[0] == "open" else DeviceError
        assert type(error.value) is kind, (words, error.value)
        assert str(error.value).strip(), words
    found = spoken.open(candidate)
    size = sum(port["bytes"] for port in found["inputs"])
    given = tmp_path / "in"
    given.write_bytes(bytes(2 * size))
    assert spoken.ask("feeds", given, 2) is None
    after: list[tuple[object, ...]] = [
        ("feeds", tmp_path / "absent", 1),
        ("feeds", given, 3),
        ("feeds",),
        ("warm",),
        ("round", 0.1),
        ("run", given, 3, tmp_path / "out"),
        ("run", given, 1, tmp_path / "no/such/folder"),
        ("run", tmp_path / "absent", 1, tmp_path / "out"),
        ("run", given, 1),
        ("nonsense",),
    ]
    for words in after:
        with pytest.raises(DeviceError) as error:
            spoken.ask(*words)
        assert str(error.value).strip(), words
    assert spoken.ask("run", given, 2, tmp_path / "out") is None


def test_feeds_that_could_not_be_read_are_not_run(
    spoken: Spoken, artifacts: Artifacts, tmp_path: Path
) -> None:
    """Those of before are still there, or there are none: nothing in between."""
    found = spoken.open(artifacts("litert-int8"))
    size = sum(port["bytes"] for port in found["inputs"])
    (tmp_path / "in").write_bytes(bytes(50 * size))
    (tmp_path / "short").write_bytes(b"x")
    assert spoken.ask("feeds", tmp_path / "in", 50) is None
    for words in (("short", 1), ("short", 1000000000)):
        with pytest.raises(DeviceError):
            spoken.ask("feeds", tmp_path / words[0], words[1])
        for feed in (0, 49):
            try:
                assert spoken.ask("round", 0.0, 1, 0, feed)
            except DeviceError as error:
                assert "feeds" in str(error)


def test_more_words_than_expected(spoken: Spoken, artifacts: Artifacts) -> None:
    """None is dropped unseen: the last of many options is wrong, and that is said."""
    candidate = artifacts("onnxruntime-fp32")
    many = [f"session.x{number}=1" for number in range(200)]
    with pytest.raises(OnmetalError):
        spoken.open(candidate, *many, "no_such_option=1")


def odd_model(path: Path, names: tuple[str, str]) -> Path:
    """One operator between tensors of these names."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in names]
    graph = helper.make_graph(
        [helper.make_node("Neg", names[:1], names[1:])], "g", ends[:1], ends[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    "names",
    [
        (deployed.HOSTILE[0], "\x01\x1f\x7f\t\r\n%s"),
        ("</script>\u2028", "\\u0041\\"),
        ("é" * 200, "😀" * 100),
        ("n" * 3000, "m" * 3001),
    ],
    ids=["controls", "escapes", "long", "longer"],
)
def test_hostile_tensor_names(spoken: Spoken, names: tuple[str, str], tmp_path: Path) -> None:
    """They come as they are, or shortened, but always as JSON."""
    path = odd_model(tmp_path / "odd.onnx", names)
    request = f"open\tonnxruntime\t{library('onnxruntime')}\t{path}".encode()
    found = spoken.line.ask(request, "open", timeout_s=LONG_S)
    assert [port["dtype"] for port in found["inputs"] + found["outputs"]] == ["float32"] * 2
    for port, name in zip(found["inputs"] + found["outputs"], names, strict=True):
        shortened = len(name.encode()) > 255 and name.startswith(port["name"].rstrip("\ufffd"))
        assert port["name"] == name or shortened
    given, taken = tmp_path / "in", tmp_path / "out"
    given.write_bytes(np.array([1, -2], np.float32).tobytes())
    assert spoken.ask("run", given, 1, taken) is None
    assert np.frombuffer(taken.read_bytes(), np.float32).tolist() == [-1, 2]


def test_it_ends_with_its_input_amid_an_inference(
    spoken: Spoken, artifacts: Artifacts, tmp_path: Path
) -> None:
    found = spoken.open(artifacts("litert-int8"))
    size = sum(port["bytes"] for port in found["inputs"])
    (tmp_path / "in").write_bytes(bytes(size))
    spoken.ask("feeds", tmp_path / "in", 1)

    def ask() -> None:
        with contextlib.suppress(DeviceError):
            spoken.ask("round", 600, 1, 0, 0)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    assert spoken.line.running
    spoken.line.hang_up(10)
    assert not spoken.line.running
    thread.join()


def test_it_ends_with_its_input_at_rest(spoken: Spoken) -> None:
    spoken.line.hang_up(10)
    assert not spoken.line.running


def test_progress_is_told(spoken: Spoken, artifacts: Artifacts, tmp_path: Path) -> None:
    found = spoken.open(artifacts("litert-fp32-nhwc"))
    size = sum(port["bytes"] for port in found["inputs"])
    count = 3_000_000  # many enough for a fast machine; the file is sparse
    with (tmp_path / "in").open("wb") as file:
        file.truncate(count * size)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        raise InterruptedError

    request = f"run\t{tmp_path}/in\t{count}\t/dev/null".encode()
    with pytest.raises(InterruptedError):
        spoken.line.ask(request, "run", timeout_s=LONG_S, progress=tell)
    assert told and all(0 < done <= count == total for done, total in told)


def test_answers_are_never_mixed_with_what_a_runtime_prints(
    spoken: Spoken, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LiteRT tells of its delegate whenever a model is opened."""
    heard: list[bytes] = []
    monkeypatch.setattr(spoken.line, "overheard", heard.append)
    spoken.open(artifacts("litert-int8"))
    assert heard == []
    assert "XNNPACK" in spoken.line.said()
