"""Folders of images whose labels are boxes (a COCO file) or masks (a folder of PNG files)."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.calibration import mask_folder
from onmetal.calibration.detection import annotated
from onmetal.calibration.image_folder import images_inside
from onmetal.files.preprocessing import Preprocessing
from onmetal.files.task_settings import TaskSettings

Kind = Literal["values", "boxes", "masks"]


class Labelled(Struct, frozen=True):
    """The images of a folder, with boxes or masks where they are wanted."""

    kind: Kind
    images: tuple[Path, ...]
    preprocessing: Preprocessing
    ignore: int
    within: Path | None
    boxes: np.ndarray | None = None
    """[images, most, 6] float64, as Samples.labels."""
    masks: tuple[Path, ...] = ()
    classes: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()

    def write(self, target: Path) -> None:
        """Write the labels of all images to an .npy file."""
        if self.boxes is not None:
            np.save(target, self.boxes)
        elif self.masks:
            mask_folder.write(
                self.images, self.masks, self.preprocessing, self.ignore, self.within, target
            )


def kind(folder: Path, task: TaskSettings) -> Kind:
    """What the labels of a folder are. What data.toml names comes first, then labels.csv, then
    annotations.json, then a folder `masks` beside images."""
    if task.annotations:
        return "boxes"
    if task.masks:
        return "masks"
    if os.path.lexists(folder / "labels.csv"):
        return "values"
    if os.path.lexists(folder / annotated.FILE):
        return "boxes"
    masks = folder / mask_folder.FOLDER
    beside = masks.is_dir() and (
        bool(images_inside(folder, None)[0]) or (folder / "images").is_dir()
    )
    return "masks" if beside else "values"


def listing(
    folder: Path,
    preprocessing: Preprocessing,
    task: TaskSettings,
    *,
    labelled: bool,
    within: Path | None,
) -> Labelled:
    """The images and labels of a folder whose labels are boxes or masks; without `labelled` the
    images alone. Raises UsageError as annotated.read and mask_folder.listing do."""
    what = kind(folder, task)
    found = Labelled(what, (), preprocessing, task.ignore, within, classes=preprocessing.classes)
    if not labelled:
        masks = folder / (task.masks or mask_folder.FOLDER)
        images = mask_folder.images_without_masks(folder, masks, within)
        return replace(found, images=tuple(images))
    if what == "boxes":
        boxes = annotated.read(folder, preprocessing, task, within)
        return replace(
            found,
            images=boxes.files,
            boxes=boxes.labels,
            classes=boxes.classes,
            warnings=boxes.warnings,
        )
    masked = mask_folder.listing(folder, task.masks, within)
    return replace(found, images=masked.images, masks=masked.masks, warnings=masked.warnings)
