"""Workers on a device: what the runners there give, and lines that are cut."""

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from msgspec.structs import replace

from onmetal.deploy import agree
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError
from onmetal.files.cache import Cache
from onmetal.profilers import measure
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import ssh as sshs
from onmetal.profilers.devices.remote.device import Remote
from onmetal.profilers.devices.remote.folder import shell
from onmetal.profilers.devices.remote.worker import RemoteWorker
from onmetal.records import Artifact, Candidate
from tests.devices import Phone, wait_for
from tests.far import BOARD, BOTH, LONG_S, PHONE, Artifacts, Far, feeds_of, tidied

KINDS = ("litert-fp32-nhwc", "litert-int8", "onnxruntime-fp32")


class Here(NamedTuple):
    far: Far
    remote: Remote
    host: Local


@pytest.fixture(scope="class")
def there(far: Far, built: Path, shared_home: Path) -> Iterator[Here]:
    """One run on the device, for tests that leave it whole."""
    with Cache(shared_home) as cache:
        remote = Remote(far.transport(), cache)
        try:
            yield Here(far, remote, Local(cache))
        finally:
            remote.close()
        tidied(far)


@BOTH
class TestWorkers:
    """By the native runner on a phone, by Python's own runtimes on a board."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_computes_what_this_machine_does(
        self, there: Here, artifacts: Artifacts, kind: str, tmp_path: Path
    ) -> None:
        candidate = artifacts(kind)
        feeds = feeds_of(candidate, tmp_path / "feeds.npz")
        here = agree.outputs(there.host, candidate, feeds)
        far = agree.outputs(there.remote, candidate, feeds)
        assert len(here) == len(far) == 3
        for mine, theirs in zip(here, far, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                assert np.array_equal(a.argmax(-1), b.argmax(-1))
                if "int8" in kind:
                    step = np.diff(np.unique(np.concatenate([a.ravel(), b.ravel()]))).min()
                    assert np.abs(a - b).max() <= 1.01 * step
                else:
                    assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
        name = there.remote.runner(candidate.runtime).kind
        assert name == ("python" if there.far.on_board else "native")

    def test_threads(self, there: Here, artifacts: Artifacts, tmp_path: Path) -> None:
        candidate = artifacts("litert-fp32-nhwc")
        feeds = feeds_of(candidate, tmp_path / "feeds.npz", 1)
        counts, found = [], []
        for threads in (1, 4):
            asked = replace(candidate, options={**candidate.options, "num_threads": threads})
            found.append(agree.outputs(there.remote, asked, feeds)[0][0])
            with there.remote.worker() as worker:
                worker.open(asked.artifact, timeout_s=LONG_S)
                worker.keep_feeds(feeds, timeout_s=LONG_S)
                worker.warm(0.01, 2, timeout_s=LONG_S)
                (pid,) = there.far.runners()
                counts.append(len(list(Path(f"/proc/{pid}/task").iterdir())))
        assert counts[1] - counts[0] == 3
        assert np.allclose(found[0], found[1], atol=1e-5)

    @pytest.mark.parametrize("kind", ["litert-int8", "litert-fp32-nhwc", "onnxruntime-fp32"])
    def test_what_ran_is_seen(
        self, there: Here, artifacts: Artifacts, kind: str, tmp_path: Path
    ) -> None:
        candidate = artifacts(kind)
        feeds = feeds_of(candidate, tmp_path / "feeds.npz", 1)
        found = measure.profile(there.remote, candidate, feeds)
        runtime = candidate.runtime
        assert found["runtime_version"] == metadata.version(
            {"litert": "ai-edge-litert"}.get(runtime, runtime)
        )
        assert found["runner"] == ("python" if there.far.on_board else "native")
        for shares in ("provider", "precision", "operators"):
            assert sum(found[shares].values()) == pytest.approx(1, abs=0.01)
        provider = "XNNPACK" if runtime == "litert" else "CPUExecutionProvider"
        assert max(found["provider"], key=found["provider"].__getitem__) == provider
        precision = "i8" if "int8" in kind else "f32"
        assert max(found["precision"], key=found["precision"].__getitem__) == precision

    @pytest.mark.parametrize("kind", ["litert-int8", "onnxruntime-fp32"])
    def test_memory(self, there: Here, artifacts: Artifacts, kind: str, tmp_path: Path) -> None:
        candidate = artifacts(kind)
        figure = measure.peak_memory(
            there.remote, candidate, feeds_of(candidate, tmp_path / "feeds.npz", 1), 1
        )
        assert figure.basis == "emulated"
        assert 0 < figure.value < 200e6

    def test_rounds(self, there: Here, artifacts: Artifacts, tmp_path: Path) -> None:
        """Timings mean nothing here; that they are timings does."""
        candidate = artifacts("litert-int8")
        feeds = feeds_of(candidate, tmp_path / "feeds.npz")
        outcome = measure.measure(
            there.remote,
            [candidate],
            lambda _: feeds,
            measure.EMULATED,
            lambda done, total, what: None,
        )
        assert not outcome.failures
        rounds = outcome.rounds[candidate.name]
        assert len(rounds.samples_ns) == measure.EMULATED.rounds
        assert all(len(ns) and (ns > 0).all() for ns in rounds.samples_ns.values())
        assert rounds.load_ms[0] > 0

    def test_a_worker_closed_amid_a_round_ends(
        self, there: Here, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        candidate = artifacts("litert-int8")
        worker = opened(there.remote, candidate, feeds_of(candidate, tmp_path / "feeds.npz"))
        said: list[str] = []

        def ask() -> None:
            try:
                a_round(worker, seconds=600)
            except OnmetalError as error:
                said.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: there.far.runners(), "it runs")
        worker.kill()
        thread.join(30)
        worker.close()
        assert said and not thread.is_alive()
        wait_for(lambda: not there.far.runners(), "the process there ends")

    @pytest.mark.parametrize(
        ("number", "said"),
        [
            (signal.SIGKILL, r"was killed \(SIGKILL\): out of memory\?"),
            (signal.SIGSEGV, r"crashed \(SIGSEGV\)"),
            (signal.SIGABRT, r"aborted \(SIGABRT\)"),
        ],
    )
    def test_a_runner_that_dies(
        self,
        there: Here,
        artifacts: Artifacts,
        tmp_path: Path,
        number: signal.Signals,
        said: str,
    ) -> None:
        candidate = artifacts("litert-int8")
        feeds = feeds_of(candidate, tmp_path / "feeds.npz")
        with opened(there.remote, candidate, feeds) as worker:
            (pid,) = there.far.runners()
            psutil.Process(pid).send_signal(number)
            line = worker._line
            wait_for(lambda: line is not None and not line.running, "the line ends with it")
            with pytest.raises(DeviceError, match=rf"runner on \S+ {said}") as error:
                a_round(worker, seconds=0.01)
            assert error.value.exit_code == 4
        with opened(there.remote, candidate, feeds) as another:
            assert len(a_round(another, seconds=0.01))

    def test_a_runner_that_hangs(self, there: Here, artifacts: Artifacts, tmp_path: Path) -> None:
        candidate = artifacts("litert-int8")
        feeds = feeds_of(candidate, tmp_path / "feeds.npz")
        with opened(there.remote, candidate, feeds) as worker:
            (pid,) = there.far.runners()
            psutil.Process(pid).suspend()
            with pytest.raises(DeviceError, match="did not finish 'round' in time and was ended"):
                a_round(worker, seconds=0.01, timeout_s=1)
        wait_for(lambda: not there.far.runners(), "it is ended before the next is measured")

    def test_what_cannot_be_opened(self, there: Here, artifacts: Artifacts, tmp_path: Path) -> None:
        broken = tmp_path / "-$(touch x) 'b\nr.tflite"
        broken.write_bytes(b"TFL3" * 100)
        candidate = replace(artifacts("litert-int8"), files=(broken,))
        refused = pytest.raises((UnsupportedError, DeviceError))
        with there.remote.worker() as worker, refused:
            worker.open(candidate.artifact, timeout_s=LONG_S)

    def test_hostile_artifact_names(
        self, there: Here, artifacts: Artifacts, tmp_path: Path
    ) -> None:
        """Two files, as of a model with weights of its own, have to keep their names there."""
        candidate = artifacts("litert-int8")
        files = []
        for name in ("-m $(touch injected) '\".tflite", "`w`"):
            files.append(tmp_path / name)
            shutil.copy(candidate.files[0], files[-1])
        odd = replace(candidate, files=tuple(files))
        feeds = feeds_of(candidate, tmp_path / "feeds.npz", 1)
        found = agree.outputs(there.remote, odd, feeds)
        assert np.array_equal(found[0][0], agree.outputs(there.remote, candidate, feeds)[0][0])
        assert not list(there.far.here(there.remote.folder.path).rglob("injected"))

    def test_options_that_would_break_a_request(self, there: Here, artifacts: Artifacts) -> None:
        candidate = artifacts("litert-int8")
        for value in ("1\tprofile=/x", "1\nround"):
            odd = replace(candidate, options={"num_threads": value})
            with (
                there.remote.worker() as worker,
                pytest.raises(UnsupportedError, match="a tab or a line break"),
            ):
                worker.open(odd.artifact, timeout_s=LONG_S)

    def test_what_is_done_on_this_machine_only(self, there: Here) -> None:
        refused = pytest.raises(UnsupportedError, match="on this machine only")
        artifact = Artifact("litert", (), {}, (), ())
        with there.remote.worker() as worker, refused:
            worker.layers(artifact, timeout_s=LONG_S)

    def test_equal_sizes_are_not_equal_contents(self, there: Here) -> None:
        """Written within one tick of the file system's clock, under one name."""
        contents = [bytes([number]) * 8 for number in range(2)]
        places = [there.remote.content(content) for content in contents]
        assert places[0] != places[1]
        for _ in range(300):
            assert [there.remote.content(content) for content in contents] == places


def opened(remote: Remote, candidate: Candidate, feeds: Path) -> RemoteWorker:
    worker = remote.worker()
    worker.open(candidate.artifact, timeout_s=LONG_S)
    worker.keep_feeds(feeds, timeout_s=LONG_S)
    return worker


def a_round(worker: RemoteWorker, seconds: float, timeout_s: float = LONG_S) -> np.ndarray:
    return worker.round(seconds, 1, warm_s=0.0, feed=0, timeout_s=timeout_s)


def test_a_line_cut_amid_a_run(
    far: Far, built: Path, shared_home: Path, artifacts: Artifacts, tmp_path: Path
) -> None:
    """What is asked for afterwards fails too, or works in a folder with a guard of its own."""
    candidate = artifacts("litert-int8")
    feeds = feeds_of(candidate, tmp_path / "feeds.npz")
    try:
        with Cache(shared_home) as cache:
            remote = Remote(far.transport(), cache)
            try:
                with opened(remote, candidate, feeds) as worker:
                    far.device.cut()
                    with pytest.raises(DeviceError, match=r"the line to \S+ was cut"):
                        a_round(worker, seconds=600)
                if isinstance(far.device, Phone):
                    far.device.connect()
                tidied(far)
                with contextlib.suppress(DeviceError):
                    agree.outputs(remote, candidate, feeds)
            finally:
                remote.close()
        tidied(far)
        wait_for(lambda: not far.runners(), "no runner goes on")
    finally:
        far.clear()


@PHONE
def test_a_phone_that_stops_answering(
    far: Far, built: Path, shared_home: Path, artifacts: Artifacts, tmp_path: Path
) -> None:
    assert isinstance(far.device, Phone)
    candidate = artifacts("litert-int8")
    try:
        with Cache(shared_home) as cache:
            remote = Remote(far.transport(), cache)
            try:
                feeds = feeds_of(candidate, tmp_path / "feeds.npz")
                with opened(remote, candidate, feeds) as worker:
                    far.device.freeze()
                    with pytest.raises(DeviceError, match="did not finish 'round' in time"):
                        a_round(worker, seconds=0.01, timeout_s=1)
            finally:
                far.device.thaw()
                remote.close()
        tidied(far)
    finally:
        far.clear()


@BOARD
def test_a_home_with_an_odd_name(
    far: Far, built: Path, shared_home: Path, artifacts: Artifacts, tmp_path: Path
) -> None:
    """Nothing there is split at blanks or run: a user's home folder may be called anything."""
    candidate = artifacts("litert-int8")
    transport = far.transport()
    home = "/root/my 'home' ü"
    shell(transport, f"mkdir -p {home!r}")
    assert isinstance(transport, sshs.Ssh)
    transport.place = f"{home}/onmetal-device"
    with Cache(shared_home) as cache:
        remote = Remote(transport, cache)
        try:
            feeds = feeds_of(candidate, tmp_path / "feeds.npz", 1)
            assert agree.outputs(remote, candidate, feeds)
        finally:
            remote.close()
    assert list(far.here(home).iterdir()) == []
    assert far.left() == []
    shutil.rmtree(far.here(home))


@BOARD
def test_free_space_is_seen_where_nothing_was_made_yet(far: Far, shared_home: Path) -> None:
    """A user who never had a cache has no folder for it either."""
    cached = far.here("/root/.cache")
    if cached.exists():
        shutil.rmtree(cached)
    with Cache(shared_home) as cache:
        remote = Remote(far.transport(), cache)
        remote.close()
    assert remote.remote_facts.free_bytes
