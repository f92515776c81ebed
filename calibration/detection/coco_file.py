"""Reads a COCO annotation file: images, boxes and categories, each checked."""

from collections import Counter
from pathlib import Path

import msgspec
from msgspec import Struct

from onmetal.errors import UsageError
from onmetal.files.reading import linked, read_bytes

MOST_BYTES = 1 << 30
"""The file of COCO's 118,000 training images, with all outlines, has 450 MB."""
FARTHEST = 1e7
"""Pixels: no image is so wide."""
Id = int | str


class CocoImage(Struct, frozen=True):
    id: Id
    file_name: str
    width: int | None = None
    height: int | None = None


class CocoAnnotation(Struct, frozen=True):
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float] | None = None
    """x, y of the left upper corner, width, height, in pixels."""
    iscrowd: bool | int = 0
    id: Id | None = None


class CocoCategory(Struct, frozen=True):
    id: Id
    name: str = ""


class Coco(Struct, frozen=True):
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


def read(path: Path, within: Path | None) -> Coco:
    """Read and check the file. `within`: as `open_regular` has it.

    Raises UsageError where it cannot be read, is no COCO file, has two images, categories or
    annotations of one id, or an annotation of an unknown image or category, or without a box.
    """
    try:
        content = read_bytes(path, MOST_BYTES, within)
        coco = msgspec.json.decode(content.removeprefix(b"\xef\xbb\xbf"), type=Coco)
    except OSError as error:
        raise UsageError(f"{path}: cannot read it ({error.strerror}){linked(error)}") from None
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{path}: no COCO file of boxes: {error}; it wants `images` (id, file_name), "
            "`annotations` (image_id, category_id, bbox) and `categories` (id, name)"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: broken JSON: {str(error)[:200]}") from None
    _check_unique(path, "images", [image.id for image in coco.images])
    _check_unique(path, "images' file_name", [image.file_name for image in coco.images])
    _check_unique(path, "categories", [category.id for category in coco.categories])
    _check_unique(path, "annotations", [a.id for a in coco.annotations if a.id is not None])
    _check_annotations(path, coco)
    return coco


def _check_unique(path: Path, what: str, ids: list[Id]) -> None:
    repeated = [(value, times) for value, times in Counter(ids).most_common(1) if times > 1]
    if repeated:
        value, times = repeated[0]
        raise UsageError(f"{path}: `{what}` holds {value!r:.100} {times} times: write each once")


def _check_annotations(path: Path, coco: Coco) -> None:
    images, categories = {i.id for i in coco.images}, {c.id for c in coco.categories}
    if not images or not categories:
        raise UsageError(f"{path}: it lists no {'categories' if images else 'images'}")
    for number, annotation in enumerate(coco.annotations):
        which = f"number {number}" if annotation.id is None else f"{annotation.id!r:.100}"
        where = f"{path}: annotation {which}"
        if annotation.image_id not in images:
            raise UsageError(f"{where}: there is no image {annotation.image_id!r:.100}")
        if annotation.category_id not in categories:
            raise UsageError(f"{where}: there is no category {annotation.category_id!r:.100}")
        if annotation.bbox is None:
            raise UsageError(f"{where}: it has no bbox (x, y, width, height in pixels)")
        if max(map(abs, annotation.bbox)) > FARTHEST:
            raise UsageError(f"{where}: its bbox {list(annotation.bbox)} lies in no image")
        if annotation.bbox[2] < 0 or annotation.bbox[3] < 0:
            raise UsageError(f"{where}: its bbox {list(annotation.bbox)} has a negative size")
