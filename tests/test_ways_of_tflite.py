"""TFLite files on runtimes that read other graphs: over ONNX, and by OpenVINO itself."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onmetal.converters.tflite import io
from onmetal.converters.tflite.ends import ends
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.writing import write
from tests.conftest import deploy_here as deploy
from tests.deploy_runs import Run
from tests.tflite_nets import STEPS, WIDTH, lstm, net


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized network whose inputs and outputs are quantized too."""
    path = tmp_path_factory.mktemp("integers") / "integers.tflite"
    quantized = net("s8")
    io.integers(quantized)
    path.write_bytes(write(quantized))
    return path


@pytest.fixture
def samples(tmp_path: Path) -> Callable[[Path], Path]:
    """Random real numbers for a file's inputs."""

    def called(model: Path) -> Path:
        random = np.random.default_rng(0)
        data = tmp_path / "data.npz"
        shapes = {tensor["name"]: tensor["shape"][1:] for tensor in ends(str(model))["inputs"]}
        np.savez(
            data,
            **{n: random.normal(size=(16, *s)).astype(np.float32) for n, s in shapes.items()},  # type: ignore[arg-type]
        )
        return data

    return called


def least_db(candidate: dict[str, Any]) -> float:
    return float(min(candidate["fidelity"]["sqnr_db"].values()))


def test_a_float_lstm_runs_on_every_runtime(tmp_path: Path, run_here: Run) -> None:
    model = lstm(tmp_path / "lstm.tflite")
    random = np.random.default_rng(0)
    steps = random.normal(size=(12, STEPS, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=steps)
    words = ("--target", "x86-64", "--no-device", "--recipes", "fp32")
    code, found = run_here(model, "--calibration-data", tmp_path / "data.npz", *words)
    assert code == 0
    candidates = {entry["name"]: entry for entry in found["candidates"]}
    for name in ("fp32@onnxruntime", "fp32@openvino", "fp32@litert"):
        assert least_db(candidates[name]) > 100, candidates[name]
    by_importer = candidates["fp32@openvino"]["details"]["imported"]
    assert by_importer["largest_difference"] <= by_importer["tolerance"]
    assert "imported" not in candidates["fp32@litert"]["details"]
    # OpenVINO's own reader cannot do it, which costs this one candidate alone.
    own = candidates["fp32-via-tflite@openvino"]
    assert own["status"] == "failed" and "UNIDIRECTIONAL_SEQUENCE_LSTM" in own["reason"]


def test_a_quantized_file_keeps_its_integers_on_every_runtime(
    integers: Path, samples: Callable[[Path], Path], run_here: Run
) -> None:
    words = ("--target", "x86-64", "--no-device", "--calibration-data", samples(integers))
    code, found = run_here(integers, *words)
    assert code == 0
    candidates = {entry["name"]: entry for entry in found["candidates"]}
    for name in ("fp32@onnxruntime", "fp32@openvino", "fp32-via-tflite@openvino", "fp32@litert"):
        assert candidates[name]["status"] in ("ok", "chosen"), candidates[name]
        assert least_db(candidates[name]) > 30
    assert candidates["fp32@onnxruntime"]["details"]["imported"]["tolerance"] is None
    # It is not quantized again.
    for runtime in ("onnxruntime", "openvino"):
        assert "quantized already" in candidates[f"int8-u8s8@{runtime}"]["reason"]


@pytest.mark.parametrize("target", ["x86-onnxruntime", "x86-openvino"])
def test_a_bundle_takes_and_gives_what_litert_does(
    integers: Path, samples: Callable[[Path], Path], tmp_path: Path, target: str
) -> None:
    """Integers, or the real numbers that they stand for, and real numbers out."""
    out = tmp_path / "out"
    words = ("--target", target, "--no-device", "--calibration-data", samples(integers))
    ran = deploy(integers, *words, "--out", out)
    assert ran.code == 0, ran.err
    assert deploy("verify", out, "--run").code == 0
    (tensor,) = ends(str(integers))["inputs"]
    scale, zero = np.float32(tensor["scale"]), tensor["zero_point"]
    real = np.random.default_rng(1).normal(size=tensor["shape"]).astype(np.float32)
    whole = np.clip(np.rint(real / scale) + zero, -128, 127).astype(np.int8)
    given = []
    for number, array in enumerate((real, whole)):
        np.savez(tmp_path / "in.npz", **{tensor["name"]: array})
        subprocess.run(
            [sys.executable, "-B", str(out / "run.py"), "in.npz", f"{number}.npz"],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        with np.load(tmp_path / f"{number}.npz") as outputs:
            given.append({name: outputs[name] for name in outputs.files})
    assert given[0].keys() == {t["name"] for t in ends(str(integers))["outputs"]}
    for name, array in given[0].items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, given[1][name])


def test_what_cannot_be_expressed_costs_the_runtimes_that_need_it(
    tmp_path: Path, run_here: Run
) -> None:
    """A custom operator is refused by name, and LiteRT still reports its own reason."""
    taken, given = (Tensor(name, (1, 4), np.dtype(np.float32)) for name in "xy")
    op = Op("CUSTOM", [taken], [given], custom="OfOurs")
    (tmp_path / "custom.tflite").write_bytes(write(Net([taken], [given], [op])))
    code, found = run_here(tmp_path / "custom.tflite", "--target", "x86-64", "--no-device")
    assert code == 3 and "OfOurs" in found["error"]["message"]


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_file_is_converted_for_another_runtime(
    integers: Path, samples: Callable[[Path], Path], tmp_path: Path, suffix: str
) -> None:
    words = ("--recipe", "fp32", "--calibration-data", samples(integers), "--json")
    ran = deploy("convert", integers, "-o", tmp_path / f"out{suffix}", *words)
    assert ran.code == 0, ran.err
    found = ran.document
    assert found["compared_with"].startswith("LiteRT")
    assert min(found["fidelity"]["sqnr_db"].values()) > 30
    assert [tensor["dtype"] for tensor in found["inputs"]] == ["int8"]
    assert {tensor["dtype"] for tensor in found["outputs"]} == {"float32"}
