"""What is attached: `deploy devices`."""

from importlib import metadata
from pathlib import Path

import pytest

from onmetal import cli
from onmetal.profilers.devices.remote import adb as adbs
from onmetal.profilers.devices.remote import native_runner as native
from tests.attached import (
    BY_EACH_ADB,
    LISTED_29,
    MODEL,
    Capture,
    entries,
    here,
    hide_package,
    hide_programs,
    own_home,
    stand_in,
    uninstall,
)
from tests.conftest import deploy
from tests.devices import Board, Phone, free_port, wait_for


def test_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    hide_programs(monkeypatch, tmp_path / "bin")
    hide_package(monkeypatch, adbs, "adbutils")
    found = entries(here(capsys, "devices", "--json"))
    assert list(found) == ["local", "adb"]
    machine = found["local"]
    assert machine["ready"] is True and machine["cores"] >= 1 and machine["memory_bytes"] > 0
    assert machine["runtimes"]["litert"] == metadata.version("ai-edge-litert")
    assert "x86-64" in machine["targets"] and "android-arm64" not in machine["targets"]
    assert found["adb"]["ready"] is False
    assert "apt install adb" in found["adb"]["why"]
    text = here(capsys, "devices").out
    assert "local  ready" in text and "there is no adb program" in text
    assert ", ".join(machine["targets"]) in text


def test_an_adb_that_cannot_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("ADB", str(tmp_path / "none"))
    assert "$ADB is" in entries(here(capsys, "devices", "--json"))["adb"]["why"]
    said = "* daemon not running; starting now at tcp:5037\nerror: cannot bind listener\n"
    monkeypatch.setenv("ADB", str(stand_in(tmp_path / "adb", "", 1, said)))
    found = entries(here(capsys, "devices", "--json"))
    assert "error: cannot bind listener" in found["adb"]["why"]
    assert "daemon not running" not in found["adb"]["why"]


def test_a_phone_whose_name_no_program_can_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    program = tmp_path / "adb"
    program.write_text("#!/bin/sh\nprintf 'List of devices attached\\na\\0b\\tdevice model:x\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("ADB", str(program))
    monkeypatch.chdir(tmp_path)
    assert "characters" in entries(here(capsys, "devices", "--json"))["adb:a\0b"]["why"]
    words = [str(MODEL), "--target", "android-arm64", "--device", "adb"]
    assert cli.main(words) == 4
    said = capsys.readouterr().err
    assert "is not ready" in said and "\0" not in said and "defect" not in said


@BY_EACH_ADB
def test_a_ready_phone(phone: Phone) -> None:
    address = f"adb:{phone.serial}"
    found = entries(deploy("devices", "--json"))
    assert list(found) == ["local", address]
    entry = found[address]
    assert entry["ready"] is True and entry["why"] is None
    assert (entry["model"], entry["soc"]) == ("Google sdk_gphone64_arm64", "AOSP ranchu")
    assert (entry["os"], entry["arch"]) == ("Android 14 (API 34)", "aarch64")
    assert entry["abis"] == ["arm64-v8a"]
    assert [(c["cpus"], c["max_khz"]) for c in entry["clusters"]] == [([0, 1], 2_000_000)]
    assert entry["cores"] == 2 and entry["memory_bytes"] > 0 and entry["emulated"] is True
    state = entry["state"]
    assert (state["battery_percent"], state["charging"]) == (100, False)
    assert (state["thermal_status"], state["battery_temperature_c"]) == (0, 25.0)
    assert entry["runtimes"] == native.versions()
    assert entry["meters"] == []
    assert entry["targets"] == ["android-arm64"]
    assert any("emulated" in said for said in entry["warnings"])
    assert any("power meter" in lack for lack in entry["lacks"])
    text = deploy("devices").out
    for said in (
        f"{address}  ready",
        "Google sdk_gphone64_arm64 AOSP ranchu",
        "Android 14 (API 34), aarch64",
        "cores 0, 1 at up to 2000 MHz",
        "battery 100 %",
        "thermal status 0",
        "targets: android-arm64",
    ):
        assert said in text
    assert phone.leftovers() == []
    phone.wait_until_idle()


def test_a_phone_that_is_not_fit(phone: Phone) -> None:
    battery, thermal = "/system/etc/dumpsys/battery", "/system/etc/dumpsys/thermalservice"
    phone.replace(battery, "USB powered: false", "USB powered: true")
    phone.replace(battery, "status: 4", "status: 2")
    phone.replace(battery, "level: 100", "level: 9")
    phone.replace(thermal, "Thermal Status: 0", "Thermal Status: 4")
    address = f"adb:{phone.serial}"
    entry = entries(deploy("devices", "--json"))[address]
    assert entry["ready"] is False and "thermal status 4" in entry["why"]
    assert (entry["state"]["battery_percent"], entry["state"]["charging"]) == (9, True)
    assert any("charging" in said for said in entry["warnings"])
    text = deploy("devices").out
    assert f"{address}  not ready" in text and "battery 9 %, charging" in text
    assert phone.leftovers() == []


def test_a_phone_where_no_runner_can_be_built(
    phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    own_home(monkeypatch, tmp_path / "home")
    hide_programs(monkeypatch, tmp_path / "bin")
    hide_package(monkeypatch, native, "ziglang")
    monkeypatch.setenv("ADB", str(phone.adb))
    lacks = entries(here(capsys, "devices", "--json"))[f"adb:{phone.serial}"]["lacks"]
    assert any("apt install gcc-aarch64-linux-gnu" in lack for lack in lacks)
    assert any("pip install ziglang" in lack for lack in lacks)


@BY_EACH_ADB
def test_phones_that_need_a_deed(phone: Phone, tmp_path: Path) -> None:
    address = f"adb:{phone.serial}"
    phone.faults(auth="never")
    phone.connect(ready=False)
    wait_for(lambda: phone.state() == "unauthorized", "adb says so")
    entry = entries(deploy("devices", "--json"))[address]
    assert entry["ready"] is False
    assert "unauthorized: unlock it and allow this computer's key" in entry["why"]
    assert f"{address}  not ready: unauthorized" in deploy("devices").out
    phone.faults(auth="none")
    phone.connect()
    phone.faults(refuse=True)
    phone.cut()
    wait_for(lambda: phone.state() == "offline", "adb says so")
    entry = entries(deploy("devices", "--json"))[address]
    assert entry["ready"] is False and "offline: plug it in again" in entry["why"]


LISTED_36 = """\
List of devices attached
0a388e93               recovery usb:3-9.1 product:OnePlus6 model:ONEPLUS_A6003 device:OnePlus6 \
transport_id:7
adb-834ee2d7-Xy1AbC._adb-tls-connect._tcp device product:PHK110 model:PHK110 device:OP5913L1 \
transport_id:3
192.168.1.20:5555      connecting transport_id:9
R3CT10                 authorizing usb:1-1 transport_id:10

"""
SPACES = """\
List of devices attached
adb-834ee2d7-Xy1AbC (2)._adb-tls-connect._tcp device product:PHK110 model:PHK110 device:OP5913L1 \
transport_id:3
(no serial number)     unauthorized usb:1-2 transport_id:4

"""
STARTED = "* daemon not running; starting now at tcp:5037\n* daemon started successfully\n"
ONE = "List of devices attached\nABC\tdevice\n\n"


@pytest.mark.parametrize(
    ("said", "listed"),
    [
        (
            LISTED_29,
            [
                ("0A021FDD400123", "device", "Pixel_7"),
                ("R58M123ABC", "unauthorized", None),
                ("emulator-5554", "offline", None),
                ("JEEECN0100000712", "no permissions", None),
                ("????????????", "no permissions", None),
            ],
        ),
        (
            LISTED_36,
            [
                ("0a388e93", "recovery", "ONEPLUS_A6003"),
                ("adb-834ee2d7-Xy1AbC._adb-tls-connect._tcp", "device", "PHK110"),
                ("192.168.1.20:5555", "connecting", None),
                ("R3CT10", "authorizing", None),
            ],
        ),
        (
            SPACES,
            [
                ("adb-834ee2d7-Xy1AbC (2)._adb-tls-connect._tcp", "device", "PHK110"),
                ("(no serial number)", "unauthorized", None),
            ],
        ),
        ("List of devices attached\n\n", []),
        ("List of devices attached\n", []),
        ("", []),
        (ONE, [("ABC", "device", None)]),
        (STARTED + ONE, [("ABC", "device", None)]),
        (STARTED + "List of devices attached\n\n", []),
    ],
    ids=["29", "36", "spaces", "none", "none-36", "silent", "short", "started", "started-none"],
)
def test_what_adb_lists(
    said: str, listed: list[tuple[str, str, str | None]], tmp_path: Path
) -> None:
    found = adbs.attached(str(stand_in(tmp_path / "adb", said)))
    assert [(one.serial, one.state, one.model) for one in found] == listed
    for one in found:
        assert (one.trouble is None) == (one.state == "device")
        assert one.state in (one.trouble or "device")


def test_start_up_lines_on_the_error_channel_are_not_listed(tmp_path: Path) -> None:
    """Where adb 29 and 36 write them."""
    found = adbs.attached(str(stand_in(tmp_path / "adb", ONE, errors=STARTED)))
    assert [one.serial for one in found] == ["ABC"]


def test_phones_that_this_user_may_not_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Listed with what to do; nothing else is asked of them."""
    said = LISTED_29.replace("0A021FDD400123         device", "0A021FDD400123         offline")
    monkeypatch.setenv("ADB", str(stand_in(tmp_path / "adb", said)))
    found = entries(here(capsys, "devices", "--json"))
    assert len(found) == 6
    barred = found["adb:JEEECN0100000712"]
    assert barred["ready"] is False
    assert "no permissions" in barred["why"] and "udev rules" in barred["why"]
    assert "android-sdk-platform-tools-common" in barred["why"]
    assert found["adb:0A021FDD400123"]["model"] == "Pixel_7"
    text = here(capsys, "devices").out
    assert text.count("not ready") == 5


def test_no_phone_is_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("ADB", str(stand_in(tmp_path / "adb", "List of devices attached\n\n")))
    why = entries(here(capsys, "devices", "--json"))["adb"]["why"]
    assert "USB debugging" in why and "adb connect" in why


def test_a_board(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADB", str(stand_in(tmp_path / "adb", "List of devices attached\n\n")))
    with Board(tmp_path_factory.mktemp("board")) as board:
        monkeypatch.setenv("ONMETAL_SSH", board.environment["ONMETAL_SSH"])
        entry = entries(deploy("devices", board.address, "--json"))[board.address]
        assert entry["ready"] is True
        assert entry["arch"] == "aarch64" and entry["emulated"] is True
        assert entry["python"].startswith("3.")
        assert {"litert", "onnxruntime"} <= set(entry["runtimes"])
        assert entry["targets"] == ["linux-arm64"]
        assert f"{board.address}  ready" in deploy("devices", board.address).out
        board.forget()
        entry = entries(deploy("devices", board.address, "--json"))[board.address]
        assert entry["ready"] is False and "host key is unknown" in entry["why"]
        written = [
            board.root / "root/.cache/onmetal-device",
            board.root / "tmp/onmetal-device.lock",
        ]
        assert not any(path.exists() or path.is_symlink() for path in written)
        board.wait_until_idle(15)


def test_devices_that_cannot_be_reached(phone: Phone) -> None:
    """Each is listed with the reason; the others are listed all the same."""
    gone = f"ssh://nobody@127.0.0.1:{free_port()}"
    ran = deploy("devices", gone, "adb:not-there", "--json")
    found = entries(ran)
    assert list(found) == ["local", f"adb:{phone.serial}", gone, "adb:not-there"]
    assert found[gone]["ready"] is False and "Connection refused" in found[gone]["why"]
    assert found["adb:not-there"]["ready"] is False
    assert phone.serial in found["adb:not-there"]["why"]
    assert found[f"adb:{phone.serial}"]["ready"] is True


def test_what_is_given_twice_is_listed_once(phone: Phone) -> None:
    gone = f"ssh://nobody@127.0.0.1:{free_port()}"
    found = entries(deploy("devices", "local", "adb", f"adb:{phone.serial}", gone, gone, "--json"))
    assert list(found) == ["local", f"adb:{phone.serial}", gone]


@pytest.mark.parametrize(
    "address", ["telnet://host", "serial:/dev/ttyUSB0", "adbx", "ssh://", "ssh://u@h/path", "usb"]
)
def test_a_bad_address(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("ADB", str(stand_in(tmp_path / "adb", "List of devices attached\n\n")))
    ran = here(capsys, "devices", address, "--json")
    assert ran.code == 2
    assert ran.document["error"]["code"] == 2
    assert address in ran.document["error"]["message"]


def test_a_phone_is_listed_where_a_runtime_is_missing_here(
    phone: Phone, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    uninstall(monkeypatch, "onnxruntime")
    found = entries(here(capsys, "devices", "--json"))
    assert "pip install onnxruntime" in " ".join(found["local"]["lacks"])
    assert found[f"adb:{phone.serial}"]["model"] == "Google sdk_gphone64_arm64"
