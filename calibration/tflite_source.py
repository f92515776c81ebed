"""The .tflite files that candidates for LiteRT are converted from.

One float file is lowered from the float ONNX graph (or is the model itself); what is calibrated is
calibrated in that very file, by LiteRT, so that every tensor of it has a range of its own.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from onmetal.calibration.calibrating import Calibrating
from onmetal.errors import UnsupportedError
from onmetal.files import cache as caches
from onmetal.progress import OnProgress
from onmetal.records import Source, plain
from onmetal.targets import EXACT, Format, Io, Recipe

VERSION = 4
RECIPES = "converters.tflite.recipes"
NO_SAMPLES = "no samples to calibrate it with"


class Flat:
    """One model's float .tflite file and what was seen in it, beside the hub of its ONNX graph."""

    def __init__(self, hub: Calibrating, float_graph: Callable[[], Path], io: Io) -> None:
        self.hub, self.float_graph, self.io = hub, float_graph, io

    def source(self, recipe: Recipe, told: OnProgress) -> Source:
        """What a recipe's artifact is made of. Raises UnsupportedError where it cannot be."""
        if recipe.quantized_by == "static" and self.hub.model.quantized:
            return self._as_it_is()
        if recipe.quantized_by == "static":
            assert recipe.format
            return self._static(recipe.format, told)
        function = recipe.quantized_by or "float_"
        if recipe.name == EXACT and self.hub.model.format == "tflite" and self.io == Io():
            return Source(self.hub.model.prepared, self.hub.model.prepared_sha256)
        path = self.path()
        return self._made(function, {"path": str(path)}, {"graph": caches.sha256(path)})

    def path(self) -> Path:
        """The float file, its inputs and outputs as the model has them."""
        model = self.hub.model
        if model.format == "tflite":
            return model.prepared
        graph = self.float_graph()
        digest = caches.key(graph=caches.sha256(graph), schema=_schema(), code=VERSION)

        def build(folder: Path) -> None:
            self.hub.call("converters.tflite.convert:to_float", path=str(graph), folder=str(folder))

        return self.hub.cache.get("tflite", digest, build) / "model.tflite"

    def statistics(self, told: OnProgress) -> Path:
        path = self.path()
        return self.hub.collected(
            path, lambda: self.hub.call(f"{RECIPES}:observed", path=str(path)), _schema(), told
        )

    def sensitivity(self, form: Format, told: OnProgress) -> list[dict[str, Any]]:
        """Each product alone in integers; `node` is the one of the ONNX file that it was made for,
        where it was made from one."""
        path = self.path()
        given: dict[str, Any] = {
            "path": str(path),
            "statistics": str(self.statistics(told)),
            "form": plain(form),
            "samples": plain(self.hub.samples),
            "model": plain(self.hub.model),
        }
        rows: list[dict[str, Any]] = self.hub.call(
            f"{RECIPES}:sensitivity",
            lambda done, total: told(done, total, f"operator {done} of {total}"),
            told=True,
            **given,
        )
        makers = path.parent / "makers.json"
        known: dict[str, str] = {}
        if makers.exists():  # "Conv 'name'" of each tensor
            known = msgspec.json.decode(makers.read_bytes())
        names = {key: maker.partition(" ")[2][1:-1] for key, maker in known.items()}
        return [{**row, "node": names.get(row["node"]) or row["node"]} for row in rows]

    def _as_it_is(self) -> Source:
        """A model that is quantized already; of an ONNX one the inputs and outputs become whole
        numbers where the target wants that."""
        model = self.hub.model
        if model.format == "tflite":
            return Source(model.prepared, model.prepared_sha256)
        path = self.path()
        return self._made("given", {"path": str(path)}, {"graph": caches.sha256(path)})

    def _static(self, form: Format, told: OnProgress) -> Source:
        samples = self.hub.samples
        if samples is None:
            raise UnsupportedError(NO_SAMPLES)
        path, statistics = self.path(), self.statistics(told)
        given: dict[str, Any] = {
            "path": str(path),
            "statistics": str(statistics),
            "form": plain(form),
            "samples": plain(samples),
            "model": plain(self.hub.model),
        }
        keys = {
            "graph": caches.sha256(path),
            "statistics": caches.sha256(statistics / "statistics.npz"),
            "samples": samples.digest,
            "form": plain(form),
        }
        chosen = self.hub.chosen(f"{RECIPES}:choose", given, {**keys, "schema": _schema()}, told)
        given["estimator"] = chosen["estimator"]
        made = self._made("static", given, {**keys, "estimator": chosen["estimator"]})
        return msgspec.structs.replace(made, details={**chosen, **made.details})

    def _made(self, function: str, given: dict[str, Any], keys: dict[str, Any]) -> Source:
        digest = caches.key(
            **keys, function=function, io=plain(self.io), schema=_schema(), code=VERSION
        )

        def build(folder: Path) -> None:
            made = self.hub.call(
                f"{RECIPES}:{function}", target_io=plain(self.io), folder=str(folder), **given
            )
            (folder / "made.json").write_bytes(msgspec.json.encode(made))

        folder = self.hub.cache.get("quantized", digest, build)
        made = msgspec.json.decode((folder / "made.json").read_bytes())
        path = folder / "model.tflite"
        options = {**made["options"], **self._casts()}
        return Source(path, caches.sha256(path), made["details"], options)

    def _casts(self) -> dict[str, list[str]]:
        """The inputs and outputs that an ONNX model has in float16, which is widened."""
        model = self.hub.model
        if model.format == "tflite":
            return {}
        half = [t.name for t in (*model.inputs, *model.outputs) if t.dtype == "float16"]
        return {"float16": half} if half else {}


def _schema() -> str:
    """The version of the package whose schema files are written by."""
    return version("ai-edge-litert")
