"""Models that keep state in variable tensors: every sample is judged from the state that the model
begins with, in every runner that can hold it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onmetal.errors import UnsupportedError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.remote import ssh
from onmetal.profilers.devices.remote.adb import Adb
from onmetal.profilers.devices.remote.device import Remote
from onmetal.profilers.devices.remote.worker import RemoteWorker
from onmetal.records import Artifact
from onmetal.runtimes.litert import session as run_litert
from tests import devices
from tests.conftest import deploy
from tests.tflite_nets import STEPS, WIDTH, lstm

adb, board, phone = devices.adb, devices.board, devices.phone


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lstm(tmp_path_factory.mktemp("lstm") / "lstm.tflite")


@pytest.fixture(scope="module")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("feeds") / "feeds.npz"
    one = np.random.default_rng(1).normal(0, 1, (1, STEPS, WIDTH)).astype(np.float32)
    np.savez(path, **{"0/x": one, "1/x": 2 * one, "2/x": one})  # type: ignore[arg-type]
    yield path


def test_the_session_begins_anew_unless_told_to_go_on(model: Path, feeds: Path) -> None:
    with np.load(feeds) as stored:
        feed = {"x": stored["0/x"]}
    session = run_litert.Session([str(model)], {"stateful": True}, ["x"], ["y"])
    (first,) = session.run(feed)
    (again,) = session.run(feed)
    (went_on,) = session.run(feed, keep_state=True)
    assert np.array_equal(first, again)
    assert not np.allclose(first, went_on), "the state has no effect, so the test shows nothing"


def test_it_is_deployed_as_it_is(model: Path, tmp_path: Path) -> None:
    data = np.random.default_rng(2).normal(0, 1, (40, STEPS, WIDTH)).astype(np.float32)
    session = run_litert.Session([str(model)], {"stateful": True}, ["x"], ["y"])
    labels = np.concatenate([session.run({"x": row[None]})[0] for row in data])
    np.savez(tmp_path / "data.npz", x=data, y=labels)
    out = tmp_path / "out"
    ran = deploy(
        *(model, "--target", "tflite-x86", "--data", tmp_path / "data.npz"),
        *("--no-device", "--json", "--out", out),
    )
    assert ran.code == 0, ran.err
    (tried,) = [c for c in ran.document["candidates"] if c["status"] != "skipped"]
    assert tried["accuracy"]["value"] == 0.0, "rmse: a sample was not begun anew"
    skipped = [c["reason"] for c in ran.document["candidates"] if c["status"] == "skipped"]
    assert skipped and all("keeps state" in reason for reason in skipped)
    assert json.loads((out / "manifest.json").read_text())["run"]["options"]["stateful"] is True
    assert deploy("verify", out, "--run").code == 0


def outputs(worker: RemoteWorker, model: Path, feeds: Path, folder: Path) -> list[np.ndarray]:
    options = {"num_threads": 1, "stateful": True}
    worker.open(Artifact("litert", (model,), options, ("x",), ("y",)), timeout_s=120)
    worker.run(feeds, folder, timeout_s=120)
    return [np.load(folder / f"{number}-0.npy") for number in range(3)]


def test_a_boards_python_begins_every_sample_anew(
    board: devices.Board,
    model: Path,
    feeds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in board.environment.items():
        monkeypatch.setenv(name, value)
    with Cache() as cache:
        device = Remote(ssh.choose(board.address), cache)
        try:
            with device.worker() as worker:
                first, other, again = outputs(worker, model, feeds, tmp_path)
        finally:
            device.close()
    assert np.array_equal(first, again) and not np.allclose(first, other)


@pytest.mark.parametrize("adb", ["debian"], indirect=True)
def test_the_native_runner_says_that_its_library_takes_none(
    phone: devices.Phone,
    model: Path,
    feeds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in phone.environment.items():
        monkeypatch.setenv(name, value)
    with Cache() as cache:
        device = Remote(Adb(str(phone.adb), phone.serial), cache)
        try:
            with (
                device.worker() as worker,
                pytest.raises(UnsupportedError, match="variable tensors"),
            ):
                outputs(worker, model, feeds, tmp_path)
        finally:
            device.close()
