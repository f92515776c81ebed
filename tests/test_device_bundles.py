"""Bundles for phones and boards: what is in them, verification, and how they run there."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from onmetal.commands import bench
from onmetal.progress import Progress
from onmetal.records import plain
from onmetal.reports import text
from onmetal.texts.terminal import PLAIN
from tests import onnx_models
from tests.attached import MODEL, Capture, here, own_home
from tests.conftest import DIGITS, deploy
from tests.device_bundles import make
from tests.devices import Phone


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


@pytest.fixture(scope="session")
def made(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of the example for the targets. Copy one before changing anything in it."""
    top = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONMETAL_HOME", str(shared_home))
        for target in ("android-arm64", "linux-arm64"):
            make(MODEL, target, top / target, "--data", DIGITS / "digits.npz")
    return {path.name: path for path in top.iterdir()}


@pytest.fixture
def android(made: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle for phones to do harm to."""
    return Path(shutil.copytree(made["android-arm64"], tmp_path / "bundle"))


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def sign(folder: Path) -> None:
    """Write SHA256SUMS anew, as whoever changed something on purpose would."""
    names = sorted(files(folder) - {"SHA256SUMS"})
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def verified(folder: Path, *words: str) -> None:
    ran = deploy("verify", folder, "--json", *words)
    assert ran.code == 0, ran.err
    assert ran.document["ok"] is True
    assert set(ran.document["checks"].values()) == {"ok"}


def refused(capsys: Capture, folder: Path) -> str:
    ran = here(capsys, "verify", str(folder), "--json")
    assert ran.code == 6, (ran.out, ran.err)
    assert ran.document["ok"] is False and ran.document["problems"]
    return "; ".join(ran.document["problems"])


def check_sums(folder: Path) -> None:
    """All files, also nested ones, and no others; `sha256sum` agrees."""
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert {line[66:] for line in lines} == files(folder) - {"SHA256SUMS"}
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_bundle_for_a_phone(made: dict[str, Path]) -> None:
    folder = made["android-arm64"]
    check_sums(folder)
    found = manifest_of(folder)
    artifact = found["run"]["files"][0]
    assets = folder / "android/src/main/assets"
    assert (assets / artifact).read_bytes() == (folder / artifact).read_bytes()
    for name in ("build.gradle.kts", "settings.gradle.kts", "src/main/AndroidManifest.xml"):
        assert (folder / "android" / name).is_file()
    assert "requirements.txt" not in files(folder)
    builds = found["builds"]
    assert builds["measured"] is None
    shipped = builds["shipped"]
    assert (shipped["kind"], shipped["path"]) == ("Android module", "android")
    assert shipped["measured"] is False
    assert shipped["artifact"] in (folder / "README.md").read_text()
    group, _, version = shipped["artifact"].rpartition(":")
    gradle = (folder / "android/build.gradle.kts").read_text()
    assert f"{group}:{version}" in gradle
    assert found["measured"] is False and "no device" in found["unmeasured"]
    verified(folder)


def test_a_bundle_for_a_board(made: dict[str, Path]) -> None:
    folder = made["linux-arm64"]
    check_sums(folder)
    found = manifest_of(folder)
    run = found["run"]
    package = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime"}[run["runtime"]]
    pin = f"{package}=={run['runtime_version']}"
    assert pin in (folder / "requirements.txt").read_text().splitlines()
    assert run["files"][0] in (folder / "example.c").read_text()
    assert any(name.startswith("example-golden/") for name in files(folder))
    assert not (folder / "android").exists()
    assert found["builds"]["measured"] is None
    shipped = found["builds"]["shipped"]
    assert (shipped["path"], shipped["artifact"]) == ("run.py", pin)
    # Nothing was run on a device, and nothing may say so.
    assert shipped["measured"] is False
    assert "as was measured" not in shipped["note"] + (folder / "README.md").read_text()
    verified(folder, "--run")


NESTED = "android/src/androidTest/assets/golden/input-0-1.bin"
KOTLIN = "android/src/main/kotlin/onmetal/digits_cnn/Model.kt"


def flip(folder: Path) -> str:
    content = bytearray((folder / NESTED).read_bytes())
    content[5] ^= 1
    (folder / NESTED).write_bytes(content)
    return f"{NESTED} was changed"


def add(folder: Path) -> str:
    (folder / "android/src/main/kotlin/More.kt").write_text("// more\n")
    return "android/src/main/kotlin/More.kt was added"


def remove(folder: Path) -> str:
    (folder / KOTLIN).unlink()
    return f"{KOTLIN} was removed or renamed"


def link(folder: Path) -> str:
    """To the same content."""
    (folder / KOTLIN).rename(folder.parent / "Model.kt")
    (folder / KOTLIN).symlink_to(folder.parent / "Model.kt")
    return f"{KOTLIN} is not a regular file"


def link_folder(folder: Path) -> str:
    (folder / "android/src/main").rename(folder.parent / "main")
    (folder / "android/src/main").symlink_to(folder.parent / "main")
    return "android/src/main was added"


def add_folder(folder: Path) -> str:
    (folder / "android/src/main/jniLibs/arm64-v8a").mkdir(parents=True)
    return "android/src/main/jniLibs/arm64-v8a was added"


def rename(folder: Path) -> str:
    (folder / NESTED).rename((folder / NESTED).with_name("input-0-9.bin"))
    return f"{NESTED} was removed or renamed"


@pytest.mark.parametrize("harm", [flip, add, remove, link, link_folder, add_folder, rename])
def test_a_changed_module_is_seen(
    harm: Callable[[Path], str], android: Path, capsys: Capture
) -> None:
    assert harm(android) in refused(capsys, android)


def half(folder: Path) -> tuple[Path, Path]:
    """A model that takes half floats, and data for it. -> their files"""
    model = onnx_models.build(
        [
            onnx_models.node("Cast", "x", "wide", to=TensorProto.FLOAT),
            onnx_models.node("Gemm", "wide weight bias", "scores"),
        ],
        [onnx_models.value("x", [1, 4], TensorProto.FLOAT16)],
        [onnx_models.value("scores", [1, 3])],
        [onnx_models.weights("weight", 4, 3), onnx_models.weights("bias", 3)],
    )
    data = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float16)
    np.savez(folder / "half.npz", x=data)
    return onnx_models.save(model, folder / "half.onnx"), folder / "half.npz"


@pytest.mark.parametrize(
    ("target", "what"),
    [("android-arm64", "an Android module"), ("linux-arm64", "an example in C")],
)
def test_what_cannot_be_written_is_said(target: str, what: str, tmp_path: Path) -> None:
    """The bundle is written all the same."""
    model, data = half(tmp_path)
    ran = make(model, target, tmp_path / "out", "--calibration-data", data)
    said = f"{what} was not written: "
    assert any(w.startswith(said) and "float16" in w for w in ran.document["data"]["warnings"])
    shipped = manifest_of(tmp_path / "out")["builds"]["shipped"]
    assert said in shipped["note"]
    assert said.lower() in (tmp_path / "out/README.md").read_text().lower()
    there = files(tmp_path / "out")
    assert not any(name.startswith(("android", "example")) for name in there)
    assert ("requirements.txt" in there) == (target == "linux-arm64")
    if target == "android-arm64":
        assert shipped["path"] is None
    check_sums(tmp_path / "out")
    verified(tmp_path / "out", "--run")


def test_golden_vectors_run_on_a_phone(
    phone: Phone,
    small_bundle: Path,
    runners: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own_home(monkeypatch, runners["gcc"])
    address = f"adb:{phone.serial}"
    verified(small_bundle, "--device", address)
    folder = tmp_path / "changed"
    shutil.copytree(small_bundle, folder)
    with np.load(folder / "golden.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = next(name for name in sorted(arrays) if name.startswith("out"))
    arrays[name] = arrays[name] + np.float32(0.5)
    np.savez(folder / "golden.npz", **arrays)
    sign(folder)
    ran = deploy("verify", folder, "--device", address, "--json")
    assert ran.code == 6, (ran.out, ran.err)
    assert ran.document["checks"]["files"] == "ok"
    assert ran.document["checks"]["golden"] == "failed"
    ran = deploy("verify", small_bundle, "--device", address, "--run", "--json")
    assert ran.code == 2 and "leave --device out" in ran.document["error"]["message"]
    assert not [name for name in phone.leftovers() if "run-" in name or "lock" in name]


def test_a_bundle_is_measured_on_a_phone(
    phone: Phone, small_bundle: Path, runners: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_home(monkeypatch, runners["gcc"])
    paths, target = (
        [small_bundle, small_bundle / "model.tflite"],
        str(small_bundle.parent / "small.toml"),
    )
    address, progress = f"adb:{phone.serial}", Progress(steps=2)
    report = bench.bench(paths, target, address, None, None, [], "quick", 0, None, progress)
    document = plain(report.document)
    assert document["device"]["emulated"] is True
    assert document["baseline"] == "bundle fp32@litert"
    assert [entry["name"] for entry in document["candidates"]] == [
        "bundle fp32@litert",
        "model.tflite fp32@litert",
    ]
    for entry in document["candidates"]:
        assert entry["status"] == "ok", entry["reason"]
        for figure in ("latency_ms", "throughput_per_s", "load_ms"):
            assert entry[figure]["basis"] == "emulated"
    assert any("emulated" in said for said in document["warnings"])
    lines = "\n".join(text.render(report, PLAIN))
    assert "bundle fp32@litert" in lines and "emulated" in lines
    assert not [name for name in phone.leftovers() if "run-" in name or "lock" in name]
