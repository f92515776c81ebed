"""`deploy` to devices beyond a line: what it gives, and what it says and leaves where it fails."""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from onmetal import costs
from onmetal.deploy import agree, run
from onmetal.deploy.request import Request
from onmetal.profilers.devices.remote import adb as adbs
from onmetal.profilers.devices.remote import reached
from onmetal.profilers.devices.remote import ssh as sshs
from onmetal.profilers.devices.remote.folder import Folder
from onmetal.progress import Progress
from onmetal.records import plain
from tests import adbd
from tests.conftest import DIGITS, Ran
from tests.conftest import deploy_here as deploy
from tests.devices import CLIENTS, Board, Phone, adb_client, free_port, wait_for

MODEL = DIGITS / "digits_cnn.onnx"
LITERT, ONNXRUNTIME = "fp32@litert", "fp32@onnxruntime"
TARGET = """\
description = "For tests: a few candidates, to be quick."
arch = "aarch64"
recipes = {recipes}
[device]
transport = "{transport}"
required = true
{runtimes}
"""


def target(
    folder: Path,
    device: Phone | Board,
    runtimes: tuple[str, ...] = ("litert", "onnxruntime"),
    recipes: tuple[str, ...] = ("fp32",),
) -> Path:
    path = folder / f"{len(runtimes)}-fast.toml"
    entries = "".join(f'[[runtimes]]\nname = "{name}"\n' for name in runtimes)
    transport = "ssh" if isinstance(device, Board) else "adb"
    path.write_text(
        TARGET.format(transport=transport, runtimes=entries, recipes=json.dumps(recipes))
    )
    return path


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the example's samples: all of them are evaluated by an emulated CPU."""
    path = tmp_path_factory.mktemp("few") / "few.npz"
    with np.load(DIGITS / "digits.npz") as data:
        np.savez(path, **{name: data[name][:16] for name in data.files})
    return path


def address(device: Phone | Board) -> str:
    return device.address if isinstance(device, Board) else f"adb:{device.serial}"


def left(device: Phone | Board) -> list[str]:
    """Files and folders of onmetal's on the device."""
    with contextlib.suppress(FileNotFoundError):
        return _left(device)
    return left(device)  # something went while it was looked at


def _left(device: Phone | Board) -> list[str]:
    if isinstance(device, Phone):
        return device.leftovers()
    tops = [device.root / "tmp", device.root / "root/.cache"]
    found = {str(path.relative_to(top)) for top in tops for path in top.rglob("*")}
    return sorted(found)


def runners(device: Phone | Board, runtime: str = "") -> list[psutil.Process]:
    """The processes there that run models, of one runtime or of all."""
    found = []
    for pid, line in device.processes().items():
        with contextlib.suppress(psutil.Error, OSError):
            # Each starts in the folder of its runtime.
            place = Path(f"/proc/{pid}/cwd").readlink().name
            runs = line.endswith(("./runner", "python_runner.py"))
            # Not the shell that is about to become one, and has not told its number yet.
            if runs and "exec" not in line and runtime in ("", place):
                found.append(psutil.Process(pid))
    return found


@contextlib.contextmanager
def whenever(condition: Callable[[], object]) -> Iterator[None]:
    """Look again and again, beside what the block does."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            with contextlib.suppress(psutil.Error, OSError):
                condition()
            time.sleep(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def words(device: Phone | Board, aim: str | Path, out: Path, data: Path) -> list[str | Path]:
    return [
        *(MODEL, "--target", aim, "--device", address(device), "--data", data),
        *("--quick", "--json", "--out", out),
    ]


def left_clean(device: Phone | Board) -> None:
    """No process, folder, lock, partial or kept file of the run. The commands that ask a device
    for its facts may outlive their answer by ten seconds."""
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: left(device) == [], "nothing is left")
    assert left(device) == [], device.processes()
    device.wait_until_idle(15)


def only_kept(device: Phone | Board) -> None:
    """After a run that ended well: whole files by their digests, and nothing else."""
    wait_for(lambda: not runners(device), "no runner goes on")
    top, *rest = left(device)
    assert top in ("onmetal", "onmetal-device") and f"{top}/kept" in rest
    names = [name.removeprefix(f"{top}/kept/") for name in rest if name != f"{top}/kept"]
    assert names and all(len(name) == 64 and name.isalnum() for name in names), names


def candidates(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in document["candidates"]}


def failed(ran: Ran, code: int = 4) -> str:
    """What a run that failed says, checked to be the same in its document."""
    assert ran.code == code, (ran.out, ran.err)
    error = ran.document["error"]
    assert error["code"] == code
    message: str = error["message"]
    assert message.splitlines()[0] in ran.err or not ran.err.strip().endswith("Traceback")
    return message


@pytest.fixture(params=(*CLIENTS, "board"))
def device(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Phone | Board]:
    """A device of its own for each test: faults are injected and files are left there."""
    folder = tmp_path_factory.mktemp("device")
    board = request.param == "board"
    with Board(folder) if board else Phone(folder, adb_client(request.param)) as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        yield made


PHONE = pytest.mark.parametrize("device", CLIENTS[:1], indirect=True)
BOARD = pytest.mark.parametrize("device", ["board"], indirect=True)
BOTH = pytest.mark.parametrize("device", [CLIENTS[0], "board"], indirect=True)


# --- It must hold ---------------------------------------------------------------------------------


@BOTH
def test_a_deployment(device: Phone | Board, few: Path, tmp_path: Path) -> None:
    # A worker of a board takes seconds to start: fewer candidates, of a target that ships.
    aim: str | Path = "linux-arm64"
    if isinstance(device, Phone):
        aim = target(tmp_path, device, recipes=("fp32", "int8@litert", "int8-s8s8@onnxruntime"))
    asked = [
        *words(device, aim, tmp_path / "out", few),
        *("--calibration-data", few, "--max-accuracy-drop", "none", "--recipes"),
    ]
    ran = deploy(*asked, "int8" if isinstance(device, Phone) else "int8-s8s8")
    assert ran.code == 0, ran.err
    check_document(device, ran.document)
    check_bundle(device, ran.document, tmp_path / "out")
    only_kept(device)
    kept = left(device)
    if isinstance(device, Phone):
        assert device.report(forget=True).pushed
        again = deploy(*asked, "fp32", "--force")
        assert again.code == 0, again.err
        assert device.report().pushed == []
        assert left(device) == kept


def check_document(device: Phone | Board, document: dict[str, Any]) -> None:
    assert document["decided_by"] == "size"
    facts = document["device"]
    assert facts["emulated"] is True
    assert (facts["arch"], facts["address"]) == ("aarch64", address(device))
    assert facts["state"]["governor"] == "performance"
    found = candidates(document)
    assert {LITERT, ONNXRUNTIME, "int8@litert", "int8-s8s8@onnxruntime"} <= set(found)
    for name, entry in found.items():
        if entry["status"] == "skipped":
            continue
        assert entry["status"] in ("ok", "chosen"), (name, entry["reason"])
        for figure in ("latency_ms", "throughput_per_s", "load_ms", "peak_memory_bytes"):
            assert entry[figure]["basis"] == "emulated", (name, figure)
        agreed = entry["device_outputs"]
        assert agreed["vectors"] == 8 and agreed["same_argmax"] is True
        if name in (LITERT, ONNXRUNTIME):
            assert agreed["largest_difference"] <= 1e-5 * agreed["peak"]
            assert agreed["judged_on"] == "device"
        assert entry["ran_on"]["runner"] == ("python" if isinstance(device, Board) else "native")
        kind = "f32" if name in (LITERT, ONNXRUNTIME) else "i8"
        assert entry["ran_on"]["precision"][kind] > 0.5, name
        assert entry["accuracy"]["samples"] == 16
    least = min(entry["size_bytes"] for entry in found.values() if entry["status"] != "skipped")
    assert found[document["chosen"]]["size_bytes"] <= (1 + costs.RELATIVE) * least
    assert document["chosen"].startswith("int8")
    assert any("emulated" in said for said in document["data"]["warnings"])


def check_bundle(device: Phone | Board, document: dict[str, Any], out: Path) -> None:
    assert document["bundle"] == str(out)
    assert deploy("verify", out, "--json").code == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["measured"] is False and "emulated" in manifest["unmeasured"]
    before, after = manifest["device"]["state"], manifest["device_after"]
    for state in (before, after):
        assert state["load_1min"] >= 0 and state["free_bytes"] > 0
        assert state["clock_khz"] == [2000000]
    # In steps of its output no value is off by more than one.
    with np.load(out / "golden.npz") as golden:
        values = np.concatenate([golden[k].ravel() for k in golden.files if k.startswith("out")])
    step = np.diff(np.unique(values)).min()
    agreed = candidates(document)[document["chosen"]]["device_outputs"]
    assert agreed["largest_difference"] <= 1.01 * step


@pytest.mark.parametrize("device", CLIENTS[1:], indirect=True)
def test_by_a_newer_client_and_a_hostile_name(device: Phone, few: Path, tmp_path: Path) -> None:
    name = "-a b'\"$(touch injected)\n;`touch injected`&*.onnx"
    (tmp_path / name).write_bytes(MODEL.read_bytes())
    asked = words(device, target(tmp_path, device, ("litert",)), tmp_path / "out", few)
    ran = deploy(tmp_path / name, *asked[1:], cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert ran.document["chosen"] == LITERT
    only_kept(device)
    assert not list((device.root / "data").rglob("injected"))
    assert not list(tmp_path.rglob("injected"))


# --- Refused before anything long -----------------------------------------------------------------


@BOTH
def test_what_an_emulator_cannot_show(device: Phone | Board, few: Path, tmp_path: Path) -> None:
    for budget in (("--max-latency", "20ms"), ("--max-memory", "64MB")):
        asked = words(device, target(tmp_path, device), tmp_path / "out", few)
        ran = deploy(*asked, *budget)
        assert "cannot be judged on an emulated device" in failed(ran)
        assert "converting" not in ran.err
    assert not (tmp_path / "out").exists()
    left_clean(device)


@PHONE
def test_a_phone_that_is_not_fit(device: Phone, few: Path, tmp_path: Path) -> None:
    asked = words(device, target(tmp_path, device), tmp_path / "out", few)
    battery, thermal = "/system/etc/dumpsys/battery", "/system/etc/dumpsys/thermalservice"
    for file, old, new, said in (
        (thermal, "Thermal Status: 0", "Thermal Status: 3", "thermal status 3, severe"),
        (battery, "temperature: 250", "temperature: 460", "its battery has 46.0 degrees"),
    ):
        device.replace(file, old, new)
        message = failed(deploy(*asked))
        assert "is not fit to be measured on" in message and said in message
        device.replace(file, new, old)
    said = "echo '/dev/block/dm-5 52000000 51999000 1000 100% /data'\n"
    # `timeout` would run busybox's own df.
    for program, script in (("df", said), ("timeout", "exit 125\n")):
        path = device.root / "system/bin" / program
        path.unlink()
        path.write_text(f"#!/system/bin/sh\n{script}")
        path.chmod(0o755)
    assert "1.0 MB of storage are free where 300.0 MB are needed" in failed(deploy(*asked))
    left_clean(device)


@PHONE
def test_a_phone_that_is_charged(device: Phone, few: Path, tmp_path: Path) -> None:
    battery = "/system/etc/dumpsys/battery"
    device.replace(battery, "USB powered: false", "USB powered: true")
    device.replace(battery, "status: 4", "status: 2")
    device.replace(battery, "level: 100", "level: 9")
    asked = words(device, target(tmp_path, device), tmp_path / "out", few)
    ran = deploy(*asked, "--dry-run")
    assert ran.code == 0, ran.err
    warnings = [said for said in ran.document["data"]["warnings"] if address(device) in said]
    assert any("charging" in said and "USB" in said for said in warnings), warnings
    assert any("9 %" in said or "9%" in said for said in warnings), warnings
    state = ran.document["device"]["state"]
    assert (state["battery_percent"], state["charging"]) == (9, True)
    assert left(device) == []


@BOARD
def test_a_board_that_is_throttled(device: Board, few: Path, tmp_path: Path) -> None:
    program = device.root / "usr/bin/vcgencmd"
    program.write_text("#!/bin/sh\n[ $1 = get_throttled ] && echo throttled=0x50005\n")
    program.chmod(0o755)
    message = failed(deploy(*words(device, target(tmp_path, device), tmp_path / "out", few)))
    assert "it is slowed down now (under-voltage, throttled)" in message


@BOTH
def test_another_architecture(device: Phone | Board, few: Path, tmp_path: Path) -> None:
    message = failed(deploy(*words(device, "x86-64", tmp_path / "out", few)))
    assert "is aarch64" in message and "the target x86-64 needs x86_64" in message
    left_clean(device)


@PHONE
def test_a_phone_of_another_abi(device: Phone, few: Path, tmp_path: Path) -> None:
    """As its own programs say it, which a property cannot gainsay: an x86 phone that translates
    ARM programs lists their ABIs, too."""
    od = device.root / "system/bin/od"
    od.unlink()
    head = "7f 45 4c 46 02 01 01 00 00 00 00 00 00 00 00 00 02 00 3e 00"
    od.write_text(f"#!/system/bin/sh\necho ' {head}'\n")
    od.chmod(0o755)
    device.replace("/system/etc/properties", "abilist=arm64-v8a", "abilist=x86_64,arm64-v8a")
    message = failed(deploy(*words(device, "android-arm64", tmp_path / "out", few)))
    assert "is x86_64 (x86_64, arm64-v8a); the target android-arm64 needs aarch64" in message
    left_clean(device)


@pytest.mark.parametrize(
    ("hostile", "code"),
    [
        ("ssh://-oProxyCommand=x@h", 2),
        ("ssh://u@h/path", 2),
        ("ssh://h;reboot", 2),
        ("ssh://-h", 2),
        ("telnet://h", 2),
        ("-oProxyCommand=x", 2),
    ],
)
def test_hostile_addresses(hostile: str, code: int, few: Path, tmp_path: Path) -> None:
    asked = (MODEL, "--target", "linux-arm64", f"--device={hostile}", "--data", few, "--json")
    failed(deploy(*asked, cwd=tmp_path), code)


@PHONE
def test_phones_that_cannot_be_used(
    device: Phone, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = words(device, target(tmp_path, device), tmp_path / "out", few)
    hostile = [word if word != address(device) else "adb:-s" for word in asked]
    assert "adb sees no device -s; attached: 127.0.0.1" in failed(deploy(*hostile))
    device.faults(features="cmd")
    device.connect()
    message = failed(deploy(*asked))
    assert "Android 7 or newer is needed" in message
    device.faults(auth="never", features=adbd.FEATURES)
    device.connect(ready=False)
    wait_for(lambda: device.state() == "unauthorized", "adb says so")
    assert "is not ready: unauthorized: unlock it" in failed(deploy(*asked))
    device.run("disconnect")
    nobody = [word if word != address(device) else "adb" for word in asked]
    assert "adb sees no device: plug one in" in failed(deploy(*nobody))
    assert "attached: none" in failed(deploy(*asked))
    monkeypatch.setenv("ADB", "/no/such/adb")
    assert "$ADB is /no/such/adb, which is no program" in failed(deploy(*asked))
    device.faults(**dataclasses.asdict(adbd.Faults()))
    monkeypatch.setenv("ADB", str(device.adb))
    device.connect()
    monkeypatch.setenv("ANDROID_SERIAL", device.serial)
    assert deploy(*nobody, "--dry-run").document["device"]["address"] == address(device)
    left_clean(device)


@BOARD
def test_boards_that_cannot_be_used(device: Board, few: Path, tmp_path: Path) -> None:
    asked = words(device, target(tmp_path, device), tmp_path / "out", few)
    device.change_host_key()
    assert "its host key is not the one in known_hosts" in failed(deploy(*asked))
    device.forget()
    assert "its host key is unknown: connect once by hand" in failed(deploy(*asked))
    away = [f"ssh://u@127.0.0.1:{free_port()}" if w == address(device) else w for w in asked]
    assert "Connection refused" in failed(deploy(*away))
    device.trust()
    left_clean(device)


@BOTH
def test_a_device_in_use(device: Phone | Board, few: Path, tmp_path: Path) -> None:
    transport = (
        sshs.choose(device.address) if isinstance(device, Board) else adbs.choose(device.serial)
    )
    with contextlib.closing(transport):
        mine = Folder(transport)
        try:
            before = left(device)
            aim = target(tmp_path, device, ("litert",))
            message = failed(deploy(*words(device, aim, tmp_path / "out", few)))
            assert "in use by another run of onmetal (" in message
            assert left(device) == before
        finally:
            mine.close(keep=False)
    left_clean(device)


# --- What fails on the way ------------------------------------------------------------------------


@PHONE
def test_one_candidate_crashes(device: Phone | Board, few: Path, tmp_path: Path) -> None:
    """All runners of one runtime are killed as they come, as by a phone that is short of memory."""

    def kill() -> None:
        for process in runners(device, "onnxruntime"):
            process.kill()

    with whenever(kill):
        ran = deploy(*words(device, target(tmp_path, device), tmp_path / "out", few))
    assert ran.code == 0, ran.err
    found = candidates(ran.document)
    assert found[ONNXRUNTIME]["status"] == "failed"
    # The second is of a shell that was killed before it had become the runner.
    reasons = ("was killed (SIGKILL): out of memory?", "was cut: Killed")
    assert any(reason in found[ONNXRUNTIME]["reason"] for reason in reasons)
    assert found[LITERT]["status"] == "chosen" and found[LITERT]["latency_ms"]
    assert deploy("verify", tmp_path / "out").code == 0
    only_kept(device)


@PHONE
def test_one_candidate_hangs(
    device: Phone, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((agree, "LIMIT_S"), (reached, "START_S")):
        monkeypatch.setattr(module, name, 15.0)  # a busy machine needs some
    stopped: list[psutil.Process] = []

    def stop() -> None:
        for process in runners(device, "onnxruntime"):
            process.suspend()
            stopped.append(process)

    request = Request(
        models=(MODEL,),
        target=str(target(tmp_path, device)),
        data=str(few),
        device=address(device),
        out=tmp_path / "out",
        mode="quick",
    )
    with (tmp_path / "progress").open("w") as stream, whenever(stop):
        report = run.deploy(request, Progress(7, stream))
    found = candidates(plain(report.document))
    assert stopped and found[ONNXRUNTIME]["status"] == "failed"
    assert "in time and was ended" in found[ONNXRUNTIME]["reason"]
    assert found[LITERT]["status"] == "chosen" and found[LITERT]["latency_ms"]
    assert (tmp_path / "out/manifest.json").exists()
    only_kept(device)
    assert not any(process.is_running() for process in stopped)


@BOARD
def test_every_candidate_crashes(device: Phone | Board, few: Path, tmp_path: Path) -> None:
    def crash() -> None:
        for process in runners(device):
            process.send_signal(signal.SIGSEGV)

    with whenever(crash):
        ran = deploy(*words(device, target(tmp_path, device), tmp_path / "out", few))
    message = failed(ran)
    assert "every candidate failed" in message and "crashed (SIGSEGV)" in message
    found = candidates(ran.document)
    assert {entry["status"] for entry in found.values()} == {"failed"}
    assert not (tmp_path / "out").exists()
    left_clean(device)


@PHONE
def test_the_disk_is_full_for_one(device: Phone, few: Path, tmp_path: Path) -> None:
    device.faults(quota=15_000_000)

    def make_room() -> None:
        """What did not fit was removed, so that there is room again."""
        broken = [push.path for push in device.report().pushed if not push.complete]
        if broken and not (device.root / broken[0].lstrip("/")).exists():
            device.faults(quota=None)

    with whenever(make_room):
        ran = deploy(*words(device, target(tmp_path, device), tmp_path / "out", few))
    assert ran.code == 0, ran.err
    found = candidates(ran.document)
    assert found[ONNXRUNTIME]["status"] == "failed"
    assert "No space left on device" in found[ONNXRUNTIME]["reason"]
    assert found[LITERT]["status"] == "chosen"
    only_kept(device)


@PHONE
def test_the_disk_is_full(device: Phone, few: Path, tmp_path: Path) -> None:
    device.faults(quota=1_000_000)
    aim = target(tmp_path, device, ("litert",))
    ran = deploy(*words(device, aim, tmp_path / "out", few))
    assert "No space left on device" in failed(ran)
    left_clean(device)


@PHONE
def test_the_line_is_cut_amid_a_push(device: Phone, few: Path, tmp_path: Path) -> None:
    """It comes back at once, as a loose plug does."""
    device.faults(cut_after_pushed=3_000_000, keep_partial=True)
    aim = target(tmp_path, device, ("litert",))
    ran = deploy(*words(device, aim, tmp_path / "out", few))
    assert "`adb push` failed" in failed(ran)
    device.connect()
    left_clean(device)


@BOTH
def test_the_line_is_cut_amid_a_run(device: Phone | Board, few: Path, tmp_path: Path) -> None:
    """For good: who is asked later is not there either."""

    def cut() -> None:
        if runners(device):
            if isinstance(device, Phone):
                device.faults(refuse=True)
            else:
                device.forget()
            device.cut()

    with whenever(cut):
        ran = deploy(*words(device, target(tmp_path, device), tmp_path / "out", few))
    message = failed(ran)
    assert f"the line to {address(device)} was cut" in message
    assert {entry["status"] for entry in candidates(ran.document).values()} == {"failed"}
    if isinstance(device, Phone):
        device.faults(refuse=False)
        device.connect()
    else:
        device.trust()
    left_clean(device)


@BOTH
def test_the_line_is_cut_once(device: Phone | Board, few: Path, tmp_path: Path) -> None:
    """It comes back: what was being measured fails, and whatever the others do, nothing stays."""
    once = threading.Event()

    def cut() -> None:
        if not once.is_set() and runners(device, "litert"):
            once.set()
            device.cut()

    with whenever(cut):
        ran = deploy(*words(device, target(tmp_path, device), tmp_path / "out", few))
    assert once.is_set()
    assert "was cut" in candidates(ran.document)[LITERT]["reason"]
    if isinstance(device, Phone):
        device.connect()
    if ran.code == 0:
        only_kept(device)
    else:
        failed(ran)
        left_clean(device)


@pytest.mark.parametrize(
    ("device", "number"),
    [
        (CLIENTS[0], signal.SIGINT),
        (CLIENTS[0], signal.SIGTERM),
        *((name, signal.SIGKILL) for name in (*CLIENTS, "board")),
        ("board", signal.SIGINT),
    ],
    indirect=["device"],
)
def test_an_interrupted_deployment(
    device: Phone | Board, number: signal.Signals, few: Path, tmp_path: Path
) -> None:
    asked = words(device, target(tmp_path, device, ("litert",)), tmp_path / "out", few)
    with subprocess.Popen(
        [sys.executable, "-m", "onmetal.cli", *map(str, asked)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_for(lambda: runners(device) or process.poll() is not None, "it runs", 60)
            assert process.poll() is None
            process.send_signal(number)
            code = process.wait(40)
        finally:
            process.kill()
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    left_clean(device)


def test_a_device_is_needed(few: Path, tmp_path: Path) -> None:
    for aim in ("android-arm64", "linux-arm64"):
        ran = deploy(MODEL, "--target", aim, "--data", few, "--json", cwd=tmp_path)
        assert f"the target {aim} needs a device" in failed(ran)
