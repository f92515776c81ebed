"""Opens image files safely: only some formats, and only up to a number of pixels."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from onmetal.errors import UsageError
from onmetal.files.reading import linked, open_regular

if TYPE_CHECKING:
    from PIL.Image import Image


SUFFIXES = tuple(
    ".bmp .gif .jfif .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()  # noqa: SIM905
)
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The readers of Pillow that are used: others start programs (EPS: Ghostscript) or are hardly ever
needed. A camera's JPEG with a preview (MPO) is read by the reader of JPEG."""
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
"""The first bytes of files that are no images of FORMATS -> what such files are."""
MOST_PIXELS = 110_000_000
"""Most pixels of an image as it is stored. Cameras of 100 megapixels have as many; Pillow takes up
to 16 bytes for each while it decodes, which is within 2 GB."""
MOST_SCANS = 20 * MOST_PIXELS
"""Most pixels times scans of a JPEG: a progressive one of a few kB may ask for days of decoding."""
MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]", re.DOTALL)
"""The marker of a segment of a JPEG; other markers occur within its pixel data."""
START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = 0xD8, 0xD9, 0xDA
TILE_WIDTH, TILE_LENGTH, ROWS_PER_STRIP = 322, 323, 278
"""Tags of a TIFF."""
PLAIN_TEXT = (b"P1", b"P2", b"P3")
"""The first bytes of a PPM whose pixels are written as numbers in text."""


@contextlib.contextmanager
def opened(path: Path, within: Path | None) -> Iterator["Image"]:
    """Open an image and check its size; it is not decoded yet."""
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
    """Why a file that is no image of FORMATS is refused."""
    with open_regular(path, within) as file:
        head = file.read(64).lstrip()
    description = next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None)
    if head[4:8] == b"ftyp":
        description = "an AVIF, HEIC or video file"
    known = ", ".join(FORMATS)
    if not head:
        return "a broken image: the file is empty"
    if description is None:
        return f"a broken image, or one of another format; what is read is {known}"
    return f"this is {description}; what is read is {known}"


def _check_size(path: Path, image: "Image", file: BinaryIO) -> None:
    """Raises UsageError where the image takes too much memory or time to decode: a file of 300
    bytes may state any number of pixels."""
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise UsageError(f"{path}: it has {image.width}x{image.height} pixels, {TOO_MANY}")
    if image.format in ("JPEG", "MPO"):
        scans = count_scans(file)
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
    """The first bytes of the file. Its position stays."""
    position = file.tell()
    file.seek(0)
    head = file.read(count)
    file.seek(position)
    return head


def _tile_pixels(image: "Image") -> int:
    """The pixels of one tile or strip, which is decoded as a whole, however small the image is."""
    tags = getattr(image, "tag_v2", {})
    wide, high = tags.get(TILE_WIDTH, image.width), tags.get(TILE_LENGTH)
    if high is None:  # strips; in some files their rows are told as 2**32 - 1: all
        wide, high = image.width, min(tags.get(ROWS_PER_STRIP, image.height), image.height)
    return int(wide) * int(high)


def count_scans(file: BinaryIO) -> int:
    """How many scans a JPEG has. The position in the file stays."""
    position, count = file.tell(), 0
    file.seek(0)
    while (marker := _next_marker(file)) not in (None, END_OF_IMAGE):
        count += marker == START_OF_SCAN
        if marker != START_OF_IMAGE:
            file.seek(max(0, int.from_bytes(file.read(2), "big") - 2), os.SEEK_CUR)
    file.seek(position)
    return count


def _next_marker(file: BinaryIO) -> int | None:
    """The next marker of a JPEG, after pixels or another segment; None at its end."""
    size = 256
    while len(piece := file.read(size)) > 1:
        if marker := MARKER.search(piece):
            file.seek(marker.end() - len(piece), os.SEEK_CUR)
            return piece[marker.end() - 1]
        file.seek(-1, os.SEEK_CUR)  # the half of a marker, perhaps
        size = min(4 * size, 1 << 20)
    return None
