"""All kinds of models in INT8: each ends clearly."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.conftest import deploy
from tests.int8_models import (
    balanced,
    convolutions,
    labelled,
    perceptron,
    random,
    rooted,
    two_by_two,
)
from tests.int8_runs import DATA, Made, Run, Words, candidates, said_of, usable
from tests.onnx_models import relu, save


def judged_words(path: Path, data: Path, recipes: str, target: str = "x86-64") -> tuple[Any, ...]:
    return (path, "--target", target, "--data", data, "--recipes", recipes)


def test_a_model_with_nothing_to_quantize(run: Run, tmp_path: Path) -> None:
    path, data = labelled(relu(["n", 8]), tmp_path, "y", x=random(100, 8))
    code, found, _ = run(path, "--target", "x86-64", "--data", data, "--no-device")
    assert code == 0
    assert found["chosen"] == "fp32@onnxruntime"
    assert found["data"]["evaluation_samples"] == 100
    assert "nothing to quantize" in candidates(found)["int8-s8s8@onnxruntime"]["reason"]
    words = (*judged_words(path, data, "int8"), "--no-device", "--out", "none")
    code, found, _ = run(*words)
    assert code == 3
    assert "nothing to quantize" in found["error"]["message"]


def test_an_input_of_nothing_but_zeros(run: Run, tmp_path: Path) -> None:
    x = np.zeros((80, 3, 8, 8), np.float32)
    path, data = labelled(convolutions(), tmp_path, "y", x=x)
    code, found, _ = run(*judged_words(path, data, "int8-s8s8,int8-nncf"), "--no-device")
    assert code == 0
    assert said_of(found, "0 in all")
    assert said_of(found, "duplicates")
    for entry in usable(found):
        assert entry["accuracy"]["value"] == 1
        assert np.isfinite(entry["fidelity"]["sqnr_db"]["y"])


def test_activations_that_are_not_numbers_stay_float(run: Run, tmp_path: Path) -> None:
    x = np.abs(balanced(120))
    x[3::20] *= -1
    path, data = labelled(rooted(), tmp_path, "y", x=x)
    code, found, _ = run(*judged_words(path, data, "fp32,int8-s8s8,int8-nncf"), "--no-device")
    assert code == 0
    assert said_of(found, "NaN or infinite")
    entry = candidates(found)["int8-s8s8@onnxruntime"]
    assert entry["details"]["operators_in_8_bits"] == 1
    assert len(entry["details"]["operators_in_float"]) == 1
    for entry in found["candidates"]:
        assert entry["status"] in ("chosen", "ok", "over-budget") or entry["reason"]


def test_a_model_that_is_quantized_already_is_left_as_it_is(
    twin: Made, run: Run, tmp_path: Path
) -> None:
    path = shutil.copyfile(twin.folder / "model.onnx", tmp_path / "net.onnx")
    words: Words = (path, "--target", "x86-onnxruntime", "--data", DATA, "--no-device")
    code, found, _ = run(*words, "--out", "out")
    assert (code, found["chosen"]) == (0, "fp32@onnxruntime")
    assert found["data"]["evaluation_samples"] == 600
    for entry in found["candidates"]:
        if entry["recipe"].startswith("int8-"):
            assert entry["status"] == "skipped"
            assert "quantized already" in entry["reason"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == path.read_bytes()


def test_an_old_opset_is_raised(run: Run, tmp_path: Path) -> None:
    path, data = labelled(convolutions(opset=11), tmp_path, "y", x=balanced(160))
    words = judged_words(path, data, "int8-s8s8")
    code, found, _ = run(*words, "--no-device", "--max-accuracy-drop", "10%", "--out", "out")
    assert code == 0
    assert [e["name"] for e in usable(found)] == ["int8-s8s8@onnxruntime", "int8-s8s8@openvino"]
    for entry in usable(found):
        assert entry["fidelity"]["sqnr_db"]["y"] > 20
    written = onnx.load(str(tmp_path / "out" / "model.onnx"))
    onnx.checker.check_model(written, full_check=True)
    assert written.opset_import[0].version >= 13


def test_two_inputs_and_two_outputs(run: Run, tmp_path: Path) -> None:
    arrays = {"a": balanced(160), "b": random(160, 2, 8, 8, seed=5)}
    path, data = labelled(two_by_two(), tmp_path, "z", **arrays)
    words = (*judged_words(path, data, "int8-s8s8"), "--output", "z", "--no-device")
    code, found, _ = run(*words, "--max-accuracy-drop", "10%", "--out", "out")
    assert code == 0
    assert len(usable(found)) == 2
    for entry in usable(found):
        fidelity = entry["fidelity"]["sqnr_db"]
        assert fidelity.keys() == {"y", "z"}
        assert min(fidelity.values()) > 20
    assert deploy("verify", tmp_path / "out", "--run").code == 0


def test_a_batch_in_8_bits_is_as_accurate(run: Run, tmp_path: Path) -> None:
    path, data = labelled(convolutions(), tmp_path, "y", x=balanced(162))
    words = (*judged_words(path, data, "int8-s8s8", "x86-onnxruntime"), "--no-device")
    words = (*words, "--max-accuracy-drop", "10%", "--batch", "4")
    code, found, _ = run(*words)
    assert code == 0
    entry = candidates(found)["int8-s8s8@onnxruntime"]
    assert entry["accuracy"]["samples"] == 122
    assert entry["fidelity"]["sqnr_db"]["y"] > 20


def test_a_model_of_matrix_products(run: Run, tmp_path: Path) -> None:
    path, data = labelled(perceptron(), tmp_path, "y", x=random(200, 128))
    words = judged_words(path, data, "wi8,int8-dynamic")
    code, found, _ = run(
        *words, "--quick", "--minimize", "size", "--max-accuracy-drop", "10%", "--out", "out"
    )
    assert code == 0
    entries = candidates(found)
    assert found["data"]["evaluation_samples"] == 200  # none of these is calibrated
    for name in ("wi8@onnxruntime", "wi8@openvino", "int8-dynamic@onnxruntime"):
        assert entries[name]["status"] in ("ok", "chosen")
        assert entries[name]["latency_ms"]["p50"] > 0
        assert entries[name]["fidelity"]["sqnr_db"]["y"] > 20
    fp32 = entries["fp32@onnxruntime"]["size_bytes"]
    assert 3 * entries["wi8@onnxruntime"]["size_bytes"] < fp32
    assert 3 * entries["int8-dynamic@onnxruntime"]["size_bytes"] < fp32
    assert entries["wi8@onnxruntime"]["details"]["weights_in_8_bits"] == 2
    assert entries["int8-dynamic@onnxruntime"]["details"]["products_in_8_bits"] == 2
    assert entries["int8-dynamic@onnxruntime"]["ran_on"]["precision"]["i8"] >= 0.05
    assert deploy("verify", tmp_path / "out", "--run").code == 0


def test_two_models_are_calibrated_each_for_itself(run: Run, tmp_path: Path) -> None:
    path, data = labelled(convolutions(), tmp_path, "y", x=balanced(160))
    other = convolutions()
    for tensor in other.graph.initializer:
        if tensor.name == "w1":
            values = numpy_helper.to_array(tensor) * 3
            tensor.CopyFrom(numpy_helper.from_array(values, "w1"))
    second = save(other, tmp_path / "other.onnx")
    words = (*judged_words(path, data, "int8-s8s8", "x86-onnxruntime"), "--no-device")
    code, found, _ = run(second, *words, "--max-accuracy-drop", "none")
    assert code == 0
    names = ["other/int8-s8s8@onnxruntime", "net/int8-s8s8@onnxruntime"]
    assert [e["name"] for e in usable(found)] == names
    one_of, two_of = (candidates(found)[name] for name in names)
    assert one_of["sha256"] != two_of["sha256"]
    for entry in (one_of, two_of):
        assert entry["fidelity"]["sqnr_db"]["y"] > 20  # to its own original
    assert two_of["accuracy"]["drop"] < 0.1
