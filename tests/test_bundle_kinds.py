"""Every target and every kind of bundle: deployed, verified, run, timed and inspected."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onmetal import cli, targets
from onmetal.profilers import measure
from tests import onnx_models
from tests.conftest import ROOT, deploy

Capture = pytest.CaptureFixture[str]
Document = dict[str, Any]

SAMPLES = 8


def two_images(folder: Path) -> Path:
    """Two images with channels in, a map and scores out: each with several channels, NCHW."""
    model = onnx_models.build(
        [
            onnx_models.node("Conv", "one w", "first", pads=[1] * 4),
            onnx_models.node("Conv", "two w", "second", pads=[1] * 4),
            onnx_models.node("Sub", "first second", "map"),
            onnx_models.node("GlobalAveragePool", "map", "mean"),
            onnx_models.node("Flatten", "mean", "scores"),
        ],
        [onnx_models.value(name, [1, 3, 8, 6]) for name in ("one", "two")],
        [onnx_models.value("map", [1, 4, 8, 6]), onnx_models.value("scores", [1, 4])],
        [onnx_models.weights("w", 4, 3, 3, 3)],
    )
    return onnx_models.save(model, folder / "pictures.onnx")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The model and data for it; the same in TFLite's format, with channels last everywhere."""
    folder = tmp_path_factory.mktemp("kinds")
    model, rng = two_images(folder), np.random.default_rng(0)
    arrays = {n: rng.normal(size=(SAMPLES, 3, 8, 6)).astype(np.float32) for n in ("one", "two")}
    np.savez(folder / "nchw.npz", **arrays)  # type: ignore[arg-type]
    turned = {name: array.transpose(0, 2, 3, 1) for name, array in arrays.items()}
    np.savez(folder / "nhwc.npz", **turned)  # type: ignore[arg-type]
    board, out = of_a_user(folder, "tflite-x86", "nhwc", "float32"), folder / "as-tflite"
    ran = deploy(
        *(model, "--target", board, "--no-device", "--calibration-data", folder / "nchw.npz"),
        *("--recipes", "fp32", "--out", out),
    )
    assert ran.code == 0, ran.err
    return {
        "onnx": (model, folder / "nchw.npz"),
        "tflite": (out / "model.tflite", folder / "nhwc.npz"),
    }


def of_a_user(folder: Path, base: str, layout: str, dtype: str) -> Path:
    """A target file of a user's own, with other ends than the built-in one has."""
    text = (ROOT / f"targets/{base}.toml").read_text()
    ends = f'[io]\nlayout = "{layout}"\ndtype = "{dtype}"\n\n[[runtimes]]'
    path = folder / f"{base}-{layout}-{dtype}.toml"
    path.write_text(text.replace("[[runtimes]]", ends, 1))
    return path


KINDS: list[tuple[str, str, str]] = [
    *((name, "onnx", "fp32") for name in ("android-arm64", "linux-arm64", "tflm")),
    *((name, "onnx", "int8") for name in ("cortex-m4", "cortex-m7", "cortex-m55")),
    *((name, "onnx", "int8") for name in ("ethos-u55-128", "ethos-u55-256", "ethos-u85-256")),
    *((f"tflite-x86-nhwc-{dtype}", "onnx", "int8") for dtype in ("float32", "int8")),
    *((name, "tflite", "int8") for name in ("android-arm64", "cortex-m4")),
]
"""Target (a user's own with the ends that its name says), source and recipe."""
ELSEWHERE = ("x86-64", "x86-onnxruntime", "x86-openvino", "tflite-x86")
"""Whose bundles tests/bundles.py makes."""


def test_no_target_is_left_out() -> None:
    assert {name for name, *_ in KINDS} >= set(targets.names()) - set(ELSEWHERE)


def answered(capsys: Capture, *words: str | Path) -> Document:
    code = cli.main([*map(str, words), "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    document: Document = json.loads(shown.out)
    return document


@pytest.fixture(scope="module")
def known() -> dict[tuple[str, ...], Path]:
    """Bundles by what is run of them: what is the same to the byte is not run twice."""
    return {}


@pytest.mark.parametrize(("target", "source", "recipe"), KINDS)
def test_a_new_bundle_is_what_every_command_takes(
    target: str,
    source: str,
    recipe: str,
    sources: dict[str, tuple[Path, Path]],
    known: dict[tuple[str, ...], Path],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Deployed, verified, run by its own run.py, timed, and compared with its float model."""
    monkeypatch.setitem(measure.MODES, "quick", measure.Schedule(1, 1, 0.01, 0.01, 0.0, 1))
    model, data = sources[source]
    own = target.startswith("tflite-x86")
    board = of_a_user(tmp_path, *target.rsplit("-", 2)) if own else target
    out = tmp_path / "out"
    words = ("--no-device", "--recipes", recipe, "--max-accuracy-drop", "none", "--out", out)
    answered(capsys, model, "--target", board, "--calibration-data", data, *words)
    manifest: Document = json.loads((out / "manifest.json").read_text())
    run = manifest["run"]
    turned = run["options"].get("nhwc")
    last = own or target.startswith(("cortex", "ethos", "tflm"))
    assert turned == (["one", "two", "map"] if last and source == "onnx" else None)
    same = (run["runtime"], (out / run["files"][0]).read_bytes().hex(), str(run["options"]))
    new = known.setdefault(same, out) == out
    verified = answered(capsys, "verify", out, *(["--run"] if new else []))
    checks = {"files", "manifest", "runner", "tensors", "golden", *(["run.py"] if new else [])}
    assert verified["checks"].keys() >= checks
    if new:
        timed = answered(capsys, "bench", out, "--quick")
        assert [entry["latency_ms"]["p50"] > 0 for entry in timed["candidates"]] == [True]
        compared = answered(capsys, "inspect", out, "--against", model)
        assert compared["tensors"][-1]["tensor"]
