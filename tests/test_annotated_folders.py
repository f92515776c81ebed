"""Folders of images with a COCO file: which images and boxes are taken, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onmetal.calibration import samples, task_labels
from onmetal.calibration.detection import annotated, coco_file
from onmetal.calibration.labels import Listing
from onmetal.errors import UsageError
from onmetal.files import images
from onmetal.files.cache import Cache
from onmetal.files.preprocessing import Preprocessing
from onmetal.files.task_settings import TaskSettings
from onmetal.records import Model, Tensor
from tests.detectors import CELL, SIDE, coco, save_coco, save_masks, squares

Document = dict[str, Any]
DRAWN = squares(6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_coco(tmp_path / "data", DRAWN)


def read(folder: Path, task: TaskSettings | None = None, **settings: Any) -> Listing:
    return annotated.read(folder, Preprocessing(**settings), task or TaskSettings(), None)


def change(folder: Path, edit: Callable[[Document], object]) -> None:
    document = coco(DRAWN)
    edit(document)
    (folder / "annotations.json").write_text(json.dumps(document))


def rows(listing: Listing, image: int) -> list[list[float]]:
    assert listing.labels is not None
    of_image = listing.labels[image]
    found: list[list[float]] = of_image[of_image[:, 4] >= 0].tolist()
    return found


def test_boxes_classes_and_images_are_read(folder: Path) -> None:
    found = read(folder)
    assert [file.name for file in found.files] == [f"{number}.png" for number in range(6)]
    assert (found.classes, found.warnings) == (("red", "green"), ())
    for number, of_image in enumerate(DRAWN):
        wanted = [
            [c * CELL, r * CELL, (c + 1) * CELL, (r + 1) * CELL, k, 0] for c, r, k in of_image
        ]
        assert rows(found, number) == wanted


def test_classes_of_data_toml_and_category_ids_number_the_classes(folder: Path) -> None:
    kinds = [square[2] for square in DRAWN[0]]
    named = read(folder, classes=("green", "ground", "red"))
    assert [row[4] for row in rows(named, 0)] == [0 if kind else 2 for kind in kinds]
    by_id = read(folder, TaskSettings(class_numbers="category"))
    assert [row[4] for row in rows(by_id, 0)] == [20 if kind else 10 for kind in kinds]
    assert by_id.classes is None
    with pytest.raises(UsageError, match="'green' is not among the classes"):
        read(folder, classes=("red", "blue"))


def test_boxes_follow_the_images(folder: Path) -> None:
    found = read(folder, size=128, crop=(96, 128))
    shift = np.array([0, (128 - 96) / 2, 0, (128 - 96) / 2])
    for number, of_image in enumerate(DRAWN):
        boxes = np.array([[c, r, c + 1, r + 1] for c, r, _ in of_image]) * CELL * 2 - shift
        boxes = boxes.clip(0, [128, 96, 128, 96])
        np.testing.assert_allclose(np.array(rows(found, number))[:, :4], boxes)


def test_what_the_crop_leaves_out_is_counted(folder: Path) -> None:
    found = read(folder, crop=(CELL * 2, CELL * 2))
    gone = sum(not (1 <= c <= 2 and 1 <= r <= 2) for of_image in DRAWN for c, r, _ in of_image)
    assert found.labels is not None
    assert int((found.labels[:, :, 4] >= 0).sum()) == sum(map(len, DRAWN)) - gone
    assert [f"{gone} boxes of which less than a pixel" in text for text in found.warnings] == [True]


def test_crowds_and_boxes_over_the_edge(folder: Path) -> None:
    def edit(document: Document) -> None:
        document["annotations"] = [
            {"image_id": 0, "category_id": 10, "bbox": [-5, 50, 20, 30], "iscrowd": 1}
        ]

    change(folder, edit)
    found = read(folder)
    assert rows(found, 0) == [[0, 50, 15, SIDE, 0, 1]]
    assert "1 box reaching out of the image" in found.warnings[0]


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_boxes_of_turned_images(folder: Path, orientation: int) -> None:
    """The size in the file says whether the boxes are of the stored or of the turned image."""
    pixels = np.zeros((SIDE, SIDE // 2, 3), np.uint8)
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    Image.fromarray(pixels).save(folder / "0.png", exif=exif)
    turned = orientation != 3

    def sized(wide: int, high: int) -> Callable[[Document], None]:
        def edit(document: Document) -> None:
            document["images"][0] |= {"width": wide, "height": high}
            document["annotations"] = [
                {"image_id": 0, "category_id": 10, "bbox": [4, 8, 12, 6]},
            ]

        return edit

    change(folder, sized(SIDE // 2, SIDE))
    ((x1, y1, x2, y2, *_),) = rows(read(folder), 0)
    assert (x1, y1, x2, y2) != (4, 8, 16, 14)
    assert (x2 - x1, y2 - y1) == ((6, 12) if turned else (12, 6))
    if turned:
        change(folder, sized(SIDE, SIDE // 2))
        found = read(folder)
        assert rows(found, 0)[0][:4] == [4, 8, 16, 14]
        assert "EXIF" in found.warnings[0]
        with pytest.raises(UsageError, match="`exif = false`"):
            read(folder, exif=False)
    change(folder, sized(SIDE, SIDE + 1))
    with pytest.raises(UsageError, match="its boxes are of another image"):
        read(folder)


def test_images_that_are_missing_or_not_listed_are_counted(folder: Path) -> None:
    (folder / "1.png").unlink()
    (folder / "2.png").rename(folder / "other.png")
    found = read(folder)
    assert len(found.files) == 4
    first, second = found.warnings
    assert "2 of its 6 images not in the folder, left out (1.png among them)" in first
    assert "1 image of the folder not listed in it, left out (other.png)" in second
    for file in folder.glob("*.png"):
        file.unlink()
    with pytest.raises(UsageError, match="none of its 6 images is in the folder"):
        read(folder)


def test_images_may_lie_in_a_folder_of_their_own(folder: Path) -> None:
    (folder / "images").mkdir()
    for file in folder.glob("*.png"):
        file.rename(folder / "images" / file.name)
    (folder / "annotations.json").rename(folder / "instances.json")
    task = TaskSettings(annotations="instances.json")
    assert {file.parent.name for file in read(folder, task).files} == {"images"}
    assert task_labels.kind(folder, task) == "boxes"


def broken(key: str, value: Any, place: int = 0) -> Callable[[Document], None]:
    def edit(document: Document) -> None:
        document["annotations"][place][key] = value

    return edit


def again(key: str) -> Callable[[Document], None]:
    return lambda document: document[key].append(dict(document[key][0]))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (again("images"), "`images` holds 0 2 times"),
        (again("categories"), "`categories` holds 10 2 times"),
        (again("annotations"), "`annotations` holds 0 2 times"),
        (broken("image_id", 99), "there is no image 99"),
        (broken("category_id", 7), "annotation 0: there is no category 7"),
        (broken("bbox", None), "it has no bbox"),
        (broken("bbox", [1, 2, 3]), r"bbox|Expected `array` of length 4"),
        (broken("bbox", [1, 2, -3, 4]), "has a negative size"),
        (broken("bbox", [100, 2, 3, 4]), r"lies outside of 0\.png"),
        (broken("bbox", [1e300, 2, 3, 4]), "lies in no image"),
        (broken("bbox", "1 2 3 4"), "no COCO file of boxes"),
        (lambda d: d.pop("images"), "missing required field `images`"),
        (lambda d: d["images"].clear(), "it lists no images"),
        (lambda d: d["annotations"].clear(), "no box lies in the images"),
        (lambda d: d["images"][0].update(file_name="../../0.png"), "lies outside the folder"),
        (lambda d: d["images"][0].update(id=[1]), "no COCO file"),
        (lambda d: d["images"][1].update(file_name="0.png"), "file_name"),
    ],
)
def test_files_that_are_wrong(
    folder: Path, edit: Callable[[Document], object], reason: str
) -> None:
    change(folder, edit)
    (folder.parent.parent / "0.png").write_bytes(b"")
    with pytest.raises(UsageError, match=reason):
        read(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"NaN", b"[" * 200_000, b'{"images": NaN}'],
)
def test_broken_json_is_an_error_that_names_the_file(folder: Path, content: bytes) -> None:
    (folder / "annotations.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"annotations\.json: "):
        read(folder)


def test_labels_of_any_size_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotated, "MOST_ROWS", 5)
    assert annotated.padded([np.zeros((2, 6)), np.zeros((1, 6))]).shape == (2, 2, 6)
    with pytest.raises(UsageError, match="one image has 3 boxes"):
        annotated.padded([np.zeros((3, 6)), np.zeros((1, 6))])


def test_a_file_with_a_byte_order_mark_and_more_keys_is_read(folder: Path) -> None:
    document = {**coco(DRAWN), "info": {"year": 2026}, "licenses": []}
    text = json.dumps(document).encode()
    (folder / "annotations.json").write_bytes(b"\xef\xbb\xbf" + text)
    assert len(coco_file.read(folder / "annotations.json", None).images) == 6


def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "annotations.json").rename(tmp_path / "elsewhere.json")
    (folder / "annotations.json").symlink_to(tmp_path / "elsewhere.json")
    within = folder.resolve()
    with pytest.raises(UsageError, match="--follow-links"):
        annotated.read(folder, Preprocessing(), TaskSettings(), within)
    assert len(read(folder).files) == 6


# --- as DATA


def model() -> Model:
    image = Tensor("images", "float32", (1, 3, SIDE, SIDE))
    output = Tensor("y", "float32", (1, 6, 16))
    where = Path("m.onnx")
    return Model(where, where, "", "onnx", "", 0, (image,), (output,), 0, 0, {}, 1)


def test_boxes_and_masks_are_labels_of_samples(folder: Path, tmp_path: Path) -> None:
    masks = save_masks(tmp_path / "masks_of", DRAWN)
    with Cache() as cache:
        boxes, pixels, bare = (
            samples.load(str(place), model(), cache, option="--data", labelled=labelled)
            for place, labelled in ((folder, True), (masks, True), (masks, False))
        )
        again = samples.load(str(masks), model(), cache, option="--data", labelled=True)
    assert (boxes.labels_are, boxes.label_array().shape[2]) == ("boxes", 6)
    assert (pixels.labels_are, pixels.label_array().shape) == ("masks", (6, SIDE, SIDE))
    assert (bare.labels, bare.count) == (None, 6)
    assert again.digest == pixels.digest != bare.digest
    parts = samples.split(pixels)
    assert parts is not None
    rows_of_part = parts.evaluation.label_rows()
    np.testing.assert_array_equal(np.asarray(rows_of_part), parts.evaluation.label_array())
    np.testing.assert_array_equal(rows_of_part[1:3], parts.evaluation.label_array()[1:3])
    assert len(rows_of_part) == parts.evaluation.count == 5
    (masks / "labels.csv").write_text("0.png,1\n")
    assert task_labels.kind(masks, TaskSettings()) == "values"
