"""Makes candidates from finished artifacts: of a bundle, or a file in a runtime's own format."""

import secrets
from pathlib import Path
from typing import Any

import msgspec

from onmetal import limits
from onmetal.bundles import manifest
from onmetal.converters import operations as converter_operations
from onmetal.errors import OnmetalError, UsageError
from onmetal.files import cache as caches
from onmetal.files import copying
from onmetal.files.reading import open_regular
from onmetal.profilers.devices.local import Local
from onmetal.profilers.operation import asked
from onmetal.records import Candidate, Model, Tensor, shown
from onmetal.runtimes import for_runtime, spec
from onmetal.runtimes import operations as runtime_operations
from onmetal.targets import EXACT
from onmetal.texts.suggest import near


def from_bundle(folder: Path, host: Local, scratch: Path) -> Candidate:
    """The artifact of a bundle, with the options that it ships with. The tensors in its manifest
    must be those of the artifact. A private copy is checked and measured."""
    copy = scratch / f"bundle-{secrets.token_hex(8)}"
    copy.mkdir(mode=0o700)
    _copy_artifact(folder, copy)
    document, problems = manifest.read(copy)
    if not problems:
        run = document["run"]
        described = ends(run["runtime"], copy / run["files"][0], host)
        problems = manifest.untrue_tensors(run, described)
    if problems:
        raise UsageError(f"{folder}: {'; '.join(problems[:5])}")
    files = tuple(copy / name for name in run["files"])
    return candidate(
        f"{folder.name} {document['chosen']}", run["runtime"], files, run["options"], run
    )


def _copy_artifact(folder: Path, copy: Path) -> None:
    """Copy the manifest of a bundle, and all files that may belong to its artifact."""
    try:
        with copying.opened(folder) as source_folder:
            entries = {
                name: state
                for name, state in copying.inside(source_folder).items()
                if name == "manifest.json"
                or ("/" not in name and manifest.kind_of(name) == "artifact")
            }
            copying.check_room(entries, copy)
            for name, state in entries.items():
                copying.copied(source_folder, name, state.st_size, copy / name)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{shown(folder)}: it cannot be read: {why}") from None


def ends(runtime: str, path: Path, host: Local) -> dict[str, list[dict[str, Any]]]:
    """An artifact's own inputs and outputs; the file is untrusted, so it is read in a child
    process.

    Raises UsageError for a .tflite file that violates its specification: some crash the runtime.
    """
    title, violations = spec(runtime).title, []
    cpu_s = limits.cpu_s(path.stat().st_size)
    with host.worker() as worker:
        try:
            if spec(runtime).reads == "tflite":
                check = asked(converter_operations.violations, path)
                violations = worker.do(check, timeout_s=600, cpu_s=cpu_s)
            describe = asked(runtime_operations.describe, runtime, path)
            described = worker.do(describe, timeout_s=600, cpu_s=cpu_s)
        except OnmetalError as error:
            raise UsageError(f"{path}: {title} cannot read it: {error}") from None
    if violations:
        raise UsageError(f"{path}: it violates TFLite's specification: {violations[0]}")
    return described


def from_own(path: Path, runtime: str, threads: int, device: Local) -> Candidate:
    """The candidate of a file in a runtime's own format; the runtime reports its inputs and
    outputs."""
    first, *companion_suffixes = spec(runtime).own_suffixes
    if not path.exists():
        raise UsageError(f"{path}: there is no such file{near(path, (first,))}")
    files = (path, *(path.with_suffix(suffix) for suffix in companion_suffixes))
    for file in files:  # the runtime would wait for a FIFO, and read from a device for ever
        if file == path or file.exists():
            with open_regular(file):
                pass
    tensors = ends(runtime, path, device)
    for tensor in (*tensors["inputs"], *tensors["outputs"]):
        if tensor["shape"] is None or -1 in tensor["shape"]:
            raise UsageError(f"{path}: the shape of {tensor['name']!r} is not static")
    if problems := manifest.impossible(_tensors(tensors, "inputs"), _tensors(tensors, "outputs")):
        raise UsageError(f"{path}: {problems[0]}")
    options = for_runtime(runtime).options("f32", threads)
    return candidate(f"{path.name} {EXACT}@{runtime}", runtime, files, options, tensors)


def _tensors(described_tensors: dict[str, Any], side: str) -> tuple[Tensor, ...]:
    return msgspec.convert(described_tensors[side], tuple[Tensor, ...])


def candidate(
    name: str,
    runtime: str,
    files: tuple[Path, ...],
    options: dict[str, Any],
    tensors: dict[str, Any],
) -> Candidate:
    from importlib.metadata import version

    present_files = tuple(file for file in files if file.is_file())
    digest = caches.sha256(*present_files)
    inputs, outputs = _tensors(tensors, "inputs"), _tensors(tensors, "outputs")
    first_axes = {tensor.shape[0] if tensor.shape else None for tensor in (*inputs, *outputs)}
    artifact_model = Model(
        path=files[0],
        prepared=files[0],
        prepared_sha256=digest,
        format="onnx",
        sha256=digest,
        size_bytes=sum(file.stat().st_size for file in present_files),
        inputs=inputs,
        outputs=outputs,
        parameters=0,
        macs=None,
        operators={},
        batch=(first_axes.pop() if len(first_axes) == 1 else 1) or 1,
    )
    return Candidate(
        name=name,
        recipe=name.rpartition(" ")[2].partition("@")[0].rpartition("/")[2],
        runtime=runtime,
        runtime_version=version(spec(runtime).packages[0]),
        model=artifact_model,
        files=present_files,
        sha256=digest,
        size_bytes=artifact_model.size_bytes,
        options=options,
    )
