"""A folder of images with a COCO file: the images that are there, and their boxes in the input."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onmetal.calibration.class_names import count_of
from onmetal.calibration.detection import coco_file
from onmetal.calibration.detection.coco_file import CocoAnnotation, CocoCategory, CocoImage
from onmetal.calibration.image_folder import images_below
from onmetal.calibration.label_table import existing_file, file_of_row
from onmetal.calibration.labels import Listing
from onmetal.errors import UsageError
from onmetal.files.frames import Frame, frame, turned_size
from onmetal.files.preprocessing import Preprocessing, quoted
from onmetal.files.task_settings import TaskSettings

FILE = "annotations.json"
FOLDERS = ("", "images")
"""Where a file_name is looked for in the folder of data."""
MOST_ROWS = 20_000_000
"""Of labels, padding included: 1 GB."""
LEAST_PIXELS = 1.0
"""Boxes of which less than so many pixels of width or height remain in the input are left out."""


class Placing(NamedTuple):
    """Boxes of one image in the input, and what was left out or done to them."""

    rows: np.ndarray
    """[n, 6] float64: x1, y1, x2, y2, class, crowd."""
    outside: int
    """Boxes that reach out of the stored image."""
    lost: int
    """Boxes of which nothing remains in the input."""
    upright: bool
    """Whether the boxes are those of the turned image."""


def read(
    folder: Path,
    preprocessing: Preprocessing,
    task: TaskSettings,
    within: Path | None,
) -> Listing:
    """The images that the COCO file names and that are there, with labels [images, most, 6] float64
    as records of `boxes` (onmetal.samples). Raises UsageError as coco_file.read does, and where no
    image is there, sizes differ, or classes and categories do not fit."""
    table = folder / (task.annotations or FILE)
    coco = coco_file.read(table, within)
    numbers, names = _class_numbers(table, coco.categories, preprocessing.classes, task)
    files, warnings = _files(table, folder, coco.images, within)
    of_image: dict[object, list[CocoAnnotation]] = {}
    for annotation in coco.annotations:
        of_image.setdefault(annotation.image_id, []).append(annotation)
    placings = [
        _placed(table, image, file, of_image.get(image.id, []), numbers, preprocessing, within)
        for image, file in files
    ]
    warnings += _told(table, placings)
    if not sum(len(placing.rows) for placing in placings):
        raise UsageError(f"{table}: no box lies in the images that are there")
    labels = padded([placing.rows for placing in placings])
    return Listing(tuple(file for _, file in files), labels, names, tuple(warnings))


def padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[images, most, 6] float64: the rows of each image, and rows of class -1 behind them."""
    most = max(map(len, rows), default=0)
    if len(rows) * most > MOST_ROWS:
        raise UsageError(
            f"one image has {most} boxes, and there are {len(rows)} images: labels of that size "
            f"are not read (boxes of the fullest image times images: {MOST_ROWS} at most)"
        )
    labels = np.zeros((len(rows), most, 6))
    labels[:, :, 4] = -1
    for number, of_image in enumerate(rows):
        labels[number, : len(of_image)] = of_image
    return labels


def _class_numbers(
    table: Path,
    categories: Sequence[CocoCategory],
    classes: tuple[str, ...] | None,
    task: TaskSettings,
) -> tuple[dict[object, int], tuple[str, ...] | None]:
    """-> category id -> class number, and the names of the classes in order, where they have one
    each."""
    if task.class_numbers == "category":
        wrong = next((c.id for c in categories if not isinstance(c.id, int) or c.id < 0), None)
        if wrong is not None:
            raise UsageError(
                f"{table}: the category id {wrong!r} is no number from 0 on, so class_numbers = "
                '"category" in data.toml cannot be meant'
            )
        return {c.id: int(c.id) for c in categories}, None
    if classes is None:
        ordered = sorted(categories, key=lambda c: (isinstance(c.id, str), c.id))
        names = tuple(c.name for c in ordered)
        named = all(names) and len(set(names)) == len(names)
        return {c.id: n for n, c in enumerate(ordered)}, names if named else None
    place = {name: number for number, name in enumerate(classes)}
    if unknown := [c.name for c in categories if c.name not in place]:
        raise UsageError(
            f"{table}: the category {unknown[0]!r:.100} is not among the classes of data.toml: "
            f"{quoted(classes)}"
        )
    return {c.id: place[c.name] for c in categories}, classes


def _files(
    table: Path, folder: Path, images: Sequence[CocoImage], within: Path | None
) -> tuple[list[tuple[CocoImage, Path]], list[str]]:
    """-> the images that are there, and warnings about those that are not, or not in the file."""
    files: list[tuple[CocoImage, Path]] = []
    missing: list[str] = []
    for image in images:
        places = [place for place in FOLDERS if existing_file(folder / place, image.file_name)]
        if not places:
            missing.append(image.file_name)
            continue
        name = f"{places[0]}/{image.file_name}" if places[0] else image.file_name
        where = f"{table}, image {image.id!r:.100}"
        files.append((image, file_of_row(where, folder, name, within)))
    if not files:
        raise UsageError(
            f"{table}: none of its {count_of(len(images), 'image')} is in the folder "
            f"({missing[0]!r:.200} for one)"
        )
    warnings = []
    if missing:
        warnings.append(
            f"{table}: {len(missing)} of its {count_of(len(images), 'image')} not in the folder, "
            f"left out ({missing[0]:.200}{' among them' if len(missing) > 1 else ''})"
        )
    listed = {file.resolve() for _, file in files}
    others = [f for f in images_below(folder, within)[0] if f.resolve() not in listed]
    if others:
        warnings.append(
            f"{table}: {count_of(len(others), 'image')} of the folder not listed in it, left out "
            f"({others[0].relative_to(folder)}{' among them' if len(others) > 1 else ''})"
        )
    return files, warnings


def _placed(
    table: Path,
    image: CocoImage,
    file: Path,
    annotations: Sequence[CocoAnnotation],
    numbers: dict[object, int],
    preprocessing: Preprocessing,
    within: Path | None,
) -> Placing:
    """The boxes of one image in the input."""
    placing = frame(file, preprocessing, within)
    upright = _is_upright(table, image, file, placing)
    width, height = placing.upright if upright else placing.stored
    rows = np.array([[*a.bbox, 0, 0] for a in annotations if a.bbox], np.float64).reshape(-1, 6)
    rows[:, 4] = [numbers[a.category_id] for a in annotations]
    rows[:, 5] = [bool(a.iscrowd) for a in annotations]
    rows[:, 2:4] += rows[:, :2]
    beyond = (rows[:, :2] < -1).any(axis=1) | (rows[:, 2:4] > (width + 1, height + 1)).any(axis=1)
    inside = rows.copy()
    inside[:, [0, 2]] = rows[:, [0, 2]].clip(0, width)
    inside[:, [1, 3]] = rows[:, [1, 3]].clip(0, height)
    gone = ((inside[:, 2:4] - inside[:, :2]) <= 0).any(axis=1) & beyond
    if gone.any():
        box = list(annotations[int(np.argmax(gone))].bbox or ())
        raise UsageError(
            f"{table}: the bbox {box} lies outside of {file.name}, which has {width}x{height} "
            "pixels: it wants x, y, width, height in pixels of the image"
        )
    rows[:, :4] = placing.to_input(inside[:, :4], upright=upright)
    rows[:, [0, 2]] = rows[:, [0, 2]].clip(0, placing.placed.canvas[0])
    rows[:, [1, 3]] = rows[:, [1, 3]].clip(0, placing.placed.canvas[1])
    left = ((rows[:, 2:4] - rows[:, :2]) >= LEAST_PIXELS).all(axis=1)
    return Placing(rows[left], int(beyond.sum()), int((~left).sum()), upright)


def _is_upright(table: Path, image: CocoImage, file: Path, placing: Frame) -> bool:
    """Whether the boxes are those of the image as viewers turn it. Raises UsageError where the
    size that the COCO file has is not the image's."""
    if image.width is None or image.height is None:
        return False
    size = image.width, image.height
    if size == placing.stored:
        return False
    if size == turned_size(placing.stored, placing.orientation):
        if placing.turn == 1:
            raise UsageError(
                f"{table}: the boxes of {file.name} are those of the image as its EXIF orientation "
                "turns it, and `exif = false` in data.toml leaves that out"
            )
        return True
    raise UsageError(
        f"{table}: {file.name} has {placing.stored[0]}x{placing.stored[1]} pixels, and the file "
        f"says {size[0]}x{size[1]}: its boxes are of another image"
    )


def _told(table: Path, placings: Sequence[Placing]) -> list[str]:
    texts = []
    if outside := sum(placing.outside for placing in placings):
        texts.append(
            f"{table}: {count_of(outside, 'box').replace('boxs', 'boxes')} reaching out of the "
            "image, cut off at its edge"
        )
    if lost := sum(placing.lost for placing in placings):
        texts.append(
            f"{table}: {count_of(lost, 'box').replace('boxs', 'boxes')} of which less than a pixel "
            "remains once the image is scaled and cropped, left out: what is cropped is not judged"
        )
    if upright := sum(placing.upright for placing in placings):
        texts.append(
            f"{table}: {count_of(upright, 'image')} whose boxes are those of the image as its EXIF "
            "orientation turns it, as its width and height in the file say"
        )
    return texts
