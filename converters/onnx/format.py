"""ONNX as a model format. Large packages are imported only when they are needed."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from onmetal.converters import ModelFormat, Reference


class Onnx(ModelFormat):
    name = "onnx"
    title = "ONNX"
    suffixes = (".onnx",)
    graph = "onnx"
    exports: ClassVar[dict[str, str]] = {}

    def recognize(self, path: Path, head: bytes) -> bool:
        """Any file may be ONNX: protobufs have no identifier at their begin."""
        return True

    def read(
        self,
        path: Path,
        shapes: dict[str, list[int]],
        batch: int | None,
        folder: Path,
        trust: bool,
        cut: Sequence[str] = (),
    ) -> dict[str, Any]:
        from onmetal.converters.onnx import reader

        return reader.examine(str(path), shapes, batch, str(folder), cut)

    def export(self, model: Path, graph: str, folder: Path) -> dict[str, Any]:
        raise AssertionError(f"{self.title} has no export to {graph}")

    def reference(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Reference:
        from onmetal.converters.onnx.reference import Reference

        return Reference(path, outputs)

    def reference_version(self) -> str:
        try:
            return version("onnxruntime")
        except PackageNotFoundError:
            return "none"


FORMAT: ModelFormat = Onnx()
