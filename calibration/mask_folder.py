"""A folder of masks beside images: one PNG of the same stem for each image, whose pixel values are
class numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from onmetal.calibration.class_names import count_of
from onmetal.calibration.image_folder import images_below, images_inside
from onmetal.errors import UsageError
from onmetal.files.frames import Frame, frame
from onmetal.files.image_files import opened
from onmetal.files.preprocessing import Preprocessing

FOLDER = "masks"
INDEX_MODES = ("1", "L", "P", "I", "I;16")
"""Modes of Pillow whose pixels are one whole number each."""


class Masked(NamedTuple):
    """Images and the mask of each."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    warnings: tuple[str, ...]


def listing(folder: Path, masks_name: str | None, within: Path | None) -> Masked:
    """The images in the folder (where there are none, in all of its sub-folders but that of the
    masks), each with its mask: `masks/NAME.png`, sub-folders and all. Raises UsageError where an
    image has no mask."""
    masks = folder / (masks_name or FOLDER)
    images = images_without_masks(folder, masks, within)
    if not images:
        raise UsageError(f"{folder}: it holds no images, only masks in {masks}")
    found = {_key(file, masks): file for file in images_below(masks, within)[0]}
    keys = [_key(file, folder) for file in images]
    if not set(keys) & set(found):  # images/a.jpg and masks/a.png
        keys = [key.partition("/")[2] or key for key in keys]
    missing = [file for file, key in zip(images, keys, strict=True) if key not in found]
    if missing:
        raise UsageError(
            f"{folder}: {len(missing)} of {count_of(len(images), 'image')} have no mask of the "
            f"same name in {masks} ({missing[0].relative_to(folder)} wants {missing[0].stem}.png)"
        )
    wrong = next((found[key] for key in keys if found[key].suffix.lower() != ".png"), None)
    if wrong:
        raise UsageError(f"{wrong}: a mask must be a PNG, whose values are stored exactly")
    unused = sorted(set(found) - set(keys))
    warnings = (
        [f"{masks}: {count_of(len(unused), 'mask')} of no image, left out ({unused[0]})"]
        if unused
        else []
    )
    return Masked(tuple(images), tuple(found[key] for key in keys), tuple(warnings))


def images_without_masks(folder: Path, masks: Path, within: Path | None) -> list[Path]:
    """The images in the folder itself, else those below it, without those in `masks`."""
    images = images_inside(folder, within)[0] or images_below(folder, within)[0]
    return [file for file in images if not file.is_relative_to(masks)]


def _key(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def write(
    images: Sequence[Path],
    masks: Sequence[Path],
    preprocessing: Preprocessing,
    ignore: int,
    within: Path | None,
    target: Path,
) -> None:
    """Write all masks, turned, scaled and cropped as the images are, to an .npy file: uint16
    [images, height, width]. Scaled by nearest; around a letterboxed image lies `ignore`.

    Raises UsageError where a mask is no image of class numbers, or not of the size of its image,
    and where images give inputs of different sizes.
    """
    array: np.ndarray | None = None
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        values = read(mask, frame(image, preprocessing, within), ignore, within)
        if array is None:
            array = np.lib.format.open_memmap(target, "w+", np.uint16, (len(images), *values.shape))
        if values.shape != array.shape[1:]:
            raise UsageError(
                f"{image}: it gives an input of {values.shape[1]}x{values.shape[0]} pixels, and "
                f"the first image one of {array.shape[2]}x{array.shape[1]}; set `size` and `crop` "
                "in data.toml"
            )
        array[number] = values


def read(mask: Path, place: Frame, ignore: int, within: Path | None) -> np.ndarray:
    """One mask as uint16 [height, width] of the input."""
    with opened(mask, within) as image:
        image.load()
        if image.mode not in INDEX_MODES:
            raise UsageError(
                f"{mask}: its pixels are {image.mode}, colours and no class numbers: save it as "
                "a PNG of one channel (8 or 16 bits, or a palette) whose values are the classes"
            )
        values = np.asarray(image)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65_535:
        raise UsageError(f"{mask}: its values go from {values.min()} to {values.max()}")
    values = values.astype(np.uint16)
    size = values.shape[1], values.shape[0]
    if size not in (place.stored, place.upright):
        raise UsageError(
            f"{mask}: it has {size[0]}x{size[1]} pixels, and its image {place.stored[0]}x"
            f"{place.stored[1]}"
        )
    if size == place.stored:
        values = _turned(values, place.turn)
    return _placed(values, place, ignore)


def _turned(values: np.ndarray, turn: int) -> np.ndarray:
    """[height, width], turned by an EXIF orientation."""
    if turn in (5, 6, 7, 8):
        values = values.T
    if turn in (2, 3, 6, 7):
        values = values[:, ::-1]
    if turn in (3, 4, 7, 8):
        values = values[::-1]
    return values


def _placed(values: np.ndarray, frame: Frame, ignore: int) -> np.ndarray:
    place = frame.placed
    rows = nearest(values.shape[0], place.scaled[1])
    columns = nearest(values.shape[1], place.scaled[0])
    scaled = values[rows][:, columns]
    wide, high = place.canvas
    canvas = np.full((high, wide), ignore, np.uint16)
    top, left = max(0, place.top), max(0, place.left)
    piece = scaled[max(0, -place.top) :, max(0, -place.left) :][: high - top, : wide - left]
    canvas[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return canvas


def nearest(count: int, wanted: int) -> np.ndarray:
    """[wanted] int64: of `count` pixels in a row, that which holds the centre of each of `wanted`
    pixels, as Pillow's NEAREST."""
    centres = (np.arange(wanted) + 0.5) * (count / wanted)
    places: np.ndarray = np.minimum(np.floor(centres).astype(np.int64), count - 1)
    return places
