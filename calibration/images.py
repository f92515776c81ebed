"""Image files as a model's input: data.toml, and one image read by Pillow."""

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from onmetal.errors import UsageError
from onmetal.quoting import toml_string
from onmetal.records import Shape

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

SUFFIXES = tuple(
    ".bmp .gif .jfif .jpeg .jpg .pbm .pgm .png .ppm .tif .tiff .webp".split()  # noqa: SIM905
)

ORIENTATION = 0x0112
"""The EXIF tag: 1 as stored, 2 to 8 mirrored or turned."""
WHITE_16 = 257
"""65535 / 255: a 16-bit grey value over this is one from 0 to 255."""
LEVELS = 16
"""Whole values of an integer dtype that must be left between black and white."""

GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


class Preprocessing(Struct, frozen=True, forbid_unknown_fields=True):
    """data.toml: how an image file becomes a model's input, and what its classes are called."""

    size: Annotated[int, Meta(gt=0)] | None = None
    crop: tuple[Annotated[int, Meta(gt=0)], Annotated[int, Meta(gt=0)]] | None = None
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


def read_preprocessing(path: Path) -> Preprocessing:
    """A folder's data.toml. Raises UsageError, naming the key, where it is missing or wrong."""
    table = path / "data.toml"
    keys = ", ".join(Preprocessing.__struct_fields__)
    try:
        how = msgspec.convert(tomllib.loads(table.read_text("utf-8-sig")), Preprocessing)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: a folder of images needs a data.toml that says how to make an input of one "
            f"({keys})"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{table}: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{table}: {error} (its keys: {keys})") from None
    if wrong := _wrong(how):
        raise UsageError(f"{table}: {wrong}")
    return how


def _wrong(how: Preprocessing) -> str | None:
    """What cannot be meant in a data.toml whose keys and types are right."""
    depth = 1 if how.channels == "L" else 3
    for key, statistics in (("mean", how.mean), ("std", how.std)):
        if len(statistics) not in (1, depth):
            return f"{key} has {len(statistics)} values for {depth} channels"
    if not all(map(math.isfinite, (how.scale, *how.mean, *how.std))):
        return "scale, mean and std must be finite numbers"
    if 0.0 in how.std:
        return "std must not be zero"
    if np.dtype(how.dtype).kind in "iu":
        between = min(255 * abs(how.scale / std) for std in how.std)
        if between < LEVELS:
            return (
                f'dtype = "{how.dtype}" rounds to whole numbers, and scale, mean and std leave '
                f"{between:.3g} between black and white: leave scale, mean and std out"
            )
    if how.classes is not None:
        if double := next((n for n in how.classes if how.classes.count(n) > 1), None):
            return f"classes holds {double!r} twice"
        if not how.classes or not all(name.strip() for name in how.classes):
            return "classes must be the names of the model's scores, in order"
    return None


# --- one image


def read(path: Path, how: Preprocessing) -> np.ndarray:
    """One image file as the model's input: (x * scale - mean) / std, in the layout asked for.

    It is turned as EXIF says, transparency is laid over a colour, the shorter side is scaled to
    `size` (bilinear, antialiased), then `crop` [h, w] is cut out of the middle. Raises UsageError
    where the file is no image or is smaller than the crop.
    """
    return read_with_kinds(path, how)[0]


def read_with_kinds(path: Path, how: Preprocessing) -> tuple[np.ndarray, frozenset[str]]:
    """`read`, and what was done with the image beyond what data.toml asks: keys of KINDS."""
    from PIL import Image

    kinds: set[str] = set()
    try:
        with Image.open(path) as image:
            upright = _upright(image, how, kinds)
            if upright.mode in (*GREY, *COLOUR):
                pixels = _opaque(upright, how, kinds)
            else:
                pixels = _grey_16(path, upright, image.format, how, kinds)
    except UsageError:
        raise
    except Exception as error:  # each of Pillow's readers has its own
        raise UsageError(f"{path}: a broken image ({error})") from None
    values = np.atleast_3d(np.asarray(_cut(path, pixels, how), np.float32))
    if how.channels != "L" and values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    return _normalized(path, values, how), frozenset(kinds)


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
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a camera's, with a preview
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
    return turned


def _orientation(image: "Image", turns: Mapping[int, "Transpose"]) -> "Transpose | None":
    try:
        return turns.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF is passed over, as viewers do
        return None


def _opaque(image: "Image", how: Preprocessing, kinds: set[str]) -> "Image":
    """In 8 bits, RGB or grey as `channels` asks, without transparency."""
    from PIL import Image

    if image.mode in ("1", "P", "PA", "CMYK"):
        kinds.add({"1": "1-bit", "CMYK": "CMYK"}.get(image.mode, "palette"))
    if how.channels != "L" and image.mode in GREY:
        kinds.add("grey")
    elif how.channels == "L" and image.mode not in GREY:
        kinds.add("colour")
    if not image.has_transparency_data:
        pixels = image if image.mode == "L" else image.convert("RGB")
    else:
        pixels = image.convert("RGBA")
        kinds.add("alpha")
        if pixels.getchannel("A").getextrema()[0] != 255:
            kinds.add("transparent")
        if how.alpha != "drop":
            pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, how.alpha), pixels)
            flat = np.asarray(pixels).reshape(-1, 4)
            if "transparent" in kinds and (flat == flat[0]).all():
                kinds.add("vanished")
        pixels = pixels.convert("RGB")
    return pixels.convert("L" if how.channels == "L" else "RGB")


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
        pixels = pixels.resize((width, height), Resampling.BILINEAR)
    if how.crop:
        high, wide = how.crop
        if pixels.height < high or pixels.width < wide:
            raise UsageError(
                f"{path}: {pixels.width}x{pixels.height} pixels are too few for the crop "
                f"{wide}x{high}; set `size` in data.toml"
            )
        left, top = (pixels.width - wide) // 2, (pixels.height - high) // 2
        pixels = pixels.crop((left, top, left + wide, top + high))
    return pixels


def _normalized(path: Path, values: np.ndarray, how: Preprocessing) -> np.ndarray:
    """[h, w, channels] float32 from 0 to 255 -> as data.toml asks."""
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    if how.channels == "BGR":
        values = values[:, :, ::-1]
    values = (values * np.float32(how.scale) - mean) / std
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
