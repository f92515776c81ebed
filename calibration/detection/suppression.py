"""Non-maximum suppression on the host, as detectors are usually evaluated."""

import numpy as np

LEAST_SCORE = 0.001
"""Detections of a smaller score are left out; average precision needs nearly all of them."""
MOST_OVERLAP = 0.7
"""Of two boxes of one class with a larger IoU, that of the smaller score is left out."""
MOST_KEPT = 300
"""The most detections of an image."""
MOST_CANDIDATES = 30_000
"""The most boxes of an image that are compared: those of the largest scores."""


def best(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Detections [n, 6] (x1, y1, x2, y2, score, class) of one image, largest score first.

    `boxes` [anchors, 4] (x1, y1, x2, y2); `scores` [anchors, classes]: each class whose score is
    large enough makes a candidate of its own. Greedy, class by class.
    """
    anchors, classes = np.nonzero(scores > LEAST_SCORE)  # never where it is NaN
    values = scores[anchors, classes]
    order = np.argsort(-values, kind="stable")[:MOST_CANDIDATES]
    anchors, classes, values = anchors[order], classes[order], values[order]
    kept = suppressed(boxes[anchors], classes)
    chosen = np.column_stack([boxes[anchors[kept]], values[kept], classes[kept]])
    return chosen.astype(np.float64)


def suppressed(boxes: np.ndarray, classes: np.ndarray) -> list[int]:
    """The indices that remain, at most MOST_KEPT. `boxes` [n, 4], by falling score."""
    boxes = boxes.astype(np.float64)
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    remaining = np.arange(len(boxes))
    kept: list[int] = []
    while len(remaining) and len(kept) < MOST_KEPT:
        first, others = int(remaining[0]), remaining[1:]
        kept.append(first)
        same = classes[others] == classes[first]
        rivals = others[same]
        low = np.maximum(boxes[rivals, :2], boxes[first, :2])
        high = np.minimum(boxes[rivals, 2:], boxes[first, 2:])
        both = np.prod(np.maximum(high - low, 0), axis=1)
        either = areas[rivals] + areas[first] - both
        drop = np.zeros(len(others), bool)
        drop[same] = both > MOST_OVERLAP * either
        remaining = others[~drop]
    return kept
