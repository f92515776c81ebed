"""From a model to the ONNX file that a candidate is converted from: itself, or a quantized graph.

The float graph is kept a model, the statistics a model and its samples, and a quantized graph
besides these and a format.
"""

import contextlib
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from onmetal.calibration.calibrating import VERSION, Calibrating
from onmetal.calibration.tflite_source import Flat
from onmetal.errors import UnsupportedError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.progress import OnProgress
from onmetal.ranges import Range
from onmetal.records import Model, Source, plain
from onmetal.runtimes import spec
from onmetal.samples import Samples
from onmetal.targets import Format, Recipe, Target


class Hub(Calibrating):
    """One model's float graph, and what calibration saw in it: what its candidates are made of."""

    def __init__(
        self, model: Model, target: Target, samples: Samples | None, host: Local, cache: Cache
    ) -> None:
        super().__init__(model, samples, host, cache)
        self.recipes = [
            (recipe.name, recipe.format)
            for recipe in target.recipes
            if recipe.format
            and recipe.calibrated
            and all(spec(name).reads == "onnx" for name in recipe.runtimes)
        ]
        self.flat = Flat(self, self.float_graph, target.io)

    def source(self, recipe: Recipe, runtime: str, told: OnProgress) -> Source:
        """What a recipe's artifact for a runtime is converted from.

        Raises UnsupportedError, with the reason, where the recipe cannot be made of this model.
        """
        if spec(runtime).reads == "tflite":
            return self.flat.source(recipe, told)
        if recipe.quantized_by in (None, "nncf"):
            return Source(self.model.prepared, self.model.prepared_sha256)
        if recipe.quantized_by == "static":
            assert recipe.format
            return self.quantized(recipe.format, told, self.kept_float(runtime))
        return self._weights(recipe)

    def kept_float(self, runtime: str) -> frozenset[str]:
        """Which nodes of the float graph this runtime computes wrong in 8 bits
        (its folder's wrong_in_8_bits)."""
        found = msgspec.json.decode((self.float_graph().parent / "exceptions.json").read_bytes())
        return frozenset(found.get(runtime, ()))

    def float_graph(self) -> Path:
        """The simplified float model."""
        digest = caches.key(model=self.model.prepared_sha256, runtime=self._version(), code=VERSION)

        def build(folder: Path) -> None:
            self.call(
                "calibration.float_graph:simplify",
                prepared=str(self.model.prepared),
                folder=str(folder),
            )

        return self.cache.get("float", digest, build) / "model.onnx"

    @property
    def in_tflite(self) -> bool:
        """Whether it is calibrated in LiteRT alone."""
        return self.model.format == "tflite" or not self.recipes

    def float_source(self) -> Source:
        graph = self.float_graph()
        return Source(graph, caches.sha256(graph))

    def cuts(
        self, graph: Path, form: Format, profiles: list[list[dict[str, Any]]], told: OnProgress
    ) -> list[list[str]]:
        """Which nodes to keep in float, by profiles in float and in 8 bits (calibration.mixed)."""
        found: list[list[str]] = self.call(
            "calibration.mixed:cuts",
            path=str(graph),
            statistics=str(self.statistics(told)),
            form=plain(form),
            in_float=profiles[0],
            in_8_bits=profiles[1],
        )
        return found

    def statistics(self, told: OnProgress) -> Path:
        """The folder of calibration.statistics over all samples, in the float ONNX graph."""
        graph, formats = self.float_graph(), plain([form for _, form in self.recipes])
        return self.collected(
            graph,
            lambda: self.call("calibration.search:tensors", path=str(graph), formats=formats),
            [self._version(), formats],
            told,
        )

    def warnings(self, judged: Samples | None, told: OnProgress) -> list[str]:
        """What is suspicious about the calibration samples (calibration.sanity)."""
        whole = self.flat if self.in_tflite else self
        found: list[str] = self.call(
            "calibration.sanity:examine",
            path=str(self.flat.path() if self.in_tflite else self.float_graph()),
            prepared=str(self.model.prepared),
            statistics=str(whole.statistics(told)),
            samples=plain(self.samples),
            judged=plain(judged) if judged else None,
            model=plain(self.model),
        )
        return found

    def input_warnings(self, samples: Samples) -> list[str]:
        """What is suspicious about samples with which nothing is calibrated."""
        found: list[str] = self.call(
            "calibration.sanity:examine_inputs",
            path=str(self.model.prepared),
            samples=plain(samples),
            model=plain(self.model),
        )
        return found

    def output_ranges(self, told: OnProgress) -> dict[str, Range]:
        """What calibration saw of each float output (calibration.sanity.output_ranges)."""
        whole = self.flat if self.in_tflite else self
        found = self.call(
            "calibration.sanity:output_ranges",
            statistics=str(whole.statistics(told)),
            model=plain(self.model),
        )
        return {name: (low, high) for name, (low, high) in found.items()}

    def sensitivity(self, form: Format, told: OnProgress) -> list[dict[str, Any]]:
        """Each operator alone in 8 bits (calibration.sensitivity)."""
        given: dict[str, Any] = {
            "path": str(self.float_graph()),
            "statistics": str(self.statistics(told)),
            "form": plain(form),
            "samples": plain(self.samples),
            "model": plain(self.model),
        }
        found: list[dict[str, Any]] = self.call(
            "calibration.sensitivity:each",
            lambda done, total: told(done, total, f"operator {done} of {total}"),
            told=True,
            **given,
        )
        return found

    def quantized(
        self, form: Format, told: OnProgress, keep_float: frozenset[str] = frozenset()
    ) -> Source:
        """A QDQ graph by a format."""
        graph, statistics = self.float_graph(), self.statistics(told)
        chosen = self.estimator(form, told)
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
            details = self.call(
                "calibration.search:build",
                folder=str(folder),
                path=str(graph),
                statistics=str(statistics),
                form=plain(form),
                keep_float=sorted(keep_float),
                estimator=chosen["estimator"],
                samples=plain(self.samples),
                model=plain(self.model),
            )
            (folder / "details.json").write_bytes(msgspec.json.encode(details))

        made = self._made(self.cache.get("quantized", digest, build))
        return replace(made, details={**chosen, **made.details})

    def estimator(self, form: Format, told: OnProgress) -> dict[str, Any]:
        """Which estimator serves best, by fidelity on the calibration samples.

        Tried once for all formats that lay activations on the same grid, by the first of them that
        quantizes anything of the model: weights, in which they may differ, are rounded the same way
        whatever the ranges of activations.
        """
        like = [
            (name, other)
            for name, other in self.recipes
            if other.activation_symmetric == form.activation_symmetric
        ]
        for name, other in like:
            with contextlib.suppress(UnsupportedError):
                return self._estimator(name, other, told)
        return self._estimator("its own", form, told)

    def _estimator(self, name: str, form: Format, told: OnProgress) -> dict[str, Any]:
        graph, statistics = self.float_graph(), self.statistics(told)
        assert self.samples
        keys = {
            "graph": caches.sha256(graph),
            "statistics": caches.sha256(statistics / "statistics.npz"),
            "samples": self.samples.digest,
            "format": plain(form),
            "runtime": self._version(),
        }
        given = {
            "path": str(graph),
            "statistics": str(statistics),
            "form": plain(form),
            "samples": plain(self.samples),
            "model": plain(self.model),
        }
        chosen = self.chosen("calibration.search:choose", given, keys, told)
        return {**chosen, "estimators_tried_with": name}

    def _weights(self, recipe: Recipe) -> Source:
        """8-bit weights alone, or MatMuls whose activations are quantized as they come."""
        graph = self.float_graph()
        digest = caches.key(
            graph=caches.sha256(graph),
            method=recipe.quantized_by,
            format=plain(recipe.format),
            runtime=self._version(),
            code=VERSION,
        )

        def build(folder: Path) -> None:
            details = self.call(
                f"calibration.weights:{recipe.quantized_by}",
                folder=str(folder),
                path=str(graph),
                form=plain(recipe.format),
            )
            (folder / "details.json").write_bytes(msgspec.json.encode(details))

        return self._made(self.cache.get("quantized", digest, build))

    def _made(self, folder: Path) -> Source:
        path = folder / "model.onnx"
        details = msgspec.json.decode((folder / "details.json").read_bytes())
        return Source(path, caches.sha256(path), details)

    def _version(self) -> str:
        return self.host.facts().runtimes.get("onnxruntime", "none")
