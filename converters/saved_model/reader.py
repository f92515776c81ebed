"""Reads a SavedModel, in a child process: checks it, exports it to ONNX, compares both."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters import imported
from onmetal.converters.saved_model import checks


def examine(
    path: Path,
    shapes: dict[str, list[int]],
    batch: int | None,
    folder: Path,
    cut: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a copy of the SavedModel, `source`, and `model.onnx` to `folder`, and return the facts
    of records.Model.

    Raises UsageError where it is damaged or unsafe, or shapes do not fit; UnsupportedError where
    TensorFlow or tf2onnx cannot do it, or what they give differs.
    """
    source = checks.copied(path, folder)
    digest, size_bytes = _digest(source)

    from onmetal.converters.saved_model import framework

    signature = framework.Signature(source, path)
    given = imported.static(signature.declared, shapes, batch)
    function = signature.function(given.inputs)
    proto = function.export()
    found = imported.facts(proto, function, framework.BY, given, folder, cut)
    return {**found, "sha256": digest, "size_bytes": size_bytes}


def _digest(source: Path) -> tuple[str, int]:
    """The SHA-256 of the names and contents of all files, and their bytes."""
    digest, size_bytes = hashlib.sha256(), 0
    for file in sorted(entry for entry in source.rglob("*") if entry.is_file()):
        of_file, bytes_ = imported.digest_of(file)
        digest.update(f"{file.relative_to(source).as_posix()}\0{of_file}\n".encode())
        size_bytes += bytes_
    return digest.hexdigest(), size_bytes


def export(model: Path, folder: Path) -> dict[str, Any]:
    """As ModelFormat.export, to a float .tflite file. `model`: the graph in ONNX."""
    from onmetal.converters import tensorflow_lite

    function = Reference(model, ()).function
    return tensorflow_lite.export(function, function.to_tflite(), folder)


class Reference:
    """A SavedModel that was read, computed by TensorFlow. `path`: of the graph that lies beside
    it."""

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        from onmetal.converters.saved_model import framework

        signature = framework.Signature(path.with_name("source"), path.with_name("source"))
        declared = imported.as_prepared(signature.declared, path)
        self.function = signature.function(declared, outputs)

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self.function.run(feed)
