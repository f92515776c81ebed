"""Deployments of the example in INT8, each made once, and `deploy` in this process."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from onmetal import cli
from onmetal.runtimes import fit
from tests.conftest import DIGITS, once
from tests.conftest import deploy_here as deploy

MODEL = DIGITS / "digits_cnn.onnx"
DATA = DIGITS / "digits.npz"
CALIBRATION = DIGITS / "calibration.npz"
JUDGED = [index for index in range(600) if index % 4 != 3]
"""Of the example's 600 samples, all but the last of every four."""
TARGET = fit.load_target("x86-64")
STATIC = [
    recipe
    for recipe in TARGET.recipes
    if recipe.quantized_by == "static" and recipe.runtimes != ("litert",)
]
FAMILY = "int8-s,int8-u,int8-n,int8-f"
"""What ONNX Runtime and OpenVINO are calibrated for; LiteRT has tests of its own."""
FORMAT = next(recipe.format for recipe in STATIC if recipe.format)

Document = dict[str, Any]
Arrays = dict[str, np.ndarray]
Words = tuple[str | Path, ...]


def candidates(found: Document) -> dict[str, Document]:
    return {entry["name"]: entry for entry in found["candidates"]}


def usable(found: Document) -> list[Document]:
    return [e for e in found["candidates"] if e["status"] in ("chosen", "ok", "over-budget")]


def manifest(folder: Path) -> Document:
    found: Document = json.loads((folder / "manifest.json").read_text())
    return found


def briefly(*words: str | Path, cwd: Path, home: Path) -> tuple[int, Document, str]:
    """`deploy WORDS --json` in this process, measuring for an instant. -> code, document, stderr"""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setenv("ONMETAL_HOME", str(home))
        code = cli.main([*map(str, words), "--json"])
    assert "Traceback" not in err.getvalue()
    found: Document = json.loads(out.getvalue())
    assert found.get("error", {}).get("code", 0) == code
    return code, found, err.getvalue()


Run = Callable[..., tuple[int, Document, str]]


@pytest.fixture
def run(tmp_path: Path, shared_home: Path) -> Run:
    """`briefly`, in a folder of its own."""

    def called(*words: str | Path) -> tuple[int, Document, str]:
        return briefly(*words, cwd=tmp_path, home=shared_home)

    return called


class Made(NamedTuple):
    """A bundle, and what the run that made it said."""

    folder: Path
    document: Document


@pytest.fixture(scope="session")
def twin_home(shared_folder: Path) -> Path:
    """A cache in which nothing is left of any other run. Whoever uses it holds TWIN_LOCK."""
    folder = shared_folder / "twin-home"
    folder.mkdir(exist_ok=True)
    return folder


TWIN_LOCK = "twin-home.lock"


def made(folder: Path, home: Path, *words: str | Path) -> Made:
    ran = deploy(MODEL, *words, "--json", "--out", folder, env={"ONMETAL_HOME": str(home)})
    assert ran.code == 0, ran.err
    return Made(folder, ran.document)


def made_once(home: Path, name: str, *words: str | Path) -> Made:
    """The same, by one of the processes of this run of the tests for all."""
    folder = home.parent / name
    said = folder.with_suffix(".json")
    once(
        folder.with_suffix(".made"),
        lambda: said.write_text(json.dumps(made(folder, home, *words).document)),
        home.parent / TWIN_LOCK,
    )
    return Made(folder, json.loads(said.read_text()))


@pytest.fixture(scope="session")
def twin(twin_home: Path) -> Made:
    """The INT8 family, untimed and in a cache of its own: nothing is left of any other run."""
    words = ("--target", "x86-64", "--data", DATA, "--no-device", "--recipes", FAMILY)
    return made_once(twin_home, "twin", *words)


@pytest.fixture(scope="session")
def twin_ir(twin: Made, twin_home: Path) -> Made:
    """The same by OpenVINO alone."""
    words = ("--target", "x86-openvino", "--data", DATA, "--no-device", "--recipes", FAMILY)
    return made_once(twin_home, "twin-ir", *words)


@pytest.fixture(scope="session")
def measured(bundle: Path, shared_home: Path) -> Made:
    """INT8 measured on the example: where size decides, none is too slow."""
    folder = bundle.parent / "measured"
    recipes = "int8-s8s8,int8-u8u8,int8-nncf,int8-fast"
    asked = ("--target", "x86-64", "--data", DATA, "--quick", "--recipes", recipes)
    words: Words = (*asked, "--minimize", "size", "--out", folder)

    def make() -> None:
        code, found, err = briefly(MODEL, *words, cwd=bundle.parent, home=shared_home)
        assert code == 0, err
        folder.with_suffix(".json").write_text(json.dumps(found))

    once(folder.with_suffix(".made"), make)
    return Made(folder, json.loads(folder.with_suffix(".json").read_text()))


@pytest.fixture(scope="session")
def apart(twin: Made, twin_home: Path) -> Made:
    """Calibrated on data of its own, judged on all of DATA."""
    words = ("--target", "x86-onnxruntime", "--data", DATA, "--calibration-data", CALIBRATION)
    return made_once(twin_home, "apart", *words, "--no-device", "--recipes", "int8-s8s8")


@pytest.fixture(scope="session")
def unlabelled(apart: Made, twin_home: Path) -> Made:
    words = ("--target", "x86-onnxruntime", "--calibration-data", CALIBRATION)
    return made_once(twin_home, "unlabelled", *words, "--no-device", "--recipes", "int8-s8s8")


def said_of(found: Document, word: str) -> list[str]:
    return [text for text in found["data"]["warnings"] if word in text]
