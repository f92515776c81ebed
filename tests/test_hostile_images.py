"""Pictures and folders of strangers: only formats that are named are read, nothing outside of the
folder is, nothing is waited for, and shapes are bounded before memory is taken."""

import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from onmetal.calibration import class_names, samples
from onmetal.errors import UsageError
from onmetal.files import image_files, images, preprocessing
from onmetal.files.cache import Cache
from onmetal.files.preprocessing import Preprocessing
from onmetal.runtimes import fit
from onmetal.samples import Samples
from tests.conftest import DIGITS, deploy
from tests.hostile_files import special
from tests.sample_files import image_model, picture

MODEL = image_model(3, 4, 5)
SMALL = Preprocessing(size=32, crop=(32, 32))


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as opened:
        yield opened


def refused(path: Path, how: Preprocessing = SMALL) -> str:
    """Why an image is not read; it takes little memory to find out."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError) as caught:
        images.read(path, how)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said and len(said) < 600
    return said.removeprefix(f"{path}: ")


# --- formats

HEADS: dict[str, tuple[bytes, str]] = {
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "EPS of DOS": (b"\xc5\xd0\xd3\xc6" + bytes(60), "PostScript"),
    "PDF": (b"%PDF-1.7\n", "PDF"),
    "PSD": (b"8BPS\0\1" + bytes(60), "Photoshop"),
    "FITS": (b"SIMPLE  =                    T" + bytes(3000), "FITS"),
    "ICNS": (b"icns" + bytes(60), "ICNS"),
    "ICO": (b"\0\0\1\0\1\0" + bytes(60), "icon"),
    "WMF": (b"\xd7\xcd\xc6\x9a" + bytes(60), "metafile"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), "JPEG 2000"),
    "AVIF": (b"\0\0\0\x20ftypavif" + bytes(60), "AVIF"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "HTML": (b"<!DOCTYPE html><html></html>", "HTML"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "zip": (b"PK\3\4" + bytes(60), "zip"),
    "NumPy": (b"\x93NUMPY\1\0" + bytes(60), "NumPy"),
    "text": (b"hello", "of another format"),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_other_formats_are_refused_and_named(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    content, what = HEADS[name]
    path.write_bytes(content)
    said = refused(path)
    assert what in said
    assert all(form in said for form in image_files.FORMATS)


def test_every_other_reader_of_pillow_is_left_alone(tmp_path: Path) -> None:
    """Whatever Pillow can write, under the name of a .png: read where it is named, else refused."""
    Image.init()
    picture = Image.new("RGB", (16, 16), "red")
    tried = 0
    for form in sorted(set(Image.SAVE) & set(Image.OPEN) - {"SPIDER"}):  # takes .png over
        path = tmp_path / f"{form}.png"
        try:
            picture.save(path, form)
        except Exception:  # of another mode only
            continue
        tried += 1
        if form in (*image_files.FORMATS, "MPO", "DIB"):
            if form != "DIB":
                assert images.read(path, SMALL).shape == (3, 32, 32)
            continue
        assert "what is read is" in refused(path), form
    assert tried > 15


def test_no_program_is_started_for_an_eps(tmp_path: Path) -> None:
    """Ghostscript by whatever name is first on PATH would leave a file behind."""
    for name in ("gs", "gswin32c", "gswin64c"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        program.chmod(0o755)
    path = tmp_path / "picture.png"
    Image.new("RGB", (9, 9)).save(path, "EPS")
    code = (
        "import sys; from pathlib import Path; from onmetal.files import images, preprocessing;"
        "images.read(Path(sys.argv[1]), preprocessing.Preprocessing())"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", code, path], env=environment, capture_output=True, check=False
    )
    assert b"PostScript" in done.stderr
    assert not (tmp_path / "ran").exists()


# --- shapes


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png(width: int, height: int, *between: bytes, pixels: bytes | None = None) -> bytes:
    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    rows = pixels or zlib.compress((b"\0" + bytes(width)) * height)
    return (
        b"\x89PNG\r\n\x1a\n" + head + b"".join(between) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(1, 65535), (65535, 1), (2, 65535), (1, 2000)])
def test_a_strip_is_not_scaled_to_gigabytes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "strip.png"
    path.write_bytes(png(*size))
    how = Preprocessing(size=224 if max(size) > 2000 else 4000)
    assert "set a smaller `size`" in refused(path, how)


def declared(form: str, side: int) -> bytes:
    """A small file that says that it has so many pixels a side."""
    match form:
        case "png":
            return png(side, side, pixels=zlib.compress(b""))
        case "bmp":
            head = struct.pack("<3I2H6I", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
            return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head
        case "gif":
            return (
                b"GIF89a"
                + struct.pack("<2H3B", side, side, 0, 0, 0)
                + (b"," + struct.pack("<4HB", 0, 0, side, side, 0) + b"\2\1\0\0;")
            )
        case "ppm":
            return f"P6 {side} {side} 255\n".encode()
        case "tiff":
            tags = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (278, side)]
            tags += [(279, side * side % 2**32)]
            body = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in tags)
            return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)
        case "jpeg":
            frame = struct.pack(">HBHHB3B", 11, 8, side, side, 1, 1, 0x11, 0)
            return b"\xff\xd8\xff\xc0" + frame + b"\xff\xd9"
        case _:
            size = (side - 1) | (side - 1) << 14
            body = b"\x2f" + struct.pack("<I", size) + bytes(20)
            return (
                b"RIFF"
                + struct.pack("<I", len(body) + 12)
                + b"WEBPVP8L"
                + (struct.pack("<I", len(body)) + body)
            )


@pytest.mark.parametrize("form", ["png", "bmp", "gif", "ppm", "tiff", "jpeg", "webp"])
@pytest.mark.parametrize("side", [11_000, 16_000, 65_000])
def test_what_a_file_says_of_its_size_is_bounded(tmp_path: Path, form: str, side: int) -> None:
    path = tmp_path / f"picture.{form}"
    path.write_bytes(declared(form, side))
    said = refused(path)
    if form not in ("webp", "jpeg") and side < 65_000:  # which look at more before they say it
        assert "million pixels" in said


def test_a_photo_of_100_megapixels_is_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("L", (11_600, 8_700), 100).save(path, compress_level=1)
    values = images.read(path, SMALL)
    assert values.shape == (3, 32, 32) and (values == 100).all()


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        ("size = 65536", "<= 65535"),
        ("size = 0", ">= 1"),
        ("crop = [70000, 1]", "<= 65535"),
        ("crop = [1, -1]", ">= 1"),
        ("size = nan", "float"),
        ("size = inf", "float"),
        (f"size = {'9' * 40}", "64 bits"),
        (f"size = {'9' * 5000}", "digits"),
        ("size = 0x" + "f" * 5000, "64 bits"),
        (f"scale = {'9' * 300}", "64 bits"),
        ("scale = inf", "finite"),
        ("scale = 1e39", "finite"),
        ("mean = [nan]", "finite"),
        ("std = [1e-60]", "vanish"),
        ("mean = " + "[" * 5000, "nested too deep"),
        ("a = " + "{a=" * 5000, "nested too deep"),
        (".".join("a" * 500_000), "tables deep"),
        ('"\\""' + ".a" * 500_000 + '."" = 1', "tables deep"),
        ('x = {a = """"a"""", b' + ".b" * 70 + ' = "q"}', "tables deep"),
        (' . "a.b"'.join("a" * 80) + " = 1", "tables deep"),
        ('"' + '\\"' * 250_000, "Unterminated"),
        ('x = """' + ".a" * 250_000, "Unterminated"),
        ("[" + ".".join("a" * 500) + "]\n" + "b = 1\n" * 1000, "tables deep"),
        ("classes = [" + "'a'," * 300_000 + "]", "longer than"),
        ("classes = [" + "'a'," * 100_000 + "]", "twice"),
        ("classes = [" + ",".join(f"'{n}'" for n in range(90_000)) + ", '0']", "'0' twice"),
    ],
)
def test_a_data_toml_of_a_stranger_is_bounded(tmp_path: Path, toml: str, why: str) -> None:
    (tmp_path / "data.toml").write_text(toml)
    with pytest.raises(UsageError, match=why) as caught:
        preprocessing.read_preprocessing(tmp_path)
    assert len(str(caught.value)) < 600
    (tmp_path / "own.toml").write_text(toml)
    with pytest.raises(UsageError, match=r"own\.toml"):
        fit.load_target(str(tmp_path / "own.toml"))


def test_points_that_are_no_tables_are_not_counted(tmp_path: Path) -> None:
    lines = [
        f'# {"." * 500} "',
        f"mean = [{', '.join(['0.5'] * 3)}]  # {'.' * 100}",
        "classes = ['" + "', '".join("ab.cd." * 40 + str(n) for n in range(9)) + "']",
        "size = 7",
    ]
    (tmp_path / "data.toml").write_text("\n".join(lines))
    how = preprocessing.read_preprocessing(tmp_path)
    assert (how.size, len(how.classes or ())) == (7, 9)


def test_a_ppm_in_plain_text_is_refused(tmp_path: Path) -> None:
    """Its comments and numbers are read byte by byte: a few MB take minutes."""
    path = tmp_path / "image.ppm"
    for kind in (b"P1", b"P2", b"P3"):
        path.write_bytes(kind + b"\n10 10\n255\n" + b"#\n" * 500_000 + b"1 " * 300)
        assert "numbers in plain text" in refused(path)
    for mode in ("1", "L", "RGB"):
        Image.new(mode, (40, 40)).save(path)
        assert images.read(path, SMALL).shape == (3, 32, 32)


def test_twice_as_wide_numbers_are_half_as_many(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png(8192, 4096))
    assert "8192x4096 pixels would be made" in refused(path, Preprocessing(dtype="float64"))


@pytest.mark.parametrize("tags", [{322: 16384, 323: 32752}, {278: 1 << 16}])
def test_a_small_tiff_of_one_huge_tile(tmp_path: Path, tags: dict[int, int]) -> None:
    path = tmp_path / "image.tiff"
    size = (1, 1) if 322 in tags else (32_000, 2)
    Image.new("L", size).save(path, compression="raw")
    with Image.open(path) as honest:
        stored: Any = honest
        offsets, counts = stored.tag_v2[273], stored.tag_v2[279]
    entries = {256: size[0], 257: size[1], 258: 8, 259: 1, 262: 1, 277: 1, **tags}
    places = (324, 325) if 322 in tags else (273, 279)
    entries |= {places[0]: offsets[0], places[1]: counts[0]}
    content = bytearray(path.read_bytes())
    start = len(content) + len(content) % 2
    content += bytes(start - len(content)) + len(entries).to_bytes(2, "little")
    for tag, number in sorted(entries.items()):
        content += tag.to_bytes(2, "little") + (4).to_bytes(2, "little")
        content += (1).to_bytes(4, "little") + number.to_bytes(4, "little")
    content += bytes(4)
    content[4:8] = start.to_bytes(4, "little")
    path.write_bytes(content)
    if 322 in tags:
        assert "tiles or strips have more than 110 million pixels" in refused(path)
    else:  # no more rows than the image has are in a strip
        assert images.read(path, Preprocessing(crop=(2, 2))).shape == (3, 2, 2)


@pytest.mark.parametrize("content", [b"\xff\xfes\0", b"size = '\x80'", b"\0" * 9, b"\xef\xbb\xbf="])
def test_a_data_toml_in_another_encoding(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"data\.toml"):
        preprocessing.read_preprocessing(tmp_path)


# --- what else a picture may hold


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_png_that_packs_gigabytes_into_a_text(tmp_path: Path, name: bytes) -> None:
    packed = zlib.compress(bytes(20 << 20), 9)
    before = {"iCCP": b"a\0\0", "zTXt": b"a\0\0", "iTXt": b"a\0\1\0\0\0"}[name.decode()]
    path = tmp_path / "text.png"
    path.write_bytes(png(9, 9, chunk(name, before + packed)))
    refused(path)


def test_texts_of_a_png_that_are_honest_are_passed_over(tmp_path: Path) -> None:
    path, texts = tmp_path / "text.png", PngImagePlugin.PngInfo()
    texts.add_itxt("comment", "words " * 1000, zip=True)
    Image.new("RGB", (40, 40), "red").save(path, pnginfo=texts, icc_profile=bytes(5000))
    assert images.read(path, SMALL).shape == (3, 32, 32)


def test_a_progressive_jpeg_of_endless_scans(tmp_path: Path) -> None:
    path = tmp_path / "scans.jpg"
    Image.new("L", (8000, 8000)).save(path, progressive=True, quality=5)
    content = path.read_bytes()
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:last] + content[last:-2] * 60 + content[-2:])
    assert "scans" in refused(path)
    Image.new("L", (800, 800)).save(path, progressive=True)
    assert images.read(path, SMALL).shape == (3, 32, 32)


def test_what_follows_a_jpeg_is_no_scan(tmp_path: Path) -> None:
    """Phones append a film, in which anything stands."""
    path = tmp_path / "photo.jpg"
    Image.new("L", (4000, 4000), 100).save(path, progressive=True, exif=bytes(1000))
    film = np.random.default_rng(0).bytes(1 << 20)
    path.write_bytes(path.read_bytes() + b"\xff\xda\0\2" * 1000 + film)
    assert (images.read(path, SMALL) == 100).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_scans_are_counted(tmp_path: Path, mode: str, progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 4), np.uint8)
    path = tmp_path / "photo.jpg"
    options: dict[str, Any] = {"progressive": progressive, "restart_marker_rows": 1}
    Image.fromarray(noise).convert(mode).save(path, **options)
    content = path.read_bytes()
    with path.open("rb") as file:
        file.seek(7)
        assert image_files.count_scans(file) == content.count(b"\xff\xda")
        assert file.tell() == 7
    assert (content.count(b"\xff\xda") > 1) == progressive


def test_directories_of_a_tiff_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "circle.tif"
    Image.new("L", (40, 40)).save(path)
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    struct.pack_into("<I", content, start + 2 + 12 * count, start)
    path.write_bytes(content)
    assert images.read(path, SMALL).shape == (3, 32, 32)


@pytest.mark.parametrize("form", ["gif", "webp", "tiff", "png"])
def test_ten_thousand_frames_are_not_gone_over(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"frames.{form}"
    frame = Image.new("L", (40, 40))
    many = [Image.new("L", (40, 40), n % 256) for n in range(300)]
    frame.save(path, save_all=True, append_images=many)
    _, kinds = images.read_with_kinds(path, SMALL)
    assert "frames" in kinds


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"]
)
def test_a_tiff_by_libtiff_that_is_cut_short(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "cut.tif"
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)
    Image.fromarray(noise).save(path, compression=compression)
    assert images.read(path, SMALL).shape == (3, 32, 32)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refused(path)


def test_a_tag_of_a_tiff_that_is_longer_than_all(tmp_path: Path) -> None:
    path = tmp_path / "tag.tif"
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "words"
    Image.new("L", (40, 40)).save(path, tiffinfo=tags)
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<2H", 270, 2))
    struct.pack_into("<I", content, at + 4, 2**31)
    path.write_bytes(content)
    try:
        assert images.read(path, SMALL).shape == (3, 32, 32)
    except UsageError as error:
        assert "broken image" in str(error)


# --- folders


def folder_of(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "data.toml").write_text("")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(folder / name, 5, 4)
    return folder


def load(
    folder: Path, cache: Cache, *, labelled: bool = False, follow_links: bool = False
) -> Samples:
    return samples.load(
        str(folder),
        MODEL,
        cache,
        option="--data",
        labelled=labelled,
        follow_links=follow_links,
        scores=2,
    )


PLACES = [
    "a.png",
    "notes.txt",
    "cat/a.png",
    "cat/deep/a.jpg",
    "cat/notes",
    "data.toml",
    "labels.csv",
]


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "broken link", "circle"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("labelled", [False, True])
def test_what_is_no_file_is_refused_wherever_it_lies(
    tmp_path: Path, cache: Cache, kind: str, place: str, labelled: bool
) -> None:
    folder = folder_of(tmp_path, "cat/1.png", "cat/deep/2.png", "dog/3.png")
    (folder / place).unlink(missing_ok=True)
    special(folder / place, kind)
    with pytest.raises(UsageError, match=place) as caught:
        load(folder, cache, labelled=labelled, follow_links=True)
    wanted = {"pipe": "pipe", "device": "device", "socket": "socket", "circle": "links|circle"}
    assert any(word in str(caught.value) for word in wanted.get(kind, "not there").split("|"))


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "broken link", "circle"])
def test_what_is_no_file_is_refused_in_labels_csv(tmp_path: Path, cache: Cache, kind: str) -> None:
    folder = folder_of(tmp_path, "a.png")
    special(folder / "b.png", kind)
    (folder / "labels.csv").write_text("file,label\na.png,0\nb.png,1\n")
    with pytest.raises(UsageError, match=r"labels\.csv line 3: b\.png is "):
        load(folder, cache, labelled=True, follow_links=True)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("what", ["file", "folder", "two links"])
def test_links_that_lead_out_need_a_word(
    tmp_path: Path, cache: Cache, labelled: bool, table: bool, what: str
) -> None:
    folder = folder_of(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "else").mkdir()
    picture(tmp_path / "else" / "3.png", 5, 4)
    if what == "folder":
        (folder / "owl").symlink_to("../else")
        name = "owl/3.png"
    else:
        name = "dog/3.png"
        (folder / name).symlink_to("../../else/3.png" if what == "file" else "../cat/way/3.png")
        (folder / "cat" / "way").symlink_to(tmp_path / "else")
        if what == "file":
            (folder / "cat" / "way").unlink()
    if table:
        (folder / "labels.csv").write_text(f"file,label\ncat/1.png,0\n{name},1\n")
    with pytest.raises(UsageError, match=r"leads out.*--follow-links"):
        load(folder, cache, labelled=labelled)
    if labelled and not table and what == "folder":
        return  # a third class
    found = load(folder, cache, labelled=labelled, follow_links=True)
    assert folder / name in found.images


def test_links_within_the_folder_and_to_it_are_fine(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "cat/1.png", "dog/2.png", ".all/3.png")
    (folder / "dog" / "3.png").symlink_to("../.all/3.png")
    (folder / "cat" / "more").symlink_to(folder / ".all")
    (tmp_path / "link").symlink_to("images")
    for place in (folder, tmp_path / "link"):
        found = load(place, cache, labelled=True)
        assert [file.name for file in found.images] == ["1.png", "3.png", "2.png", "3.png"]


@pytest.mark.parametrize("name", ["data.toml", "labels.csv"])
def test_the_tables_may_be_links_out_with_a_word_only(
    tmp_path: Path, cache: Cache, name: str
) -> None:
    folder = folder_of(tmp_path, "a.png", "b.png")
    (tmp_path / "toml").write_text("")
    (tmp_path / "csv").write_text("file,label\na.png,0\nb.png,1\n")
    (folder / "labels.csv").write_bytes((tmp_path / "csv").read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / name.rpartition(".")[2])
    with pytest.raises(UsageError, match=rf"{name}.*leads out.*--follow-links"):
        load(folder, cache, labelled=True)
    assert load(folder, cache, labelled=True, follow_links=True).count == 2


@pytest.mark.parametrize("follow_links", [False, True])
@pytest.mark.parametrize("where", [".", "..", "../images", "dog"])
def test_folders_in_a_circle_are_not_walked_for_ever(
    tmp_path: Path, cache: Cache, follow_links: bool, where: str
) -> None:
    folder = folder_of(tmp_path, "cat/deep/1.png", "cat/deep/dog/2.png")
    (folder / "cat" / "deep" / "link").symlink_to(where)
    with pytest.raises(UsageError, match=r"read twice|leads out|not there"):
        load(folder, cache, follow_links=follow_links)


@pytest.mark.parametrize("follow_links", [False, True])
@pytest.mark.parametrize(
    "name", ["../b.png", "/etc/hostname", "sub/../../b.png", "sub\\..\\..\\b.png"]
)
def test_a_name_in_labels_csv_that_leads_out(
    tmp_path: Path, cache: Cache, name: str, follow_links: bool
) -> None:
    folder = folder_of(tmp_path, "a.png", "sub/c.png")
    picture(tmp_path / "b.png", 5, 4)
    (folder / "labels.csv").write_text(f"file,label\na.png,0\n{name},1\n")
    with pytest.raises(UsageError, match="lies outside the folder"):
        load(folder, cache, labelled=True, follow_links=follow_links)


def test_a_link_that_is_put_there_later_is_not_followed(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "cat/1.png", "dog/2.png")
    found = load(folder, cache, labelled=True)
    picture(tmp_path / "secret.png", 5, 4)
    (folder / "cat" / "1.png").unlink()
    (folder / "cat" / "1.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(UsageError, match="leads out"):
        found.feed(MODEL, [0])
    (folder / "cat" / "1.png").unlink()
    os.mkfifo(folder / "cat" / "1.png")
    with pytest.raises(UsageError, match="pipe"):
        found.feed(MODEL, [0])


def test_a_folder_deeper_than_python_recurses(tmp_path: Path, cache: Cache) -> None:
    folder = folder_of(tmp_path, "1.png")
    (folder / "1.png").rename(folder / ".1.png")
    place = folder
    for _ in range(1500):
        place = place / "d"
        place.mkdir()
    (folder / ".1.png").rename(place / "1.png")
    try:
        assert load(folder, cache).count == 1
    finally:  # which what removes the folders of tests could not
        (place / "1.png").unlink()
        while place != folder:
            place.rmdir()
            place = place.parent


# --- labels.csv

TABLES: dict[str, Callable[[], bytes]] = {
    "a cell without end": lambda: b'file,label\n"' + b"a" * 200_000,
    "a line without end": lambda: b"file,label\n" + b"a" * 1_000_000,
    "a million columns": lambda: b"file,label\n" + b"," * 1_000_000,
    "a million names": lambda: b"file" + b",file" * 1_000_000,
    "quoted line ends": lambda: b"file,label\n" + b'"\n",' * 1_000_000,
    "an open quotation mark": lambda: b'file,label\n"' + b"\n" * 1_000_000,
    "endless lines": lambda: b"\n" * 5_000_000,
    "endless rows": lambda: b"a\n" * 2_100_000,
    "too long": lambda: bytes((64 << 20) + 1),
    "NUL": lambda: b"file,label\na\0.png,1\n",
    "UTF-16 cut short": lambda: b"\xff\xfea\0b",
    "no UTF-8": lambda: b"file,label\n\xff\xff,1\n",
    "a name that is too long": lambda: b"file,label\n" + b"a" * 5000 + b".png,1\n",
    "a label of many digits": lambda: b"file,label\na.png," + b"9" * 5000 + b"\nb.png,1\n",
    "labels that differ in case": lambda: b"file,label\na.png,A\nb.png,a\n",
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("labelled", [False, True])
def test_a_labels_csv_of_a_stranger_is_bounded(
    tmp_path: Path, cache: Cache, name: str, labelled: bool
) -> None:
    folder = folder_of(tmp_path, "a.png", "b.png")
    (folder / "labels.csv").write_bytes(TABLES[name]())
    if not labelled and name in ("a label of many digits", "labels that differ in case"):
        assert load(folder, cache).count == 2
        return
    with pytest.raises(UsageError) as caught:
        load(folder, cache, labelled=labelled)
    assert len(str(caught.value)) < 1500


def test_many_names_of_classes_take_no_square_of_time(tmp_path: Path) -> None:
    """100,000 of them, each compared with each, would be 10^10 comparisons."""
    names = [f"n{number:06}" for number in range(100_000)]
    numbers, _, _ = class_names.number_labels(tmp_path, names, names, tuple(names), None)
    assert numbers[-1] == 99_999
    with pytest.raises(UsageError, match="differ in upper case"):
        class_names.number_labels(tmp_path, [*names, "N000000"], [*names, "x"], None, None)


# --- by the command


def test_pixels_behind_a_link_do_not_come_out(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    toml = 'channels = "L"\nscale = 0.00392156862745098\n'
    (folder / "data.toml").write_text(toml)
    secret = tmp_path / "secret.png"
    Image.fromarray(np.full((28, 28), 77, np.uint8)).save(secret)
    for number in range(8):
        (folder / f"{number}.png").symlink_to(secret)
    words = (DIGITS / "digits_cnn.onnx", "--target", "x86-64", "--calibration-data", folder)
    ran = deploy(*words, "--out", tmp_path / "out", "--json")
    assert ran.code == 2 and "--follow-links" in ran.err
    assert not (tmp_path / "out").exists()
    ran = deploy("inspect", words[0], "--data", folder)
    assert ran.code == 2 and "--follow-links" in ran.err
