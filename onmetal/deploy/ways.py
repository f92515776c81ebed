"""The ways from a model file to each runtime of a target.

Usually there is one: the graph that the file holds, or was imported to. A runtime that reads
another format of graphs is given an export. Where there are several ways (TensorFlow has a
converter of its own to TFLite; OpenVINO reads SavedModels by itself), candidates of all of them
compete.
"""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from onmetal.converters import format_named
from onmetal.deploy.model import exported
from onmetal.errors import UnsupportedError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.records import Model
from onmetal.runtimes import spec
from onmetal.targets import Target


class Way(Struct, frozen=True):
    """One way from a model file to a runtime."""

    model: Model
    """The model as the runtime's artifacts are made from it; its `way` is this one's name."""
    lacks: str | None = None
    """Why there is no such way for this model; None: there is."""
    unchanged: bool = False
    """Whether the runtime is given the model as it is, so that nothing can be done to it before."""


Ways = Mapping[tuple[Path, str], tuple[Way, ...]]
"""By the model's path and the runtime's name."""
NO_WAYS: Ways = {}


def ways(models: list[Model], target: Target, cache: Cache, host: Local) -> Ways:
    """All ways from the models to the runtimes of a target."""
    return {
        (model.path, entry.name): to_runtime(model, entry.name, cache, host)
        for model in models
        for entry in target.runtimes
    }


def to_runtime(model: Model, runtime: str, cache: Cache, host: Local) -> tuple[Way, ...]:
    """All ways from a model to a runtime; one that says what it lacks, where there is none."""
    known, form = spec(runtime), format_named(model.format)
    if model.cut and model.graph_format != model.format:
        return (usual(model, runtime),)  # its framework would give all of it
    possible = [] if usual(model, runtime).lacks else [Way(model)]
    if known.reads in form.exports:
        by = form.exports[known.reads]
        try:
            possible.append(Way(replace(exported(model, known.reads, cache, host), way=by)))
        except UnsupportedError as error:
            possible.append(Way(replace(model, way=by), lacks=str(error)))
    if model.format in known.also_reads:
        own = _unchanged(model)
        possible.append(Way(own if possible else replace(own, way=""), unchanged=True))
    return tuple(possible) or (usual(model, runtime),)


def usual(model: Model, runtime: str) -> Way:
    """The way of the graph that was read; a graph in ONNX becomes one in TFLite where a runtime
    reads only those."""
    if model.graph_format in ("onnx", spec(runtime).reads):
        return Way(model)
    title = format_named(model.graph_format).title
    return Way(model, lacks=f"{spec(runtime).title} does not read {title} models")


def _unchanged(model: Model) -> Model:
    """The model in its own format, which the runtime reads by itself."""
    if model.graph_format == model.format:
        return replace(model, way=model.format)
    return replace(
        model,
        way=model.format,
        prepared=model.prepared.with_name("source"),
        prepared_sha256=caches.key(model=model.prepared_sha256, form=model.format),
        imported=None,
    )
