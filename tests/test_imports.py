"""The folder in which a command is started is a stranger's: nothing in it is imported, but what the
user named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DIGITS

PLANTED = (
    *("numpy", "json", "onnx", "onnxruntime", "openvino", "msgspec", "psutil", "argparse"),
    *("argcomplete", "PIL", "zipfile", "platform", "ai_edge_litert"),
)
COMMAND = str(Path(sys.executable).with_name("deploy"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder full of modules, each of which leaves a trace where it is imported."""
    work = tmp_path / "work"
    work.mkdir()
    for name in PLANTED:
        body = f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r} + '\\n')\n"
        if name.isupper() or name == "ai_edge_litert":
            (work / name).mkdir()
            (work / name / "__init__.py").write_text(body)
        else:
            (work / f"{name}.py").write_text(body)
    (work / "mine.py").write_text(
        "import numpy as np\n\n\ndef samples():\n"
        "    for n in range(4):\n"
        "        yield np.full((1, 8, 8), n, np.float32), n\n"
    )
    return work


def ran(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("start", [(COMMAND,), (sys.executable, "-m", "onmetal")])
def test_nothing_is_imported_from_the_folder_of_the_command(
    folder: Path, start: tuple[str, ...]
) -> None:
    model = str(DIGITS / "digits_cnn.onnx")
    for words in (
        ("--version",),
        ("inspect", model),
        (model, "--target", "x86-64", "--no-device", "--recipes", "fp32", "--out", "out"),
        ("verify", "out", "--run"),
    ):
        done = ran(folder, *start, *words)
        assert done.returncode == 0, done.stderr
        assert not (folder.parent / "imported").exists(), words


def test_a_module_that_the_user_names_takes_no_package_s_place(folder: Path) -> None:
    """It is found in the folder; what it or onmetal imports later is found where it belongs."""
    (folder / "numpy.py").unlink()  # the user's own module imports it while the folder is first
    model = str(DIGITS / "digits_cnn.onnx")
    words = ("--target", "x86-onnxruntime", "--no-device", "--recipes", "fp32", "--out", "out")
    done = ran(folder, COMMAND, model, "--data", "mine:samples", *words)
    assert done.returncode == 0, done.stderr
    assert not (folder.parent / "imported").exists()
