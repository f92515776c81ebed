"""COCO's average precision: detections are matched with boxes by pycocotools, once for each sample;
the curve is then computed for any resample of the samples.

AP@[.5:.95] over 10 thresholds of IoU, 101 points of recall, all sizes, at most 100 detections of a
class in an image (Lin et al., 2014; cocodataset.org/#detection-eval). pycocotools computes the
curve for all images at once only, so this is done here; the tests hold it equal to pycocotools'
own.
"""

import contextlib
import io
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from msgspec import Struct

from onmetal.errors import UsageError

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100


def need_library() -> None:
    """Raises UsageError, with what to install, where pycocotools is missing."""
    if find_spec("pycocotools") is None:
        raise UsageError(
            "--metric map needs pycocotools, which is not installed: "
            "pip install 'onmetal[detection]'"
        )


class ClassMatches(Struct, frozen=True):
    """All detections of one class, largest score first, and how many boxes there are to find."""

    image: np.ndarray
    """[detections] int64"""
    right: np.ndarray
    """[thresholds, detections] bool"""
    wrong: np.ndarray
    """[thresholds, detections] bool; neither right nor wrong: in a crowd, which is not judged."""
    boxes: np.ndarray
    """[images] int64: boxes of each image that are no crowd."""


class Matches:
    """The matches of every class that has boxes."""

    def __init__(self, classes: Sequence[ClassMatches], images: int) -> None:
        self.classes, self.images = classes, images

    def score(self, samples: np.ndarray | None) -> float:
        """The mean of the classes' AP; NaN where no class has a box in these samples."""
        times = (
            np.ones(self.images)
            if samples is None
            else np.bincount(samples, minlength=self.images).astype(np.float64)
        )
        values = [ap for entry in self.classes if (ap := _precision(entry, times)) is not None]
        return float(np.mean(values)) if values else float("nan")


def _precision(matches: ClassMatches, times: np.ndarray) -> float | None:
    """AP of a class, each image counted as often as `times` has it."""
    total = float(times @ matches.boxes)
    if not total:
        return None
    weights = times[matches.image]
    right = np.cumsum(matches.right * weights, axis=1)
    wrong = np.cumsum(matches.wrong * weights, axis=1)
    precision = right / (right + wrong + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.pad(precision, ((0, 0), (0, 1)))  # beyond the largest recall it is 0
    at_recalls = [
        row[np.searchsorted(recall, RECALLS, side="left")]
        for row, recall in zip(precision, right / total, strict=True)
    ]
    return float(np.mean(at_recalls))


def match(detections: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> Matches:
    """Match detections with boxes, image by image.

    `detections`: [n, 6] each (x1, y1, x2, y2, score, class); `boxes`: [n, 6] each (x1, y1, x2, y2,
    class, crowd).
    """
    evaluation = evaluated(detections, boxes)
    images, parameters = len(boxes), evaluation.params
    classes = []
    for number in range(len(parameters.catIds)):
        entries = evaluation.evalImgs[number * images : (number + 1) * images]
        classes.append(_of_class([entry for entry in entries if entry], images))
    return Matches(classes, images)


def evaluated(detections: Sequence[np.ndarray], boxes: Sequence[np.ndarray]) -> Any:
    """A COCOeval of pycocotools that has matched all, for boxes of all sizes."""
    need_library()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    classes = np.unique(np.concatenate([rows[:, 4] for rows in boxes]))
    detections = [rows[np.isin(rows[:, 5], classes)] for rows in detections]
    known, found = COCO(), COCO()
    frame: dict[str, Any] = {
        "images": [{"id": number} for number in range(len(boxes))],
        "categories": [{"id": int(number)} for number in classes],
    }
    known.dataset = {**frame, "annotations": _annotations(boxes, 4, crowd=True)}
    found.dataset = {**frame, "annotations": _annotations(detections, 5, crowd=False)}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells of its progress
        known.createIndex()
        found.createIndex()
        evaluation = COCOeval(known, found, "bbox")
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.params.maxDets = [MOST_DETECTIONS]
        evaluation.evaluate()
    return evaluation


def _annotations(
    rows: Sequence[np.ndarray], class_column: int, *, crowd: bool
) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for image, of_image in enumerate(rows):
        for row in of_image.tolist():
            wide, high = row[2] - row[0], row[3] - row[1]
            entries.append(
                {
                    "id": len(entries) + 1,  # 0 stands for no match
                    "image_id": image,
                    "category_id": int(row[class_column]),
                    "bbox": [row[0], row[1], wide, high],
                    "area": wide * high,
                    "iscrowd": int(row[5]) if crowd else 0,
                    "score": 0.0 if crowd else row[4],
                }
            )
    return entries


def _of_class(entries: Sequence[dict[str, Any]], images: int) -> ClassMatches:
    boxes = np.zeros(images, np.int64)
    for entry in entries:
        boxes[entry["image_id"]] = np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0)
    scores = np.concatenate([np.zeros(0), *(entry["dtScores"] for entry in entries)])
    image = [np.full(len(entry["dtScores"]), entry["image_id"]) for entry in entries]
    none = np.zeros((len(THRESHOLDS), 0))
    matched = np.concatenate([none, *(entry["dtMatches"] for entry in entries)], axis=1) > 0
    ignored = np.concatenate([none, *(entry["dtIgnore"] for entry in entries)], axis=1) > 0
    order = np.argsort(-scores, kind="stable")
    return ClassMatches(
        np.concatenate([np.zeros(0, np.int64), *image])[order],
        (matched & ~ignored)[:, order],
        (~matched & ~ignored)[:, order],
        boxes,
    )
