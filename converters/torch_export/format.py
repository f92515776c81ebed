"""Exported programs of PyTorch (.pt2) as a model format. Large packages are imported only when they
are needed."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from onmetal.converters import ModelFormat, Reference, archive, need
from onmetal.converters.torch_export import checks

MODULES = ("torch", "onnxscript")


class TorchExport(ModelFormat):
    name = "torch_export"
    title = "PyTorch"
    suffixes = (".pt2",)
    graph = "onnx"
    exports: ClassVar[dict[str, str]] = {}

    def recognize(self, path: Path, head: bytes) -> bool:
        return archive.is_zip(head) and checks.is_program(archive.names(path))

    def read(
        self,
        path: Path,
        shapes: dict[str, list[int]],
        batch: int | None,
        folder: Path,
        trust: bool,
        cut: Sequence[str] = (),
    ) -> dict[str, Any]:
        need("torch", self.title, *MODULES)
        from onmetal.converters.torch_export import reader

        return reader.examine(path, shapes, batch, folder, cut)

    def export(self, model: Path, graph: str, folder: Path) -> dict[str, Any]:
        raise AssertionError(f"{self.title} has no export to {graph}")

    def reference(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Reference:
        need("torch", self.title, *MODULES)
        from onmetal.converters.torch_export import reader

        return reader.Reference(path, outputs)

    def reference_version(self) -> str:
        try:
            return version("torch")
        except PackageNotFoundError:
            return "none"


FORMAT: ModelFormat = TorchExport()
