"""Converts a model to an artifact in a child process, so that a runtime which crashes on a model
fails one candidate and not the whole run."""

import shutil
from importlib.metadata import version as metadata_version
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from onmetal import limits, runtimes
from onmetal.converters import format_named
from onmetal.errors import NeedlessError, OnmetalError, UnsupportedError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker
from onmetal.profilers.operation import Operation, asked
from onmetal.records import Candidate, Model, Source, plain
from onmetal.runtimes import for_runtime, operations, shipped
from onmetal.samples import Samples
from onmetal.targets import Recipe, Target


def convert(
    name: str,
    model: Model,
    recipe: Recipe,
    runtime: str,
    target: Target,
    threads: int,
    device: Local,
    cache: Cache,
    source: Source | None = None,
    samples: Samples | None = None,
) -> Candidate:
    """Make the artifact (or find it in the cache) and open it once, in a child process.

    `source`: the file to convert, by default the model itself. `samples`: to calibrate with,
    where the recipe's tool does that itself. Raises UnsupportedError, with the runtime's own
    reason, where it cannot be made or opened.
    """
    converter = for_runtime(runtime)
    version = device.facts().runtimes[runtime]
    target_options = next((entry.options for entry in target.runtimes if entry.name == runtime), {})
    source = source or Source(model.prepared, model.prepared_sha256)
    # Operators that are not computed in integers stay f32: half precision is not mixed with them.
    compute = "f32" if recipe.compute in ("i8", "i16") else recipe.compute
    options = {**converter.options(compute, threads), **target_options, **source.options}
    if model.stateful:
        options["stateful"] = True
    hardware_options = runtimes.hardware(runtime, recipe, target)
    by_tool = recipe.does("nncf")
    size_bytes = max(source.path.stat().st_size, model.size_bytes)
    cpu_s = limits.cpu_s(size_bytes)
    memory_bytes = limits.converting_bytes(size_bytes, model.largest_bytes)
    if by_tool:
        memory_bytes *= 2  # PyTorch and its own copies

    candidate = Candidate(
        name=name,
        recipe=recipe.name,
        runtime=runtime,
        runtime_version=version,
        model=model,
        files=(),
        sha256="",
        size_bytes=0,
        options=options,
    )

    def operation(folder: Path) -> Operation[list[str]]:
        if by_tool:
            assert samples
            return asked(operations.quantize, runtime, source.path, samples, model, folder)
        return asked(operations.convert, runtime, source.path, compute, folder, hardware_options)

    def build(folder: Path) -> None:
        def convert_and_open(workers: list[LocalWorker]) -> list[str]:
            for entry in folder.iterdir():  # left by an earlier process that failed
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            files = workers[0].do(
                operation(folder),
                timeout_s=3600,
                memory_bytes=memory_bytes,
                cpu_s=None if by_tool else limits.CONVERTING * cpu_s,
            )
            opened = replace(candidate, files=tuple(folder / file for file in files)).artifact
            try:
                workers[0].open(
                    opened,
                    timeout_s=3600,
                    memory_bytes=memory_bytes,
                    cpu_s=limits.OPENING * cpu_s,
                )
            except OnmetalError as error:
                raise UnsupportedError(f"cannot open it: {error}") from None
            workers[0].let_go()
            return files

        try:
            files = device.helped(None if converter.ALONE else runtime, convert_and_open)
        except NeedlessError:
            raise
        except OnmetalError as error:
            raise UnsupportedError(f"{runtime} {version}: {error}") from None
        (folder / "files.json").write_bytes(msgspec.json.encode(files))

    digest = caches.key(
        prepared=source.sha256,
        compute=compute,
        runtime=runtime,
        tool=_tool(recipe, samples) + ([hardware_options] if hardware_options else []),
        version=version,
        options=options,
        code=converter.VERSION,
    )
    folder = cache.get("artifact", digest, build)
    files = [folder / file for file in msgspec.json.decode((folder / "files.json").read_bytes())]
    return replace(
        candidate,
        files=tuple(files),
        sha256=caches.sha256(*files),
        size_bytes=sum(file.stat().st_size for file in shipped(runtime, files)),
        details={
            **_facts(folder),
            "threads": threads,
            "compute": recipe.compute,
            "options": options,
            **({"format": plain(recipe.format)} if recipe.format else {}),
            **_import(model),
            **source.details,
        },
    )


def _import(model: Model) -> dict[str, Any]:
    """How the graph was made, where it is not the one that the model's format prepares."""
    if model.imported is None or model.graph_format == format_named(model.format).graph:
        return {}
    return {"imported": plain(model.imported)}


def _facts(folder: Path) -> dict[str, Any]:
    """The details that the converter wrote about the artifact (made.json); empty where it wrote
    none."""
    try:
        document: dict[str, Any] = msgspec.json.decode((folder / "made.json").read_bytes())
    except FileNotFoundError:
        return {}
    return document


def _tool(recipe: Recipe, samples: Samples | None) -> list[Any]:
    """The parts of the cache key for a recipe whose tool calibrates by itself (NNCF): its version
    and the samples; empty for other recipes."""
    if not recipe.does("nncf") or samples is None:
        return []
    return ["nncf", metadata_version("nncf"), samples.digest, str(samples.count)]
