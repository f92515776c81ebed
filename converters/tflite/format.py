"""TFLite as a model format. Large packages are imported only when they are needed."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, ClassVar

from onmetal.converters import ModelFormat, Reference
from onmetal.converters.tflite import schema_version


class Tflite(ModelFormat):
    name = "tflite"
    title = "TFLite"
    suffixes = (".tflite",)
    graph = "tflite"
    exports: ClassVar[dict[str, str]] = {"onnx": ""}

    def recognize(self, path: Path, head: bytes) -> bool:
        return head[4:8] == b"TFL3"

    def read(
        self,
        path: Path,
        shapes: dict[str, list[int]],
        batch: int | None,
        folder: Path,
        trust: bool,
        cut: Sequence[str] = (),
    ) -> dict[str, Any]:
        from onmetal.converters.tflite import reader

        return reader.examine(str(path), shapes, batch, str(folder), cut)

    def export(self, model: Path, graph: str, folder: Path) -> dict[str, Any]:
        from onmetal.converters.tflite import export

        return export.to_onnx(model, folder)

    def reference(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Reference:
        from onmetal.converters.tflite.reference import Reference

        return Reference(path, inputs, outputs)

    def reference_version(self) -> str:
        try:
            return schema_version()
        except PackageNotFoundError:
            return "none"


FORMAT: ModelFormat = Tflite()
