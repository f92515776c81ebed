"""Reads a .pt2 file of torch.export, in a child process: checks it, exports it to ONNX, compares
both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters import archive, imported
from onmetal.converters.torch_export import checks

SOURCE = "source"


def examine(
    path: Path,
    shapes: dict[str, list[int]],
    batch: int | None,
    folder: Path,
    cut: Sequence[str] = (),
) -> dict[str, Any]:
    """Write the program without its pickles, a folder in `source`, and `model.onnx` to `folder`,
    and return the facts of records.Model.

    Raises UsageError where it is damaged or unsafe, or shapes do not fit; UnsupportedError where
    PyTorch cannot do it, or what its ONNX file gives differs.
    """
    digest, size_bytes = imported.digest_of(path)
    archive.extract(path, folder / SOURCE)
    top = checks.checked(folder / SOURCE, path)

    from onmetal.converters.torch_export import framework

    program = framework.Program(top)
    given = imported.static(program.declared, shapes, batch)
    proto = imported.with_shapes(program.export(given.inputs), given)
    found = imported.facts(proto, program, framework.BY, given, folder, cut)
    return {**found, "sha256": digest, "size_bytes": size_bytes}


class Reference:
    """A program that was read, computed by PyTorch. `path`: of the graph that lies beside it."""

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        from onmetal.converters.torch_export import framework

        (top,) = (path.parent / SOURCE).iterdir()
        self.program = framework.Program(top)

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return self.program.run(feed)
