"""Verification: no change to a bundle goes unseen, and nothing of it is run."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onmetal.bundles import verify as verifying
from tests.bundles import ARTIFACT, RUNTIMES, Capture, change_manifest, refused, sign, verify
from tests.conftest import deploy

# --- verify


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_whole_bundle_is_verified(
    runtime: str, bundles: dict[str, Path], capsys: Capture
) -> None:
    code, found = verify(bundles[runtime], capsys)
    assert code == 0
    assert found["schema"] == 1
    assert found["bundle"] == str(bundles[runtime])
    assert found["ok"] is True
    assert found["problems"] == []
    assert found["chosen"] == f"fp32@{runtime}"
    assert set(found["checks"].values()) == {"ok"}
    assert "golden" in found["checks"]
    assert "run.py" not in found["checks"]
    code, found = verify(bundles[runtime], capsys, "--run")
    assert code == 0
    assert found["checks"]["run.py"] == "ok"


def test_a_measured_bundle_is_verified_and_left_as_it_was(bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (bundle, *bundle.iterdir())}
    ran = deploy("verify", bundle.name, "--run", cwd=bundle.parent)
    assert ran.code == 0, ran.err
    assert "golden" in ran.out
    assert {path: path.stat().st_mtime_ns for path in (bundle, *bundle.iterdir())} == before


FILES = ("README.md", "golden.npz", "manifest.json", "model.onnx", "run.py")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_is_seen(name: str, place: float, spoiled: Path, capsys: Capture) -> None:
    content = bytearray((spoiled / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (spoiled / name).write_bytes(content)
    assert f"{name} was changed" in refused(spoiled, capsys)


@pytest.mark.parametrize("place", range(0, 384, 31))
def test_one_flipped_bit_of_the_sums_is_seen(place: int, spoiled: Path, capsys: Capture) -> None:
    content = bytearray((spoiled / "SHA256SUMS").read_bytes())
    content[min(place, len(content) - 1)] ^= 1
    (spoiled / "SHA256SUMS").write_bytes(content)
    refused(spoiled, capsys)


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
def test_a_missing_file_is_named(name: str, spoiled: Path, capsys: Capture) -> None:
    (spoiled / name).unlink()
    assert name in refused(spoiled, capsys)


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
def test_a_renamed_file_is_named(name: str, spoiled: Path, capsys: Capture) -> None:
    (spoiled / name).rename(spoiled / f"{name}.old")
    assert name in refused(spoiled, capsys)


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
def test_a_link_in_place_of_a_file_is_named(
    name: str, spoiled: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.move(spoiled / name, tmp_path / name)
    (spoiled / name).symlink_to(tmp_path / name)
    assert name in refused(spoiled, capsys)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "__pycache__", "numpy.py"])
def test_an_added_file_is_named(name: str, spoiled: Path, capsys: Capture) -> None:
    if name == "__pycache__":
        (spoiled / name).mkdir()
    else:
        (spoiled / name).write_text("raise SystemExit(0)\n")
    assert f"{name} was added" in refused(spoiled, capsys, "--run")


def test_an_empty_sums_file_is_no_proof(spoiled: Path, capsys: Capture) -> None:
    (spoiled / "SHA256SUMS").write_text("")
    refused(spoiled, capsys)


def test_a_folder_among_the_files_is_no_bundle(spoiled: Path, capsys: Capture) -> None:
    (spoiled / "golden.npz").unlink()
    (spoiled / "golden.npz").mkdir()
    assert "golden.npz" in refused(spoiled, capsys)


# --- changed on purpose: the sums are right again


@pytest.mark.parametrize("words", [(), ("--run",)])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_another_run_py_is_never_executed(
    runtime: str, words: tuple[str, ...], copies: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    folder, sentinel = copies[runtime], tmp_path / "executed"
    text = (folder / "run.py").read_text()
    (folder / "run.py").write_text(f"open({str(sentinel)!r}, 'w')\n{text}")
    sign(folder)
    assert "run.py" in refused(folder, capsys, *words)
    assert not sentinel.exists()


@pytest.mark.parametrize("words", [(), ("--run",)])
@pytest.mark.parametrize("module", ["numpy", "json", "onnxruntime"])
def test_a_module_beside_run_py_is_never_executed(
    module: str, words: tuple[str, ...], spoiled: Path, tmp_path: Path, capsys: Capture
) -> None:
    sentinel = tmp_path / "executed"
    (spoiled / f"{module}.py").write_text(f"open({str(sentinel)!r}, 'w')\n")
    sign(spoiled)
    verify(spoiled, capsys, *words)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("runtime", "option"),
    [
        ("onnxruntime", "optimized_model_filepath"),
        ("onnxruntime", "enable_profiling"),
        ("onnxruntime", "profile_file_prefix"),
        ("onnxruntime", "session.load_model_format"),
        ("openvino", "CACHE_DIR"),
        ("openvino", "CONFIG_FILE"),
    ],
)
def test_an_unknown_option_is_not_handed_to_the_runtime(
    runtime: str, option: str, copies: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / "written"
    change_manifest(copies[runtime], lambda m: m["run"]["options"].update({option: str(target)}))
    assert option in refused(copies[runtime], capsys, "--run")
    assert not target.exists()


@pytest.mark.parametrize(
    "files", [["../model.onnx"], ["/etc/passwd"], ["missing.onnx"], [], ["."], [3], "model.onnx"]
)
def test_an_artifact_outside_the_bundle_is_not_opened(
    files: Any, spoiled: Path, capsys: Capture
) -> None:
    shutil.copyfile(spoiled / "model.onnx", spoiled.parent / "model.onnx")
    change_manifest(spoiled, lambda m: m["run"].update(files=files))
    assert "manifest.json" in refused(spoiled, capsys)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("schema", 2),
        ("schema", None),
        ("run", {}),
        ("run", []),
        ("golden", None),
        ("golden", {"vectors": 0, "tolerance": 1e-4}),
        ("golden", {"vectors": "1", "tolerance": 1e-4}),
        ("golden", {"vectors": [1], "tolerance": 1e-4}),
        ("golden", {"vectors": 1, "tolerance": None}),
        ("golden", {"vectors": 1, "tolerance": -1}),
        ("golden", {"vectors": 1, "tolerance": 1e9}),
        ("golden", {"vectors": 100, "tolerance": 1e-4}),
    ],
)
def test_a_changed_manifest_is_no_defect_of_ours(
    part: str, value: Any, spoiled: Path, capsys: Capture
) -> None:
    change_manifest(spoiled, lambda m: m.update({part: value}))
    refused(spoiled, capsys)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runtime", "tensorflow"),
        ("runtime", "openvino"),
        ("runtime", "../worker"),
        ("runtime", ["onnxruntime"]),
        ("options", []),
        ("options", {"intra_op_num_threads": "many"}),
        ("options", {"intra_op_num_threads": [1]}),
        ("options", {"execution_mode": "__class__"}),
        ("inputs", []),
        ("inputs", [{"name": "other"}]),
        ("inputs", ["image"]),
        ("inputs", [{"name": "image", "dtype": "float32", "shape": [1, 1, 8, 9]}]),
        ("inputs", [{"name": "image", "dtype": "float64", "shape": [1, 1, 8, 8]}]),
        ("inputs", [{"name": "image", "dtype": "float32", "shape": [1, 1, 8, 8]}] * 2),
        ("outputs", [{"name": "logits", "dtype": "float32", "shape": [10]}]),
        ("outputs", [{"name": "logits", "dtype": "int64", "shape": [1, 10]}]),
        ("outputs", [{"name": "other"}]),
        ("outputs", [{"name": 3}]),
    ],
)
def test_a_changed_way_to_run_is_seen(key: str, value: Any, spoiled: Path, capsys: Capture) -> None:
    change_manifest(spoiled, lambda m: m["run"].update({key: value}))
    refused(spoiled, capsys)


@pytest.mark.parametrize("value", [None, [], "x", {"onmetal": [1]}])
def test_another_run_py_with_a_strange_manifest_is_refused(
    value: Any, spoiled: Path, capsys: Capture
) -> None:
    (spoiled / "run.py").write_text("")
    change_manifest(spoiled, lambda m: m.update(tools=value))
    assert "run.py" in refused(spoiled, capsys)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 1}'])
def test_a_manifest_that_is_none_is_refused(content: bytes, spoiled: Path, capsys: Capture) -> None:
    (spoiled / "manifest.json").write_bytes(content)
    sign(spoiled)
    assert "manifest.json" in refused(spoiled, capsys)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("part", ["input/image/0", "output/logits/0"])
def test_changed_golden_vectors_disagree(
    runtime: str, part: str, copies: dict[str, Path], capsys: Capture
) -> None:
    folder = copies[runtime]
    with np.load(folder / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays[part] = arrays[part] + np.float32(0.1)
    np.savez(folder / "golden.npz", **arrays)
    sign(folder)
    assert "golden vector 0" in refused(folder, capsys)


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_unreadable_golden_vectors_are_refused(
    content: bytes, spoiled: Path, capsys: Capture
) -> None:
    (spoiled / "golden.npz").write_bytes(content)
    sign(spoiled)
    refused(spoiled, capsys)


def test_golden_vectors_that_are_pickles_are_not_loaded(
    spoiled: Path, tmp_path: Path, capsys: Capture
) -> None:
    sentinel = tmp_path / "unpickled"

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(sentinel),)

    with np.load(spoiled / "golden.npz") as golden:
        arrays: dict[str, Any] = {name: golden[name] for name in golden.files}
    arrays["output/logits/0"] = np.array([Trap()], object)
    np.savez(spoiled / "golden.npz", **arrays)
    sign(spoiled)
    refused(spoiled, capsys, "--run")
    assert not sentinel.exists()


def test_another_model_is_seen_by_its_digest_and_by_the_golden_vectors(
    spoiled: Path, capsys: Capture
) -> None:
    model = onnx.load_model(str(spoiled / "model.onnx"))
    (last,) = (t for t in model.graph.initializer if list(t.dims) == [10, 80])
    last.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(last), last.name))
    content = model.SerializeToString()
    (spoiled / "model.onnx").write_bytes(content)
    sign(spoiled)
    assert "artifact" in refused(spoiled, capsys)
    digest = hashlib.sha256(content).hexdigest()
    change_manifest(spoiled, lambda m: m["digests"].update(artifact=digest))
    assert "golden vector" in refused(spoiled, capsys)


def test_an_artifact_that_is_not_the_manifests_is_seen(spoiled: Path, capsys: Capture) -> None:
    model = onnx.load_model(str(spoiled / "model.onnx"))
    model.doc_string = "something else"
    (spoiled / "model.onnx").write_bytes(model.SerializeToString())
    sign(spoiled)
    assert "artifact" in refused(spoiled, capsys)


@pytest.mark.parametrize("value", ["image", [["image"]], {"image": 1}, ["image", "logits"]])
def test_channels_that_are_not_last_are_seen(
    value: Any, copies: dict[str, Path], capsys: Capture
) -> None:
    change_manifest(copies["litert"], lambda m: m["run"]["options"].update(nhwc=value))
    assert "manifest.json" in refused(copies["litert"], capsys)


def test_an_artifact_that_is_none_is_refused(copies: dict[str, Path], capsys: Capture) -> None:
    for runtime, folder in copies.items():
        (folder / ARTIFACT[runtime][-1]).write_bytes(b"no model")
        sign(folder)
        refused(folder, capsys)


# --- what is no bundle


def test_what_is_no_bundle_exits_2(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path, tmp_path / "empty", tmp_path / "missing", tmp_path / "notes.txt"):
        code, found = verify(place, capsys)
        assert code == 2
        assert found["error"]["code"] == 2
        assert str(place) in found["error"]["message"]


def test_a_report_is_no_bundle(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "report.json").write_text("{}")
    assert verify(tmp_path, capsys)[0] == 2


def test_no_byte_of_the_sums_can_be_changed_unseen(spoiled: Path, tmp_path: Path) -> None:
    sums = spoiled / "SHA256SUMS"

    def checked() -> list[str]:
        with tempfile.TemporaryDirectory(dir=tmp_path) as copy:
            return verifying._copy_files(spoiled, Path(copy))

    assert checked() == []
    content = sums.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 + 6 * (place % 2)
        sums.write_bytes(changed)
        assert checked(), place
    for other in (content[:-1], content + b"\n", content.replace(b"\n", b"\r\n")):
        sums.write_bytes(other)
        assert checked()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_golden_inputs_of_another_type_are_seen(
    runtime: str, copies: dict[str, Path], capsys: Capture
) -> None:
    folder = copies[runtime]
    with np.load(folder / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["input/image/0"] = arrays["input/image/0"].astype(np.float64)  # the very same numbers
    np.savez(folder / "golden.npz", **arrays)
    sign(folder)
    assert "golden vector 0 has for 'image' float64" in refused(folder, capsys)
