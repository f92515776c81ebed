"""What a detector's outputs are, by their shapes and names, or as data.toml says.

| kind | outputs, for a sample |
|---|---|
| detections | one [K, 6]: box, score, class of each detection |
| lists | boxes [K, 4], scores [K], classes [K], and a count of the valid ones, perhaps |
| candidates | boxes [K, 4] and scores [K, classes] or [classes, K], before NonMaxSuppression |
| yolov8 | one [4 + classes, anchors]: box and the scores of the classes |
| yolov5 | one [anchors, 5 + classes]: box, objectness and the scores of the classes |
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct

from onmetal.files.task_settings import BoxLayout, HeadKind, Role, TaskSettings
from onmetal.records import Model, Shape, Tensor

MOST_DETECTED = 1000
"""[K, 6] with more rows is no list of detections."""
NAMED_ROLES: Mapping[Role, tuple[str, ...]] = {
    "boxes": ("box", "bbox", "location"),
    "scores": ("score", "conf", "prob"),
    "classes": ("class", "label", "categor"),
    "count": ("num", "count", "valid"),
}
TFLITE = "TFLite_Detection_PostProcess"
"""The operator, after which its four outputs are called: boxes, then with `:1` classes, `:2` scores
and `:3` the count."""
KNOWN_ROLES: Mapping[str, Role] = {
    TFLITE: "boxes",
    f"{TFLITE}:1": "classes",
    f"{TFLITE}:2": "scores",
    f"{TFLITE}:3": "count",
    "detection_boxes": "boxes",
    "detection_classes": "classes",
    "detection_scores": "scores",
    "num_detections": "count",
}
"""And as TensorFlow's detection models call them."""
SUPPORTED = (
    "what is read: one output [K, 6] (box, score, class); or boxes [K, 4], scores [K] and classes "
    "[K]; or boxes [K, 4] and scores [K, classes]; or YOLO's [4 + classes, anchors] or [anchors, "
    "5 + classes]. `head` and `outputs` in data.toml say which they are, --cut-at leaves out what "
    "follows them, and --metric MODULE:FUNCTION reads any other"
)


class Head(Struct, frozen=True):
    """How detections are read from the outputs of one model."""

    kind: HeadKind
    outputs: dict[str, str]
    """Role -> name of the output; of a single one the role is `all`."""
    boxes: BoxLayout
    normalized: bool | None
    """None: not known until values are seen."""
    classes: int | None
    """How many classes the model has; None: not known."""
    transposed: bool
    """Whether the values of an anchor lie along the first axis, or the scores' classes do."""
    size: tuple[int, int]
    """Of the input: width and height in pixels."""
    grids: dict[str, tuple[float, int]]
    """Output of whole numbers -> the scale and zero point of the real ones."""


def find(
    model: Model,
    output: str | None,
    task: TaskSettings,
    size: tuple[int, int],
    classes: int | None,
) -> Head | str:
    """The head, or why there is none.

    `output`: the only one that may be read, where the user named it; `classes`: how many classes
    the labels tell of, None where they do not.
    """
    tensors = {t.name: t for t in model.outputs if output in (None, t.name)}
    shapes = {name: model.sample_shape(tensor) for name, tensor in tensors.items()}
    if unknown := [name for name in task.outputs.values() if name not in shapes]:
        return f"`outputs` in data.toml names {unknown[0]!r}, which is no output"
    found = _several(tensors, shapes, task, classes) or _single(shapes, task, classes)
    if isinstance(found, str) or found is None:
        return found or "none of these is known"
    kind, outputs, transposed, count = found
    grids = {
        name: (tensors[name].scale, tensors[name].zero_point)
        for name in outputs.values()
        if tensors[name].scale > 0
    }
    usual_boxes, usual_normalized = _usual(kind, outputs)
    return Head(
        kind,
        outputs,
        task.boxes or usual_boxes,
        usual_normalized if task.normalized is None else task.normalized,
        count,
        transposed,
        size,
        grids,
    )


Found = tuple[HeadKind, dict[str, str], bool, int | None]
"""kind, role -> output, transposed, classes"""


def _usual(kind: HeadKind, outputs: Mapping[str, str]) -> tuple[BoxLayout, bool | None]:
    if kind in ("yolov5", "yolov8"):
        return "cxcywh", None
    name = outputs.get("boxes", "")
    tensorflow = name in (TFLITE, "detection_boxes")
    return ("yxyx", True) if tensorflow else ("xyxy", None)


def _several(
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    task: TaskSettings,
    classes: int | None,
) -> Found | str | None:
    """Boxes and scores in outputs of their own; None where no output holds boxes alone."""
    if task.head not in (None, "lists", "candidates"):
        return None
    named = dict(task.outputs) or {
        KNOWN_ROLES[name]: name for name in shapes if name in KNOWN_ROLES
    }
    boxes = named.get("boxes") or _boxes(shapes)
    if boxes is None or len(shapes) < 2:
        return None
    count = shapes[boxes][0]
    others = {n: s for n, s in shapes.items() if n != boxes and n not in named.values()}
    scores = named.get("scores")
    wide = [scores] if scores else [n for n, s in others.items() if len(s) == 2 and count in s]
    if task.head != "lists" and len(wide) == 1 and len(shapes[wide[0]]) == 2:
        transposed = shapes[wide[0]][1] == count and shapes[wide[0]][0] != count
        amount = shapes[wide[0]][0 if transposed else 1]
        return "candidates", {"boxes": boxes, "scores": wide[0]}, transposed, amount
    roles = _roles(tensors, {n: s for n, s in others.items() if s == (count,)}, named)
    if isinstance(roles, str):
        return roles
    single = [n for n, s in others.items() if math.prod(s) == 1 and n not in roles.values()]
    if "count" not in roles and len(single) == 1:
        roles["count"] = single[0]
    return "lists", {"boxes": boxes, **roles}, False, None


def _boxes(shapes: Mapping[str, Shape]) -> str | None:
    """The output that holds boxes; of several, the only one that is called so."""
    wide = [name for name, shape in shapes.items() if len(shape) == 2 and shape[1] == 4]
    if len(wide) > 1:
        wide = [name for name in wide if _is_called(name, "boxes")]
    return wide[0] if len(wide) == 1 else None


def _is_called(name: str, role: Role) -> bool:
    return any(word in name.casefold() for word in NAMED_ROLES[role])


def _roles(
    tensors: Mapping[str, Tensor], lists: Mapping[str, Shape], named: Mapping[Role, str]
) -> dict[str, str] | str:
    """Which of the outputs [K] holds scores and which classes: as named, by their names, or by
    their dtypes. A text: why it is not known."""
    roles: dict[str, str] = {role: name for role, name in named.items() if role != "boxes"}
    rules: tuple[tuple[Role, str], ...] = (("scores", "f"), ("classes", "iu"))
    for by_name in (True, False):
        for role, kinds in rules:
            free = [name for name in lists if name not in roles.values()]
            fitting = [
                name
                for name in free
                if (
                    _is_called(name, role)
                    if by_name
                    else np.dtype(tensors[name].dtype).kind in kinds
                )
            ]
            if role not in roles and len(fitting) == 1:
                roles[role] = fitting[0]
    if {"scores", "classes"} <= set(roles):
        return roles
    return (
        f"which of {', '.join(map(repr, lists)) or 'the outputs'} holds the scores and which the "
        'classes is not known: write outputs = {boxes = "…", scores = "…", classes = "…"} in '
        "data.toml"
    )


def _single(shapes: Mapping[str, Shape], task: TaskSettings, classes: int | None) -> Found | None:
    """One output that holds all; the first that fits."""
    for name, shape in shapes.items():
        flat = tuple(size for size in shape if size != 1) if len(shape) > 2 else shape
        if len(flat) == 2 and (found := _kind(flat, task.head, classes)):
            kind, transposed, count = found
            return kind, {"all": name}, transposed, count
    return None


def _kind(
    shape: Sequence[int], asked: HeadKind | None, classes: int | None
) -> tuple[HeadKind, bool, int | None] | None:
    """What one output [rows, columns] is. -> kind, whether an anchor's values lie along the first
    axis, how many classes it has. The classes' number decides where it is known; else YOLOv5 has
    its anchors first and YOLOv8 last."""
    first, last = shape
    detected = last == 6 and first <= MOST_DETECTED
    if asked == "detections" or (asked is None and detected and not (classes == 1 and first > 300)):
        return ("detections", False, None) if last == 6 else None
    extra: dict[HeadKind, int] = {"yolov8": 4, "yolov5": 5}
    for kind, more in extra.items():
        if asked not in (None, kind):
            continue
        usual_first = kind == "yolov8"
        for along_first in (usual_first, not usual_first):
            values, anchors = (first, last) if along_first else (last, first)
            fits = values == classes + more if classes else along_first == usual_first
            if fits and values > more and (classes or values < anchors):
                return kind, along_first, values - more
    return None
