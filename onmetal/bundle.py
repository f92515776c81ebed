"""Writes a deployment bundle, whole or not at all, and verifies one.

A bundle is a folder: manifest.json, the artifact, golden.npz, run.py, README.md, for phones and
boards more of their own, and SHA256SUMS over every other file. The sums tell damage, not malice
(they are not signed), so `verify` trusts nothing in the folder: it runs onmetal's own copy of
run.py, in a worker, with known options only.
"""

import contextlib
import hashlib
import itertools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil

from onmetal import manifest as manifests
from onmetal import terminal
from onmetal.errors import DeviceError, OnmetalError, UsageError, VerificationError
from onmetal.profilers import Device
from onmetal.profilers.board import Board
from onmetal.profilers.local import Local, Worker, quiet_environment
from onmetal.suggest import near
from onmetal.targets import TFLITE, install

SUMS = "SHA256SUMS"
REPORT = "report.json"
NO_VECTORS = "none"
"""Of a check by golden vectors, where the bundle holds none: nothing was checked."""


def template(runtime: str) -> bytes:
    """run.py of every bundle of a runtime: the very module that onmetal measures with."""
    return (Path(__file__).parent / "profilers" / f"run_{runtime}.py").read_bytes()


def encode(document: dict[str, Any]) -> bytes:
    """JSON for people and programs; what is no number (NaN, infinity) becomes null."""
    return terminal.spelled(msgspec.json.format(msgspec.json.encode(document), indent=2)) + b"\n"


# --- the output folder


def check_out(out: Path, force: bool) -> None:
    """Before any long work: may a bundle be written there? Raises UsageError if not."""
    if Path.cwd().is_relative_to(out.resolve()):
        raise UsageError(
            f"--out {out}: this is the current folder or one above it, and --out is replaced as a "
            "whole; choose another"
        )
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out}: exists and is not a folder; choose another")
    _check_there(out, force)
    ancestor = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=ancestor, prefix=f".{out.name}."):
            pass
    except OSError as error:
        raise UsageError(f"--out {out}: cannot write there ({error.strerror})") from None


def _check_there(out: Path, force: bool) -> None:
    if out.exists() and _holds(out) != "nothing" and not force:
        raise UsageError(
            f"--out {out}: exists and is not empty; --force replaces it, or choose another folder"
        )


def _holds(out: Path) -> Literal["nothing", "bundle", "more"]:
    """What would be lost with the folder: nothing to speak of, a bundle, or something else."""
    inside = {entry.name for entry in out.iterdir()}
    if inside <= {REPORT}:
        return "nothing"
    return "bundle" if {"manifest.json", SUMS} <= inside else "more"


@contextlib.contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it or vanishes; those of killed runs are removed."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.*.partial"):
        with contextlib.suppress(ValueError, IndexError):
            if not psutil.pid_exists(int(left.name.split(".")[-3])):
                shutil.rmtree(left, ignore_errors=True)
    folder = out.parent / f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replacing(out: Path, force: bool) -> Iterator[Path]:
    """An empty folder to write to; where the block ends well it takes the place of `out`.

    A bundle that was there is removed; a folder of anything else is kept beside it, renamed.
    """
    with _partial(out) as folder:
        new, old = folder / "new", folder / "old"
        new.mkdir()
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        _check_there(out, force)  # another run may have been faster
        if out.exists() and _holds(out) == "more":
            out.rename(_aside(out))
        try:
            if out.exists():
                out.rename(old)
            new.rename(out.absolute())
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out.absolute())
            raise


def _aside(out: Path) -> Path:
    """A free name beside it."""
    names = (out.with_name(f"{out.name}.replaced-{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def write_report(out: Path, document: dict[str, Any], force: bool) -> None:
    """What `--out` holds where no candidate was chosen: the full document, and no bundle."""
    with replacing(out, force) as folder:
        (folder / REPORT).write_bytes(encode(document))


# --- writing


def write(
    out: Path,
    runtime: str,
    files: Sequence[Path],
    extra: dict[str, bytes],
    golden: Path | None,
    manifest: dict[str, Any],
    readme: str,
    force: bool,
    *,
    host: Local,
    device: Device,
) -> None:
    """`extra`: more files, by their path in the bundle; `golden`: the .npz of vectors, which ran on
    the device, where there are any; `manifest` goes in as it is.

    The bundle is verified before it appears. Raises RuntimeError, which is a defect of ours, where
    it is not what it says; then nothing is written.
    """
    with replacing(out, force) as folder:
        for file in files:
            shutil.copyfile(file, folder / file.name)
        for name, content in extra.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if golden:
            shutil.copyfile(golden, folder / "golden.npz")
        (folder / "run.py").write_bytes(template(runtime))
        (folder / "README.md").write_text(readme, "utf-8")
        (folder / "manifest.json").write_bytes(encode(manifest))
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (folder / SUMS).write_text(_sums(folder), "utf-8")
        try:
            verify(folder, host, device, run=False)
        except VerificationError as error:
            device.state()  # raises DeviceError where it is gone, which is no defect of the bundle
            problems = "; ".join((error.document or {})["problems"])
            raise RuntimeError(
                f"the new bundle does not verify, and {out} was not written: {problems}"
            ) from None


def _sums(folder: Path) -> str:
    return _rendered({name: _sha256(path) for name, path in _inside(folder).items()})


def _inside(folder: Path) -> dict[str, Path]:
    """What lies in the bundle, by its path there: files and what is neither file nor folder. A link
    to a folder is not followed; an empty folder counts, since no sum would tell of it."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        plain_folder = path.is_dir() and not path.is_symlink()
        if name != SUMS and not (plain_folder and any(path.iterdir())):
            found[name] = path
    return found


def _rendered(digests: dict[str, str]) -> str:
    """As `sha256sum -c` reads it."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- verifying


def check_folder(folder: Path) -> None:
    """Raises UsageError where the folder is no bundle."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder{near(folder, ('',))}")
    if not any((folder / name).exists() for name in (SUMS, "manifest.json", "run.py")):
        raise UsageError(f"{folder}: this is no bundle: it has neither manifest.json nor {SUMS}")


def verify(folder: Path, host: Local, device: Device, *, run: bool) -> dict[str, Any]:
    """Check a bundle; what is checked only where all before it held. Golden vectors run on the
    device.

    -> the document of `--json`. Raises UsageError where the folder is no bundle, VerificationError
    (with the document) where it is not what it says.
    """
    check_folder(folder)
    checks: dict[str, str] = {}
    problems: list[str] = []
    manifest: dict[str, Any] = {}

    def check(name: str, found: list[str]) -> bool:
        checks[name] = "failed" if found else "ok"
        problems.extend(found)
        return not found

    if check("files", _check_files(folder)):
        manifest, found = manifests.read(folder)
        if check("manifest", found):
            runtime = manifest["run"]["runtime"]
            if runtime not in device.facts().runtimes:
                where = "here" if device.address == "local" else f"on {device.address}"
                raise DeviceError(
                    f"the runtime {runtime} is not installed {where}; `{install(runtime)}`"
                )
            same = check("runner", _check_runner(folder, runtime, manifest))
            with host.worker() as worker:
                check("tensors", _check_tensors(folder, manifest, worker))
                if runtime in TFLITE:
                    artifact = folder / manifest["run"]["files"][0]
                    check("specification", _check_specification(artifact, worker))
                if manifest["golden"]["vectors"]:
                    check("golden", _check_golden(folder, manifest, worker, device))
                else:
                    checks["golden"] = NO_VECTORS
            if run and same and manifest["golden"]["vectors"]:
                check("run.py", _execute(folder, host))
            elif run and same:
                checks["run.py"] = NO_VECTORS
    document = {
        "schema": 1,
        "bundle": str(folder),
        "ok": not problems,
        "checks": checks,
        "problems": problems,
        "chosen": manifest.get("chosen"),
    }
    if problems:
        raise VerificationError(f"{folder} failed verification: " + "; ".join(problems), document)
    return document


def _check_files(folder: Path) -> list[str]:
    if (folder / SUMS).is_symlink():
        return [f"{SUMS} is not a regular file"]
    try:
        text = (folder / SUMS).read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return [f"{SUMS} is missing or unreadable"]
    listed: dict[str, str] = {}
    for line in text.split("\n"):
        digest, _, name = line.partition("  ")
        if name and ".." not in Path(name).parts and not Path(name).is_absolute():
            listed[name] = digest
    if text != _rendered(listed):  # one form only, so that no byte of it can be changed unseen
        return [f"{SUMS} is damaged"]
    there = _inside(folder)
    found = [f"{name} was removed or renamed" for name in sorted(listed.keys() - there.keys())]
    found += [f"{name} was added" for name in sorted(there.keys() - listed.keys())]
    for name in sorted(listed.keys() & there.keys()):
        if there[name].is_symlink() or not there[name].is_file():
            found.append(f"{name} is not a regular file")
            continue
        try:
            if _sha256(there[name]) != listed[name]:
                found.append(f"{name} was changed")
        except OSError as error:
            found.append(f"{name} cannot be read ({error.strerror})")
    return found


def _check_runner(folder: Path, runtime: str, manifest: dict[str, Any]) -> list[str]:
    try:
        same = (folder / "run.py").read_bytes() == template(runtime)
    except OSError:
        same = False
    if same:
        return []
    tools = manifest.get("tools")
    by = tools.get("onmetal") if isinstance(tools, dict) else "an unknown version"
    return [f"run.py is not the template of this onmetal (the bundle was written by {by})"]


def _check_tensors(folder: Path, manifest: dict[str, Any], worker: Worker) -> list[str]:
    """Whether inputs and outputs, and the golden inputs, are as the manifest says."""
    run = manifest["run"]
    artifact = folder.absolute() / run["files"][0]
    try:
        stored = worker.call(
            "call",
            timeout_s=600,
            function=f"onmetal.converters.{run['runtime']}:describe",
            path=str(artifact),
        )
        vectors: dict[str, Any] = {}
        if not manifest["golden"]["vectors"] and (folder / "golden.npz").exists():
            return ["golden.npz is there, and manifest.json says that there are no golden vectors"]
        if manifest["golden"]["vectors"]:
            vectors = worker.call("golden_described", timeout_s=600, folder=str(folder.absolute()))
    except OnmetalError as error:
        return [f"{artifact.name} or golden.npz cannot be read: {error}"]
    return [
        *manifests.untrue_tensors(run, stored),
        *manifests.untrue_vectors(run, vectors, manifest["golden"]["vectors"])[:5],
    ]


def _check_specification(artifact: Path, worker: Worker) -> list[str]:
    """Whether a .tflite file keeps to TFLite's quantization specification."""
    try:
        found: list[str] = worker.call(
            "call",
            timeout_s=600,
            function="onmetal.converters.tflite.check:file",
            path=str(artifact.absolute()),
        )
    except OnmetalError as error:
        return [f"{artifact.name} cannot be read: {error}"]
    return [f"{artifact.name} violates TFLite's specification: {what}" for what in found[:5]]


def _check_golden(
    folder: Path, manifest: dict[str, Any], host: Worker, device: Device
) -> list[str]:
    runtime = manifest["run"]["runtime"]
    try:
        if isinstance(device, Local):
            found: list[str] = host.call(
                "golden", timeout_s=600, folder=str(folder.absolute()), runtime=runtime
            )
            return found
        return _golden_there(folder, manifest["run"], host, device)
    except OnmetalError as error:
        if isinstance(device, Board):  # it fails, or holds another model: no word on the bundle
            raise DeviceError(str(error)) from None
        return [f"the golden vectors could not be run: {error}"]


def _golden_there(folder: Path, run: dict[str, Any], host: Worker, device: Device) -> list[str]:
    """The golden vectors through a remote device; what it gave is compared here."""
    with tempfile.TemporaryDirectory(prefix="onmetal-") as name:
        inputs = Path(name) / "inputs.npz"
        host.call("golden_inputs", timeout_s=600, folder=str(folder.absolute()), path=str(inputs))
        with device.worker() as worker:
            worker.call(
                "open",
                timeout_s=600,
                runtime=run["runtime"],
                files=[str((folder / file).absolute()) for file in run["files"]],
                options=run["options"],
                inputs=[tensor["name"] for tensor in run["inputs"]],
                outputs=[tensor["name"] for tensor in run["outputs"]],
            )
            worker.call("run", timeout_s=600, path=str(inputs), folder=name)
        found: list[str] = host.call(
            "golden_found",
            timeout_s=600,
            folder=str(folder.absolute()),
            runtime=run["runtime"],
            found=name,
        )
        return found


def _execute(folder: Path, device: Local) -> list[str]:
    """Run the bundle's own run.py, which is known by now to be the template, as a user would."""
    try:
        done = subprocess.run(
            # -P: of the folder only run.py is known; a numpy.py beside it must not be imported.
            [sys.executable, "-P", str((folder / "run.py").absolute())],
            env=quiet_environment(device.home) | {"PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=600,
        )
    except subprocess.TimeoutExpired:
        return ["run.py did not end within ten minutes"]
    if done.returncode == 0:
        return []
    said = (done.stdout + done.stderr).strip().splitlines()[-3:]
    return [f"run.py failed with code {done.returncode}: {' / '.join(said)}"]
