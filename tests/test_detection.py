"""The metric map: how detections are read from outputs, suppression, and average precision against
pycocotools."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal.calibration.accuracy import judge
from onmetal.calibration.detection import average_precision, heads, metric, reading, suppression
from onmetal.calibration.detection.heads import Head
from onmetal.calibration.metric_table import METRICS
from onmetal.calibration.metrics import Scorer
from onmetal.errors import UsageError
from onmetal.files.arrays import stored
from onmetal.files.task_settings import TaskSettings
from onmetal.records import Model, Tensor
from onmetal.samples import Samples

SIZE = (100, 80)
"""Width and height of the input."""
Rows = list[np.ndarray]


def drawn(seed: int, images: int, classes: int, *, ties: bool = False) -> tuple[Rows, Rows]:
    """Random boxes (some of them crowds), and detections near them and elsewhere."""
    random = np.random.default_rng(seed)
    boxes, detections = [], []
    for _ in range(images):
        count = random.integers(0, 6)
        corner = random.uniform(0, 50, (count, 2))
        size = random.uniform(15, 30, (count, 2))
        number = random.integers(0, classes, count)
        crowd = random.random(count) < 0.15
        rows = np.column_stack([corner, corner + size, number, crowd]).reshape(-1, 6)
        boxes.append(rows)
        near = rows[random.integers(0, count, 3 * count)] if count else rows
        moved = near[:, :4] + random.normal(0, 2, (len(near), 4))
        other = np.where(random.random(len(near)) < 0.8, near[:, 4], classes - near[:, 4])
        far = random.uniform(0, 50, (4, 2))
        places = np.concatenate([moved, np.column_stack([far, far + 20])])
        kinds = np.concatenate([other, random.integers(0, classes, 4)])
        scores = random.random(len(places))
        scores = scores.round(1) if ties else scores
        detections.append(np.column_stack([places, scores, kinds]))
    return detections, boxes


def by_library(detections: Rows, boxes: Rows) -> float:
    """pycocotools' own average precision."""
    evaluation = average_precision.evaluated(detections, boxes)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval["precision"]
    return float(precision[precision > -1].mean())


@pytest.mark.parametrize("seed", range(12))
def test_map_is_that_of_pycocotools_also_on_a_resample(seed: int) -> None:
    detections, boxes = drawn(seed, images=5 + 3 * seed, classes=1 + seed % 5)
    matches = average_precision.match(detections, boxes)
    wanted = by_library(detections, boxes)
    assert 0 < wanted < 1
    assert matches.score(None) == pytest.approx(wanted, abs=1e-12)
    picked = np.random.default_rng(seed).integers(0, len(boxes), len(boxes))
    again = by_library([detections[i] for i in picked], [boxes[i] for i in picked])
    assert matches.score(picked) == pytest.approx(again, abs=1e-12)


def test_equal_scores_are_ordered_as_pycocotools_orders_them() -> None:
    detections, boxes = drawn(3, images=30, classes=3, ties=True)
    wanted = by_library(detections, boxes)
    found = average_precision.match(detections, boxes).score(None)
    assert found == pytest.approx(wanted, abs=1e-12)


def test_known_values() -> None:
    boxes = [np.array([[0.0, 0, 10, 10, 0, 0], [20, 0, 30, 10, 0, 0]])]
    right = [20, 0, 30, 10, 0.9, 0]

    def score(*rows: Sequence[float]) -> float:
        return average_precision.match([np.array(rows, float).reshape(-1, 6)], boxes).score(None)

    assert score(right, [0, 0, 10, 10, 0.8, 0]) == pytest.approx(1.0)
    assert score() == 0.0
    assert score(right) == pytest.approx(51 / 101)
    assert score([40, 40, 50, 50, 0.95, 0], right) == pytest.approx(51 / 101 / 2)
    assert score(right, [2, 0, 12, 10, 0.8, 0]) == pytest.approx((4 * 1 + 6 * 51 / 101) / 10)
    assert score([*right[:5], 1]) == 0.0, "of another class"


def test_no_class_with_a_box_is_undefined() -> None:
    detections, boxes = drawn(0, images=3, classes=2)
    boxes[0] = np.zeros((0, 6))
    matches = average_precision.match(detections, boxes)
    assert np.isnan(matches.score(np.array([0, 0, 0])))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(average_precision, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'onmetal\[detection\]'"):
        average_precision.need_library()


# --- suppression


def slow_suppression(boxes: np.ndarray, scores: np.ndarray) -> list[tuple[int, int]]:
    """(anchor, class) that remain, by comparing every pair."""

    def overlap(one: np.ndarray, two: np.ndarray) -> float:
        wide = min(one[2], two[2]) - max(one[0], two[0])
        high = min(one[3], two[3]) - max(one[1], two[1])
        both = max(wide, 0) * max(high, 0)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
        return float(both / (sum(areas) - both))

    pairs = [(-s, a, c) for (a, c), s in np.ndenumerate(scores) if s > suppression.LEAST_SCORE]
    kept: list[tuple[int, int]] = []
    for _, anchor, number in sorted(pairs):
        rivals = [a for a, c in kept if c == number]
        if all(overlap(boxes[a], boxes[anchor]) <= suppression.MOST_OVERLAP for a in rivals):
            kept.append((anchor, number))
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_suppression_is_greedy_class_by_class(seed: int) -> None:
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 30, (60, 2))
    boxes = np.column_stack([corner, corner + random.uniform(10, 14, (60, 2))])
    scores = np.where(random.random((60, 3)) < 0.5, random.random((60, 3)), 0)
    found = suppression.best(boxes, scores)
    expected = slow_suppression(boxes, scores)
    assert len(expected) < int((scores > 0.001).sum())
    np.testing.assert_array_equal(found[:, :4], boxes[[a for a, _ in expected]])
    np.testing.assert_array_equal(found[:, 5], [c for _, c in expected])
    assert (np.diff(found[:, 4]) <= 0).all()


def test_at_most_300_remain_and_nan_is_none() -> None:
    corner = np.arange(400)[:, None] * [20.0, 0]
    scores = np.linspace(0.1, 0.9, 400)[:, None]
    scores[-1] = np.nan
    found = suppression.best(np.column_stack([corner, corner + 10]), scores)
    assert len(found) == suppression.MOST_KEPT
    assert found[0, 4] == scores[-2]


# --- outputs


def model(**outputs: tuple[tuple[int, ...], str]) -> Model:
    tensors = tuple(Tensor(n, dtype, (1, *shape)) for n, (shape, dtype) in outputs.items())
    image = Tensor("images", "float32", (1, 3, SIZE[1], SIZE[0]))
    where = Path("m.onnx")
    return Model(where, where, "", "onnx", "", 0, (image,), tensors, 0, 0, {}, 1)


def found(
    classes: int | None = None,
    task: TaskSettings | None = None,
    output: str | None = None,
    **outputs: tuple[tuple[int, ...], str],
) -> Head | str:
    return heads.find(model(**outputs), output, task or TaskSettings(), SIZE, classes)


F32 = "float32"


@pytest.mark.parametrize(
    ("shape", "classes", "kind", "transposed"),
    [
        ((300, 6), 80, "detections", False),
        ((20, 6), None, "detections", False),
        ((84, 8400), 80, "yolov8", True),
        ((84, 8400), None, "yolov8", True),
        ((8400, 84), 80, "yolov8", False),
        ((25200, 85), 80, "yolov5", False),
        ((25200, 85), None, "yolov5", False),
        ((85, 25200), 80, "yolov5", True),
        ((5, 8400), 1, "yolov8", True),
        ((25200, 6), 1, "yolov5", False),
        ((1, 300, 6), 80, "detections", False),
    ],
)
def test_single_outputs_are_known_by_their_shape(
    shape: tuple[int, ...], classes: int | None, kind: str, transposed: bool
) -> None:
    head = found(classes, output0=(shape, F32), proto=((32, 160, 160), F32))
    assert isinstance(head, Head)
    assert (head.kind, head.outputs, head.transposed) == (kind, {"all": "output0"}, transposed)
    assert head.boxes == ("cxcywh" if kind.startswith("yolo") else "xyxy")


@pytest.mark.parametrize("shape", [(116, 8400), (10,), (3, 8, 8), (8400, 4)])
def test_other_outputs_are_of_no_known_head(shape: tuple[int, ...]) -> None:
    assert isinstance(found(80, output0=(shape, F32)), str)


TFLITE = {
    "TFLite_Detection_PostProcess": ((10, 4), F32),
    "TFLite_Detection_PostProcess:1": ((10,), F32),
    "TFLite_Detection_PostProcess:2": ((10,), F32),
    "TFLite_Detection_PostProcess:3": ((), F32),
}


def test_lists_are_known_by_names_and_dtypes() -> None:
    head = found(None, None, None, **TFLITE)
    assert isinstance(head, Head)
    names = list(TFLITE)
    roles = zip(("boxes", "classes", "scores", "count"), names, strict=True)
    assert head.outputs == dict(roles)
    assert (head.kind, head.boxes, head.normalized) == ("lists", "yxyx", True)
    torch = found(boxes=((9, 4), F32), labels=((9,), "int64"), scores=((9,), F32))
    assert isinstance(torch, Head)
    assert torch.outputs == {"boxes": "boxes", "scores": "scores", "classes": "labels"}
    assert (torch.boxes, torch.normalized) == ("xyxy", None)
    plain = found(o1=((9, 4), F32), o2=((9,), F32), o3=((9,), "int32"), o4=((1,), "int32"))
    assert isinstance(plain, Head)
    assert plain.outputs == {"boxes": "o1", "scores": "o2", "classes": "o3", "count": "o4"}


def test_what_no_name_tells_is_asked_for_and_may_be_said() -> None:
    unclear = {"o1": ((9, 4), F32), "o2": ((9,), F32), "o3": ((9,), F32)}
    head = found(None, None, None, **unclear)
    assert isinstance(head, str)
    assert "outputs = {boxes" in head
    said = TaskSettings(outputs={"boxes": "o1", "scores": "o3", "classes": "o2"}, boxes="xywh")
    head = found(None, said, None, **unclear)
    assert isinstance(head, Head)
    assert (head.outputs["classes"], head.boxes) == ("o2", "xywh")
    wrong = TaskSettings(outputs={"boxes": "nothing"})
    assert "nothing" in str(found(None, wrong, None, **unclear))


@pytest.mark.parametrize(("shape", "transposed"), [((3, 50), True), ((50, 3), False)])
def test_boxes_and_scores_before_suppression(shape: tuple[int, int], transposed: bool) -> None:
    head = found(boxes=((50, 4), F32), scores=(shape, F32))
    assert isinstance(head, Head)
    assert (head.kind, head.transposed, head.classes) == ("candidates", transposed, 3)


# --- reading: the same three detections by every head

WANTED = np.array([[10, 20, 30, 60, 0.9, 1], [50, 10, 70, 30, 0.8, 0], [0, 0, 20, 20, 0.5, 2]])


def layout(corners: np.ndarray, kind: str) -> np.ndarray:
    low, high = corners[:, :2], corners[:, 2:]
    made = {
        "xyxy": [low, high],
        "xywh": [low, high - low],
        "yxyx": [low[:, ::-1], high[:, ::-1]],
        "cxcywh": [(low + high) / 2, high - low],
    }[kind]
    return np.concatenate(made, axis=1)


def outputs_of(kind: str, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """float32, two images: the first has the wanted detections, the second none."""
    scores = np.zeros((3, 3))
    scores[np.arange(3), WANTED[:, 5].astype(int)] = WANTED[:, 4]
    made = {
        "detections": {"all": np.column_stack([boxes, WANTED[:, 4:]])},
        "lists": {"boxes": boxes, "scores": WANTED[:, 4], "classes": WANTED[:, 5]},
        "candidates": {"boxes": boxes, "scores": scores},
        "yolov8": {"all": np.column_stack([boxes, scores])},
        "yolov5": {"all": np.column_stack([boxes, np.full(3, 0.5), scores * 2])},
    }[kind]
    return {name: np.stack([a, 0 * a]).astype(np.float32) for name, a in made.items()}


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("boxes", ["xyxy", "xywh", "yxyx", "cxcywh"])
@pytest.mark.parametrize("kind", ["detections", "lists", "candidates", "yolov8", "yolov5"])
def test_every_head_gives_the_same_detections(kind: Any, boxes: Any, normalized: bool) -> None:
    corners = WANTED[:, :4] / (np.tile(SIZE, 2) if normalized else 1)
    outputs = outputs_of(kind, layout(corners, boxes))
    names = {name: name for name in outputs}
    head = Head(kind, names, boxes, None, 3, False, SIZE, {})
    settled, notes = reading.settle(head, outputs)
    assert settled.normalized is normalized
    assert [("normalized = false" in text) for text in notes] == [True] * normalized
    first, second = reading.detections(settled, outputs)
    np.testing.assert_allclose(first, WANTED, rtol=1e-5, atol=1e-5)
    assert second.shape == (0, 6)
    if kind in ("yolov8", "yolov5"):
        turned = {"all": outputs["all"].transpose(0, 2, 1)}
        again = reading.detections(replace(settled, transposed=True), turned)
        np.testing.assert_array_equal(again[0], first)


def test_a_count_whole_numbers_clipping_and_nan() -> None:
    outputs = outputs_of("lists", WANTED[:, :4])
    names = {name: name for name in (*outputs, "count")}
    head = Head("lists", names, "xyxy", False, None, False, SIZE, {"boxes": (0.5, 10)})
    outputs["boxes"] = (outputs["boxes"] / 0.5 + 10).astype(np.int16)
    outputs["count"] = np.array([[2.0], [0.0]], np.float32)
    first, _ = reading.detections(head, outputs)
    np.testing.assert_allclose(first, WANTED[:2], rtol=1e-6)
    plain = outputs_of("detections", WANTED[:, :4])
    plain["all"][0, 0, :4] = [-5, -5, 500, 500]
    plain["all"][0, 1, 2] = np.nan
    single = Head("detections", {"all": "all"}, "xyxy", False, None, False, SIZE, {})
    first, _ = reading.detections(single, plain)
    np.testing.assert_allclose(first[:, :4], [[0, 0, *SIZE], [0, 0, 20, 20]])


def test_logits_and_classes_that_are_no_numbers_are_refused() -> None:
    outputs = outputs_of("yolov8", WANTED[:, :4])
    outputs["all"][..., 4:] = outputs["all"][..., 4:] * 9 - 5
    head = Head("yolov8", {"all": "all"}, "cxcywh", None, 3, False, SIZE, {})
    with pytest.raises(UsageError, match=r"go from -5 to 3.1.*Sigmoid"):
        reading.settle(head, outputs)
    lists = outputs_of("lists", WANTED[:, :4])
    lists["scores"], lists["classes"] = lists["classes"] / 3, lists["scores"]
    head = Head("lists", {n: n for n in lists}, "xyxy", None, None, False, SIZE, {})
    with pytest.raises(UsageError, match="no whole numbers"):
        reading.settle(head, lists)


# --- the metric


def samples(labels: np.ndarray, folder: Path) -> Samples:
    np.save(folder / "y.npy", labels)
    return Samples("d", "d", len(labels), labels=stored(folder / "y.npy"))


def padded(rows: Rows) -> np.ndarray:
    labels = np.full((len(rows), max(map(len, rows)), 6), -1.0)
    for number, of_image in enumerate(rows):
        labels[number, : len(of_image)] = of_image
    return labels


def test_the_drop_between_two_models_has_an_interval(tmp_path: Path) -> None:
    detections, boxes = drawn(1, images=60, classes=3)
    most = max(map(len, detections))
    output = np.zeros((60, most, 6), np.float32)
    for number, rows in enumerate(detections):
        output[number, : len(rows)] = rows
    worse = output.copy()
    worse[::2, :, 4] = 0
    data = samples(padded(boxes), tmp_path)
    chosen = metric.metric(model(found=((most, 6), F32)), None, data)
    chosen, _ = metric.settled(chosen, {"found": output})
    both = [Scorer(chosen, {"found": o}, "found", data.label_rows()) for o in (worse, output)]
    clipped = [
        np.column_stack([np.clip(r[:, :4], 0, np.tile(SIZE, 2)), r[:, 4:]]).astype(np.float32)
        for r in (rows[rows[:, 4] > suppression.LEAST_SCORE] for rows in detections)
    ]
    assert both[1](None) == pytest.approx(by_library(clipped, boxes), abs=1e-9)
    assert both[0].read == {"found"}
    drop = judge(*both)
    assert drop.drop is not None and drop.drop_ci95 is not None
    assert 0 < drop.drop_ci95[0] < drop.drop < drop.drop_ci95[1]
    assert judge(both[1], both[1]).drop_ci95 == (0.0, 0.0)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros((3,), int), "they are no boxes"),
        (np.zeros((3, 2, 4)), "they are no boxes"),
        (np.full((3, 2, 5), -1.0), "there is no box"),
        (np.full((3, 2, 5), 0.5), "whole numbers"),
        (np.array([[[5.0, 5, 1, 9, 0]]]), "ends before it begins"),
        (np.array([[[5.0, 5, 8, 9, 3]]]), "class 3, and the model's are 0 to 2"),
    ],
)
def test_labels_that_are_no_boxes(labels: np.ndarray, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        metric.metric(model(y=((7, 50), F32)), None, samples(labels, tmp_path))


def test_outputs_that_are_of_no_head_are_told_of(tmp_path: Path) -> None:
    data = samples(np.array([[[1.0, 1, 2, 2, 0]]]), tmp_path)
    with pytest.raises(UsageError, match=r"outputs 'y' \[3, 8, 8\].*what is read: one output"):
        metric.metric(model(y=((3, 8, 8), F32)), None, data)
    assert METRICS["map"].whole is None
    assert "hardly anything" in str(metric.warning(0.001))
    assert metric.warning(0.3) is None
