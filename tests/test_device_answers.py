"""Devices that lie, flood or never end: what they send is bounded, timed and typed.

Who sends is real: processes, shells, a server on a TCP port. What could hang is waited for in a
thread of its own, so that such a test fails instead.
"""

import base64
import contextlib
import functools
import os
import random
import re
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import TypeVar

import numpy as np
import psutil
import pytest

from onmetal.errors import DeviceError, OnmetalError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers import benchmark_model, output
from onmetal.profilers.devices import answers, connect, line
from onmetal.profilers.devices.board import exchange, protocol
from onmetal.profilers.devices.board.device import Board
from onmetal.profilers.devices.board.link import Tcp
from onmetal.profilers.devices.board.protocol import Tiny
from onmetal.profilers.devices.line import Line
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import adb
from onmetal.profilers.devices.remote import ssh as sshs
from onmetal.profilers.devices.remote.device import Remote
from onmetal.profilers.devices.remote.facts.lines import (
    FLAGS,
    MAX_CPUS,
    MAX_MEMORY_BYTES,
    NAME_LENGTH,
    cpu_list,
)
from onmetal.profilers.devices.remote.facts.parsing import parse as parse_facts
from onmetal.profilers.devices.remote.facts.script import METERS
from onmetal.profilers.devices.remote.folder import Folder, shell
from onmetal.profilers.devices.remote.reached import Runner
from onmetal.profilers.devices.remote.worker import RemoteWorker
from onmetal.profilers.meters.lpm01a import Stream
from onmetal.records import Artifact
from tests.conftest import DIGITS, deploy
from tests.mutations_devices import BOARD, OTHERS, SIZES, Replay, read, seeds

T = TypeVar("T")
GUARD_S = 60.0
LONG_S = 120.0
"""A limit that only a defect reaches."""


@pytest.fixture(autouse=True)
def _impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lies here does not die of it."""
    if "death" not in request.node.name:
        monkeypatch.setattr(line, "DYING_S", 0.01)


def within(work: Callable[[], T]) -> T:
    """What `work` gives or raises. It fails where that takes so long that it never ends."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(GUARD_S)
    assert not thread.is_alive(), f"it did not end within {GUARD_S:.0f} s"
    if raised:
        raise raised[0]
    return found[0]


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(stat.S_IRWXU)
    return path


def refused(work: Callable[[], object]) -> str:
    """The message of its DeviceError, which is short enough to be read."""
    with pytest.raises(DeviceError) as caught:
        within(work)
    assert len(str(caught.value)) < 3000
    return str(caught.value)


# --- mutations ------------------------------------------------------------------------------------

TOKENS = (b"[", b"{", b"9" * 5000, b"-1", b"NaN", b"1e999", b"null", b'"', b"\n", b"\xff",
          b"\\ud800", b"[" * 20_000, b" " * 3000, b"m-ready\n", b"=", b":", b"\0")  # fmt: skip
NUMBERS = (b"-1", b"0", b"9" * 5000, b"1" * 18, b"1.5", b"NaN", b"true", b'"1"', b"1e400",
           b"4294967296", b"-9223372036854775808")  # fmt: skip


def damaged(data: bytes, choice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(choice.randint(1, 3)):
        at = choice.randrange(len(changed) + 1)
        match choice.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << choice.randrange(8)
            case 1:
                changed[at:at] = choice.choice(TOKENS)
            case 2:
                del changed[at : at + choice.randrange(1, 30)]
            case 3:
                changed[at:at] = bytes(changed[at : at + 40]) * choice.choice((1, 2, 50))
            case 4:
                del changed[at:]
            case _:
                if numbers := list(re.finditer(rb"[0-9]+", changed)):
                    number = choice.choice(numbers)
                    changed[number.start() : number.end()] = choice.choice(NUMBERS)
    return bytes(changed)


@pytest.mark.parametrize("number", range(len(seeds())))
def test_damaged_answers(number: int) -> None:
    kind, honest = seeds()[number]
    read(kind, honest)
    choice = random.Random(number)
    for _ in range(100):
        with contextlib.suppress(OnmetalError):
            read(kind, damaged(honest, choice))


# --- lines of processes ---------------------------------------------------------------------------


@contextlib.contextmanager
def speaker(code: str) -> Iterator[Line]:
    """A process that speaks by itself."""
    with Line(
        [sys.executable, "-c", f"import sys, time\n{code}"], None, "the runner on here"
    ) as child:
        yield child
    assert not child.running


WRITE = "while True: sys.stdout.buffer.write({piece}); sys.stdout.flush(){more}"


@pytest.mark.parametrize(
    ("piece", "wanted"),
    [
        ("b'x' * 65536", "67 MB"),
        ("b'x\\n' * 32768", "100000 lines"),
        ("b'\\n' * 65536", "100000 lines"),
        ("b'{\"progress\": [1, 2]}\\n' * 3000", "100000 lines"),
        ("b'x' * 1000000 + b'\\n'", "134 MB"),
        ("b'{' * 65536", "67 MB"),
    ],
    ids=["one line", "lines", "empty lines", "progress", "long lines", "open"],
)
def test_a_process_that_floods(piece: str, wanted: str) -> None:
    with speaker(WRITE.format(piece=piece, more="")) as child:
        said = refused(lambda: child.ask(b"x", "'open'", timeout_s=30, kind=NoneType))
    assert "the runner on here" in said and re.search(wanted, said)


@pytest.mark.parametrize(
    "piece", ["b'x'", "b'x\\n'", "b'{\"progress\": [1, 2]}\\n'"], ids=["bytes", "lines", "progress"]
)
def test_a_process_that_never_stops_is_ended_at_its_deadline(piece: str) -> None:
    with speaker(WRITE.format(piece=piece, more="; time.sleep(0.001)")) as child:
        said = refused(lambda: child.ask(b"x", "'open'", timeout_s=0.5, kind=NoneType))
    assert "did not finish 'open' in time" in said


def test_a_process_that_floods_its_log_fills_neither_disk_nor_memory(tmp_path: Path) -> None:
    code = "while True: sys.stderr.buffer.write(b'said so\\n' * 8192)"
    with speaker(code) as child:
        assert "in time" in refused(lambda: child.ask(b"x", "'open'", timeout_s=1, kind=NoneType))
        assert 0 < len(child._log.text(0)) <= output.TAIL_BYTES
    with speaker("sys.stderr.write('much\\n' * 1000000 + 'the reason\\n'); sys.exit(3)") as child:
        said = refused(lambda: child.ask(b"x", "'open'", timeout_s=60, kind=NoneType))
    assert "ended with code 3: much / much / the reason" in said


def test_draining_a_process_that_never_stops() -> None:
    with speaker("while True: print('x', flush=True); time.sleep(0.001)") as child:
        assert within(lambda: child.drain(0.3)) is False


LIES = {
    "deep": b'{"result": ' + b"[" * 100_000,
    "deep elsewhere": b'{"other": ' + b'{"a":' * 100_000,
    "large number": b'{"result": ' + b"9" * 5000 + b"}",
    "no number": b'{"result": NaN}',
    "another type": b'{"result": "5"}',
    "fraction": b'{"result": 5.5}',
    "negative": b'{"result": -5}',
    "none": b'{"result": null}',
    "no result": b'{"other": 5}',
    "an error of another type": b'{"error": 5}',
    "progress of another type": b'{"progress": "half"}',
    "negative progress": b'{"progress": [-1, 1]}',
    "large progress": b'{"progress": [' + b"9" * 5000 + b", 1]}",
    "cut": b'{"result": 5',
    "no UTF-8": b'{"result": "\xff"}',
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_answer(lie: str, tmp_path: Path) -> None:
    (tmp_path / "lie").write_bytes(LIES[lie] + b"\n")
    code = f"sys.stdout.buffer.write(open({str(tmp_path / 'lie')!r}, 'rb').read())\n"
    with speaker(f"{code}sys.stdout.flush(); time.sleep(600)") as child:
        said = refused(lambda: child.ask(b"x", "'warm'", timeout_s=LONG_S, kind=answers.Warmed))
    assert "the runner on here answered 'warm' with JSON" in said


@pytest.mark.parametrize("lie", ["deep", "no result", "an error of another type", "cut"])
def test_what_is_no_answer_of_a_worker_here(lie: str, tmp_path: Path) -> None:
    """Without a type, as workers on this machine are asked, which may answer with NaN."""
    (tmp_path / "lie").write_bytes(b'{"result": [NaN]}\n' + LIES[lie] + b"\n")
    code = f"sys.stdout.buffer.write(open({str(tmp_path / 'lie')!r}, 'rb').read())\n"
    with speaker(f"{code}sys.stdout.flush(); time.sleep(600)") as child:
        (found,) = child.ask(b"x", "'warm'", timeout_s=LONG_S)
        assert found != found
        assert "with JSON" in refused(lambda: child.ask(b"x", "'warm'", timeout_s=LONG_S))


def test_an_answer_that_is_cut_off_by_a_death_is_a_death() -> None:
    with speaker("print('{\"result\": [1, 2', flush=True); sys.exit(9)") as child:
        assert "ended with code 9" in refused(lambda: child.ask(b"x", "'warm'", timeout_s=LONG_S))


def test_the_largest_honest_answer() -> None:
    """A second's latencies of 200 ns each."""
    code = "print('{\"result\": \"' + 'AAAAAAAA' * 6_700_000 + '\"}', flush=True); time.sleep(600)"
    with speaker(code) as child:
        assert len(within(lambda: child.ask(b"x", "'round'", timeout_s=60, kind=str))) == 53_600_000


# --- output of commands ---------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["yes", "yes >&2", "cat /dev/zero", "yes x | tr -d '\\n'"])
def test_a_command_that_floods(script: str) -> None:
    said = refused(lambda: output.collect(["sh", "-c", script], 30, "the command there"))
    assert "the command there sent more than 8 MB" in said
    assert not [p for p in psutil.Process().children(recursive=True) if p.name() in ("yes", "cat")]


def test_a_command_that_never_stops() -> None:
    for script in ("while :; do echo x; sleep 0.01; done", "sleep 600", "sleep 600 & exit 0"):
        argv = ["sh", "-c", script]
        said = refused(lambda: output.collect(argv, 0.5, "it"))  # noqa: B023
        assert "it did not answer within" in said
    for child in psutil.Process().children(recursive=True):
        if child.name() == "sleep":
            child.kill()  # of the shell that ended by itself


def test_a_command_whose_file_grows(tmp_path: Path) -> None:
    argv = ["dd", "if=/dev/zero", f"of={tmp_path / 'file'}", "bs=1000", "count=5000"]
    done = output.collect(argv, 60, "dd", file_bytes=100_000)
    assert done.code != 0
    assert (tmp_path / "file").stat().st_size <= 100_000


def test_lines_are_put_together_from_any_pieces() -> None:
    data = b"a\n\nbc\nd" + b"e" * 1000 + b"\n\n\nrest"
    for size in (1, 2, 3, 7, 5000):
        lines = output.Lines()
        found: list[bytes] = []
        for start in range(0, len(data), size):
            lines.add(data[start : start + size])
            found += lines.take() if size % 2 else iter(lines.next, None)
        assert found == data.split(b"\n")[:-1]
        assert lines.part == b"rest"


# --- facts ----------------------------------------------------------------------------------------

ENDLESS = {
    "lists of CPUs": "@@clocks\nonline:" + "0-4095," * 4000 + "\n",
    "a list on many lines": "@@clocks\n" + "online:0-4095\n" * 70_000,
    "temperatures": "@@thermalservice\nCurrent temperatures\nTemperature{" + "mValue=" * 150_000,
    "temperatures of a kind": "@@thermalservice\nCurrent temperatures\n"
    + ("Temperature{" + "mValue=1, mType=0, " * 1700 + "\n") * 30,
    "disks": "@@df\n" + "1 1 1 " * 160_000,
    "blanks": "@@df\n1" + " " * 1_000_000 + "\n@@cpuinfo\n" + " " * 1_000_000 + ":",
    "properties": "@@getprop\n" + "[" * 500_000 + "]: [" * 100_000,
    "processors": "@@cpuinfo\n" + "processor:1\nCPU part:0xd05\nCPU implementer:0x41\n" * 20_000,
    "kinds": "@@cpuinfo\n"
    + "".join(f"processor:{n}\nCPU part:{n:#x}\nCPU implementer:0x41\n" for n in range(20_000)),
    "lines": "@@dt_compatible\n" + "\n" * 8_000_000,
    "flags": "@@cpuinfo\nprocessor:0\nflags: " + " ".join(f"f{n}" for n in range(5000)),
    "a long flag": "@@cpuinfo\nprocessor:0\nflags: " + "f" * 1_000_000,
    "a long name": "@@dt_model\n" + "model" * 1_000_000,
    "versions": "@@python\npython " + "9" * 10_000 + "\nnumpy " + "x" * 10_000,
    "numbers": "@@meminfo\nMemTotal: -5 kB\nMemAvailable: " + "9" * 17 + " kB\n@@loadavg\n-3 1",
    "batteries": "@@battery\nlevel: 99999999999\nscale: 1\ntemperature: " + "9" * 5000,
    "meters": "@@meters\n" + "evil\n" * 1000 + "rapl\n",
    "CPUs beyond all": "@@clocks\ncpu9999/cpufreq/scaling_cur_freq:" + "9" * 17,
}


@pytest.mark.parametrize("attack", ENDLESS)
def test_what_a_device_says_of_itself_is_bounded(attack: str) -> None:
    found = within(lambda: parse_facts(ENDLESS[attack]))
    names = (found.model, found.soc, found.cpu, found.os, found.build, found.kernel, found.boot_id,
             found.arch, found.emulated_why, found.python, found.numpy, found.state.get("governor"),
             *found.abis, *found.flags, *found.runtimes.values())  # fmt: skip
    assert all(len(name) <= NAME_LENGTH for name in names if name)
    assert len(found.flags) <= FLAGS and len(found.abis) <= 16
    assert set(found.meters) <= set(METERS)
    assert found.cores is None or 0 < found.cores <= MAX_CPUS
    assert len(found.allowed) <= MAX_CPUS
    for size in (found.memory_bytes, found.available_bytes, found.free_bytes):
        assert size is None or 0 <= size <= MAX_MEMORY_BYTES
    assert 0 <= found.state.get("battery_percent", 0) <= 100
    assert found.state.get("load_1min", 0) >= 0


def test_lists_of_cpus() -> None:
    assert cpu_list("0-3,6") == (0, 1, 2, 3, 6)
    assert cpu_list("6,0-3,2-4,4,1-1") == (0, 1, 2, 3, 4, 6)
    assert cpu_list("3-1,9999,5000-6000,x,,-1") == ()
    assert cpu_list("0-9999") == tuple(range(MAX_CPUS))


# --- a runner that lies, on a device that is reached by ssh ---------------------------------------


@contextlib.contextmanager
def shell_by_ssh(folder: Path) -> Iterator[str]:
    """The address of a device whose ssh leads to a shell of this machine."""
    program = executable(folder / "ssh", 'for last; do :; done\nexec sh -c "$last"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONMETAL_SSH", str(program))
        patch.setenv("XDG_CACHE_HOME", str(folder / "device"))
        patch.setattr(sshs.Ssh, "lock", str(folder / "lock"))
        yield "ssh://near"


@pytest.fixture
def near(tmp_path: Path) -> Iterator[str]:
    with shell_by_ssh(tmp_path) as address:
        yield address


LIAR = """\
echo '{"runner": "native", "pid": 1, "cores": [0]}'
while IFS='\t' read -r operation rest; do
  case $operation in
  open) cat "%(folder)s/open";;
  round) cat "%(folder)s/round";;
  run) printf xyz > "${rest##*\t}"; echo '{"result": null}';;
  profile) echo '{"result": {"inferences": 0}}';;
  memory) echo '{"result": {"baseline": -1, "peak": 5}}';;
  *) echo '{"result": null}';;
  esac
done
"""
OPENED = b'{"result": {"load_ms": 1.5, "inputs": [%s], "outputs": [%s]}}\n'
PORT = b'{"name": "x", "dtype": "float32", "bytes": 4, "scale": 0, "zero": 0, "shape": [1]}'
HONEST = OPENED % (PORT, PORT)


class Lying:
    """A device with a runner that answers what is in files."""

    address = "ssh://near"

    def __init__(self, folder: Path, device: Remote) -> None:
        self.folder, self.device = folder, device
        (folder / "liar").write_text(LIAR % {"folder": folder})
        (folder / "model").write_bytes(b"a model")
        device._runners["litert"] = Runner("native", "1", {"l": folder / "liar"}, "sh ./l", "-")

    def worker(self, **files: bytes) -> RemoteWorker:
        for name, content in {"open": HONEST, **files}.items():
            (self.folder / name).write_bytes(content)
        return self.device.worker()

    def artifact(self) -> Artifact:
        return Artifact("litert", (self.folder / "model",), {}, ("x",), ("x",))


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lying]:
    folder = tmp_path_factory.mktemp("lying")
    with shell_by_ssh(folder) as address, Cache(folder / "cache") as cache:
        device = Remote(sshs.choose(address), cache)
        try:
            yield Lying(folder, device)
        finally:
            device.close()
    assert not list(folder.glob("device/*"))


def changed(**values: bytes) -> bytes:
    port = PORT
    for name, value in values.items():
        port = re.sub(rb'"%s": [^,}]+' % name.encode(), b'"%s": %s' % (name.encode(), value), port)
    assert port != PORT
    return OPENED % (port, PORT)


@pytest.mark.parametrize(
    "answer",
    [
        changed(bytes=b"-4"),
        changed(bytes=b"8"),
        changed(bytes=b"1" + b"0" * 18, shape=b"[250000000000000000]"),
        changed(dtype=b'"O"'),
        changed(dtype=b'"V8"'),
        changed(shape=b"[-1]"),
        changed(shape=b"[" + b"1," * 100 + b"1]"),
        changed(scale=b"-1"),
        changed(scale=b"1e-60"),
        changed(scale=b"1e999"),
        changed(zero=b"99999999999"),
        changed(name=b"5"),
        HONEST.replace(b"1.5", b"-1"),
        HONEST.replace(b"1.5", b"NaN"),
        HONEST.replace(b'"inputs"', b'"other"'),
        OPENED % (b",".join([PORT] * 3), PORT),
        b'{"result": {"load_ms": 1, "inputs": ' + b"[" * 50_000 + b"\n",
        b'{"error": "UsageError"}\n'[:-3] + b"\n",
    ],
)  # fmt: skip
def test_a_model_that_a_device_describes_wrongly(lying: Lying, answer: bytes) -> None:
    with lying.worker(open=answer) as worker:
        assert lying.address in refused(lambda: worker.open(lying.artifact(), timeout_s=LONG_S))


def packed(*values: int) -> bytes:
    return b'{"result": "%s"}\n' % base64.b64encode(np.array(values, "<i8").tobytes())


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (b'{"result": "!!!!"}\n', "no base64"),
        (b'{"result": "AAAA"}\n', "of 3 bytes"),
        (b'{"result": ""}\n', "0 latencies"),
        (packed(1000), "1 latencies, where 3"),
        (packed(1000, 0, 1000), "a latency of 0 ns"),
        (packed(1000, -5, 1000), "a latency of -5 ns"),
        (packed(1000, 1000, 1 << 62), "passed on this machine"),
        (packed(*[1 << 62] * 8), "passed on this machine"),
        (b'{"result": [1000, 1000, 1000]}\n', "another form"),
    ],
)
def test_latencies_that_are_none(lying: Lying, answer: bytes, wanted: str) -> None:
    with lying.worker(round=answer) as worker:
        worker.open(lying.artifact(), timeout_s=LONG_S)
        said = refused(lambda: worker.round(0.1, 3, warm_s=0, feed=0, timeout_s=LONG_S))
    assert lying.address in said and wanted in said


@pytest.mark.parametrize("operation", ["warm", "peak_memory", "profile"])
def test_other_answers_that_are_none(lying: Lying, operation: str) -> None:
    with lying.worker() as worker:
        artifact = lying.artifact()
        asked: Callable[[], object]
        if operation == "warm":
            worker.open(artifact, timeout_s=LONG_S)
            asked = functools.partial(worker.warm, 0.1, 3, timeout_s=LONG_S)
        elif operation == "profile":
            asked = functools.partial(worker.profile, artifact, timeout_s=LONG_S)
        else:
            asked = functools.partial(worker.peak_memory, artifact, timeout_s=LONG_S)
        assert lying.address in refused(asked)


def test_latencies_that_are_some() -> None:
    found = answers.latencies(base64.b64encode(np.array([5, 7], "<i8").tobytes()).decode(), 2, 1.0)
    assert found.tolist() == [5, 7]


def test_a_copy_that_never_ends(near: str, tmp_path: Path) -> None:
    with contextlib.closing(sshs.choose(near)) as transport:
        said = refused(lambda: transport.pull("/dev/zero", tmp_path / "file", 30, 5_000_000))
        assert near in said and "5 MB" in said
        assert (tmp_path / "file").stat().st_size <= 5_000_000
        assert near in refused(lambda: shell(transport, "yes", 30))


@pytest.mark.parametrize(
    "home", ["relative", "-rf", "/a\nreboot", "/a\tb", "/" + "x" * 1001, "/\x1b[2J"]
)
def test_folders_that_a_device_must_not_name(
    near: str, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go into its scripts, and into requests of one line."""
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    with contextlib.closing(sshs.choose(near)) as transport:
        said = refused(lambda: Folder(transport))
    assert near in said and "no absolute path" in said


@pytest.mark.parametrize(
    "home", ["$(touch injected)", "a'b", 'a"b', "`touch injected`;reboot", "-x"]
)
def test_odd_folders_that_a_device_may_name(
    near: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home))
    (tmp_path / "file").write_bytes(b"content")
    with contextlib.closing(sshs.choose(near)) as transport:
        run = Folder(transport)
        try:
            (there,) = run.put([tmp_path / "file"])
            assert Path(there).read_bytes() == b"content"
            run.link({"-rf $(touch injected)": there}, f"{run.path}/lib/x")
        finally:
            run.close(keep=False)
    assert not list(tmp_path.rglob("injected")) and not Path("injected").exists()


FLOODS = ("yes", "printf '@@uname\\nLinux\\n'; yes >&2", "head -c 300000000 /dev/zero")


@pytest.mark.parametrize("script", FLOODS)
def test_a_device_that_floods_where_it_is_asked_for_facts(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONMETAL_SSH", str(executable(tmp_path / "ssh", f"{script}\n")))
    with Cache() as cache:
        said = refused(lambda: connect.reach("ssh://flood", cache))
    assert "ssh://flood sent more than 8 MB" in said


def test_a_flood_is_exit_code_4_with_the_address(tmp_path: Path) -> None:
    ran = deploy(
        *(DIGITS / "digits_cnn.onnx", "--target", "linux-arm64", "--data", DIGITS / "digits.npz"),
        *("--device", "ssh://flood", "--recipes", "fp32", "--out", tmp_path / "out"),
        env={"ONMETAL_SSH": str(executable(tmp_path / "ssh", "yes\n"))},
    )
    assert ran.code == 4, ran.err
    assert "ssh://flood sent more than" in ran.err
    assert not (tmp_path / "out").exists()


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "ssh://h\n", "ssh://h:2\n2", "ssh://h?python=a\nb", "ssh://u\t@h", "ssh://h\x00",
        "ssh://\x1b[2Jh", "ssh://-oProxyCommand=x@h:22", "ssh://h:-oProxyCommand=x",
        "ssh://[-oProxyCommand=x]", "ssh://-F/x@-G",
        "ssh://u@h|x", "ssh://u@h&x", "ssh://u@h>x", "ssh://{x}", "ssh://h?-oProxyCommand=x",
        "serial:///dev/tty\nACM0", "serial:///dev/tty?meter=lpm01a:/dev/x\n", "socket://h\n:1",
        "socket://h\x00:1", "qemu:a\nb", "qemu:a.elf?machine=-device", "qemu:a.elf?machine=x,y",
        "qemu:a.elf?machine=x\n",
    ],
)  # fmt: skip
def test_hostile_addresses(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Options, metacharacters, control characters: refused before any program sees them."""
    for program in ("ssh", "qemu-system-arm"):
        executable(tmp_path / program, f"touch '{tmp_path}/called'\n")
    monkeypatch.setenv("ONMETAL_SSH", str(tmp_path / "ssh"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises((UsageError, DeviceError)), Cache() as cache:
        connect.reach(address, cache)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("host", ["x" * 70, "a..b", "\u00ad", "xn--" + "9" * 80])
def test_hosts_that_no_dns_has(host: str) -> None:
    assert host in refused(lambda: Tcp(host, 1))


def test_what_adb_lists() -> None:
    serials = ["-s", "$(reboot)", "a;b", "x" * 300]
    text = "List of devices attached\n"
    text += "".join(f"{serial}\tdevice model:{'m' * 500}\n" for serial in serials)
    found = adb.listed(text + "y" * 100_000 + " " * 100_000 + "device\n" + "\0\n")
    assert [one.serial for one in found] == serials
    assert all(len(one.model or "") <= 100 for one in found)


def test_of_adbs_lines_only_line_feeds_are_ends() -> None:
    odd = ["a\u2028device\tdevice", "b\x0b\x85c\tdevice", "d\0e\tdevice", "f\x1b[2J\tdevice"]
    found = adb.listed("\n".join(["List of devices attached", *odd, "fine\toffline"]))
    assert [one.serial for one in found] == [line.split("\t")[0] for line in odd] + ["fine"]
    assert all("characters" in (one.trouble or "") for one in found[:-1])
    assert (found[-1].trouble or "").startswith("offline")


def test_adb_may_not_list_without_end() -> None:
    lines = ["List of devices attached", *(f"s{n}\tdevice" for n in range(100_000))]
    with pytest.raises(DeviceError, match="more than 1000 devices"):
        adb.listed("\n".join(lines))
    assert len(adb.listed("\n".join(lines[:1001]))) == 1000
    assert adb.listed("\n".join(["List of devices attached", *["x" + " " * 990] * 8000])) == []


@pytest.mark.parametrize("word", ["a\0b", "\ud800"])
def test_a_word_that_no_program_can_be_given(word: str) -> None:
    with pytest.raises(DeviceError, match="the tool cannot be run"):
        output.collect(["true", word], 5, "the tool")


# --- boards ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(data: bytes, *, endless: bool) -> Iterator[Tcp]:
    """A port at which this is sent to whoever comes, again and again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = Tcp("127.0.0.1", listener.getsockname()[1])
        caller = listener.accept()[0]

        def send() -> None:
            with contextlib.suppress(OSError):
                caller.sendall(data)
                while endless:
                    caller.sendall(data)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield link
        finally:
            link.close()
            caller.close()
            thread.join()


@pytest.mark.parametrize(
    "data", [b"x" * 4096, b"x\r\n" * 1000, b"\n" * 4096, b"m-name-x-[y]\n" * 300]
)
def test_a_board_that_never_stops(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HELLO_S", 0.2)
    monkeypatch.setattr(exchange, "DRAIN_S", 0.2)
    with served(data, endless=True) as link:
        assert link.name in refused(lambda: Tiny(link))


ODD_BOARDS = {
    "a clock of many digits": (b"[8000000 80000000]", b"[" + b"9" * 5000 + b" 1]"),
    "many lines": (b"m-load-done\n", b"m-x\n" * (exchange.ANSWER_LINES + 5)),
    "a check of many digits": (b"[4 of 4]", b"[" + b"9" * 5000 + b" of 4]"),
    "a check of more than all": (b"[4 of 4]", b"[5 of 4]"),
    "an output of too much": (b"[00ff7f80]", b"[" + b"00" * 500 + b"]"),
    "an output of too little": (b"[00ff7f80]", b"[00]"),
    "another digest": (b"0f0f", b"zzzz"),
    "a lap of many digits": (b"m-lap-us-223456", b"m-lap-us-" + b"9" * 5000),
}  # fmt: skip


@pytest.mark.parametrize("lie", ODD_BOARDS)
def test_a_board_that_answers_oddly(lie: str) -> None:
    old, new = ODD_BOARDS[lie]
    assert old in BOARD
    link = Replay(BOARD.replace(old, new, 1))

    def asked() -> None:
        board = Tiny(link)
        board.load(bytes(4))
        laps = board.infer(10, 1, 5)
        assert laps.ticks is None or laps.ticks < 10**18
        board.outputs([*SIZES])
        board.check(5)

    if lie == "a clock of many digits":
        within(asked)  # the other clock is there
    else:
        assert link.name in refused(asked)


def test_names_of_a_board_are_bounded() -> None:
    long = b"x" * 100_000
    data = BOARD.replace(b"Nucleo", long).replace(b"[onmetal]", b"[" + long + b"]")
    board = Tiny(Replay(data.replace(b"[12345 20000]", b"[" + b"9" * 5000 + b" 1]")))
    assert len(board.profile.name) == len(board.profile.firmware) == protocol.NAME_LENGTH
    assert board.profile.arena_used is None


class Instant:
    """A board that answers at once, whatever it is asked for; it runs nothing."""

    name = "instant:1"

    def __init__(self, us: int = 0) -> None:
        self._out, self._us = b"", us

    def read(self, timeout_s: float) -> bytes:
        found, self._out = self._out, b""
        return found

    def write(self, data: bytes) -> None:
        command = data.decode().rstrip("%")
        answers = {"name": "m-name-dut-[x]\n", "profile": "m-profile-[p]\nm-model-[m]\n"}
        infer = f"m-lap-us-5\nm-lap-us-{5 + self._us}\nm-results-[nan]\n"
        self._out += (answers.get(command, infer) + "m-ready\n").encode()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("us", [0, 1])
def test_a_board_that_runs_nothing(us: int) -> None:
    with Cache() as cache:
        board = Board("socket://instant:1", Tiny(Instant(us)), cache)
        said = refused(lambda: board.window(10, 1, 60))
        assert "socket://instant:1" in said and "does not run them" in said
        assert "does not run them" in refused(lambda: board.paced(10, 60))


def test_results_that_are_no_numbers() -> None:
    for text in (b"[1,,2]", b"[0x1]", b"[1_0]", b"[" + b"9" * 5000 + b"]", b"[a]"):
        board = Tiny(Replay(OTHERS.replace(b"[0.996,0.000,0.004]", text) + b"m-ready\n" * 5))
        board.load(bytes(4))
        board.infer(10, 1, 5)
        if text == b"[1,,2]":
            continue
        assert "results" in refused(board.results)


def test_a_meter_that_sends_nonsense() -> None:
    stream = Stream()
    for text in ("ack start", "1000-09", "9999+99", "event " + "9" * 5000 + " ris", "event 3 ris"):
        stream.line(text)
    assert stream.joules[0] == pytest.approx(1e-6)
    assert stream.joules[1] != stream.joules[1]
    assert stream.events == [(3, 2)]
    stream.lines = 10**9
    with pytest.raises(ValueError, match="more than"):
        stream.line("1000-09")


# --- logs and profiles ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "count=5 " + "a" * 1_000_000,
        "Init: 5 " * 100_000,
        "Peak memory footprint " * 50_000 + "overall=",
        "count=" + "9" * 1_000_000,
        "count=5 avg=" + "9" * 5000,
        "\n" * 1_000_000,
    ],
)
def test_logs_without_end(text: str) -> None:
    def parsed() -> None:
        with contextlib.suppress(DeviceError):
            found = benchmark_model.parse(text)
            assert all(np.isfinite(value) for value in found.values())

    within(parsed)


def test_a_benchmark_model_that_floods(tmp_path: Path) -> None:
    program = executable(tmp_path / "benchmark_model", "yes\n")
    with Cache() as cache:
        assert "sent more than" in refused(lambda: Local(cache).execute(program, {}, [], 600))
