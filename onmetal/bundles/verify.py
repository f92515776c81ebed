"""Verifies a bundle: its files, whether they are what its manifest says, and its golden outputs."""

import hashlib
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from onmetal import limits
from onmetal.bundles import golden
from onmetal.bundles import manifest as manifests
from onmetal.bundles.sums import SUMS, files_inside, rendered_sums
from onmetal.converters import operations as converter_operations
from onmetal.errors import DeviceError, OnmetalError, UsageError, VerificationError
from onmetal.files import copying
from onmetal.profilers.devices import Device
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker, quiet_environment
from onmetal.profilers.operation import asked
from onmetal.records import Artifact, plain, shown
from onmetal.reports.command_records import Verification
from onmetal.reports.json import spelled
from onmetal.runtimes import install, pinned, running, spec
from onmetal.runtimes import operations as runtime_operations
from onmetal.texts.suggest import near

SUMS_BYTES = 4 << 20
"""The most bytes of SHA256SUMS: enough for ten thousand files."""
MOST_PROBLEMS = 50
"""The most problems that are reported for each check."""
PROBLEM_LENGTH = 500
KNOWN_RUNNERS = frozenset(
    {
        "33cfb2d3c5fe6336bc6d3f1ed197bb42555887507f93310fb2ace37b496521cf",
        "f6d4f33e8424fefad36356396af667b09ffa5a65d1826b628cd3dee022f0885e",
        "4c77b169e26d298fe93c8c7b270446b9164d9a9057e3e1c0938b7f61e8858ce7",
        "346d6ec935e45803ba0abe12b203ca6964929191538e7821ea7a6f11c48146d5",
    }
)
"""SHA-256 of older versions of run.py, which did not yet remove their own folder from `sys.path`:
in a folder that holds nothing else to import, they are as safe."""
NO_VECTORS = "none"
"""The result of a check by golden vectors where the bundle holds none: nothing was checked."""


def check_folder(folder: Path) -> None:
    """Raises UsageError where the folder is no bundle."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{shown(folder)}: this is no folder; a bundle is one")
    if not folder.is_dir():
        raise UsageError(f"{shown(folder)}: there is no such folder{near(folder, ('',))}")
    if not any((folder / name).exists() for name in (SUMS, "manifest.json", "run.py")):
        raise UsageError(
            f"{shown(folder)}: this is no bundle: it has neither manifest.json nor {SUMS}"
        )


def verify(folder: Path, host: Local, device: Device, *, run: bool, scratch: Path) -> Verification:
    """Check a bundle. Each check runs only where all checks before it passed, except that the
    golden vectors are checked with a run.py of another version, too. They run on the device.

    `scratch`: a folder for a private copy of exactly the bytes that were hashed; only this copy is
    used afterwards.

    Raises UsageError where the folder is no bundle, VerificationError (with the document) where a
    check fails.
    """
    check_folder(folder)
    checks: dict[str, str] = {}
    problems: list[str] = []
    manifest: dict[str, Any] = {}
    copy = scratch / "checked"
    copy.mkdir(mode=0o700)

    def check(name: str, found_problems: list[str]) -> bool:
        checks[name] = "failed" if found_problems else "ok"
        problems.extend(
            spelled(problem)[:PROBLEM_LENGTH] for problem in found_problems[:MOST_PROBLEMS]
        )
        return not found_problems

    if check("files", _copy_files(folder, copy)):
        manifest, found_problems = manifests.read(copy)
        if check("manifest", found_problems or manifests.strangers(manifest, files_inside(copy))):
            _check_runtime(manifest["run"]["runtime"], device)
            runner_matches = check("runner", _check_runner(copy, manifest))
            with host.worker() as worker:
                passed = all(
                    check(name, run_check(worker))
                    for name, run_check in _artifact_checks(copy, manifest, device)
                )
            vectors = manifest["golden"]["vectors"]
            if passed and not vectors:
                checks["golden"] = NO_VECTORS
            if run and runner_matches and passed and vectors:
                check("run.py", _execute(copy, host))
            elif run and runner_matches and passed:
                checks["run.py"] = NO_VECTORS
    chosen = manifest.get("chosen")
    verification = Verification(1, shown(folder), not problems, checks, problems, chosen)
    if problems:
        reasons = "; ".join(problems)
        raise VerificationError(
            f"{shown(folder)} failed verification: {reasons}", plain(verification)
        )
    return verification


def _check_runtime(runtime: str, device: Device) -> None:
    if runtime not in device.facts().runtimes:
        location = "here" if device.address == "local" else f"on {device.address}"
        raise DeviceError(
            f"the runtime {runtime} is not installed {location}; `{install(runtime)}`"
        )


def _artifact_checks(
    copy: Path, manifest: dict[str, Any], device: Device
) -> Iterator[tuple[str, Callable[[LocalWorker], list[str]]]]:
    """(name, function) of the checks of the artifact, in order: a runtime opens only files that
    passed the checks before."""
    if spec(manifest["run"]["runtime"]).reads == "tflite":
        artifact = copy / manifest["run"]["files"][0]
        yield "specification", lambda worker: _check_specification(artifact, worker)
    yield "tensors", lambda worker: _check_tensors(copy, manifest, worker)
    if manifest["golden"]["vectors"]:
        yield "golden", lambda worker: _check_golden(copy, manifest, worker, device)


def _copy_files(folder: Path, copy: Path) -> list[str]:
    """Copy the files that SHA256SUMS lists. -> the differences between the folder and
    SHA256SUMS."""
    try:
        with copying.opened(folder) as source_folder:
            return _check_files(source_folder, copy)
    except ValueError as error:
        return [str(error)]
    except OSError as error:
        return [f"the folder cannot be read ({_why(error)})"]


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _check_files(source_folder: copying.Folder, copy: Path) -> list[str]:
    try:
        listed = _listed(copying.read(source_folder, SUMS, SUMS_BYTES))
    except OSError as error:
        return [f"{SUMS} is missing or unreadable ({_why(error)})"]
    if listed is None:
        return [f"{SUMS} is damaged"]
    entries = copying.inside(source_folder)
    entries.pop(SUMS, None)
    problems = [f"{name} was removed or renamed" for name in sorted(listed.keys() - entries.keys())]
    problems += [f"{name} was added" for name in sorted(entries.keys() - listed.keys())]
    problems += [
        f"{name} does not belong in a bundle: {_harm(name)}"
        for name in sorted(listed.keys() & entries.keys())
        if manifests.kind_of(name) is None
    ]
    for name in sorted(listed.keys() & entries.keys()):
        most = manifests.MOST_BYTES.get(str(manifests.kind_of(name)))
        if not stat.S_ISREG(entries[name].st_mode):
            problems.append(f"{name} is not a regular file")
        elif most and entries[name].st_size > most:
            problems.append(f"{name} is longer than {most} bytes")
    if problems:
        return problems
    copying.check_room(entries, copy)
    for name in sorted(listed):
        try:
            if (
                copying.copied(source_folder, name, entries[name].st_size, copy / name)
                != listed[name]
            ):
                problems.append(f"{name} was changed")
        except OSError as error:
            problems.append(f"{name} cannot be read ({_why(error)})")
    return problems


def _listed(content: bytes) -> dict[str, str] | None:
    """Name of a file -> its digest; None where the text is not byte for byte as `rendered_sums`
    writes it, so that no change goes unnoticed."""
    listed: dict[str, str] = {}
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    for line in text.split("\n"):
        digest, _, name = line.partition("  ")
        if name and ".." not in Path(name).parts and not Path(name).is_absolute():
            listed[name] = digest
    return listed if text == rendered_sums(listed) else None


def _harm(name: str) -> str:
    """Why a file that has no place in a bundle must not be there."""
    importable = (".py", ".pyc", ".pyw", ".pth", ".so", ".pyd", ".dll", ".dylib")
    if "/" in name or name.endswith(importable):
        return "Python, or another program, may load it in place of a library"
    return "only what onmetal writes does"


def _check_runner(copy: Path, manifest: dict[str, Any]) -> list[str]:
    """Problems of run.py, which must be a version of onmetal's template, and of requirements.txt,
    which must pin the runtime that manifest.json names."""
    content, problems = _content(copy / "run.py"), []
    known = hashlib.sha256(content).hexdigest() in KNOWN_RUNNERS
    if not known and content != running.program(manifest["run"]["runtime"]):
        tools = manifest.get("tools")
        writer = tools.get("onmetal") if isinstance(tools, dict) else "an unknown version"
        problems = [
            f"run.py is not the template of this onmetal (the bundle was written by {writer})"
        ]
    requirement = pinned(manifest["run"]["runtime"], manifest["run"]["runtime_version"])
    if _content(copy / "requirements.txt") not in (b"", requirement.encode()):
        problems.append("requirements.txt is not the runtime that manifest.json names")
    return problems


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _check_tensors(folder: Path, manifest: dict[str, Any], worker: LocalWorker) -> list[str]:
    """Problems of the inputs and outputs and of the golden vectors: they must be as the manifest
    says."""
    run = manifest["run"]
    artifact = folder.absolute() / run["files"][0]
    try:
        stored = worker.do(
            asked(runtime_operations.describe, run["runtime"], artifact),
            timeout_s=600,
            cpu_s=limits.cpu_s(artifact.stat().st_size),
        )
        vectors: dict[str, Any] = {}
        if not manifest["golden"]["vectors"] and (folder / "golden.npz").exists():
            return ["golden.npz is there, and manifest.json says that there are no golden vectors"]
        if manifest["golden"]["vectors"]:
            most_bytes = manifests.golden_bytes(manifest)
            vectors = worker.do(
                asked(golden.describe, folder.absolute(), most_bytes), timeout_s=600
            )
    except OnmetalError as error:
        return [f"{artifact.name} or golden.npz cannot be read: {error}"]
    return [
        *manifests.untrue_tensors(run, stored),
        *manifests.untrue_vectors(run, vectors, manifest["golden"]["vectors"])[:5],
    ]


def _check_specification(artifact: Path, worker: LocalWorker) -> list[str]:
    """The violations of TFLite's quantization specification in a .tflite file."""
    try:
        violations = worker.do(
            asked(converter_operations.violations, artifact.absolute()),
            timeout_s=600,
            cpu_s=limits.cpu_s(artifact.stat().st_size),
        )
    except OnmetalError as error:
        return [f"{artifact.name} cannot be read: {error}"]
    return [
        f"{artifact.name} violates TFLite's specification: {violation}"
        for violation in violations[:5]
    ]


def _check_golden(
    folder: Path, manifest: dict[str, Any], host: LocalWorker, device: Device
) -> list[str]:
    runtime = manifest["run"]["runtime"]
    try:
        if device.address == Local.address:
            size_bytes = sum((folder / name).stat().st_size for name in manifest["run"]["files"])
            return host.do(
                asked(golden.check, folder.absolute(), runtime),
                timeout_s=600,
                cpu_s=limits.OPENING * limits.cpu_s(size_bytes),
            )
        return _golden_on_device(folder, manifest["run"], host, device)
    except OnmetalError as error:
        # A board that fails, or holds another model, says nothing about the bundle.
        if device.traits.holds_one_model:
            raise DeviceError(str(error)) from None
        return [f"the golden vectors could not be run: {error}"]


def _golden_on_device(
    folder: Path, run: dict[str, Any], host: LocalWorker, device: Device
) -> list[str]:
    """Run the golden vectors on a remote device and compare its outputs on this machine."""
    with tempfile.TemporaryDirectory(prefix="onmetal-") as name:
        inputs = Path(name) / "inputs.npz"
        host.do(asked(golden.write_inputs, folder.absolute(), inputs), timeout_s=600)
        artifact = Artifact(
            run["runtime"],
            tuple((folder / file).absolute() for file in run["files"]),
            run["options"],
            tuple(tensor["name"] for tensor in run["inputs"]),
            tuple(tensor["name"] for tensor in run["outputs"]),
        )
        with device.worker() as worker:
            worker.open(artifact, timeout_s=600)
            worker.run(inputs, Path(name), timeout_s=600)
        return host.do(asked(golden.compare, folder.absolute(), Path(name)), timeout_s=600)


def _execute(folder: Path, device: Local) -> list[str]:
    """Run a copy of the bundle's run.py as a user would. It was checked before to be a version of
    onmetal's template."""
    try:
        process = subprocess.run(
            # -P: a run.py of an earlier version imports nothing from its own folder.
            [sys.executable, "-P", str((folder / "run.py").absolute())],
            env=quiet_environment(device.home) | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
    except subprocess.TimeoutExpired:
        return ["run.py did not end within ten minutes"]
    if process.returncode == 0:
        return []
    last_lines = (process.stdout + process.stderr).strip().splitlines()[-3:]
    return [f"run.py failed with code {process.returncode}: {' / '.join(last_lines)}"]
