"""`onmetal.deploy(…)`: models and data in memory become files, and options those of the command
line, so that everything after that is one path."""

import io
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from onmetal import budget, costs
from onmetal.converters import live_models
from onmetal.deploy import from_options, run
from onmetal.errors import UsageError
from onmetal.files.cache import Cache
from onmetal.progress import Progress
from onmetal.reports.record import Document
from onmetal.texts.suggest import did_you_mean

NAME = re.compile(r"[\w-][\w.-]{0,99}", re.ASCII)
CHOICES = {
    "minimize": tuple(cost.name for cost in costs.GOALS),
    "golden": ("real", "random", "none"),
}
DEFAULTS = {"minimize": costs.LATENCY.name, "golden": "real"}
NUMBERS = ("max_accuracy_drop", "min_accuracy")
"""Options that may be plain numbers: they are in the metric's own units."""
BYTES = ("max_size", "max_memory")
"""Options that may be whole numbers: they are bytes."""
SWITCHES = (
    *("no_device", "force", "keep_paths", "quick", "thorough"),
    *("dry_run", "follow_links", "trust"),
)
MODEL_KINDS = "the path of a model file, a PyTorch module or exported program, or a Keras model"


def deploy(
    model: Any,
    *,
    example_inputs: Any,
    name: str | None,
    data: Any,
    calibration_data: Any,
    progress: bool,
    **options: Any,
) -> Document:
    """As `onmetal.deploy`, with a value for every option."""
    with Cache() as cache, cache.scratch() as folder:
        models, notes = _model_paths(model, example_inputs, name, folder)
        given = {
            **_texts(options),
            "data": _data(data, "data", folder),
            "calibration_data": _data(calibration_data, "calibration_data", folder),
        }
        request = replace(from_options.deployment(models, given), notes=tuple(notes))
        steps = 5 if request.device == "none" else 7
        shown = Progress(steps) if progress else Progress(steps, io.StringIO())
        document = run.deploy(request, shown).document
        shown.clear()
        return _named(document, folder)


def _named(document: Document, folder: Path) -> Document:
    """The document with the names alone of what lay in the temporary folder, which is gone."""
    models = [replace(entry, path=_inside(entry.path, folder)) for entry in document.models]
    data = replace(document.data, source=_inside(document.data.source, folder))
    return replace(document, models=models, data=data)


def _inside(path: str, folder: Path) -> str:
    return path.removeprefix(f"{folder}{os.sep}")


# --- the model


def _model_paths(
    model: Any, example_inputs: Any, name: str | None, folder: Path
) -> tuple[list[Path], list[str]]:
    """The files of the models; an object is written to `folder`. -> notes about how that was done.

    Raises UsageError where there is no such kind of model.
    """
    several = model if isinstance(model, list | tuple) else [model]
    if several and all(isinstance(entry, str | os.PathLike) for entry in several):
        for option, value in (("example_inputs", example_inputs), ("name", name)):
            if value is not None:
                raise UsageError(f"{option} is for models in memory; a file has its own: leave it")
        return [Path(entry) for entry in several], []
    owner = next((kind for kind in live_models() if kind.owns(model)), None)
    if owner is None:
        raise UsageError(
            f"a {type(model).__module__}.{type(model).__qualname__} is no model that is known; "
            f"give {MODEL_KINDS}"
        )
    stem = type(model).__name__.lower() if name is None else name
    if not isinstance(stem, str) or not NAME.fullmatch(stem):
        raise UsageError(
            f"name={stem!r}: letters, digits, '.', '_' and '-' make a model's name, up to 100"
        )
    path, notes = owner.save(model, example_inputs, folder, stem)
    return [path], notes


# --- data in memory


def _data(value: Any, option: str, folder: Path) -> str | None:
    """DATA as the command line takes it; arrays are written to an .npz file in `folder`."""
    if value is None:
        return None
    if isinstance(value, str | os.PathLike):
        return _path(option, value)
    if isinstance(value, tuple) and len(value) == 2 and option == "data":
        value = {"x": value[0], "y": value[1]}
    elif not isinstance(value, Mapping):
        if option == "data" or callable(value):
            raise UsageError(
                f"{option} is a {type(value).__name__}: give a path, 'MODULE:FUNCTION', a dict of "
                "arrays by the name of the input" + (", or (x, y)" if option == "data" else "")
            )
        value = {"x": value}
    arrays = {str(name): _array(array, option, str(name)) for name, array in value.items()}
    if option == "data" and "y" not in arrays:
        raise UsageError(
            "data lacks the labels, under 'y'; without labels, give it as calibration_data"
        )
    path = folder / option / "arrays.npz"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:  # np.savez takes no array that is called "file"
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return str(path)


def _array(value: Any, option: str, name: str) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor of PyTorch
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except Exception as error:
        raise UsageError(f"{option}: {name!r} cannot be made an array ({error})") from None
    if array.dtype.hasobject:
        raise UsageError(
            f"{option}: {name!r} holds Python objects, no numbers; are its samples of one shape?"
        )
    return array


# --- options


def _texts(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the command line has them. Raises UsageError for a value of a wrong type."""
    given = {**options, **{k: _chosen(k, options[k]) for k in CHOICES}}
    for option in (*_budget_names(), "time_limit"):
        given[option] = _text(option, options[option])
    given["target"] = _path("target", options["target"])
    given["out"] = None if options["out"] is None else _path("out", options["out"])
    for option in ("metric", "output", "device"):
        value = options[option]
        if value is not None and not (isinstance(value, str) and value):
            hint = "; a function of yours is named 'MODULE:FUNCTION'" if option == "metric" else ""
            raise UsageError(f"{option}={value!r}: a text is wanted{hint}")
    for option in SWITCHES:
        if not isinstance(options[option], bool):
            raise UsageError(f"{option}={options[option]!r}: True or False is wanted")
    for option in ("batch", "threads"):
        value = options[option]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UsageError(f"{option}={value!r}: a whole number is wanted")
    given["recipes"] = _recipes(options["recipes"])
    given["cut_at"] = _names(options["cut_at"])
    given["input_shape"] = _shapes(options["input_shape"])
    return given


def _path(option: str, value: Any) -> str:
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(path, str) or not path:
        raise UsageError(f"{option}={value!r}: a text or a path is wanted")
    return path


def _budget_names() -> list[str]:
    return [option[2:].replace("-", "_") for option in budget.OPTIONS]


def _text(option: str, value: Any) -> str | None:
    """A limit as it is written on the command line. A number without a unit is only passed on where
    it has but one meaning; the command line's own check says what is missing elsewhere."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise UsageError(
            f"{option}={value!r}: write it as on the command line, like '20ms' or '1%'"
        )
    number = value.item() if isinstance(value, np.number) else value
    if option in NUMBERS:
        return repr(float(number))
    if option in BYTES and number == int(number):
        return f"{int(number)}B"
    return f"{number}"


def _chosen(option: str, value: Any) -> str:
    if value is None:
        return DEFAULTS[option]
    word = value.casefold() if isinstance(value, str) else value
    if word in CHOICES[option]:
        return str(word)
    likely = did_you_mean(word, CHOICES[option]) if isinstance(word, str) else ""
    raise UsageError(f"{option}={value!r}: none of {', '.join(CHOICES[option])}{likely}")


def _recipes(value: str | Sequence[str] | None) -> str | None:
    if value is None or isinstance(value, str):
        return value
    words = list(value)
    if not words or not all(isinstance(word, str) for word in words):
        raise UsageError(f"recipes={value!r}: a text like 'fp32,int8' or a list of names is wanted")
    return ",".join(words)


def _names(value: str | Sequence[str] | None) -> list[str]:
    words = [value] if isinstance(value, str) else list(value or ())
    if not all(isinstance(word, str) for word in words):
        raise UsageError(f"cut_at={value!r}: a name or a list of names is wanted")
    return words


def _shapes(value: Any) -> list[str]:
    """{"image": (1, 3, 224, 224)} -> ["image=1,3,224,224"]"""
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise UsageError(
            f"input_shape={value!r}: a dict like {{'image': (1, 3, 224, 224)}} is wanted"
        )
    return [f"{name}={','.join(map(str, shape))}" for name, shape in value.items()]
