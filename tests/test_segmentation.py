"""The metric miou against counting pixel by pixel, and folders of masks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from onmetal.calibration import mask_folder, segmentation
from onmetal.calibration.accuracy import judge
from onmetal.calibration.metric_table import METRICS
from onmetal.calibration.metrics import Scorer
from onmetal.calibration.segmentation import Segmentation
from onmetal.errors import UsageError
from onmetal.files import images, preprocessing
from onmetal.files.frames import frame, turn_boxes
from onmetal.files.placing import placed
from onmetal.files.preprocessing import Preprocessing
from onmetal.records import Model, Tensor

HIGH, WIDE, CLASSES = 6, 8, 4


def by_hand(classes: np.ndarray, masks: np.ndarray, ignore: int) -> float:
    """The mean IoU, one pixel after the other."""
    both: dict[int, int] = {}
    either: dict[int, int] = {}
    for predicted, label in zip(classes.ravel().tolist(), masks.ravel().tolist(), strict=True):
        if label == ignore:
            continue
        for number in {predicted, label}:
            either[number] = either.get(number, 0) + 1
        if predicted == label:
            both[label] = both.get(label, 0) + 1
    return float(np.mean([both.get(number, 0) / count for number, count in either.items()]))


def scored(output: np.ndarray, masks: np.ndarray, form: Any, ignore: int = 255) -> Scorer:
    axes = {"channels first": slice(2, 4), "channels last": slice(1, 3)}.get(form, slice(-2, None))
    shape = output.shape[axes]
    metric = replace(METRICS["miou"], whole=Segmentation("y", form, (shape[0], shape[1]), ignore))
    return Scorer(metric, {"y": output}, "y", masks)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("form", ["channels first", "channels last", "class numbers"])
def test_miou_is_what_counting_gives(form: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    output = random.normal(size=(9, CLASSES, HIGH, WIDE)).astype(np.float32)
    masks = random.integers(0, CLASSES, (9, HIGH, WIDE)).astype(np.uint16)
    masks[random.random(masks.shape) < 0.2] = 255
    classes = output.argmax(axis=1)
    given = {
        "channels first": output,
        "channels last": output.transpose(0, 2, 3, 1),
        "class numbers": classes[:, None],
    }[form]
    scorer = scored(given, masks, form)
    assert scorer(None) == pytest.approx(by_hand(classes, masks, 255), abs=1e-12)
    picked = random.integers(0, 9, 9)
    wanted = by_hand(classes[picked], masks[picked], 255)
    assert scorer(picked) == pytest.approx(wanted, abs=1e-12)


def test_classes_that_are_only_predicted_count_as_0() -> None:
    masks = np.zeros((1, 2, 2), np.uint8)
    classes = np.array([[[0, 0], [0, 7]]])
    assert scored(classes, masks, "class numbers")(None) == (3 / 4 + 0) / 2


def test_numbers_that_are_no_classes_and_nan_are_wrong() -> None:
    masks = np.zeros((1, 1, 4), np.uint8)
    classes = np.array([[[0, -3, 1 << 40, 0]]])
    assert scored(classes, masks, "class numbers")(None) == 0.5
    output = np.zeros((1, 2, 1, 4), np.float32)
    output[0, 0] = 1
    output[0, 1, 0, 0] = np.nan
    assert scored(output, masks, "channels first")(None) == 0.75


def test_one_number_a_pixel_is_the_probability_of_class_1() -> None:
    random = np.random.default_rng(0)
    shares = random.random((4, 1, HIGH, WIDE)).astype(np.float32)
    masks = random.integers(0, 2, (4, HIGH, WIDE)).astype(np.uint8)
    wanted = by_hand((shares[:, 0] > 0.5).astype(int), masks, 255)
    scorer = scored(shares, masks, "probability")
    assert scorer(None) == pytest.approx(wanted)
    segmentation.check_probability(scorer.metric, {"y": shares})
    with pytest.raises(UsageError, match=r"goes from -\d.* of logits, take what the Sigmoid gives"):
        segmentation.check_probability(scorer.metric, {"y": shares * 8 - 4})
    stored = np.rint(shares * 255 - 128).astype(np.int8)
    judged = replace(scorer.metric.whole, grid=(1 / 255, -128))
    quantized = Scorer(replace(scorer.metric, whole=judged), {"y": stored}, "y", masks)
    assert quantized(None) == pytest.approx(by_hand((stored > -0.5).astype(int), masks, 255))


def test_the_mask_is_sampled_to_a_smaller_output() -> None:
    random = np.random.default_rng(0)
    masks = random.integers(0, 3, (2, 12, 16)).astype(np.uint8)
    classes = random.integers(0, 3, (2, 3, 4))
    small = np.stack(
        [np.asarray(Image.fromarray(m).resize((4, 3), Image.Resampling.NEAREST)) for m in masks]
    )
    assert scored(classes, masks, "class numbers")(None) == by_hand(classes, small, 255)


@pytest.mark.parametrize(("count", "wanted"), [(7, 3), (3, 7), (513, 65), (64, 64), (1, 5)])
def test_nearest_is_pillows(count: int, wanted: int) -> None:
    row = np.arange(count, dtype=np.int32)[None]
    expected = Image.fromarray(row).resize((wanted, 1), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(mask_folder.nearest(count, wanted), np.asarray(expected)[0])


def test_the_drop_has_an_interval_over_samples() -> None:
    random = np.random.default_rng(0)
    masks = random.integers(0, 3, (60, HIGH, WIDE)).astype(np.uint8)
    worse = np.where(random.random(masks.shape) < 0.1, 0, masks).astype(np.int64)
    reference = scored(masks.astype(np.int64), masks, "class numbers")
    found = judge(scored(worse, masks, "class numbers"), reference)
    assert found.metric == "miou"
    assert found.value < 1.0
    assert found.drop == pytest.approx(1 - found.value)
    assert found.drop is not None and found.drop_ci95 is not None
    low, high = found.drop_ci95
    assert 0 < low < found.drop < high < 0.3


# --- which outputs fit


def model(shape: tuple[int, ...], dtype: str = "float32", **keywords: Any) -> Model:
    tensor = Tensor("y", dtype, (1, *shape), **keywords)
    image = Tensor("x", "float32", (1, 3, HIGH, WIDE))
    where = Path("m.onnx")
    return Model(where, where, "", "onnx", "", 0, (image,), (tensor,), 0, 0, {}, 1)


@pytest.mark.parametrize(
    ("shape", "dtype", "form", "size"),
    [
        ((21, HIGH, WIDE), "float32", "channels first", (HIGH, WIDE)),
        ((HIGH, WIDE, 21), "float32", "channels last", (HIGH, WIDE)),
        ((21, 3, 4), "float32", "channels first", (3, 4)),
        ((3, 4, 21), "float32", "channels last", (3, 4)),
        ((HIGH, WIDE), "int64", "class numbers", (HIGH, WIDE)),
        ((1, HIGH, WIDE), "int64", "class numbers", (HIGH, WIDE)),
        ((HIGH, WIDE, 1), "int32", "class numbers", (HIGH, WIDE)),
        ((21, HIGH, WIDE), "uint8", "channels first", (HIGH, WIDE)),
        ((21,), "float32", None, (0, 0)),
        ((HIGH, WIDE), "float32", "probability", (HIGH, WIDE)),
        ((1, HIGH, WIDE), "float32", "probability", (HIGH, WIDE)),
        ((3, 4, 1), "float16", "probability", (3, 4)),
        ((21, HIGH, WIDE), "int64", None, (0, 0)),
    ],
)
def test_the_form_of_an_output(
    shape: tuple[int, ...], dtype: str, form: str | None, size: tuple[int, int]
) -> None:
    (tensor,) = model(shape, dtype).outputs
    assert segmentation._form(tensor, shape, (HIGH, WIDE)) == (form, size)


# --- masks


def write(path: Path, values: Any, mode: str | None = None, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8), mode) if mode else Image.fromarray(values)
    exif = Image.Exif()
    exif[images.ORIENTATION] = orientation
    image.save(path, exif=exif)
    return path


SETTINGS = [
    Preprocessing(),
    Preprocessing(size=9),
    Preprocessing(size=24, crop=(14, 10)),
    Preprocessing(crop=(5, 3)),
    Preprocessing(resize=(7, 13)),
    Preprocessing(letterbox=(16, 16)),
    Preprocessing(letterbox=(10, 31), fill=0),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_and_boxes_go_where_the_pixels_go(
    settings: Preprocessing, orientation: int, tmp_path: Path
) -> None:
    """The image is black with one white rectangle, so is the mask, and the box is around it."""
    pixels = np.zeros((12, 18, 3), np.uint8)
    x1, y1, x2, y2 = 6, 3, 12, 9
    pixels[y1:y2, x1:x2] = 255
    file = write(tmp_path / "a.png", pixels, orientation=orientation)
    mask = write(tmp_path / "masks/a.png", pixels[..., 0] // 255)
    read = images.read(file, settings)[0]
    place = frame(file, settings, None)
    assert place.stored == (18, 12)
    found = mask_folder.read(mask, place, 7, None)
    assert found.shape == read.shape
    black_or_white = np.isin(read, (0, 255))
    inside = found != 7
    agree = (found == 1) == (read > 127)
    assert agree[inside & black_or_white].mean() > 0.97
    ((left, top, right, bottom),) = place.to_input(np.array([[x1, y1, x2, y2]], float)).tolist()
    high, wide = read.shape
    rows, columns = np.nonzero(found == 1)
    for low, last, size, places in ((left, right, wide, columns), (top, bottom, high, rows)):
        assert abs(places.min() - max(low, 0)) <= 1
        assert abs(places.max() + 1 - min(last, size)) <= 1


def test_what_exif_false_leaves_out_is_left_out_for_boxes_too(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", np.zeros((12, 18, 3), np.uint8), orientation=6)
    place = frame(file, Preprocessing(exif=False), None)
    assert (place.turn, place.orientation, place.upright) == (1, 6, (18, 12))
    box = np.array([[1.0, 2, 3, 4]])
    np.testing.assert_array_equal(place.to_input(box), box)
    np.testing.assert_array_equal(turn_boxes(box, (18, 12), 6), [[8, 1, 10, 3]])


def test_a_letterboxed_image_lies_in_the_middle_on_grey(tmp_path: Path) -> None:
    file = write(tmp_path / "a.png", np.full((10, 20, 3), 255, np.uint8))
    found = images.read(file, Preprocessing(letterbox=(16, 16), layout="NHWC"))
    assert found.shape == (16, 16, 3)
    assert (found[:4] == 114).all()
    assert (found[4:12] == 255).all()
    assert (found[12:] == 114).all()
    assert placed((20, 10), Preprocessing(letterbox=(16, 16))).scaled == (16, 8)


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        ("size = 4\nresize = [4, 4]", "resize and size exclude each other"),
        ("letterbox = [4, 4]\nresize = [4, 4]", "exclude"),
        ("letterbox = [4, 4]\ncrop = [4, 4]", "exclude"),
        ("fill = 300", "<= 255"),
        ('annotations = "../a.json"', "must be a name in the folder"),
        ('masks = "/etc"', "must be a name in the folder"),
        ('annotations = "a.json"\nmasks = "m"', "exclude each other"),
        ('boxes = "x1y1"', "boxes"),
        ('head = "ssd"', "head"),
        ('outputs = {box = "a"}', "outputs"),
        ("ignore = -1", ">= 0"),
    ],
)
def test_settings_that_cannot_be_meant(toml: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "data.toml").write_text(toml)
    with pytest.raises(UsageError, match=reason):
        preprocessing.read_settings(tmp_path)


def folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        write(tmp_path / name, np.zeros((4, 6, 3), np.uint8))
    return tmp_path


def test_masks_are_found_by_the_stems_of_images(tmp_path: Path) -> None:
    folder(tmp_path, "a.jpg", "b.png")
    for name in ("a", "b", "unused"):
        write(tmp_path / f"masks/{name}.png", np.zeros((4, 6), np.uint8))
    found = mask_folder.listing(tmp_path, None, None)
    assert [file.name for file in found.masks] == ["a.png", "b.png"]
    assert ["1 mask of no image" in text for text in found.warnings] == [True]
    (tmp_path / "masks/b.png").unlink()
    with pytest.raises(UsageError, match=r"1 of 2 images have no mask .*b\.png"):
        mask_folder.listing(tmp_path, None, None)


def test_images_may_lie_in_a_folder_beside_that_of_the_masks(tmp_path: Path) -> None:
    folder(tmp_path, "images/a.png", "images/b.png")
    for name in ("a", "b"):
        write(tmp_path / f"labels/{name}.png", np.zeros((4, 6), np.uint8))
    found = mask_folder.listing(tmp_path, "labels", None)
    assert [file.parent.name for file in found.images] == ["images", "images"]
    assert [file.parent.name for file in found.masks] == ["labels", "labels"]


def test_masks_that_are_none_are_refused(tmp_path: Path) -> None:
    file = folder(tmp_path, "a.png") / "a.png"
    place = frame(file, Preprocessing(), None)
    colours = write(tmp_path / "masks/a.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UsageError, match=r"colours and no class numbers"):
        mask_folder.read(colours, place, 255, None)
    other = write(tmp_path / "masks/a.png", np.zeros((6, 4), np.uint8))
    with pytest.raises(UsageError, match=r"it has 4x6 pixels, and its image 6x4"):
        mask_folder.read(other, place, 255, None)
    other.write_bytes(b"no image")
    with pytest.raises(UsageError, match="broken"):
        mask_folder.read(other, place, 255, None)
    write(tmp_path / "masks/a.jpg", np.zeros((4, 6), np.uint8))
    other.unlink()
    with pytest.raises(UsageError, match=r"must be a PNG"):
        mask_folder.listing(tmp_path, None, None)


def test_masks_of_palettes_and_16_bits_are_read(tmp_path: Path) -> None:
    place = frame(folder(tmp_path, "a.png") / "a.png", Preprocessing(), None)
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    palette = Image.fromarray(values, "L").convert("P")
    palette.putdata(values.ravel().tolist())
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(mask_folder.read(tmp_path / "p.png", place, 255, None), values)
    Image.fromarray(values.astype(np.uint16) * 300).save(tmp_path / "w.png")
    found = mask_folder.read(tmp_path / "w.png", place, 255, None)
    np.testing.assert_array_equal(found, values.astype(int) * 300)
