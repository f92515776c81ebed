"""Nothing that onmetal or a bundle runs writes to the user's home or looks up a host.

Both runtimes do, left to themselves: their telemetry. The kernel's own record (strace) tells.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec import Struct

from onmetal.runtimes import running
from tests import onnx_models
from tests.arm64 import needs
from tests.conftest import DIGITS, ROOT

CALLS = (
    "trace=%network,open,openat,openat2,creat,mkdir,mkdirat,unlink,unlinkat,rmdir,rename,renameat,"
    "renameat2,link,linkat,symlink,symlinkat,truncate,mknod,mknodat,chmod,fchmodat"
)
CHANGES = re.compile(
    r"\b(?:open|openat|openat2)\(.*(?:O_WRONLY|O_RDWR|O_CREAT)"
    r"|\b(?:creat|mkdir|mkdirat|unlink|unlinkat|rmdir|rename|renameat|renameat2|link|linkat|symlink"
    r"|symlinkat|truncate|mknod|mknodat|chmod|fchmodat)\("
)
LOOKS_UP = re.compile(
    r"AF_INET"
    r'|sun_path="[^"]*(?:nscd|systemd/resolve|avahi|sssd)[^"]*"'
    r'|"/etc/(?:resolv\.conf|hosts|gai\.conf|host\.conf)"'
)
KNOWN_TO_SILENCE = re.compile(
    r"^(?:CI|TF_BUILD|JENKINS_URL|GITLAB_CI|GITHUB_.*|BUILD_.*|XDG_.*|ORT_.*)$"
)
"""Variables that switch telemetry off or send elsewhere what it writes: users have none of them."""


class Seen(Struct, frozen=True):
    """What a command and all its children did."""

    writes: list[str]
    """Calls that change something under the home folder."""
    lookups: list[str]
    """Calls that reach for a host, or ask for one's address."""
    left: list[str]
    """What lies in the home folder and the folder for temporary files afterwards."""


def observe(command: list[str | Path], folder: Path) -> Seen:
    """Run a command as a user whose home folder is empty, in `folder`/work."""
    needs("strace", "strace")
    home, temporary, work = (folder / name for name in ("home", "temporary", "work"))
    for place in (home, temporary, work):
        place.mkdir()
    log = folder / "strace.log"
    variables = {k: v for k, v in os.environ.items() if not KNOWN_TO_SILENCE.match(k)}
    options = ["-f", "-y", "-qq", "-s", "4096", "--seccomp-bpf", "-o", str(log), "-e", CALLS]
    done = subprocess.run(
        ["strace", *options, *map(str, command)],
        env=variables
        | {
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "ONMETAL_HOME": str(folder / "onmetal"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        cwd=work,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    lines = log.read_text(errors="replace").splitlines()
    assert any("openat(" in line for line in lines), "strace saw nothing"
    return Seen(
        writes=[line for line in lines if CHANGES.search(line) and str(home) in line],
        lookups=[line for line in lines if LOOKS_UP.search(line)],
        left=sorted(str(path) for place in (home, temporary) for path in place.rglob("*")),
    )


def assert_quiet(seen: Seen) -> None:
    assert seen.writes == []
    assert seen.lookups == []
    assert seen.left == []


DEPLOY = (sys.executable, "-m", "onmetal.cli")
BRIEF = (sys.executable, "-P", ROOT / "tests/brief.py")
MODEL = DIGITS / "digits_cnn.onnx"


def test_a_whole_deployment_is_quiet(tmp_path: Path) -> None:
    words = (MODEL, "--target", "x86-64", "--data", DIGITS / "digits.npz", "--quick")
    each = ("--recipes", "fp32,int8-s8s8,int8-nncf,int8-fast")  # one of every method
    seen = observe([*BRIEF, *words, *each, "--out", "out"], tmp_path)
    assert (tmp_path / "work" / "out" / "measurements.npz").is_file()
    manifest = json.loads((tmp_path / "work" / "out" / "manifest.json").read_text())
    made = {entry["name"] for entry in manifest["candidates"] if entry["sha256"]}
    assert {"int8-s8s8@onnxruntime", "int8-s8s8@openvino", "int8-nncf@openvino"} <= made
    assert_quiet(seen)


def test_quantizing_the_weights_of_matmuls_is_quiet(tmp_path: Path) -> None:
    onnx_models.save(onnx_models.dense(features=128, classes=64), tmp_path / "dense.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((8, 128), np.float32))
    words = (tmp_path / "dense.onnx", "--target", "x86-64", "--no-device", "--out", "out")
    each = ("--calibration-data", tmp_path / "x.npz", "--recipes", "wi8,int8-dynamic")
    seen = observe([*DEPLOY, *words, *each], tmp_path)
    manifest = json.loads((tmp_path / "work" / "out" / "manifest.json").read_text())
    made = {entry["name"] for entry in manifest["candidates"] if entry["sha256"]}
    assert {"wi8@onnxruntime", "wi8@openvino", "int8-dynamic@onnxruntime"} <= made
    assert_quiet(seen)


def test_bench_is_quiet(tmp_path: Path) -> None:
    assert_quiet(observe([*DEPLOY, "bench", MODEL, "--quick"], tmp_path))


LONG = """
import runpy, sys, time
sys.argv = ["run.py"]
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as ended:
    assert not ended.code
time.sleep({seconds})
"""
"""Telemetry is sent after a while: a user's program that loads the bundle stays up."""


@pytest.mark.parametrize(("runtime", "seconds"), [("onnxruntime", 12), ("openvino", 1)])
def test_a_bundle_is_quiet(
    runtime: str, seconds: int, bundles: dict[str, Path], tmp_path: Path
) -> None:
    path = str(bundles[runtime] / "run.py")
    program = LONG.format(path=path, seconds=seconds)
    assert_quiet(observe([sys.executable, "-c", program], tmp_path))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_bundle_run_by_hand_is_quiet(
    runtime: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    assert_quiet(observe([sys.executable, bundles[runtime] / "run.py"], tmp_path))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_verifying_a_bundle_is_quiet(
    runtime: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    assert_quiet(observe([*DEPLOY, "verify", bundles[runtime], "--run"], tmp_path))


# --- the detector sees what it is there for


def test_onnxruntime_left_to_itself_writes_to_the_home_folder(tmp_path: Path) -> None:
    program = f"""
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(MODEL)!r}, providers=["CPUExecutionProvider"])
session.run(None, {{"image": np.zeros((1, 1, 8, 8), np.float32)}})
"""
    seen = observe([sys.executable, "-c", program], tmp_path)
    assert seen.writes
    assert any("onnxruntime" in path for path in seen.left)


def test_openvino_left_to_itself_looks_up_a_host(tmp_path: Path) -> None:
    seen = observe([sys.executable, "-c", "import openvino"], tmp_path)
    assert seen.writes
    assert seen.lookups
    assert any("intel" in path for path in seen.left)


def test_the_runners_are_cured_before_the_import() -> None:
    for runtime, cure in (
        ("onnxruntime", "ORT_DISABLE_TELEMETRY"),
        ("openvino", "openvino_telemetry"),
    ):
        text = running.program(runtime).decode()
        found = re.search(rf"^ *import {runtime}$", text, re.MULTILINE)
        assert found and text.index(cure) < found.start()


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import pathlib; pathlib.Path.home().joinpath('file').touch()",
        "import pathlib; pathlib.Path.home().joinpath('folder').mkdir()",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', "
        "'import socket; socket.socket(socket.AF_INET6)'])",
    ],
)
def test_the_detector_sees_lookups_and_writes(program: str, tmp_path: Path) -> None:
    seen = observe([sys.executable, "-c", program], tmp_path)
    assert seen.writes or seen.lookups


def test_the_detector_sees_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    assert_quiet(observe([sys.executable, "-c", "import numpy, socket"], tmp_path))
