"""A user's own metric: how it is loaded and called, and the errors where it fails."""

import contextlib
import math
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from onmetal.calibration.metric_table import Metric, equal, mean
from onmetal.calibration.user_functions import import_callable
from onmetal.errors import UsageError, named
from onmetal.files.stored import Outputs, StoredArray


def custom(asked: str) -> Metric:
    """A user's `f(outputs: dict[str, ndarray], labels: ndarray) -> float`."""
    function = import_callable(asked, "--metric")
    if not callable(function):
        raise UsageError(f"--metric {asked}: it is not a function")
    better = bool(getattr(function, "higher_is_better", True))
    return Metric(asked, equal, mean, better, proportion=False, resamples=200, function=function)


def call_custom(metric: Metric, outputs: dict[str, np.ndarray], labels: np.ndarray) -> float:
    """What a user's own metric returns. Raises UsageError with what went wrong in it, and where."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            value = metric.function(outputs, labels)
    except (Exception, SystemExit) as error:  # the user's own code
        raise UsageError(
            f"--metric {metric.name}: it failed with {named(error)}"
            f"{_place_of_error(error)}; it was given the outputs {_described_outputs(outputs)} and "
            f"the labels {labels.dtype}{list(labels.shape)}"
        ) from None
    try:
        if isinstance(value, (str, bytes)) or np.ndim(value) or not hasattr(value, "__float__"):
            kind = f"an array of shape {list(np.shape(value))}" if np.ndim(value) else repr(value)
            raise UsageError(
                f"--metric {metric.name}: it must return one number, and returned {kind[:100]}"
            )
        return float(value)
    except UsageError:
        raise
    except Exception as error:  # of a value of the user's own kind
        raise UsageError(
            f"--metric {metric.name}: what it returned is no number: {named(error)}"
        ) from None


def _place_of_error(error: BaseException) -> str:
    """The last line of the user's own code in an error's traceback, as text; else empty."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own_frames = [f for f in frames if "site-packages" not in f.filename] or frames
    return (
        f" ({own_frames[-1].filename} line {own_frames[-1].lineno}: {own_frames[-1].line})"
        if own_frames
        else ""
    )


def _described_outputs(outputs: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name!r} {o.dtype}{list(o.shape)}" for name, o in outputs.items())


def try_custom(metric: Metric, outputs: dict[str, np.ndarray], labels: np.ndarray) -> None:
    """Refuse a user's own metric that fails on a few samples, before anything long begins.

    `outputs`: every output of the original model by name, first axis = samples.
    """
    value = call_custom(metric, outputs, labels)
    if not math.isfinite(value):
        raise UsageError(
            f"--metric {metric.name}: it returned {value} for the original model's outputs "
            f"{_described_outputs(outputs)} on {len(labels)} samples: it must be a finite number"
        )


MOST_BYTES = 1 << 28
"""Most bytes of all outputs together that may be copied: for each resample, a user's metric is
called with copies."""


class ReadOutputs(dict[str, np.ndarray]):
    """The outputs for a user's metric: a dict of arrays that notes which of them are read. Those of
    all samples are memory-mapped, so that the metric alone decides what it holds in memory."""

    def __init__(
        self, outputs: Mapping[str, Outputs], selection: np.ndarray | None, read: set[str]
    ) -> None:
        super().__init__(
            {name: _select(output, selection, MOST_BYTES) for name, output in outputs.items()}
        )
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        array = super().__getitem__(name)
        self._read.add(name)
        return array

    def __iter__(self) -> Iterator[str]:
        """As a dict's own. Since this class overrides it, dict(outputs), **outputs, outputs | {}
        and the like call __getitem__ for each array instead of bypassing it."""
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self._read.add(name)
        return super().pop(name, *default)

    def popitem(self) -> tuple[str, np.ndarray]:
        name, array = super().popitem()
        self._read.add(name)
        return name, array

    def setdefault(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().setdefault(name, default)

    def copy(self) -> dict[str, np.ndarray]:
        return dict(self)

    def items(self) -> Any:
        self._read.update(self)
        return super().items()

    def values(self) -> Any:
        self._read.update(self)
        return super().values()


def _select(output: Outputs, selection: np.ndarray | None, most_bytes: int) -> np.ndarray:
    if selection is not None:
        return np.asarray(output[selection])
    if isinstance(output, StoredArray) and output.nbytes > most_bytes:
        mapped: np.ndarray = np.load(output.path, mmap_mode="r", allow_pickle=False)
        return mapped
    return np.asarray(output[:])
