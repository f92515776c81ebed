"""Golden vectors and options of a stranger: read within bounds, or refused."""

import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onmetal import cli
from onmetal.bundles import golden, manifest
from onmetal.errors import UsageError
from onmetal.files.cache import sha256
from onmetal.records import Tensor
from onmetal.runtimes import misfits
from tests.bundles import RUNTIMES, refused, runner, verify
from tests.hostile_files import MIB, ODD, Capture, change, put

# --- golden vectors


def npz(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def head(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(118) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


VECTOR = npy(np.zeros((1, 1, 8, 8), np.float32))
LYING: dict[str, bytes] = {
    "longer than it is": head("(1, 1, 8, 8000)") + VECTOR[-256:],
    "shorter by a byte": VECTOR[:-1],
    "of negative axes": head("(-1, -1, -8, -8)") + VECTOR[-256:],
    "of enormous axes": head("(9223372036854775807, 9223372036854775807)"),
    "of a nested head": b"\x93NUMPY\1\0\xff\x7f" + b"(" * 0x7FFF,
    "of a head without end": b"\x93NUMPY\2\0\xff\xff\xff\x7f" + b" " * MIB,
    "of a head that calls": head("__import__('os').abort()"),
    "of objects": head("(1,)", "|O") + b"x" * 99,
    "of text": head("(1,)", "<U9") + b"x" * 99,
    "of zeros without end": head("(1, 33554432)") + bytes(128 * MIB),
    "empty": b"",
}


def golden_problems(folder: Path, document: dict[str, Any]) -> list[str]:
    try:
        described = golden.describe(folder, manifest.golden_bytes(document))
    except UsageError as error:
        return [str(error)]
    return manifest.untrue_vectors(document["run"], described, document["golden"]["vectors"])


@pytest.mark.parametrize("kind", LYING)
def test_golden_vectors_that_lie_are_not_read(
    kind: str, spoiled: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Neither by verify nor by run.py alone, as golden vectors or as a user's inputs."""
    document, _ = manifest.read(spoiled)
    npz(spoiled / "golden.npz", {"input/image/0.npy": LYING[kind]})
    assert golden_problems(spoiled, document)
    run, out = runner(spoiled), tmp_path / "out.npz"
    assert run.main([]) == 2
    said = capsys.readouterr().err
    assert "golden" in said or "input/image/0" in said
    npz(tmp_path / "in.npz", {"image.npy": LYING[kind]})
    assert run.main([str(tmp_path / "in.npz"), str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("run.py: ") and said.count("\n") == 1 and len(said) < 1000
    assert not out.exists()


def test_more_than_the_golden_vectors_is_refused(spoiled: Path) -> None:
    document, _ = manifest.read(spoiled)
    assert golden_problems(spoiled, document) == []
    with np.load(spoiled / "golden.npz") as stored:
        vectors = {f"{name}.npy": npy(stored[name]) for name in stored.files}
    path = spoiled / "golden.npz"
    npz(path, {**vectors, "more.npy": VECTOR})
    assert golden_problems(spoiled, document) == ["golden.npz holds 'more', which is no vector"]
    npz(path, {**vectors, "run.py": b"1"})
    assert "is no array" in golden_problems(spoiled, document)[0]
    npz(path, vectors, zipfile.ZIP_LZMA)
    assert "by a method" in golden_problems(spoiled, document)[0]
    vectors.pop("output/logits/1.npy")
    npz(path, vectors)
    assert golden_problems(spoiled, document) == ["golden vector 1 has no output 'logits'"]
    entry = b"PK\1\2" + bytes(24) + (5).to_bytes(2, "little") + bytes(16) + b"x.npy"
    entries = entry * 200_000
    end = b"PK\5\6" + bytes(4) + b"\xff\xff\xff\xff"
    end += len(entries).to_bytes(4, "little") + bytes(6)
    path.write_bytes(entries + end)
    assert "its directory is too long" in golden_problems(spoiled, document)[0]


def test_golden_vectors_have_a_bound() -> None:
    tensor = {"name": "x", "dtype": "float32", "shape": [1 << 20]}
    run = {"inputs": [tensor], "outputs": [tensor]}
    assert manifest.golden_bytes({"run": run, "golden": {"vectors": 2}}) == 16 * MIB + 64 * MIB
    tensor["shape"] = [1 << 28]
    assert manifest.golden_bytes({"run": run, "golden": {"vectors": 64}}) == 1024 * MIB + 64 * MIB


@pytest.mark.parametrize("kind", ["a FIFO", "a link to a device", "a folder"])
def test_run_py_opens_regular_files_only(
    kind: str, spoiled: Path, tmp_path: Path, capsys: Capture
) -> None:
    run, given = runner(spoiled), put(tmp_path, "in.npz")
    ODD[kind](given)
    assert run.main([str(given), str(tmp_path / "out.npz")]) == 2
    assert f"{given} cannot be read" in capsys.readouterr().err
    for name in ("golden.npz", "manifest.json"):
        ODD[kind](spoiled / name)
        assert run.main([]) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "edit",
    [
        {"classes": ["\x1b]0;x\x07", "b"]},
        {"classes": 3},
        {"preprocessing": ["x"]},
        {"preprocessing": {"\x1b[31m": 1}},
        {"run": {"inputs": [{"name": "a"}], "runtime_version": "1; curl x | sh"}},
        {"run": {"inputs": 3, "runtime_version": ["x"]}},
    ],
)
def test_what_run_py_prints_steers_no_terminal(edit: dict[str, Any], spoiled: Path) -> None:
    change(spoiled, lambda m: m.update(edit))
    run = runner(spoiled)
    said = run.usage() + run.needed()
    assert "\x1b" not in said and "\x07" not in said and "curl" not in said


# --- options

BEYOND: dict[str, list[dict[str, Any]]] = {
    "onnxruntime": [
        {"intra_op_num_threads": 2_000_000},
        {"intra_op_num_threads": -1},
        {"intra_op_num_threads": 10**30},
        {"intra_op_num_threads": True},
        {"inter_op_num_threads": 2_000_000},
        {"enable_mem_pattern": 7},
        {"session.intra_op.allow_spinning": "2"},
        {"session.intra_op_thread_affinities": "1" * 5000},
        {"session.intra_op_thread_affinities": "x"},
        {"session.dynamic_block_base": "99999"},
        {"graph_optimization_level": "x" * 99},
        *({name: "x"} for name in ("optimized_model_filepath", "profile_file_prefix")),
        *({name: 1} for name in ("enable_profiling", "session.load_model_format")),
        {"session.model_external_initializers_file_folder_path": "/"},
        {"ep.context_file_path": "/tmp/x"},
    ],
    "openvino": [
        {"INFERENCE_NUM_THREADS": 2_000_000},
        {"INFERENCE_NUM_THREADS": -1},
        {"INFERENCE_NUM_THREADS": "2000000"},
        {"NUM_STREAMS": 2_000_000},
        {"NUM_STREAMS": "x"},
        {"PERFORMANCE_HINT_NUM_REQUESTS": 1 << 40},
        {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 1e300},
        {"DYNAMIC_QUANTIZATION_GROUP_SIZE": -1},
        {"KV_CACHE_PRECISION": "/tmp/x"},
        *({name: "/tmp/x"} for name in ("CACHE_DIR", "WEIGHTS_PATH", "CONFIG_FILE", "LOG_LEVEL")),
    ],
    "litert": [
        {"num_threads": 2_000_000},
        {"num_threads": -1},
        {"num_threads": [1]},
        {"nhwc": ["x"] * 2000},
        {"nhwc": ["x" * 2000]},
        {"nhwc": "image"},
        {"stateful": 1},
    ],
    "tflm": [{"float16": [1]}, {"num_threads": 1}, {"arena_bytes": 1 << 50}],
}


@pytest.mark.parametrize("runtime", BEYOND)
def test_options_have_bounds(runtime: str) -> None:
    for options in BEYOND[runtime]:
        assert misfits(runtime, options), options


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_option_beyond_its_bound_is_not_run(
    runtime: str, bundles: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    folder = Path(shutil.copytree(bundles[runtime], tmp_path / runtime))
    change(folder, lambda m: m["run"]["options"].update(BEYOND[runtime][0]))
    assert next(iter(BEYOND[runtime][0])) in refused(folder, capsys)
    assert cli.main(["bench", str(folder)]) == 2


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "missing", ""])
def test_data_outside_the_bundle_is_not_opened(
    location: str, spoiled: Path, capsys: Capture
) -> None:
    path = spoiled / "model.onnx"
    model = onnx.load_model(str(path))
    tensor = model.graph.initializer[0]
    size = len(tensor.raw_data)
    put(spoiled.parent, "secret", bytes(size))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    change(spoiled, lambda m: m["digests"].update(artifact=sha256(path)))
    code, document = verify(spoiled, capsys)
    assert code == 6 and document["checks"]["tensors"] == "failed"
    assert "golden" not in document["checks"]


# --- names that are no UTF-8


def test_names_that_are_no_utf8(bundles: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(bundles["onnxruntime"], tmp_path / os.fsdecode(b"b\xff\x1b")))
    code, document = verify(folder, capsys)
    assert code == 0 and document["bundle"].endswith("b\ufffd\x1b")
    (folder / os.fsdecode(b"odd\xff\n.py")).write_text("")
    code, document = verify(folder, capsys)
    assert code == 6
    assert document["problems"] == ["odd\\udcff\n.py was added"]
    (folder / "manifest.json").unlink()
    (folder / "SHA256SUMS").unlink()
    assert verify(folder, capsys)[0] == 6
    (folder / "run.py").unlink()
    assert verify(folder, capsys)[0] == 2
    assert verify(folder / "missing", capsys)[0] == 2


def test_a_tensor_takes_what_its_shape_says() -> None:
    assert manifest.size_bytes(Tensor("x", "float16", (3, 5))) == 30
    assert manifest.size_bytes(Tensor("x", "bool", ())) == 1
