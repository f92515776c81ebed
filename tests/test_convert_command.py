"""`deploy convert`: one file whose outputs are the model's, or none."""

import hashlib
import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from ai_edge_litert.interpreter import Interpreter

from onmetal.deploy import output_file
from onmetal.errors import UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from tests import int8_models, schemas
from tests.conftest import Ran
from tests.conftest import deploy_here as deploy
from tests.onnx_models import build, constant, node, relocate, save, value, with_external_data
from tests.watched_runs import ended, reach, started, workers

SAMPLES = 24
Outputs = list[np.ndarray]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `net.onnx`, data for it, and a model that 8 bits cannot hold."""
    folder = tmp_path_factory.mktemp("models")
    save(int8_models.convolutions(), folder / "net.onnx")
    np.savez(folder / "data.npz", x=int8_models.random(SAMPLES, 3, 8, 8))
    save(int8_models.shared_scale(3000.0), folder / "uneven.onnx")
    np.savez(folder / "uneven.npz", x=int8_models.random(SAMPLES, 1, 8, 8))
    return folder


def convert(model: Path, file: Path, *words: str | Path) -> Ran:
    return deploy("convert", model, "-o", file, *words)


def data(models: Path) -> tuple[str, Path]:
    return "--calibration-data", models / "data.npz"


# --- each runtime as its users open files, without onmetal


def by_onnxruntime(path: Path, inputs: np.ndarray) -> Outputs:
    session = onnxruntime.InferenceSession(str(path))
    (name,) = [entry.name for entry in session.get_inputs()]
    return [session.run(None, {name: sample[None]})[0] for sample in inputs]


def by_litert(path: Path, inputs: np.ndarray) -> Outputs:
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    outputs = []
    for sample in inputs:
        interpreter.set_tensor(given["index"], sample[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(result["index"]).copy())
    return outputs


def by_openvino(path: Path, inputs: np.ndarray) -> Outputs:
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(str(path), "CPU", options)
    return [model(sample[None])[0].copy() for sample in inputs]


RUN: dict[str, Callable[[Path, np.ndarray], Outputs]] = {
    ".onnx": by_onnxruntime,
    ".tflite": by_litert,
    ".xml": by_openvino,
}


def sqnr_db(expected: np.ndarray, actual: np.ndarray) -> float:
    noise = np.sum((expected.astype(np.float64) - actual) ** 2)
    return float(10 * np.log10(np.sum(expected.astype(np.float64) ** 2) / max(noise, 1e-30)))


# --- what is written


@pytest.mark.parametrize("suffix", RUN)
def test_a_float_file_computes_what_the_model_computes(
    models: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"out{suffix}"
    ran = convert(models / "net.onnx", file, "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    beside = [tmp_path / "out.bin"] if suffix == ".xml" else []
    assert document["files"] == [str(file), *map(str, beside)]
    assert sorted(tmp_path.iterdir()) == sorted([file, *beside])
    assert document["size_bytes"] == sum(path.stat().st_size for path in [file, *beside])
    inputs = int8_models.random(4, 3, 8, 8, seed=9)
    expected = np.concatenate(by_onnxruntime(models / "net.onnx", inputs))
    assert sqnr_db(expected, np.concatenate(RUN[suffix](file, inputs))) > 100
    assert document["fidelity"]["sqnr_db"]["y"] > 100 and document["least_db"] == 60
    assert (document["compared_on"], document["samples"]) == ("random inputs", 8)
    assert document["recipe"] == "fp32" and document["operators_in_float"] is None
    (entry,) = document["inputs"]
    assert (entry["name"], entry["shape"], entry["differs_in"]) == ("x", [1, 3, 8, 8], [])


@pytest.mark.parametrize(("suffix", "recipe"), [(".onnx", "int8-s8s8"), (".tflite", "int8")])
def test_with_data_a_file_is_calibrated(
    models: Path, tmp_path: Path, suffix: str, recipe: str
) -> None:
    file = tmp_path / f"out{suffix}"
    ran = convert(models / "net.onnx", file, *data(models), "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert document["recipe"] == recipe and document["operators_in_float"] == []
    assert (document["compared_on"], document["samples"]) == ("calibration data", SAMPLES)
    inputs = np.load(models / "data.npz")["x"]
    expected = np.concatenate(by_onnxruntime(models / "net.onnx", inputs))
    found = sqnr_db(expected, np.concatenate(RUN[suffix](file, inputs)))
    assert 20 < found < 70
    assert found == pytest.approx(document["fidelity"]["sqnr_db"]["y"], abs=3)
    if suffix == ".onnx":
        kinds = {tensor.data_type for tensor in onnx.load(file).graph.initializer}
        assert onnx.TensorProto.INT8 in kinds


def test_the_first_of_a_family_is_taken_whose_file_can_be_made(
    models: Path, tmp_path: Path
) -> None:
    """OpenVINO computes Concat wrong with signed activations, which its converter refuses."""
    net = build(
        [
            *(node("Conv", "x a", "p"), node("Conv", "x b", "q")),
            *(node("Concat", "p q", "c", axis=1), node("Conv", "c w", "y")),
        ],
        [value("x", ["n", 3, 8, 8])],
        [value("y", ["n", 2, 8, 8])],
        [
            constant("a", int8_models.random(4, 3, 1, 1)),
            constant("b", int8_models.random(4, 3, 1, 1, seed=1)),
            constant("w", int8_models.random(2, 8, 1, 1, seed=2)),
        ],
    )
    ran = convert(
        save(net, tmp_path / "concat.onnx"), tmp_path / "out.xml", *data(models), "--json"
    )
    assert ran.code == 0, ran.err
    assert ran.document["recipe"] == "int8-u8s8"
    (other,) = ran.document["not_taken"]
    assert other["recipe"] == "int8-s8s8" and "Concat" in other["reason"]


def test_a_target_says_the_layout_and_the_types(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.tflite"
    ran = convert(models / "net.onnx", file, *data(models), "--target", "tflm")
    assert ran.code == 0, ran.err
    (given,) = Interpreter(str(file)).get_input_details()
    assert given["shape"].tolist() == [1, 8, 8, 3] and given["dtype"] == np.int8
    assert "input  x  int8[1, 8, 8, 3] = " in ran.out
    assert "in net.onnx: x  float32[1, 3, 8, 8], with its channels last in the file" in ran.out
    assert "int8 for TFLite Micro, from ONNX" in ran.out


def test_people_are_told_what_was_written(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.tflite"
    ran = convert(models / "net.onnx", file, "--batch", "2", "--recipe", "fp16")
    assert ran.code == 0, ran.err
    size = file.stat().st_size / 1e3
    assert f"{file}: {size:.3g} kB, " in ran.out and "% of net.onnx (" in ran.out
    assert "input  x  float32[2, 3, 8, 8]" in ran.out and "output  y  float32[2, 5]" in ran.out
    assert "on 8 random inputs (real ones, by --calibration-data, say more)" in ran.out
    assert "needed are 20 dB" in ran.out


def test_external_data_are_taken_into_the_file(tmp_path: Path) -> None:
    model = with_external_data(tmp_path)
    ran = convert(model, tmp_path / "out.onnx")
    assert ran.code == 0, ran.err
    (tmp_path / "weights.bin").unlink()
    assert by_onnxruntime(tmp_path / "out.onnx", np.ones((1, 4), np.float32))[0].shape == (1, 3)


def test_weights_that_lie_beside_an_artifact_get_its_name(tmp_path: Path, cache: Cache) -> None:
    """As of models over 2 GB, which no test can make."""
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    model = with_external_data(artifact, "model.data")
    inputs = np.ones((1, 4), np.float32)
    expected = by_onnxruntime(model, inputs)[0]
    out = tmp_path / "out"
    out.mkdir()
    files = (model, artifact / "model.data")
    with output_file.written(files, out / "big.onnx", "onnxruntime", Local(cache)) as written:
        assert [path.name for path in written] == ["big.onnx", "big.onnx.data"]
        assert not (out / "big.onnx").exists()
    assert sorted(path.name for path in out.iterdir()) == ["big.onnx", "big.onnx.data"]
    (artifact / "model.data").unlink()
    assert np.array_equal(by_onnxruntime(out / "big.onnx", inputs)[0], expected)


def test_a_model_of_a_framework_is_compared_with_it(of_tensorflow: Path, tmp_path: Path) -> None:
    ran = convert(of_tensorflow / "cnn", tmp_path / "out.tflite", "--json")
    assert ran.code == 0, ran.err
    assert ran.document["compared_with"].startswith("SavedModel")
    assert min(ran.document["fidelity"]["sqnr_db"].values()) > 80
    assert "TensorFlow" in ran.document["model"]["imported"]["by"]


# --- what is refused


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("-o", "OUT/a.pt"), 2, "the name ends in .pt; there are: .tflite (LiteRT), .onnx"),
        (("-o", "OUT/a"), 2, "the name has no suffix"),
        ((), 2, "-o FILE is missing"),
        (("-o", ""), 2, "an empty value"),
        (("-o", "OUT/none/a.onnx"), 2, "there is no folder"),
        (("-o", "/proc/a.onnx"), 2, "cannot write there"),
        (("-o", "OUT"), 2, "this is a folder"),
        (("-o", "OUT/a.onnx", "--recipe", "int8-u8s"), 2, "give --calibration-data"),
        (("-o", "OUT/a.onnx", "--recipe", "int8-s88s"), 2, "did you mean int8-s8s8?"),
        (("-o", "OUT/a.tflite", "--recipe", "int8-u8s8"), 3, "LiteRT does not run it"),
        (("-o", "OUT/a.onnx", "--recipe", "fp16"), 3, "fp16 is for litert and openvino alone"),
        (("-o", "OUT/a.onnx", "--recipe", "int8-fast", *"-c"), 3, "made from a profile"),
        (("-o", "OUT/a.onnx", "--recipe", "int8"), 2, "give --calibration-data"),
        (("-o", "OUT/a.tflite", "--recipe", "fp16-compute"), 3, "no asimdhp"),
        (("-o", "OUT/a.onnx", "--target", "cortex-m4"), 2, "the target cortex-m4 runs: .tflite"),
        (("-o", "OUT/a.tflite", "--target", "cortex-m4"), 2, "give --calibration-data"),
        (("-o", "OUT/a.onnx", "--target", "x86"), 2, "did you mean"),
        (("-o", "OUT/a.onnx", "--batch", "0"), 2, "must be 1 or more"),
        (("-o", "OUT/a.onnx", "--recpe", "int8"), 2, "did you mean --recipe?"),
        (("-o", "OUT/a.onnx", "--calibration-data", "none.npz"), 2, "none.npz"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    models: Path, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    given: list[str | Path] = [word.replace("OUT", str(tmp_path)) for word in words]
    if given[-2:] == ["-", "c"]:
        given[-2:] = data(models)
    ran = deploy("convert", models / "net.onnx", *given)
    assert ran.code == code, ran.err
    assert said in ran.err and not ran.out
    assert not list(tmp_path.iterdir())


def test_the_model_is_never_overwritten(models: Path, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes((models / "net.onnx").read_bytes())
    before = hashlib.sha256(model.read_bytes()).hexdigest()
    (tmp_path / "linked.onnx").symlink_to(model)
    (tmp_path / "same.onnx").hardlink_to(model)
    (tmp_path / "sub").mkdir()
    for place in ("net.onnx", "linked.onnx", "same.onnx", "sub/../net.onnx"):
        ran = convert(model, tmp_path / place, "--force")
        assert ran.code == 2 and "the model itself, which is not overwritten" in ran.err
    assert hashlib.sha256(model.read_bytes()).hexdigest() == before


def test_nothing_is_written_into_a_models_folder(of_tensorflow: Path) -> None:
    ran = convert(of_tensorflow / "cnn", of_tensorflow / "cnn/assets/out.onnx", "--force")
    assert ran.code == 2 and "in the model's own folder" in ran.err


def test_what_exists_is_replaced_by_force_alone(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.onnx"
    file.write_text("mine")
    ran = convert(models / "net.onnx", file)
    assert ran.code == 2 and "exists; --force replaces it" in ran.err
    assert file.read_text() == "mine"
    assert convert(models / "net.onnx", file, "--force").code == 0
    assert onnx.load(file).graph.node


def test_weights_of_another_model_are_not_replaced(models: Path, tmp_path: Path) -> None:
    """`external.bin` beside an ONNX file has the name that OpenVINO's second file would have."""
    model = with_external_data(tmp_path)
    relocate(model, "external.bin")
    (tmp_path / "weights.bin").rename(tmp_path / "external.bin")
    before = (tmp_path / "external.bin").read_bytes()
    for words in ((), ("--force",)):
        ran = convert(model, tmp_path / "external.xml", *words)
        assert ran.code == 2 and "may belong to another model" in ran.err
    assert (tmp_path / "external.bin").read_bytes() == before


def test_a_file_whose_outputs_are_not_the_models_is_not_written(
    models: Path, tmp_path: Path
) -> None:
    words = ("--calibration-data", models / "uneven.npz", "--recipe", "int8-s8s8", "--json")
    ran = convert(models / "uneven.onnx", tmp_path / "out.onnx", *words)
    assert ran.code == 3 and not list(tmp_path.iterdir())
    document = schemas.check(ran.out)
    assert document["files"] == [] and document["error"]["code"] == 3
    assert document["fidelity"]["sqnr_db"]["small"] < 20
    assert "the output 'small' follows it with" in ran.err and "under 20 dB" in ran.err
    assert "labelled data" not in ran.err


def test_a_family_of_which_none_fits_says_so_of_each(models: Path, tmp_path: Path) -> None:
    words = ("--calibration-data", models / "uneven.npz")
    ran = convert(models / "uneven.onnx", tmp_path / "out.xml", *words)
    assert ran.code == 3 and not list(tmp_path.iterdir())
    for recipe in ("int8-s8s8", "int8-u8s8", "int8-u8u8"):
        assert recipe in ran.err


def test_data_that_do_not_fit_are_refused(models: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 3, 9, 9), np.float32))
    words = ("--calibration-data", tmp_path / "data.npz")
    ran = convert(models / "net.onnx", tmp_path / "out.onnx", *words)
    assert ran.code == 2 and "shape [3, 9, 9], the model takes [3, 8, 8]" in ran.err
    assert not (tmp_path / "out.onnx").exists()


def test_a_quantized_model_is_not_quantized_again(models: Path, tmp_path: Path) -> None:
    quantized = tmp_path / "q.tflite"
    assert convert(models / "net.onnx", quantized, *data(models)).code == 0
    ran = convert(quantized, tmp_path / "again.tflite", *data(models))
    assert ran.code == 3 and "--recipe fp32 converts it as it is" in ran.err
    ran = convert(quantized, tmp_path / "again.tflite", "--json")
    assert ran.code == 0 and ran.document["least_db"] == 30
    assert (tmp_path / "again.tflite").read_bytes() == quantized.read_bytes()
    assert any("it is converted as it is" in text for text in ran.document["warnings"])
    ran = convert(quantized, tmp_path / "again.onnx", "--json")
    assert ran.code == 0 and "importer of TFLite" in ran.document["model"]["imported"]["by"]


# --- an interruption


def test_an_interruption_leaves_nothing_behind(models: Path, tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    words = ("convert", models / "net.onnx", "-o", "out.onnx", *data(models), "--json")
    with started(*words, home=home, cwd=work) as process:
        reach(process, "calibrating")
        children = workers(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert ended(children)
    assert process.returncode == 130 and json.loads(out)["error"]["code"] == 130
    assert "Traceback" not in err
    assert not list(work.iterdir()) and not list((home / "building").iterdir())


def test_where_the_last_step_fails_the_files_before_lie_there_again(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = [tmp_path / "model.xml", tmp_path / "model.bin"]
    out = tmp_path / "out"
    out.mkdir()
    for path in artifact:
        path.write_text(f"new {path.name}")
        (out / f"net{path.suffix}").write_text("old")
    interruptions: list[Path] = []
    replace: Any = Path.replace

    def interrupted(self: Path, place: Path) -> Path:
        if place == out / "net.xml" and place not in interruptions:
            interruptions.append(place)
            raise KeyboardInterrupt
        return Path(replace(self, place))

    def write() -> None:
        with output_file.written(artifact, out / "net.xml", "openvino", Local(cache)):
            monkeypatch.setattr(Path, "replace", interrupted)

    with pytest.raises(KeyboardInterrupt):
        write()
    monkeypatch.undo()
    found = {path.name: path.read_text() for path in out.iterdir()}
    assert found == {"net.bin": "old", "net.xml": "old"}


def test_a_full_disk_is_no_defect(tmp_path: Path, cache: Cache) -> None:
    """As where a file may not be larger than this."""
    artifact, out = tmp_path / "model.tflite", tmp_path / "out"
    artifact.write_bytes(bytes(40_000))
    out.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with (
            pytest.raises(UsageError, match="cannot write it"),
            output_file.written([artifact], out / "net.tflite", "litert", Local(cache)),
        ):
            raise AssertionError("it was written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(out.iterdir())


def test_a_model_called_convert_is_reachable(models: Path, tmp_path: Path) -> None:
    (tmp_path / "convert").write_bytes((models / "net.onnx").read_bytes())
    ran = deploy("./convert", "--target", "x86-onnxruntime", "--dry-run", cwd=tmp_path)
    assert ran.code == 0 and "fp32" in ran.out
    ran = deploy("convert", "./convert", "-o", "out.onnx", cwd=tmp_path)
    assert ran.code == 0 and (tmp_path / "out.onnx").exists()
