"""A small detector and a small segmentation net, weights by hand, and folders of images for them.

Images are 64x64: squares of 16x16 pixels, red (class 0) or green (class 1), in cells of a grid.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto
from PIL import Image

from tests.onnx_models import build, constant, node, save, value

SIDE, CELL = 64, 16
CELLS = SIDE // CELL
ANCHORS = CELLS * CELLS
COLOURS = ((255, 0, 0), (0, 255, 0))
TOML = 'scale = 0.00392156862745098\nclasses = ["red", "green"]\n'
KEPT = 20
Square = tuple[int, int, int]
"""Column and row of the cell, class."""


def squares(count: int, seed: int = 0) -> list[list[Square]]:
    """One to four squares for each image, in different cells."""
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        cells = random.choice(ANCHORS, random.integers(1, 5), replace=False)
        drawn.append([(int(c % CELLS), int(c // CELLS), int(random.integers(2))) for c in cells])
    return drawn


def pixels(of_image: Sequence[Square]) -> np.ndarray:
    """uint8 [64, 64, 3]"""
    array = np.zeros((SIDE, SIDE, 3), np.uint8)
    for column, row, number in of_image:
        part = slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)
        array[part] = COLOURS[number]
    return array


def coco(images: Sequence[Sequence[Square]], shift: float = 0.0) -> dict[str, Any]:
    """A COCO document; the boxes are moved to the right by `shift` pixels."""
    annotations = [
        {
            "id": 1000 * image + number,
            "image_id": image,
            "category_id": 10 * (square[2] + 1),
            "bbox": [square[0] * CELL + shift, square[1] * CELL, CELL, CELL],
            "iscrowd": 0,
        }
        for image, of_image in enumerate(images)
        for number, square in enumerate(of_image)
    ]
    names = [
        {"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE}
        for number in range(len(images))
    ]
    categories = [{"id": 10, "name": "red"}, {"id": 20, "name": "green"}]
    return {"images": names, "annotations": annotations, "categories": categories}


def save_images(folder: Path, images: Sequence[Sequence[Square]], toml: str = TOML) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.toml").write_text(toml)
    for number, of_image in enumerate(images):
        Image.fromarray(pixels(of_image)).save(folder / f"{number}.png")
    return folder


def save_coco(
    folder: Path, images: Sequence[Sequence[Square]], shift: float = 0.0, toml: str = TOML
) -> Path:
    save_images(folder, images, toml)
    (folder / "annotations.json").write_text(json.dumps(coco(images, shift)))
    return folder


def save_masks(folder: Path, images: Sequence[Sequence[Square]], toml: str = TOML) -> Path:
    """Masks beside the images: 0 ground, 1 red, 2 green; the last column is not to be judged."""
    save_images(folder, images, toml)
    (folder / "masks").mkdir()
    for number, of_image in enumerate(images):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for column, row, colour in of_image:
            part = slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)
            mask[part] = colour + 1
        mask[:, -1] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def _products() -> tuple[list[Any], list[Any]]:
    """A convolution over each cell: how red it is, how green, and four zeros for the box."""
    weights = np.zeros((6, 3, CELL, CELL), np.float32)
    weights[4, 0], weights[4, 1] = 1 / CELL**2, -1 / CELL**2
    weights[5, 1], weights[5, 0] = 1 / CELL**2, -1 / CELL**2
    grid = np.stack(np.meshgrid(np.arange(CELLS), np.arange(CELLS)))[None]
    tensors = [
        constant("w", weights),
        constant("grid", grid.reshape(1, 2, ANCHORS)),
        constant("cell", CELL),
        constant("steep", 12),
        constant("middle", 0.5),
        constant("flat", [1, 6, ANCHORS], "int64"),
        constant("two", [2, 2, 2], "int64"),
    ]
    nodes = [
        node("Conv", "images w", "conv", strides=[CELL, CELL], name="last_conv"),
        node("Reshape", "conv flat", "rows"),
        node("Split", "rows two", "at size class", axis=1),
        node("Sigmoid", "at", "half"),
        node("Add", "half grid", "cells"),
        node("Mul", "cells cell", "centre"),
        node("Exp", "size", "grown"),
        node("Mul", "grown cell", "extent"),
        node("Sub", "class middle", "above"),
        node("Mul", "above steep", "logits"),
        node("Sigmoid", "logits", "scores"),
    ]
    return nodes, tensors


def yolo(path: Path) -> Path:
    """output0 [1, 4 + 2, 16] as ultralytics exports it."""
    nodes, tensors = _products()
    nodes.append(node("Concat", "centre extent scores", "output0", axis=1))
    outputs = [value("output0", [1, 6, ANCHORS])]
    return save(build(nodes, [value("images", [1, 3, SIDE, SIDE])], outputs, tensors), path)


def with_nms(path: Path) -> Path:
    """detections [1, 20, 6]: what NonMaxSuppression chose, padded with zeros."""
    nodes, tensors = _products()
    tensors += [
        constant("most", [KEPT], "int64"),
        constant("overlap", [0.5]),
        constant("least", [0.25]),
        constant("half_size", 0.5),
        constant("kept", [KEPT], "int64"),
        constant("begin", [0, 0, 0], "int64"),
        constant("last_zero", [0], "int64"),
        constant("shape", [1, KEPT, 6], "int64"),
        constant("first", 0, "int64"),
        constant("axis_1", [1], "int64"),
        constant("ones", [1, 1], "int64"),
        constant("one", [1], "int64"),
    ]
    nodes += [
        node("Mul", "extent half_size", "reach"),
        node("Sub", "centre reach", "low"),
        node("Add", "centre reach", "high"),
        node("Concat", "low high", "corners", axis=1),
        node("Transpose", "corners", "boxes", perm=[0, 2, 1]),
        node("NonMaxSuppression", "boxes scores most overlap least", "chosen", name="nms"),
        node("Split", "chosen", "of_image of_class of_box", axis=1, num_outputs=3),
        node("Squeeze", "of_box axis_1", "box_place"),
        node("Squeeze", "boxes last_zero", "boxes_2d"),
        node("Gather", "boxes_2d box_place", "chosen_boxes", axis=0),
        node("GatherND", "scores chosen", "chosen_scores"),
        node("Unsqueeze", "chosen_scores axis_1", "score_column"),
        node("Cast", "of_class", "class_column", to=TensorProto.FLOAT),
        node("Concat", "chosen_boxes score_column class_column", "found", axis=1),
        node("Shape", "found", "found_shape"),
        node("Gather", "found_shape last_zero", "count", axis=0),
        node("Sub", "kept count", "lacking"),
        node("Concat", "last_zero last_zero lacking last_zero", "padding", axis=0),
        node("Pad", "found padding", "padded"),
        node("Reshape", "padded shape", "detections"),
    ]
    outputs = [value("detections", [1, KEPT, 6])]
    model = build(nodes, [value("images", [1, 3, SIDE, SIDE])], outputs, tensors, opset=18)
    return save(model, path)


def segmenter(path: Path, *, numbers: bool = False) -> Path:
    """Scores [1, 3, 64, 64] by a 1x1 convolution; or, with `numbers`, the class of each pixel."""
    weights = np.array([[-1, -1, -1], [2, -2, 0], [-2, 2, 0]], np.float32).reshape(3, 3, 1, 1)
    tensors = [constant("w", weights), constant("b", [0.5, 0, 0])]
    nodes = [node("Conv", "images w b", "scores", name="last_conv")]
    outputs = [value("scores", [1, 3, SIDE, SIDE])]
    if numbers:
        nodes.append(node("ArgMax", "scores", "classes", axis=1, keepdims=0))
        outputs = [value("classes", [1, SIDE, SIDE], TensorProto.INT64)]
    return save(build(nodes, [value("images", [1, 3, SIDE, SIDE])], outputs, tensors), path)
