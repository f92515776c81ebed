"""What the document of a whole run says, and that its accuracy is what the bundle gives."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onmetal.profilers.devices.local_worker import quiet_environment
from onmetal.runtimes import fit
from tests.deploy_runs import (
    BF16,
    DATA,
    FP16,
    MODEL,
    Document,
    candidates,
    raw_samples,
    statuses,
    tried,
)

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
