"""`deploy bench`: artifacts measured against each other, the first as the baseline."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from onmetal import cli
from tests import onnx_models
from tests.conftest import DIGITS

MODEL = DIGITS / "digits_cnn.onnx"

Document = dict[str, Any]
Run = Callable[..., tuple[int, Document]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`deploy bench WORDS --quick --json` in this process, measuring for an instant."""
    monkeypatch.chdir(tmp_path)

    def called(*words: str | Path) -> tuple[int, Document]:
        code = cli.main(["bench", *map(str, words), "--quick", "--json"])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        found: Document = json.loads(shown.out)
        assert found.get("error", {}).get("code", 0) == code
        return code, found

    return called


@pytest.fixture(scope="session")
def openvino_model(tmp_path_factory: pytest.TempPathFactory, shared_home: Path) -> Path:
    """The example in OpenVINO's own format, as a bundle holds it."""
    folder = tmp_path_factory.mktemp("openvino") / "digits"
    words = (str(MODEL), "--target", "x86-openvino", "--recipes", "fp32", "--no-device")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONMETAL_HOME", str(shared_home))
        assert cli.main([*words, "--out", str(folder)]) == 0
    return folder / "model.xml"


def names(found: Document) -> list[str]:
    return [entry["name"] for entry in found["candidates"]]


def test_a_model_is_measured_by_every_runtime(run: Run) -> None:
    code, found = run(MODEL, "--seed", "7")
    assert code == 0
    assert found["schema"] == 1
    assert found["mode"] == "quick"
    assert found["seed"] == 7
    assert found["device"]["address"] == "local"
    assert found["threads"] == found["device"]["cores"]
    assert names(found) == [
        *("digits_cnn.onnx fp32@onnxruntime", "digits_cnn.onnx fp32@openvino"),
        "digits_cnn.onnx fp32@litert",
    ]
    assert found["baseline"] == names(found)[0]
    for entry in found["candidates"]:
        assert entry["status"] == "ok"
        assert entry["latency_ms"]["p50"] > 0
        assert entry["latency_ms"]["rounds"] == 6
        assert entry["load_ms"]["samples"] == 2
        low, high = entry["versus_baseline"]["ci95"]
        assert low <= entry["versus_baseline"]["speedup"] <= high
    assert found["candidates"][0]["versus_baseline"]["speedup"] == 1


def test_one_file_given_twice_is_measured_twice(run: Run) -> None:
    code, found = run(MODEL, MODEL, "--target", "x86-onnxruntime")
    assert code == 0
    name = "digits_cnn.onnx fp32@onnxruntime"
    assert names(found) == [name, f"{name} #2"]
    assert found["baseline"] == name
    one, two = found["candidates"]
    assert one["latency_ms"] != two["latency_ms"]
    assert one["sha256"] == two["sha256"]
    assert two["versus_baseline"]["speedup"] != 1


def test_files_of_one_name_are_told_apart(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copyfile(MODEL, tmp_path / name / "model.onnx")
    code, found = run("one/model.onnx", "two/model.onnx", "--target", "x86-onnxruntime")
    assert code == 0
    assert len(set(names(found))) == 2


def test_the_first_is_the_baseline(run: Run, openvino_model: Path) -> None:
    code, found = run(openvino_model, MODEL, "--target", "x86-64")
    assert code == 0
    assert found["baseline"] == names(found)[0] == "model.xml fp32@openvino"
    assert len(names(found)) == 4
    assert all(entry["versus_baseline"] for entry in found["candidates"])


def test_a_bundle_is_measured_with_the_options_it_ships_with(run: Run, bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    code, found = run(bundle)
    assert code == 0
    (entry,) = found["candidates"]
    assert entry["name"] == f"{bundle.name} {manifest['chosen']}"
    assert entry["runtime"] == manifest["run"]["runtime"]
    assert entry["recipe"] == manifest["chosen"].partition("@")[0]
    assert entry["latency_ms"]["p50"] > 0


def test_a_bundle_measured_from_within_its_folder(
    run: Run, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)
    code, found = run(".")
    assert code == 0
    assert found["candidates"][0]["latency_ms"]["p50"] > 0


def test_options_come_in_any_order(run: Run) -> None:
    code, found = run("--target", "x86-onnxruntime", MODEL, "--threads", "1", MODEL)
    assert code == 0
    assert found["threads"] == 1
    assert len(names(found)) == 2


def test_a_batch_is_what_runs(run: Run) -> None:
    code, found = run(MODEL, "--target", "x86-onnxruntime", "--batch", "8")
    assert code == 0
    assert found["candidates"][0]["macs"] == 8 * 8_765_800


def test_a_free_shape_is_given(run: Run, tmp_path: Path) -> None:
    model = onnx_models.save(onnx_models.relu(["n", "width"]), tmp_path / "free.onnx")
    assert run(model)[0] == 2
    assert run(model, "--input-shape", "x=1,16")[0] == 0


@pytest.mark.parametrize(
    "name", ["missing.onnx", "missing.xml", "missing", "empty", "broken.onnx", "broken.xml"]
)
def test_what_cannot_be_read_exits_2(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    (tmp_path / "broken.xml").write_bytes(b"no model")
    code, found = run(MODEL, name, "--target", "x86-onnxruntime")
    assert code == 2
    assert name in found["error"]["message"]


def test_a_bundle_that_sets_unknown_options_is_not_run(
    run: Run, bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["run"]["options"]["optimized_model_filepath"] = str(tmp_path / "written")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    code, found = run(copy)
    assert code == 2
    assert "optimized_model_filepath" in found["error"]["message"]
    assert not (tmp_path / "written").exists()


def test_an_artifact_that_does_not_run_fails_alone(
    run: Run, openvino_model: Path, tmp_path: Path
) -> None:
    shutil.copyfile(openvino_model, tmp_path / "cut.xml")
    (tmp_path / "cut.bin").write_bytes(openvino_model.with_suffix(".bin").read_bytes()[:100])
    code, found = run(MODEL, "cut.xml", "--target", "x86-onnxruntime")
    if code == 2:
        assert "cut.xml" in found["error"]["message"]
        return
    assert code == 0
    first, last = found["candidates"]
    assert first["status"] == "ok"
    assert last["status"] == "failed"
    assert last["reason"]
    assert last["latency_ms"] is None


def test_what_one_runtime_cannot_run_is_said(run: Run, tmp_path: Path) -> None:
    model = onnx_models.build(
        [onnx_models.node("Det", "x", "y")],
        [onnx_models.value("x", [1, 3, 3])],
        [onnx_models.value("y", [1])],
    )
    path = onnx_models.save(model, tmp_path / "det.onnx")
    code, found = run(path)
    assert code == 0
    entries = {entry["runtime"]: entry for entry in found["candidates"]}
    assert entries["onnxruntime"]["status"] == "ok"
    assert entries["openvino"]["status"] == "failed"
    assert "Det" in entries["openvino"]["reason"]


def test_what_no_runtime_can_run_exits_3(run: Run, tmp_path: Path) -> None:
    model = onnx_models.build(
        [onnx.helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.microsoft")],
        [onnx_models.value("x", [1, 4])],
        [onnx_models.value("y", [1, 4])],
        domains=["com.microsoft"],
    )
    path = onnx_models.save(model, tmp_path / "strange.onnx")
    code, found = run(path)
    assert code == 3
    assert "NoSuchOperator" in found["error"]["message"]


def test_the_table_names_every_entry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(MODEL), "--quick"]) == 0
    shown = capsys.readouterr()
    assert "digits_cnn.onnx fp32@onnxruntime" in shown.out
    assert "digits_cnn.onnx fp32@openvino" in shown.out
    assert "[1/2]" in shown.err
    assert "[1/2]" not in shown.out
