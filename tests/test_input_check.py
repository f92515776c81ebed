"""Inputs that are not those of training are said, and a user's own metric is tried first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onmetal.calibration import samples, sanity
from onmetal.deploy import metric_check
from onmetal.deploy.candidates import calibration_warnings
from onmetal.deploy.context import Clock, Run
from onmetal.deploy.prepare import prepare
from onmetal.deploy.request import Request
from onmetal.errors import UsageError
from onmetal.files.cache import Cache
from onmetal.progress import Progress
from tests.conftest import DIGITS
from tests.onnx_models import build, constant, node, read, value

MODEL = DIGITS / "digits_cnn.onnx"
RANDOM = np.random.default_rng(0)


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as opened:
        yield opened


@pytest.fixture(scope="module")
def digits() -> dict[str, np.ndarray]:
    with np.load(DIGITS / "digits.npz") as stored:
        return {"x": stored["x"], "y": stored["y"]}


def said_of(built: Any, folder: Path, cache: Cache, x: np.ndarray) -> list[str]:
    of = read(built, folder)
    np.savez(folder / "data.npz", x=x.astype(np.float32))
    data = samples.load(str(folder / "data.npz"), of, cache, option="--data", labelled=False)
    return sanity.examine_inputs(str(of.prepared), data, of)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (1, None),
        (0.5, None),
        (2, None),
        (16, "not normalized"),
        (255, "not normalized"),
        (1 / 255, "scaled twice"),
    ],
)
def test_digits_that_are_scaled_otherwise(
    tmp_path: Path, cache: Cache, digits: dict[str, np.ndarray], scale: float, words: str | None
) -> None:
    found = said_of(MODEL, tmp_path, cache, digits["x"][:40] * scale)
    assert (words is None) == (not found)
    assert words is None or (words in found[0] and "'image'" in found[0])


def test_scale_left_out_beside_mean_and_std(
    tmp_path: Path, cache: Cache, digits: dict[str, np.ndarray]
) -> None:
    x = (np.round(digits["x"][:40] * 255) - 0.485) / 0.229  # no whole numbers any more
    assert "not normalized" in said_of(MODEL, tmp_path, cache, x)[0]


def scaling_digits() -> Any:
    """The example with its own division by 255 and a shift that does nothing."""
    model = onnx.load(MODEL)
    first = next(n for n in model.graph.node if model.graph.input[0].name in n.input)
    names = [name if name != "image" else "scaled" for name in first.input]
    del first.input[:]
    first.input.extend(names)
    model.graph.initializer.extend([constant("by", 255.0), constant("none", 0.0)])
    steps = [node("Div", "image by", "parts"), node("Sub", "parts none", "scaled")]
    nodes = [*steps, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_a_model_that_scales_its_own_input(
    tmp_path: Path, cache: Cache, digits: dict[str, np.ndarray]
) -> None:
    x = digits["x"][:40]
    assert said_of(scaling_digits(), tmp_path, cache, np.round(x * 255)) == []
    assert "scaled twice" in said_of(scaling_digits(), tmp_path, cache, x)[0]


def normalized_first(*, on_input: bool, features: int = 6) -> Any:
    """A BatchNormalization of the input, or of what the first layer gives."""
    statistics = [constant("mean", np.full(features, 50)), constant("var", np.full(features, 100))]
    statistics += [constant("one", np.ones(features)), constant("zero", np.zeros(features))]
    weight = constant("w", np.eye(features))
    norm = "one zero mean var"
    nodes = (
        [node("BatchNormalization", f"x {norm}", "n"), node("MatMul", "n w", "y")]
        if on_input
        else [node("MatMul", "x w", "m"), node("BatchNormalization", f"m {norm}", "y")]
    )
    shape: list[str | int | None] = ["n", features]
    return build(nodes, [value("x", shape)], [value("y", shape)], [*statistics, weight])


@pytest.mark.parametrize("on_input", [True, False])
@pytest.mark.parametrize(
    ("spread", "words"),
    [(10, None), (30, None), (4, None), (1000, "times as far"), (0.1, "only 0.0")],
)
def test_what_a_normalization_says_of_training(
    tmp_path: Path, cache: Cache, on_input: bool, spread: float, words: str | None
) -> None:
    x = 50 + spread * np.random.default_rng(0).normal(size=(64, 6))
    found = said_of(normalized_first(on_input=on_input), tmp_path, cache, x)
    assert (words is None) == (not found)
    assert words is None or (words in found[0] and "'x'" in found[0])


def test_numbers_that_are_no_images_are_left_alone(tmp_path: Path, cache: Cache) -> None:
    graph = build(
        [node("Gemm", "x w", "y")],
        [value("x", ["n", 5])],
        [value("y", ["n", 2])],
        [constant("w", RANDOM.normal(size=(5, 2)))],
    )
    assert said_of(graph, tmp_path, cache, RANDOM.normal(size=(40, 5)) * 1000) == []


def test_it_is_said_where_nothing_calibrates(
    tmp_path: Path, cache: Cache, digits: dict[str, np.ndarray]
) -> None:
    np.savez(tmp_path / "data.npz", x=digits["x"][:60] * 255, y=digits["y"][:60])
    request = Request(
        models=(MODEL,),
        target="x86-onnxruntime",
        data=str(tmp_path / "data.npz"),
        device="none",
        recipes=("fp32",),
    )
    task = prepare(request, cache)
    assert not task.calibration
    run = Run(task, cache, tmp_path, Clock(None), Progress(1), lambda candidate: tmp_path)
    assert any("not normalized" in text for text in calibration_warnings(run))


# --- a user's own metric

OWN = """
import numpy as np

def good(outputs, labels):
    return float(np.mean(outputs["logits"].argmax(axis=1) == labels))

def every_class(outputs, labels):
    assert set(labels.tolist()) == set(range(10)), "not every class"
    return good(outputs, labels)

def many(outputs, labels):
    if len(labels) < 100:
        raise ValueError("too few samples")
    return good(outputs, labels)

def wrong_name(outputs, labels):
    return outputs["scores"].mean()

def undefined(outputs, labels):
    return np.nan
"""


def prepared(tmp_path: Path, cache: Cache, name: str) -> Any:
    (tmp_path / f"own_{tmp_path.name}.py").write_text(OWN)
    return prepare(
        Request(
            models=(MODEL,),
            target="x86-onnxruntime",
            data=str(DIGITS / "digits.npz"),
            metric=f"own_{tmp_path.name}:{name}",
            device="none",
        ),
        cache,
    )


@pytest.mark.parametrize("name", ["every_class", "many"])
def test_a_metric_that_works_is_taken(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert prepared(tmp_path, cache, name).metric.function is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong_name", "KeyError: 'scores'.*line 17: return outputs.*'logits' float32"),
        ("undefined", "returned nan"),
    ],
)
def test_a_metric_that_fails_is_refused_before_any_conversion(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=words):
        prepared(tmp_path, cache, name)


def test_every_class_is_among_the_samples_that_it_is_tried_on(tmp_path: Path) -> None:
    of = read(MODEL, tmp_path)
    labels = np.repeat(np.arange(40), 50)
    picked = metric_check.chosen(labels, of)
    assert set(labels[picked]) == set(range(40)) and len(set(picked.tolist())) == len(picked)
    few = metric_check.chosen(RANDOM.normal(size=3), of)
    assert sorted(few.tolist()) == [0, 1, 2]
    assert len(metric_check.chosen(np.arange(5000), of)) == metric_check.MOST


def test_one_hot_labels_through_the_task(
    tmp_path: Path, cache: Cache, digits: dict[str, np.ndarray]
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=digits["x"][:40], y=np.eye(10, dtype=np.float32)[digits["y"][:40]])
    request = Request(models=(MODEL,), target="x86-onnxruntime", data=str(data), device="none")
    task = prepare(request, cache)
    assert task.metric and task.metric.name == "top1"
    part = task.data[str(MODEL)]
    np.testing.assert_array_equal(part.label_array(), digits["y"][:40][part.places()])
    assert any("one-hot" in text for text in task.warnings)
