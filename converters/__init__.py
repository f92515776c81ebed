"""Converters: one module per runtime, imported only in the worker that converts.

Each offers `convert` and `options` as the Protocol says. `convert` runs in a child process, so that
a runtime that crashes on a model costs one candidate and not the run.
"""

import shutil
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as metadata_version
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from onmetal import cache as caches
from onmetal.cache import Cache
from onmetal.calibration.samples import Samples
from onmetal.errors import NeedlessError, OnmetalError, UnsupportedError, UsageError
from onmetal.profilers import limits
from onmetal.profilers.local import Local, Worker
from onmetal.records import Candidate, Model, Source, plain
from onmetal.targets import Recipe, Target


class Converter(Protocol):
    """What a module in this folder named after a runtime provides."""

    VERSION: int
    """Raised whenever the same input would give other bytes: part of the cache's key."""

    OPTIONS: dict[str, Any]
    """Options of the runtime that may be set by a target file or a bundle's manifest, each with the
    type of its value."""

    RESERVED: frozenset[str]
    """Of those, what follows from the recipe and --threads: not a target file's to set."""

    ALONE: bool
    """Whether every artifact is made in a process of its own, because what the process made before
    would show in its bytes."""

    def convert(self, prepared: str, compute: str, folder: str) -> list[str]:
        """Write the artifact of a static ONNX model to `folder`.

        -> the names of its files, the one to open first. The same input gives the same bytes.
        Raises UnsupportedError where the runtime cannot take the model.
        """

    def options(self, compute: str, threads: int) -> dict[str, Any]:
        """The runtime's own options for one inference at a time, as low a latency as it can."""

    def describe(self, path: str) -> dict[str, list[dict[str, Any]]]:
        """`inputs` and `outputs` of an artifact itself: name, dtype, shape (an axis of no fixed
        size is -1; None: not even their number is fixed), and scale where it is quantized."""


def for_runtime(name: str) -> Converter:
    return cast(Converter, import_module(f"onmetal.converters.{name}"))


def misfits(runtime: str, options: dict[str, Any]) -> list[str]:
    """Options that a runtime does not have, or not with such a value, in words."""
    known, problems = for_runtime(runtime).OPTIONS, []
    for name, value in options.items():
        if name not in known:
            problems.append(f"an unknown option {name!r}")
            continue
        try:
            msgspec.convert(value, known[name])
        except msgspec.ValidationError as error:
            problems.append(f"the option {name!r} to what it cannot be: {error}")
    return problems


def check_options(target: Target) -> None:
    """Raises UsageError where a target file sets an option that its runtime has not, or to a value
    that it cannot have."""
    for runtime in target.runtimes:
        converter = for_runtime(runtime.name)
        known = converter.OPTIONS.keys() - converter.RESERVED
        if unknown := sorted(runtime.options.keys() - known):
            raise UsageError(
                f"target {target.name}: {runtime.name} has no option {unknown[0]!r} that may be "
                f"set; there are: {', '.join(sorted(known))}"
            )
        if wrong := misfits(runtime.name, runtime.options):
            raise UsageError(f"target {target.name}: {runtime.name} sets {wrong[0]}")


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
    how: dict[str, Any] = {"function": f"onmetal.converters.{runtime}:convert", "compute": compute}
    if recipe.method == "nncf":
        assert samples
        how = {
            "function": "onmetal.converters.nncf_int8:convert",
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
    if recipe.method == "nncf":
        memory_bytes *= 2  # PyTorch and its own copies

    def build(folder: Path) -> None:
        def made(workers: list[Worker]) -> list[str]:
            for entry in folder.iterdir():  # left by a process that failed over it
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            files: list[str] = workers[0].call(
                "call",
                timeout_s=3600,
                memory_bytes=memory_bytes,
                cpu_s=None if recipe.method == "nncf" else limits.CONVERTING * cpu_s,
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


def shipped(runtime: str, files: Sequence[Path]) -> Sequence[Path]:
    """Of an artifact's files those that the device holds: what an NPU runs stands last, after what
    is run on this machine in its place."""
    return files[-1:] if runtime == "tflm" else files


def _hardware(recipe: Recipe, runtime: str, target: Target) -> dict[str, Any]:
    """What a converter must know of the chip."""
    if runtime != "tflm":
        return {}
    return {
        "core": target.chip.core if target.chip else None,
        "npu": plain(target.npu),
        "split": recipe.split,
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
    if recipe.method != "nncf" or samples is None:
        return []
    return ["nncf", metadata_version("nncf"), samples.digest, str(samples.count)]
