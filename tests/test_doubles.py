"""The test devices themselves: what other tests rely on, with each adb client and the real sshd."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from tests import arm64, devices
from tests.devices import CLIENTS, Board, Device, Phone, Push, adb_client, wait_for

adb, board, phone = devices.adb, devices.board, devices.phone

TMP = "/data/local/tmp"
LIMIT_S = 120
"""How long anything may take here: no test is about speed."""
LOOP = 'while read -r line; do echo "<$line>"; done; echo end'


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A client with its pipes open."""
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: "subprocess.Popen[bytes]", line: bytes) -> bytes:
    """Write a line and read one."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    return process.stdout.readline()


def on_phone(phone: Phone, command: str) -> list[str]:
    return [str(phone.adb), "-s", phone.serial, "shell", command]


def on_board(board: Board, command: str) -> list[str]:
    return [*board.client(), command]


def wait_until_it_runs(device: Device, text: str) -> None:
    wait_for(lambda: shell_processes(device.processes(), text), f"`{text}` runs")


def shell_processes(lines: dict[int, str], text: str) -> list[str]:
    return [line for line in lines.values() if text in line]


def test_a_phone_runs_arm64_programs(phone: Phone) -> None:
    ran = phone.shell("uname -m; id -u; getprop ro.product.model; cat /proc/cpuinfo; exit 7")
    assert ran.returncode == 7
    user = "0" if os.geteuid() else "2000"
    assert ran.stdout.split()[:3] == ["aarch64", user, "sdk_gphone64_arm64"]
    assert "asimddp" in ran.stdout and "i8mm" not in ran.stdout
    assert phone.shell("echo out; echo err >&2").stderr == "err\n"
    assert phone.shell("kill -9 $$").returncode == 137
    assert phone.run("-s", phone.serial, "exec-out", "printf 'a\\nb'").stdout == "a\nb"
    for absent in ("python3", "ed", "gcc"):
        assert phone.shell(f"{absent} --help").returncode == 127
    if user == "2000":
        assert "Permission denied" in phone.shell("touch /x").stderr
    own = phone.shell("cat /proc/self/status; ps").stdout
    assert re.search(r"VmHWM:\s+\d+ kB", own)
    assert "test_doubles" not in own, "a phone does not see the host's processes"
    phone.wait_until_idle()
    assert phone.leftovers() == []


def test_a_phone_tells_about_itself(phone: Phone) -> None:
    assert "[ro.kernel.qemu]: [1]" in phone.shell("getprop").stdout
    assert phone.shell("getprop ro.absent fallback").stdout == "fallback\n"
    assert "Thermal Status: 0" in phone.shell("dumpsys thermalservice").stdout
    assert "  level: 100\n" in phone.shell("dumpsys battery").stdout
    phone.replace("/system/etc/dumpsys/battery", "level: 100", "level: 9")
    assert "  level: 9\n" in phone.shell("dumpsys battery").stdout
    cores = "/sys/devices/system/cpu"
    assert phone.shell(f"cat {cores}/possible {cores}/cpu1/cpufreq/cpuinfo_max_freq").stdout == (
        "0-1\n2000000\n"
    )


def test_files_go_to_a_phone_and_back(phone: Phone, tmp_path: Path) -> None:
    folder = tmp_path / "sent"
    (folder / "deep").mkdir(parents=True)
    content = os.urandom(3_000_001)
    (folder / "deep/file.bin").write_bytes(content)
    (folder / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "run.sh").chmod(0o755)
    done = phone.run("push", str(folder), f"{TMP}/new/place")
    assert done.returncode == 0, done.stderr
    assert phone.shell(f"{TMP}/new/place/run.sh").stdout == "ran\n"
    assert phone.run("pull", f"{TMP}/new/place/deep/file.bin", str(tmp_path)).returncode == 0
    assert (tmp_path / "file.bin").read_bytes() == content
    report = phone.report(forget=True)
    assert sorted(report.pushed) == [
        Push(f"{TMP}/new/place/deep/file.bin", len(content), True),
        Push(f"{TMP}/new/place/run.sh", 19, True),
    ]
    assert report.pulled == [f"{TMP}/new/place/deep/file.bin"]
    assert any(service.endswith("place/run.sh") for service in report.services)
    refused = phone.run("push", str(folder / "run.sh"), "/system/bin/x")
    assert refused.returncode and "Permission denied" in refused.stdout + refused.stderr
    # The shell user owns what was pushed.
    assert phone.shell(f"rm -r {TMP}/new").returncode == 0
    assert phone.leftovers() == []


def test_a_command_on_a_phone_is_talked_with(phone: Phone) -> None:
    with started(on_phone(phone, LOOP), phone.environment) as client:
        for number in range(3):
            assert ask(client, b"%d\n" % number) == b"<%d>\n" % number
        big = os.urandom(300_000).hex().encode()
        assert ask(client, big + b"\n") == b"<" + big + b">\n"
        assert client.communicate(timeout=LIMIT_S) == (b"end\n", b"")
    phone.wait_until_idle()


def test_a_line_is_cut_amid_a_push(phone: Phone, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(os.urandom(200_000))
    phone.faults(cut_after_pushed=300_000, refuse_s=0.5)
    done = phone.run("push", str(tmp_path / "a"), str(tmp_path / "b"), TMP)
    assert done.returncode != 0
    assert phone.report().pushed == [
        Push(f"{TMP}/a", 200_000, True),
        Push(f"{TMP}/b", 100_000, False),
    ]
    wait_for(lambda: phone.leftovers() == ["a"], "the broken file is gone")
    phone.connect()
    phone.faults(cut_after_pushed=50_000, keep_partial=True)
    assert phone.run("push", str(tmp_path / "b"), TMP).returncode != 0
    wait_for(lambda: (phone.root / "data/local/tmp/b").stat().st_size == 50_000, "the part stays")


def test_a_line_is_cut_amid_a_command(phone: Phone) -> None:
    command = f"sleep 61 & {LOOP}"
    with started(on_phone(phone, command), phone.environment) as client:
        assert ask(client, b"x\n") == b"<x>\n"
        assert shell_processes(phone.processes(), "while read")
        phone.cut()
        client.wait(timeout=LIMIT_S)
    # The shell gets SIGHUP. What it started is left alone.
    wait_for(lambda: not shell_processes(phone.processes(), "while read"), "the shell ends")
    assert shell_processes(phone.processes(), "sleep 61")
    phone.connect()
    assert phone.shell("killall sleep; echo $?").stdout == "0\n"
    phone.wait_until_idle()


def test_a_command_ends_when_its_client_is_killed(phone: Phone) -> None:
    command = f"trap 'echo hup > {TMP}/hup; exit' HUP; {LOOP}"
    with started(on_phone(phone, command), phone.environment) as client:
        assert ask(client, b"x\n") == b"<x>\n"
        client.kill()
    phone.wait_until_idle()
    assert phone.leftovers() == ["hup"]


def test_a_line_is_cut_amid_output(phone: Phone) -> None:
    phone.faults(cut_after_output=5, refuse_s=0.5)
    ran = phone.shell("echo 123456789")
    assert ran.stdout in ("12345", "")
    phone.connect()
    assert phone.shell("echo 123456789").stdout == "123456789\n"


def test_a_phone_can_be_away(phone: Phone) -> None:
    phone.faults(refuse=True)
    phone.cut()
    wait_for(lambda: phone.state() != "device", "adb notices")
    assert phone.shell("true").returncode != 0
    phone.faults(refuse=False)
    phone.connect()
    assert phone.shell("echo back").stdout == "back\n"
    phone.freeze()
    with pytest.raises(subprocess.TimeoutExpired):
        phone.shell("true", timeout=0.5)
    phone.thaw()
    assert phone.shell("echo back").stdout == "back\n"


def test_a_phone_can_be_unauthorized(phone: Phone) -> None:
    phone.faults(auth="never")
    phone.connect(ready=False)
    wait_for(lambda: phone.state() == "unauthorized", "adb says so")
    assert "unauthorized" in phone.shell("true").stderr
    phone.faults(auth="accept")
    phone.connect()
    assert phone.shell("echo in").stdout == "in\n"


def test_a_phone_can_be_full(phone: Phone, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100_000))
    phone.faults(quota=99_999)
    done = phone.run("push", str(tmp_path / "file"), TMP)
    assert done.returncode and "No space left on device" in done.stdout + done.stderr
    assert phone.leftovers() == []
    phone.faults(quota=None)
    assert phone.run("push", str(tmp_path / "file"), TMP).returncode == 0


def test_a_phone_can_be_old(phone: Phone) -> None:
    phone.faults(features="cmd")
    phone.connect()
    assert "shell_v2" not in phone.run("-s", phone.serial, "features").stdout
    ran = phone.shell("echo out; echo err >&2; exit 3")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert sorted(ran.stdout.split()) == ["err", "out"]
    assert phone.shell("cat /system/bin/sh | wc -c").stdout.strip().isdigit()


def test_a_board_runs_arm64_programs(board: Board) -> None:
    ran = board.run("uname -m; id -u; pwd; echo err >&2; exit 7")
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, "aarch64\n0\n/root\n", "err\n")
    code = (
        "import numpy, ai_edge_litert.interpreter, onnxruntime, os\n"
        "print(numpy.__version__, onnxruntime.__version__, os.uname().machine)\n"
        "open('/root/here', 'w').close()\n"
    )
    ran = board.run(f'python3 -c "{code}"')
    versions = [metadata.version(name) for name in ("numpy", "onnxruntime")]
    assert ran.stdout.split() == [*versions, "aarch64"], ran.stderr
    assert (board.root / "root/here").exists()
    assert not (arm64.board_root() / "root/here").exists()
    board.wait_until_idle()


def test_a_command_on_a_board_is_talked_with(board: Board) -> None:
    content = os.urandom(300_000)
    with started([*board.client(), "cat > /root/file; wc -c < /root/file"], {}) as client:
        assert client.communicate(content, timeout=LIMIT_S)[0].strip() == b"300000"
    assert (board.root / "root/file").read_bytes() == content
    with started([*board.client(), LOOP], {}) as client:
        for number in range(3):
            assert ask(client, b"%d\n" % number) == b"<%d>\n" % number
        assert client.communicate(timeout=LIMIT_S)[0] == b"end\n"
    board.wait_until_idle()


def test_a_board_that_is_not_known_is_refused(board: Board) -> None:
    board.change_host_key()
    changed = board.run("true")
    assert changed.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in changed.stderr
    board.forget()
    unknown = board.run("true")
    assert unknown.returncode == 255 and "Host key verification failed" in unknown.stderr
    board.trust()
    assert board.run("echo in").stdout == "in\n"


def test_the_line_to_a_board_is_cut(board: Board) -> None:
    with started([*board.client(), f"sleep 61 & {LOOP}"], {}) as client:
        assert ask(client, b"x\n") == b"<x>\n"
        board.cut()
        assert client.wait(timeout=LIMIT_S) == 255
    # Without a terminal nothing is killed: the loop saw its input end, the rest goes on.
    wait_for(lambda: not shell_processes(board.processes(), "while read"), "the loop ends")
    assert shell_processes(board.processes(), "sleep 61")
    board.freeze()
    with pytest.raises(subprocess.TimeoutExpired):
        board.run("true", timeout=0.5)
    board.thaw()
    assert board.run("echo back").stdout == "back\n"


def test_a_terminal_on_a_board_hangs_up_with_its_line(board: Board) -> None:
    with started([*board.client("-tt"), "echo here; sleep 62"], {}) as client:
        said = ask(client, b"")
        if not said and os.geteuid():
            raise arm64.Missing("sshd may not give this user a terminal (/dev/pts without gid=5)")
        assert b"here" in said
        wait_until_it_runs(board, "sleep 62")
        board.cut()
        assert client.wait(timeout=LIMIT_S) == 255
    wait_for(lambda: not shell_processes(board.processes(), "sleep 62"), "it ends")


def registrations() -> list[str]:
    return sorted(entry.name for entry in Path("/proc/sys/fs/binfmt_misc").iterdir())


def test_nothing_remains(tmp_path: Path) -> None:
    mounts, registered = Path("/proc/mounts").read_text(), registrations()
    for name in (*CLIENTS, "board"):
        folder = tmp_path / name
        folder.mkdir()
        device = Board(folder) if name == "board" else Phone(folder, adb_client(name))
        with device:
            command = "trap '' HUP TERM; (sleep 63 &); sleep 64 > /dev/null 2>&1 < /dev/null &"
            if isinstance(device, Board):
                client = on_board(device, command)
            else:
                client = on_phone(device, command)
            with started(client, device.environment):
                wait_until_it_runs(device, "sleep 64")
            pids = list(device.processes())
        assert not any(psutil.pid_exists(pid) for pid in pids)

    def ours() -> list[list[str]]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if str(tmp_path) in " ".join(words) or process.environ().get("HOME", "").startswith(
                    str(tmp_path)
                ):
                    found.append(words)
        return found

    wait_for(lambda: not ours(), f"nothing runs: {ours()}")
    assert Path("/proc/mounts").read_text() == mounts
    assert registrations() == registered


def test_a_killed_owner_takes_its_machine_with_it(tmp_path: Path) -> None:
    script = Path(__file__).with_name("adbd.py")
    root = tmp_path / "root"
    shutil.copytree(arm64.phone_root(), root, symlinks=True)
    with subprocess.Popen(
        [sys.executable, script, "--root", root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as alone:
        assert alone.stdout is not None
        assert int(alone.stdout.readline()) > 0
        children = psutil.Process(alone.pid).children(recursive=True)
        assert children
        alone.send_signal(signal.SIGKILL)
    psutil.wait_procs(children, timeout=LIMIT_S)
    assert not any(child.is_running() for child in children)


def test_a_root_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONMETAL_TEST_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError), arm64.making("thing", [1]) as (final, root):
        assert root is not None
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]
    for again in (False, True):
        with arm64.making("thing", [1]) as (final, root):
            assert (root is None) == again
            if root is not None:
                (root / "file").touch()
        assert (final / "file").exists()


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(arm64.Missing, match=r"apt-get install qemu-user-static"):
        arm64.Machine(tmp_path, environment={})
    with pytest.raises(arm64.Missing, match=r"apt-get install adb"):
        adb_client("debian")
