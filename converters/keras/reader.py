"""Reads a Keras file, in a child process: checks it, exports it to ONNX, compares both."""

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters import archive, imported
from onmetal.converters.keras import checks
from onmetal.errors import UsageError

PLACES = ("config.json", "metadata.json", "model.weights.h5")
"""What is read of a .keras archive."""
TRUSTED = "trusted"
"""The file that stands for --trust, for the reference."""


def examine(
    path: Path,
    shapes: dict[str, list[int]],
    batch: int | None,
    folder: Path,
    trust: bool,
    cut: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `source.keras` or `source.h5`, checked and without what belongs to training alone, and
    `model.onnx` to `folder`, and return the facts of records.Model.

    Raises UsageError where the file is damaged or unsafe, or shapes do not fit; UnsupportedError
    where Keras or tf2onnx cannot do it, or what they give differs.
    """
    digest, size_bytes = imported.digest_of(path)
    source = _checked(path, folder, trust)
    if trust:
        (folder / TRUSTED).touch()

    from onmetal.converters.keras import framework

    model = framework.load(source, trust)
    given = imported.static(framework.declared(model), shapes, batch)
    function, proto = framework.exported(model, given)
    found = imported.facts(proto, function, framework.BY, given, folder, cut)
    return {**found, "sha256": digest, "size_bytes": size_bytes}


def _checked(path: Path, folder: Path, trust: bool) -> Path:
    """The file in a form that is safe to load."""
    with path.open("rb") as file:
        zipped = archive.is_zip(file.read(8))
    return (_archive if zipped else _h5)(path, folder, trust)


def _archive(path: Path, folder: Path, trust: bool) -> Path:
    parts, source = folder / "parts", folder / "source.keras"
    archive.extract(path, parts, lambda name: name in PLACES)
    for name in PLACES:
        if not (parts / name).is_file():
            raise UsageError(f"{path}: this .keras archive has no {name}: it is damaged")
    config = checks.check_config((parts / "config.json").read_bytes(), path, trust)
    checks.check_weights(parts / "model.weights.h5", path)
    (parts / "config.json").write_text(json.dumps(config))
    with zipfile.ZipFile(source, "w") as target:
        for name in PLACES:  # without times, so that equal models give equal files
            with target.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write((parts / name).read_bytes())
    shutil.rmtree(parts)
    return source


def _h5(path: Path, folder: Path, trust: bool) -> Path:
    source = folder / "source.h5"
    shutil.copyfile(path, source)
    checks.check_weights(source, path)
    text = checks.h5_config(source, path)
    if text is None:
        raise UsageError(
            f"{path}: this HDF5 file holds weights alone, no model: load them in the program that "
            "defines it, and save all of it by model.save('model.keras')"
        )
    checks.check_config(text, path, trust)
    return source


def export(model: Path, folder: Path) -> dict[str, Any]:
    """As ModelFormat.export, to a float .tflite file. `model`: the graph in ONNX."""
    from onmetal.converters import tensorflow_lite
    from onmetal.converters.keras import framework

    reference = Reference(model, ())
    with framework.without_loops(reference.model):
        exported = framework.function(reference.model, reference.function.inputs)
        content = exported.to_tflite()
    return tensorflow_lite.export(reference.function, content, folder)


class Reference:
    """A Keras file that was read, computed by Keras. `path`: of the graph that lies beside it."""

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        from onmetal.converters.keras import framework

        source = next(path.parent.glob("source.*"))
        self.model = framework.load(source, (path.parent / TRUSTED).exists())
        declared = imported.as_prepared(framework.declared(self.model), path)
        self.function = framework.function(self.model, declared, outputs)

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self.function.run(feed)
