"""Metrics against scikit-learn, the usual choice, what is refused, and a user's own."""

import copy
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from sklearn import metrics as reference

from onmetal.calibration import custom_metric, label_forms, metric_table
from onmetal.calibration.chance import chance_warning
from onmetal.calibration.label_forms import class_labels
from onmetal.calibration.metrics import Scorer, choose
from onmetal.errors import UsageError
from onmetal.files import stored
from onmetal.records import Tensor

quick = settings(max_examples=40, deadline=None)
RANDOM = np.random.default_rng(5)
N, CLASSES = 200, 6
LABELS = RANDOM.integers(0, CLASSES, N)
SCORES = RANDOM.normal(size=(N, CLASSES)).astype(np.float32)
SCORES[np.arange(N), LABELS] += 1
SHARES = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True, dtype=np.float64)


def scorer(name: str, outputs: np.ndarray, labels: np.ndarray) -> Scorer:
    tensor = Tensor("out", outputs.dtype.name, outputs.shape)
    return Scorer(choose(name, tensor, outputs.shape[1:], labels), {"out": outputs}, "out", labels)


def score(name: str, outputs: np.ndarray, labels: np.ndarray) -> float:
    return scorer(name, outputs, labels)(None)


def test_top1() -> None:
    assert score("top1", SCORES, LABELS) == pytest.approx(
        reference.accuracy_score(LABELS, SCORES.argmax(axis=1))
    )


def test_top5() -> None:
    assert score("top5", SCORES, LABELS) == pytest.approx(
        reference.top_k_accuracy_score(LABELS, SCORES, k=5, labels=range(CLASSES))
    )


def test_top5_of_fewer_classes_is_always_right() -> None:
    assert score("top5", SCORES[:, :3], LABELS % 3) == 1


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
@quick
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_macro_averages(name: str, pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    outputs = np.eye(5, dtype=np.float32)[predicted]
    expected = getattr(reference, f"{name}_score")(
        labels, predicted, average="macro", zero_division=0
    )
    assert score(name, outputs, labels) == pytest.approx(expected)
    assert score(name, predicted, labels) == pytest.approx(expected)
    assert score("accuracy", predicted, labels) == pytest.approx(
        reference.accuracy_score(labels, predicted)
    )


@quick
@given(
    st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30).filter(
        lambda pairs: len({label for label, _ in pairs}) == 2
    )
)
def test_auc_of_two_classes(pairs: list[tuple[bool, int]]) -> None:
    labels = np.array([label for label, _ in pairs], np.int64)
    scores = np.array([value for _, value in pairs], np.float32)
    expected = pytest.approx(reference.roc_auc_score(labels, scores))
    assert score("auc", scores, labels) == expected
    assert score("auc", scores[:, None], labels) == expected
    assert score("auc", np.stack([-scores, scores], axis=1), labels) == expected


def test_auc_of_many_classes_is_one_against_the_rest() -> None:
    expected = reference.roc_auc_score(LABELS, SHARES, multi_class="ovr", average="macro")
    assert score("auc", SHARES, LABELS) == pytest.approx(expected)


def test_auc_is_over_the_classes_that_occur() -> None:
    some = LABELS % 4
    expected = [reference.roc_auc_score(some == kind, SCORES[:, kind]) for kind in range(4)]
    assert score("auc", SCORES, some) == pytest.approx(np.mean(expected))


def test_one_score_is_a_probability_of_class_1() -> None:
    labels = LABELS % 2
    share = (RANDOM.random(N) * 0.6 + labels * 0.4).astype(np.float32)
    for outputs in (share, share[:, None]):
        for name in ("f1", "precision", "recall", "accuracy"):
            expected = (
                reference.accuracy_score(labels, share > 0.5)
                if name == "accuracy"
                else getattr(reference, f"{name}_score")(labels, share > 0.5, average="macro")
            )
            assert score(name, outputs, labels) == pytest.approx(expected)


def test_accuracy_of_many_numbers_wants_all_of_them_right() -> None:
    outputs = np.array([[1, 2], [3, 4], [5, 6]])
    assert score("accuracy", outputs, np.array([[1, 2], [3, 0], [5, 6]])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("shape", [(N,), (N, 1), (N, 3), (N, 2, 2)])
def test_rmse(shape: tuple[int, ...]) -> None:
    outputs = RANDOM.normal(size=shape).astype(np.float32)
    labels = RANDOM.normal(size=shape).astype(np.float32)
    expected = reference.root_mean_squared_error(outputs.ravel(), labels.ravel())
    assert score("rmse", outputs, labels) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_scores_of_any_float_type(kind: Any) -> None:
    outputs = SCORES.astype(kind)
    for name in ("top1", "top5", "f1", "auc"):
        assert score(name, outputs, LABELS) == pytest.approx(score(name, SCORES, LABELS), abs=0.02)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64, np.bool_])
def test_labels_of_any_integer_type(kind: Any) -> None:
    labels = LABELS % 2
    outputs = SCORES[:, :2]
    for name in ("top1", "accuracy", "precision", "recall", "f1", "auc"):
        assert score(name, outputs, labels.astype(kind)) == score(name, outputs, labels)


@pytest.mark.parametrize("name", ["top1", "top5", "accuracy", "precision", "recall", "f1"])
def test_scores_that_are_not_numbers_are_never_right(name: str) -> None:
    broken = np.full((10, 7), np.nan, np.float32)
    assert not score(name, broken, np.zeros(10, np.int64)) > 0


@pytest.mark.parametrize("name", ["accuracy", "f1"])
def test_a_probability_that_is_not_a_number_is_never_right(name: str) -> None:
    assert not score(name, np.full(10, np.nan, np.float32), np.zeros(10, np.int64)) > 0


def test_auc_of_what_is_not_a_number_is_not_one() -> None:
    broken = np.full((10, 1), np.nan, np.float32)
    assert np.isnan(score("auc", broken, np.arange(10) % 2))


FLOATS = Tensor("out", "float32", (1, CLASSES))
INTEGERS = Tensor("out", "int64", (1,))


def test_the_usual_metrics() -> None:
    assert choose(None, FLOATS, (CLASSES,), LABELS).name == "top1"
    assert choose(None, INTEGERS, (), LABELS).name == "accuracy"
    assert choose(None, FLOATS, (1,), LABELS / 2).name == "rmse"
    assert choose(None, INTEGERS, (), LABELS / 2).name == "rmse"


def test_which_way_is_better() -> None:
    for name in metric_table.NAMES:
        found = choose(
            name, FLOATS, (CLASSES,), LABELS if name != "rmse" else np.zeros((N, CLASSES))
        )
        assert found.higher_is_better is (name != "rmse")
        assert found.proportion is (name != "rmse")


REFUSED: list[tuple[str | None, str, tuple[int, ...], np.ndarray, str]] = [
    ("top2", "float32", (6,), LABELS, "top1, top5"),
    ("", "float32", (6,), LABELS, "unknown"),
    ("top1", "float32", (6,), LABELS + 1, "1 to 6"),
    ("top1", "float32", (6,), LABELS - 1, "-1 to 4"),
    ("top5", "float32", (6,), LABELS + 1, "classes 0 to 5"),
    ("f1", "float32", (6,), LABELS + 1, "classes 0 to 5"),
    ("f1", "float32", (1,), LABELS, "classes 0 to 1"),
    (None, "float32", (6,), LABELS + 1, "classes 0 to 5"),
    ("top1", "float32", (6,), LABELS / 2, "integers"),
    ("f1", "float32", (6,), LABELS / 2, "integers"),
    ("accuracy", "float32", (6,), LABELS / 2, "integers"),
    ("auc", "float32", (6,), LABELS / 2, "integers"),
    ("top1", "float32", (6,), LABELS[:, None], "one label for each sample"),
    ("top1", "float32", (1,), LABELS % 2, "one score per class"),
    ("top1", "float32", (), LABELS % 2, "one score per class"),
    ("top1", "float32", (2, 3), LABELS, "one score per class"),
    ("top1", "int64", (), LABELS, "scores"),
    ("top5", "int64", (6,), LABELS, "scores"),
    ("auc", "int64", (), LABELS % 2, "scores"),
    ("auc", "float32", (6,), LABELS * 0, "two classes"),
    ("f1", "float32", (2, 3), LABELS, "one score per class"),
    ("recall", "int64", (2,), LABELS, "one class number"),
    ("accuracy", "int64", (2,), LABELS, "as many numbers"),
    ("accuracy", "float32", (2, 3), LABELS, "one score per class"),
    ("rmse", "float32", (2,), LABELS / 2, "as many numbers"),
    ("rmse", "float32", (), np.zeros((N, 2)), "as many numbers"),
    (None, "float32", (3,), LABELS / 2, "as many numbers"),
]


@pytest.mark.parametrize(("asked", "dtype", "shape", "labels", "why"), REFUSED)
def test_what_does_not_go_together_is_refused(
    asked: str | None, dtype: str, shape: tuple[int, ...], labels: np.ndarray, why: str
) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        choose(asked, Tensor("out", dtype, (1, *shape)), shape, labels)
    assert "--metric" in str(refused.value)


def test_outputs_may_lie_on_disk_and_are_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "out.npy", SCORES)
    mapped = np.load(tmp_path / "out.npy", mmap_mode="r")
    whole = {name: score(name, SCORES, LABELS) for name in ("top1", "top5", "f1", "auc")}
    monkeypatch.setattr(stored, "CHUNK_BYTES", 100)
    assert len(list(stored.chunks(mapped))) == N // 4
    for name, expected in whole.items():
        assert score(name, mapped, LABELS) == expected


@pytest.mark.parametrize("name", ["top1", "precision", "f1", "auc", "rmse"])
def test_a_resample_scores_as_the_same_samples_alone(name: str) -> None:
    picked = RANDOM.integers(0, N, N)
    labels = LABELS if name != "rmse" else SCORES + 1
    assert scorer(name, SCORES, labels)(picked) == pytest.approx(
        score(name, SCORES[picked], labels[picked])
    )


EYE = np.eye(CLASSES, dtype=np.float32)[LABELS]
FLOATING = (None, "top1", "f1", "auc", "Top1")


@pytest.mark.parametrize("asked", FLOATING)
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (EYE, "one-hot"),
        (EYE.astype(np.int64), "one-hot"),
        (EYE.astype(bool), "one-hot"),
        (EYE[:, None], "one-hot"),
        (LABELS[:, None], ""),
        (LABELS.astype(np.uint8), ""),
        (LABELS.astype(np.float32), "whole floats"),
        (LABELS.astype(np.float64)[:, None], "whole floats"),
    ],
)
def test_class_numbers_in_other_forms(asked: str | None, labels: np.ndarray, words: str) -> None:
    for output in (FLOATS, Tensor("out", "int8", (1, CLASSES))):
        found, said = class_labels(asked, output, (CLASSES,), labels)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, LABELS)
        assert (words in said[0]) if words else not said
        assert choose(asked, output, (CLASSES,), found).name == (asked or "top1").lower()


def test_labels_that_are_none_of_these_stay() -> None:
    several = EYE.copy()
    several[3, :2] = 1
    for asked, labels, shape in [
        ("rmse", EYE, (CLASSES,)),
        ("own:metric", EYE, (CLASSES,)),
        ("rmse", LABELS.astype(np.float32), (1,)),
        (None, LABELS.astype(np.float32), (1,)),
        (None, SCORES, (CLASSES,)),
        (None, EYE * 0.9 + 0.02, (CLASSES,)),
        (None, LABELS / 2, (CLASSES,)),
        (None, EYE[:, :4], (CLASSES,)),
        (None, np.zeros((N, 2, 3)), (2, 3)),
        ("top1", several, (CLASSES,)),
    ]:
        found, said = class_labels(asked, FLOATS, shape, labels)
        assert found is labels and not said
    found, said = class_labels(None, FLOATS, (CLASSES,), several)
    assert found is several and "no one-hot" in said[0] and "1 of 200 hold several" in said[0]


def test_class_labels_of_one_score() -> None:
    for labels in (LABELS % 2 == 1, LABELS % 2, (LABELS % 2).astype(np.float32)):
        found, _ = class_labels("f1", Tensor("out", "float32", (1, 1)), (1,), labels)
        np.testing.assert_array_equal(found, LABELS % 2)


def test_how_many_scores_an_output_gives() -> None:
    for dtype, shape, expected in [
        ("float32", (10,), 10),
        ("float32", (1, 10, 1), 10),
        ("int8", (10,), 10),
        ("float32", (), 1),
        ("float32", (1,), 1),
        ("int8", (), None),
        ("int64", (10,), None),
        ("float32", (10, 4), None),
    ]:
        assert label_forms.scores(Tensor("out", dtype, (1, *shape)), shape) == expected


def test_names_of_metrics_in_any_case() -> None:
    for name in metric_table.NAMES:
        labels = LABELS if name != "rmse" else SCORES
        for written in (name.upper(), name.capitalize()):
            assert choose(written, FLOATS, (CLASSES,), labels).name == name


def test_labels_that_count_from_one() -> None:
    with pytest.raises(UsageError, match="if they count from 1, subtract 1"):
        choose("top1", FLOATS, (CLASSES,), LABELS + 1)


OWN = """
import numpy as np

def share(outputs, labels):
    assert set(outputs) == {"out", "other"} and len(labels) == len(outputs["out"])
    return np.mean(outputs["out"].argmax(axis=1) == labels)

def error(outputs, labels):
    return 1 - share(outputs, labels)
error.higher_is_better = False

def broken(outputs, labels):
    return outputs["nothing"]

def wordy(outputs, labels):
    return "very good"

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own, in the folder that the command was started in."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return name


def custom(asked: str) -> Scorer:
    metric = choose(asked, FLOATS, (CLASSES,), LABELS)
    return Scorer(metric, {"out": SCORES, "other": LABELS}, "out", LABELS)


def test_a_users_own_metric(own: str) -> None:
    found = custom(f"{own}:share")
    assert (found.metric.name, found.metric.higher_is_better) == (f"{own}:share", True)
    assert not found.metric.proportion
    assert found(None) == pytest.approx(score("top1", SCORES, LABELS))
    picked = np.arange(0, N, 3)
    assert found(picked) == pytest.approx(score("top1", SCORES[picked], LABELS[picked]))


READINGS: dict[str, Callable[[Any], Any]] = {
    "one by one": lambda given: (given["out"], given.get("out"), given.setdefault("out")),
    "in a loop": lambda given: [given[name] for name in given if name == "out"],
    "a pattern": operator.itemgetter("out"),
    "taken out": lambda given: given.pop("out"),
}
WHOLE: dict[str, Callable[[Any], Any]] = {
    "items": lambda given: sorted(given.items()),
    "values": lambda given: list(given.values()),
    "dict": dict,
    "keywords": lambda given: (lambda out, other: out)(**given),
    "unpacked": lambda given: {**given},
    "merged": lambda given: given | {},
    "merged into": lambda given: {} | given,
    "updated": lambda given: {}.update(given),
    "own copy": lambda given: given.copy(),
    "copied": copy.copy,
    "copied deep": copy.deepcopy,
    "pickled": lambda given: pickle.loads(pickle.dumps(given)),
    "one after another": lambda given: [given.popitem() for _ in range(len(given))],
}


@pytest.mark.parametrize("how", [*READINGS, *WHOLE])
def test_what_a_users_own_metric_reads_is_known(how: str) -> None:
    """However it reads it: of the other outputs more is asked."""

    def metric(given: dict[str, np.ndarray], labels: np.ndarray) -> float:
        (READINGS | WHOLE)[how](given)
        return 1.0

    own = replace(choose("top1", FLOATS, (CLASSES,), LABELS), function=metric)
    found = Scorer(own, {"out": SCORES, "other": LABELS}, "out", LABELS)
    assert found.read == set()
    assert found(None) == 1.0
    assert found.read == ({"out"} if how in READINGS else {"out", "other"})


def test_a_users_own_metric_may_be_better_when_lower(own: str) -> None:
    found = custom(f"{own}:error")
    assert not found.metric.higher_is_better
    assert found(None) == pytest.approx(1 - score("top1", SCORES, LABELS))


@pytest.mark.parametrize("name", ["broken", "wordy"])
def test_a_users_own_metric_that_fails_is_named(own: str, name: str) -> None:
    with pytest.raises(UsageError, match=f"{own}:{name}"):
        custom(f"{own}:{name}")(None)


def test_a_users_own_metric_that_fails_says_where(own: str) -> None:
    with pytest.raises(UsageError) as refused:
        custom(f"{own}:broken")(None)
    for words in ("KeyError: 'nothing'", f"{own}.py line 13", 'outputs["nothing"]', "'other'"):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("raise Odd()", "Odd"),
        ("return Odd2()", "ValueError"),
        ("raise ValueError('z' * 5000000)", "ValueError"),
    ],
)
def test_a_users_own_metric_that_cannot_even_be_told_of(
    own: str, tmp_path: Path, body: str, kind: str
) -> None:
    (tmp_path / f"{own}_odd.py").write_text(
        "class Odd(Exception):\n    def __str__(self):\n        raise TypeError\n"
        "class Odd2:\n    def __float__(self):\n        raise ValueError\n"
        f"def f(outputs, labels):\n    {body}\n"
    )
    metric = choose(f"{own}_odd:f", FLOATS, (CLASSES,), LABELS)
    with pytest.raises(UsageError, match=rf"{own}_odd:f: .*\b{kind}\b"):
        custom_metric.try_custom(metric, {"out": SCORES}, LABELS)


RETURNED = [
    ("None", "returned None"),
    ("'0.5'", "returned '0.5'"),
    ("{'f1': 0.5}", "returned {'f1'"),
    ("outputs['out'].max(axis=0)", r"array of shape \[6\]"),
    ("[0.5]", r"array of shape \[1\]"),
    ("float('nan')", "returned nan.*finite"),
    ("np.float32(np.inf)", "returned inf.*finite"),
]


@pytest.mark.parametrize(("returned", "message"), RETURNED)
def test_what_a_users_own_metric_may_not_return(
    own: str, tmp_path: Path, returned: str, message: str
) -> None:
    (tmp_path / f"{own}_wrong.py").write_text(
        f"import numpy as np\ndef f(outputs, labels):\n    return {returned}\n"
    )
    metric = choose(f"{own}_wrong:f", FLOATS, (CLASSES,), LABELS)
    with pytest.raises(UsageError, match=message):
        custom_metric.try_custom(metric, {"out": SCORES}, LABELS)


@pytest.mark.parametrize(
    "text", ["{}:number", "{}:nothing", "{}:", "{}_not:f", ":share", ".{}:share"]
)
def test_what_is_no_function_is_refused(own: str, text: str) -> None:
    asked = text.format(own)
    with pytest.raises(UsageError) as refused:
        choose(asked, FLOATS, (CLASSES,), LABELS)
    assert asked in str(refused.value)


@pytest.mark.parametrize("text", ["def (", "1 / 0", "import sys; sys.exit(3)"])
def test_a_users_module_that_cannot_be_imported_is_refused(
    own: str, tmp_path: Path, text: str
) -> None:
    (tmp_path / f"{own}_bad.py").write_text(text)
    with pytest.raises(UsageError, match=f"{own}_bad"):
        choose(f"{own}_bad:f", FLOATS, (CLASSES,), LABELS)


def test_one_more_metric_of_numbers_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def absolute(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        apart = outputs.reshape(len(labels), -1) - labels.reshape(len(labels), -1)
        return np.asarray(np.abs(apart).mean(axis=1))

    row = metric_table.Metric(
        *("mae", absolute, lambda reduced, labels: float(reduced.mean())),
        higher_is_better=False,
        proportion=False,
        labels="numbers",
    )
    monkeypatch.setitem(metric_table.METRICS, "mae", row)
    labels = np.array([[0.5], [1.5], [-1.0]], np.float32)
    assert choose("MAE", Tensor("y", "float32", (1, 1)), (1,), labels) is row
    with pytest.raises(UsageError, match="as many numbers"):
        choose("mae", Tensor("y", "float32", (1, 2)), (2,), labels)
    assert chance_warning("mae", labels, 1.0, 3) is None
