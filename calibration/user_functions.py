"""Functions that a user names as MODULE:FUNCTION, and the samples that one yields."""

import contextlib
import functools
import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from onmetal.calibration.matching import NAMES_ARE_NO_LABELS, match_arrays
from onmetal.errors import UsageError, named
from onmetal.files.arrays import ArrayFile
from onmetal.files.cache import Cache
from onmetal.records import Model
from onmetal.samples import Samples


def import_callable(text: str, option: str) -> Any:
    """MODULE:FUNCTION, from the folder that the command was started in or from an installation."""
    module_name, _, name = text.partition(":")
    current_folder = str(Path.cwd())
    added = current_folder not in sys.path
    if added:
        sys.path.insert(0, current_folder)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # the user's own code
        raise UsageError(f"{option} {text}: cannot import it ({named(error)})") from None
    finally:
        if added and current_folder in sys.path:  # last, for the module's later imports
            sys.path.remove(current_folder)
            sys.path.append(current_folder)


def from_function(text: str, model: Model, cache: Cache, option: str) -> Samples:
    """The samples of a user's generator, stored on disk: it runs once, however many models use
    them."""
    arrays, digest = _store_rows(text, cache, option)
    labels = arrays.get(LABEL_KEY)
    inputs = {name: array for name, array in arrays.items() if name != LABEL_KEY}
    return match_arrays(text, digest, inputs, labels, model)


@functools.cache
def _store_rows(text: str, cache: Cache, option: str) -> tuple[dict[str, ArrayFile], str]:
    """-> the arrays by name (the label as LABEL_KEY, a nameless input as `x`), and their digest."""
    function = import_callable(text, option)
    digest = hashlib.sha256()
    with cache.scratch() as scratch:
        files: dict[str, BinaryIO] = {}
        expected: dict[str, tuple[str, tuple[int, ...]]] = {}
        count = 0
        try:
            for row in _yielded_rows(function, text):
                row_types = {name: (array.dtype.str, array.shape) for name, array in row.items()}
                if not count:
                    expected = row_types
                    files = {
                        name: (scratch / f"{number}.bin").open("wb")
                        for number, name in enumerate(row_types)
                    }
                if row_types != expected:
                    raise UsageError(
                        f"{text}: sample {count} is {_in_words(row_types)}; "
                        f"sample 0 was {_in_words(expected)}"
                    )
                for name, array in row.items():
                    files[name].write(array.tobytes())
                    digest.update(array.tobytes())
                count += 1
        finally:
            for file in files.values():
                file.close()
        if not count:
            raise UsageError(f"{text}: it yielded no samples")
        digest.update(repr(expected).encode())

        def move(folder: Path) -> None:
            for file in scratch.iterdir():
                file.replace(folder / file.name)

        folder = cache.get("data", digest.hexdigest(), move)
    arrays = {
        name: ArrayFile(folder / f"{number}.bin", expected[name][0], (count, *expected[name][1]), 0)
        for number, name in enumerate(files)
    }
    for name, (dtype, _) in expected.items():
        if np.dtype(dtype).kind not in "biuf":
            description = _in_words({name: expected[name]})
            hint = (
                NAMES_ARE_NO_LABELS if name == LABEL_KEY and np.dtype(dtype).kind in "OUS" else ""
            )
            raise UsageError(f"{text}: {description}; only numbers can be given to a model{hint}")
    return arrays, digest.hexdigest()


_END = object()
LABEL_KEY = "\0label"
"""The name of the label among a generator's arrays; no input of a model has it."""


def _in_words(kinds: dict[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(
        f"{'the label' if name == LABEL_KEY else repr(name)} {np.dtype(dtype)}{list(shape)}"
        for name, (dtype, shape) in kinds.items()
    )


def _yielded_rows(function: Any, text: str) -> Iterator[dict[str, np.ndarray]]:
    """The samples of a user's generator: arrays by name, the label as LABEL_KEY."""
    try:
        samples = iter(function())
        while True:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
                item: Any = next(samples, _END)
            if item is _END:
                return
            try:
                inputs, label = item
            except (TypeError, ValueError):
                raise UsageError(f"{text}: it must yield (inputs, label) pairs") from None
            if not isinstance(inputs, dict):
                inputs = {"x": inputs}
            row = {str(name): np.asarray(array) for name, array in inputs.items()}
            if label is not None:
                row[LABEL_KEY] = np.asarray(label)
            yield row
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(f"{text}: it failed with {named(error)}") from None
