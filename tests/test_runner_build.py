"""The native runner is built here: `deploy runner build`."""

import hashlib
import json
import os
import shutil
from importlib import metadata
from pathlib import Path

import pytest

from onmetal.files.cache import Cache
from onmetal.profilers.devices.remote import native_runner as native
from tests.attached import TMP, Capture, here, hide_package, hide_programs, own_home
from tests.conftest import Ran, deploy
from tests.devices import Phone, free_port


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
