"""The main job on the example model: what is tried, judged, chosen, said and written."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from onmetal import cli
from onmetal.profilers.devices.local import quiet_environment
from onmetal.profilers.measure import MODES, Schedule
from onmetal.runtimes import fit
from tests import onnx_models
from tests.conftest import DIGITS, FLOAT, deploy

MODEL = DIGITS / "digits_cnn.onnx"
DATA = DIGITS / "digits.npz"
CALIBRATION = DIGITS / "calibration.npz"
BF16 = {"avx512_bf16", "amx_bf16"}
FP16 = {"avx512_fp16", "amx_fp16"}

Document = dict[str, Any]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def document(bundle: Path) -> Document:
    """What the run that made the bundle said."""
    found: Document = json.loads((bundle.parent / "digits.json").read_text())
    return found


@pytest.fixture(scope="session")
def flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next(line for line in lines if line.startswith("flags")).partition(":")[2].split())


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
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> Callable[..., tuple[int, Document]]:
    """`deploy WORDS --json` in this process, in an empty folder, measuring for an instant."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setitem(MODES, "quick", Schedule(2, 3, 0.01, 0.01, 0.0, 1))

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


def candidates(found: Document) -> dict[str, Document]:
    return {entry["name"]: entry for entry in found["candidates"]}


def statuses(found: Document) -> dict[str, str]:
    return {entry["name"]: entry["status"] for entry in found["candidates"]}


# --- the document


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_the_document_has_every_key(document: Document) -> None:
    assert document["schema"] == 1
    assert document["target"] == "x86-64"
    assert document["mode"] == "quick"
    assert document["decided_by"] == document["minimize"] == "latency"
    (model,) = document["models"]
    assert model["path"] == str(MODEL)
    assert model["format"] == "onnx"
    assert model["sha256"] == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert model["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 1, 8, 8]}]
    assert model["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [1, 10]}]
    assert model["parameters"] == 91_530
    assert model["macs"] == 8_765_800
    assert document["data"]["calibration_samples"] == 150
    assert document["data"]["evaluation_samples"] == 450
    assert all(isinstance(text, str) for text in document["data"]["warnings"])
    device = document["device"]
    assert device["address"] == "local"
    assert isinstance(device["cpu"], str)
    assert isinstance(device["os"], str)
    assert isinstance(device["cores"], int)
    assert isinstance(device["emulated"], bool)
    assert document["budget"] == {"max_accuracy_drop": 0.01}
    assert document["batch"] == 1
    assert document["threads"] == device["cores"]
    names = [entry["name"] for entry in document["candidates"]]
    assert len(names) == len(set(names))
    assert document["baseline"] in names
    assert document["chosen"] in names
    assert set(document["pareto"]) <= set(names)
    assert Path(document["bundle"]).is_dir()


def test_every_candidate_has_every_key(document: Document) -> None:
    for entry in document["candidates"]:
        assert entry["name"] == f"{entry['recipe']}@{entry['runtime']}"
        assert entry["model"] == "digits_cnn"
        assert entry["status"] in ("chosen", "ok", "over-budget", "failed", "skipped")
        assert isinstance(entry["details"], dict)
        assert entry["energy_mj"] is None
        if entry["status"] == "skipped":
            assert entry["latency_ms"] is entry["accuracy"] is entry["versus_baseline"] is None
            continue
        assert entry["runtime_version"].count(".") >= 1
        assert entry["size_bytes"] > 0
        assert entry["macs"] == 8_765_800
        assert "meter" in entry["missing"]["energy_mj"]


def tried(document: Document) -> list[Document]:
    found = [e for e in document["candidates"] if e["status"] in ("chosen", "ok", "over-budget")]
    assert {"fp32@onnxruntime", "fp32@openvino"} <= {entry["name"] for entry in found}
    return found


def test_every_figure_says_what_it_rests_on(document: Document) -> None:
    for entry in tried(document):
        accuracy = entry["accuracy"]
        assert accuracy["metric"] == "top1"
        assert accuracy["samples"] == 450
        low, high = accuracy["drop_ci95"]
        assert low <= accuracy["drop"] <= high
        assert is_number(entry["fidelity"]["sqnr_db"]["logits"])
        latency = entry["latency_ms"]
        low, high = latency["p50_ci95"]
        assert low <= latency["p50"] <= high
        assert latency["p50"] <= latency["p90"]
        assert latency["samples"] >= latency["rounds"] > 1
        assert latency["basis"] == "measured"
        for key in ("throughput_per_s", "load_ms", "peak_memory_bytes"):
            figure = entry[key]
            assert figure["value"] > 0
            assert figure["samples"] >= 1
            assert figure["basis"] == "measured"
            assert figure["how"]
            assert figure["ci95"] is None or len(figure["ci95"]) == 2
        versus = entry["versus_baseline"]
        low, high = versus["ci95"]
        assert low <= versus["speedup"] <= high
        wanted = "faster" if low > 1 else "slower" if high < 1 else "inconclusive"
        assert versus["verdict"] == wanted


def test_every_candidate_says_what_really_ran(document: Document) -> None:
    for entry in tried(document):
        ran = entry["ran_on"]
        for shares in (ran["provider"], ran["precision"], ran["operators"]):
            assert sum(shares.values()) == pytest.approx(1, abs=0.01)
        if entry["recipe"] == "fp32":
            assert ran["precision"].get("f32", 0) > 0.99
        if entry["recipe"].startswith("int8-"):
            assert ran["precision"]["i8"] > 0.05


def raw_samples(found: Document) -> dict[str, np.ndarray]:
    """Nanoseconds by candidate; of fresh blocks by `again/…` and `rejected/pick/…`."""
    parts: dict[str, list[np.ndarray]] = {}
    with np.load(Path(found["bundle"]) / "measurements.npz") as raw:
        for name in raw.files:
            parts.setdefault(name.rsplit("/", 2)[0], []).append(raw[name])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def test_raw_samples_give_the_figures(document: Document) -> None:
    raw = raw_samples(document)
    for entry in tried(document):
        name = entry["name"]
        if entry["status"] == "chosen":
            name = f"again/{name}"
        elif entry["reason"].startswith("measured again"):
            name = f"rejected/{name}/{name}"
        latency = entry["latency_ms"]
        assert latency["samples"] == len(raw[name])
        assert latency["p50"] == pytest.approx(np.percentile(raw[name], 50) / 1e6)
        assert latency["p90"] == pytest.approx(np.percentile(raw[name], 90) / 1e6)
        rate = entry["throughput_per_s"]["value"]
        assert rate == pytest.approx(1e9 / raw[name].mean())


def test_one_is_chosen_and_the_others_say_why_not(document: Document) -> None:
    found = statuses(document)
    assert [name for name, status in found.items() if status == "chosen"] == [document["chosen"]]
    for entry in document["candidates"]:
        if entry["status"] == "chosen":
            assert entry["reason"] is None
        else:
            assert entry["reason"]


def test_the_baseline_is_the_fastest_exact_fp32(document: Document) -> None:
    base = candidates(document)[document["baseline"]]
    assert base["recipe"] == "fp32"
    assert base["versus_baseline"]["speedup"] == 1
    for entry in tried(document):
        if entry["recipe"] != "fp32" or entry["name"] == base["name"]:
            continue
        if "chosen" not in (entry["status"], base["status"]):
            assert base["latency_ms"]["p50"] <= entry["latency_ms"]["p50"]


def test_halves_are_tried_where_the_cpu_computes_them(document: Document, flags: set[str]) -> None:
    found = candidates(document)
    for recipe, wanted in (("bf16", BF16), ("fp16", FP16)):
        entry = found[f"{recipe}@openvino"]
        if wanted & flags:
            assert entry["status"] != "skipped"
            assert entry["ran_on"]["precision"][{"fp16": "f16"}.get(recipe, recipe)] > 0.05
        else:
            assert entry["status"] == "skipped"
            assert "avx512" in entry["reason"]
        assert found[f"{recipe}@onnxruntime"]["status"] == "skipped"


def test_what_is_not_in_the_pareto_set_is_dominated(document: Document) -> None:
    """In exactness, accuracy and size at least; latency and memory have noise."""
    target = fit.load_target("x86-64")

    def cost(entry: Document) -> tuple[float, float, float]:
        rank = target.exactness(entry["recipe"])
        return rank, entry["accuracy"]["drop"], entry["size_bytes"]

    costs = {entry["name"]: cost(entry) for entry in tried(document)}
    assert document["chosen"] in document["pareto"]
    assert set(document["pareto"]) <= set(costs)
    for name in costs.keys() - set(document["pareto"]):
        others = [mine for other, mine in costs.items() if other != name]
        assert any(all(a <= b for a, b in zip(o, costs[name], strict=True)) for o in others)


# --- accuracy, by programs that know nothing of onmetal

SCORE = """
import json, sys
import numpy as np
{load}
data = np.load({data!r})
chosen = {indices!r}
hits = [int(run(x[None])[0].argmax()) == y for x, y in zip(data["x"][chosen], data["y"][chosen])]
assert not any(name.partition(".")[0] == "onmetal" for name in sys.modules)
print(json.dumps(sum(hits) / len(hits)))
"""


def score(load: str, bundle: Path, home: Path) -> float:
    """Over the samples that the bundle's manifest says it was judged on."""
    indices = json.loads((bundle / "manifest.json").read_text())["evaluation_indices"]
    done = subprocess.run(
        [sys.executable, "-B", "-c", SCORE.format(load=load, data=str(DATA), indices=indices)],
        env=quiet_environment(home),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout))


def test_accuracy_is_what_the_bundle_gives(
    bundle: Path, document: Document, tmp_path: Path
) -> None:
    load = f"""
sys.path.insert(0, {str(bundle)!r})
from run import load
session = load()
run = lambda x: session.run({{"image": x}})[0]
"""
    chosen = candidates(document)[document["chosen"]]
    assert score(load, bundle, tmp_path) == pytest.approx(chosen["accuracy"]["value"], abs=1e-12)


def test_accuracy_of_fp32_is_what_the_original_gives(
    bundle: Path, document: Document, tmp_path: Path
) -> None:
    load = f"""
import onnxruntime
session = onnxruntime.InferenceSession({str(MODEL)!r}, providers=["CPUExecutionProvider"])
run = lambda x: session.run(None, {{"image": x}})[0]
"""
    fp32 = candidates(document)["fp32@onnxruntime"]["accuracy"]
    assert score(load, bundle, tmp_path) == pytest.approx(fp32["value"], abs=1e-12)
    assert fp32["drop"] == 0


# --- what is chosen from


def test_recipes_leave_the_rest_out(run: Run, flags: set[str]) -> None:
    code, found = run(*STILL, "--recipes", "fp32")
    assert code == 0
    assert found["chosen"].startswith("fp32@")
    reason = candidates(found)["bf16@openvino"]["reason"]
    assert "--recipes" in reason if BF16 & flags else "avx512_bf16" in reason


def test_fp32_is_the_reference_where_recipes_leave_it_out(run: Run, flags: set[str]) -> None:
    code, found = run(*STILL, "--recipes", "bf16")
    for name in ("fp32@onnxruntime", "fp32@openvino"):
        entry = candidates(found)[name]
        assert entry["status"] == "skipped"
        assert "reference" in entry["reason"]
        assert entry["accuracy"]["drop"] == pytest.approx(0, abs=1e-9)
    assert found["baseline"].startswith("fp32@")
    if BF16 & flags:
        assert (code, found["chosen"]) == (0, "bf16@openvino")
    else:
        assert (code, found["chosen"]) == (5, None)
        assert "avx512_bf16" in found["error"]["message"]


def test_several_families_can_be_asked_for(run: Run) -> None:
    code, found = run(*STILL, "--recipes", "bf16, fp32")
    assert code == 0
    assert "reference" not in (candidates(found)["fp32@onnxruntime"]["reason"] or "")


@pytest.mark.parametrize("aim", ["size", "accuracy-drop"])
def test_what_needs_no_timing_decides_without_a_device(aim: str, run: Run) -> None:
    code, found = run(*STILL, "--minimize", aim)
    assert code == 0
    assert found["minimize"] == found["decided_by"] == aim
    assert candidates(found)[found["chosen"]]["recipe"] == "fp32" or aim == "size"


def test_the_smallest_wins_by_size(run: Run) -> None:
    code, found = run(*STILL, "--minimize", "size")
    assert code == 0
    ran = [e for e in found["candidates"] if e["status"] in ("chosen", "ok")]
    assert len(ran) > 1
    chosen = candidates(found)[found["chosen"]]
    assert chosen["size_bytes"] == min(entry["size_bytes"] for entry in ran)
    files = json.loads((Path(found["bundle"]) / "manifest.json").read_text())["run"]["files"]
    there = sum((Path(found["bundle"]) / name).stat().st_size for name in files)
    assert chosen["size_bytes"] == there


def test_memory_decides_where_asked(run: Run) -> None:
    code, found = run(*PLAIN, "--minimize", "memory", "--quick")
    assert code == 0
    assert found["decided_by"] == "memory"
    peaks = {e["name"]: e["peak_memory_bytes"]["value"] for e in tried(found)}
    assert peaks[found["chosen"]] <= 1.02 * min(peaks.values())


def test_throughput_decides_where_asked(run: Run) -> None:
    code, found = run(*PLAIN, "--minimize", "throughput", "--quick")
    assert code == 0
    assert found["decided_by"] == "throughput"
    for entry in tried(found):
        assert entry["throughput_per_s"]["value"] > 0
        if entry["status"] == "ok":
            assert "than" in entry["reason"] or "throughput" in entry["reason"]


# --- without a device, labels or data


def test_without_a_device_nothing_is_timed_and_size_decides(run: Run) -> None:
    code, found = run(*STILL)
    assert code == 0
    assert found["decided_by"] == "size"
    assert found["minimize"] == "latency"
    for entry in found["candidates"]:
        assert entry["latency_ms"] is entry["throughput_per_s"] is entry["load_ms"] is None
        assert entry["peak_memory_bytes"] is entry["versus_baseline"] is None
        if entry["status"] != "skipped":
            assert entry["accuracy"]["value"] > 0.9
            for key in ("latency_ms", "throughput_per_s", "peak_memory_bytes", "energy_mj"):
                assert "unmeasured" in entry["missing"][key]
    manifest = json.loads((Path(found["bundle"]) / "manifest.json").read_text())
    assert manifest["measured"] is False
    assert "unmeasured" in manifest
    assert "unmeasured" in (Path(found["bundle"]) / "README.md").read_text()
    assert not (Path(found["bundle"]) / "measurements.npz").exists()


def test_device_none_is_no_device(run: Run) -> None:
    _, one = run(*STILL, "--out", "one")
    _, two = run(*PLAIN, "--device", "none", "--out", "two")
    assert one["chosen"] == two["chosen"]
    assert statuses(one) == statuses(two)


def test_without_data_nothing_but_fidelity_is_known(run: Run) -> None:
    code, found = run(MODEL, "--target", "x86-64", "--no-device")
    assert code == 0
    assert found["data"]["evaluation_samples"] == 0
    assert found["data"]["metric"] is None
    assert any("no task metric" in text for text in found["data"]["warnings"])
    for entry in found["candidates"]:
        assert entry["accuracy"] is None
    assert candidates(found)["fp32@onnxruntime"]["fidelity"]["sqnr_db"]["logits"] > 100
    assert candidates(found)["fp32@openvino"]["fidelity"]["sqnr_db"]["logits"] > 60


def test_without_any_data_only_float_is_tried(run: Run) -> None:
    code, found = run(MODEL, "--target", "x86-64", "--no-device", "--dry-run")
    assert code == 0
    planned = {e["recipe"] for e in found["candidates"] if e["status"] == "planned"}
    assert {"fp32"} <= planned <= {"fp32", "fp16", "bf16"}
    for name in ("int8-u8s8@onnxruntime", "int8-nncf@openvino", "int8-fast@openvino"):
        assert "--data or --calibration-data" in candidates(found)[name]["reason"]


def test_calibration_data_alone_judges_by_fidelity(run: Run) -> None:
    words = (MODEL, "--target", "x86-64", "--no-device", "--calibration-data", CALIBRATION)
    code, found = run(*words, "--recipes", "fp32,int8-u8u8")
    assert code == 0
    assert found["data"]["calibration_samples"] == 256
    assert found["data"]["evaluation_samples"] == 0
    assert any("no task metric" in text for text in found["data"]["warnings"])
    for entry in found["candidates"]:
        assert entry["accuracy"] is None
        if entry["status"] in ("ok", "chosen"):
            assert entry["fidelity"]["sqnr_db"]["logits"] > 20
    fits = {entry["recipe"] for entry in found["candidates"] if entry["status"] in ("ok", "chosen")}
    assert {"fp32", "int8-u8u8"} == fits


def test_samples_in_both_parts_are_said(run: Run, tmp_path: Path) -> None:
    with np.load(DATA) as data:
        np.savez(tmp_path / "some.npz", x=data["x"][:50])
    words = ("--calibration-data", tmp_path / "some.npz")
    code, found = run(*FULL, "--no-device", *words, "--dry-run")
    assert code == 0
    assert found["data"]["calibration_samples"] == 50
    assert found["data"]["evaluation_samples"] == 600
    said = "50 of the evaluation samples are in --calibration-data too;"
    assert any(text.startswith(said) for text in found["data"]["warnings"])


# --- several models


def test_models_compete_and_the_most_accurate_is_the_reference(run: Run, noisy: Path) -> None:
    code, found = run(noisy, *STILL)
    assert code == 0
    assert [Path(entry["path"]).stem for entry in found["models"]] == ["noisy", "digits_cnn"]
    for entry in found["candidates"]:
        assert entry["name"] == f"{entry['model']}/{entry['recipe']}@{entry['runtime']}"
    entries = candidates(found)
    best = entries["digits_cnn/fp32@onnxruntime"]["accuracy"]
    worse = entries["noisy/fp32@onnxruntime"]["accuracy"]
    assert best["drop"] == 0
    assert worse["value"] < best["value"] - 0.01
    assert worse["drop"] == pytest.approx(best["value"] - worse["value"])
    assert found["baseline"].startswith("digits_cnn/fp32@")
    assert found["chosen"].startswith("digits_cnn/")
    assert entries["noisy/fp32@onnxruntime"]["status"] == "over-budget"
    assert "accuracy drop" in entries["noisy/fp32@onnxruntime"]["reason"]
    assert entries["noisy/fp32@openvino"]["fidelity"]["sqnr_db"]["logits"] > 60


def test_no_accuracy_budget_lets_the_worse_model_compete(run: Run, noisy: Path) -> None:
    code, found = run(noisy, *STILL, "--max-accuracy-drop", "none")
    assert code == 0
    assert found["budget"] == {}
    assert statuses(found)["noisy/fp32@onnxruntime"] in ("ok", "chosen")


def test_several_models_are_measured_together(run: Run, noisy: Path) -> None:
    code, found = run(noisy, *PLAIN, "--recipes", "fp32", "--quick")
    assert code == 0
    entries = candidates(found)
    assert entries["noisy/fp32@openvino"]["latency_ms"]["p50"] > 0
    assert entries["noisy/fp32@openvino"]["versus_baseline"]["speedup"] > 0
    assert found["chosen"].startswith("digits_cnn/")
    timed = {entry["name"] for entry in found["candidates"] if entry["latency_ms"]}
    assert len(timed) >= 4
    assert timed == {
        name for name in raw_samples(found) if not name.startswith(("again/", "rejected/"))
    }


def test_models_of_other_inputs_do_not_compete(run: Run, tmp_path: Path) -> None:
    other = onnx_models.save(onnx_models.add([1, 4], [1, 4], [1, 4]), tmp_path / "add.onnx")
    code, found = run(other, *STILL)
    assert code == 2
    assert "inputs" in found["error"]["message"]


def test_an_interval_that_crosses_the_budget_is_flagged(run: Run, tmp_path: Path) -> None:
    model = onnx.load_model(str(MODEL))
    (last,) = (t for t in model.graph.initializer if list(t.dims) == [10, 80])
    last.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(last) * np.float32(1.001), last.name)
    )
    other = onnx_models.save(model, tmp_path / "other.onnx")
    with np.load(DATA) as data:
        np.savez(tmp_path / "few.npz", x=data["x"][:150], y=data["y"][:150])
    words = (MODEL, other, "--target", "x86-64", "--data", tmp_path / "few.npz", "--no-device")
    code, found = run(*words, *FLOAT)
    assert code == 0
    entry = candidates(found)["other/fp32@onnxruntime"]
    assert entry["accuracy"]["drop"] <= 0.01 < entry["accuracy"]["drop_ci95"][1]
    assert any("interval" in text for text in entry["warnings"])
    assert not candidates(found)["digits_cnn/fp32@onnxruntime"]["warnings"]


# --- budgets that cannot be met


def test_an_impossible_budget_exits_5_with_every_objection(run: Run) -> None:
    words = (*STILL, "--max-size", "1%", "--min-accuracy", "99.9%", "--max-macs", "50%")
    code, found = run(*words, "--out", "out")
    assert code == 5
    assert found["chosen"] is None
    assert found["bundle"] is None
    for entry in found["candidates"]:
        if entry["status"] == "skipped":
            continue
        assert entry["status"] == "over-budget"
        for word in ("size", "top1", "MACs"):
            assert word in entry["reason"]
        assert entry["name"] in found["error"]["message"]
        assert entry["reason"] in found["error"]["message"]
    assert [path.name for path in Path("out").iterdir()] == ["report.json"]
    report = json.loads(Path("out/report.json").read_text())
    assert report["chosen"] is None
    assert report["error"]["code"] == 5
    assert report["candidates"] == found["candidates"]
    code, found = run(*STILL, "--out", "out")
    assert code == 0
    assert not Path("out/report.json").exists()
    assert Path("out/manifest.json").exists()


def test_a_refusal_is_said_on_stderr_and_the_table_on_stdout(tmp_path: Path) -> None:
    ran = deploy(*STILL, "--max-size", "1%", "--out", tmp_path / "out")
    assert ran.code == 5
    assert "=! fp32@onnxruntime" in ran.out and "is over" not in ran.out
    assert "=! fp32@onnxruntime" not in ran.err
    assert "fp32@onnxruntime: size" in ran.err
    assert str(tmp_path / "out" / "report.json") in ran.err


def test_p90_is_held_against_the_latency_budget(run: Run) -> None:
    code, found = run(*PLAIN, "--quick", "--max-latency", "1ns")
    assert code == 5
    for entry in tried(found):
        assert f"p90 latency {entry['latency_ms']['p90']:.4g} ms" in entry["reason"]


def test_a_memory_budget_is_held_against_the_peak(run: Run) -> None:
    code, found = run(*PLAIN, "--quick", "--max-memory", "1kB")
    assert code == 5
    assert all("memory" in entry["reason"] for entry in tried(found))


# --- targets of one's own

BOARD = """
description = "a board"
arch = "x86_64"
threads = 1
[device]
transport = "local"
[[runtimes]]
name = "onnxruntime"
[[recipes]]
name = "fp32"
runtimes = ["onnxruntime"]
compute = "f32"
"""


def test_a_board_of_ones_own(run: Run) -> None:
    Path("board.toml").write_text(BOARD)
    code, found = run(MODEL, "--target", "board.toml", "--data", DATA, "--no-device")
    assert code == 0
    assert found["target"] == "board"
    assert found["threads"] == 1
    assert list(candidates(found)) == ["fp32@onnxruntime"]
    assert found["bundle"] == "digits_cnn-board"
    assert Path("digits_cnn-board/manifest.json").is_file()


def test_a_board_with_too_little_storage_exits_5(run: Run) -> None:
    Path("board.toml").write_text(BOARD + "[limits]\nstorage_kib = 100\n")
    code, found = run(MODEL, "--target", "board.toml", "--data", DATA, "--no-device")
    assert code == 5
    assert "100 KiB" in candidates(found)["fp32@onnxruntime"]["reason"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("[limits]\nstorage = 100\n", "storage"),
        ('[[recipes]]\nname = "int8"\nruntimes = ["none"]\ncompute = "f32"\n', "int8"),
        ("=", "board.toml"),
        ("[device2]\n", "device2"),
    ],
)
def test_a_bad_board_exits_2(more: str, says: str, run: Run) -> None:
    Path("board.toml").write_text(BOARD + more)
    code, found = run(MODEL, "--target", "board.toml")
    assert code == 2
    assert says in found["error"]["message"]


def test_a_board_that_needs_a_device_exits_4_without_one(run: Run) -> None:
    Path("board.toml").write_text(BOARD.replace("[device]", "[device]\nrequired = true"))
    code, found = run(MODEL, "--target", "board.toml")
    assert code == 4
    assert "--no-device" in found["error"]["message"]
    assert run(MODEL, "--target", "board.toml", "--no-device")[0] == 0


# --- models that cannot be run


def test_a_model_that_no_runtime_can_run_exits_3(run: Run, tmp_path: Path) -> None:
    model = onnx_models.build(
        [helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.microsoft")],
        [onnx_models.value("x", [1, 4])],
        [onnx_models.value("y", [1, 4])],
        domains=["com.microsoft"],
    )
    path = onnx_models.save(model, tmp_path / "strange.onnx")
    code, found = run(path, "--target", "x86-64", "--no-device")
    assert code == 3
    assert "NoSuchOperator" in found["error"]["message"]
    assert found["chosen"] is None
    tried = [entry for entry in found["candidates"] if entry["status"] != "skipped"]
    assert {entry["name"] for entry in tried} >= {"fp32@onnxruntime", "fp32@openvino"}
    assert all(entry["status"] == "failed" and entry["reason"] for entry in tried)
    assert not Path("strange-x86-64").exists()


def test_an_unknown_operator_exits_3(run: Run, tmp_path: Path) -> None:
    model = onnx_models.build(
        [onnx_models.node("Mystery", "x", "y")],
        [onnx_models.value("x", [1, 4])],
        [onnx_models.value("y", [1, 4])],
    )
    path = onnx_models.save(model, tmp_path / "mystery.onnx")
    code, found = run(path, "--target", "x86-64")
    assert code == 3
    assert "Mystery" in found["error"]["message"]


# --- the plan, the clock


def test_dry_run_prints_the_plan_and_writes_nothing(flags: set[str], tmp_path: Path) -> None:
    ran = deploy(*FULL, "--dry-run", "--out", "deep/er/out", cwd=tmp_path)
    assert ran.code == 0
    would, _, would_not = ran.out.partition("Would not be tried:")
    assert "fp32@onnxruntime" in would
    assert "fp32@openvino" in would
    assert ("bf16@openvino" in would) is bool(BF16 & flags)
    assert "int8-u8s8@openvino" in would
    assert "wi8@onnxruntime: pays for models of MatMuls" in would_not
    assert "fp16@onnxruntime: " in would_not
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_what_is_done(run: Run) -> None:
    _, plan = run(*STILL, "--dry-run")
    _, found = run(*STILL)
    assert plan["chosen"] is None
    assert plan["bundle"] is None
    assert list(candidates(plan)) == list(candidates(found))
    for name, status in statuses(plan).items():
        assert status in ("planned", "skipped")
        assert (status == "skipped") is (statuses(found)[name] == "skipped")
        if status == "skipped":
            assert candidates(plan)[name]["reason"] == candidates(found)[name]["reason"]


def test_a_time_limit_before_anything_was_measured_exits_4(run: Run) -> None:
    code, found = run(*PLAIN, "--quick", "--time-limit", "1ms")
    assert code == 4
    assert "--time-limit" in found["error"]["message"]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("limit", ["1s", "4s"])
def test_a_short_time_limit_ships_the_best_so_far_and_says_so(limit: str, tmp_path: Path) -> None:
    ran = deploy(*PLAIN, "--time-limit", limit, "--json", cwd=tmp_path)
    if ran.code == 4:
        assert "--time-limit" in ran.err
        assert list(tmp_path.iterdir()) == []
    else:
        assert ran.code == 0
        assert any("--time-limit" in text for text in ran.document["data"]["warnings"])
        assert "--time-limit" in ran.err
        assert candidates(ran.document)[ran.document["chosen"]]["latency_ms"]


# --- data and metrics of one's own

MODULE = """
import numpy as np

DATA = np.load({data!r})

def samples():
    for x, y in zip(DATA["x"][:120], DATA["y"][:120]):
        yield x, y

def named():
    for x, y in zip(DATA["x"][:120], DATA["y"][:120]):
        yield {{"image": x}}, y

def mistakes(outputs, labels):
    return float((outputs["logits"].argmax(axis=1) != labels).mean())

mistakes.higher_is_better = False
"""


def test_data_and_metric_from_a_module_here(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE.format(data=str(DATA)))
    words: tuple[str | Path, ...] = (MODEL, "--target", "x86-64", *FLOAT, "--no-device")
    words = (*words, "--metric", "own:mistakes", "--json")
    ran = deploy(*words, "--data", "own:samples", "--out", "one", cwd=tmp_path)
    assert ran.code == 0, ran.err
    with np.load(DATA) as data:
        assert ran.document["data"]["evaluation_samples"] == 120 < len(data["x"])
    entry = candidates(ran.document)["fp32@onnxruntime"]["accuracy"]
    assert entry["metric"] == "own:mistakes"
    assert entry["samples"] == 120
    assert 0 <= entry["value"] < 0.1
    again = deploy(*words, "--data", "own:named", "--out", "two", cwd=tmp_path)
    assert again.code == 0, again.err
    assert candidates(again.document)["fp32@onnxruntime"]["accuracy"] == entry


def test_a_metric_where_less_is_better_drops_upwards(tmp_path: Path, noisy: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE.format(data=str(DATA)))
    words = (noisy, *STILL, "--metric", "own:mistakes", "--max-accuracy-drop", "none", "--json")
    ran = deploy(*words, cwd=tmp_path)
    assert ran.code == 0, ran.err
    best, worse = (
        candidates(ran.document)[f"{stem}/fp32@onnxruntime"]["accuracy"]
        for stem in ("digits_cnn", "noisy")
    )
    assert worse["value"] > best["value"]
    assert best["drop"] == 0
    assert worse["drop"] == pytest.approx(worse["value"] - best["value"])


def test_a_folder_of_images_gives_what_the_arrays_give(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rows = ["file,label"]
    with np.load(DATA) as data:
        x, y = data["x"][:200], data["y"][:200]
    np.savez(tmp_path / "same.npz", x=x, y=y)
    for number, (image, label) in enumerate(zip(x, y, strict=True)):
        Image.fromarray((image[0] * 240).round().astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{label}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    scale = f'channels = "L"\nlayout = "NCHW"\nscale = {1 / 240!r}\n'
    (folder / "data.toml").write_text(scale)
    words = (MODEL, "--target", "x86-onnxruntime", "--recipes", "fp32", "--no-device", "--data")
    code, found = run(*words, folder, "--out", "images")
    assert code == 0
    assert found["data"]["evaluation_samples"] == 200
    _, same = run(*words, tmp_path / "same.npz", "--out", "arrays")
    assert (
        candidates(found)["fp32@onnxruntime"]["accuracy"]
        == (candidates(same)["fp32@onnxruntime"]["accuracy"])
    )


def test_another_output_is_judged_where_asked(run: Run, tmp_path: Path) -> None:
    model = onnx_models.build(
        [
            onnx_models.node("Identity", "x", "right"),
            onnx_models.node("Neg", "x", "wrong"),
        ],
        [onnx_models.value("x", ["n", 3])],
        [onnx_models.value("right", ["n", 3]), onnx_models.value("wrong", ["n", 3])],
    )
    path = onnx_models.save(model, tmp_path / "two.onnx")
    x = np.eye(3, dtype=np.float32)[np.arange(120) % 3]
    np.savez(tmp_path / "two.npz", x=x, y=np.arange(120) % 3)
    words = (path, "--target", "x86-64", "--data", tmp_path / "two.npz", "--no-device", "--dry-run")
    assert run(*words)[1]["data"]["output"] == "right"
    found = []
    for output in ("right", "wrong"):
        code, document = run(*words[:-1], "--output", output, "--out", output)
        assert code == 0
        assert document["data"]["output"] == output
        entry = candidates(document)["fp32@openvino"]
        assert set(entry["fidelity"]["sqnr_db"]) == {"right", "wrong"}
        found.append(entry["accuracy"]["value"])
    assert found == [1.0, 0.0]


@pytest.mark.parametrize("metric", ["own:nothing", "own:DATA", "own:samples"])
def test_a_metric_that_is_none_exits_2(metric: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(MODULE.format(data=str(DATA)))
    ran = deploy(*STILL, "--metric", metric, cwd=tmp_path)
    assert ran.code == 2
    assert metric in ran.err


@pytest.mark.parametrize("metric", ["top1", "top5", "accuracy", "precision", "recall", "f1", "auc"])
def test_every_metric_judges_the_example(metric: str, run: Run) -> None:
    code, found = run(*STILL, "--metric", metric)
    assert code == 0
    accuracy = candidates(found)["fp32@onnxruntime"]["accuracy"]
    assert accuracy["metric"] == metric
    assert 0.95 < accuracy["value"] <= 1


# --- batches, threads, outputs, files


def test_a_batch_gives_the_same_accuracy(run: Run, tmp_path: Path) -> None:
    with np.load(DATA) as data:
        np.savez(tmp_path / "odd.npz", x=data["x"][:398], y=data["y"][:398])
    words = (MODEL, "--target", "x86-64", "--data", tmp_path / "odd.npz", *FLOAT, "--no-device")
    _, one = run(*words, "--out", "one")
    code, four = run(*words, "--batch", "4", "--out", "four")
    assert code == 0
    assert four["batch"] == 4
    assert four["models"][0]["inputs"][0]["shape"] == [4, 1, 8, 8]
    assert four["models"][0]["macs"] == 4 * one["models"][0]["macs"]
    for name in ("fp32@onnxruntime", "fp32@openvino"):
        mine, other = candidates(four)[name]["accuracy"], candidates(one)[name]["accuracy"]
        assert mine["samples"] == 398
        assert mine["value"] == other["value"]
    with np.load("four/golden.npz") as golden:
        assert golden["input/image/0"].shape == (4, 1, 8, 8)
    assert cli.main(["verify", "four"]) == 0


def test_an_input_shape_sets_the_batch(run: Run) -> None:
    code, found = run(*STILL, "--input-shape", "image=2,1,8,8", "--dry-run")
    assert code == 0
    assert found["batch"] == 2


def test_threads_reach_the_runtimes(run: Run) -> None:
    code, found = run(*STILL, "--threads", "1")
    assert code == 0
    assert found["threads"] == 1
    options = {name: entry["details"] for name, entry in candidates(found).items()}
    assert options["fp32@onnxruntime"]["options"]["intra_op_num_threads"] == 1
    assert options["fp32@openvino"]["options"]["INFERENCE_NUM_THREADS"] == 1


def test_force_replaces_a_bundle(run: Run) -> None:
    assert run(*STILL, "--out", "out")[0] == 0
    assert run(*STILL, "--out", "out")[0] == 2
    before = Path("out/manifest.json").stat().st_ino
    assert run(*STILL, "--out", "out", "--force", "--threads", "1")[0] == 0
    assert Path("out/manifest.json").stat().st_ino != before
    assert json.loads(Path("out/manifest.json").read_text())["threads"] == 1
    assert [path.name for path in Path().iterdir()] == ["out"]


def test_force_keeps_the_bundle_where_the_run_fails(run: Run) -> None:
    assert run(*STILL, "--out", "out")[0] == 0
    assert run(*STILL, "--out", "out", "--force", "--recipes", "int9")[0] == 2
    assert cli.main(["verify", "out"]) == 0


def test_an_empty_folder_is_written_to(run: Run) -> None:
    Path("out").mkdir()
    assert run(*STILL, "--out", "out")[0] == 0
    assert Path("out/manifest.json").is_file()


def test_the_folder_that_one_stands_in_is_written_to_or_refused_at_once(tmp_path: Path) -> None:
    ran = deploy(*STILL, "--out", ".", cwd=tmp_path)
    if ran.code == 0:
        assert (tmp_path / "manifest.json").is_file()
    else:
        assert ran.code == 2
        assert "converting" not in ran.err


def test_a_deep_out_is_made(run: Run) -> None:
    assert run(*STILL, "--out", "deep/er/out")[0] == 0
    assert Path("deep/er/out/manifest.json").is_file()


def test_the_model_is_never_written_to(run: Run) -> None:
    shutil.copyfile(MODEL, "copy.onnx")
    Path("copy.onnx").chmod(0o444)
    before = Path("copy.onnx").stat()
    assert run("copy.onnx", "--target", "x86-64", "--no-device")[0] == 0
    after = Path("copy.onnx").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_nlink) == (
        before.st_ino,
        before.st_mtime_ns,
        1,
    )
    assert Path("copy.onnx").read_bytes() == MODEL.read_bytes()


# --- what a careless or unlucky user meets


def test_force_keeps_a_folder_of_something_else_beside(run: Run) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("kept")
    assert run(*STILL, "--out", "out")[0] == 2
    assert run(*STILL, "--out", "out", "--force")[0] == 0
    assert Path("out/manifest.json").is_file()
    assert Path("out.replaced-1/notes.txt").read_text() == "kept"


def board(text: str) -> Path:
    path = Path("board.toml")
    path.write_text(
        'description = "a board"\narch = "x86_64"\n[device]\ntransport = "local"\n'
        f'[[runtimes]]\nname = "openvino"\n{text}'
    )
    return path


FP32 = '[[recipes]]\nname = "fp32"\nruntimes = ["openvino"]\ncompute = "f32"\n'


def test_recipes_that_cannot_run_here_exit_3_at_once(run: Run) -> None:
    half = '[[recipes]]\nname = "fp16"\nruntimes = ["openvino"]\ncompute = "f16"\n'
    target = board(f'{FP32}{half}requires_any_flag = ["no_such_flag"]\n')
    code, found = run(MODEL, "--target", target, "--data", DATA, "--recipes", "fp16")
    assert code == 3
    assert "no_such_flag" in found["error"]["message"]
    assert not Path("digits_cnn-board").exists()


@pytest.mark.parametrize("option", ['INFERENCE_PRECISION_HINT = "bf16"', "NUM_STREAMS = 2"])
def test_a_target_cannot_make_another_recipe_of_one(option: str, run: Run) -> None:
    code, found = run(MODEL, "--target", board(f"options = {{ {option} }}\n{FP32}"))
    assert code == 2
    assert option.split()[0] in found["error"]["message"]


def test_an_input_without_the_batch_axis_needs_batch_1(run: Run) -> None:
    onnx_models.save(onnx_models.add(["n", 3], [3], ["n", 3]), Path("add.onnx"))
    code, found = run("add.onnx", "--target", "x86-64", "--batch", "4", "--no-device")
    assert code == 2
    assert "'b'" in found["error"]["message"]
    assert run("add.onnx", "--target", "x86-64", "--no-device")[0] == 0


def test_a_talkative_generator_runs_once_for_all_models(run: Run, noisy: Path) -> None:
    Path("talk.py").write_text(
        "import pathlib, random, numpy\n"
        "def samples():\n"
        "    print('talking')\n"
        "    with pathlib.Path('calls').open('a') as file: file.write('x')\n"
        "    for i in range(12):\n"
        "        yield numpy.full((1, 8, 8), random.random(), 'float32'), i % 10\n"
    )
    words = ("--target", "x86-64", "--data", "talk:samples", *FLOAT, "--no-device")
    code, found = run(MODEL, noisy, *words, "--max-accuracy-drop", "none")
    assert code == 0
    assert found["data"]["evaluation_samples"] == 12
    assert Path("calls").read_text() == "x"


def test_nothing_measured_is_nothing_chosen_whatever_is_minimized(run: Run) -> None:
    words = ("--minimize", "size", "--time-limit", "1ms", "--quick")
    code, found = run(*PLAIN, *words)
    assert code == 4
    assert "--time-limit" in found["error"]["message"]
    assert not Path("digits_cnn-x86-64").exists()


def test_macs_that_cannot_be_counted_are_no_budget(run: Run) -> None:
    nodes = [onnx_models.node("Einsum", "x x x", "y", equation="ij,ij,ij->ij")]
    shapes = [onnx_models.value("x", [1, 3])], [onnx_models.value("y", [1, 3])]
    onnx_models.save(onnx_models.build(nodes, *shapes), Path("einsum.onnx"))
    code, found = run("einsum.onnx", "--target", "x86-64", "--max-macs", "50%")
    assert code == 2
    assert "--max-macs" in found["error"]["message"]
