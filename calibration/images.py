"""Image files as a model's input: data.toml, labels.csv, and one image read by Pillow."""

import csv
import math
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from onmetal.errors import UsageError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Preprocessing(Struct, frozen=True, forbid_unknown_fields=True):
    """data.toml: how an image file becomes a model's input."""

    size: Annotated[int, Meta(gt=0)] | None = None
    crop: tuple[Annotated[int, Meta(gt=0)], Annotated[int, Meta(gt=0)]] | None = None
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "float16", "float64", "uint8", "int8"] = "float32"


def read_preprocessing(path: Path) -> Preprocessing:
    """A folder's data.toml. Raises UsageError, naming the key, where it is missing or wrong."""
    try:
        fields = tomllib.loads((path / "data.toml").read_text("utf-8"))
        how = msgspec.convert(fields, Preprocessing)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: a folder of images needs a data.toml that says how to make an input of one "
            "(size, crop, channels, scale, mean, std, layout, dtype)"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path / 'data.toml'}: {error}") from None
    depth = 1 if how.channels == "L" else 3
    for key, statistics in (("mean", how.mean), ("std", how.std)):
        if len(statistics) not in (1, depth):
            raise UsageError(
                f"{path / 'data.toml'}: {key} has {len(statistics)} values for {depth} channels"
            )
    if not all(map(math.isfinite, (how.scale, *how.mean, *how.std))):
        raise UsageError(f"{path / 'data.toml'}: scale, mean and std must be finite numbers")
    if 0.0 in how.std:
        raise UsageError(f"{path / 'data.toml'}: std must not be zero")
    return how


def read_labels(path: Path) -> tuple[list[Path], np.ndarray]:
    """labels.csv: the image files, and their labels as int64 where all are whole, else float32."""
    table = path / "labels.csv"
    try:
        with table.open(encoding="utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{table}: cannot read it: {error}") from None
    files, values = [], []
    for number, row in enumerate(rows, 2):
        name, label = row.get("file"), row.get("label")
        if not name or label is None:
            raise UsageError(f"{table} line {number}: wants the two columns file,label")
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise UsageError(f"{table} line {number}: {name} lies outside the folder")
        if not file.is_file():
            raise UsageError(f"{table} line {number}: there is no file {name}")
        try:
            values.append(float(label))
        except ValueError:
            raise UsageError(f"{table} line {number}: the label {label!r} is no number") from None
        files.append(file)
    found = np.array(values)
    if all(value.is_integer() for value in values):
        return files, found.astype(np.int64)
    return files, found.astype(np.float32)


def read(path: Path, how: Preprocessing) -> np.ndarray:
    """One image file as the model's input: (x * scale - mean) / std, in the layout asked for.

    The shorter side is scaled to `size` (bilinear, antialiased), then `crop` [h, w] is cut out of
    the middle. Raises UsageError where the file is no image or is smaller than the crop.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UsageError(
                    f"{path}: more than 8 bits a channel ({image.mode}), which would be clipped; "
                    "give such data as .npz"
                )
            pixels = image.convert("L" if how.channels == "L" else "RGB")
    except UsageError:
        raise
    except Exception as error:  # each of Pillow's readers has its own
        raise UsageError(f"{path}: a broken image ({error})") from None
    if how.size:
        short = min(pixels.size)
        width, height = (max(1, side * how.size // short) for side in pixels.size)
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    if how.crop:
        high, wide = how.crop
        if pixels.height < high or pixels.width < wide:
            raise UsageError(
                f"{path}: {pixels.width}x{pixels.height} pixels are too few for the crop "
                f"{wide}x{high}; set `size` in data.toml"
            )
        left, top = (pixels.width - wide) // 2, (pixels.height - high) // 2
        pixels = pixels.crop((left, top, left + wide, top + high))
    values = np.atleast_3d(np.asarray(pixels, np.float32))
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
