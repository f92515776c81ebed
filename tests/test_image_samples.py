"""A folder of images as samples: data.toml, crops, scales, labels."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onmetal.errors import UsageError
from onmetal.files import images
from onmetal.files.cache import Cache
from onmetal.files.preprocessing import Preprocessing
from tests.sample_files import PAIR, folder_of, image_model, load, picture


@pytest.mark.parametrize(
    ("width", "height", "crop", "left", "top"),
    [
        (9, 7, (4, 4), 2, 1),  # differences of 5 and 3: the odd pixel is cut at the end
        (8, 8, (4, 4), 2, 2),
        (5, 5, (5, 5), 0, 0),
        (6, 5, (4, 5), 0, 0),
    ],
)
def test_the_crop_is_centred_and_rounds_down(
    tmp_path: Path, width: int, height: int, crop: tuple[int, int], left: int, top: int
) -> None:
    pixels = picture(tmp_path / "a.png", width, height)
    found = images.read(tmp_path / "a.png", Preprocessing(crop=crop, layout="NHWC"))
    expected = pixels[top : top + crop[0], left : left + crop[1]]
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (33, 17)])
def test_size_scales_the_shorter_side(tmp_path: Path, width: int, height: int) -> None:
    picture(tmp_path / "a.png", width, height)
    found = images.read(tmp_path / "a.png", Preprocessing(size=10, layout="NHWC"))
    short = min(width, height)
    size = width * 10 // short, height * 10 // short
    expected = Image.open(tmp_path / "a.png").resize(size, Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))
    assert min(found.shape[:2]) == 10


def test_size_comes_before_crop(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 40, 20)
    found = images.read(tmp_path / "a.png", Preprocessing(size=10, crop=(8, 8), layout="NHWC"))
    scaled = Image.open(tmp_path / "a.png").resize((20, 10), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found, np.asarray(scaled, np.float32)[1:9, 6:14])


def test_channels_in_the_order_asked_for(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    for channels, expected in (("RGB", pixels), ("BGR", pixels[:, :, ::-1])):
        how = Preprocessing(channels=channels, layout="NHWC")  # type: ignore[arg-type]
        np.testing.assert_array_equal(images.read(tmp_path / "a.png", how), expected)
    grey = images.read(tmp_path / "a.png", Preprocessing(channels="L", layout="NHWC"))
    assert grey.shape == (4, 5, 1)
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey[:, :, 0], luma, atol=1)


def test_scale_mean_and_std_for_each_channel(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    for channels in ("RGB", "BGR"):
        how = Preprocessing(
            channels=channels,
            scale=1 / 255,
            mean=mean,
            std=std,
        )
        ordered = pixels if channels == "RGB" else pixels[:, :, ::-1]
        expected = ((ordered / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
        found = images.read(tmp_path / "a.png", how)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_mean_for_all_channels(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    found = images.read(tmp_path / "a.png", Preprocessing(mean=(128.0,), std=(2.0,)))
    np.testing.assert_array_equal(found, (pixels.transpose(2, 0, 1) - 128.0) / 2.0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "uint8"])
def test_dtypes_of_images(tmp_path: Path, dtype: Any) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    found = images.read(tmp_path / "a.png", Preprocessing(dtype=dtype, layout="NHWC"))
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, pixels)


def test_int8_images_from_a_shift(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 5, 4)
    how = Preprocessing(dtype="int8", mean=(128.0,), layout="NHWC")
    np.testing.assert_array_equal(images.read(tmp_path / "a.png", how), pixels.astype(int) - 128)


@pytest.mark.parametrize(("dtype", "mean"), [("int8", 0.0), ("uint8", 100.0)])
def test_values_outside_the_dtype_are_refused(tmp_path: Path, dtype: Any, mean: float) -> None:
    Image.fromarray(np.array([[0, 99, 255]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match=dtype):
        images.read(tmp_path / "a.png", Preprocessing(dtype=dtype, mean=(mean,)))


def test_a_labelled_folder(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "scale = 0.5\ncrop = [4, 6]")
    (folder / "labels.csv").write_text("file,label\n2.png,7\n0.png,1\n")
    model = image_model(3, 4, 6)
    found = load(folder, model, cache, labelled=True)
    assert found.count == 2
    assert found.label_array().dtype == np.int64
    np.testing.assert_array_equal(found.label_array(), [7, 1])
    first = np.asarray(Image.open(folder / "2.png"), np.float32)[1:5, 1:7].transpose(2, 0, 1) / 2
    np.testing.assert_array_equal(found.feed(model, [0])["image"], first[None])


def test_labels_with_a_byte_order_mark_and_fractions(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "labels.csv").write_text("\ufefffile,label\n1.png,0.5\n0.png,2\n", "utf-8")
    found = load(folder, image_model(3, 7, 9), cache, labelled=True)
    assert found.label_array().dtype == np.float32
    np.testing.assert_array_equal(found.label_array(), np.array([0.5, 2], np.float32))


def test_an_unlabelled_folder_calibrates(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "notes.txt").write_text("no image")
    found = load(folder, image_model(3, 7, 9), cache)
    assert [path.name for path in found.images] == ["0.png", "1.png", "2.png"]
    assert found.labels is None
    with pytest.raises(UsageError, match=r"no labels\.csv"):
        load(folder, image_model(3, 7, 9), cache, labelled=True)


def test_a_folder_of_images_may_be_named_relative(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    found = load("images", image_model(3, 7, 9), cache)
    monkeypatch.chdir("/")
    assert found.feed(image_model(3, 7, 9), [0])["image"].shape == (1, 3, 7, 9)


def test_a_folder_without_data_toml(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "data.toml").unlink()
    with pytest.raises(UsageError, match=r"needs a data\.toml"):
        load(folder, image_model(3, 7, 9), cache)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("resize = 5", "resize"),
        ("size = 0", "size"),
        ("size = '8'", "size"),
        ("crop = [4]", "crop"),
        ("crop = [4, 0]", "crop"),
        ("channels = 'CMYK'", "channels"),
        ("layout = 'HWC'", "layout"),
        ("dtype = 'int64'", "dtype"),
        ("mean = [1.0, 2.0]", "mean has 2 values for 3 channels"),
        ("channels = 'L'\nstd = [1.0, 1.0, 1.0]", "std has 3 values for 1 channels"),
        ("std = [1.0, 0.0, 1.0]", "std must not be zero"),
        ("std = [0]", "std must not be zero"),
        ("mean = [nan]", "mean"),
        ("scale = inf", "scale"),
        ("size = ", r"data\.toml"),
    ],
)
def test_a_data_toml_that_is_wrong(tmp_path: Path, cache: Cache, toml: str, message: str) -> None:
    folder = folder_of(tmp_path, toml)
    with pytest.raises(UsageError, match=message) as caught:
        load(folder, image_model(3, 7, 9), cache)
    assert "data.toml" in str(caught.value)


def test_whole_numbers_in_data_toml(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "scale = 2\nmean = [1, 2, 3]\nstd = [1, 1, 2]")
    found = load(folder, image_model(3, 7, 9), cache)
    assert found.preprocessing == Preprocessing(scale=2, mean=(1, 2, 3), std=(1, 1, 2))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_a_broken_image_is_named(tmp_path: Path, cache: Cache, content: bytes) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "1.png").write_bytes(content)
    with pytest.raises(UsageError, match=r"1\.png: a broken image"):
        load(folder, image_model(3, 7, 9), cache)


def test_a_truncated_image_is_named(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    os.truncate(folder / "2.png", (folder / "2.png").stat().st_size // 2)
    with pytest.raises(UsageError, match=r"2\.png: a broken image"):
        load(folder, image_model(3, 7, 9), cache)


def test_an_image_smaller_than_the_crop_is_named(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "crop = [7, 9]")
    picture(folder / "1.png", 8, 7)
    with pytest.raises(UsageError, match=r"1\.png: 8x7 pixels are too few for the crop 9x7"):
        load(folder, image_model(3, 7, 9), cache)


def test_images_of_another_size_than_the_model_takes(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    picture(folder / "1.png", 10, 7)
    with pytest.raises(UsageError, match=r"1\.png.*\[3, 7, 10\].*\[3, 7, 9\]"):
        load(folder, image_model(3, 7, 9), cache)


def test_images_in_the_other_layout_are_hinted_at(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "layout = 'NHWC'")
    with pytest.raises(UsageError, match="permuted"):
        load(folder, image_model(3, 7, 9), cache)


def test_images_of_another_dtype_than_the_model_takes(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "dtype = 'float16'")
    with pytest.raises(UsageError, match="has dtype float16"):
        load(folder, image_model(3, 7, 9), cache)


@pytest.mark.parametrize(("dtype", "wanted"), [("uint8", "float32"), ("float64", "float32")])
def test_images_are_fed_in_the_dtype_of_the_model(
    tmp_path: Path, cache: Cache, dtype: str, wanted: str
) -> None:
    folder = folder_of(tmp_path, f"dtype = '{dtype}'")
    model = image_model(3, 7, 9, dtype=wanted)
    assert load(folder, model, cache).feed(model, [0])["image"].dtype == np.dtype(wanted)


def test_images_for_a_model_of_two_inputs(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(UsageError, match="a folder of images gives one input; this model has 2"):
        load(folder_of(tmp_path, ""), PAIR, cache)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label\n0.png\n", "line 2.*file,label"),
        ("file,label\n0.png,1\n9.png,2\n", r"line 3: there is no file 9\.png"),
        ("file,label\n0.png,1\n../outside.png,2\n", "line 3.*outside the folder"),
        ("file,label\n/etc/passwd,1\n", "line 2.*outside the folder"),
        ("file,label\n0.png,\n", "line 2"),
        ("file,label\n0.png,nan\n1.png,1\n", "NaN"),
        ("file,label\n0.png,inf\n1.png,1\n", "infinite"),
        ("file,label\n", "no sample"),
        ("", "no sample"),
    ],
)
def test_a_labels_csv_that_is_wrong(tmp_path: Path, cache: Cache, table: str, message: str) -> None:
    folder = folder_of(tmp_path, "")
    picture(tmp_path / "outside.png", 9, 7)
    (folder / "labels.csv").write_text(table)
    with pytest.raises(UsageError, match=message):
        load(folder, image_model(3, 7, 9), cache, labelled=True)


def test_a_labels_csv_that_is_no_text(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    (folder / "labels.csv").write_bytes(b"file,label\n\xff\xfe.png,1\n")
    with pytest.raises(UsageError, match=r"labels\.csv"):
        load(folder, image_model(3, 7, 9), cache, labelled=True)


def test_an_image_that_changes_is_checked_again(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "")
    before = load(folder, image_model(3, 7, 9), cache)
    picture(folder / "1.png", 9, 7)
    after = load(folder, image_model(3, 7, 9), cache)
    assert before.digest != after.digest
    (folder / "1.png").write_bytes(b"broken")
    with pytest.raises(UsageError, match="broken image"):
        load(folder, image_model(3, 7, 9), cache)
