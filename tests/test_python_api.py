"""`onmetal.deploy` from Python: the options, the path and the results of the command line."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onmetal
from onmetal.commands import options
from onmetal.errors import BudgetError, OnmetalError, UsageError
from onmetal.records import plain
from tests.conftest import DIGITS, ROOT
from tests.conftest import deploy_here as deploy
from tests.test_packaging import HEAVY, python

MODEL, TARGET = DIGITS / "digits_cnn.onnx", "x86-onnxruntime"
NOT_OPTIONS = {"models", "json", "help", "version"}
OF_PYTHON = {"model", "example_inputs", "name", "progress"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, shared_home: Path) -> dict[str, Any]:
    """What a process that holds the frameworks found (tests/python_api_calls.py), with `folder`."""
    folder = tmp_path_factory.mktemp("api")
    shutil.copytree(DIGITS, folder / "examples/digits")
    script, page = ROOT / "tests/python_api_calls.py", ROOT / "docs/python.md"
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(page), str(folder)],
        env={**os.environ, "ONMETAL_HOME": str(shared_home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout), "folder": folder}


# --- the function


@pytest.mark.parametrize(
    "code",
    [
        "import onmetal\nfunction = onmetal.deploy",
        "from onmetal import deploy as function",
        "import onmetal.deploy.request\nfunction = onmetal.deploy",
        "from onmetal.deploy import run\nimport onmetal\nfunction = onmetal.deploy",
        "import onmetal\nonmetal.deploy\nimport onmetal.deploy.run\nfunction = onmetal.deploy",
    ],
)
def test_it_is_the_same_in_any_order_of_import(code: str, tmp_path: Path) -> None:
    tail = """
import inspect, sys
import onmetal.deploy.request
assert function is onmetal.deploy is sys.modules["onmetal.deploy"]
print(callable(function), next(iter(inspect.signature(function).parameters)))
from onmetal.errors import UsageError
try:
    function("none.onnx", target="x86-64")
except UsageError as error:
    print(error)
"""
    said = python(code + tail, cwd=tmp_path)
    assert said.startswith("True model\nnone.onnx: there is no such file")


def test_naming_it_loads_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, onmetal\nonmetal.deploy\nprint(*{name.split('.')[0] for name in sys.modules})"
    )
    assert not HEAVY & set(python(code, cwd=tmp_path).split())


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        onmetal.nothing  # type: ignore[attr-defined]  # noqa: B018
    assert "deploy" in dir(onmetal)


def test_it_has_every_option_of_the_command() -> None:
    of_command = {action.dest for action in options.deploy()._actions} - NOT_OPTIONS
    parameters = inspect.signature(onmetal.deploy).parameters
    assert set(parameters) == of_command | OF_PYTHON
    defaults = options.deploy().parse_args([])
    for name in of_command - {"target", "minimize", "golden", "input_shape", "cut_at"}:
        assert parameters[name].default == getattr(defaults, name), name


# --- files


def test_a_plan_is_that_of_the_command() -> None:
    report = onmetal.deploy(
        MODEL,
        target=TARGET,
        data=str(DIGITS / "digits.npz"),
        max_accuracy_drop=0.02,
        max_size=2_000_000,
        max_latency="5ms",
        input_shape={"image": (2, 1, 8, 8)},
        recipes=["fp32", "int8-s8s8"],
        dry_run=True,
    )
    words = ("--data", DIGITS / "digits.npz", "--max-accuracy-drop", "0.02", "--max-size", "2MB")
    more = ("--max-latency", "5ms", "--input-shape", "image=2,1,8,8", "--recipes", "fp32,int8-s8s8")
    ran = deploy(MODEL, "--target", TARGET, *words, *more, "--dry-run", "--json")
    document, found = ran.document, plain(report)
    for entry in (document, found):  # the load of the machine differs from moment to moment
        del entry["device"]["state"]
    assert json.loads(json.dumps(found)) == document
    assert report.models[0].batch == 2 and report.budget["max_size_bytes"] == 2_000_000


def test_arrays_are_data_as_a_file_of_them_is(tmp_path: Path) -> None:
    stored = np.load(DIGITS / "digits.npz")
    reports = [
        onmetal.deploy(MODEL, target=TARGET, data=data, dry_run=True)
        for data in (
            DIGITS / "digits.npz",
            (stored["x"], stored["y"]),
            {"image": stored["x"], "y": stored["y"].tolist()},
        )
    ]
    for report in reports:
        assert report.data.metric == "top1" and report.data.evaluation_samples == 450
        assert report.data.calibration_samples == 150
    assert reports[1].data.source == reports[2].data.source == "data/arrays.npz"


def test_nothing_temporary_is_left(shared_home: Path) -> None:
    stored = np.load(DIGITS / "digits.npz")
    onmetal.deploy(MODEL, target=TARGET, calibration_data=stored["x"], dry_run=True)
    left = [path for path in (shared_home / "building").iterdir() if (path / "data").exists()]
    assert not left


def test_it_is_silent_but_where_progress_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    onmetal.deploy(MODEL, target=TARGET, dry_run=True)
    assert capfd.readouterr() == ("", "")
    onmetal.deploy(MODEL, target=TARGET, dry_run=True, progress=True)
    out, err = capfd.readouterr()
    assert not out and "reading the model and the data" in err


def test_an_error_has_the_report(tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as error:
        onmetal.deploy(
            [MODEL],
            target=TARGET,
            no_device=True,
            max_size="1kB",
            recipes="fp32",
            out=tmp_path / "out",
        )
    assert error.value.exit_code == 5 and error.value.document.document.chosen is None


X = np.zeros((3, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_latency": 20}, "did you mean 20ms?"),
        ({"max_latency": True}, "write it as on the command line"),
        ({"max_energy": 5.0}, "did you mean 5.0mJ?"),
        ({"time_limit": 30}, "did you mean 30min"),
        ({"max_size": 0}, "must be more than zero"),
        ({"max_size": 10.5}, "has no unit"),
        ({"max_accuracy_drop": float("nan")}, "must be a finite number"),
        ({"max_accuracy_drop": 1}, "did you mean 1%?"),
        ({"minimize": "latencies"}, "did you mean latency?"),
        ({"golden": 1}, "none of real, random, none"),
        ({"force": "yes"}, "True or False is wanted"),
        ({"quick": True, "thorough": True}, "opposite things"),
        ({"no_device": True, "device": "adb"}, "opposite things"),
        ({"batch": 2.0}, "a whole number is wanted"),
        ({"batch": 0}, "must be 1 or more"),
        ({"threads": True}, "a whole number is wanted"),
        ({"recipes": []}, "a list of names is wanted"),
        ({"recipes": "fp33"}, "did you mean fp32?"),
        ({"input_shape": "image=1"}, "a dict like"),
        ({"input_shape": {"image": (1, 0)}}, "write it like NAME=1,3,224,224"),
        ({"out": ""}, "a text or a path is wanted"),
        ({"metric": len}, "'MODULE:FUNCTION'"),
        ({"data": X}, "data is a ndarray"),
        ({"data": {"x": X}}, "lacks the labels, under 'y'"),
        ({"data": (X, [[1], [2, 3]])}, "cannot be made an array"),
        ({"data": (X, ["a", None, {}])}, "holds Python objects"),
        ({"data": {"picture": X, "y": [0, 1, 2]}}, "picture"),
        ({"data": (X, [0, 1])}, "samples"),
        ({"calibration_data": print}, "'MODULE:FUNCTION'"),
        ({"name": "net"}, "a file has its own"),
        ({"example_inputs": X}, "a file has its own"),
        ({"target": "x86"}, "did you mean"),
        ({"target": None}, "a text or a path is wanted"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], said: str) -> None:
    data = {} if "data" in given else {"data": DIGITS / "digits.npz"}
    with pytest.raises(UsageError) as error:
        onmetal.deploy(MODEL, **{"target": TARGET, "dry_run": True, **data, **given})
    assert said in str(error.value)


@pytest.mark.parametrize("model", [object(), None, b"net.onnx", [], np.zeros(3), [MODEL, 3]])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(OnmetalError, match="is no model that is known; give the path"):
        onmetal.deploy(model, target=TARGET, dry_run=True)


# --- models in memory


@pytest.fixture
def of_torch_module(found: dict[str, Any]) -> dict[str, Any]:
    return dict(found["torch"])


def test_a_module_computes_as_in_eval_mode(of_torch_module: dict[str, Any]) -> None:
    """By its bundle's own run.py, against the module in eval mode."""
    bundle = Path(of_torch_module["bundle"])
    sample = {
        name: np.array(values[3:4], np.float32)
        for name, values in of_torch_module["inputs"].items()
    }
    np.savez(bundle.parent / "inputs.npz", **sample)  # type: ignore[arg-type]
    out = bundle.parent / "out.npz"
    command = [sys.executable, str(bundle / "run.py"), str(bundle.parent / "inputs.npz"), str(out)]
    subprocess.run(command, check=True, capture_output=True)
    (name,) = np.load(out).files
    expected = np.array(of_torch_module["evaluated"][3:4], np.float32)
    np.testing.assert_allclose(np.load(out)[name], expected, rtol=1e-4, atol=1e-5)


def test_a_module_is_left_as_it_was(of_torch_module: dict[str, Any]) -> None:
    assert of_torch_module["restored"] is True
    assert of_torch_module["still"] is True, "also where the export failed"


def test_how_a_module_became_a_file_is_told(of_torch_module: dict[str, Any]) -> None:
    ((path, form, notes),) = of_torch_module["models"]
    assert (path, form) == ("net.pt2", "torch_export")
    assert "eval mode; its shapes are fixed: [1, 1, 8, 8], [1, 1, 1, 1]" in notes[0]
    assert of_torch_module["source"] == "calibration_data/arrays.npz"
    assert notes[0] in of_torch_module["warnings"]
    manifest = json.loads((Path(of_torch_module["bundle"]) / "manifest.json").read_text())
    assert manifest["models"][0]["notes"] == notes
    assert manifest["models"][0]["path"] == "net.pt2"


def test_a_module_is_compared_with_pytorch(of_torch_module: dict[str, Any]) -> None:
    assert not [text for text in of_torch_module["warnings"] if "cannot be run by" in text]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("without", "UsageError: a PyTorch module needs example_inputs"),
        ("text", "UsageError: example_inputs hold a str"),
        ("name", "UsageError: name='../net'"),
        ("script", "UsageError: this is TorchScript"),
        ("branches", "UnsupportedError: PyTorch "),
        ("twice", "UsageError: an exported program has its shapes"),
    ],
)
def test_what_is_refused_of_modules(of_torch_module: dict[str, Any], call: str, said: str) -> None:
    assert of_torch_module[call].startswith(said)


def test_an_exported_program_is_a_model(of_torch_module: dict[str, Any]) -> None:
    assert of_torch_module["given"] == ["given.pt2", True]


def test_a_keras_model_is_saved(found: dict[str, Any]) -> None:
    (model,) = found["examples"][2]["models"]
    assert (model["path"], model["format"]) == ("digits.keras", "keras")
    assert [entry["name"] for entry in model["inputs"]] == ["image"]
    assert "saved from a Keras model in memory" in model["notes"]
    assert model["imported"]["largest_difference"] < 1e-5


def test_a_keras_model_of_own_layers_is_exported(found: dict[str, Any]) -> None:
    path, form, notes, name, difference = found["keras"]["custom"]
    assert (path, form, name) == ("custom", "saved_model", "pixels")
    assert "exported as a SavedModel" in notes[0] and difference < 1e-5


def test_what_is_refused_of_keras_models(found: dict[str, Any]) -> None:
    assert "call it once on an input, so that it is built" in found["keras"]["unbuilt"]
    assert "example_inputs are for PyTorch modules" in found["keras"]["examples"]


# --- the examples of the docs


def test_the_examples_of_the_page_run(found: dict[str, Any]) -> None:
    of_file, of_module, of_keras, of_errors = found["examples"]
    assert of_file["chosen"] == "fp32@onnxruntime" and not of_errors
    assert of_module["chosen"].startswith("fp32@")
    chosen = next(e for e in of_module["candidates"] if e["name"] == of_module["chosen"])
    assert chosen["accuracy"]["value"] > 0.9, "it was trained"
    assert of_keras["dry_run"] is True
    for name in ("digits-bundle", "digits-x86-64"):
        assert (found["folder"] / name / "manifest.json").is_file()


def test_the_readmes_example_is_one_of_the_page() -> None:
    (block,) = re.findall(r"```python\n.*?```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert block in (ROOT / "docs/python.md").read_text("utf-8")
