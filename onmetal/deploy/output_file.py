"""The file that a conversion writes: whole or not at all, and never in the place of the model.

An artifact of several files becomes FILE and what lies beside it: for OpenVINO `name.bin` beside
`name.xml`, for ONNX models over 2 GB `name.onnx.data` beside `name.onnx`.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from onmetal.bundles.write import partial_folder
from onmetal.converters import operations
from onmetal.errors import UsageError
from onmetal.profilers.devices.local import Local
from onmetal.profilers.operation import asked
from onmetal.runtimes import spec


def check(file: Path, model: Path, runtime: str, force: bool) -> None:
    """Raises UsageError where nothing may be written to `file`; called before any long work.

    `model`: the file or folder that is converted, which is never written to.
    """
    check_free(file, model, force)
    for suffix in spec(runtime).suffixes[1:]:
        check_beside(file.with_suffix(suffix), file, model, force)
    if not file.parent.is_dir():
        raise UsageError(f"-o {file}: there is no folder {file.parent}")
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}."):
            pass
    except OSError as error:
        raise UsageError(f"-o {file}: cannot write there ({error.strerror})") from None


def check_free(path: Path, model: Path, force: bool) -> None:
    """Raises UsageError where a file of this path would replace the model or, without `force`,
    anything else."""
    if path.exists() and model.exists() and path.samefile(model):
        raise UsageError(f"-o {path}: this is the model itself, which is not overwritten")
    if model.is_dir() and path.resolve().is_relative_to(model.resolve()):
        raise UsageError(f"-o {path}: this lies in the model's own folder; choose another")
    if path.is_dir():
        raise UsageError(f"-o {path}: a folder of this name lies there; choose another name")
    if (path.exists() or path.is_symlink()) and not force:
        raise UsageError(f"-o {path}: exists; --force replaces it, or choose another name")


def check_beside(path: Path, file: Path, model: Path, force: bool) -> None:
    """As `check_free`, for a file that lies beside `file` and belongs to it. It is replaced only
    together with `file`: alone, it may hold the weights of another model."""
    if path.exists() and not file.exists():
        raise UsageError(
            f"-o {file}: {path} would be written beside it, and lies there without it: it may "
            "belong to another model; choose another name"
        )
    check_free(path, model, force)


def data_beside(file: Path) -> Path:
    """Where the weights of an ONNX file over 2 GB lie."""
    return file.with_name(f"{file.name}.data")


@contextlib.contextmanager
def written(
    artifact: Sequence[Path], file: Path, runtime: str, host: Local
) -> Iterator[tuple[Path, ...]]:
    """The files of an artifact under their last names, in a temporary folder beside `file`.

    Where the block ends without an error, they are moved to the folder of `file`; otherwise nothing
    of them is left.
    """
    with partial_folder(file) as folder:
        with _refused(file):
            paths = _copied(artifact, folder / file.name, runtime, host)
        yield paths
        with _refused(file):
            _move(paths[::-1], file.parent)


@contextlib.contextmanager
def _refused(file: Path) -> Iterator[None]:
    """Raises UsageError where the file system refuses what the block writes: a full disk does."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"-o {file}: cannot write it ({error.strerror})") from None


def _copied(artifact: Sequence[Path], main: Path, runtime: str, host: Local) -> tuple[Path, ...]:
    """Copies of the files, that to open first as `main`, the others beside it."""
    beside = [main.with_suffix(suffix) for suffix in spec(runtime).suffixes[1:]]
    if not beside and len(artifact) > 1:
        beside = [data_beside(main)]
        with host.worker() as worker:
            rename = asked(operations.rename_data, artifact[0], main, beside[0].name)
            worker.do(rename, timeout_s=3600)
    else:
        shutil.copyfile(artifact[0], main)
    for source, copy in zip(artifact[1:], beside, strict=True):
        shutil.copyfile(source, copy)
    return main, *beside


def _move(files: Sequence[Path], folder: Path) -> None:
    """Move the files, the one to open first as the last. Where that is interrupted, what lay in
    their places before lies there again."""
    replaced: dict[Path, Path] = {}
    placed: list[Path] = []
    try:
        for path in files:
            place = folder / path.name
            if place.exists():
                replaced[place] = path.with_name(f"{path.name}.before")
                place.replace(replaced[place])
            placed.append(place)
            path.replace(place)
    except BaseException:
        for place in placed:
            place.unlink(missing_ok=True)
        for place, before in replaced.items():
            if before.exists():
                before.replace(place)
        raise
