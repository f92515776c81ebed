"""Keras files as a model format. Large packages are imported only when they are needed."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from onmetal.converters import ModelFormat, Reference, archive, need

MODULES = ("tensorflow", "h5py", "keras", "tf2onnx")


class Keras(ModelFormat):
    name = "keras"
    title = "Keras"
    suffixes = (".keras", ".h5", ".hdf5")
    graph = "onnx"
    exports: ClassVar[dict[str, str]] = {"tflite": "tensorflow"}

    def recognize(self, path: Path, head: bytes) -> bool:
        if archive.is_zip(head):
            return "config.json" in archive.names(path)
        return head.startswith(b"\x89HDF")

    def read(
        self,
        path: Path,
        shapes: dict[str, list[int]],
        batch: int | None,
        folder: Path,
        trust: bool,
        cut: Sequence[str] = (),
    ) -> dict[str, Any]:
        need("tensorflow", self.title, *MODULES)
        from onmetal.converters.keras import reader

        return reader.examine(path, shapes, batch, folder, trust, cut)

    def export(self, model: Path, graph: str, folder: Path) -> dict[str, Any]:
        need("tensorflow", self.title, *MODULES)
        from onmetal.converters.keras import reader

        return reader.export(model, folder)

    def reference(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Reference:
        need("tensorflow", self.title, *MODULES)
        from onmetal.converters.keras import reader

        return reader.Reference(path, outputs)

    def reference_version(self) -> str:
        try:
            return f"{version('keras')} {version('tensorflow_cpu')}"
        except PackageNotFoundError:
            return "none"


FORMAT: ModelFormat = Keras()
