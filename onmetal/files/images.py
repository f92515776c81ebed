"""Reads an image file by Pillow as a model's input, and describes how images were converted."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from onmetal.errors import UsageError
from onmetal.files.image_files import opened
from onmetal.files.placing import placed
from onmetal.files.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image


MOST_INPUT_PIXELS = 1 << 25
"""Most pixels of a model's input, in numbers of 32 bits; half as many in numbers of 64."""

BAND_ROWS = 256

ORIENTATION = 0x0112
"""The EXIF tag: 1 as stored, 2 to 8 mirrored or turned."""
WHITE_16 = 257
"""65535 / 255: a 16-bit grey value over this is one from 0 to 255."""

GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


def read(path: Path, preprocessing: Preprocessing, within: Path | None = None) -> np.ndarray:
    """One image file as the model's input: (x * scale - mean) / std, in the layout asked for.

    It is turned as EXIF says, transparency is laid over a colour, the shorter side is scaled to
    `size` (bilinear, antialiased), then `crop` [h, w] is cut out of the middle. `within`: as
    `open_regular` has it. Raises UsageError where the file is no image of FORMATS, is too large
    or is smaller than the crop.
    """
    return read_with_kinds(path, preprocessing, within)[0]


def read_with_kinds(
    path: Path, preprocessing: Preprocessing, within: Path | None = None
) -> tuple[np.ndarray, frozenset[str]]:
    """-> the input as by `read`; the conversions beyond those that data.toml asks for: keys of
    KINDS."""
    kinds: set[str] = set()
    with opened(path, within) as image:
        form = image.format
        upright = _upright(image, preprocessing, kinds)
        if upright.mode in (*GREY, *COLOUR):
            pixels = _opaque(upright, preprocessing, kinds)
        else:
            pixels = _grey_16(path, upright, form, preprocessing, kinds)
        values = np.atleast_3d(np.asarray(_cut(path, pixels, preprocessing), np.float32))
    if preprocessing.channels != "L" and values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    return _normalized(path, values, preprocessing), frozenset(kinds)


def _upright(image: "Image", preprocessing: Preprocessing, kinds: set[str]) -> "Image":
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
    inverse = {Transpose.ROTATE_270: Transpose.ROTATE_90, Transpose.ROTATE_90: Transpose.ROTATE_270}
    # not n_frames, for which some readers go over all of them
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a camera's preview
        kinds.add("frames")
    by_pillow = image.format == "TIFF"  # Pillow turns it while it loads
    turn = turns.get(orientation(image)) if by_pillow else None
    image.load()
    if not by_pillow:
        turn = turns.get(orientation(image))  # in a PNG it may follow the pixels
    if turn is None:
        return image
    kinds.add("turned")
    if by_pillow == preprocessing.exif:
        return image
    info, turned = image.info, image.transpose(inverse.get(turn, turn) if by_pillow else turn)
    turned.info = info  # holds which colour is transparent
    image.close()  # its pixels are many
    return turned


def orientation(image: "Image") -> int:
    """The EXIF orientation, 1 to 8; 1 also where there is none."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF data are ignored, as viewers do
        return 1
    return int(value) if value in range(1, 9) else 1


def _opaque(image: "Image", preprocessing: Preprocessing, kinds: set[str]) -> "Image":
    """The pixels in 8 bits, RGB or grey as `channels` asks, without transparency."""
    if image.mode in ("1", "P", "PA", "CMYK"):
        kinds.add({"1": "1-bit", "CMYK": "CMYK"}.get(image.mode, "palette"))
    if preprocessing.channels != "L" and image.mode in GREY:
        kinds.add("grey")
    elif preprocessing.channels == "L" and image.mode not in GREY:
        kinds.add("colour")
    if not image.has_transparency_data:
        pixels = image if image.mode in ("L", "RGB") else image.convert("RGB")
    else:
        pixels = image if image.mode == "RGBA" else image.convert("RGBA")
        kinds.add("alpha")
        if pixels.getchannel("A").getextrema()[0] != 255:
            kinds.add("transparent")
        if preprocessing.alpha != "drop":
            _lay_over(pixels, preprocessing.alpha)
            if "transparent" in kinds and pixels.getcolors(1):
                kinds.add("vanished")
        if pixels is not image:
            image.close()  # its pixels are many
        pixels = pixels.convert("RGB")
    wanted_mode = "L" if preprocessing.channels == "L" else "RGB"
    return pixels if pixels.mode == wanted_mode else pixels.convert(wanted_mode)


def _lay_over(pixels: "Image", colour: str) -> None:
    """Lay the pixels over a colour, in place and a band of rows at a time: memory may have room for
    the image only once."""
    from PIL import Image

    for top in range(0, pixels.height, BAND_ROWS):
        band = pixels.crop((0, top, pixels.width, min(top + BAND_ROWS, pixels.height)))
        pixels.paste(Image.alpha_composite(Image.new("RGBA", band.size, colour), band), (0, top))


def _grey_16(
    path: Path, image: "Image", form: str | None, preprocessing: Preprocessing, kinds: set[str]
) -> "Image":
    """16-bit grey as floats from 0 to 255, so that nothing is clipped or rounded."""
    from PIL import Image

    if not image.mode.startswith("I;16") and not (image.mode == "I" and form in ("PNG", "PPM")):
        raise UsageError(
            f"{path}: its pixels are {image.mode!r}, whose black and white are not known; save it "
            "as 8-bit grey or RGB, or give such data as .npz"
        )
    kinds.add("16-bit")
    if preprocessing.channels != "L":
        kinds.add("grey")
    values = np.asarray(image).astype(np.float32)
    if values.max() < 4096:
        kinds.add("12-bit")
    transparent_mask = values == image.info.get("transparency", -1)
    values /= WHITE_16
    if transparent_mask.any():
        kinds |= {"alpha", "transparent"}
        if preprocessing.alpha != "drop":
            values[transparent_mask] = 255 if preprocessing.alpha == "white" else 0
    return Image.fromarray(values)


def _cut(path: Path, pixels: "Image", preprocessing: Preprocessing) -> "Image":
    """The pixels scaled, and cropped or laid on a grey ground."""
    from PIL import Image
    from PIL.Image import Resampling

    place = placed(pixels.size, preprocessing)
    if preprocessing.size or preprocessing.resize or preprocessing.letterbox:
        _check_input(path, *place.scaled, preprocessing)
        pixels = pixels.resize(place.scaled, Resampling.BILINEAR)
    wide, high = place.canvas
    if preprocessing.crop:
        if pixels.height < high or pixels.width < wide:
            raise UsageError(
                f"{path}: {pixels.width}x{pixels.height} pixels are too few for the crop "
                f"{wide}x{high}; set `size` in data.toml"
            )
        _check_input(path, wide, high, preprocessing)
        pixels = pixels.crop((-place.left, -place.top, wide - place.left, high - place.top))
    _check_input(path, wide, high, preprocessing)
    if preprocessing.letterbox:
        grey = preprocessing.fill
        ground = Image.new(
            pixels.mode, place.canvas, grey if len(pixels.getbands()) == 1 else (grey,) * 3
        )
        ground.paste(pixels, (place.left, place.top))
        pixels = ground
    return pixels


def _check_input(path: Path, width: int, height: int, preprocessing: Preprocessing) -> None:
    """Refuse an input that is too large before it is computed: `size` can enlarge a narrow strip to
    any number of pixels."""
    most = MOST_INPUT_PIXELS * 4 // max(4, np.dtype(preprocessing.dtype).itemsize)
    if width * height > most:
        raise UsageError(
            f"{path}: as data.toml asks, {width}x{height} pixels would be made of it, and the most "
            f"are {most}; set a smaller `size` or `crop`, or cut the image"
        )


def _normalized(path: Path, values: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """[h, w, channels] float32 from 0 to 255 -> scaled, in the layout and dtype of data.toml."""
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    if preprocessing.channels == "BGR":
        values = values[:, :, ::-1]
    values = values * np.float32(preprocessing.scale)
    values -= mean
    values /= std
    if preprocessing.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    dtype = np.dtype(preprocessing.dtype)
    if dtype.kind in "iu":
        values = values.round()
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise UsageError(
                f"{path}: values from {values.min():g} to {values.max():g} do not fit {dtype}; "
                "correct scale, mean, std or dtype in data.toml"
            )
    return np.ascontiguousarray(values.astype(dtype))


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


def describe(counts: Mapping[str, int], total: int, preprocessing: Preprocessing) -> list[str]:
    """Sentences about the conversions of the `total` images. `counts`: key of KINDS -> number of
    images."""
    sentences = []
    for kind, words in KINDS.items():
        applies = {"turned": preprocessing.exif, "not turned": not preprocessing.exif}
        applies |= {
            "alpha": preprocessing.alpha != "drop",
            "dropped": preprocessing.alpha == "drop",
        }
        source = {"not turned": "turned", "dropped": "alpha"}.get(kind, kind)
        if counts.get(source) and applies.get(kind, True):
            images = f"{counts[source]} of {total} images"
            sentences.append(
                words.format(
                    images, transparent=counts.get("transparent", 0), alpha=preprocessing.alpha
                )
            )
    return sentences
