"""ONNX as a model format. What is heavy is imported when it is asked for."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onmetal.converters import ModelFormat, Reference


class Onnx(ModelFormat):
    name = "onnx"
    title = "ONNX"
    suffixes = (".onnx",)

    def recognize(self, head: bytes) -> bool:
        """Its files are protobufs, which have no mark."""
        return True

    def read(
        self, path: Path, shapes: dict[str, list[int]], batch: int | None, folder: Path
    ) -> dict[str, Any]:
        from onmetal.converters.onnx import reader

        return reader.examine(str(path), shapes, batch, str(folder))

    def reference(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Reference:
        from onmetal.converters.onnx.reference import Reference

        return Reference(path, outputs)

    def reference_version(self) -> str:
        try:
            return version("onnxruntime")
        except PackageNotFoundError:
            return "none"


FORMAT: ModelFormat = Onnx()
