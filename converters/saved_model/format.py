"""SavedModels as a model format. Large packages are imported only when they are needed."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from onmetal.converters import ModelFormat, Reference, archive, need

MODULES = ("tensorflow", "tf2onnx")


class SavedModel(ModelFormat):
    name = "saved_model"
    title = "SavedModel"
    suffixes = (".zip",)
    graph = "onnx"
    exports: ClassVar[dict[str, str]] = {"tflite": "tensorflow"}

    def recognize(self, path: Path, head: bytes) -> bool:
        if not head:
            return (path / "saved_model.pb").exists()
        if not archive.is_zip(head):
            return False
        return any(name.endswith("saved_model.pb") for name in archive.names(path))

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
        from onmetal.converters.saved_model import reader

        return reader.examine(path, shapes, batch, folder, cut)

    def export(self, model: Path, graph: str, folder: Path) -> dict[str, Any]:
        need("tensorflow", self.title, *MODULES)
        from onmetal.converters.saved_model import reader

        return reader.export(model, folder)

    def reference(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Reference:
        need("tensorflow", self.title, *MODULES)
        from onmetal.converters.saved_model import reader

        return reader.Reference(path, outputs)

    def reference_version(self) -> str:
        try:
            return version("tensorflow_cpu")
        except PackageNotFoundError:
            return "none"


FORMAT: ModelFormat = SavedModel()
