"""data.toml: how image files are converted to a model's input."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from onmetal.errors import UsageError
from onmetal.files.reading import TOML_BYTES, linked, parse_toml, read_bytes
from onmetal.files.task_settings import TaskSettings
from onmetal.records import Shape
from onmetal.texts.quoting import toml_string

LEVELS = 16
"""The least number of integer values that there must be between black and white."""
Side = Annotated[int, Meta(gt=0, le=65_535)]


class Preprocessing(Struct, frozen=True, forbid_unknown_fields=True):
    """data.toml: how an image file becomes a model's input, and what its classes are called."""

    size: Side | None = None
    crop: tuple[Side, Side] | None = None
    resize: tuple[Side, Side] | None = None
    letterbox: tuple[Side, Side] | None = None
    fill: Annotated[int, Meta(ge=0, le=255)] = 114
    """The grey around a letterboxed image."""
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "float16", "float64", "uint8", "int8"] = "float32"
    exif: bool = True
    """Whether images are turned as their EXIF orientation says."""
    alpha: Literal["white", "black", "drop"] = "white"
    """The colour that transparent pixels are laid over; `drop`: their stored colours are used."""
    classes: tuple[str, ...] | None = None
    """The names of the model's scores, in order: as data.toml has them, or the sorted names."""


def read_preprocessing(path: Path, within: Path | None = None) -> Preprocessing:
    """What a folder's data.toml says of images; as `read_settings`."""
    return read_settings(path, within)[0]


def read_settings(path: Path, within: Path | None = None) -> tuple[Preprocessing, TaskSettings]:
    """A folder's data.toml. Raises UsageError, naming the key, where it is missing or wrong.

    `within`: as `open_regular` has it.
    """
    table = path / "data.toml"
    of_task = TaskSettings.__struct_fields__
    keys = ", ".join((*Preprocessing.__struct_fields__, *of_task))
    try:
        text = read_bytes(table, TOML_BYTES, within).decode("utf-8-sig")
        entries = parse_toml(text)
        task_entries = {key: entries.pop(key) for key in of_task if key in entries}
        preprocessing = msgspec.convert(entries, Preprocessing)
        task = msgspec.convert(task_entries, TaskSettings)
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
    if fault := _fault(preprocessing) or task.fault():
        raise UsageError(f"{table}: {fault}")
    return preprocessing, task


def _fault(preprocessing: Preprocessing) -> str | None:
    """The fault of a data.toml whose keys and types are right; None where it has none."""
    scaled = [k for k in ("resize", "letterbox") if getattr(preprocessing, k)]
    scaled += ["size"] if preprocessing.size or preprocessing.crop else []
    if len(scaled) > 1:
        names = "size and crop, resize, letterbox"
        return f"{scaled[0]} and {scaled[1]} exclude each other: give one of {names}"
    depth = 1 if preprocessing.channels == "L" else 3
    for key, statistics in (("mean", preprocessing.mean), ("std", preprocessing.std)):
        if len(statistics) not in (1, depth):
            return f"{key} has {len(statistics)} values for {depth} channels"
    with np.errstate(over="ignore"):
        if not np.isfinite(
            np.array([preprocessing.scale, *preprocessing.mean, *preprocessing.std], np.float32)
        ).all():
            return "scale, mean and std must be finite numbers, in 32 bits too"
        if 0.0 in np.array(preprocessing.std, np.float32):
            return "std must not be zero, nor vanish in 32 bits"
    if np.dtype(preprocessing.dtype).kind in "iu":
        between = min(255 * abs(preprocessing.scale / std) for std in preprocessing.std)
        if between < LEVELS:
            return (
                f'dtype = "{preprocessing.dtype}" rounds to whole numbers, and scale, mean and '
                "std leave "
                f"{between:.3g} between black and white: leave scale, mean and std out"
            )
    if preprocessing.classes is not None:
        name, times = (
            Counter(preprocessing.classes).most_common(1)[0] if preprocessing.classes else ("", 0)
        )
        if times > 1:
            return f"classes holds {name!r} twice"
        if not preprocessing.classes or not all(name.strip() for name in preprocessing.classes):
            return "classes must be the names of the model's scores, in order"
    return None


def advice(shape: Shape, dtype: np.dtype, expected: Shape, expected_dtype: np.dtype) -> str | None:
    """Advice on the lines of data.toml that convert images of `shape` and `dtype` to the shape and
    dtype that a model expects; None where no line would help."""
    lines = []
    if len(expected) == 3 and shape != expected:
        channels_last = expected[-1] in (1, 3) and expected[0] not in (1, 3)
        channels, high, wide = (
            (expected[2], *expected[:2]) if channels_last else (expected[0], *expected[1:])
        )
        given_last = shape[-1] in (1, 3) and shape[0] not in (1, 3)
        given_channels, given_high, given_wide = (shape[2], *shape[:2]) if given_last else shape
        if channels_last != given_last:
            lines.append(f'layout = "{"NHWC" if channels_last else "NCHW"}"')
        if channels != given_channels and channels in (1, 3):
            lines.append(f'channels = "{"L" if channels == 1 else "RGB"}"')
        if (high, wide) != (given_high, given_wide):
            lines += [f"size = {max(high, wide)}", f"crop = [{high}, {wide}]"]
    whole = expected_dtype.kind in "iu" and dtype.kind == "f"
    if expected_dtype != dtype and (whole or expected_dtype.kind == "f"):
        names = {"uint8", "int8", "float16", "float32", "float64"}
        named_dtype = expected_dtype.name if expected_dtype.name in names else "uint8"
        lines.append(f'dtype = "{named_dtype}"')
        if whole:
            shift = "mean = [128]" if expected_dtype.name == "int8" else "no scale, mean and std"
            return f"write {', '.join(lines)} and {shift} in data.toml"
    return f"write {', '.join(lines)} in data.toml" if lines else None


def quoted(names: tuple[str, ...] | list[str], most: int = 6) -> str:
    """Names as a TOML array, cut off where there are many."""
    shown = [toml_string(name) for name in names[:most]]
    return f"[{', '.join([*shown, *(['…'] if len(names) > most else [])])}]"
