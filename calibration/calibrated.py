"""From a model to the ONNX file that a candidate is converted from: itself, or a quantized graph.

The cache keeps one float graph for each model, one set of statistics for each model and its
samples, and one quantized graph for each of these and a format.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from onmetal.calibration import operations
from onmetal.calibration.calibrating import VERSION, Calibrating
from onmetal.calibration.tflite_source import TfliteSource
from onmetal.converters import format_named
from onmetal.errors import UnsupportedError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.operation import Operation, asked
from onmetal.progress import OnProgress
from onmetal.ranges import Range
from onmetal.records import Model, Source, plain
from onmetal.runtimes import spec
from onmetal.samples import Samples
from onmetal.targets import Format, Target


class CalibratedModel(Calibrating):
    """One model's float graph, its calibration statistics and its quantized graphs."""

    def __init__(
        self, model: Model, target: Target, samples: Samples | None, host: Local, cache: Cache
    ) -> None:
        super().__init__(model, samples, host, cache)
        self.target = target
        self.recipes = [
            (recipe.name, recipe.format)
            for recipe in target.recipes
            if recipe.format
            and recipe.calibrated
            and all(spec(name).reads == "onnx" for name in recipe.runtimes)
        ]
        self.tflite = TfliteSource(self, self.float_graph, target.io)

    def kept_float(self, runtime: str) -> frozenset[str]:
        """Which nodes of the float graph this runtime computes wrong in 8 bits
        (its folder's wrong_in_8_bits)."""
        exceptions = msgspec.json.decode(
            (self.float_graph().parent / "exceptions.json").read_bytes()
        )
        return frozenset(exceptions.get(runtime, ()))

    def float_graph(self) -> Path:
        """The simplified float model."""
        digest = caches.key(model=self.model.prepared_sha256, runtime=self._version(), code=VERSION)

        def build(folder: Path) -> None:
            self.call(asked(operations.simplify, str(self.model.prepared), str(folder)))

        return self.cache.get("float", digest, build) / "model.onnx"

    @property
    def in_tflite(self) -> bool:
        """Whether the model is calibrated in LiteRT alone."""
        return self.model.graph_format == "tflite" or not self.recipes

    def float_source(self) -> Source:
        graph = self.float_graph()
        return Source(graph, caches.sha256(graph))

    def cuts(
        self, graph: Path, form: Format, profiles: list[list[dict[str, Any]]], progress: OnProgress
    ) -> list[list[str]]:
        """Names of nodes to keep in float, for each division worth trying, from profiles in float
        and in 8 bits (calibration.mixed)."""
        statistics = str(self.statistics(progress))
        return self.call(asked(operations.cuts, str(graph), statistics, form, *profiles))

    def statistics(self, progress: OnProgress) -> Path:
        """The folder of calibration.statistics over all samples, in the float ONNX graph."""
        graph, formats = self.float_graph(), [form for _, form in self.recipes]
        tensors = asked(operations.tensors, str(graph), formats)
        return self.collected(graph, tensors, [self._version(), plain(formats)], progress)

    def warnings(self, judged: Samples | None, progress: OnProgress) -> list[str]:
        """What is suspicious about the calibration samples (calibration.sanity)."""
        calibration = self.tflite if self.in_tflite else self
        path = self.tflite.path() if self.in_tflite else self.float_graph()
        prepared, statistics = str(self.model.prepared), str(calibration.statistics(progress))
        assert self.samples
        return self.call(
            asked(
                operations.examine,
                str(path),
                prepared,
                statistics,
                self.samples,
                judged,
                self.model,
            )
        )

    def input_warnings(self, samples: Samples) -> list[str]:
        """What is suspicious about samples that are not used for calibration."""
        return self.call(
            asked(operations.examine_inputs, str(self.model.prepared), samples, self.model)
        )

    def output_ranges(self, progress: OnProgress) -> dict[str, Range]:
        """The range of each float output in calibration (calibration.sanity.output_ranges)."""
        calibration = self.tflite if self.in_tflite else self
        return self.call(
            asked(operations.output_ranges, str(calibration.statistics(progress)), self.model)
        )

    def sensitivity(self, form: Format, progress: OnProgress) -> list[dict[str, Any]]:
        """The fidelity with each operator alone in 8 bits (calibration.sensitivity)."""
        graph, statistics = str(self.float_graph()), str(self.statistics(progress))
        assert self.samples
        return self.call(
            asked(operations.sensitivity, graph, statistics, form, self.samples, self.model),
            lambda done, total: progress(done, total, f"operator {done} of {total}"),
        )

    def quantized(
        self, form: Format, progress: OnProgress, keep_float: frozenset[str] = frozenset()
    ) -> Source:
        """A QDQ graph by a format."""
        graph, statistics = self.float_graph(), self.statistics(progress)
        chosen = self.estimator(form, progress)
        digest = caches.key(
            graph=caches.sha256(graph),
            statistics=caches.sha256(statistics / "statistics.npz"),
            format=plain(form),
            keep_float=sorted(keep_float),
            estimator=chosen["estimator"],
            samples=self.samples.digest if self.samples else None,
            runtime=self._version(),
            code=VERSION,
        )

        def build(folder: Path) -> None:
            assert self.samples
            details = self.call(
                asked(
                    operations.build,
                    str(graph),
                    str(statistics),
                    form,
                    sorted(keep_float),
                    chosen["estimator"],
                    self.samples,
                    self.model,
                    str(folder),
                )
            )
            (folder / "details.json").write_bytes(msgspec.json.encode(details))

        source = self._source_in(self.cache.get("quantized", digest, build))
        return replace(source, details={**chosen, **source.details})

    def estimator(self, form: Format, progress: OnProgress) -> dict[str, Any]:
        """The estimator with the best fidelity on the calibration samples.

        It is chosen once for all formats with the same grid of activations, with the first of them
        that quantizes anything of the model: how they round weights, in which they may differ,
        does not depend on the ranges of activations.
        """
        alike = [
            (name, recipe_form)
            for name, recipe_form in self.recipes
            if recipe_form.activation_symmetric == form.activation_symmetric
        ]
        for name, recipe_form in alike:
            with contextlib.suppress(UnsupportedError):
                return self._estimator(name, recipe_form, progress)
        return self._estimator("its own", form, progress)

    def _estimator(self, name: str, form: Format, progress: OnProgress) -> dict[str, Any]:
        graph, statistics = self.float_graph(), self.statistics(progress)
        assert self.samples
        keys = {
            "graph": caches.sha256(graph),
            "statistics": caches.sha256(statistics / "statistics.npz"),
            "samples": self.samples.digest,
            "format": plain(form),
            "runtime": self._version(),
        }
        choose = asked(
            operations.choose, str(graph), str(statistics), form, self.samples, self.model
        )
        chosen = self.chosen(choose, keys, progress)
        return {**chosen, "estimators_tried_with": name}

    def without_samples(
        self, keys: dict[str, Any], write: Callable[[str, str], Operation[dict[str, Any]]]
    ) -> Source:
        """The file that an operation writes from the float graph without any samples, from the
        cache if it is there. `keys`: what the file depends on besides the graph, for the cache's
        key; `write`: the graph's path and a folder -> the operation that writes model.onnx to the
        folder and returns its details."""
        graph = self.float_graph()
        digest = caches.key(
            graph=caches.sha256(graph), **keys, runtime=self._version(), code=VERSION
        )

        def build(folder: Path) -> None:
            details = self.call(write(str(graph), str(folder)))
            (folder / "details.json").write_bytes(msgspec.json.encode(details))

        return self._source_in(self.cache.get("quantized", digest, build))

    def _source_in(self, folder: Path) -> Source:
        path = folder / "model.onnx"
        details = msgspec.json.decode((folder / "details.json").read_bytes())
        return Source(path, caches.sha256(path), details)

    def _version(self) -> str:
        return format_named("onnx").reference_version()
