"""Completion as shells themselves do it: bash and zsh in a terminal, fish by its own command."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onmetal import cli
from onmetal.calibration import metric_table
from onmetal.commands import options
from tests.arm64 import needs
from tests.conftest import DIGITS

LIMIT_S = 120.0
"""A shell that has said nothing for this long hangs."""
CASES = [
    ("deploy doc", "doctor"),
    ("deploy verify --ru", "--run"),
    ("deploy m.onnx --max-lat", "--max-latency"),
    ("deploy inspect m.onnx --fol", "--follow-links"),
    ("deploy convert m.onnx --recipe int8-dyn", "int8-dynamic"),
    ("deploy m.onnx --target linux-", "linux-arm64"),
    ("deploy m.onnx --metric rm", "rmse"),
    ("deploy m.onnx --minimize thr", "throughput"),
    ("deploy m.onnx --target x86-64 --recipes fp32,int8-dyn", "fp32,int8-dynamic"),
    ("deploy digits_c", "digits_cnn.onnx"),
    ("deploy targets tflite", "tflite-x86"),
]
"""What was typed before TAB, and the word that comes of it."""


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with a model and data in it, and an environment where `deploy` is found."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copyfile(DIGITS / "digits_cnn.onnx", folder / "digits_cnn.onnx")
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "deploy"
    script.write_text(f"#!{sys.executable}\nfrom onmetal.cli import main\nmain()\n")
    script.chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "TERM": "xterm"}
    return folder, {**env, "HOME": str(tmp_path), "PS1": "$ "}


def typed(argv: list[str], lines: list[str], place: tuple[Path, dict[str, str]]) -> None:
    """Start the shell in a terminal, switch completion on, and press TAB behind every line."""
    folder, env = place
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execve(argv[0], argv, env)
    try:
        for line in [*lines, "echo re''ady"]:
            os.write(terminal, f"{line}\n".encode())
        expect(terminal, "ready")
        for start, whole in CASES:
            os.write(terminal, f"{start}\t".encode())
            expect(terminal, whole)
            os.write(terminal, b"\x15\x0b")  # ^U ^K: the line is emptied
    finally:
        os.close(terminal)
        os.kill(child, 9)
        os.waitpid(child, 0)


def expect(terminal: int, wanted: str) -> None:
    """Read until the terminal has shown the words."""
    shown, deadline = "", time.monotonic() + LIMIT_S
    while wanted not in shown:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{wanted!r} never came; the terminal shows {shown!r}"
        shown += os.read(terminal, 65536).decode(errors="replace")


def test_bash_completes(place: tuple[Path, dict[str, str]]) -> None:
    typed(
        [needs("bash", "bash"), "--norc", "--noprofile", "-i"],
        ["bind 'set enable-bracketed-paste off'", 'eval "$(deploy completion bash)"'],
        place,
    )


def test_zsh_completes(place: tuple[Path, dict[str, str]]) -> None:
    typed(
        [needs("zsh", "zsh"), "-f", "-i"],
        ["autoload -U compinit; compinit -u -D", 'eval "$(deploy completion zsh)"'],
        place,
    )


def test_fish_completes(place: tuple[Path, dict[str, str]]) -> None:
    folder, env = place
    asked = "; ".join(f"complete -C '{start}'" for start, _ in CASES)
    done = subprocess.run(
        [needs("fish", "fish"), "-c", f"deploy completion fish | source; {asked}"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    words = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert [whole for _, whole in CASES if whole not in words] == [], done.stdout + done.stderr


def test_what_is_offered_is_what_there_is() -> None:
    assert set(options.COMMANDS) == set(cli.RUNS)
    assert metric_table.NAMES == options.METRICS


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "fsh"]) == 2
    assert "did you mean fish?" in capsys.readouterr().err
