"""Readers and writers of the model formats: the interface of a format, and the list of formats.

One more model format needs a folder here with a module `format` that defines `FORMAT`.
"""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from onmetal.errors import UsageError


class Reference(Protocol):
    """A model opened in the framework that defines its format, whose results are the reference."""

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Arrays by input name -> arrays in the order of the requested outputs."""


class ModelFormat(Protocol):
    """One format of model files."""

    name: str
    title: str
    suffixes: tuple[str, ...]
    """The suffixes of its files; of a format that graphs are in, prepared models have the first."""
    graph: str
    """The name of the format of the prepared file: "onnx" or "tflite", the formats of graphs that
    artifacts are converted from; its own, where one runtime alone reads it."""
    exports: ClassVar[dict[str, str]]
    """The names of other formats of graphs that it can be exported to -> by what, where there is
    another way to such a graph besides; else empty."""

    def recognize(self, path: Path, head: bytes) -> bool:
        """Whether what lies there may be of this format. `head`: a file's first 8 bytes; empty: it
        is a folder."""

    def read(
        self,
        path: Path,
        shapes: dict[str, list[int]],
        batch: int | None,
        folder: Path,
        trust: bool,
        cut: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Check the file, write `model` with the suffix of `graph`, with static shapes and safe to
        open, to `folder`, and return the facts of records.Model. Runs in a worker process with
        limited memory and time. `trust`: whether code in the file may be run; `cut`: the names of
        tensors or operators that become the model's outputs, what follows them being left out.

        Raises UsageError where the file is damaged, of another format or unsafe, or shapes do not
        fit; UnsupportedError where it is valid but cannot be run.
        """

    def export(self, model: Path, graph: str, folder: Path) -> dict[str, Any]:
        """Write `model` with the suffix of `graph`, one of `exports`, to `folder`. `model`: the
        prepared file; what `read` wrote besides it lies beside it. -> its facts, as of `read`,
        without those of the user's file. Runs in a worker process.

        Raises UnsupportedError, with the reason, where it cannot be expressed in that format.
        """

    def reference(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Reference:
        """The model in the framework that defines its format; in a worker process. `path`: the
        prepared file; what `read` wrote besides it lies beside it."""

    def reference_version(self) -> str:
        """The version of that framework's package, without importing it; "none" where it is not
        installed."""


class LiveModel(Protocol):
    """A kind of models that are objects of this process, as a module `live` of a format's folder
    defines it by `LIVE`."""

    title: str

    def owns(self, model: Any) -> bool:
        """Whether the object is of this kind; imports nothing that is not imported already."""

    def save(
        self, model: Any, example_inputs: Any, folder: Path, stem: str
    ) -> tuple[Path, list[str]]:
        """Write the model as a file or folder of this format, named `stem`, to `folder`, and leave
        the object as it was. -> where it lies, and notes about how it came about.

        Raises UsageError or UnsupportedError where it cannot be written.
        """


@cache
def live_models() -> tuple[LiveModel, ...]:
    """All kinds of models in memory."""
    folders = sorted(path.parent.name for path in Path(__file__).parent.glob("*/live.py"))
    return tuple(import_module(f"onmetal.converters.{name}.live").LIVE for name in folders)


@cache
def formats() -> tuple[ModelFormat, ...]:
    """All formats, in the order in which they are tried for a file."""
    folders = sorted(path.parent.name for path in Path(__file__).parent.glob("*/format.py"))
    instances = [import_module(f"onmetal.converters.{name}.format").FORMAT for name in folders]
    return tuple(
        sorted(instances, key=lambda form: form.name == "onnx")
    )  # last: it accepts any bytes


def format_named(name: str) -> ModelFormat:
    return next(form for form in formats() if form.name == name)


def need(extra: str, title: str, *modules: str) -> None:
    """Raises UsageError, with what to install, where a module of an extra is missing."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise UsageError(
            f"{title} models are read by {' and '.join(modules)}, of which {missing[0]} is not "
            f"installed: pip install 'onmetal[{extra}]'"
        )
