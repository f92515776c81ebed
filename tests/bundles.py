"""Bundles of the example for each runtime, to be copied and changed."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onmetal import cli
from onmetal.profilers.devices.local_worker import quiet_environment
from tests.conftest import DIGITS, once
from tests.conftest import deploy_here as deploy

MODEL = DIGITS / "digits_cnn.onnx"
RUNTIMES = ("onnxruntime", "openvino", "litert")
TARGETS = {"litert": "tflite-x86"}
ARTIFACT = {
    "onnxruntime": ["model.onnx"],
    "openvino": ["model.bin", "model.xml"],
    "litert": ["model.tflite"],
}

Capture = pytest.CaptureFixture[str]


def make(runtime: str, home: Path, out: Path) -> Path:
    words = (
        MODEL,
        "--target",
        TARGETS.get(runtime, f"x86-{runtime}"),
        "--data",
        DIGITS / "digits.npz",
    )
    ran = deploy(
        *words, "--no-device", "--recipes", "fp32", "--out", out, env={"ONMETAL_HOME": str(home)}
    )
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(scope="session")
def bundles(shared_folder: Path) -> dict[str, Path]:
    """One unmeasured bundle a runtime. Copy it before changing anything in it."""
    top = shared_folder / "bundles"
    made = {name: top / name for name in RUNTIMES}

    def make_all() -> None:
        for name, folder in made.items():
            make(name, top / "home", folder)

    top.mkdir(exist_ok=True)
    once(top / "made", make_all)
    return made


@pytest.fixture
def copies(bundles: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Bundles to do harm to."""
    return {
        name: Path(shutil.copytree(folder, tmp_path / name)) for name, folder in bundles.items()
    }


@pytest.fixture
def spoiled(copies: dict[str, Path]) -> Path:
    return copies["onnxruntime"]


def sign(folder: Path) -> None:
    """Write SHA256SUMS anew, as whoever changed something on purpose would."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sign(folder)


def verify(folder: Path, capsys: Capture, *words: str) -> tuple[int, dict[str, Any]]:
    code = cli.main(["verify", str(folder), "--json", *words])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    return code, json.loads(shown.out)


def refused(folder: Path, capsys: Capture, *words: str) -> str:
    """The message of a verification that must fail."""
    code, found = verify(folder, capsys, *words)
    assert code == 6
    assert found["ok"] is False
    assert found["problems"]
    assert found["error"]["code"] == 6
    return str(found["error"]["message"])


def alone(folder: Path, tmp_path: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The bundle's run.py in a fresh interpreter, started elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-X", "importtime", str(folder / "run.py"), *map(str, words)],
        cwd=elsewhere,
        env=quiet_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )


def runner(folder: Path) -> Any:
    """The bundle's run.py as a module, without a `__pycache__` that others would find there."""
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        spec.loader.exec_module(module)
    return module
