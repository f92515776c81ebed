"""OpenVINO's IR as a model format. Large packages are imported only when they are needed."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

from onmetal.converters import ModelFormat, Reference
from onmetal.errors import UsageError


class OpenvinoIr(ModelFormat):
    name = "openvino_ir"
    title = "OpenVINO IR"
    suffixes = (".xml",)
    graph = "openvino_ir"
    exports: ClassVar[dict[str, str]] = {}

    def recognize(self, path: Path, head: bytes) -> bool:
        return head.startswith((b"<?xml", b"\xef\xbb\xbf<?xml", b"<net"))

    def read(
        self,
        path: Path,
        shapes: dict[str, list[int]],
        batch: int | None,
        folder: Path,
        trust: bool,
        cut: Sequence[str] = (),
    ) -> dict[str, Any]:
        if cut:
            raise UsageError(
                "--cut-at: a model in OpenVINO's IR is not cut; give the model that it was made "
                "from"
            )
        from onmetal.converters.openvino_ir import reader

        return reader.examine(path, shapes, batch, folder)

    def export(self, model: Path, graph: str, folder: Path) -> dict[str, Any]:
        raise AssertionError(f"{self.title} has no export to {graph}")

    def reference(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Reference:
        from onmetal.converters.openvino_ir import reader

        return reader.Reference(path, inputs, outputs)

    def reference_version(self) -> str:
        try:
            return version("openvino")
        except PackageNotFoundError:
            return "none"


FORMAT: ModelFormat = OpenvinoIr()
