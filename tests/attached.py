"""Devices that onmetal finds; `deploy` in this process, with programs or packages hidden."""

import os
import shutil
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from onmetal import cli
from onmetal.files.cache import Cache
from onmetal.profilers.devices.remote import native_runner as native
from tests.conftest import DIGITS, Ran, deploy, once
from tests.devices import CLIENTS, Phone, adb_client

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


@pytest.fixture(scope="session")
def runners(shared_folder: Path) -> dict[str, Path]:
    """The caches that runners were built in: by Debian's compiler, by ziglang, and with the C
    library out of Debian's packages."""
    top = shared_folder / "runners"
    top.mkdir(exist_ok=True)
    made = {name: top / name for name in ("gcc", "ziglang", "packages")}

    def make() -> None:
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

    once(top / "made", make)
    return made
