"""What is installed and what is missing: `deploy doctor`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onmetal.profilers.devices.remote import adb as adbs
from onmetal.profilers.devices.remote import native_runner as native
from tests.attached import (
    HEAVY,
    LISTED_29,
    Capture,
    here,
    hide_package,
    hide_programs,
    own_home,
    stand_in,
    uninstall,
)
from tests.conftest import Ran, deploy
from tests.devices import Phone


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
