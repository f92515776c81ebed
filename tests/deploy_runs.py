"""`deploy` on the example in this process, measuring for an instant, in an empty folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onmetal import cli
from tests import onnx_models
from tests.conftest import DIGITS, FLOAT

MODEL = DIGITS / "digits_cnn.onnx"
DATA = DIGITS / "digits.npz"
CALIBRATION = DIGITS / "calibration.npz"

BF16 = {"avx512_bf16", "amx_bf16"}
FP16 = {"avx512_fp16", "amx_fp16"}

Document = dict[str, Any]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with noise on the weights of its last layer: clearly less accurate."""
    model = onnx.load_model(str(MODEL))
    (last,) = (t for t in model.graph.initializer if list(t.dims) == [10, 80])
    values = numpy_helper.to_array(last)
    noise = np.random.default_rng(0).normal(0, 3 * values.std(), values.shape)
    last.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), last.name))
    return onnx_models.save(model, tmp_path_factory.mktemp("noisy") / "noisy.onnx")


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> Callable[..., tuple[int, Document]]:
    """`deploy WORDS --json` in this process, in an empty folder, measuring for an instant."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def called(*words: str | Path) -> tuple[int, Document]:
        code = cli.main([*map(str, words), "--json"])
        shown = capsys.readouterr()
        found: Document = json.loads(shown.out)
        assert found.get("error", {}).get("code", 0) == code
        return code, found

    return called


Run = Callable[..., tuple[int, Document]]
FULL: tuple[str | Path, ...] = (MODEL, "--target", "x86-64", "--data", DATA)
PLAIN: tuple[str | Path, ...] = (*FULL, *FLOAT)
STILL: tuple[str | Path, ...] = (*PLAIN, "--no-device")
ONE: tuple[str | Path, ...] = (
    *(MODEL, "--target", "x86-onnxruntime", "--data", DATA, "--recipes", "fp32", "--no-device"),
)
"""A single candidate, where it does not matter which."""


def candidates(found: Document) -> dict[str, Document]:
    return {entry["name"]: entry for entry in found["candidates"]}


def statuses(found: Document) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in found["candidates"]}


@pytest.fixture(scope="session")
def flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next(line for line in lines if line.startswith("flags")).partition(":")[2].split())


def raw_samples(found: Document) -> dict[str, np.ndarray]:
    """Nanoseconds by candidate; of fresh blocks by `again/…` and `rejected/pick/…`."""
    parts: dict[str, list[np.ndarray]] = {}
    with np.load(Path(found["bundle"]) / "measurements.npz") as raw:
        for name in raw.files:
            parts.setdefault(name.rsplit("/", 2)[0], []).append(raw[name])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def tried(document: Document) -> list[Document]:
    found = [e for e in document["candidates"] if e["status"] in ("chosen", "ok", "over-budget")]
    assert {"fp32@onnxruntime", "fp32@openvino"} <= {entry["name"] for entry in found}
    return found
