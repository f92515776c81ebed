import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper

from onmetal.calibration import samples
from onmetal.errors import DeviceError, NeedlessError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker, quiet_environment
from onmetal.profilers.tensor_bytes import read_feeds
from onmetal.records import plain
from tests.conftest import DIGITS
from tests.onnx_models import build, constant, node, read, save, value


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[LocalWorker]:
    with LocalWorker(quiet_environment(tmp_path)) as started:
        yield started


def ping(worker: LocalWorker) -> int:
    """Call something that prints to standard output. -> 0"""
    code: int = worker.call(
        "call", timeout_s=60, function="onmetal.cli:main", arguments={"argv": ["targets"]}
    )
    return code


def gone(pid: int, seconds: float = 60) -> bool:
    """Whether the process ends within that time; a zombie has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def write_feeds(folder: Path) -> Path:
    arrays: dict[str, Any] = {"0/image": np.zeros((1, 1, 8, 8), np.float32)}
    np.savez(folder / "feeds.npz", **arrays)
    return folder / "feeds.npz"


def open_digits(worker: LocalWorker, folder: Path, runtime: str = "onnxruntime") -> None:
    found = read(DIGITS / "digits_cnn.onnx", folder)
    worker.call(
        "open",
        timeout_s=60,
        runtime=runtime,
        files=[str(found.prepared)],
        options={},
        inputs=["image"],
        outputs=["logits"],
    )
    worker.keep_feeds(write_feeds(folder), timeout_s=60)


def forever(worker: LocalWorker, timeout_s: float) -> Any:
    return worker.round(600, 1, warm_s=0, feed=0, timeout_s=timeout_s)


def test_what_is_printed_does_not_disturb_the_answers(worker: LocalWorker) -> None:
    assert [ping(worker) for _ in range(3)] == [0, 0, 0]


def test_what_native_code_prints_goes_to_the_log(worker: LocalWorker) -> None:
    ping(worker)
    descriptors = Path(f"/proc/{worker.pid}/fd")
    assert (descriptors / "1").stat().st_ino == (descriptors / "2").stat().st_ino


def test_what_was_printed_is_quoted_at_its_death(worker: LocalWorker) -> None:
    ping(worker)
    os.kill(worker.pid, signal.SIGTERM)
    with pytest.raises(DeviceError, match="x86-openvino"):
        ping(worker)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGILL"])
def test_a_death_between_calls_names_the_signal(worker: LocalWorker, name: str) -> None:
    ping(worker)
    os.kill(worker.pid, signal.Signals[name])
    with pytest.raises(DeviceError, match=name) as caught:
        ping(worker)
    assert ("out of memory?" in str(caught.value)) == (name == "SIGKILL")


def test_a_death_during_a_call_names_the_signal(worker: LocalWorker, tmp_path: Path) -> None:
    open_digits(worker, tmp_path)
    killer = threading.Timer(0.3, os.kill, (worker.pid, signal.SIGSEGV))
    killer.start()
    with pytest.raises(DeviceError, match="SIGSEGV"):
        forever(worker, 60)
    killer.join()


def test_a_death_before_the_first_call(worker: LocalWorker) -> None:
    os.kill(worker.pid, signal.SIGKILL)
    assert gone(worker.pid)
    with pytest.raises(DeviceError, match="SIGKILL"):
        ping(worker)


def test_a_worker_that_leaves_by_itself_says_its_code(worker: LocalWorker) -> None:
    with pytest.raises(DeviceError, match="ended with code 0"):
        worker.call(
            "call", timeout_s=60, function="onmetal.cli:main", arguments={"argv": ["--version"]}
        )


def test_a_call_that_takes_too_long_ends_the_worker(worker: LocalWorker, tmp_path: Path) -> None:
    open_digits(worker, tmp_path)
    with pytest.raises(DeviceError, match="'round' in time"):
        forever(worker, 0.3)
    assert gone(worker.pid)


def test_a_call_after_the_end_is_a_device_error(worker: LocalWorker, tmp_path: Path) -> None:
    open_digits(worker, tmp_path)
    with pytest.raises(DeviceError):
        forever(worker, 0.1)
    with pytest.raises(DeviceError):
        ping(worker)


def test_a_worker_that_hangs_in_silence_is_ended(worker: LocalWorker) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(DeviceError, match="in time"):
        worker.call("call", timeout_s=0.2, function="onmetal.files.cache:key", arguments={})
    assert gone(worker.pid)


def test_a_request_larger_than_a_pipe_to_a_worker_that_hangs(worker: LocalWorker) -> None:
    os.kill(worker.pid, signal.SIGSTOP)
    rescue = threading.Timer(60, os.kill, (worker.pid, signal.SIGKILL))
    rescue.start()
    with pytest.raises(DeviceError, match="in time"):
        worker.call("call", timeout_s=0.2, function="x" * 1_000_000, arguments={})
    rescue.cancel()


def test_a_request_and_an_answer_larger_than_a_pipe(worker: LocalWorker) -> None:
    with pytest.raises(UsageError) as caught:
        worker.call(
            "call",
            timeout_s=60,
            function="onmetal.converters.onnx.reader:examine",
            arguments={"path": "x" * 300_000, "shapes": {}, "batch": None, "folder": ""},
        )
    assert len(str(caught.value)) > 300_000
    assert ping(worker) == 0


def test_closing_ends_the_process_and_may_be_repeated(tmp_path: Path) -> None:
    with LocalWorker(quiet_environment(tmp_path)) as started:
        assert psutil.pid_exists(started.pid)
        started.close()
        assert gone(started.pid)
    with pytest.raises(DeviceError):
        ping(started)


def test_errors_keep_their_kind_and_the_worker_goes_on(worker: LocalWorker, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.onnx"):
        worker.call(
            "call",
            timeout_s=60,
            function="onmetal.converters.onnx.reader:examine",
            arguments={
                "path": str(tmp_path / "none.onnx"),
                "shapes": {},
                "batch": None,
                "folder": str(tmp_path),
            },
        )
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(UnsupportedError):
        worker.call(
            "open",
            timeout_s=60,
            runtime="onnxruntime",
            files=[str(tmp_path / "noise.onnx")],
            options={},
            inputs=[],
            outputs=[],
        )
    with pytest.raises(DeviceError, match="KeyError"):
        worker.call("no such operation", timeout_s=60)
    with pytest.raises(DeviceError, match="ModuleNotFoundError"):
        worker.call("call", timeout_s=60, function="onmetal.nowhere:f", arguments={})
    assert ping(worker) == 0


@pytest.mark.parametrize("function", ["os:abort", "shutil:rmtree", "builtins:eval"])
def test_only_functions_of_onmetal_are_called(worker: LocalWorker, function: str) -> None:
    with pytest.raises(DeviceError):
        worker.call("call", timeout_s=60, function=function, arguments={})
    assert ping(worker) == 0


ORPHANED = """
import sys
from pathlib import Path
from onmetal.profilers.devices.local_worker import (LocalWorker, quiet_environment)
worker = LocalWorker(quiet_environment(Path(sys.argv[1])))
assert worker.call("call", timeout_s=60, function="onmetal.files.cache:key", arguments={"a": 1})
if sys.argv[2] == "busy":
    worker.call(
        "open",
        timeout_s=60,
        runtime="onnxruntime",
        files=[sys.argv[3]],
        options={},
        inputs=["image"],
        outputs=["logits"],
    )
    worker.keep_feeds(sys.argv[4], timeout_s=60)
print(worker.pid, flush=True)
if sys.argv[2] == "busy":
    worker.round(600, 1, warm_s=0, feed=0, timeout_s=600)
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path, state: str) -> None:
    prepared = read(DIGITS / "digits_cnn.onnx", tmp_path).prepared
    feeds = write_feeds(tmp_path)
    words = [str(tmp_path), state, str(prepared), str(feeds)]
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANED, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    assert not gone(pid, 0.2)
    parent.kill()
    parent.communicate()
    assert gone(pid)


@pytest.mark.parametrize("parent", ["this", "another"])
def test_a_worker_works_for_the_process_that_started_it(parent: str, tmp_path: Path) -> None:
    """Whatever its number is, 1 in a container; where it is gone already, there is nobody to."""
    number = os.getpid() if parent == "this" else os.getppid()
    request = {
        "op": "call",
        "arguments": {"function": "onmetal.files.cache:key", "arguments": {"a": 1}},
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "onmetal.profilers.worker"],
        env=quiet_environment(tmp_path) | {"ONMETAL_PARENT": str(number)},
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert ("result" in done.stdout) == (parent == "this")


def slow_model(steps: int) -> Any:
    """Doubles and halves `x` [1, 4] for many steps, so that one inference takes a while."""
    body = helper.make_graph(
        [
            node("Mul", "state two", "double"),
            node("Div", "double two", "next"),
            node("Identity", "go_on", "still"),
        ],
        "body",
        [
            value("step", [], TensorProto.INT64),
            value("go_on", [], TensorProto.BOOL),
            value("state", [1, 4]),
        ],
        [value("still", [], TensorProto.BOOL), value("next", [1, 4])],
    )
    return build(
        [node("Loop", "times - x", "y", body=body)],
        [value("x", ["N", 4])],
        [value("y", ["N", 4])],
        [constant("times", steps, "int64"), constant("two", 2.0)],
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_input_of_no_axes_is_run_as_it_is(
    worker: LocalWorker, tmp_path: Path, runtime: str
) -> None:
    model = build([node("Mul", "x s", "y")], [value("x", [2]), value("s", [])], [value("y", [2])])
    path = save(model, tmp_path / "scaled.onnx")
    arrays: dict[str, Any] = {"0/x": np.array([1, 2], np.float32), "0/s": np.float32(3)}
    np.savez(tmp_path / "feeds.npz", **arrays)
    names: dict[str, Any] = {"inputs": ["x", "s"], "outputs": ["y"], "options": {}}
    worker.call("open", timeout_s=60, runtime=runtime, files=[str(path)], **names)
    worker.run(tmp_path / "feeds.npz", tmp_path, timeout_s=60)
    assert np.load(tmp_path / "0-0.npy").tolist() == [3, 6]
    (feed,) = read_feeds(tmp_path / "feeds.npz")
    assert feed["s"].shape == ()


def test_progress_is_told_while_outputs_are_computed(worker: LocalWorker, tmp_path: Path) -> None:
    found = read(slow_model(30_000), tmp_path)
    told: list[tuple[int, int]] = []
    count = 20
    with Cache() as cache:
        data = samples.random(found, cache, count)
        worker.call(
            "open",
            timeout_s=60,
            runtime="onnxruntime",
            files=[str(found.prepared)],
            options={},
            inputs=["x"],
            outputs=["y"],
        )
        worker.call(
            "outputs",
            timeout_s=120,
            progress=lambda done, total: told.append((done, total)),
            samples=plain(data),
            model=plain(found),
            count=count,
            folder=str(tmp_path),
        )
        expected = np.concatenate([data.feed(found, [i])["x"] for i in range(count)])
    assert told and told == sorted(told)
    assert all(0 < done <= total == count for done, total in told)
    np.testing.assert_array_equal(np.load(tmp_path / "0.npy"), expected)


def test_the_environment_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING_OF_THE_USER", "kept")
    with Cache() as cache, Local(cache).worker() as started:
        ping(started)
        found = psutil.Process(started.pid).environ()
        assert found["HOME"] == str(cache.root / "home")
        assert (cache.root / "home/intel/openvino_telemetry").read_text() == "0"
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            assert Path(found[name]).is_relative_to(cache.root)
    assert found["ORT_DISABLE_TELEMETRY"] == "1"
    assert found["SOMETHING_OF_THE_USER"] == "kept"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_write_nothing_into_the_home_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setenv("HOME", str(mine))
    monkeypatch.chdir(mine)
    with Cache() as cache, Local(cache).worker() as started:
        open_digits(started, tmp_path, runtime)
        (tmp_path / "out").mkdir()
        started.run(tmp_path / "feeds.npz", tmp_path / "out", timeout_s=60)
        connections = psutil.Process(started.pid).net_connections()
    assert (tmp_path / "out" / "0-0.npy").exists()
    assert list(mine.rglob("*")) == []
    assert connections == []


def test_modules_in_the_working_folder_do_not_shadow_those_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "onmetal", "onnx"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    with LocalWorker(quiet_environment(tmp_path)) as started:
        assert ping(started) == 0


# --- helpers, which serve again


@pytest.fixture
def host() -> Iterator[Local]:
    with Cache() as cache:
        found = Local(cache)
        yield found
        found.close()


def number(workers: list[LocalWorker]) -> int:
    """Of the process, once it has answered."""
    workers[0].let_go()
    return workers[0].pid


def test_a_helper_serves_again_for_its_kind_alone(host: Local) -> None:
    first = host.helped("a", number)
    assert host.helped("a", number) == first
    assert host.helped("b", number) != first
    pair = host.helped("a", lambda workers: [worker.pid for worker in workers], 2)
    assert len(set(pair)) == 2 and first in pair
    assert not gone(first, 0.1)


def test_no_helper_is_left_beside_a_fresh_process(host: Local) -> None:
    """What is timed, and whose memory is counted, is alone."""
    first = host.helped("a", number)
    with host.worker() as worker:
        assert gone(first)
        assert worker.pid != first
    again = host.helped("a", number)
    host.close()
    assert gone(again)


def test_who_must_be_alone_serves_once(host: Local) -> None:
    first = host.helped(None, number)
    assert gone(first)
    assert host.helped(None, number) != first


def test_what_a_served_helper_dies_of_is_done_again_by_a_fresh_one(host: Local) -> None:
    first = host.helped("a", number)
    seen: list[int] = []

    def dies_once(workers: list[LocalWorker]) -> int:
        seen.append(workers[0].pid)
        if len(seen) == 1:
            os.kill(workers[0].pid, signal.SIGSEGV)
        return number(workers)

    assert host.helped("a", dies_once) == seen[1] != seen[0] == first
    assert gone(first)


def test_what_a_fresh_helper_fails_at_has_failed(host: Local) -> None:
    seen: list[int] = []

    def dies(workers: list[LocalWorker]) -> int:
        seen.append(workers[0].pid)
        os.kill(workers[0].pid, signal.SIGSEGV)
        return number(workers)

    with pytest.raises(DeviceError, match="SIGSEGV"):
        host.helped("a", dies)
    assert len(seen) == 1
    host.helped("a", number)
    with pytest.raises(DeviceError, match="SIGSEGV"):
        host.helped("a", dies)
    assert len(seen) == 3 and all(map(gone, seen))


def test_what_is_needless_is_not_done_again(host: Local) -> None:
    host.helped("a", number)
    seen: list[int] = []

    def needless(workers: list[LocalWorker]) -> None:
        seen.append(workers[0].pid)
        raise NeedlessError("it gains nothing")

    with pytest.raises(NeedlessError):
        host.helped("a", needless)
    assert len(seen) == 1


def test_a_helper_holds_nothing_open(host: Local, tmp_path: Path) -> None:
    def opens(workers: list[LocalWorker]) -> None:
        open_digits(workers[0], tmp_path)
        workers[0].let_go()
        with pytest.raises(DeviceError, match="NoneType"):
            workers[0].warm(0.0, 1, timeout_s=60)

    host.helped("a", opens)


def test_a_process_imports_its_runtime_before_it_answers(host: Local) -> None:
    with host.worker("litert") as worker:
        worker.let_go()
        maps = [entry.path for entry in psutil.Process(worker.pid).memory_maps()]
    assert any("ai_edge_litert" in path for path in maps)
    with host.worker("no_such_runtime") as worker:
        worker.let_go()
