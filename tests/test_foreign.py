"""Files of a known kind that are no models: each is named, with what to do, and none is run."""

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onmetal.converters.torch_export import checks
from onmetal.deploy.foreign import what_is
from tests.conftest import deploy_here as deploy

LINES = (
    "model.eval(); program = torch.export.export(model, (example,)); "
    "torch.export.save(program, 'model.pt2')"
)
HEADER = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()


class Harm:
    """A pickle of it makes a folder, once it is loaded."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


def zipped(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_pkl", ".pkl"), data)
    return content.getvalue()


def tarred(data: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo("model.pkl")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return content.getvalue()


def test_pytorch_s_own_files_are_told_apart(of_torch: Path, refused: Callable[..., str]) -> None:
    for name, kind in (
        ("whole.pt", "a zip archive of torch.save, a state dict or a whole model"),
        ("weights.pth", "a zip archive of torch.save, a state dict or a whole model"),
        ("old.bin", "a Python pickle, as torch.save"),
        ("script.pt", "TorchScript (torch.jit.save)"),
        ("weights.safetensors", "a safetensors file: weights without the model"),
    ):
        said = refused(of_torch / name)
        assert f"this is {kind}" in said and LINES in said


KINDS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "zip": (lambda harm: zipped(model__data_pkl=harm), "torch.save"),
    "TorchScript": (lambda harm: zipped(m__constants_pkl=harm, m__data_pkl=harm), "TorchScript"),
    "code alone": (lambda harm: zipped(m__code__net=b"import os", m__data_pkl=harm), "TorchScript"),
    "tar": (tarred, "a tar archive"),
    "gzip": (gzip.compress, "compressed by gzip"),
    "some zip": (lambda harm: zipped(other=harm), "a zip archive of no known model"),
    "GGUF": (lambda harm: b"GGUF\x03\0\0\0" + harm, "a GGUF file"),
    "safetensors": (
        lambda harm: len(HEADER).to_bytes(8, "little") + HEADER + harm,
        "a safetensors file",
    ),
    "Git LFS": (lambda harm: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
} | {
    f"pickle of protocol {protocol}": (lambda harm: harm, "a Python pickle")
    for protocol in range(2, 6)
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_with_an_effect_is_not_run_in_any_container(kind: str, tmp_path: Path) -> None:
    contain, said = KINDS[kind]
    protocol = int(kind[-1]) if kind[-1].isdigit() else 4
    path = tmp_path / "model.bin"
    path.write_bytes(contain(pickle.dumps(Harm(tmp_path / "harm"), protocol)))
    ran = deploy(path, "--target", "x86-64", "--dry-run", "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, "")
    assert str(path) in ran.err and said in ran.err and "Traceback" not in ran.err
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.bin"}


def test_a_pickle_among_the_arrays_of_data_is_not_run(of_torch: Path, tmp_path: Path) -> None:
    arrays = np.array([Harm(tmp_path / "harm")], dtype=object)
    np.savez(tmp_path / "data.npz", image=arrays, y=np.zeros(1, np.int64))
    model = Path(__file__).parent.parent / "examples/digits/digits_cnn.onnx"
    ran = deploy(
        *(model, "--target", "x86-64", "--dry-run", "--data", tmp_path / "data.npz"),
        *("--out", tmp_path / "out"),
    )
    assert ran.code == 2 and "object" in ran.err
    assert {entry.name for entry in tmp_path.iterdir()} == {"data.npz"}
    path = tmp_path / "arrays.npz"
    np.savez(path, x=np.zeros(3))
    assert "which --data takes" in deploy("inspect", path).err


@pytest.mark.parametrize("length", [0, 1, 10**6, 1 << 62])
def test_eight_bytes_that_are_no_length_of_a_header(length: int, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(length.to_bytes(8, "little") + b"{" + bytes(100))
    assert what_is(path, path.read_bytes()) is None


def test_the_lines_that_export_are_one_text() -> None:
    assert LINES in checks.EXPORT
