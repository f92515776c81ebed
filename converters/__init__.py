"""Readers and writers of the model formats: what a format must be able to do, and which there are.

A folder here whose module `format` defines `FORMAT` is all that one more model format needs.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Reference(Protocol):
    """A model, opened by what defines its format: it computes what the model means."""

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Arrays by input name -> arrays in the order of the outputs asked for."""


class ModelFormat(Protocol):
    """One format of model files."""

    name: str
    title: str
    suffixes: tuple[str, ...]
    """Of its files; the first is that of prepared models."""

    def recognize(self, head: bytes) -> bool:
        """Whether a file that begins so may be of this format."""

    def read(
        self, path: Path, shapes: dict[str, list[int]], batch: int | None, folder: Path
    ) -> dict[str, Any]:
        """Check the file, write `model` with its suffix, static and safe, to `folder`, and give the
        facts of records.Model. In a worker process, whose memory and time are limited.

        Raises UsageError where the file is damaged, foreign or unsafe, or shapes do not fit;
        UnsupportedError where it is sound but beyond what can be run.
        """

    def reference(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Reference:
        """The prepared model in the framework that defines its format; in a worker process."""

    def reference_version(self) -> str:
        """Of that framework's package, without importing it; "none" where it is not installed."""


@cache
def formats() -> tuple[ModelFormat, ...]:
    """In the order in which a file is tried."""
    folders = sorted(path.parent.name for path in Path(__file__).parent.glob("*/format.py"))
    found = [import_module(f"onmetal.converters.{name}.format").FORMAT for name in folders]
    return tuple(sorted(found, key=lambda form: form.name == "onnx"))  # any other bytes may be it


def format_named(name: str) -> ModelFormat:
    return next(form for form in formats() if form.name == name)
