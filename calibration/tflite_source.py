"""The .tflite files that candidates for LiteRT are converted from.

One float file is lowered from the float ONNX graph, or is the model itself. Calibration runs that
same file in LiteRT, so that every tensor of the file has a range of its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from onmetal.calibration import operations
from onmetal.calibration.calibrating import NO_SAMPLES, Calibrating
from onmetal.converters.tflite import schema_version
from onmetal.errors import UnsupportedError
from onmetal.files import cache as caches
from onmetal.profilers.operation import Operation, asked
from onmetal.progress import OnProgress
from onmetal.records import Source, plain
from onmetal.targets import EXACT, Format, Io, Recipe

VERSION = 6


class TfliteSource:
    """One model's float .tflite file, its calibration statistics, and the files made of both."""

    def __init__(self, calibration: Calibrating, float_graph: Callable[[], Path], io: Io) -> None:
        self.calibration, self.float_graph, self.io = calibration, float_graph, io
        self.model = calibration.model

    def in_float(self, recipe: Recipe) -> Source:
        """The float model; the user's own file where no input or output is to be changed."""
        model = self.model
        if recipe.name == EXACT and model.graph_format == "tflite" and self.io == Io():
            return Source(model.prepared, model.prepared_sha256)
        return self._without_samples("float_", operations.tflite_float)

    def half(self) -> Source:
        """Weights stored as float16."""
        return self._without_samples("half", operations.tflite_half)

    def dynamic(self) -> Source:
        """8-bit weights; activations are quantized in every inference."""
        return self._without_samples("dynamic", operations.tflite_dynamic)

    def _without_samples(
        self, name: str, write: Callable[[str, Io, str], dict[str, Any]]
    ) -> Source:
        path = self.path()
        return self._written(
            name,
            {"graph": caches.sha256(path)},
            lambda folder: asked(write, str(path), self.io, folder),
        )

    def path(self) -> Path:
        """The float file, its inputs and outputs as the model has them."""
        if self.model.graph_format == "tflite":
            return self.model.prepared
        graph = self.float_graph()
        digest = caches.key(graph=caches.sha256(graph), schema=schema_version(), code=VERSION)

        def build(folder: Path) -> None:
            self.calibration.call(asked(operations.to_tflite, str(graph), str(folder)))

        return self.calibration.cache.get("tflite", digest, build) / "model.tflite"

    def statistics(self, progress: OnProgress) -> Path:
        """The folder of calibration.statistics over all samples, in the float file."""
        path = self.path()
        tensors = asked(operations.tflite_tensors, str(path))
        return self.calibration.collected(path, tensors, schema_version(), progress)

    def sensitivity(self, form: Format, progress: OnProgress) -> list[dict[str, Any]]:
        """The fidelity with each product alone in integers. `node`: the name of the ONNX node that
        the product was lowered from, where the file was lowered from ONNX."""
        path, samples = self.path(), self.calibration.samples
        statistics = str(self.statistics(progress))
        assert samples
        rows = self.calibration.call(
            asked(operations.tflite_sensitivity, str(path), statistics, form, samples, self.model),
            lambda done, total: progress(done, total, f"operator {done} of {total}"),
        )
        makers = path.parent / "makers.json"
        maker_of: dict[str, str] = {}
        if makers.exists():  # "Conv 'name'" of each tensor
            maker_of = msgspec.json.decode(makers.read_bytes())
        names = {key: maker.partition(" ")[2][1:-1] for key, maker in maker_of.items()}
        return [{**row, "node": names.get(row["node"]) or row["node"]} for row in rows]

    def as_it_is(self) -> Source:
        """A model that is quantized already. If it is an ONNX model, its inputs and outputs become
        integers where the target asks for that."""
        if self.model.graph_format == "tflite":
            return Source(self.model.prepared, self.model.prepared_sha256)
        path = self.path()
        return self._written(
            "given",
            {"graph": caches.sha256(path)},
            lambda folder: asked(operations.tflite_given, str(path), self.io, folder),
        )

    def static(self, form: Format, progress: OnProgress) -> Source:
        """A file with integer operators, quantized by calibrated ranges."""
        samples, model = self.calibration.samples, self.model
        if samples is None:
            raise UnsupportedError(NO_SAMPLES)
        path, statistics = self.path(), self.statistics(progress)
        keys = {
            "graph": caches.sha256(path),
            "statistics": caches.sha256(statistics / "statistics.npz"),
            "samples": samples.digest,
            "form": plain(form),
        }
        choice = self.calibration.chosen(
            asked(operations.tflite_choose, str(path), str(statistics), form, samples, model),
            {**keys, "schema": schema_version()},
            progress,
        )
        estimator = choice["estimator"]
        source = self._written(
            "static",
            {**keys, "estimator": estimator},
            lambda folder: asked(
                operations.tflite_static,
                str(path),
                str(statistics),
                form,
                estimator,
                samples,
                model,
                self.io,
                folder,
            ),
        )
        return msgspec.structs.replace(source, details={**choice, **source.details})

    def _written(
        self,
        name: str,
        keys: dict[str, Any],
        write: Callable[[str], Operation[dict[str, Any]]],
    ) -> Source:
        """The file that an operation writes, from the cache if it is there. `write`: a folder ->
        the operation that writes to it; `keys`: what the file depends on, for the cache's key."""
        digest = caches.key(
            **keys, function=name, io=plain(self.io), schema=schema_version(), code=VERSION
        )

        def build(folder: Path) -> None:
            facts = self.calibration.call(write(str(folder)))
            (folder / "made.json").write_bytes(msgspec.json.encode(facts))

        folder = self.calibration.cache.get("quantized", digest, build)
        facts = msgspec.json.decode((folder / "made.json").read_bytes())
        path = folder / "model.tflite"
        options = {**facts["options"], **self._casts()}
        return Source(path, caches.sha256(path), facts["details"], options)

    def _casts(self) -> dict[str, list[str]]:
        """The names of an ONNX model's float16 inputs and outputs, which are widened to float32."""
        model = self.model
        if model.graph_format == "tflite":
            return {}
        half = [t.name for t in (*model.inputs, *model.outputs) if t.dtype == "float16"]
        return {"float16": half} if half else {}
