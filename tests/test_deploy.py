"""What is chosen from: recipes, models, budgets, own targets, models that cannot be run."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests import onnx_models
from tests.conftest import FLOAT, deploy
from tests.deploy_runs import (
    BF16,
    CALIBRATION,
    DATA,
    FULL,
    MODEL,
    ONE,
    PLAIN,
    STILL,
    Run,
    candidates,
    raw_samples,
    statuses,
    tried,
)

# --- what is chosen from


def test_recipes_leave_the_rest_out(run_here: Run, flags: set[str]) -> None:
    code, found = run_here(*STILL, "--recipes", "fp32")
    assert code == 0
    assert found["chosen"].startswith("fp32@")
    reason = candidates(found)["bf16@openvino"]["reason"]
    assert "--recipes" in reason if BF16 & flags else "avx512_bf16" in reason


def test_fp32_is_the_reference_where_recipes_leave_it_out(run_here: Run, flags: set[str]) -> None:
    code, found = run_here(*STILL, "--recipes", "bf16")
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


def test_several_families_can_be_asked_for(run_here: Run) -> None:
    code, found = run_here(*STILL, "--recipes", "bf16, fp32")
    assert code == 0
    assert "reference" not in (candidates(found)["fp32@onnxruntime"]["reason"] or "")


def test_the_least_drop_needs_no_device(run_here: Run) -> None:
    code, found = run_here(*STILL, "--minimize", "accuracy-drop")
    assert code == 0
    assert found["minimize"] == found["decided_by"] == "accuracy-drop"
    assert candidates(found)[found["chosen"]]["recipe"] == "fp32"


def test_the_smallest_wins_by_size_without_a_device(run_here: Run) -> None:
    code, found = run_here(*STILL, "--minimize", "size")
    assert code == 0
    assert found["minimize"] == found["decided_by"] == "size"
    ran = [e for e in found["candidates"] if e["status"] in ("chosen", "ok")]
    assert len(ran) > 1
    chosen = candidates(found)[found["chosen"]]
    assert chosen["size_bytes"] == min(entry["size_bytes"] for entry in ran)
    files = json.loads((Path(found["bundle"]) / "manifest.json").read_text())["run"]["files"]
    there = sum((Path(found["bundle"]) / name).stat().st_size for name in files)
    assert chosen["size_bytes"] == there


def test_memory_decides_where_asked(run_here: Run) -> None:
    code, found = run_here(*PLAIN, "--minimize", "memory", "--quick")
    assert code == 0
    assert found["decided_by"] == "memory"
    peaks = {e["name"]: e["peak_memory_bytes"]["value"] for e in tried(found)}
    assert peaks[found["chosen"]] <= 1.02 * min(peaks.values())


def test_throughput_decides_where_asked(run_here: Run) -> None:
    code, found = run_here(*PLAIN, "--minimize", "throughput", "--quick")
    assert code == 0
    assert found["decided_by"] == "throughput"
    for entry in tried(found):
        assert entry["throughput_per_s"]["value"] > 0
        if entry["status"] == "ok":
            assert "than" in entry["reason"] or "throughput" in entry["reason"]


# --- without a device, labels or data


def test_without_a_device_nothing_is_timed_and_size_decides(run_here: Run) -> None:
    code, found = run_here(*STILL)
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
    _, none = run_here(*PLAIN, "--device", "none", "--out", "none")
    assert none["chosen"] == found["chosen"]
    assert statuses(none) == statuses(found)


def test_without_data_nothing_but_fidelity_is_known(run_here: Run) -> None:
    code, found = run_here(MODEL, "--target", "x86-64", "--no-device")
    assert code == 0
    assert found["data"]["evaluation_samples"] == 0
    assert found["data"]["metric"] is None
    assert any("no task metric" in text for text in found["data"]["warnings"])
    for entry in found["candidates"]:
        assert entry["accuracy"] is None
    assert candidates(found)["fp32@onnxruntime"]["fidelity"]["sqnr_db"]["logits"] > 100
    assert candidates(found)["fp32@openvino"]["fidelity"]["sqnr_db"]["logits"] > 60


def test_without_any_data_only_float_is_tried(run_here: Run) -> None:
    code, found = run_here(MODEL, "--target", "x86-64", "--no-device", "--dry-run")
    assert code == 0
    planned = {e["recipe"] for e in found["candidates"] if e["status"] == "planned"}
    assert {"fp32"} <= planned <= {"fp32", "fp16", "bf16"}
    for name in ("int8-u8s8@onnxruntime", "int8-nncf@openvino", "int8-fast@openvino"):
        assert "--data or --calibration-data" in candidates(found)[name]["reason"]


def test_calibration_data_alone_judges_by_fidelity(run_here: Run) -> None:
    words = (MODEL, "--target", "x86-64", "--no-device", "--calibration-data", CALIBRATION)
    code, found = run_here(*words, "--recipes", "fp32,int8-u8u8")
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


def test_samples_in_both_parts_are_said(run_here: Run, tmp_path: Path) -> None:
    with np.load(DATA) as data:
        np.savez(tmp_path / "some.npz", x=data["x"][:50])
    words = ("--calibration-data", tmp_path / "some.npz")
    code, found = run_here(*FULL, "--no-device", *words, "--dry-run")
    assert code == 0
    assert found["data"]["calibration_samples"] == 50
    assert found["data"]["evaluation_samples"] == 600
    said = "50 of the evaluation samples are in --calibration-data too;"
    assert any(text.startswith(said) for text in found["data"]["warnings"])


# --- several models


def test_models_compete_and_the_most_accurate_is_the_reference(run_here: Run, noisy: Path) -> None:
    code, found = run_here(noisy, *STILL)
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


def test_no_accuracy_budget_lets_the_worse_model_compete(run_here: Run, noisy: Path) -> None:
    code, found = run_here(noisy, *STILL, "--max-accuracy-drop", "none")
    assert code == 0
    assert found["budget"] == {}
    assert statuses(found)["noisy/fp32@onnxruntime"] in ("ok", "chosen")


def test_several_models_are_measured_together(run_here: Run, noisy: Path) -> None:
    code, found = run_here(noisy, *PLAIN, "--recipes", "fp32", "--quick")
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


def test_models_of_other_inputs_do_not_compete(run_here: Run, tmp_path: Path) -> None:
    other = onnx_models.save(onnx_models.add([1, 4], [1, 4], [1, 4]), tmp_path / "add.onnx")
    code, found = run_here(other, *STILL)
    assert code == 2
    assert "inputs" in found["error"]["message"]


def test_an_interval_that_crosses_the_budget_is_flagged(run_here: Run, tmp_path: Path) -> None:
    model = onnx.load_model(str(MODEL))
    (last,) = (t for t in model.graph.initializer if list(t.dims) == [10, 80])
    last.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(last) * np.float32(1.001), last.name)
    )
    other = onnx_models.save(model, tmp_path / "other.onnx")
    with np.load(DATA) as data:
        np.savez(tmp_path / "few.npz", x=data["x"][:150], y=data["y"][:150])
    words = (MODEL, other, "--target", "x86-64", "--data", tmp_path / "few.npz", "--no-device")
    code, found = run_here(*words, *FLOAT)
    assert code == 0
    entry = candidates(found)["other/fp32@onnxruntime"]
    assert entry["accuracy"]["drop"] <= 0.01 < entry["accuracy"]["drop_ci95"][1]
    assert any("interval" in text for text in entry["warnings"])
    assert not candidates(found)["digits_cnn/fp32@onnxruntime"]["warnings"]


# --- budgets that cannot be met


def test_an_impossible_budget_exits_5_with_every_objection(run_here: Run) -> None:
    words = (*STILL, "--max-size", "1%", "--min-accuracy", "99.9%", "--max-macs", "50%")
    code, found = run_here(*words, "--out", "out")
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
    code, found = run_here(*STILL, "--out", "out")
    assert code == 0
    assert not Path("out/report.json").exists()
    assert Path("out/manifest.json").exists()


def test_a_refusal_is_said_on_stderr_and_the_table_on_stdout(tmp_path: Path) -> None:
    ran = deploy(*ONE, "--max-size", "1%", "--out", tmp_path / "out")
    assert ran.code == 5
    assert "=! fp32@onnxruntime" in ran.out and "is over" not in ran.out
    assert "=! fp32@onnxruntime" not in ran.err
    assert "fp32@onnxruntime: size" in ran.err
    assert str(tmp_path / "out" / "report.json") in ran.err


def test_what_was_measured_is_held_against_the_budget(run_here: Run) -> None:
    """The latency's p90, and the peak of memory."""
    code, found = run_here(*PLAIN, "--quick", "--max-latency", "1ns", "--max-memory", "1kB")
    assert code == 5
    for entry in tried(found):
        assert f"p90 latency {entry['latency_ms']['p90']:.4g} ms" in entry["reason"]
        assert "memory" in entry["reason"]


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


def test_a_board_of_ones_own(run_here: Run) -> None:
    Path("board.toml").write_text(BOARD)
    code, found = run_here(MODEL, "--target", "board.toml", "--data", DATA, "--no-device")
    assert code == 0
    assert found["target"] == "board"
    assert found["threads"] == 1
    assert list(candidates(found)) == ["fp32@onnxruntime"]
    assert found["bundle"] == "digits_cnn-board"
    assert Path("digits_cnn-board/manifest.json").is_file()


def test_a_board_with_too_little_storage_exits_5(run_here: Run) -> None:
    Path("board.toml").write_text(BOARD + "[limits]\nstorage_kib = 100\n")
    code, found = run_here(MODEL, "--target", "board.toml", "--data", DATA, "--no-device")
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
def test_a_bad_board_exits_2(more: str, says: str, run_here: Run) -> None:
    Path("board.toml").write_text(BOARD + more)
    code, found = run_here(MODEL, "--target", "board.toml")
    assert code == 2
    assert says in found["error"]["message"]


def test_a_board_that_needs_a_device_exits_4_without_one(run_here: Run) -> None:
    Path("board.toml").write_text(BOARD.replace("[device]", "[device]\nrequired = true"))
    code, found = run_here(MODEL, "--target", "board.toml")
    assert code == 4
    assert "--no-device" in found["error"]["message"]
    assert run_here(MODEL, "--target", "board.toml", "--no-device")[0] == 0


# --- models that cannot be run


def test_a_model_that_no_runtime_can_run_exits_3(run_here: Run, tmp_path: Path) -> None:
    model = onnx_models.build(
        [helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.microsoft")],
        [onnx_models.value("x", [1, 4])],
        [onnx_models.value("y", [1, 4])],
        domains=["com.microsoft"],
    )
    path = onnx_models.save(model, tmp_path / "strange.onnx")
    code, found = run_here(path, "--target", "x86-64", "--no-device")
    assert code == 3
    assert "NoSuchOperator" in found["error"]["message"]
    assert found["chosen"] is None
    tried = [entry for entry in found["candidates"] if entry["status"] != "skipped"]
    assert {entry["name"] for entry in tried} >= {"fp32@onnxruntime", "fp32@openvino"}
    assert all(entry["status"] == "failed" and entry["reason"] for entry in tried)
    assert not Path("strange-x86-64").exists()


def test_an_unknown_operator_exits_3(run_here: Run, tmp_path: Path) -> None:
    model = onnx_models.build(
        [onnx_models.node("Mystery", "x", "y")],
        [onnx_models.value("x", [1, 4])],
        [onnx_models.value("y", [1, 4])],
    )
    path = onnx_models.save(model, tmp_path / "mystery.onnx")
    code, found = run_here(path, "--target", "x86-64")
    assert code == 3
    assert "Mystery" in found["error"]["message"]
