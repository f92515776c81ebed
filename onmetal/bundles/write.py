"""Writes a deployment bundle, whole or not at all.

A bundle is a folder: manifest.json, the artifact, golden.npz, run.py, README.md, for phones and
boards additional files, and SHA256SUMS over every other file. The sums show damage, not malice
(they are not signed), so `verify.py` trusts nothing in the folder: it makes a private copy while it
hashes, and reads and runs only that copy, with onmetal's own copy of run.py, in a worker, with
known options only.
"""

import contextlib
import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil

from onmetal.bundles import manifest as manifests
from onmetal.bundles.sums import SUMS, file_sha256, files_inside, rendered_sums
from onmetal.bundles.verify import verify
from onmetal.errors import UsageError, VerificationError
from onmetal.profilers.devices import Device
from onmetal.profilers.devices.local import Local
from onmetal.reports.json import encode
from onmetal.runtimes import running

REPORT = "report.json"


# --- the output folder


def check_out(out: Path, force: bool) -> None:
    """Raises UsageError where no bundle may be written to `out`; called before any long work."""
    if Path.cwd().is_relative_to(out.resolve()):
        raise UsageError(
            f"--out {out}: this is the current folder or one above it, and --out is replaced as a "
            "whole; choose another"
        )
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UsageError(f"--out {out}: exists and is not a folder; choose another")
    _check_replaceable(out, force)
    ancestor = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryDirectory(dir=ancestor, prefix=f".{out.name}."):
            pass
    except OSError as error:
        raise UsageError(f"--out {out}: cannot write there ({error.strerror})") from None


def _check_replaceable(out: Path, force: bool) -> None:
    if out.exists() and _holds(out) != "nothing" and not force:
        raise UsageError(
            f"--out {out}: exists and is not empty; --force replaces it, or choose another folder"
        )


def _holds(out: Path) -> Literal["nothing", "bundle", "more"]:
    """What would be lost if the folder were removed: nothing but a report, a bundle, or more."""
    entry_names = {entry.name for entry in out.iterdir()}
    if entry_names <= {REPORT}:
        return "nothing"
    return "bundle" if {"manifest.json", SUMS} <= entry_names else "more"


@contextlib.contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, which is removed at the end; those that killed runs left are
    removed as well."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}.*.partial"):
        with contextlib.suppress(ValueError, IndexError):
            if not psutil.pid_exists(int(leftover.name.split(".")[-3])):
                shutil.rmtree(leftover, ignore_errors=True)
    folder = out.parent / f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.partial"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replacing(out: Path, force: bool) -> Iterator[Path]:
    """An empty folder to write to, which replaces `out` where the block ends without an error.

    An older bundle at `out` is removed; a folder with anything else is renamed and kept beside it.
    """
    with partial_folder(out) as folder:
        new, old = folder / "new", folder / "old"
        new.mkdir()
        yield new
        for path in new.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        _check_replaceable(out, force)  # another run may have been faster
        if out.exists() and _holds(out) == "more":
            out.rename(_free_name(out))
        try:
            if out.exists():
                out.rename(old)
            new.rename(out.absolute())
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out.absolute())
            raise


def _free_name(out: Path) -> Path:
    """A path beside `out` that does not exist, to which an older folder is renamed."""
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
    """Write and verify a bundle.

    `extra`: additional files, by their path in the bundle; `golden`: the .npz of golden vectors,
    which the device computed, or None; `manifest`: written unchanged, with the list of files added.

    The bundle is verified before it appears at `out`. Raises RuntimeError, a defect of onmetal,
    where it fails its verification; then nothing is written.
    """
    with replacing(out, force) as folder:
        for file in files:
            shutil.copyfile(file, folder / file.name)
        for name, content in extra.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if golden:
            shutil.copyfile(golden, folder / "golden.npz")
        (folder / "run.py").write_bytes(running.program(runtime))
        (folder / "README.md").write_text(readme, "utf-8")
        named = manifests.named([*files_inside(folder), "manifest.json"])
        (folder / "manifest.json").write_bytes(encode({**manifest, "files": named}))
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        (folder / SUMS).write_text(_sums(folder), "utf-8")
        try:
            verify(folder, host, device, run=False, scratch=folder.parent)
        except VerificationError as error:
            device.state()  # raises DeviceError where it is gone, which is no defect of the bundle
            problems = "; ".join((error.document or {})["problems"])
            raise RuntimeError(
                f"the new bundle does not verify, and {out} was not written: {problems}"
            ) from None


def _sums(folder: Path) -> str:
    return rendered_sums({name: file_sha256(path) for name, path in files_inside(folder).items()})
