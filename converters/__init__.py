"""Converters: one module per runtime, imported only in the worker that converts.

Each offers `convert` and `options` as the Protocol says. `convert` runs in a child process, so that
a runtime that crashes on a model costs one candidate and not the run.
"""

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from onmetal import cache as caches
from onmetal.cache import Cache
from onmetal.errors import OnmetalError, UnsupportedError, UsageError
from onmetal.profilers.local import Local
from onmetal.records import Candidate, Model
from onmetal.targets import Recipe, Target


class Converter(Protocol):
    """What a module in this folder named after a runtime provides."""

    VERSION: int
    """Raised whenever the same input would give other bytes: part of the cache's key."""

    OPTIONS: frozenset[str]
    """Options of the runtime that may be set by a target file or a bundle's manifest."""

    RESERVED: frozenset[str]
    """Of those, what follows from the recipe and --threads: not a target file's to set."""

    def convert(self, prepared: str, compute: str, folder: str) -> list[str]:
        """Write the artifact of a static ONNX model to `folder`.

        -> the names of its files, the one to open first. The same input gives the same bytes.
        Raises UnsupportedError where the runtime cannot take the model.
        """

    def options(self, compute: str, threads: int) -> dict[str, Any]:
        """The runtime's own options for one inference at a time, as low a latency as it can."""


def for_runtime(name: str) -> Converter:
    return cast(Converter, import_module(f"onmetal.converters.{name}"))


def check_options(target: Target) -> None:
    """Raises UsageError where a target file sets an option that its runtime has not."""
    for runtime in target.runtimes:
        converter = for_runtime(runtime.name)
        known = converter.OPTIONS - converter.RESERVED
        if unknown := sorted(runtime.options.keys() - known):
            raise UsageError(
                f"target {target.name}: {runtime.name} has no option {unknown[0]!r} that may be "
                f"set; there are: {', '.join(sorted(known))}"
            )


def convert(
    name: str,
    model: Model,
    recipe: Recipe,
    runtime: str,
    target: Target,
    threads: int,
    device: Local,
    cache: Cache,
) -> Candidate:
    """Make the artifact (or find it in the cache) and open it once, in a child process.

    Raises UnsupportedError, with the runtime's own reason, where it cannot be made or opened.
    """
    converter = for_runtime(runtime)
    version = device.facts().runtimes[runtime]
    own = next((entry.options for entry in target.runtimes if entry.name == runtime), {})
    options = {**converter.options(recipe.compute, threads), **own}
    names: dict[str, Any] = {
        "inputs": [tensor.name for tensor in model.inputs],
        "outputs": [tensor.name for tensor in model.outputs],
    }

    def build(folder: Path) -> None:
        with device.worker() as worker:
            try:
                files = worker.call(
                    "call",
                    timeout_s=3600,
                    function=f"onmetal.converters.{runtime}:convert",
                    prepared=str(model.prepared),
                    compute=recipe.compute,
                    folder=str(folder),
                )
                paths = [str(folder / file) for file in files]
                worker.call(
                    "open", timeout_s=3600, runtime=runtime, files=paths, options=options, **names
                )
            except OnmetalError as error:
                raise UnsupportedError(f"{runtime} {version}: {error}") from None
        (folder / "files.json").write_bytes(msgspec.json.encode(files))

    digest = caches.key(
        prepared=model.prepared_sha256,
        compute=recipe.compute,
        runtime=runtime,
        version=version,
        options=options,
        code=converter.VERSION,
    )
    folder = cache.get("artifact", digest, build)
    files = [folder / file for file in msgspec.json.decode((folder / "files.json").read_bytes())]
    return Candidate(
        name=name,
        recipe=recipe.name,
        runtime=runtime,
        runtime_version=version,
        model=model,
        files=tuple(files),
        sha256=caches.sha256(*files),
        size_bytes=sum(file.stat().st_size for file in files),
        options=options,
        details={"threads": threads, "compute": recipe.compute, "options": options},
    )
