"""What a child process may take of this machine."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from onmetal import limits
from onmetal.deploy import model
from onmetal.errors import DeviceError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker, quiet_environment
from tests.conftest import deploy

HUNGRY = """
import sys
sys.stdin.readline()
taken = []
while True:
    taken.append(bytearray(b"1") * (16 << 20))
"""


@pytest.fixture
def local(tmp_path: Path) -> Local:
    return Local(Cache(tmp_path / "home"))


def child(program: str) -> LocalWorker:
    return LocalWorker(quiet_environment(Path.home()), ("-c", program))


def test_a_process_that_takes_too_much_is_ended() -> None:
    with (
        child(HUNGRY) as worker,
        pytest.raises(DeviceError, match=r"0\.2 GB of memory and was ended"),
    ):
        worker.call("outputs", timeout_s=300, memory_bytes=200_000_000)
    assert not worker.running


def test_what_is_free_is_a_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "free_bytes", lambda: 100_000_000)
    with (
        child(HUNGRY) as worker,
        pytest.raises(DeviceError, match="all that is free here, and was ended"),
    ):
        worker.call("open", timeout_s=300)


def test_a_process_that_computes_for_ever_is_ended() -> None:
    with (
        child("input()\nwhile True: pass") as worker,
        pytest.raises(DeviceError, match="more than 1 s of processor time and was ended"),
    ):
        worker.call("open", timeout_s=300, cpu_s=1)


def test_a_process_that_says_nothing_is_ended() -> None:
    """An inference without end in the middle of many: what has told of progress may go on."""
    program = "import time\ninput()\nprint('{\"progress\": [1, 2]}', flush=True)\ntime.sleep(300)"
    with child(program) as worker, pytest.raises(DeviceError, match="'outputs' in time"):
        worker.call("outputs", timeout_s=250, silence_s=1)


def test_a_process_that_ends_by_itself_is_not_said_to_have_taken_too_much() -> None:
    with child("input(); raise SystemExit(3)") as worker, pytest.raises(DeviceError) as raised:
        worker.call("open", timeout_s=300, memory_bytes=1 << 40)
    assert "ended with code 3" in str(raised.value)


def test_nothing_is_watched_while_it_is_timed(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(*_: object) -> None:
        raise AssertionError("a thread was started")

    with local.worker() as worker:
        monkeypatch.setattr(limits, "watched", watched)
        worker.let_go()
        with pytest.raises(DeviceError):
            worker.round(0, 1, warm_s=0, feed=0, timeout_s=60)


def test_resident_bytes() -> None:
    before = limits.resident_bytes(os.getpid())
    taken = bytearray(b"1") * (64 << 20)
    assert limits.resident_bytes(os.getpid()) - before > len(taken) // 2
    assert limits.resident_bytes(2**22 + 1) == 0


def in_child(lines: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", f"from onmetal import limits\n{lines}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_reading_has_limits_of_memory_time_and_files(tmp_path: Path) -> None:
    done = in_child(
        "limits.READING_BYTES = 1 << 29\nlimits.restrict_reading(0)\nbytearray(1 << 30)"
    )
    assert done.returncode == 1
    assert "MemoryError" in done.stderr
    done = in_child(
        "limits.READING_BYTES = 1 << 28\nlimits.restrict_reading(0)\n"
        f"open({str(tmp_path / 'large')!r}, 'wb').truncate(1 << 29)"
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    done = in_child("limits.READING_CPU_S = 1\nlimits.restrict_reading(0)\nwhile True: pass")
    assert done.returncode < 0


def test_a_larger_model_may_take_more() -> None:
    said = in_child(
        "import resource\nlimits.widen_reading(1 << 40)\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0])\n"
        "limits.free_bytes = lambda: 1 << 36\nlimits.restrict_reading(1 << 20)\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0])\nlimits.widen_reading(1 << 30)\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0])\nlimits.widen_reading(1 << 40)\n"
        "print(resource.getrlimit(resource.RLIMIT_DATA)[0])"
    ).stdout.split()
    most = limits.READING_BYTES
    assert [int(line) for line in said] == [
        resource.RLIM_INFINITY,
        most + limits.FOLD * (1 << 20),
        most + limits.FOLD * (1 << 30),
        1 << 36,
    ]


# --- models that expand


def constant(name: str, values: list[int]) -> onnx.TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def save(path: Path, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        constants,
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    assert path.stat().st_size < 4000
    return path


def reduced(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("ReduceSum", [name], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]


def one_huge_constant(path: Path) -> Path:
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["huge"]), *reduced("huge")]
    return save(path, nodes, [constant("shape", [1_000_000, 1_000_000])])


def doubled_40_times(path: Path) -> Path:
    nodes = [
        helper.make_node("Concat", [f"t{n}", f"t{n}"], [f"t{n + 1}"], axis=1) for n in range(40)
    ]
    first = helper.make_node("Identity", ["x"], ["t0"])
    return save(path, [first, *nodes, *reduced("t40")], [])


def doubled_in_a_loop(path: Path) -> Path:
    """By a loop without end, whose results have no known shape."""
    inner = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Concat", ["v", "v"], ["w"], axis=0),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["times", "true", "x"], ["huge"], body=inner)
    path = save(
        path,
        [loop, helper.make_node("Identity", ["huge"], ["y"])],
        [
            helper.make_tensor("times", TensorProto.INT64, [], [2**62]),
            helper.make_tensor("true", TensorProto.BOOL, [], [True]),
        ],
    )
    free = onnx.load(path)
    free.graph.output[0].type.tensor_type.ClearField("shape")
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"  # so that it is run once
    onnx.save(free, path)
    return path


@pytest.mark.parametrize("made", [one_huge_constant, doubled_40_times, doubled_in_a_loop])
def test_a_small_model_that_expands_is_refused_when_it_is_read(
    made: Callable[[Path], Path], tmp_path: Path, local: Local
) -> None:
    path = made(tmp_path / "bomb.onnx")
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with (
        Cache(tmp_path / "home") as cache,
        pytest.raises((UsageError, UnsupportedError), match=r"^\S+bomb\.onnx: "),
    ):
        model.read(path, {}, None, cache, local)
    most_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert most_kib <= max(before, limits.READING_BYTES >> 10)


def test_a_loop_without_end_is_refused_when_it_is_read(
    tmp_path: Path, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = doubled_in_a_loop(tmp_path / "loop.onnx")
    endless = onnx.load(path)
    endless.graph.node[0].attribute[0].g.node[1].op_type = "Add"
    del endless.graph.node[0].attribute[0].g.node[1].attribute[:]
    onnx.save(endless, path)
    shorter = tmp_path / "shorter"  # limits of one second, for the worker alone
    shorter.mkdir()
    (shorter / "sitecustomize.py").write_text(
        "from onmetal import limits\nlimits.READING_CPU_S = 3\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(shorter))
    with Cache(tmp_path / "home") as cache, pytest.raises(UsageError, match="processor time"):
        model.read(path, {}, None, cache, local)


def test_deploy_says_why_and_ends_with_2_or_3(tmp_path: Path) -> None:
    path = one_huge_constant(tmp_path / "bomb.onnx")
    done = deploy(str(path), "--target", "x86-64", "--out", str(tmp_path / "out"))
    assert done.code == 3
    assert "a tensor between its operators takes 4000000000000 bytes" in done.err
    assert not (tmp_path / "out").exists()
