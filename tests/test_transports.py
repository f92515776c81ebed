"""Phones and boards at the other end of a line: which one, ssh, commands that fail."""

import contextlib
from pathlib import Path

import pytest

from onmetal.errors import DeviceError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices import connect
from onmetal.profilers.devices.remote import adb as adbs
from onmetal.profilers.devices.remote import ssh as sshs
from onmetal.profilers.devices.remote.folder import Folder, shell
from tests.devices import Board, Phone, adb_client, free_port, wait_for
from tests.far import BOARD, PHONE, PHONES, Far, environment


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
