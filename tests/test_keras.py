"""Keras files as models: what is read of them, and what is refused."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from onmetal.converters.keras import checks
from onmetal.errors import UsageError
from tests.conftest import deploy_here as deploy
from tests.imported_models import Read

Refused = Callable[..., str]


@pytest.mark.parametrize("name", ["cnn.keras", "cnn.h5"])
def test_a_file_is_read_as_keras_computes_it(of_tensorflow: Path, read: Read, name: str) -> None:
    found = read(of_tensorflow / name)
    assert (found.format, found.graph_format, found.batch) == ("keras", "onnx", 1)
    assert [(t.name, t.dtype, t.shape) for t in found.inputs] == [
        ("image", "float32", (1, 16, 16, 3))
    ]
    assert [(t.name, t.shape) for t in found.outputs] == [("probs", (1, 10))]
    assert found.size_bytes == (of_tensorflow / name).stat().st_size
    assert any("free batch axis of 'image'" in note for note in found.notes)
    assert found.imported and found.imported.largest_difference <= 1e-5
    assert "Keras 3" in found.imported.by and "tf2onnx" in found.imported.by


def test_several_inputs_and_named_outputs(of_tensorflow: Path, read: Read) -> None:
    found = read(of_tensorflow / "two.keras")
    assert [(t.name, t.dtype) for t in found.inputs] == [("ids", "int32"), ("mask", "float32")]
    assert {t.name: t.shape for t in found.outputs} == {"kind": (1, 3), "score": (1, 1)}


def test_a_sequential_model(of_tensorflow: Path, read: Read) -> None:
    """Of which Keras, once it has loaded the file, knows no `output`."""
    found = read(of_tensorflow / "sequential.keras")
    assert [(t.name, t.shape) for t in found.outputs] == [("scores", (1, 3))]
    assert found.imported and found.imported.largest_difference <= 1e-5


@pytest.mark.parametrize(
    ("name", "recurrent"),
    [("lstm", {"LSTM": 1}), ("gru", {}), ("simple", {}), ("long", {"Loop": 1})],
)
def test_a_recurrent_model_has_a_loop_only_where_it_is_long(
    of_tensorflow: Path, read: Read, name: str, recurrent: dict[str, int]
) -> None:
    found = read(of_tensorflow / f"{name}.keras")
    assert found.outputs[0].shape == (1, 4)
    names = ("LSTM", "GRU", "RNN", "Loop", "Scan")
    assert {n: found.operators[n] for n in names if n in found.operators} == recurrent
    assert found.imported and found.imported.largest_difference <= 1e-5


def test_a_model_that_keeps_state_is_refused(of_tensorflow: Path, refused: Refused) -> None:
    assert "it keeps state" in refused(of_tensorflow / "stateful.keras")


def test_a_free_axis_is_asked_for(of_tensorflow: Path, read: Read, refused: Refused) -> None:
    said = refused(of_tensorflow / "free.keras")
    assert "input 'steps' has free axes" in said and "--input-shape steps=1,…,6" in said
    found = read(of_tensorflow / "free.keras", steps=(1, 9, 6))
    assert found.outputs[0].shape == (1, 7, 4)


def test_a_deployment(of_tensorflow: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.normal(size=(40, 16, 16, 3)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=images, y=random.integers(0, 10, 40))
    ran = deploy(
        *(of_tensorflow / "cnn.keras", "--target", "x86-onnxruntime", "--quick", "--json"),
        *("--data", tmp_path / "data.npz", "--recipes", "fp32", "--out", tmp_path / "out"),
    )
    assert ran.code == 0, ran.err
    (given,) = ran.document["models"]
    assert given["format"] == "keras"
    assert given["imported"]["largest_difference"] <= 1e-5
    (entry,) = [e for e in ran.document["candidates"] if e["status"] == "chosen"]
    assert entry["accuracy"]["drop"] == 0 and min(entry["fidelity"]["sqnr_db"].values()) > 80
    assert deploy("verify", tmp_path / "out", "--run").code == 0


def test_a_model_that_is_cut_is_compared_whole_and_then_defined_by_its_graph(
    of_tensorflow: Path, tmp_path: Path
) -> None:
    ran = deploy(
        *(of_tensorflow / "two.keras", "--target", "x86-onnxruntime", "--no-device", "--json"),
        *("--recipes", "fp32", "--out", tmp_path / "out", "--cut-at", "score"),
    )
    assert ran.code == 0, ran.err
    (given,) = ran.document["models"]
    assert [tensor["name"] for tensor in given["outputs"]] == ["score"]
    assert given["imported"]["largest_difference"] <= 1e-5
    assert any("cut by --cut-at: the output is 'score'" in note for note in given["notes"])
    (entry,) = [e for e in ran.document["candidates"] if e["status"] == "chosen"]
    assert list(entry["fidelity"]["sqnr_db"]) == ["score"]


# --- what is refused


@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_a_lambda_is_refused(of_tensorflow: Path, refused: Refused, name: str) -> None:
    said = refused(of_tensorflow / name)
    assert "the layer Lambda, which runs Python code that the file holds" in said
    assert "--trust" in said and "model.export" in said


def test_a_lambda_of_a_trusted_file_is_run(of_tensorflow: Path, read: Read) -> None:
    assert read(of_tensorflow / "lambda.keras", trust=True).outputs[0].shape == (1, 4)
    assert deploy("inspect", of_tensorflow / "lambda.h5", "--trust").code == 0


def test_a_custom_class_is_refused(of_tensorflow: Path, refused: Refused) -> None:
    said = refused(of_tensorflow / "custom.keras")
    assert "Doubled" in said and "model.export" in said


def test_weights_alone_are_no_model(of_tensorflow: Path, refused: Refused) -> None:
    assert "weights alone" in refused(of_tensorflow / "only.weights.h5")


def with_config(source: Path, target: Path, change: Callable[[Any], Any]) -> Path:
    """A copy of a .keras file with another configuration."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                content = json.dumps(change(json.loads(content))).encode()
            new.writestr(name, content)
    return target


def replaced(**entry: Any) -> Callable[[Any], Any]:
    """Exchange the second layer of a model."""

    def change(config: Any) -> Any:
        config["config"]["layers"][1].update(entry)
        return config

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replaced(module="os", class_name="system", config="id"), "os.system, which is not"),
        (replaced(module="builtins", class_name="eval", config="1"), "builtins.eval"),
        (replaced(module="keras.utils", class_name="get_file", config={}), "keras.utils.get_file"),
        (replaced(module="keras", class_name="config", config={}), "keras.config"),
        (replaced(module="keras.src.saving", class_name="load_model"), "keras.src.saving"),
        (replaced(module="keras.layersevil", class_name="Dense"), "keras.layersevil"),
        (replaced(class_name="TFSMLayer"), "opens another model by its path"),
        (replaced(class_name="TorchModuleWrapper"), "unpickles Python objects"),
        (replaced(registered_name="package>Own", module=None), "'package>Own'"),
        (
            replaced(class_name="StringLookup", config={"vocabulary": "/etc/passwd"}),
            "reads a vocabulary",
        ),
        (
            replaced(config={"activation": {"class_name": "__lambda__", "config": {}}}),
            "a Python function",
        ),
        (lambda config: [], "names no model"),
        (lambda config: {"config": {}}, "names no model"),
    ],
)
def test_what_is_not_keras_s_own_is_refused(
    of_tensorflow: Path,
    tmp_path: Path,
    refused: Refused,
    change: Callable[[Any], Any],
    said: str,
) -> None:
    path = with_config(of_tensorflow / "cnn.keras", tmp_path / "harm.keras", change)
    assert said in refused(path)


def test_a_configuration_nested_without_end_is_refused() -> None:
    text = '{"class_name": "Model", "config": ' + "[" * 5000 + "]" * 5000 + "}"
    with pytest.raises(UsageError, match=r"nested too deeply|cannot be read"):
        checks.check_config(text, Path("model.keras"), False)


def linked(file: Path, kind: str, tmp_path: Path) -> None:
    """Weights that lie, or are said to lie, elsewhere."""
    with h5py.File(file, "a") as opened:
        if kind == "external link":
            opened["more"] = h5py.ExternalLink("/etc/passwd", "/")
        elif kind == "soft link":
            opened["more"] = h5py.SoftLink("/layers")
        elif kind == "external data":
            opened.create_dataset("more", (8,), "u1", external=[("/etc/passwd", 0, 8)])
        elif kind == "virtual data":
            layout = h5py.VirtualLayout((8,), "u1")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", (8,))
            opened.create_virtual_dataset("more", layout)
        else:
            opened.create_dataset("more", (1 << 29,), "f4", chunks=(1 << 20,))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("external link", "is a link"),
        ("soft link", "is a link"),
        ("external data", "lies in another file"),
        ("virtual data", "lies in another file"),
        ("nothing", "are declared to take"),
    ],
)
@pytest.mark.parametrize("name", ["cnn.keras", "cnn.h5"])
def test_weights_of_other_files_are_refused(
    of_tensorflow: Path, tmp_path: Path, refused: Refused, name: str, kind: str, said: str
) -> None:
    path = tmp_path / name
    if name.endswith(".h5"):
        shutil.copyfile(of_tensorflow / name, path)
        linked(path, kind, tmp_path)
    else:
        with zipfile.ZipFile(of_tensorflow / name) as old, zipfile.ZipFile(path, "w") as new:
            old.extractall(tmp_path / "parts")
            linked(tmp_path / "parts/model.weights.h5", kind, tmp_path)
            for part in old.namelist():
                new.write(tmp_path / "parts" / part, part)
    assert said in refused(path)


def test_without_the_extra_it_says_what_to_install(
    of_tensorflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onmetal import converters

    monkeypatch.setattr(converters, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'onmetal\[tensorflow\]'"):
        converters.format_named("keras").read(
            of_tensorflow / "cnn.keras", {}, None, tmp_path, False
        )
