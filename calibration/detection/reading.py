"""Detections of each image, from a model's outputs."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from onmetal.calibration.detection import suppression
from onmetal.calibration.detection.heads import Head
from onmetal.errors import UsageError
from onmetal.files.task_settings import BoxLayout

NORMALIZED_MOST = 1.5
"""Boxes whose coordinates nearly all lie below are parts of the input, not pixels."""
SCORE_SLACK = 1e-3


class Raw(NamedTuple):
    """Boxes and scores as they are in the outputs, as real numbers."""

    boxes: np.ndarray
    """[n, K, 4]"""
    scores: np.ndarray
    """[n, K], or [n, K, classes] before suppression."""
    classes: np.ndarray | None
    """[n, K]; None: before suppression."""
    valid: np.ndarray | None
    """[n] how many of the K are detections; None: all that have a score."""


def raw(head: Head, outputs: Mapping[str, np.ndarray]) -> Raw:
    """`outputs`: name -> [n, …] of the outputs that the head reads."""
    arrays = {role: _real(head, name, outputs[name]) for role, name in head.outputs.items()}
    if head.kind == "lists":
        samples = len(arrays["boxes"])
        scores, classes = (arrays[role].reshape(samples, -1) for role in ("scores", "classes"))
        valid = arrays["count"].reshape(samples) if "count" in arrays else None
        return Raw(arrays["boxes"].reshape(samples, -1, 4), scores, classes, valid)
    if head.kind == "candidates":
        scores = arrays["scores"].swapaxes(1, 2) if head.transposed else arrays["scores"]
        return Raw(arrays["boxes"], scores, None, None)
    whole = arrays["all"]
    axes = tuple(axis for axis in range(1, whole.ndim) if whole.shape[axis] == 1)
    whole = np.squeeze(whole, axes) if whole.ndim > 3 else whole
    whole = whole.swapaxes(1, 2) if head.transposed else whole
    if head.kind == "detections":
        return Raw(whole[..., :4], whole[..., 4], whole[..., 5], None)
    if head.kind == "yolov5":
        return Raw(whole[..., :4], whole[..., 5:] * whole[..., 4:5], None, None)
    return Raw(whole[..., :4], whole[..., 4:], None, None)


def _real(head: Head, name: str, values: np.ndarray) -> np.ndarray:
    scale, zero = head.grids.get(name, (1.0, 0))
    if name not in head.grids:
        return values.astype(np.float32, copy=False)
    return (values.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def detections(head: Head, outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """For each image [n, 6] float64: x1, y1, x2, y2 in pixels of the input and clipped to it,
    score, class; largest score first. Rows that are not finite are no detections."""
    found = raw(head, outputs)
    boxes = corners(found.boxes.astype(np.float64), head.boxes)
    if head.normalized:
        boxes = boxes * np.tile(np.array(head.size, np.float64), 2)
    boxes = np.clip(boxes, 0, np.tile(np.array(head.size, np.float64), 2))
    images = []
    for number, of_image in enumerate(boxes):
        whole = np.isfinite(of_image).all(axis=1)
        scores = np.where(np.isfinite(found.scores[number]), found.scores[number], 0)
        if found.classes is None:
            images.append(suppression.best(of_image[whole], scores[whole]))
            continue
        whole &= (scores > suppression.LEAST_SCORE) & np.isfinite(found.classes[number])
        if found.valid is not None:
            whole &= np.arange(len(whole)) < found.valid[number]
        rows = np.column_stack([of_image, scores, np.rint(found.classes[number])])[whole]
        images.append(rows[np.argsort(-rows[:, 4], kind="stable")])
    return images


def corners(boxes: np.ndarray, layout: BoxLayout) -> np.ndarray:
    """[…, 4] in any layout -> x1, y1, x2, y2. Of two corners, whichever is the smaller is taken as
    the first one, as ONNX's NonMaxSuppression takes them."""
    if layout == "cxcywh":
        half = boxes[..., 2:] / 2
        return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
    if layout == "xywh":
        return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)
    if layout == "yxyx":
        boxes = boxes[..., [1, 0, 3, 2]]
    first, second = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def settle(head: Head, outputs: Mapping[str, np.ndarray]) -> tuple[Head, list[str]]:
    """The head with what only values tell, from a few outputs of the original model, and notes for
    the user. Raises UsageError where scores are no probabilities, or classes no whole numbers."""
    found = raw(head, outputs)
    scores = found.scores[np.isfinite(found.scores)]
    low, high = (float(scores.min()), float(scores.max())) if scores.size else (0.0, 0.0)
    name = head.outputs.get("scores") or head.outputs["all"]
    if low < -SCORE_SLACK or high > 1 + SCORE_SLACK:
        raise UsageError(
            f"--metric map: the scores in the output {name!r} go from {low:.3g} to {high:.3g}, and "
            "must lie in [0, 1]: is it the right output, in the right form? Of logits, take what "
            "the Sigmoid or Softmax gives (--cut-at)"
        )
    if found.classes is not None:
        kept = found.classes[(found.scores > suppression.LEAST_SCORE)]
        if not np.array_equal(kept, np.rint(kept)):
            raise UsageError(
                "--metric map: the classes of the detections in "
                f"{head.outputs.get('classes') or head.outputs['all']!r} are no whole numbers "
                f"({kept[kept != np.rint(kept)][0]:.3g} for one): is `outputs` or `head` in "
                "data.toml right?"
            )
    if head.normalized is not None:
        return head, []
    best = found.scores if found.classes is not None else found.scores.max(axis=2, initial=0)
    boxes = np.abs(found.boxes[best > suppression.LEAST_SCORE])
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    if not boxes.size:
        return replace(head, normalized=False), []
    normalized = float(np.quantile(boxes, 0.99)) <= NORMALIZED_MOST < min(head.size) / 4
    notes = (
        [
            "the boxes of the outputs were taken as parts of the input's width and height, since "
            "none is larger; `normalized = false` in data.toml takes them as pixels"
        ]
        if normalized
        else []
    )
    return replace(head, normalized=normalized), notes
