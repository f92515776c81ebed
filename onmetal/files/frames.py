"""Where the pixels of an image file lie in the model's input: for boxes and masks drawn on it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from onmetal.files import images
from onmetal.files.image_files import opened
from onmetal.files.placing import Placed, placed
from onmetal.files.preprocessing import Preprocessing

SWAPPED = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""
TIFF_WIDTH, TIFF_HEIGHT = 256, 257


class Frame(NamedTuple):
    """How one image becomes an input. Sizes are (width, height) in pixels."""

    stored: tuple[int, int]
    orientation: int
    """As the file's EXIF data say; 1: as stored."""
    turn: int
    """The orientation by which it is turned: 1 where data.toml has `exif = false`."""
    placed: Placed

    @property
    def upright(self) -> tuple[int, int]:
        """The size after it was turned."""
        return turned_size(self.stored, self.turn)

    def to_input(self, boxes: np.ndarray, *, upright: bool = False) -> np.ndarray:
        """Boxes [n, 4] (x1, y1, x2, y2) in pixels of the stored image -> in pixels of the input,
        not clipped to it. `upright`: they are given in pixels of the turned image."""
        turned = boxes if upright else turn_boxes(boxes, self.stored, self.turn)
        scale = np.array(self.placed.scaled) / np.array(self.upright)
        shift = np.array([self.placed.left, self.placed.top])
        return np.asarray(turned * np.tile(scale, 2) + np.tile(shift, 2), np.float64)


def frame(path: Path, preprocessing: Preprocessing, within: Path | None) -> Frame:
    """The frame of an image file. Raises UsageError where it cannot be opened."""
    with opened(path, within) as image:
        if image.format == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            size = int(tags.get(TIFF_WIDTH, 0)), int(tags.get(TIFF_HEIGHT, 0))
        else:
            size = image.size
        if image.format == "PNG":
            image.load()  # its orientation may follow the pixels
        orientation = images.orientation(image)
    turn = orientation if preprocessing.exif else 1
    return Frame(size, orientation, turn, placed(turned_size(size, turn), preprocessing))


def turned_size(size: tuple[int, int], turn: int) -> tuple[int, int]:
    return (size[1], size[0]) if turn in SWAPPED else size


def turn_boxes(boxes: np.ndarray, size: tuple[int, int], turn: int) -> np.ndarray:
    """Boxes [n, 4] (x1, y1, x2, y2) of an image of `size` after the turn of an EXIF orientation
    (CIPA DC-008, Orientation, tag 0x0112)."""
    x1, y1, x2, y2 = boxes.T
    wide, high = size
    left, top, right, bottom = {
        1: (x1, y1, x2, y2),
        2: (wide - x2, y1, wide - x1, y2),
        3: (wide - x2, high - y2, wide - x1, high - y1),
        4: (x1, high - y2, x2, high - y1),
        5: (y1, x1, y2, x2),
        6: (high - y2, x1, high - y1, x2),
        7: (high - y2, wide - x2, high - y1, wide - x1),
        8: (y1, wide - x2, y2, wide - x1),
    }[turn]
    return np.stack([left, top, right, bottom], axis=1)
