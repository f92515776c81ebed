"""A float model no better than chance is said; a good one is not."""

import numpy as np
import pytest

from onmetal.calibration.chance import chance_warning
from onmetal.calibration.metrics import Scorer, choose
from onmetal.records import Tensor

CLASSING = ("top1", "accuracy", "precision", "recall", "f1", "auc")


def value_of(metric: str, outputs: np.ndarray, labels: np.ndarray) -> float:
    tensor = Tensor("out", outputs.dtype.name, (1, *outputs.shape[1:]))
    chosen = choose(metric, tensor, outputs.shape[1:], labels)
    return Scorer(chosen, {"out": outputs}, "out", labels)(None)


def scores_of(labels: np.ndarray, classes: int, skill: float, seed: int) -> np.ndarray:
    """Random scores, of which a share of `skill` is right."""
    random = np.random.default_rng(seed)
    found = random.normal(size=(len(labels), classes)).astype(np.float32)
    found[random.random(len(labels)) < skill, :] *= 0.1
    right = random.random(len(labels)) < skill
    found[np.flatnonzero(right), labels[right]] += 9
    return found


def said(metric: str, count: int, classes: int, skill: float, seed: int = 0) -> str | None:
    labels = np.random.default_rng(seed).integers(0, classes, count)
    value = value_of(metric, scores_of(labels, classes, skill, seed), labels)
    return chance_warning(metric, labels, value, count)


@pytest.mark.parametrize("metric", CLASSING)
@pytest.mark.parametrize(("count", "classes"), [(300, 3), (2000, 3), (500, 10), (400, 2)])
def test_a_model_that_ignores_its_input_is_said(metric: str, count: int, classes: int) -> None:
    texts = [said(metric, count, classes, 0.0, seed) for seed in range(8)]
    assert sum(text is not None and "chance" in text for text in texts) >= 6


@pytest.mark.parametrize("metric", CLASSING)
@pytest.mark.parametrize(("count", "classes"), [(20, 2), (40, 3), (300, 3), (2000, 10), (500, 100)])
@pytest.mark.parametrize("skill", [0.75, 0.95])
def test_a_model_that_works_is_not(metric: str, count: int, classes: int, skill: float) -> None:
    assert [said(metric, count, classes, skill, seed) for seed in range(4)] == [None] * 4


def test_a_third_of_three_classes_is_said() -> None:
    for count in (60, 150, 300, 1000, 3000):
        labels = np.arange(count) % 3
        text = chance_warning("top1", labels, round(0.36 * count) / count, count)
        assert text and "no better than chance" in text and "0.33" in text


def test_a_weak_model_that_learned_something_is_not_said() -> None:
    labels = np.arange(3000) % 3
    assert chance_warning("top1", labels, 0.45, 3000) is None
    many = np.arange(5000) % 1000
    assert chance_warning("top1", many, 0.05, 5000) is None


def test_worse_than_chance_is_called_so() -> None:
    labels = np.arange(600) % 6
    for metric, value in (("top1", 0.0), ("accuracy", 0.02), ("auc", 0.2), ("f1", 0.01)):
        text = chance_warning(metric, labels, value, 600)
        assert text and "worse than chance" in text


def test_many_samples_of_one_class() -> None:
    labels = (np.arange(1000) % 20 == 0).astype(np.int64)
    assert chance_warning("top1", labels, 0.95, 1000)
    assert chance_warning("top1", labels, 0.98, 1000) is None
    assert chance_warning("f1", labels, 0.487, 1000)  # what answering 0 for all gives
    assert chance_warning("f1", labels, 0.8, 1000) is None
    text = chance_warning("top1", labels * 0, 1.0, 1000)
    assert text and "all 1000 labels are 0" in text


def test_top5() -> None:
    labels = np.arange(1000) % 20
    assert chance_warning("top5", labels, 0.26, 1000)
    assert chance_warning("top5", labels, 0.9, 1000) is None
    assert chance_warning("top5", np.arange(1000) % 5, 1.0, 1000) is None


def test_rmse_against_the_mean_label() -> None:
    labels = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    deviation = float(labels.std(axis=0).mean())
    assert chance_warning("rmse", labels, 1.2 * deviation, 200)
    assert chance_warning("rmse", labels, 0.8 * deviation, 200) is None
    assert chance_warning("rmse", np.ones(200, np.float32), 3.0, 200) is None


def test_what_is_not_known_is_not_said() -> None:
    labels = np.arange(19) % 3
    assert chance_warning("top1", labels, 0.0, 19) is None
    assert chance_warning("own:metric", np.arange(100) % 3, 0.0, 100) is None
    assert chance_warning("accuracy", np.zeros((100, 7), np.int64), 0.0, 100) is None
    assert chance_warning("top1", np.arange(100) % 3, float("nan"), 100) is None
