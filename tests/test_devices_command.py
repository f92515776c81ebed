"""What is attached and installed: `deploy devices`, `doctor` and `runner build`; Google's
benchmark_model; bundles for phones and boards; profiles that devices bring.

Devices are the doubles of devices.py: real clients and servers before arm64 programs.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onmetal import cli
from onmetal.commands import bench
from onmetal.converters.tflite import precision as tflite_ops
from onmetal.errors import DeviceError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers import benchmark_model
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import adb as adbs
from onmetal.profilers.devices.remote import native_runner as native
from onmetal.profilers.devices.remote.device import Remote
from onmetal.progress import Progress
from onmetal.records import plain
from onmetal.reports import text
from onmetal.runtimes.litert import text_profile
from onmetal.texts.terminal import PLAIN
from tests import onnx_models
from tests.conftest import DIGITS, Ran, deploy
from tests.devices import CLIENTS, Board, Phone, adb_client, free_port, wait_for
from tests.text_profiles import shares_of_text

MODEL = DIGITS / "digits_cnn.onnx"
TMP = "/data/local/tmp"
HEAVY = ("ai_edge_litert", "onnx", "onnxruntime", "openvino", "tflite_runtime")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(params=CLIENTS[:1])
def phone(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Phone]:
    """A phone that onmetal finds."""
    with Phone(tmp_path_factory.mktemp("phone"), adb_client(request.param)) as device:
        for name, value in device.environment.items():
            monkeypatch.setenv(name, value)
        yield device


BY_EACH_ADB = pytest.mark.parametrize("phone", CLIENTS, indirect=True)


def own_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
    monkeypatch.setenv("ONMETAL_HOME", str(home))
    return home


def here(capsys: Capture, *words: str) -> Ran:
    """`deploy WORDS` in this process, where a test has hidden something."""
    capsys.readouterr()
    code = cli.main(list(words))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return Ran(code, shown.out, shown.err)


def hide_programs(monkeypatch: pytest.MonkeyPatch, folder: Path, *kept: str) -> None:
    """Only the programs `kept` are on PATH, and no Python package brings others."""
    folder.mkdir()
    for name in kept:
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("ADB", raising=False)
    monkeypatch.delenv("ONMETAL_SSH", raising=False)


def hide_package(monkeypatch: pytest.MonkeyPatch, module: Any, *names: str) -> None:
    """To the module, these packages are not installed."""
    monkeypatch.setattr(
        module, "find_spec", lambda name: None if name in names else find_spec(name)
    )


def uninstall(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As far as the versions of packages are asked, these are not installed."""
    real = metadata.Distribution.from_name

    def found(name: str) -> metadata.Distribution:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata.Distribution, "from_name", staticmethod(found))


def stand_in(path: Path, said: str, code: int = 0, errors: str = "") -> Path:
    """An adb that knows the command `devices -l` alone, for outputs that were recorded."""
    path.write_text(
        '#!/bin/sh\n[ "$*" = "devices -l" ] || exit 9\n'
        f"cat <<'END OF OUTPUT'\n{said}END OF OUTPUT\n"
        f"cat >&2 <<'END OF OUTPUT'\n{errors}END OF OUTPUT\n"
        f"exit {code}\n"
    )
    path.chmod(0o755)
    return path


def entries(ran: Ran) -> dict[str, dict[str, Any]]:
    """What `devices --json` lists, by address."""
    assert ran.code == 0, ran.err
    found = ran.document["devices"]
    by_address: dict[str, dict[str, Any]] = {entry["address"]: entry for entry in found}
    assert len(by_address) == len(found), "something is listed twice"
    for entry in found:
        assert isinstance(entry["ready"], bool)
        assert entry["ready"] or entry["why"], "what is not ready says why"
    return by_address


# --- deploy devices -------------------------------------------------------------------------------


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


LISTED_29 = """\
List of devices attached
0A021FDD400123         device usb:1-4 product:panther model:Pixel_7 device:panther transport_id:1
R58M123ABC             unauthorized usb:1-2 transport_id:2
emulator-5554          offline transport_id:3
JEEECN0100000712       no permissions (missing udev rules? user is in the plugdev group); \
see [http://developer.android.com/tools/device.html] usb:1-1 transport_id:4
????????????           no permissions (user in plugdev group; are your udev rules wrong?); \
see [http://developer.android.com/tools/device.html] usb:1-3 transport_id:5

"""
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


# --- deploy doctor --------------------------------------------------------------------------------


def checks(ran: Ran) -> dict[str, dict[str, Any]]:
    """What the doctor looked at, by name."""
    assert ran.code == 0, (ran.out, ran.err)
    assert ran.err == ""
    found = ran.document["checks"]
    for check in found:
        assert set(check) == {"name", "found", "enables", "fix"}
        for key in ("name", "found", "enables"):
            assert isinstance(check[key], str) and check[key].strip(), check
        assert check["fix"] is None or check["fix"].strip(), check
    by_name: dict[str, dict[str, Any]] = {check["name"]: check for check in found}
    assert len(by_name) == len(found)
    return by_name


def test_doctor(phone: Phone, runners: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    home = own_home(monkeypatch, runners["gcc"])
    found = checks(deploy("doctor", "--json"))
    for name in ("onmetal", "litert", "onnxruntime", "openvino", "adb", "ssh", "cache"):
        assert found[name]["fix"] is None, found[name]
    assert "1 device(s)" in found["adb"]["found"]
    assert str(home) in found["runner for ARM"]["found"]
    assert found["runner for ARM"]["fix"] is None
    text = deploy("doctor").out
    assert text.count("\nok ") + text.count("\nmissing ") + 1 == len(found)
    assert phone.leftovers() == []


def test_doctor_without_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    own_home(monkeypatch, tmp_path / "home")
    hide_programs(monkeypatch, tmp_path / "bin")
    hide_package(monkeypatch, adbs, "adbutils")
    hide_package(monkeypatch, native, "ziglang")
    found = checks(here(capsys, "doctor", "--json"))
    assert "apt install adb" in found["adb"]["fix"]
    assert "pip install 'onmetal[devices]'" in found["adb"]["fix"]
    assert found["ssh"]["fix"] == "apt install openssh-client"
    fix = found["compiler for ARM"]["fix"]
    assert "apt install gcc-aarch64-linux-gnu" in fix and "pip install ziglang" in fix
    text = here(capsys, "doctor").out
    for name in ("adb", "ssh", "compiler for ARM"):
        assert f"missing  {name}: not found" in text
        assert f"\n         {found[name]['fix']}\n" in text


@pytest.mark.parametrize(
    ("package", "check", "fix"),
    [
        ("ai-edge-litert", "litert", "pip install ai-edge-litert"),
        ("onnxruntime", "onnxruntime", "pip install onnxruntime"),
        ("openvino", "openvino", "pip install openvino"),
        ("nncf", "nncf", "pip install 'onmetal[nncf]'"),
        ("adbutils", "adbutils", "pip install 'onmetal[devices]'"),
        ("ziglang", "ziglang", "pip install 'onmetal[devices]'"),
        ("ethos-u-vela", "ethos-u-vela", "pip install 'onmetal[embedded]'"),
    ],
)
def test_doctor_names_a_missing_package(
    package: str,
    check: str,
    fix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    own_home(monkeypatch, tmp_path / "home")
    monkeypatch.setenv("ADB", str(stand_in(tmp_path / "adb", "List of devices attached\n\n")))
    uninstall(monkeypatch, package, "tflite-runtime")
    found = checks(here(capsys, "doctor", "--json"))
    assert (found[check]["found"], found[check]["fix"]) == ("not installed", fix)


def test_doctor_and_troubled_phones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("ADB", str(stand_in(tmp_path / "adb", LISTED_29)))
    fix = checks(here(capsys, "doctor", "--json"))["adb"]["fix"]
    for said in ("R58M123ABC is unauthorized", "emulator-5554 is offline", "udev rules"):
        assert said in fix


def test_doctor_and_a_wrong_adb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """What is said to mend it must do so: no adb is started anew where $ADB names none."""
    monkeypatch.setenv("ADB", str(tmp_path / "none"))
    found = checks(here(capsys, "doctor", "--json"))["adb"]
    assert "$ADB" in found["found"]
    assert "ADB" in found["fix"] and "kill-server" not in found["fix"]


@pytest.mark.parametrize("command", [["doctor"], ["devices"], ["devices", "--json"]])
def test_nothing_heavy_is_imported(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runtimes and readers of models are touched in worker processes alone."""
    monkeypatch.setenv("ADB", str(stand_in(tmp_path / "adb", "List of devices attached\n\n")))
    code = (
        "import sys\nfrom onmetal import cli\n"
        f"assert cli.main({command!r}) == 0\n"
        f"sys.exit(' '.join(set({HEAVY!r}) & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr.strip()) == (0, "")


# --- deploy runner build --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def runners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The caches that runners were built in: by Debian's compiler, by ziglang, and with the C
    library out of Debian's packages."""
    top = tmp_path_factory.mktemp("runners")
    made = {name: top / name for name in ("gcc", "ziglang", "packages")}
    user, empty = top / "user", top / "bin"
    user.mkdir()
    empty.mkdir()
    for name, path in (("gcc", os.environ["PATH"]), ("ziglang", str(empty))):
        environment = {"ONMETAL_HOME": str(made[name]), "HOME": str(user), "PATH": path}
        environment["XDG_CACHE_HOME"] = str(user / ".cache")
        ran = deploy("runner", "build", "--json", env=environment)
        assert ran.code == 0, ran.err
        (top / f"{name}.json").write_text(ran.out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "CROSS", top / "no-such-folder")
        with Cache(made["packages"]) as cache:
            native.build(cache)
    return made


def folder_of(home: Path) -> Path:
    with Cache(home) as cache:
        found = native.find(cache)
    assert found
    return found


@pytest.mark.parametrize("variant", ["gcc", "ziglang", "packages"])
def test_the_runner_is_built(
    variant: str, runners: dict[str, Path], phone: Phone, tmp_path: Path
) -> None:
    """And starts on a phone, which has neither its loader nor its C library."""
    folder = folder_of(runners[variant])
    names = {"runner", *native.LIBC, *native.LIBRARIES.values()}
    assert {path.name for path in folder.iterdir()} == names
    for path in folder.iterdir():
        head = path.read_bytes()[:20]
        assert head[:4] == b"\x7fELF" and head[18:20] == b"\xb7\x00", path  # AArch64
    sent = tmp_path / "sent"
    sent.mkdir()
    for name in ("runner", *native.LIBC):
        shutil.copy(folder / name, sent / name)
    assert phone.run("push", str(sent), f"{TMP}/runner").returncode == 0
    ran = phone.shell(f"cd {TMP}/runner && ./{native.LOADER} --library-path . ./runner < /dev/null")
    assert json.loads(ran.stdout.splitlines()[0])["runner"] == "native", ran.stderr
    assert phone.shell(f"rm -r {TMP}/runner").returncode == 0


@pytest.mark.parametrize("variant", ["gcc", "ziglang"])
def test_what_building_says(
    variant: str, runners: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    home = own_home(monkeypatch, runners[variant])
    first = json.loads((home.parent / f"{variant}.json").read_text())
    folder = folder_of(home)
    assert first["folder"] == str(folder) and first["arch"] == "aarch64"
    assert first["runtimes"] == native.versions()
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first["files"] == {
        name: hashlib.sha256(content).hexdigest() for name, content in files.items()
    }
    assert first["size_bytes"] == sum(map(len, files.values()))
    again = here(capsys, "runner", "build")
    assert again.code == 0 and "was built already" in again.out and str(folder) in again.out
    document = here(capsys, "runner", "build", "--json").document
    assert {key: document[key] for key in ("folder", "files")} == {
        key: first[key] for key in ("folder", "files")
    }


def test_the_users_home_stays_as_it_is(runners: dict[str, Path]) -> None:
    """Neither the compiler nor pip leaves a cache of its own there."""
    assert not (runners["gcc"].parent / "user/.cache").exists()


def not_built(ran: Ran, home: Path) -> str:
    """What a build that failed says; the cache has nothing of it."""
    assert ran.code == 4, (ran.out, ran.err)
    assert list((home / "entries").iterdir()) == list((home / "building").iterdir()) == []
    message: str = ran.document["error"]["message"]
    return message


def test_there_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    home = own_home(monkeypatch, tmp_path / "home")
    hide_programs(monkeypatch, tmp_path / "bin")
    hide_package(monkeypatch, native, "ziglang")
    said = not_built(here(capsys, "runner", "build", "--json"), home)
    assert "apt install gcc-aarch64-linux-gnu" in said and "pip install ziglang" in said


def test_the_compiler_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    home = own_home(monkeypatch, tmp_path / "home")
    hide_programs(monkeypatch, tmp_path / "bin")
    compiler = tmp_path / "bin/aarch64-linux-gnu-gcc"
    compiler.write_text("#!/bin/sh\necho 'fatal error: stdio.h: No such file' >&2; exit 1\n")
    compiler.chmod(0o755)
    said = not_built(here(capsys, "runner", "build", "--json"), home)
    assert "could not be compiled" in said and "stdio.h" in said


def test_there_is_no_c_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Neither the cross compiler's nor an apt to bring one."""
    home = own_home(monkeypatch, tmp_path / "home")
    hide_programs(monkeypatch, tmp_path / "bin", "aarch64-linux-gnu-gcc")
    monkeypatch.setattr(native, "CROSS", tmp_path / "cross")
    said = not_built(here(capsys, "runner", "build", "--json"), home)
    assert "libc6-arm64-cross" in said and str(tmp_path / "cross") in said


def test_pip_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = own_home(monkeypatch, tmp_path / "home")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{free_port()}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    said = not_built(deploy("runner", "build", "--json"), home)
    assert f"ai-edge-litert {metadata.version('ai-edge-litert')} for AArch64" in said
    assert "reachable" in said


# --- benchmark_model ------------------------------------------------------------------------------

LOG_2019 = """\
STARTING!
Min num runs: [10]
Min runs duration (seconds): [1]
Loaded model /data/local/tmp/tflite/tfmodel/mobilenet_v1_1.0_224_quant.tflite
resolved reporter
Initialized session in 9.933ms
Running benchmark for at least 4 iterations and at least 0.5 seconds
count=7 first=127425 curr=66709 min=66709 max=127425 avg=76605.9 std=20944

Running benchmark for at least 10 iterations and at least 1 seconds
count=15 first=66753 curr=66800 min=66699 max=66838 avg=66767.6 std=39

Average inference timings in us: Warmup: 76605.9, Init: 9933, no stats: 66767.6
"""
LOG_2020 = """\
STARTING!
Duplicate flags: num_threads
Num threads: [4]
Graph: [/data/local/tmp/espcn_harmonic_2x_slim_w_cl.tflite]
The input model file size (MB): 0.004448
Initialized session in 0.855ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding \
150 seconds.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding \
150 seconds.
count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, \
Inference (avg): 33209.4
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to \
the actual memory footprint of the model at runtime. Take the information at your discretion.
Peak memory footprint (MB): init=0 overall=12.8672
"""
LOG_2021 = """\
STARTING!
Log parameter values verbosely: [0]
Loaded model ./mobilenet_v1_1.0_224.tflite
Initialized session in 17.187ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding \
150 seconds.
count=1 curr=3512391

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding \
150 seconds.
count=50 first=2990275 curr=2913402 min=2727568 max=3189954 avg=2.95034e+06 std=109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, \
Inference (avg): 2.95034e+06
Memory footprint delta from the start of the tool (MB): init=4.21094 overall=46.0859
"""
LOG_2024 = """\
INFO: STARTING!
INFO: Graph: [mobilenet_v1_1.0_224.tflite]
INFO: Signature to run: []
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): 16.9008
INFO: Initialized session in 3.337ms.
INFO: count=9 first=81913 curr=55502 min=55502 max=81913 avg=58984.7 std=8115

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=1061 first=56576 curr=56299 min=54669 max=60236 avg=56265.8 std=982

INFO: Inference timings in us: Init: 3337, First inference: 81913, Warmup (avg): 58984.7, \
Inference (avg): 56265.8
INFO: Memory footprint delta from the start of the tool (MB): init=2.4375 overall=20.543
INFO: Overall peak memory footprint (MB) via periodic monitoring: 93.2383
"""
LOG_2026 = """\
I tflite  : Loaded model /data/local/tmp/best_int8.tflite
I tflite  : Initialized session in 92.318ms.
I tflite  : count=3 first=235158 curr=200386 min=199462 max=235158 avg=211669 std=16613 p5=199462 \
median=200386 p95=235158
I tflite  : count=25 first=187533 curr=140990 min=140071 max=195121 avg=145528 std=13583 \
p5=140545 median=141253 p95=187533
I tflite  : Inference timings in us: Init: 92318, First inference: 187533, Warmup (avg): 211669, \
Inference (avg): 145528
I tflite  : Memory footprint delta from the start of the tool (MB): init=54.2852 overall=73.4102
"""
MIB = 2**20


def expected(*values: float, **more: float) -> dict[str, Any]:
    names = ("runs", "avg_ms", "min_ms", "max_ms", "std_ms")
    found = {**dict(zip(names, values, strict=True)), **more}
    return {name: pytest.approx(value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (LOG_2019, expected(15, 66.7676, 66.699, 66.838, 0.039)),
        (LOG_2020, expected(50, 33.2094, 32.641, 34.005, 0.45, init_ms=0.855, first_ms=49.06,
                            memory_bytes=12.8672 * MIB)),
        (LOG_2021, expected(50, 2950.34, 2727.568, 3189.954, 109.798, init_ms=17.187,
                            first_ms=3512.391, memory_bytes=46.0859 * MIB)),
        (LOG_2024, expected(1061, 56.2658, 54.669, 60.236, 0.982, init_ms=3.337, first_ms=81.913,
                            memory_bytes=20.543 * MIB)),
        (LOG_2026, expected(25, 145.528, 140.071, 195.121, 13.583, init_ms=92.318,
                            first_ms=187.533, memory_bytes=73.4102 * MIB, p5_ms=140.545,
                            median_ms=141.253, p95_ms=187.533)),
    ],
    ids=["2019", "2020", "2021", "2024", "2026"],
)  # fmt: skip
def test_logs_of_benchmark_model(log: str, found: dict[str, Any]) -> None:
    assert benchmark_model.parse(log) == found
    assert benchmark_model.parse(log.replace("\n", "\r\n")) == found


def test_a_log_of_equal_runs() -> None:
    """Neither one run nor equal ones are given an average by the tool."""
    for said, runs in (("count=1 curr=3512391", 1), ("count=812 curr=3512391(all same)", 812)):
        found = benchmark_model.parse(f"count=9 first=5 curr=5 min=5 max=5 avg=5 std=0\n{said}\n")
        assert found["runs"] == runs
        assert found["avg_ms"] == found["min_ms"] == found["max_ms"] == pytest.approx(3512.391)


def test_a_log_with_what_is_no_number() -> None:
    """The root of a variance that rounding made negative."""
    for odd in ("-nan", "nan", "inf", "1e", "-", "1.2.3"):
        found = benchmark_model.parse(f"count=50 first=5 curr=6 min=5 max=6 avg=5.5 std={odd}\n")
        assert found["avg_ms"] == pytest.approx(0.0055)
        assert np.isfinite(found.get("std_ms", 0.0))


def test_a_log_with_large_times() -> None:
    log = LOG_2021.replace("Init: 17187", "Init: 1.25e+06")
    assert benchmark_model.parse(log)["init_ms"] == pytest.approx(1250)


NO_TIMINGS = (
    "",
    "Failed to load model /data/local/tmp/x.tflite\nBenchmarking failed.\n",
    "count=0\n",
    # LiteRT's own tool of the same name, of 2026.
    "INFO: [benchmark_litert_model.h:100] Inference (avg):      7430.20 ms (10 runs)\n",
)


@pytest.mark.parametrize("text", NO_TIMINGS, ids=["empty", "failed", "none", "other"])
def test_a_log_without_timings(text: str) -> None:
    with pytest.raises(DeviceError, match="gave no timings"):
        benchmark_model.parse(text)


words = st.sampled_from(
    ["count=5", " avg=", "std=-nan", "1e999", "-", ".", "min=1.5e+06", "\n", "Init: ", "overall=",
     "First inference: ", "Memory footprint delta", "٣", "(all same)", " curr=7", "count="]
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(words | st.text(max_size=6), max_size=30).map("".join))
def test_any_log(text: str) -> None:
    with contextlib.suppress(DeviceError):
        found = benchmark_model.parse(text)
        assert all(isinstance(value, int | float) for value in found.values())


def program(path: Path, shell: str, artifact: Path, threads: int, log: str = LOG_2026) -> Path:
    """A benchmark_model that looks at what it is asked for and fails on any other file."""
    path.write_text(
        f"#!{shell}\n"
        "for word; do case $word in --graph=*) graph=${word#--graph=};; esac; done\n"
        f'[ $(wc -c < "$graph") -eq {artifact.stat().st_size} ] || '
        '{ echo "INFO: STARTING!"; echo "Failed to load model" >&2; exit 1; }\n'
        f"for wanted in --num_threads={threads} --use_xnnpack=true --num_runs=50; do\n"
        '  case " $* " in *" $wanted "*) ;; *) echo "not $wanted: $*" >&2; exit 2;; esac\n'
        "done\n"
        f"cat <<'END OF OUTPUT'\n{log}END OF OUTPUT\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def artifact(small: Path) -> Path:
    """A .tflite file."""
    return small / "model.tflite"


def test_it_runs_here(artifact: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    tool = program(spaced / "bench 'mark", "/bin/sh", artifact, 3)
    other = tmp_path / "other.tflite"
    other.write_bytes(b"other")
    with Cache() as cache:
        device = Local(cache)
        assert benchmark_model.run(device, tool, artifact, 3) == benchmark_model.parse(LOG_2026)
        with pytest.raises(DeviceError, match=r"code 1: .*Failed to load model"):
            benchmark_model.run(device, tool, other, 3)
        with pytest.raises(DeviceError, match=r"code 2: .*not --num_threads=3"):
            benchmark_model.run(device, tool, artifact, 4)
        with pytest.raises(UsageError, match="there is no such file"):
            benchmark_model.run(device, tmp_path / "none", artifact, 3)
        tool.chmod(0o644)
        with pytest.raises(DeviceError, match="could not be run"):
            benchmark_model.run(device, tool, artifact, 3)


@BY_EACH_ADB
def test_it_runs_on_a_phone(phone: Phone, artifact: Path, tmp_path: Path) -> None:
    tool = program(tmp_path / "bench 'mark", "/system/bin/sh", artifact, 3)
    other = tmp_path / "other.tflite"
    other.write_bytes(b"other")
    with Cache() as cache, contextlib.closing(Remote(adbs.choose(phone.serial), cache)) as device:
        assert benchmark_model.run(device, tool, artifact, 3) == benchmark_model.parse(LOG_2026)
        with pytest.raises(DeviceError, match="Failed to load model"):
            benchmark_model.run(device, tool, other, 3)
        with pytest.raises(UsageError, match="there is no such file"):
            benchmark_model.run(device, tmp_path / "none", artifact, 3)
    wait_for(lambda: phone.leftovers() == [], "nothing is left")


def test_bench_shows_its_word(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Where it fails on one file, the other's is shown, and what was measured all the same."""
    other = tmp_path / "other.tflite"
    other.write_bytes(artifact.read_bytes() + bytes(16))
    tool = program(tmp_path / "benchmark_model", "/bin/sh", artifact, 1)
    texts: list[list[str]] = []
    show = cli._print

    def keep(document: dict[str, Any], as_json: bool, lines: list[str]) -> None:
        texts.append(lines)  # what would be printed without --json: to measure once is enough
        show(document, as_json, lines)

    monkeypatch.setattr(cli, "_print", keep)
    words = ("--threads", "1", "--quick", "--benchmark-model", str(tool), "--json")
    ran = here(capsys, "bench", str(artifact), str(other), *words)
    assert ran.code == 0, ran.err
    first, second = ran.document["candidates"]
    assert first["benchmark_model"] == benchmark_model.parse(LOG_2026)
    assert "Failed to load model" in second["benchmark_model"]["error"]
    for candidate in (first, second):
        assert candidate["status"] == "ok"
        assert candidate["latency_ms"]["basis"] == "measured"
    (lines,) = texts
    assert "benchmark_model of model.tflite fp32@litert: 145.5 ms on average" in lines
    (failed,) = [line for line in lines if line.startswith("benchmark_model of other.tflite")]
    assert "fp32@litert: benchmark_model failed" in failed


def test_a_benchmark_model_that_is_missing(artifact: Path, tmp_path: Path) -> None:
    """It is said before anything long."""
    ran = deploy("bench", artifact, "--quick", "--benchmark-model", tmp_path / "none", "--json")
    assert ran.code == 2
    assert "there is no such file" in ran.document["error"]["message"]
    assert "measuring" not in ran.err


# --- Bundles for phones and boards ----------------------------------------------------------------

SMALL = """\
description = "For tests: LiteRT alone, to be quick."
arch = "aarch64"
[device]
transport = "adb"
required = true
[[runtimes]]
name = "litert"
[[recipes]]
name = "fp32"
runtimes = ["litert"]
compute = "f32"
"""


def make(model: Path, target: str | Path, out: Path, *words: str | Path) -> Ran:
    """A bundle made without a device."""
    asked = (model, "--target", target, "--no-device", "--recipes", "fp32", "--quick", "--json")
    ran = deploy(*asked, "--out", out, *words)
    assert ran.code == 0, ran.err
    return ran


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


@pytest.fixture(scope="session")
def made(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of the example for the targets. Copy one before changing anything in it."""
    top = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONMETAL_HOME", str(shared_home))
        for target in ("android-arm64", "linux-arm64"):
            make(MODEL, target, top / target, "--data", DIGITS / "digits.npz")
    return {path.name: path for path in top.iterdir()}


@pytest.fixture(scope="session")
def small(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for phones of a small model by LiteRT, whose runner starts quickly."""
    top = tmp_path_factory.mktemp("small")
    (top / "small.toml").write_text(SMALL)
    model = onnx_models.save(onnx_models.dense(batch=1), top / "small.onnx")
    np.savez(top / "data.npz", x=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONMETAL_HOME", str(shared_home))
        words = ("--calibration-data", top / "data.npz")
        make(model, top / "small.toml", top / "bundle", *words)
    return top / "bundle"


@pytest.fixture
def android(made: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle for phones to do harm to."""
    return Path(shutil.copytree(made["android-arm64"], tmp_path / "bundle"))


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def sign(folder: Path) -> None:
    """Write SHA256SUMS anew, as whoever changed something on purpose would."""
    names = sorted(files(folder) - {"SHA256SUMS"})
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def verified(folder: Path, *words: str) -> None:
    ran = deploy("verify", folder, "--json", *words)
    assert ran.code == 0, ran.err
    assert ran.document["ok"] is True
    assert set(ran.document["checks"].values()) == {"ok"}


def refused(capsys: Capture, folder: Path) -> str:
    ran = here(capsys, "verify", str(folder), "--json")
    assert ran.code == 6, (ran.out, ran.err)
    assert ran.document["ok"] is False and ran.document["problems"]
    return "; ".join(ran.document["problems"])


def check_sums(folder: Path) -> None:
    """All files, also nested ones, and no others; `sha256sum` agrees."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert {line[66:] for line in lines} == files(folder) - {"SHA256SUMS"}
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bundle_for_a_phone(made: dict[str, Path]) -> None:
    folder = made["android-arm64"]
    check_sums(folder)
    found = manifest_of(folder)
    artifact = found["run"]["files"][0]
    assets = folder / "android/src/main/assets"
    assert (assets / artifact).read_bytes() == (folder / artifact).read_bytes()
    for name in ("build.gradle.kts", "settings.gradle.kts", "src/main/AndroidManifest.xml"):
        assert (folder / "android" / name).is_file()
    assert "requirements.txt" not in files(folder)
    builds = found["builds"]
    assert builds["measured"] is None
    shipped = builds["shipped"]
    assert (shipped["kind"], shipped["path"]) == ("Android module", "android")
    assert shipped["measured"] is False
    assert shipped["artifact"] in (folder / "README.md").read_text()
    group, _, version = shipped["artifact"].rpartition(":")
    gradle = (folder / "android/build.gradle.kts").read_text()
    assert f"{group}:{version}" in gradle
    assert found["measured"] is False and "no device" in found["unmeasured"]
    verified(folder)


def test_a_bundle_for_a_board(made: dict[str, Path]) -> None:
    folder = made["linux-arm64"]
    check_sums(folder)
    found = manifest_of(folder)
    run = found["run"]
    package = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime"}[run["runtime"]]
    pin = f"{package}=={run['runtime_version']}"
    assert pin in (folder / "requirements.txt").read_text().splitlines()
    assert run["files"][0] in (folder / "example.c").read_text()
    assert any(name.startswith("example-golden/") for name in files(folder))
    assert not (folder / "android").exists()
    assert found["builds"]["measured"] is None
    shipped = found["builds"]["shipped"]
    assert (shipped["path"], shipped["artifact"]) == ("run.py", pin)
    # Nothing was run on a device, and nothing may say so.
    assert shipped["measured"] is False
    assert "as was measured" not in shipped["note"] + (folder / "README.md").read_text()
    verified(folder, "--run")


NESTED = "android/src/androidTest/assets/golden/input-0-1.bin"
KOTLIN = "android/src/main/kotlin/onmetal/digits_cnn/Model.kt"


def flip(folder: Path) -> str:
    content = bytearray((folder / NESTED).read_bytes())
    content[5] ^= 1
    (folder / NESTED).write_bytes(content)
    return f"{NESTED} was changed"


def add(folder: Path) -> str:
    (folder / "android/src/main/kotlin/More.kt").write_text("// more\n")
    return "android/src/main/kotlin/More.kt was added"


def remove(folder: Path) -> str:
    (folder / KOTLIN).unlink()
    return f"{KOTLIN} was removed or renamed"


def link(folder: Path) -> str:
    """To the same content."""
    (folder / KOTLIN).rename(folder.parent / "Model.kt")
    (folder / KOTLIN).symlink_to(folder.parent / "Model.kt")
    return f"{KOTLIN} is not a regular file"


def link_folder(folder: Path) -> str:
    (folder / "android/src/main").rename(folder.parent / "main")
    (folder / "android/src/main").symlink_to(folder.parent / "main")
    return "android/src/main was added"


def add_folder(folder: Path) -> str:
    (folder / "android/src/main/jniLibs/arm64-v8a").mkdir(parents=True)
    return "android/src/main/jniLibs/arm64-v8a was added"


def rename(folder: Path) -> str:
    (folder / NESTED).rename((folder / NESTED).with_name("input-0-9.bin"))
    return f"{NESTED} was removed or renamed"


@pytest.mark.parametrize("harm", [flip, add, remove, link, link_folder, add_folder, rename])
def test_a_changed_module_is_seen(
    harm: Callable[[Path], str], android: Path, capsys: Capture
) -> None:
    assert harm(android) in refused(capsys, android)


def half(folder: Path) -> tuple[Path, Path]:
    """A model that takes half floats, and data for it. -> their files"""
    model = onnx_models.build(
        [
            onnx_models.node("Cast", "x", "wide", to=TensorProto.FLOAT),
            onnx_models.node("Gemm", "wide weight bias", "scores"),
        ],
        [onnx_models.value("x", [1, 4], TensorProto.FLOAT16)],
        [onnx_models.value("scores", [1, 3])],
        [onnx_models.weights("weight", 4, 3), onnx_models.weights("bias", 3)],
    )
    data = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float16)
    np.savez(folder / "half.npz", x=data)
    return onnx_models.save(model, folder / "half.onnx"), folder / "half.npz"


@pytest.mark.parametrize(
    ("target", "what"),
    [("android-arm64", "an Android module"), ("linux-arm64", "an example in C")],
)
def test_what_cannot_be_written_is_said(target: str, what: str, tmp_path: Path) -> None:
    """The bundle is written all the same."""
    model, data = half(tmp_path)
    ran = make(model, target, tmp_path / "out", "--calibration-data", data)
    said = f"{what} was not written: "
    assert any(w.startswith(said) and "float16" in w for w in ran.document["data"]["warnings"])
    shipped = manifest_of(tmp_path / "out")["builds"]["shipped"]
    assert said in shipped["note"]
    assert said.lower() in (tmp_path / "out/README.md").read_text().lower()
    there = files(tmp_path / "out")
    assert not any(name.startswith(("android", "example")) for name in there)
    assert ("requirements.txt" in there) == (target == "linux-arm64")
    if target == "android-arm64":
        assert shipped["path"] is None
    check_sums(tmp_path / "out")
    verified(tmp_path / "out", "--run")


def test_golden_vectors_run_on_a_phone(
    phone: Phone,
    small: Path,
    runners: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_home(monkeypatch, runners["gcc"])
    address = f"adb:{phone.serial}"
    verified(small, "--device", address)
    folder = tmp_path / "changed"
    shutil.copytree(small, folder)
    with np.load(folder / "golden.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = next(name for name in sorted(arrays) if name.startswith("out"))
    arrays[name] = arrays[name] + np.float32(0.5)
    np.savez(folder / "golden.npz", **arrays)
    sign(folder)
    ran = deploy("verify", folder, "--device", address, "--json")
    assert ran.code == 6, (ran.out, ran.err)
    assert ran.document["checks"]["files"] == "ok"
    assert ran.document["checks"]["golden"] == "failed"
    ran = deploy("verify", small, "--device", address, "--run", "--json")
    assert ran.code == 2 and "leave --device out" in ran.document["error"]["message"]
    assert not [name for name in phone.leftovers() if "run-" in name or "lock" in name]


def test_a_bundle_is_measured_on_a_phone(
    phone: Phone, small: Path, runners: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_home(monkeypatch, runners["gcc"])
    paths, target = [small, small / "model.tflite"], str(small.parent / "small.toml")
    address, progress = f"adb:{phone.serial}", Progress(steps=2)
    report = bench.bench(paths, target, address, None, None, [], "quick", 0, None, progress)
    document = plain(report.document)
    assert document["device"]["emulated"] is True
    assert document["baseline"] == "bundle fp32@litert"
    assert [entry["name"] for entry in document["candidates"]] == [
        "bundle fp32@litert",
        "model.tflite fp32@litert",
    ]
    for entry in document["candidates"]:
        assert entry["status"] == "ok", entry["reason"]
        for figure in ("latency_ms", "throughput_per_s", "load_ms"):
            assert entry[figure]["basis"] == "emulated"
    assert any("emulated" in said for said in document["warnings"])
    lines = "\n".join(text.render(report, PLAIN))
    assert "bundle fp32@litert" in lines and "emulated" in lines
    assert not [name for name in phone.leftovers() if "run-" in name or "lock" in name]


# --- Profiles that devices bring ------------------------------------------------------------------


class Runner:
    """The native runner, compiled for this machine, by its protocol."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while "progress" in (found := json.loads(self._process.stdout.readline())):
            continue
        assert "error" not in found, found
        answered: dict[str, Any] = found
        return answered

    def ask(self, *words: object) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self.answer()["result"]

    def close(self) -> None:
        self._process.communicate(timeout=120)


@pytest.fixture(scope="session")
def native_runner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "runner"
    code = [file for file in native.sources() if file.suffix == ".c"]
    done = subprocess.run(
        ["gcc", *native.FLAGS, "-Werror", *code, "-o", path, "-ldl", "-lpthread"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return path


def litert_library() -> Path:
    spec = find_spec("ai_edge_litert")
    assert spec and spec.origin
    return Path(spec.origin).with_name("libLiteRt.so")


def profiled(path: Path, artifact: Path, folder: Path) -> str:
    """LiteRT's own summary of some inferences."""
    runner = Runner(path)
    try:
        words = ("num_threads=1", f"profile={folder / 'profile'}")
        opened = runner.ask("open", "litert", litert_library(), artifact, *words)
        feed = folder / "feed"
        feed.write_bytes(bytes(sum(tensor["bytes"] for tensor in opened["inputs"])))
        runner.ask("feeds", feed, 1)
        runner.ask("profile", 0.1)
    finally:
        runner.close()
    return (folder / "profile").read_text()


@pytest.fixture(scope="session")
def summary(
    native_runner: Path,
    shared_home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Of the example, in float."""
    folder = tmp_path_factory.mktemp("summary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONMETAL_HOME", str(shared_home))
        make(MODEL, "tflite-x86", folder / "bundle", "--data", DIGITS / "digits.npz")
    return profiled(native_runner, folder / "bundle/model.tflite", folder)


def check_shares(found: dict[str, Any]) -> None:
    for name in ("provider", "precision", "operators"):
        shares = found[name]
        assert all(0 <= share <= 1.0001 for share in shares.values()), found
        assert sum(shares.values()) == pytest.approx(1, abs=0.01), found


def test_a_summary_of_litert(summary: str) -> None:
    found = shares_of_text("litert", summary, 1, {})
    check_shares(found)
    assert found["of"] == "operator time"
    assert found["provider"]["XNNPACK"] > 0.5
    assert found["precision"]["f32"] > 0.5
    assert any("Convolution" in name for name in found["operators"])
    assert found["kernels"] == sum(
        line.rstrip().rpartition("[")[2][:1].isalnum() for line in run_order(summary)
    )


def run_order(text: str) -> list[str]:
    """The rows of the part in the order of execution."""
    part = text.partition("Run Order")[2].partition("=====\n")[2].partition("\n=====")[0]
    return [line for line in part.splitlines()[1:] if line.strip()]


def test_a_summary_of_kernels_that_are_litert_s_own() -> None:
    """Which compute in what the file says; a kind that it does not know is told as such."""
    text = (
        "===== Run Order =====\n"
        "[node type] [first] [avg ms] [min] [%] [cdf%] [mem KB] [times called] [Name]\n"
        "Delegate/Convolution (NHWC, QC8) IGEMM 0.10 0.20 0.10 50.000% 50.000% 0.0 3 [a_b]:0\n"
        "SOFTMAX 0.10 0.10 0.10 30.000% 80.000% 0.000 3 [soft]:1\n"
        "UNHEARD_OF 0.10 0.10 0.10 20.000% 100.000% 0.000 3 [odd]:2\n"
        "\n===== Top by Computation Time =====\n"
        "SOFTMAX 0.10 0.10 0.10 99.000% 99.000% 0.000 3 [soft]:1\n"
    )
    found = text_profile.summary(text, {"SOFTMAX": "f32"})
    check_shares(found)
    assert found["provider"] == {"XNNPACK": 0.5, "LiteRT": 0.5}
    assert found["precision"] == {"i8": 0.5, "f32": 0.3, "other": 0.2}
    assert found["not_delegated"] == {"SOFTMAX": 1, "UNHEARD_OF": 1}
    assert found["kernels"] == 3


def test_a_summary_that_is_cut(summary: str) -> None:
    """Wherever it ends: read, or refused as what it is."""
    for end in range(0, len(summary), max(1, len(summary) // 100)):
        try:
            check_shares(shares_of_text("litert", summary[:end], 1, {}))
        except UnsupportedError as error:
            assert "could not be read" in str(error)


HEAD = "== Run Order =====\n"
rows = st.lists(
    st.sampled_from(
        ["Delegate/X (F32)", " 0.1 0.1 0.1", " 10.0%", " 20.0%", " 1.2.3%", " .%", " 0.0 1 [n]:0",
         "\n", "=====\n", "\n=====", HEAD, "[", "%", "٣", "\0"]
    )
    | st.text(max_size=8),
    max_size=40,
).map("".join)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["types", "ops", "op_name", "inputs", "1", "args", "dur",
                                       "cat", "name", "index", "outputs"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def read_or_refused(runtime: str, text: str) -> None:
    """Never another exception than the one that says so."""
    with contextlib.suppress(UnsupportedError):
        assert isinstance(shares_of_text(runtime, text, 1, {}), dict)


@settings(deadline=None)
@given(rows)
def test_any_summary(text: str) -> None:
    read_or_refused("litert", text)
    read_or_refused("litert", HEAD + text)
    read_or_refused("onnxruntime", text)


@settings(deadline=None)
@given(values, st.sampled_from(["litert", "onnxruntime"]))
def test_any_document(value: Any, runtime: str) -> None:
    """Also of the right outer form, with anything in it."""
    for document in (value, {"types": value, "ops": [value]}, [{"cat": "Node", "name": value}]):
        read_or_refused(runtime, json.dumps(document))
    event = {"cat": "Node", "name": "a_kernel_time", "dur": value, "args": value}
    read_or_refused("onnxruntime", json.dumps([event]))


ODD = (
    ("litert", "{}"),
    ("litert", '{"types": {}, "ops": [{"index": 0, "op_name": "ADD", "inputs": [1e999], '
     '"outputs": [1]}]}'),
    ("litert", '{"types": {"x": "int8"}, "ops": []}'),
    ("litert", '{"types":' + "[" * 100_000),
    ("onnxruntime", "[" * 100_000),
    ("onnxruntime", '["text"]'),
    ("onnxruntime", '[{"cat": "Node", "name": "a_kernel_time"}]'),
    ("onnxruntime", '[{"cat": "Node", "name": "a_kernel_time", "dur": 1%s, "args": '
     '{"op_name": "Conv"}}]' % ("0" * 400)),
)  # fmt: skip


@pytest.mark.parametrize(("runtime", "text"), ODD, ids=map(str, range(len(ODD))))
def test_documents_of_another_form(runtime: str, text: str) -> None:
    with pytest.raises(UnsupportedError, match="could not be read"):
        shares_of_text(runtime, text, 1, {})


def op(index: int, name: str, inputs: list[int], outputs: list[int]) -> dict[str, Any]:
    return {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}


def test_shares_of_operators() -> None:
    """Two convolutions that a delegate took, and a softmax that it left."""
    ops = [
        op(0, "CONV_2D", [0, 1], [2]),
        op(1, "CONV_2D", [2, 3], [4]),
        op(2, "SOFTMAX", [4], [5]),
        op(3, "DELEGATE", [0], [4]),
    ]
    types = {0: "int8", 1: "int8", 2: "int8", 3: "int8", 4: "int8", 5: "float32"}
    found = tflite_ops.shares(ops, types)
    check_shares(found)
    assert found["provider"] == {"XNNPACK": 0.6667, "LiteRT": 0.3333}
    assert found["precision"] == {"i8": 0.6667, "f32": 0.3333}
    assert found["operators"] == {"CONV_2D": 0.6667, "SOFTMAX": 0.3333}
    assert found["not_delegated"] == {"SOFTMAX": 1}
    assert (found["of"], found["kernels"]) == ("operators", 2)


def test_shares_without_a_delegate_or_operators() -> None:
    found = tflite_ops.shares([op(0, "ADD", [0, 1], [2])], {0: "float32", 1: "float32"})
    assert found["provider"] == {"XNNPACK": 0.0, "LiteRT": 1.0}
    assert found["precision"] == {"f32": 1.0}
    assert found["not_delegated"] == {"ADD": 1}
    assert tflite_ops.shares([], {})["operators"] == {}


@pytest.mark.parametrize(
    ("kind", "types", "precision"),
    [
        ("CONV_2D", ["int8", "int8", "int32"], "i8"),
        ("CONV_2D", ["int16", "int16", "int8"], "i16"),
        # Weights of 8 bits beside floats: products are of integers.
        ("FULLY_CONNECTED", ["float32", "float32", "int8"], "i8"),
        ("FULLY_CONNECTED", ["float32", "float32"], "f32"),
        ("DEQUANTIZE", ["float32", "float16"], "f32"),
        ("ADD", ["int16", "int16"], "i16"),
        ("SHAPE", ["int32"], "other"),
        ("ADD", [], "other"),
    ],
)
def test_what_an_operator_computes_in(kind: str, types: list[str], precision: str) -> None:
    assert tflite_ops.precision(kind, types) == precision


def test_the_same_is_said_of_a_board_by_its_python() -> None:
    """What python_runner.py brings is a document of LiteRT's list."""
    text = json.dumps({"ops": [op(0, "ADD", [0], [1])], "types": {"0": "int8", "1": "int8"}})
    found = shares_of_text("litert", text, 1, {})
    assert (found["of"], found["precision"]) == ("operators", {"i8": 1.0})
