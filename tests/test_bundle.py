"""The bundle: what is in it, and that it runs on its own."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from onmetal import cli
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import quiet_environment
from onmetal.records import Candidate
from onmetal.reports import of_trials
from onmetal.reports.manifest_record import Run
from onmetal.runtimes import running, spec
from tests.bundles import ARTIFACT, MODEL, RUNTIMES, Capture, alone, make, runner
from tests.conftest import DIGITS

# --- what is in it


def test_an_unmeasured_bundle_holds_exactly_these_files(bundles: dict[str, Path]) -> None:
    for runtime, folder in bundles.items():
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            [*ARTIFACT[runtime], "README.md", "SHA256SUMS", "golden.npz", "manifest.json", "run.py"]
        )


def test_a_measured_bundle_holds_the_raw_samples_too(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    runtime = manifest["run"]["runtime"]
    assert sorted(path.name for path in bundle.iterdir()) == sorted(
        [
            *ARTIFACT[runtime],
            *("README.md", "SHA256SUMS", "golden.npz", "manifest.json", "run.py"),
            "measurements.npz",
        ]
    )


def test_files_are_readable_by_all_and_no_links(bundle: Path) -> None:
    for path in bundle.iterdir():
        assert not path.is_symlink()
        assert path.stat().st_mode & 0o777 == 0o644
        assert path.stat().st_nlink == 1


def test_sha256sum_agrees(bundle: Path) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"],
        cwd=bundle,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(list(bundle.iterdir())) - 1


def test_the_manifest_says_what_the_run_said(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    document = json.loads((bundle.parent / "digits.json").read_text())
    device = document["device"]
    assert (document["models"][0]["path"], device["address"]) == (str(MODEL), "local")
    document["models"][0]["path"] = MODEL.name
    document["data"]["source"] = "digits.npz"
    document["bundle"] = "digits"
    device["digest"] = manifest["device"]["digest"]
    assert {key: manifest[key] for key in document} == document


def test_the_manifest_has_digests_versions_and_indices(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    digests = manifest["digests"]
    assert digests["models"] == {MODEL.name: hashlib.sha256(MODEL.read_bytes()).hexdigest()}
    assert len(digests["data"]) == 64
    artifact = hashlib.sha256(
        b"".join((bundle / name).read_bytes() for name in manifest["run"]["files"])
    )
    assert digests["artifact"] == artifact.hexdigest()
    assert set(manifest["tools"]) >= {"onmetal", *RUNTIMES}
    assert manifest["evaluation_indices"] == [n for n in range(600) if n % 4 != 3]
    assert manifest["data"]["evaluation_samples"] == len(manifest["evaluation_indices"])
    assert manifest["run"]["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": [1, 1, 8, 8]}
    ]
    assert manifest["golden"]["vectors"] >= 1
    assert manifest["golden"]["tolerance"] > 0


def test_where_nothing_is_calibrated_all_of_the_data_is_evaluated(bundles: dict[str, Path]) -> None:
    for folder in bundles.values():
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["evaluation_indices"] == list(range(600))
        assert manifest["data"]["calibration_samples"] == 0


def test_the_readme_says_how_to_run_it(bundles: dict[str, Path]) -> None:
    for runtime, folder in bundles.items():
        text = (folder / "README.md").read_text()
        assert f"pip install numpy {spec(runtime).packages[0]}==" in text
        assert "python run.py" in text
        assert "image" in text


# --- that it runs on its own


def test_run_py_is_the_same_in_every_bundle_of_a_runtime(
    bundle: Path, bundles: dict[str, Path]
) -> None:
    for runtime, folder in bundles.items():
        assert (folder / "run.py").read_bytes() == running.program(runtime)
    runtime = json.loads((bundle / "manifest.json").read_text())["run"]["runtime"]
    assert (bundle / "run.py").read_bytes() == (bundles[runtime] / "run.py").read_bytes()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_run_py_runs_alone(runtime: str, bundles: dict[str, Path], tmp_path: Path) -> None:
    done = alone(bundles[runtime], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agree" in done.stdout
    assert "INFO" not in done.stderr  # which LiteRT's C++ prints
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"numpy", spec(runtime).packages[0].replace("-", "_")} <= {
        name.partition(".")[0] for name in imported
    }
    assert not {name for name in imported if name.partition(".")[0] == "onmetal"}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_run_py_gives_what_onmetals_runner_gives(
    runtime: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    folder = bundles[runtime]
    with np.load(DIGITS / "digits.npz") as data:
        image = np.ascontiguousarray(data["x"][7:8])
    np.savez(tmp_path / "in.npz", image=image)
    done = alone(folder, tmp_path, tmp_path / "in.npz", tmp_path / "out.npz")
    assert done.returncode == 0, done.stderr
    run = json.loads((folder / "manifest.json").read_text())["run"]
    np.savez(tmp_path / "feeds.npz", **{"0/image": image})  # type: ignore[arg-type]
    with Cache() as cache, Local(cache).worker() as worker:
        worker.call(
            "open",
            timeout_s=60,
            runtime=runtime,
            files=[str(folder / name) for name in run["files"]],
            options=run["options"],
            inputs=["image"],
            outputs=["logits"],
        )
        worker.run(tmp_path / "feeds.npz", tmp_path, timeout_s=60)
    ours = np.load(tmp_path / "0-0.npy")
    with np.load(tmp_path / "out.npz") as found:
        assert found.files == ["logits"]
        assert found["logits"].dtype == ours.dtype
        assert found["logits"].tobytes() == ours.tobytes()
    assert ours.shape == (1, 10)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_run_py_says_where_golden_vectors_disagree(
    runtime: str, copies: dict[str, Path], tmp_path: Path
) -> None:
    folder = copies[runtime]
    with np.load(folder / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["output/logits/0"] = arrays["output/logits/0"] + np.float32(1)
    np.savez(folder / "golden.npz", **arrays)
    done = alone(folder, tmp_path)
    assert done.returncode == 1
    assert "golden vector 0" in done.stdout


ONE = np.zeros((1, 1, 8, 8), np.float32)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "without the input": ({"picture": ONE}, "has no array 'image'; the model takes image, and the"),
    "of several samples": ({"image": np.zeros((3, 1, 8, 8), np.float32)}, "holds 3 samples, and"),
    "of another rank": ({"image": ONE[0]}, "has the shape [1, 8, 8], and must have [1, 1, 8, 8]"),
    "of another size": ({"image": ONE[..., :7]}, "has the shape [1, 1, 8, 7]"),
    "of doubles": ({"image": ONE.astype(np.float64)}, "is float64, and must be float32"),
    "of bytes": ({"image": ONE.astype(np.uint8)}, "is uint8, and must be float32"),
    "of objects": ({"image": np.array([{}], object)}, "cannot be read"),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_run_py_says_what_is_wrong_with_its_inputs(
    runtime: str, bundles: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    run, out = runner(bundles[runtime]), tmp_path / "out.npz"
    for number, (what, (arrays, part)) in enumerate(REFUSED.items()):
        given = tmp_path / f"{number}.npz"
        np.savez(given, **arrays)
        assert run.main([str(given), str(out)]) == 2, what
        said = capsys.readouterr().err
        assert part in said and said.startswith("run.py: ") and said.count("\n") == 1, what
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "0.npz").read_bytes()[:-30])
    np.save(tmp_path / "one.npy", ONE)
    for words, part in (
        ((tmp_path / "missing.npz", out), "missing.npz cannot be read: No such file"),
        ((tmp_path, out), "cannot be read: Is a directory"),
        ((tmp_path / "text.npz", out), "is no .npz file"),
        ((tmp_path / "cut.npz", out), "is no .npz file, or damaged"),
        ((tmp_path / "one.npy", out), "is no .npz file"),
        ((out,), "no argument, or two"),
        ((out, out, out), "no argument, or two"),
    ):
        assert run.main([str(word) for word in words]) == 2
        assert part in capsys.readouterr().err
    assert not out.exists()


def test_run_py_writes_outputs_whole_or_not_at_all(
    bundles: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    run, given = runner(bundles["onnxruntime"]), str(tmp_path / "in.npz")
    np.savez(given, image=np.asfortranarray(ONE.astype(">f4")), more=ONE)
    for place in (tmp_path / "no/such/out.npz", tmp_path, Path(os.devnull)):
        assert run.main([given, str(place)]) == 2
        assert f"{place} cannot be written" in capsys.readouterr().err
    assert Path(os.devnull).is_char_device()
    assert run.main([given, str(tmp_path / "plain")]) == 0  # and no .npz is added to the name
    with np.load(tmp_path / "plain") as written:
        assert written["logits"].shape == (1, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "plain"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_run_py_says_what_it_lacks(runtime: str, bundles: dict[str, Path]) -> None:
    """An interpreter without the packages: that of the machine, as people start it first."""
    bare = [sys.executable, "-I", "-S", str(bundles[runtime] / "run.py")]
    done = subprocess.run(bare, capture_output=True, text=True)
    version = json.loads((bundles[runtime] / "manifest.json").read_text())["run"]["runtime_version"]
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("run.py: ") and "Traceback" not in done.stderr
    assert f"pip install numpy {spec(runtime).packages[0]}=={version}" in done.stderr
    helped = subprocess.run([*bare, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and helped.stderr == ""
    assert "input 'image': float32 [1, 1, 8, 8]" in helped.stdout


def test_run_py_names_a_runtime_of_another_version(copies: dict[str, Path], tmp_path: Path) -> None:
    for folder in copies.values():
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["run"]["runtime_version"] = "0.0.1"
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assert alone(folder, tmp_path).returncode == 0  # it does what was expected all the same
        for name in manifest["run"]["files"]:
            (folder / name).write_bytes(b"no model")
        done = alone(folder, tmp_path)
        said = done.stderr.splitlines()[-1]
        assert done.returncode == 2 and "the model cannot be opened" in said, done.stderr
        assert "the bundle was made with 0.0.1" in said


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_run_py_says_where_the_library_for_c_is(
    runtime: str, bundles: dict[str, Path], capsys: Capture
) -> None:
    assert runner(bundles[runtime]).main(["--library"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


# --- what it says of pictures


def test_how_a_picture_becomes_an_input_is_kept(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (9, 9), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "data.toml").write_text(
        'crop = [8, 8]\nchannels = "L"\nscale = 0.0625\nmean = [0.5]\n'
    )
    out = tmp_path / "out"
    words = ("--target", "x86-onnxruntime", "--no-device", "--recipes", "fp32", "--out", str(out))
    assert cli.main([str(MODEL), "--calibration-data", str(folder), *words]) == 0
    capsys.readouterr()
    manifest = json.loads((out / "manifest.json").read_text())
    kept = manifest["preprocessing"]
    assert (kept["crop"], kept["channels"], kept["layout"]) == ([8, 8], "L", "NCHW")
    assert (kept["scale"], kept["mean"], kept["std"]) == (0.0625, [0.5], [1.0])
    assert (kept["size"], kept["dtype"], manifest["classes"]) == (None, "float32", None)
    text = (out / "README.md").read_text()
    assert "| scale | `0.0625` | each value x becomes (x * scale - mean) / std |" in text
    assert 'preprocessing channels = "L"' in runner(out).usage()


def test_other_data_has_no_preprocessing(bundles: dict[str, Path]) -> None:
    for folder in bundles.values():
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["preprocessing"] is None and manifest["classes"] is None
        assert "picture" not in (folder / "README.md").read_text()


# --- what is wrong with it is found before it appears


@pytest.mark.parametrize("fault", ["an option", "a shape", "an output"])
def test_a_bundle_that_would_not_verify_is_not_written(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def another(candidate: Candidate) -> Run:
        own = as_it_is(candidate)
        if fault == "an option":
            return replace(own, options={**own.options, "intra_op_num_threads": [1]})
        end = own.outputs[0]
        end = replace(end, shape=(1, 11)) if fault == "a shape" else replace(end, name="image")
        return replace(own, outputs=[end])

    as_it_is = of_trials.run
    monkeypatch.setattr(of_trials, "run", another)
    out = tmp_path / "out"
    words = ("--target", "x86-onnxruntime", "--no-device", "--recipes", "fp32", "--out", str(out))
    assert cli.main([str(MODEL), "--data", str(DIGITS / "digits.npz"), *words]) == 1
    said = capsys.readouterr().err
    assert "a defect of onmetal" in said and "the new bundle does not verify" in said
    assert list(tmp_path.iterdir()) == []


def test_golden_outputs_are_those_of_the_original(bundles: dict[str, Path], tmp_path: Path) -> None:
    code = f"""
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(MODEL)!r}, providers=["CPUExecutionProvider"])
for place in sys.argv[1:]:
    golden = np.load(place)
    for number in range(len(golden.files) // 2):
        found = session.run(None, {{"image": golden[f"input/image/{{number}}"]}})[0]
        np.testing.assert_allclose(golden[f"output/logits/{{number}}"], found, atol=1e-4)
"""
    places = [str(folder / "golden.npz") for folder in bundles.values()]
    done = subprocess.run(
        [sys.executable, "-c", code, *places],
        env=quiet_environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_same_command_gives_the_same_artifact(
    runtime: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    again = make(runtime, tmp_path / "home", tmp_path / "again")
    for name in (*ARTIFACT[runtime], "golden.npz", "run.py"):
        assert (again / name).read_bytes() == (bundles[runtime] / name).read_bytes(), name
