"""Image folders as people have them: how images are stored, and how labels are written down."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from onmetal.calibration import samples
from onmetal.deploy.prepare import prepare
from onmetal.deploy.request import Request
from onmetal.errors import UsageError
from onmetal.files import images
from onmetal.files.cache import Cache
from onmetal.files.preprocessing import Preprocessing
from onmetal.samples import Samples
from tests.onnx_models import build, node, save, value, weights
from tests.sample_files import image_model, picture

RANDOM = np.random.default_rng(0)
NHWC = Preprocessing(layout="NHWC")
GREY = Preprocessing(layout="NHWC", channels="L")
MODEL = image_model(3, 4, 5)


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as opened:
        yield opened


def load(folder: Path, cache: Cache, *, scores: int | None = 3, labelled: bool = True) -> Samples:
    return samples.load(
        str(folder), MODEL, cache, option="--data", labelled=labelled, scores=scores
    )


def folder_of(
    tmp_path: Path, *names: str, toml: str = "", table: str | bytes | None = None
) -> Path:
    """A folder of images of 5x4 pixels, with a data.toml and perhaps a labels.csv."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "data.toml").write_text(toml)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(folder / name, 5, 4)
    if table is not None:
        text = table.encode() if isinstance(table, str) else table
        (folder / "labels.csv").write_bytes(text)
    return folder


def labels_of(found: Samples) -> dict[str, float]:
    return {
        file.name: label
        for file, label in zip(found.images, found.label_array().tolist(), strict=True)
    }


# --- how images are stored


def upright_and_stored(path: Path, orientation: int, **how: Any) -> np.ndarray:
    """Write an image as a camera does that was held so. -> its pixels as they are to be seen."""
    seen = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
    steps = {  # what a camera stores, by the EXIF standard's own words (row 0 is, column 0 is)
        1: lambda a: a,  # top, left
        2: lambda a: a[:, ::-1],  # top, right
        3: lambda a: a[::-1, ::-1],  # bottom, right
        4: lambda a: a[::-1],  # bottom, left
        5: lambda a: a.transpose(1, 0, 2),  # left, top
        6: lambda a: a[:, ::-1].transpose(1, 0, 2),  # right, top
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: lambda a: a[::-1].transpose(1, 0, 2),  # left, bottom
    }
    stored = np.ascontiguousarray(steps[orientation](seen))
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **how)
    np.save(path.with_suffix(".npy"), stored)
    return seen


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_exif_turns_images_as_viewers_do(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    lossless = {"lossless": True} if suffix == "webp" else {}
    seen = upright_and_stored(path, orientation, **lossless)
    found, kinds = images.read_with_kinds(path, NHWC)
    np.testing.assert_array_equal(found, seen)
    assert kinds == (frozenset() if orientation == 1 else {"turned"})
    stored = images.read(path, Preprocessing(layout="NHWC", exif=False))
    np.testing.assert_array_equal(stored, np.load(path.with_suffix(".npy")))


def test_a_jpeg_is_turned_before_it_is_cut(tmp_path: Path) -> None:
    seen = np.zeros((16, 32, 3), np.uint8)
    seen[:, 16:] = 200
    image = Image.fromarray(np.ascontiguousarray(seen[:, ::-1].transpose(1, 0, 2)))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    found = images.read(tmp_path / "a.jpg", Preprocessing(size=8, crop=(8, 16), layout="NHWC"))
    assert found[:, :7].max() < 20 and found[:, 9:].min() > 180


def test_damaged_exif_is_passed_over(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk")
    np.testing.assert_array_equal(images.read(tmp_path / "a.png", NHWC), pixels)


@pytest.mark.parametrize(("alpha", "ground"), [("white", 255.0), ("black", 0.0), ("drop", None)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_a_colour(
    tmp_path: Path, mode: str, alpha: Any, ground: float | None
) -> None:
    pixels = RANDOM.integers(0, 256, (4, 6, len(mode)), np.uint8)
    Image.fromarray(pixels, mode).save(tmp_path / "a.png")
    found, kinds = images.read_with_kinds(
        tmp_path / "a.png", Preprocessing(layout="NHWC", alpha=alpha)
    )
    colours = np.repeat(pixels[:, :, :1], 3, 2) if mode == "LA" else pixels[:, :, :3]
    share = pixels[:, :, -1:] / 255 if ground is not None else 1
    expected = colours * share + (1 - share) * (ground or 0)
    np.testing.assert_allclose(found, expected, atol=1)
    assert kinds >= {"alpha", "transparent"}


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", transparency=1)
    found, kinds = images.read_with_kinds(tmp_path / "a.png", NHWC)
    np.testing.assert_array_equal(found[0], [[10, 20, 30], [255, 255, 255], [70, 80, 90]])
    assert kinds == {"palette", "alpha", "transparent"}


@pytest.mark.parametrize("how", [NHWC, GREY])
def test_16_bit_grey_is_scaled(tmp_path: Path, how: Preprocessing) -> None:
    stored = np.array([[0, 20000, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(stored).save(tmp_path / name)
        found, kinds = images.read_with_kinds(tmp_path / name, how)
        np.testing.assert_allclose(found[0, :, -1], stored[0] / 257, rtol=1e-6)
        assert found.shape[2] == (1 if how is GREY else 3) and "16-bit" in kinds
    Image.fromarray(stored // 17).save(tmp_path / "a.png")
    assert "12-bit" in images.read_with_kinds(tmp_path / "a.png", how)[1]


def test_16_bit_grey_is_turned_scaled_and_cut(tmp_path: Path) -> None:
    stored = np.full((16, 8), 40000, np.uint16)
    stored[:8] = 1000
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[0x0112] = 6  # its top is to be seen on the right
    image.save(tmp_path / "a.png", exif=exif)
    found = images.read(tmp_path / "a.png", Preprocessing(size=4, crop=(2, 6), layout="NHWC"))
    assert found.shape == (2, 6, 3)
    np.testing.assert_allclose(found[:, [0, -1], 0], [[40000 / 257, 1000 / 257]] * 2, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_known_white_are_refused(tmp_path: Path, dtype: Any) -> None:
    Image.fromarray(np.array([[0, 70000]], dtype)).save(tmp_path / "a.tif")
    with pytest.raises(UsageError, match=r"a\.tif.*not known.*npz"):
        images.read(tmp_path / "a.tif", NHWC)


@pytest.mark.parametrize(
    ("mode", "name", "kinds"),
    [
        ("1", "a.bmp", {"1-bit", "grey"}),
        ("L", "a.jpg", {"grey"}),
        ("CMYK", "a.jpg", {"CMYK"}),
        ("P", "a.png", {"palette"}),
        ("RGB", "a.JPG", set()),
    ],
)
def test_other_kinds_of_images(tmp_path: Path, mode: str, name: str, kinds: set[str]) -> None:
    shade = np.zeros((8, 8, 3), np.uint8)
    shade[:, 4:] = 255
    Image.fromarray(shade).convert(mode).save(tmp_path / name)
    found, said = images.read_with_kinds(tmp_path / name, NHWC)
    np.testing.assert_allclose(found, shade, atol=6)
    assert said == kinds
    grey, said = images.read_with_kinds(tmp_path / name, GREY)
    np.testing.assert_allclose(grey, shade[:, :, :1], atol=6)
    assert ("colour" in said) == (mode not in ("1", "L"))


def test_what_was_done_is_counted(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "a.png", "b.png", toml="layout = 'NCHW'")
    picture(folder / "c.png", 5, 4, "L")
    Image.fromarray(np.full((4, 5, 4), 255, np.uint8)).save(folder / "e.png")
    (folder / "notes.txt").write_text("no image")
    said = load(folder, cache, labelled=False).warnings
    assert said == load(folder, cache, labelled=False).warnings  # from the cache
    assert [text for text in said if "1 of 4 images are greyscale, repeated" in text]
    assert [text for text in said if "1 of 4 images have an alpha" in text and "(0 with" in text]
    assert len(said) == 3


def test_images_that_vanish_over_white_are_said(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path)
    for number in range(3):
        pixels = np.full((4, 5, 4), 255, np.uint8)
        pixels[number, :, 3] = 0
        Image.fromarray(pixels).save(folder / f"{number}.png")
    assert any(
        "3 of 3 images are all of one" in t for t in load(folder, cache, labelled=False).warnings
    )
    (folder / "data.toml").write_text("alpha = 'black'")
    assert not any("of one" in text for text in load(folder, cache, labelled=False).warnings)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("alpha = 'grey'", "alpha"),
        ("exif = 1", "exif"),
        ("classes = ['a', 'b', 'a']", "'a' twice"),
        ("classes = []", "names"),
        ("classes = [0, 1]", "classes"),
        ("dtype = 'uint8'\nscale = 0.00392156862745098", "leave scale, mean and std out"),
    ],
)
def test_a_data_toml_that_cannot_be_meant(
    tmp_path: Path, cache: Cache, toml: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        load(folder_of(tmp_path, "a.png", toml=toml), cache, labelled=False)


@pytest.mark.parametrize(
    ("dtype", "toml", "line"),
    [
        ("uint8", "", r'dtype float32, the model takes uint8.*write dtype = "uint8" and no scale'),
        ("int8", "", r'write dtype = "int8" and mean = \[128\]'),
        ("float32", "layout = 'NHWC'", r'write layout = "NCHW"'),
        ("float32", "channels = 'L'", r'write channels = "RGB"'),
        ("float32", "size = 12", r"write size = 5, crop = \[4, 5\]"),
    ],
)
def test_the_line_of_data_toml_to_write_is_said(
    tmp_path: Path, cache: Cache, dtype: str, toml: str, line: str
) -> None:
    folder = folder_of(tmp_path, "a.png", toml=toml)
    model = image_model(3, 4, 5, dtype=dtype)
    with pytest.raises(UsageError, match=line):
        samples.load(str(folder), model, cache, option="--data", labelled=False)


# --- one sub-folder a class

CLASSES = ("ant/0.png", "ant/1.png", "bee/0.JPG", "cat/x.webp")


def test_one_folder_a_class(tmp_path: Path, cache: Cache) -> None:
    found = load(folder_of(tmp_path, *CLASSES), cache)
    assert [file.parent.name for file in found.images] == ["ant", "ant", "bee", "cat"]
    assert found.label_array().tolist() == [0, 0, 1, 2]
    assert found.preprocessing and found.preprocessing.classes == ("ant", "bee", "cat")
    assert any("sorted order (0 is 'ant', 2 is 'cat')" in text for text in found.warnings)


def test_classes_of_data_toml_go_before_the_alphabet(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, *CLASSES, toml='classes = ["cat", "dog", "ant", "bee"]')
    found = load(folder, cache, scores=4)
    assert found.label_array().tolist() == [2, 2, 3, 0]
    assert found.preprocessing and found.preprocessing.classes == ("cat", "dog", "ant", "bee")
    assert not found.warnings


@pytest.mark.parametrize("scores", [1, 2, 4, 1000, None])
def test_names_are_not_mapped_by_a_guess(tmp_path: Path, cache: Cache, scores: int | None) -> None:
    folder = folder_of(tmp_path, *CLASSES)
    with pytest.raises(UsageError, match=r'classes = \["ant", "bee", "cat"\]'):
        load(folder, cache, scores=scores)


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (("2", "10", "1"), False),
        (("0", "1", "2"), True),
        (("00", "01", "10"), True),
        (("1", "01", "2"), False),
        (("-1", "0", "-2"), False),
        (("one", "1", "2"), False),
        (("Cat", "cat", "dog"), False),
        (("n02", "n10", "n1"), True),
    ],
)
def test_folders_that_are_called_by_numbers(
    tmp_path: Path, cache: Cache, names: tuple[str, ...], right: bool
) -> None:
    folder = folder_of(tmp_path, *(f"{name}/a.png" for name in names))
    if right:
        found = load(folder, cache)
        kinds = sorted(names)
        assert found.label_array().tolist() == [0, 1, 2]
        assert [file.parent.name for file in found.images] == kinds
    else:
        with pytest.raises(UsageError, match="classes = "):
            load(folder, cache)
        listed = ", ".join(f'"{name}"' for name in names)
        (folder / "data.toml").write_text(f"classes = [{listed}]")
        found = load(folder, cache)
        at = {
            file.parent.name: int(label)
            for file, label in zip(found.images, found.label_array(), strict=True)
        }
        assert at == {name: number for number, name in enumerate(names)}


def test_what_is_no_image_and_no_class(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(
        tmp_path,
        *CLASSES,
        "bee/deep/er/1.png",
        ".thumbs/0.png",
        "__MACOSX/ant/._0.png",
        "stray.png",
    )
    for name in (".DS_Store", "ant/.DS_Store", "Thumbs.db", "bee/Thumbs.db", "ant/desktop.ini"):
        (folder / name).write_bytes(b"x")
    (folder / "ant/notes.txt").write_text("no image")
    (folder / "cat/photo.heic").write_bytes(b"x")
    picture(folder / "ant/.hidden.png", 5, 4)
    found = load(folder, cache)
    assert found.label_array().tolist() == [0, 0, 1, 1, 2]
    assert any(
        "1 image in no sub-folder" in text and "stray.png" in text for text in found.warnings
    )
    assert any("2 files of a kind that is not read" in text for text in found.warnings)


def test_an_empty_folder_is_not_passed_over(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, *CLASSES)
    (folder / "bear").mkdir()
    for scores in (3, 4):
        with pytest.raises(UsageError, match=r'no image.*\["ant", "bear", "bee", "cat"\]'):
            load(folder, cache, scores=scores)
    (folder / "data.toml").write_text('classes = ["ant", "bear", "bee", "cat"]')
    assert load(folder, cache, scores=4).label_array().tolist() == [0, 0, 2, 3]


@pytest.mark.parametrize(
    "names",
    [
        ("train/ant/0.png", "train/bee/0.png", "val/ant/1.png", "extra/ant/2.png"),
        ("train/0.png", "val/0.png", "test/0.png"),
        ("all/ant/0.png", "all/bee/0.png"),
    ],
)
def test_parts_of_a_data_set_are_no_classes(
    tmp_path: Path, cache: Cache, names: tuple[str, ...]
) -> None:
    with pytest.raises(UsageError, match="parts of a data set"):
        load(folder_of(tmp_path, *names), cache)


def test_a_folder_that_is_no_class(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, *CLASSES, toml='classes = ["ant", "bees", "cat"]')
    with pytest.raises(UsageError, match=r"'bee' \(the sub-folder bee\).*did you mean 'bees'"):
        load(folder, cache)
    with pytest.raises(UsageError, match="3 names, and the model gives 5 scores"):
        load(folder, cache, scores=5)


def test_calibration_takes_folders_of_classes_too(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, *CLASSES, "deep/er/0.png")
    found = load(folder, cache, labelled=False, scores=None)
    assert found.count == 5 and found.labels is None
    picture(folder / "direct.png", 5, 4)
    found = load(folder, cache, labelled=False)
    assert found.count == 1 and any("5 in its sub-folders left out" in t for t in found.warnings)


# --- labels.csv

NUMBERED = {"a.png": 1.0, "b.png": 0.0, "sub/c d.png": 2.0}
FILES = tuple(NUMBERED)


@pytest.mark.parametrize(
    "table",
    [
        "file,label\na.png,1\nb.png,0\nsub/c d.png,2\n",
        "file,label\r\na.png,1\r\nb.png,0\r\nsub/c d.png,2",
        "file,label\ra.png,1\rb.png,0\rsub/c d.png,2\r",
        "label,file\n1,a.png\n0,b.png\n2,sub/c d.png\n",
        "a.png,1\nb.png,0\nsub/c d.png,2\n",
        "1,a.png\n0,b.png\n2,sub/c d.png\n",
        "file;label\na.png;1\nb.png;0\nsub/c d.png;2\n",
        "file\tlabel\na.png\t1\nb.png\t0\nsub/c d.png\t2\n",
        "a.png|1\nb.png|0\nsub/c d.png|2\n",
        'file,label\n"a.png","1"\n"b.png","0"\n"sub/c d.png","2"\n',
        ' file , label \n a.png , 1\n b.png, 0 \n\n"sub/c d.png", 2\n',
        "File,Label\na.png,1\nb.png,0\nsub\\c d.png,2\n",
        "filename,width,class\na.png,5,1\nb.png,5,0\nsub/c d.png,5,2\n",
        ",image,label,score\n0,a.png,1,9\n1,b.png,0,9\n2,sub/c d.png,2,9\n",
        "picture,kind\na.png,1\nb.png,0\nsub/c d.png,2\n",
        "kind,picture\n1,a.png\n0,./b.png\n2,sub/c d.png\n",
        "sep=;\nfile;label\na.png;1\nb.png;0\nsub/c d.png;2\n",
        "#file,label\na.png,1.0\nb.png,0.0\nsub/c d.png,2.0\n",
        "file,label,class\na.png,1,ant\nb.png,0,bee\nsub/c d.png,2,cat\n",
        b"\xef\xbb\xbffile,label\na.png,1\nb.png,0\nsub/c d.png,2\n",
        "file,label\na.png,1\nb.png,0\nsub/c d.png,2\n".encode("utf-16"),
    ],
)
def test_a_labels_csv_as_people_have_it(tmp_path: Path, cache: Cache, table: str | bytes) -> None:
    folder = folder_of(tmp_path, *FILES, table=table)
    found = load(folder, cache)
    names = [str(file.relative_to(folder)) for file in found.images]
    assert dict(zip(names, found.label_array().tolist(), strict=True)) == NUMBERED
    assert found.label_array().dtype == np.int64 and not found.warnings


def test_names_in_a_labels_csv(tmp_path: Path, cache: Cache) -> None:
    table = "file,label\na.png,cat\nb.png, ant \nsub/c d.png,bee\n"
    folder = folder_of(tmp_path, *FILES, table=table)
    assert labels_of(load(folder, cache)) == {"a.png": 2, "b.png": 0, "c d.png": 1}
    (folder / "data.toml").write_text('classes = ["cat", "bee", "ant"]')
    found = load(folder, cache)
    assert labels_of(found) == {"a.png": 0, "b.png": 2, "c d.png": 1}
    assert found.preprocessing and found.preprocessing.classes == ("cat", "bee", "ant")
    (folder / "labels.csv").write_text("a.png,2\nb.png,0\nsub/c d.png,1\n")
    assert labels_of(load(folder, cache)) == {"a.png": 2, "b.png": 0, "c d.png": 1}
    (folder / "data.toml").write_text('classes = ["2", "1", "0"]')  # names, since they are listed
    assert labels_of(load(folder, cache)) == {"a.png": 0, "b.png": 2, "c d.png": 1}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a.png,cat\nb.png,dog\n", r'2 class names .*3 scores.*classes = \["cat", "dog"\]'),
        ("a.png,1\nb.png,two\nsub/c d.png,3\n", r"numbers \(1, line 1\) and names \('two', line 2"),
        ("a.png,1\nb.png,\n", "line 2: the label of b.png is empty"),
        ("a.png;0,5\nb.png;1,5\nsub/c d.png;2,5\n", "decimal commas"),
        ("a.png,1\nb.png,0\na.png,2\n", "line 3: a.png has the label '2' here and '1' in line 1"),
        ("file,a,b,c\na.png,1,0,0\nb.png,0,1,0\n", "line 1: which column.*`file,label`"),
        ("a.png,1,0,0\nb.png,0,1,0\n", "line 1: which column.*`file,label`"),
        ("a.png b.png\n", "`file,label`"),
        ("a.png,1\nB.PNG,0\n", r"line 2: there is no file B\.PNG \(did you mean b\.png\?\)"),
        ("file,label\na,1\nb,0\n", r"line 2: there is no file a \(did you mean a\.png\?\)"),
        ("a.png,1\nC:\\data\\b.png,0\n", r"line 2: there is no file .*did you mean b\.png"),
        ("a.png,1\nb\0.png,0\n", "line 2"),
        (f"a.png,1\n{'b' * 5000}.png,0\n", "line 2"),
        ("a.png,1\n../b.png,0\n", "line 2: ../b.png lies outside the folder"),
    ],
)
def test_a_labels_csv_that_is_not_understood(
    tmp_path: Path, cache: Cache, table: str, message: str
) -> None:
    folder = folder_of(tmp_path, *FILES, table=table)
    with pytest.raises(UsageError, match=message):
        load(folder, cache)


def test_labels_csv_goes_before_folders(tmp_path: Path, cache: Cache) -> None:
    table = "ant/0.png,2\nbee/0.JPG,1\ncat/x.webp,0\n"
    found = load(folder_of(tmp_path, *CLASSES, table=table), cache)
    assert found.label_array().tolist() == [2, 1, 0]
    assert found.preprocessing and found.preprocessing.classes is None
    assert any("1 image of the folder not listed" in text for text in found.warnings)


def test_a_labels_csv_of_files_alone_calibrates(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, *FILES, table="file\na.png\nb.png\n")
    assert load(folder, cache, labelled=False).count == 2
    (folder / "labels.csv").write_text("file,label\na.png,1\nb.png,what\n")
    assert load(folder, cache, labelled=False).count == 2


def test_accents_are_found_however_they_are_stored(tmp_path: Path, cache: Cache) -> None:
    names = ("e\u0301.png", "\u00fc.png")
    folder = folder_of(tmp_path, *names, table="file,label\n\u00e9.png,0\nu\u0308.png,1\n")
    assert load(folder, cache).label_array().tolist() == [0, 1]


def test_a_broken_image_in_a_class_is_named(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, *CLASSES)
    os.truncate(folder / "bee/0.JPG", 300)
    with pytest.raises(UsageError, match=r"bee/0\.JPG: a broken image"):
        load(folder, cache)


# --- through the task


def test_class_names_reach_the_task(tmp_path: Path, cache: Cache) -> None:
    nodes = [
        node("GlobalAveragePool", "x", "p"),
        node("Flatten", "p", "f"),
        node("Gemm", "f w", "y"),
    ]
    graph = build(nodes, [value("x", ["n", 3, 4, 5])], [value("y", ["n", 3])], [weights("w", 3, 3)])
    model = save(graph, tmp_path / "model.onnx")
    folder = folder_of(tmp_path, *(f"{name}/{i}.png" for name in ("z", "a", "m") for i in range(8)))
    request = Request(models=(model,), target="x86-64", data=str(folder), recipes=("fp32",))
    task = prepare(request, cache)
    data = task.data[str(model)]
    assert data.preprocessing and data.preprocessing.classes == ("a", "m", "z")
    assert task.metric and task.metric.name == "top1"
    assert data.label_array().tolist() == [0] * 8 + [1] * 8 + [2] * 8
    two = save(
        build(nodes, [value("x", ["n", 3, 4, 5])], [value("y", ["n", 2])], [weights("w", 3, 2)]),
        tmp_path / "two.onnx",
    )
    with pytest.raises(UsageError, match=r"3 class names .*2 scores"):
        prepare(Request(models=(two,), target="x86-64", data=str(folder)), cache)
