"""What is said of calibration data that does not look right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from onmetal.calibration import samples as data_files
from onmetal.calibration import sanity, search, statistics
from onmetal.converters.onnx.floats import simplify
from onmetal.deploy.likeness import LOST_DB
from onmetal.files.cache import Cache
from tests.int8_models import balanced, convolutions, labelled, rooted, two_by_two
from tests.int8_runs import (
    DATA,
    FORMAT,
    JUDGED,
    MODEL,
    Arrays,
    Document,
    Run,
    Words,
    candidates,
    said_of,
)
from tests.onnx_models import read


def warned(
    built: Any,
    folder: Path,
    judged: Arrays | None = None,
    *,
    batch: int | None = None,
    **arrays: np.ndarray,
) -> list[str]:
    """What is said about calibration data, all in this process. `built`: a model or its file."""
    of = read(built, folder, batch=batch)
    simplify(str(of.prepared), str(folder))
    with Cache() as opened:
        found = {}
        for name, values in (("calibration", arrays), ("judged", judged)):
            if values is not None:
                np.savez(folder / f"{name}.npz", **values)  # type: ignore[arg-type]
                found[name] = data_files.load(
                    str(folder / f"{name}.npz"), of, opened, option="--data", labelled=False
                )
        graph = str(folder / "model.onnx")
        shared: dict[str, Any] = {
            "path": graph,
            "tensors": search.tensors(graph, [FORMAT]),
            "samples": found["calibration"],
            "model": of,
            "folder": str(folder),
            "parts": 1,
        }
        statistics.extremes(part=0, **shared)
        statistics.histograms(part=0, ranges=statistics.ranges_of(str(folder), 1), **shared)
        statistics.finish(str(folder), 1, shared["tensors"], found["calibration"].count)
        return sanity.examine(
            graph,
            str(of.prepared),
            str(folder),
            shared["samples"],
            found["judged"] if judged is not None else None,
            of,
        )


def one(found: list[str], *words: str) -> None:
    """Exactly one warning has all the words."""
    assert len([text for text in found if all(word in text for word in words)]) == 1, found


def test_the_example_is_free_of_warnings(tmp_path: Path, document: Document) -> None:
    with np.load(DATA) as data:
        parts = data["x"][3::4], data["x"][JUDGED]
    assert warned(MODEL, tmp_path, {"image": parts[1]}, image=parts[0]) == []
    for text in document["data"]["warnings"]:
        assert "batch axis" in text or text.startswith(document["chosen"])


def test_good_data_is_free_of_warnings(tmp_path: Path) -> None:
    assert warned(convolutions(), tmp_path, {"x": balanced(64, 7)}, x=balanced(64)) == []


def test_few_samples_are_said(tmp_path: Path) -> None:
    for count in (8, 31):
        one(warned(convolutions(), tmp_path, x=balanced(count)), f"{count} calibration", "few")
    assert not [s for s in warned(convolutions(), tmp_path, x=balanced(32)) if "few" in s]


def test_growing_ranges_are_said(tmp_path: Path) -> None:
    x = balanced(64) * np.linspace(0.2, 4, 64, dtype=np.float32)[:, None, None, None]
    one(warned(convolutions(), tmp_path, x=x), "growing", "more samples")
    assert warned(convolutions(), tmp_path, x=x[::-1].copy()) == []


def test_a_constant_input_is_said(tmp_path: Path) -> None:
    found = warned(convolutions(), tmp_path, x=np.full((40, 3, 8, 8), 0.25, np.float32))
    one(found, "'x'", "0.25 in all")
    a, b = balanced(40), np.zeros((40, 2, 8, 8), np.float32)
    found = warned(two_by_two(), tmp_path, a=a, b=b)
    one(found, "'b'", "0 in all")
    assert not [text for text in found if "'a'" in text]


def test_dead_tensors_are_said(tmp_path: Path) -> None:
    built = convolutions()
    for tensor in built.graph.initializer:
        if tensor.name == "b1":
            tensor.CopyFrom(numpy_helper.from_array(np.full(8, -99, np.float32), "b1"))
    one(warned(built, tmp_path, x=balanced(40)), "one value only", "'r1'")


def test_tensors_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    x = np.abs(balanced(40))
    assert not [text for text in warned(rooted(), tmp_path, x=x) if "NaN" in text]
    x[20] *= -1
    one(warned(rooted(), tmp_path, x=x), "NaN or infinite", "stay")


def test_raw_bytes_for_a_model_that_wants_them_normalized_are_said(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (40, 3, 8, 8)).astype(np.float32)
    one(warned(convolutions(), tmp_path, x=raw), "'x'", "raw bytes", "data.toml")
    assert not [s for s in warned(convolutions(), tmp_path, x=raw / 255) if "raw" in s]
    built = convolutions()  # one that was trained on raw bytes answers with small numbers
    for tensor in built.graph.initializer:
        if tensor.name == "w1":
            values = numpy_helper.to_array(tensor) / 128
            tensor.CopyFrom(numpy_helper.from_array(values, "w1"))
    assert not [s for s in warned(built, tmp_path, x=raw) if "raw" in s]


@pytest.mark.parametrize("batch", [1, 4])
def test_one_prediction_for_all_is_said(batch: int, tmp_path: Path) -> None:
    built = convolutions()
    for tensor in built.graph.initializer:
        if tensor.name == "b3":
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, 99, 0, 0, 0], np.float32), "b3"))
    found = warned(built, tmp_path, batch=batch, x=balanced(96))
    one(found, "same prediction", "100%", "'y'")
    found = warned(convolutions(), tmp_path, batch=batch, x=balanced(96))
    assert not [text for text in found if "same prediction" in text]


def test_calibration_data_unlike_what_is_judged_is_said(tmp_path: Path) -> None:
    x = balanced(64)
    for other in (x * 6, x + 30, x / 6):
        one(warned(convolutions(), tmp_path, {"x": other}, x=x), "'x'", "differs between")
    for other in (balanced(64, 9), x * 2, x + 1):
        assert not [
            s for s in warned(convolutions(), tmp_path, {"x": other}, x=x) if "differs between" in s
        ]


def test_parts_of_one_data_that_are_unlike_are_called_what_they_are(
    run: Run, tmp_path: Path
) -> None:
    x = balanced(160)
    x[3::4] *= 0.01
    path, data = labelled(convolutions(), tmp_path, "y", x=x)
    words: Words = (path, "--target", "x86-onnxruntime", "--data", data, "--no-device")
    _, found, _ = run(*words, "--max-accuracy-drop", "none", "--recipes", "int8-s8s8")
    (text,) = said_of(found, "differs between the calibration and the evaluation")
    assert "--calibration-data" not in text
    entry = candidates(found)["int8-s8s8@onnxruntime"]
    assert entry["fidelity"]["sqnr_db"]["y"] < LOST_DB
    assert any("hardly anything" in text for text in entry["warnings"])
