"""A quantized model whose outputs have collapsed is found, and never chosen."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal.budget import Budget
from onmetal.calibration.collapse import collapsed
from onmetal.deploy import rank
from onmetal.files.cache import Cache
from tests.int8_models import labelled, random
from tests.int8_runs import TARGET, Run, Words, candidates, said_of
from tests.onnx_models import dense
from tests.trials import chosen_of, trial


def scores(count: int = 200, classes: int = 10, seed: int = 0) -> np.ndarray:
    return random(count, classes, seed=seed)


def test_a_healthy_output_has_not_collapsed() -> None:
    before = scores()
    for after in (before, before + scores(seed=1) * 0.1, before * 2 + 5):
        assert collapsed("y", before, after.astype(np.float32)) == []
    rectified = np.maximum(before, 0)
    assert collapsed("y", rectified, np.maximum(before + 0.05, 0)) == []


def test_a_dead_output_is_found() -> None:
    before = scores()
    for after in (np.zeros_like(before), np.full_like(before, 3.5), before[:1].repeat(200, axis=0)):
        (said,) = collapsed("y", before, after)
        assert "'y'" in said and "dead" in said


def test_what_was_dead_before_is_not_blamed_on_8_bits() -> None:
    same = scores()[:1].repeat(200, axis=0)
    assert collapsed("y", same, same) == []
    assert collapsed("y", same, same + 1) == []


def test_one_class_for_all_is_found() -> None:
    before = scores()
    after = scores(seed=1) * 0.1
    after[:, 3] += 2
    (said,) = collapsed("y", before, after)
    assert "one class" in said and "100%" in said
    always = scores(seed=2)
    always[:, 4] += 20
    assert collapsed("y", always, after) == []  # the float model does so too


def test_a_saturated_output_is_found() -> None:
    before = random(60, 16, 4, 4)
    (said,) = collapsed("map", before, np.clip(before, -0.3, 0.3))
    assert "saturated" in said and "'map'" in said
    assert collapsed("map", before, np.clip(before, -2, 2)) == []
    before = np.maximum(before, 0)
    assert collapsed("map", before, np.clip(before, 0, 2)) == []  # half is zero in the float too


def test_nan_is_found_where_the_float_has_none() -> None:
    before = scores()
    after = before.copy()
    after[17, 2] = np.nan
    (said,) = collapsed("y", before, after)
    assert "NaN" in said
    assert collapsed("y", after, after) == []


def test_infinity_is_found_where_the_float_has_none() -> None:
    before = scores()
    after = before.copy()
    after[17, 2] = np.inf
    assert collapsed("y", before, after)
    assert collapsed("y", after, after) == []


def test_one_class_of_two_is_found() -> None:
    before = scores(classes=2)
    after = before.copy()
    after[:, 1] = after[:, 0] + np.abs(after[:, 1])
    assert collapsed("y", before, after)
    assert collapsed("y", before, before) == []


def test_a_prediction_that_is_always_the_same_is_found() -> None:
    before = np.arange(200) % 10
    assert collapsed("class", before, np.full_like(before, 3))
    assert collapsed("class", before, before) == []


@pytest.mark.parametrize("minimize", ["latency", "size", "accuracy-drop"])
def test_what_has_collapsed_is_never_chosen(minimize: str, cache: Cache) -> None:
    fp32 = trial("fp32@openvino", 2.0, drop=0.0)
    lost = trial("int8-u8s8@openvino", 1.0, size=9, drop=-0.1, seed=1)
    assert chosen_of(cache, fp32, lost, minimize=minimize)[0] == lost.name
    lost = replace(lost, collapsed=("the output 'y' is dead: the same for every sample",))
    pick, found = chosen_of(cache, fp32, lost, minimize=minimize)
    assert pick == fp32.name
    assert (found[lost.name].status, found[lost.name].reason) == ("over-budget", lost.collapsed[0])
    assert rank.objections(lost, Budget(), TARGET, True) == list(lost.collapsed)


def test_a_dead_candidate_is_refused_without_any_accuracy_budget(run: Run, tmp_path: Path) -> None:
    """Calibrated on inputs a hundred times smaller than the judged ones: all of these saturate."""
    near = np.random.default_rng(0).uniform(0, 0.01, (64, 4)).astype(np.float32)
    far = np.random.default_rng(1).uniform(0.5, 1.5, (120, 4)).astype(np.float32)
    path, data = labelled(dense(), tmp_path, "scores", x=far)
    np.savez(tmp_path / "near.npz", x=near)
    words: Words = (path, "--target", "x86-onnxruntime", "--data", data)
    words = (*words, "--calibration-data", tmp_path / "near.npz", "--no-device")
    words = (*words, "--max-accuracy-drop", "none", "--minimize", "size")
    code, found, err = run(*words, "--recipes", "int8-s8s8", "--out", "out")
    assert (code, found["chosen"]) == (5, None)
    entry = candidates(found)["int8-s8s8@onnxruntime"]
    assert entry["status"] == "over-budget"
    assert "dead" in entry["reason"]
    assert any("dead" in text for text in entry["warnings"])
    (text,) = said_of(found, "differs between the calibration and the evaluation")
    assert "'x'" in text
    assert text in err
