"""Which INT8 candidates are planned; without labels, data or a device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal.deploy.likeness import LOST_DB
from onmetal.deploy.propose import plan
from tests.int8_models import shared_scale, uniform
from tests.int8_runs import (
    DATA,
    MODEL,
    TARGET,
    Document,
    Made,
    Run,
    Words,
    candidates,
    manifest,
    said_of,
    usable,
)
from tests.onnx_models import save
from tests.trials import MODEL as SMALL
from tests.trials import facts


def test_a_dry_run_lists_every_int8_candidate(run: Run) -> None:
    code, found, _ = run(MODEL, "--target", "x86-64", "--data", DATA, "--dry-run")
    assert code == 0
    entries = candidates(found)
    for recipe in ("int8-u8s8", "int8-s8s8", "int8-u8u8", "int8-u8s8-rr", "int8-fast"):
        for runtime in ("onnxruntime", "openvino"):
            assert entries[f"{recipe}@{runtime}"]["status"] == "planned"
    assert entries["int8-nncf@openvino"]["status"] == "planned"
    for recipe in ("wi8", "int8-dynamic"):
        assert entries[f"{recipe}@onnxruntime"]["status"] == "skipped"
        assert "MatMul" in entries[f"{recipe}@onnxruntime"]["reason"]


def test_all_that_was_planned_is_in_the_document_with_status_and_reason(
    run: Run, document: Document
) -> None:
    _, planned, _ = run(MODEL, "--target", "x86-64", "--data", DATA, "--dry-run")
    names = [entry["name"] for entry in document["candidates"]]
    assert names == [entry["name"] for entry in planned["candidates"]]
    for entry in document["candidates"]:
        assert entry["name"] == f"{entry['recipe']}@{entry['runtime']}"
        assert (entry["reason"] is None) is (entry["status"] == "chosen")
        before = candidates(planned)[entry["name"]]
        if before["status"] == "skipped":
            assert (entry["status"], entry["reason"]) == ("skipped", before["reason"])


def test_a_family_is_selected_and_fp32_runs_as_the_reference(twin: Made) -> None:
    entries = candidates(twin.document)
    for name in ("fp32@onnxruntime", "fp32@openvino"):
        assert entries[name]["status"] == "skipped"
        assert "reference" in entries[name]["reason"]
        assert entries[name]["accuracy"]["samples"] == 450
    assert twin.document["baseline"].startswith("fp32@")
    assert twin.document["chosen"].startswith("int8-")
    assert {entry["recipe"] for entry in usable(twin.document)} == {
        *("int8-u8s8", "int8-s8s8", "int8-u8u8", "int8-u8s8-rr", "int8-nncf")
    }
    for name in ("wi8@openvino", "bf16@openvino"):
        assert entries[name]["status"] == "skipped"


CONV = replace(SMALL, operators={"Conv": 3, "Relu": 3})
PRODUCTS = replace(SMALL, operators={"MatMul": 3}, matmul_share=1.0)


def planned(model: Any, *, samples: bool = True, timed: bool = True) -> dict[str, str | None]:
    found = plan.plan(TARGET, [model], facts("avx2"), None, samples=samples, timed=timed)
    return {entry.name: entry.skipped for entry in found}


def test_models_of_matrix_products_are_tried_with_these_alone() -> None:
    for name in ("wi8@onnxruntime", "wi8@openvino", "int8-dynamic@onnxruntime"):
        assert planned(PRODUCTS)[name] is None
        assert planned(replace(PRODUCTS, matmul_share=0.5))[name] is None
        why = planned(replace(PRODUCTS, matmul_share=0.2))[name]
        assert why is not None and "20%" in why


def test_nothing_is_quantized_without_data_or_what_can_be() -> None:
    for model, keywords, word in (
        (CONV, {"samples": False}, "--calibration-data"),
        (PRODUCTS, {"samples": False}, "--calibration-data"),
        (replace(SMALL, operators={"Relu": 2}), {}, "nothing to quantize"),
        (replace(CONV, quantized=4), {}, "quantized already"),
    ):
        for name, why in planned(model, **keywords).items():
            if name.startswith(("int8-s8s8", "int8-fast")) and not name.endswith("@litert"):
                assert why is not None and word in why
        assert planned(model, **keywords)["fp32@openvino"] is None


def test_a_profile_needs_a_device() -> None:
    found = planned(CONV, timed=False)
    assert found["int8-u8s8@openvino"] is None
    for runtime in ("onnxruntime", "openvino"):
        assert "device" in str(found[f"int8-fast@{runtime}"])


def test_nncf_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(CONV)["int8-nncf@openvino"] is None
    monkeypatch.setattr(plan, "find_spec", lambda name: None)
    assert "onmetal[nncf]" in str(planned(CONV)["int8-nncf@openvino"])


# --- without labels, without data


def test_without_labels_fidelity_judges_and_that_is_said(unlabelled: Made) -> None:
    found = unlabelled.document
    assert found["data"]["metric"] is None
    assert (found["data"]["calibration_samples"], found["data"]["evaluation_samples"]) == (256, 0)
    (text,) = said_of(found, "no task metric")
    assert "calibration data" in text
    entry = candidates(found)[found["chosen"]]
    assert entry["name"] == "int8-s8s8@onnxruntime"
    assert entry["accuracy"] is None
    assert 20 <= entry["fidelity"]["sqnr_db"]["logits"] < 60
    assert manifest(unlabelled.folder)["evaluation_indices"] == []
    assert "No task metric was measured" in (unlabelled.folder / "README.md").read_text()


def test_without_labels_every_output_needs_20_db(run: Run, tmp_path: Path) -> None:
    path = save(shared_scale(60.0), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=uniform(64, 1, 8, 8))
    words: Words = (path, "--target", "x86-onnxruntime", "--calibration-data", tmp_path / "x.npz")
    words = (*words, "--no-device", "--recipes", "int8-s8s8")
    code, found, _ = run(*words, "--out", "one")
    assert (code, found["chosen"]) == (5, None)
    entry = candidates(found)["int8-s8s8@onnxruntime"]
    fidelity = entry["fidelity"]["sqnr_db"]
    assert fidelity["large"] > 20 > fidelity["small"] > LOST_DB
    assert entry["status"] == "over-budget"
    assert f"'small' follows it with {fidelity['small']:.1f} dB, under 20 dB" in entry["reason"]
    assert "--data" in entry["reason"]
    assert entry["reason"] in found["error"]["message"]
    code, found, _ = run(*words, "--max-accuracy-drop", "none", "--out", "two")
    assert (code, found["chosen"]) == (0, "int8-s8s8@onnxruntime")


def test_without_any_data_only_float_is_tried(run: Run) -> None:
    code, found, _ = run(MODEL, "--target", "x86-64", "--no-device", "--out", "out")
    assert code == 0
    assert {entry["recipe"] for entry in usable(found)} <= {"fp32", "bf16", "fp16"}
    for recipe in ("int8-s8s8", "int8-u8s8", "int8-u8u8", "int8-nncf", "int8-fast"):
        entry = candidates(found)[f"{recipe}@openvino"]
        assert entry["status"] == "skipped"
        assert "no data" in entry["reason"]


def test_int8_alone_without_data_is_refused(run: Run) -> None:
    code, found, _ = run(MODEL, "--target", "x86-64", "--no-device", "--recipes", "int8-s8s8")
    assert code == 2
    assert "give --data or --calibration-data" in found["error"]["message"]


# --- without a device


def test_without_a_device_the_smallest_within_the_budget_wins(twin: Made) -> None:
    found = twin.document
    assert found["decided_by"] == "size"
    fitting = [entry for entry in found["candidates"] if entry["status"] in ("chosen", "ok")]
    assert len(fitting) > 4
    chosen = candidates(found)[found["chosen"]]
    assert chosen["size_bytes"] == min(entry["size_bytes"] for entry in fitting)
    assert all(entry["accuracy"]["drop"] <= 0.01 for entry in fitting)
    assert 2 * chosen["size_bytes"] < candidates(found)["fp32@onnxruntime"]["size_bytes"]
    for entry in found["candidates"]:
        assert entry["latency_ms"] is entry["ran_on"] is entry["versus_baseline"] is None
        assert "first look" not in (entry["reason"] or "")
    assert manifest(twin.folder)["measured"] is False


def test_without_a_device_there_is_no_profile_to_make_int8_fast_from(twin: Made) -> None:
    for runtime in ("onnxruntime", "openvino"):
        entry = candidates(twin.document)[f"int8-fast@{runtime}"]
        assert entry["status"] == "skipped"
        assert "device" in entry["reason"]
