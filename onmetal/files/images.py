"""Image files as a model's input: data.toml, and one image read by Pillow."""

import contextlib
import errno
import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from onmetal.errors import UsageError
from onmetal.files.reading import TOML_BYTES, open_regular, parse_toml, read_bytes
from onmetal.records import Shape
from onmetal.texts.quoting import toml_string

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

SUFFIXES = tuple(
    ".bmp .gif .jfif .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()  # noqa: SIM905
)

FOLLOW = "--follow-links reads what links lead to, wherever it lies"

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Of Pillow's readers, those that are asked: others start programs (EPS: Ghostscript) or are hardly
ever used. A camera's JPEG with a preview (MPO) is found by the reader of JPEG."""
FOREIGN = {
    b"%!PS": "an EPS (PostScript) file",
    b"\xc5\xd0\xd3\xc6": "an EPS (PostScript) file",
    b"%PDF": "a PDF document",
    b"8BPS": "a Photoshop document",
    b"SIMPLE  =": "a FITS file",
    b"icns": "an ICNS file",
    b"\0\0\1\0": "an icon (ICO)",
    b"\0\0\2\0": "a cursor (CUR)",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"\xff\x0a": "a JPEG XL file",
    b"\0\0\0\x0cJXL ": "a JPEG XL file",
    b"DDS ": "a DirectDraw surface (DDS)",
    b"qoif": "a QOI file",
    b"\xd7\xcd\xc6\x9a": "a Windows metafile (WMF)",
    b"\1\0\0\0": "a Windows metafile (EMF)",
    b"\x59\xa6\x6a\x95": "a Sun raster file",
    b"\1\xda": "an SGI image",
    b"\0\0\1\xb3": "an MPEG video",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML document (SVG?)",
    b"<!DOCTYPE": "an HTML page: was its download refused?",
    b"<html": "an HTML page: was its download refused?",
    b"version https://git-lfs": "a pointer of Git LFS: `git lfs pull` fetches the image",
    b"PK\3\4": "a zip archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
}
"""How files begin that are no images of FORMATS, and what they are."""
MOST_PIXELS = 110_000_000
"""Of an image as it is stored. Cameras of 100 megapixels have as many; Pillow takes up to 16 bytes
for each while it decodes, which is within 2 GB."""
MOST_INPUT_PIXELS = 1 << 25
"""Of what is made of it for a model, in numbers of 32 bits; half as many of 64."""
MOST_SCANS = 20 * MOST_PIXELS
"""Pixels times scans of one JPEG: a progressive one of a few kB may ask for days of decoding."""

BAND_ROWS = 256
MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]", re.DOTALL)
"""Of a segment of a JPEG: others stand within its pixels."""
START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xD8, 0xD9, 0xDA

TILE_WIDTH, TILE_LENGTH, ROWS_PER_STRIP = 322, 323, 278
"""Tags of a TIFF."""
PLAIN_TEXT = (b"P1", b"P2", b"P3")
"""How a PPM begins whose pixels are written as numbers."""
ORIENTATION = 0x0112
"""The EXIF tag: 1 as stored, 2 to 8 mirrored or turned."""
WHITE_16 = 257
"""65535 / 255: a 16-bit grey value over this is one from 0 to 255."""
LEVELS = 16
"""Whole values of an integer dtype that must be left between black and white."""

GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


Side = Annotated[int, Meta(gt=0, le=65_535)]


class Preprocessing(Struct, frozen=True, forbid_unknown_fields=True):
    """data.toml: how an image file becomes a model's input, and what its classes are called."""

    size: Side | None = None
    crop: tuple[Side, Side] | None = None
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "float16", "float64", "uint8", "int8"] = "float32"
    exif: bool = True
    """Whether images are turned as their EXIF orientation says."""
    alpha: Literal["white", "black", "drop"] = "white"
    """What transparent pixels are laid over; `drop`: their stored colours are taken."""
    classes: tuple[str, ...] | None = None
    """The names of the model's scores, in order: said in data.toml, or the sorted names."""


def read_preprocessing(path: Path, within: Path | None = None) -> Preprocessing:
    """A folder's data.toml. Raises UsageError, naming the key, where it is missing or wrong.

    `within`: as `open_regular` has it.
    """
    table = path / "data.toml"
    keys = ", ".join(Preprocessing.__struct_fields__)
    try:
        text = read_bytes(table, TOML_BYTES, within).decode("utf-8-sig")
        how = msgspec.convert(parse_toml(text), Preprocessing)
    except FileNotFoundError:
        if table.is_symlink():
            raise UsageError(f"{table}: it is a link to what is not there") from None
        raise UsageError(
            f"{path}: a folder of images needs a data.toml that says how to make an input of one "
            f"({keys})"
        ) from None
    except OSError as error:
        raise UsageError(f"{table}: cannot read it ({error.strerror}){linked(error)}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{table}: {error} (its keys: {keys})") from None
    except ValueError as error:  # broken UTF-8, broken TOML, endless numbers
        raise UsageError(f"{table}: {str(error)[:300]}") from None
    if wrong := _wrong(how):
        raise UsageError(f"{table}: {wrong}")
    return how


def linked(error: OSError) -> str:
    """What to do where a link was refused."""
    return f"; {FOLLOW}" if error.errno == errno.EPERM else ""


def _wrong(how: Preprocessing) -> str | None:
    """What cannot be meant in a data.toml whose keys and types are right."""
    depth = 1 if how.channels == "L" else 3
    for key, statistics in (("mean", how.mean), ("std", how.std)):
        if len(statistics) not in (1, depth):
            return f"{key} has {len(statistics)} values for {depth} channels"
    with np.errstate(over="ignore"):
        if not np.isfinite(np.array([how.scale, *how.mean, *how.std], np.float32)).all():
            return "scale, mean and std must be finite numbers, in 32 bits too"
        if 0.0 in np.array(how.std, np.float32):
            return "std must not be zero, nor vanish in 32 bits"
    if np.dtype(how.dtype).kind in "iu":
        between = min(255 * abs(how.scale / std) for std in how.std)
        if between < LEVELS:
            return (
                f'dtype = "{how.dtype}" rounds to whole numbers, and scale, mean and std leave '
                f"{between:.3g} between black and white: leave scale, mean and std out"
            )
    if how.classes is not None:
        name, times = Counter(how.classes).most_common(1)[0] if how.classes else ("", 0)
        if times > 1:
            return f"classes holds {name!r} twice"
        if not how.classes or not all(name.strip() for name in how.classes):
            return "classes must be the names of the model's scores, in order"
    return None


# --- one image


def read(path: Path, how: Preprocessing, within: Path | None = None) -> np.ndarray:
    """One image file as the model's input: (x * scale - mean) / std, in the layout asked for.

    It is turned as EXIF says, transparency is laid over a colour, the shorter side is scaled to
    `size` (bilinear, antialiased), then `crop` [h, w] is cut out of the middle. `within`: as
    `open_regular` has it. Raises UsageError where the file is no image of FORMATS, is too large
    or is smaller than the crop.
    """
    return read_with_kinds(path, how, within)[0]


def read_with_kinds(
    path: Path, how: Preprocessing, within: Path | None = None
) -> tuple[np.ndarray, frozenset[str]]:
    """`read`, and what was done with the image beyond what data.toml asks: keys of KINDS."""
    kinds: set[str] = set()
    with _opened(path, within) as image:
        form = image.format
        upright = _upright(image, how, kinds)
        if upright.mode in (*GREY, *COLOUR):
            pixels = _opaque(upright, how, kinds)
        else:
            pixels = _grey_16(path, upright, form, how, kinds)
        values = np.atleast_3d(np.asarray(_cut(path, pixels, how), np.float32))
    if how.channels != "L" and values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    return _normalized(path, values, how), frozenset(kinds)


@contextlib.contextmanager
def _opened(path: Path, within: Path | None) -> Iterator["Image"]:
    """The image, not decoded yet, whose size was looked at."""
    from PIL import Image, UnidentifiedImageError

    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # errors come as exceptions, too
    try:
        with warnings.catch_warnings(), open_regular(path, within) as file:
            warnings.simplefilter("ignore")  # of Pillow, on what is refused or taken below
            with Image.open(file, formats=FORMATS) as image:
                _check_size(path, image, file)
                yield image
    except UsageError:
        raise
    except UnidentifiedImageError:
        raise UsageError(f"{path}: {_foreign(path, within)}") from None
    except Image.DecompressionBombError:
        raise UsageError(f"{path}: it says that it has {TOO_MANY}") from None
    except MemoryError:
        raise UsageError(f"{path}: there is not enough memory to decode this image") from None
    except OSError as error:
        if error.errno is None:  # Pillow's own
            raise UsageError(f"{path}: a broken image ({str(error)[:200]})") from None
        raise UsageError(f"{path}: cannot read it ({error.strerror}){linked(error)}") from None
    except Exception as error:  # each of Pillow's readers has its own
        raise UsageError(f"{path}: a broken image ({str(error)[:200]})") from None


TOO_MANY = (
    f"more than {MOST_PIXELS // 10**6} million pixels, the most that are read; store it smaller, "
    "or cut it into parts"
)


def _foreign(path: Path, within: Path | None) -> str:
    """What a file is that is no image of FORMATS."""
    with open_regular(path, within) as file:
        head = file.read(64).lstrip()
    what = next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None)
    if head[4:8] == b"ftyp":
        what = "an AVIF, HEIC or video file"
    known = ", ".join(FORMATS)
    if not head:
        return "a broken image: the file is empty"
    if what is None:
        return f"a broken image, or one of another format; what is read is {known}"
    return f"this is {what}; what is read is {known}"


def _check_size(path: Path, image: "Image", file: BinaryIO) -> None:
    """Before it is decoded: a file of 300 bytes may say that it has any number of pixels."""
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise UsageError(f"{path}: it has {image.width}x{image.height} pixels, {TOO_MANY}")
    if image.format in ("JPEG", "MPO"):
        scans = _scans(file)
        if scans * pixels > MOST_SCANS:
            raise UsageError(
                f"{path}: a JPEG of {image.width}x{image.height} pixels in {scans} scans, which "
                "would take very long to decode; store it with fewer scans"
            )
    if image.format == "TIFF" and _tile_pixels(image) > MOST_PIXELS:
        raise UsageError(f"{path}: a TIFF whose tiles or strips have {TOO_MANY}")
    if image.format == "PPM" and _head(file, 2) in PLAIN_TEXT:
        raise UsageError(
            f"{path}: its pixels are numbers in plain text, which takes very long to read; store "
            "it as binary PPM or as PNG"
        )


def _head(file: BinaryIO, count: int) -> bytes:
    """How the file begins. Its place stays."""
    place = file.tell()
    file.seek(0)
    head = file.read(count)
    file.seek(place)
    return head


def _tile_pixels(image: "Image") -> int:
    """Of one tile or strip, which is decoded as a whole, however small the image is."""
    tags = getattr(image, "tag_v2", {})
    wide, high = tags.get(TILE_WIDTH, image.width), tags.get(TILE_LENGTH)
    if high is None:  # strips; in some files their rows are told as 2**32 - 1: all
        wide, high = image.width, min(tags.get(ROWS_PER_STRIP, image.height), image.height)
    return int(wide) * int(high)


def _scans(file: BinaryIO) -> int:
    """How often a JPEG goes over its pixels. Its place in the file stays."""
    place, count = file.tell(), 0
    file.seek(0)
    while (marker := _next_marker(file)) not in (None, END_OF_IMAGE):
        count += marker == START_OF_SCAN
        if marker != START_OF_IMAGE:
            file.seek(max(0, int.from_bytes(file.read(2), "big") - 2), os.SEEK_CUR)
    file.seek(place)
    return count


def _next_marker(file: BinaryIO) -> int | None:
    """What follows the pixels, or another segment, of a JPEG; None: nothing does."""
    size = 256
    while len(piece := file.read(size)) > 1:
        if marker := MARKER.search(piece):
            file.seek(marker.end() - len(piece), os.SEEK_CUR)
            return piece[marker.end() - 1]
        file.seek(-1, os.SEEK_CUR)  # the half of a marker, perhaps
        size = min(4 * size, 1 << 20)
    return None


def _upright(image: "Image", how: Preprocessing, kinds: set[str]) -> "Image":
    """The pixels, mirrored and turned as the EXIF orientation says, unless `exif` is false."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    back = {Transpose.ROTATE_270: Transpose.ROTATE_90, Transpose.ROTATE_90: Transpose.ROTATE_270}
    # not n_frames, for which some readers go over all of them
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's preview
        kinds.add("frames")
    by_pillow = image.format == "TIFF"  # which it turns while it loads
    turn = _orientation(image, turns) if by_pillow else None
    image.load()
    if not by_pillow:
        turn = _orientation(image, turns)  # in a PNG it may follow the pixels
    if turn is None:
        return image
    kinds.add("turned")
    if by_pillow == how.exif:
        return image
    info, turned = image.info, image.transpose(back.get(turn, turn) if by_pillow else turn)
    turned.info = info  # what is transparent
    image.close()  # its pixels are many
    return turned


def _orientation(image: "Image", turns: Mapping[int, "Transpose"]) -> "Transpose | None":
    try:
        return turns.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF is passed over, as viewers do
        return None


def _opaque(image: "Image", how: Preprocessing, kinds: set[str]) -> "Image":
    """In 8 bits, RGB or grey as `channels` asks, without transparency."""

    if image.mode in ("1", "P", "PA", "CMYK"):
        kinds.add({"1": "1-bit", "CMYK": "CMYK"}.get(image.mode, "palette"))
    if how.channels != "L" and image.mode in GREY:
        kinds.add("grey")
    elif how.channels == "L" and image.mode not in GREY:
        kinds.add("colour")
    if not image.has_transparency_data:
        pixels = image if image.mode in ("L", "RGB") else image.convert("RGB")
    else:
        pixels = image if image.mode == "RGBA" else image.convert("RGBA")
        kinds.add("alpha")
        if pixels.getchannel("A").getextrema()[0] != 255:
            kinds.add("transparent")
        if how.alpha != "drop":
            _lay_over(pixels, how.alpha)
            if "transparent" in kinds and pixels.getcolors(1):
                kinds.add("vanished")
        if pixels is not image:
            image.close()  # its pixels are many
        pixels = pixels.convert("RGB")
    wanted = "L" if how.channels == "L" else "RGB"
    return pixels if pixels.mode == wanted else pixels.convert(wanted)


def _lay_over(pixels: "Image", colour: str) -> None:
    """In place, a band of rows at a time: an image may be as large as memory has room for once."""
    from PIL import Image

    for top in range(0, pixels.height, BAND_ROWS):
        band = pixels.crop((0, top, pixels.width, min(top + BAND_ROWS, pixels.height)))
        pixels.paste(Image.alpha_composite(Image.new("RGBA", band.size, colour), band), (0, top))


def _grey_16(
    path: Path, image: "Image", form: str | None, how: Preprocessing, kinds: set[str]
) -> "Image":
    """16-bit grey as floats from 0 to 255, so that nothing is clipped or rounded."""
    from PIL import Image

    if not image.mode.startswith("I;16") and not (image.mode == "I" and form in ("PNG", "PPM")):
        raise UsageError(
            f"{path}: its pixels are {image.mode!r}, whose black and white are not known; save it "
            "as 8-bit grey or RGB, or give such data as .npz"
        )
    kinds.add("16-bit")
    if how.channels != "L":
        kinds.add("grey")
    values = np.asarray(image).astype(np.float32)
    if values.max() < 4096:
        kinds.add("12-bit")
    clear = values == image.info.get("transparency", -1)
    values /= WHITE_16
    if clear.any():
        kinds |= {"alpha", "transparent"}
        if how.alpha != "drop":
            values[clear] = 255 if how.alpha == "white" else 0
    return Image.fromarray(values)


def _cut(path: Path, pixels: "Image", how: Preprocessing) -> "Image":
    """Scaled to `size` and cropped."""
    from PIL.Image import Resampling

    if how.size:
        short = min(pixels.size)
        width, height = (max(1, side * how.size // short) for side in pixels.size)
        _check_input(path, width, height, how)
        pixels = pixels.resize((width, height), Resampling.BILINEAR)
    if how.crop:
        high, wide = how.crop
        if pixels.height < high or pixels.width < wide:
            raise UsageError(
                f"{path}: {pixels.width}x{pixels.height} pixels are too few for the crop "
                f"{wide}x{high}; set `size` in data.toml"
            )
        _check_input(path, wide, high, how)
        left, top = (pixels.width - wide) // 2, (pixels.height - high) // 2
        pixels = pixels.crop((left, top, left + wide, top + high))
    _check_input(path, *pixels.size, how)
    return pixels


def _check_input(path: Path, width: int, height: int, how: Preprocessing) -> None:
    """Before it is made: of a narrow strip, `size` makes any number of pixels."""
    most = MOST_INPUT_PIXELS * 4 // max(4, np.dtype(how.dtype).itemsize)
    if width * height > most:
        raise UsageError(
            f"{path}: as data.toml asks, {width}x{height} pixels would be made of it, and the most "
            f"are {most}; set a smaller `size` or `crop`, or cut the image"
        )


def _normalized(path: Path, values: np.ndarray, how: Preprocessing) -> np.ndarray:
    """[h, w, channels] float32 from 0 to 255 -> as data.toml asks."""
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    if how.channels == "BGR":
        values = values[:, :, ::-1]
    values = values * np.float32(how.scale)
    values -= mean
    values /= std
    if how.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    dtype = np.dtype(how.dtype)
    if dtype.kind in "iu":
        values = values.round()
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise UsageError(
                f"{path}: values from {values.min():g} to {values.max():g} do not fit {dtype}; "
                "correct scale, mean, std or dtype in data.toml"
            )
    return np.ascontiguousarray(values.astype(dtype))


# --- what is said about them

KINDS = {
    "turned": "{} have an EXIF orientation and were turned by it (`exif = false` in data.toml "
    "takes them as stored)",
    "not turned": "{} have an EXIF orientation, which `exif = false` in data.toml leaves out: "
    "viewers show them otherwise",
    "alpha": "{} have an alpha channel ({transparent} with transparent pixels) and were laid over "
    '{alpha} (`alpha` in data.toml: "white", "black" or "drop")',
    "dropped": "{} have an alpha channel ({transparent} with transparent pixels), which "
    '`alpha = "drop"` in data.toml leaves out: their stored colours are taken',
    "vanished": "{} are all of one colour once they are laid over {alpha}: what they show lies in "
    "their alpha channel alone (another `alpha` in data.toml?)",
    "grey": "{} are greyscale, repeated into three channels",
    "colour": '{} are in colour and were turned grey (`channels = "L"` in data.toml)',
    "16-bit": "{} are 16-bit grey, scaled so that 65535 is white (255)",
    "12-bit": "{} are stored as 16-bit grey, but hold no value over 4095 of 65535: if they have "
    "fewer bits, they are far too dark like this; save them with their white at 65535, or in 8 "
    "bits",
    "1-bit": "{} are black and white in 1 bit, taken as 0 and 255",
    "palette": "{} have a palette, taken as the colours in it",
    "CMYK": "{} are CMYK, converted to RGB without a colour profile",
    "frames": "{} hold several frames or pages, of which the first was taken",
}


def describe(counts: Mapping[str, int], total: int, how: Preprocessing) -> list[str]:
    """In words, what was done with how many of `total` images. `counts`: kind -> images."""
    said = []
    for kind, words in KINDS.items():
        asked = {"turned": how.exif, "not turned": not how.exif}
        asked |= {"alpha": how.alpha != "drop", "dropped": how.alpha == "drop"}
        source = {"not turned": "turned", "dropped": "alpha"}.get(kind, kind)
        if counts.get(source) and asked.get(kind, True):
            images = f"{counts[source]} of {total} images"
            said.append(
                words.format(images, transparent=counts.get("transparent", 0), alpha=how.alpha)
            )
    return said


def advice(shape: Shape, dtype: np.dtype, expected: Shape, wanted: np.dtype) -> str | None:
    """The line of data.toml that makes images of a shape and dtype what a model takes."""
    lines = []
    if len(expected) == 3 and shape != expected:
        channels_last = expected[-1] in (1, 3) and expected[0] not in (1, 3)
        channels, high, wide = (
            (expected[2], *expected[:2]) if channels_last else (expected[0], *expected[1:])
        )
        mine_last = shape[-1] in (1, 3) and shape[0] not in (1, 3)
        mine, mine_high, mine_wide = (shape[2], *shape[:2]) if mine_last else shape
        if channels_last != mine_last:
            lines.append(f'layout = "{"NHWC" if channels_last else "NCHW"}"')
        if channels != mine and channels in (1, 3):
            lines.append(f'channels = "{"L" if channels == 1 else "RGB"}"')
        if (high, wide) != (mine_high, mine_wide):
            lines += [f"size = {max(high, wide)}", f"crop = [{high}, {wide}]"]
    whole = wanted.kind in "iu" and dtype.kind == "f"
    if wanted != dtype and (whole or wanted.kind == "f"):
        names = {"uint8", "int8", "float16", "float32", "float64"}
        take = wanted.name if wanted.name in names else "uint8"
        lines.append(f'dtype = "{take}"')
        if whole:
            shift = "mean = [128]" if wanted.name == "int8" else "no scale, mean and std"
            return f"write {', '.join(lines)} and {shift} in data.toml"
    return f"write {', '.join(lines)} in data.toml" if lines else None


def quoted(names: tuple[str, ...] | list[str], most: int = 6) -> str:
    """Names as a TOML array, cut off where there are many."""
    shown = [toml_string(name) for name in names[:most]]
    return f"[{', '.join([*shown, *(['…'] if len(names) > most else [])])}]"
