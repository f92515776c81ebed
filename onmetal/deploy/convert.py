"""From a model to an artifact: made in a child process, so that a runtime that crashes on a model
costs one candidate and not the run."""

import shutil
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as metadata_version
from pathlib import Path
from typing import Any

import msgspec

from onmetal import limits
from onmetal.errors import NeedlessError, OnmetalError, UnsupportedError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local, Worker
from onmetal.records import Candidate, Model, Source, plain
from onmetal.runtimes import for_runtime, shipped
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
    own = next((entry.options for entry in target.runtimes if entry.name == runtime), {})
    source = source or Source(model.prepared, model.prepared_sha256)
    # What is not computed in 8 bits stays f32; a half precision beside them is not mixed in.
    compute = "f32" if recipe.compute in ("i8", "i16") else recipe.compute
    options = {**converter.options(compute, threads), **own, **source.options}
    if model.stateful:
        options["stateful"] = True
    how: dict[str, Any] = {
        "function": f"onmetal.runtimes.{runtime}.convert:convert",
        "compute": compute,
    }
    if recipe.does("nncf"):
        assert samples
        how = {
            "function": "onmetal.runtimes.openvino.nncf_int8:convert",
            "samples": plain(samples),
            "model": plain(model),
        }
    hardware = _hardware(recipe, runtime, target)
    if hardware:
        how["hardware"] = hardware
    names: dict[str, Any] = {
        "inputs": [tensor.name for tensor in model.inputs],
        "outputs": [tensor.name for tensor in model.outputs],
    }

    size_bytes = max(source.path.stat().st_size, model.size_bytes)
    cpu_s = limits.cpu_s(size_bytes)
    memory_bytes = limits.converting_bytes(size_bytes, model.largest_bytes)
    if recipe.does("nncf"):
        memory_bytes *= 2  # PyTorch and its own copies

    def build(folder: Path) -> None:
        def made(workers: list[Worker]) -> list[str]:
            for entry in folder.iterdir():  # left by a process that failed over it
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            files: list[str] = workers[0].call(
                "call",
                timeout_s=3600,
                memory_bytes=memory_bytes,
                cpu_s=None if recipe.does("nncf") else limits.CONVERTING * cpu_s,
                prepared=str(source.path),
                folder=str(folder),
                **how,
            )
            paths = [str(folder / file) for file in files]
            try:
                workers[0].call(
                    "open",
                    timeout_s=3600,
                    memory_bytes=memory_bytes,
                    cpu_s=limits.OPENING * cpu_s,
                    runtime=runtime,
                    files=paths,
                    options=options,
                    **names,
                )
            except OnmetalError as error:
                raise UnsupportedError(f"cannot open it: {error}") from None
            workers[0].call("let_go", timeout_s=600)
            return files

        try:
            files = device.helped(None if converter.ALONE else runtime, made)
        except NeedlessError:
            raise
        except OnmetalError as error:
            raise UnsupportedError(f"{runtime} {version}: {error}") from None
        (folder / "files.json").write_bytes(msgspec.json.encode(files))

    digest = caches.key(
        prepared=source.sha256,
        compute=compute,
        runtime=runtime,
        tool=_tool(recipe, samples) + ([hardware] if hardware else []),
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
        size_bytes=sum(file.stat().st_size for file in shipped(runtime, files)),
        options=options,
        details={
            **_made(folder),
            "threads": threads,
            "compute": recipe.compute,
            "options": options,
            **({"format": plain(recipe.format)} if recipe.format else {}),
            **source.details,
        },
    )


def _hardware(recipe: Recipe, runtime: str, target: Target) -> dict[str, Any]:
    """What a converter must know of the chip."""
    if runtime != "tflm":
        return {}
    return {
        "core": target.chip.core if target.chip else None,
        "npu": plain(target.npu),
        "split": recipe.does("split"),
        **({"vela": _installed("ethos-u-vela")} if target.npu else {}),
    }


def _installed(package: str) -> str:
    try:
        return metadata_version(package)
    except PackageNotFoundError:
        return "not installed"


def _made(folder: Path) -> dict[str, Any]:
    """What a converter tells of how it made the artifact."""
    try:
        found: dict[str, Any] = msgspec.json.decode((folder / "made.json").read_bytes())
    except FileNotFoundError:
        return {}
    return found


def _tool(recipe: Recipe, samples: Samples | None) -> list[Any]:
    """What besides the source and the runtime decides the artifact."""
    if not recipe.does("nncf") or samples is None:
        return []
    return ["nncf", metadata_version("nncf"), samples.digest, str(samples.count)]
