"""Killed and interrupted runs leave nothing half done, and the next one goes on where they were."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onmetal import cli
from onmetal.commands import ending
from tests.conftest import DIGITS
from tests.conftest import deploy_here as deploy
from tests.watched_runs import ended, kept, reach, started, workers

SOME = (DIGITS / "digits_cnn.onnx", "--data", DIGITS / "digits.npz", "--target")
FULL = (*SOME, "x86-64")
SEVERAL = (*FULL, "--recipes", "fp32")
"""Three runtimes compete."""
PLAIN = (*SOME, "x86-onnxruntime", "--recipes", "fp32")
"""One alone, where it does not matter how many: it starts in half the time."""


def partial(folder: Path) -> list[Path]:
    return list(folder.glob(".*.partial"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("reading the model", ["--no-device"]),
        ("converting", ["--no-device"]),
        ("judging", ["--no-device"]),
        ("reading the runtimes", ["--quick"]),
        ("measuring", ["--quick"]),
    ],
)
def test_a_killed_run_leaves_nothing_and_the_next_succeeds(
    title: str, words: list[str], work: Path, tmp_path: Path
) -> None:
    plain = SEVERAL if title in ("reading the runtimes", "measuring") else PLAIN
    command: tuple[str | Path, ...] = (*plain, *words, "--out", "out")
    home = tmp_path / "home"
    with started(*command, home=home, cwd=work) as process:
        reach(process, title)
        children = workers(process)
        process.kill()
        process.wait()
        assert ended(children)
    assert not (work / "out").exists()
    before = kept(home)
    assert title not in ("judging", "measuring") or any("artifact-" in name for name in before)
    again: tuple[str | Path, ...] = command
    if words == ["--quick"]:
        again = (*plain, "--no-device", "--out", "out")
    ran = deploy(*again, cwd=work, env={"ONMETAL_HOME": str(home)})
    assert ran.code == 0, ran.err
    assert [path.name for path in work.iterdir()] == ["out"]
    assert list((home / "building").iterdir()) == []
    after = kept(home)
    assert {name: after[name] for name in before} == before, "what was finished is made again"
    assert deploy("verify", "out", cwd=work).code == 0


def test_a_run_killed_while_it_writes_leaves_no_bundle(work: Path, tmp_path: Path) -> None:
    command = (*PLAIN, "--no-device", "--out", "out")
    home = tmp_path / "home"
    with started(*command, home=home, cwd=work) as process:
        reach(process, "writing the bundle")
        while not (found := partial(work)) and process.poll() is None:
            pass
        process.send_signal(signal.SIGSTOP)
        assert found
        process.kill()
        process.wait()
    assert not (work / "out").exists()
    assert partial(work)
    assert deploy("verify", work / "out").code == 2
    ran = deploy(*command, cwd=work, env={"ONMETAL_HOME": str(home)})
    assert ran.code == 0, ran.err
    assert [path.name for path in work.iterdir()] == ["out"]
    assert list((home / "building").iterdir()) == []
    assert deploy("verify", work / "out").code == 0


def test_the_partial_folder_of_a_running_run_is_left_alone(work: Path, tmp_path: Path) -> None:
    command = (*PLAIN, "--no-device", "--out", "out")
    home = tmp_path / "home"
    with started(*command, home=home, cwd=work) as process:
        reach(process, "writing the bundle")
        while not partial(work) and process.poll() is None:
            pass
        process.send_signal(signal.SIGSTOP)
        (held,) = partial(work)
        other = (*PLAIN, "--no-device", "--max-size", "1%", "--out", "out")
        ran = deploy(*other, cwd=work, env={"ONMETAL_HOME": str(home)})
        assert ran.code in (2, 5), ran.err
        assert held.exists()


@pytest.mark.parametrize("title", ["judging", "measuring"])
def test_an_interrupted_run_exits_130_and_says_so(title: str, work: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with started(*SEVERAL, "--quick", "--json", "--out", "out", home=home, cwd=work) as process:
        reach(process, title)
        children = workers(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert ended(children)
    assert process.returncode == 130
    assert json.loads(out)["error"]["code"] == 130
    assert "Traceback" not in err
    assert "interrupted" in err
    assert list(work.iterdir()) == []
    assert list((home / "building").iterdir()) == []


@pytest.mark.parametrize("after_s", [0.0, 0.5, 1.0])
def test_calibrating_can_be_interrupted_at_any_moment(
    after_s: float, work: Path, tmp_path: Path
) -> None:
    """It runs in several processes at once, for each of which a thread waits."""
    home = tmp_path / "home"
    words = (*FULL, "--no-device", "--recipes", "int8-u8u8", "--json", "--out", "out")
    with started(*words, home=home, cwd=work) as process:
        while not list((home / "entries").glob("float-*")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(after_s)
        children = workers(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert ended(children)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["code"] == 130
    assert "Traceback" not in err
    assert list(work.iterdir()) == []
    assert list((home / "building").iterdir()) == []


def test_what_was_done_before_an_interruption_is_not_done_again(work: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    with started(*PLAIN, "--quick", "--out", "out", home=home, cwd=work) as process:
        reach(process, "measuring")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 130
    before = kept(home)
    kinds = {name.split("/")[1].partition("-")[0] for name in before}
    assert {"model", "artifact", "outputs"} <= kinds
    ran = deploy(*PLAIN, "--no-device", "--out", "out", cwd=work, env={"ONMETAL_HOME": str(home)})
    assert ran.code == 0, ran.err
    assert kept(home) == before


def test_timings_are_taken_anew(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work)

    def latencies(out: str) -> dict[str, Any]:
        words = [
            str(DIGITS / "digits_cnn.onnx"),
            "--target",
            "x86-onnxruntime",
            "--recipes",
            "fp32",
            "--quick",
            "--json",
        ]
        assert cli.main([*words, "--out", out]) == 0
        found = json.loads(capsys.readouterr().out)["candidates"]
        return {e["name"]: (e["latency_ms"], e["load_ms"]) for e in found if e["latency_ms"]}

    one, two = latencies("one"), latencies("two")
    assert one.keys() == two.keys()
    assert all(one[name] != two[name] for name in one)
    with np.load("one/measurements.npz") as first, np.load("two/measurements.npz") as second:
        assert not any(
            np.array_equal(first[name], second[name])
            for name in set(first.files) & set(second.files)
        )


def test_two_runs_at_once_share_a_cache(work: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    command = (*PLAIN, "--no-device", "--out")
    with (
        started(*command, "one", home=home, cwd=work) as one,
        started(*command, "two", home=home, cwd=work) as two,
    ):
        for process in (one, two):
            _, err = process.communicate(timeout=600)
            assert process.returncode == 0, err
    assert sorted(path.name for path in work.iterdir()) == ["one", "two"]
    for name in ("model.onnx", "golden.npz", "run.py"):
        assert (work / "one" / name).read_bytes() == (work / "two" / name).read_bytes()
    for name in ("one", "two"):
        assert deploy("verify", work / name).code == 0


@pytest.fixture
def hang_ups_end() -> Iterator[None]:
    """Programs that are started are not spared them, as they are where these tests are."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("title", "number", "code"),
    [
        ("judging", signal.SIGTERM, 143),
        ("measuring", signal.SIGTERM, 143),
        ("judging", signal.SIGHUP, 129),
    ],
)
def test_a_run_that_is_told_to_end_says_so_and_leaves_nothing(
    title: str,
    number: signal.Signals,
    code: int,
    work: Path,
    tmp_path: Path,
    hang_ups_end: None,
) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    scratch.mkdir()
    environment = {"TMPDIR": str(scratch)}
    words = (*PLAIN, "--quick", "--json", "--out", "out")
    with started(*words, home=home, cwd=work, more=environment) as process:
        reach(process, title)
        children = workers(process)
        for _ in range(3):  # whoever shuts a machine down may send it again
            process.send_signal(number)
            time.sleep(0.01)
        out, err = process.communicate(timeout=120)
        assert ended(children)
    assert process.returncode == code, err
    assert json.loads(out)["error"]["code"] == code
    assert "Traceback" not in err
    assert f"ended by {number.name}" in err
    for folder in (work, scratch, home / "building"):
        assert list(folder.iterdir()) == [], folder


def test_nohup_is_respected() -> None:
    """A hang-up that was ignored when the program began does not end it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending.orderly_end():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
