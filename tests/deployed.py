"""Small deployments as records: the candidate that a bundle holds, and its golden vectors."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal.records import Candidate, Model, Tensor, restore
from tests import onnx_models
from tests.conftest import DIGITS, ROOT, once
from tests.conftest import deploy_here as deploy

KINDS = (
    "litert-fp32",
    "litert-fp32-nhwc",
    "litert-int8",
    "litert-int8-nhwc",
    "onnxruntime-fp32",
    "onnxruntime-int8",
)
"""Runtime, recipe and what the artifact has at its ends: `int8` of LiteRT takes and gives int8."""
HOSTILE = ('im"age\n$x ${y} \\ */ ??/ ünï\U0001f600', "fun", "\x01int%s")
"""Names that would break out of a literal, a comment or a declaration."""


Deployments = Callable[[str], Path]


@pytest.fixture(scope="session")
def deployments(shared_home: Path, shared_folder: Path) -> Deployments:
    """Bundles by their kind (see KINDS), each made once. Copy one before changing it."""
    folder = shared_folder / "deployed"
    folder.mkdir(exist_ok=True)

    def deployment(kind: str) -> Path:
        lock = folder / "lock"
        once(folder / f"{kind}.made", lambda: _bundle(kind, folder, shared_home), lock)
        return folder / kind

    return deployment


def _bundle(kind: str, folder: Path, home: Path) -> None:
    """A deployment of a model with two images in and one out, or of the example: that is for
    integers without channels last, since its images have one channel."""
    runtime, recipe, *last = kind.split("-")
    digits = recipe.startswith("int") and not last
    model, data = _pictures(folder), folder / "pictures.npz"
    if digits:
        model, data = DIGITS / "digits_cnn.onnx", DIGITS / "digits.npz"
    ran = deploy(
        *(model, "--target", _board(folder, runtime, recipe, bool(last)), "--no-device"),
        *("--data" if digits else "--calibration-data", data),
        *("--max-accuracy-drop", "none", "--quick", "--json"),
        *("--out", folder / kind),
        env={"ONMETAL_HOME": str(home)},
    )
    assert ran.code == 0, ran.err
    assert ran.document["chosen"].startswith(recipe)


def _pictures(folder: Path) -> Path:
    """`one` less `two` after convolutions, all with channels; in int8 it is smaller."""
    model = onnx_models.build(
        [
            onnx_models.node("Sub", "one two", "difference"),
            onnx_models.node("Conv", "difference w", "wide", pads=[1] * 4),
            onnx_models.node("Conv", "wide weight", "map", pads=[1] * 4),
        ],
        [onnx_models.value(name, [1, 3, 8, 6]) for name in ("one", "two")],
        [onnx_models.value("map", [1, 4, 8, 6])],
        [onnx_models.weights("w", 32, 3, 3, 3), onnx_models.weights("weight", 4, 32, 3, 3)],
    )
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=(8, 3, 8, 6)).astype(np.float32) for n in ("one", "two")}
    np.savez(folder / "pictures.npz", **arrays)  # type: ignore[arg-type]
    return onnx_models.save(model, folder / "pictures.onnx")


def _board(folder: Path, runtime: str, recipe: str, nhwc: bool) -> Path:
    """The runtime's target on this machine, with the wanted ends; only that recipe beside fp32."""
    target, name = {
        "litert": ("tflite-x86", recipe),
        "onnxruntime": ("x86-onnxruntime", {"int8": "int8-u8s8"}.get(recipe, recipe)),
    }[runtime]
    text = (ROOT / f"targets/{target}.toml").read_text()
    recipes = json.dumps(list(dict.fromkeys(("fp32", name))))
    text, replaced = re.subn(r"^recipes = \[[^]]*\]", f"recipes = {recipes}", text, flags=re.M)
    assert replaced == 1
    if runtime == "litert":
        dtype, layout = (
            "int8" if recipe.startswith("int") else "float32",
            "nhwc" if nhwc else "onnx",
        )
        ends = f'[io]\nlayout = "{layout}"\ndtype = "{dtype}"\n\n[[runtimes]]'
        text = text.replace("[[runtimes]]", ends, 1)
    path = folder / f"{runtime}-{recipe}-{nhwc}.toml"
    path.write_text(text)
    return path


def candidate(folder: Path) -> Candidate:
    """What was chosen, from a bundle's manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    run, entry = manifest["run"], manifest["models"][0]
    model: dict[str, Any] = {
        **{key: entry[key] for key in ("path", "format", "sha256", "size_bytes", "batch")},
        **{key: entry[key] for key in ("inputs", "outputs", "parameters", "macs")},
        **{"prepared": entry["path"], "prepared_sha256": "", "operators": {}},
    }
    return Candidate(
        name=manifest["chosen"],
        recipe="",
        runtime=run["runtime"],
        runtime_version=run["runtime_version"],
        model=restore(model, Model),
        files=tuple(folder / name for name in run["files"]),
        sha256="0" * 64,
        size_bytes=0,
        options=run["options"],
    )


def golden(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "golden.npz", allow_pickle=False) as found:
        return dict(found)


def tolerance(folder: Path) -> float:
    return float(json.loads((folder / "manifest.json").read_text())["golden"]["tolerance"])


def renamed(folder: Path, names: tuple[str, ...]) -> tuple[Candidate, dict[str, np.ndarray]]:
    """The candidate of the two images and its vectors, with other names of its three tensors."""
    found, vectors = candidate(folder), golden(folder)
    old = (*found.model.inputs, *found.model.outputs)
    new = tuple(Tensor(name, t.dtype, t.shape) for name, t in zip(names, old, strict=True))
    known = {tensor.name: name for tensor, name in zip(old, names, strict=True)}
    arrays = {}
    for key, array in vectors.items():
        kind, name, number = key.split("/")
        arrays[f"{kind}/{known[name]}/{number}"] = array
    model = replace(found.model, inputs=new[:-1], outputs=new[-1:])
    return replace(found, model=model), arrays
