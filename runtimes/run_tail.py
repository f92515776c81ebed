"""The last part of every bundle's run.py: what does not depend on its runtime.

onmetal.runtimes.running puts it behind the runtime's session; only what follows the line below is
in a run.py.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np

from onmetal.runtimes.run_head import (
    HERE,
    PACKAGES,
    needed,
    read,
    recorded,
    regular,
    shown,
)

Session: Any = None
"""In a run.py, the class of its runtime."""
library: Any = None
"""In a run.py, where the shared library of its runtime is."""

# What follows is the same for every runtime.


class Refused(Exception):
    """What keeps it from running, in a sentence for a person."""


@contextlib.contextmanager
def explained(what: str, by_runtime: bool = False) -> Iterator[None]:
    """Turns whatever goes wrong meanwhile into a sentence that begins with `what`; where the
    runtime may be to blame, one of another version is named."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        why = getattr(error, "strerror", None) or shown(" ".join(str(error).split())[:400])
        version = other_version() if by_runtime else ""
        raise Refused(f"{what}: {why or type(error).__name__}{version}") from None


def other_version() -> str:
    """What to say of a runtime that is not of the version that the bundle was made with."""
    wanted = recorded().get("run", {}).get("runtime_version")
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            here = metadata.version(package)
            if wanted in (None, here):
                return ""
            made = shown(str(wanted)[:40])
            return f" (here is {package} {here}, the bundle was made with {made}: {needed()})"
    return ""


def load(folder: pathlib.Path = HERE) -> Session:
    how = json.loads(read("manifest.json", folder))["run"]
    return Session(
        [str(folder / name) for name in how["files"]],
        how["options"],
        [tensor["name"] for tensor in how["inputs"]],
        [tensor["name"] for tensor in how["outputs"]],
    )


HEADER_BYTES = 10_000
"""The longest head of an array that numpy itself takes from a stranger."""


class Arrays:
    """An .npz file, of which one array after another is read, each only where it is of the shape
    and type that is wanted: what a file says of itself costs no memory."""

    def __init__(self, path: pathlib.Path) -> None:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(regular(path))
            if not zipfile.is_zipfile(file):
                raise Refused(
                    f"{path} is no .npz file, or damaged; numpy.savez(path, name=array) makes one"
                )
            self.archive = stack.enter_context(zipfile.ZipFile(file))
            self.names = [name.removesuffix(".npy") for name in self.archive.namelist()]
            self.close = stack.pop_all().close

    def head(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
        """Its shape, its type, whether its first axis runs fastest, and where its values begin."""
        with self.archive.open(self._entry(name)) as file:
            start = io.BytesIO(file.read(HEADER_BYTES + 16))
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(start)]
        shape, columns, dtype = reader(start)
        if dtype.hasobject:
            raise ValueError(f"{name!r} holds objects of Python, which are not loaded")
        return shape, dtype, columns, start.tell()

    def get(self, name: str) -> np.ndarray:
        """Raises ValueError where it is shorter than it says."""
        shape, dtype, columns, begin = self.head(name)
        size = math.prod(shape) * dtype.itemsize
        with self.archive.open(self._entry(name)) as file:
            file.read(begin)
            content = bytearray(file.read(size))  # one's own to write to, as of any array
        if len(content) != size:
            raise ValueError(f"{name!r} is cut short")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if columns else "C")

    def _entry(self, name: str) -> zipfile.ZipInfo:
        entry = self.archive.getinfo(f"{name}.npy")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name!r} is packed by a method that numpy does not write")
        return entry


def differences(
    expected: np.ndarray, found: np.ndarray, tolerance: float
) -> tuple[float, float, bool]:
    """The largest absolute difference, what is allowed, and whether it fits.

    The tolerance is relative to the largest magnitude expected; integers must be equal.
    """
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf"), 0.0, False
    if expected.dtype.kind != "f":
        return (
            float(np.count_nonzero(expected != found)),
            0.0,
            bool(np.array_equal(expected, found)),
        )
    gap = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    same = np.isnan(expected) & np.isnan(found) | (expected == found)
    worst = float(np.max(np.where(same, 0.0, gap), initial=0.0))
    peak = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return worst, tolerance * float(peak), bool(worst <= tolerance * float(peak))


def golden(folder: pathlib.Path, session: Session) -> list[str]:
    """What is wrong with the outputs for the golden vectors, in words; empty if nothing is."""
    manifest = json.loads(read("manifest.json", folder))
    with contextlib.closing(Arrays(folder / "golden.npz")) as vectors:
        return disagreements(manifest, vectors, session)


def disagreements(manifest: dict[str, Any], vectors: Arrays, session: Session) -> list[str]:
    wrong = []
    for number in range(manifest["golden"]["vectors"]):
        feed = {}
        for tensor in manifest["run"]["inputs"]:
            feed[tensor["name"]] = fitting(vectors, f"input/{tensor['name']}/{number}", tensor)
        for name, found in zip(session.outputs, session.run(feed), strict=True):
            shape, dtype, _, _ = vectors.head(f"output/{name}/{number}")
            worst, allowed, fits = float("inf"), 0.0, False
            if shape == found.shape and dtype == found.dtype:
                expected = vectors.get(f"output/{name}/{number}")
                worst, allowed, fits = differences(expected, found, manifest["golden"]["tolerance"])
            if not fits:
                wrong.append(
                    f"golden vector {number}, output {name!r}: "
                    f"off by {worst:.4g} where {allowed:.4g} is allowed"
                )
    return wrong


def read_inputs(path: str, tensors: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """A user's inputs by name, each of the shape and type that the manifest says."""
    names = [tensor["name"] for tensor in tensors]
    with (
        explained(f"{path} cannot be read"),
        contextlib.closing(Arrays(pathlib.Path(path))) as stored,
    ):
        if missing := [name for name in names if name not in stored.names]:
            held = shown(", ".join(stored.names[:20])[:400])
            raise Refused(
                f"{path} has no array {missing[0]!r}; the model takes {', '.join(names)}, and "
                f"the file holds {held or 'nothing'}"
            )
        return {tensor["name"]: fitting(stored, tensor["name"], tensor) for tensor in tensors}


def fitting(stored: Arrays, name: str, tensor: dict[str, Any]) -> np.ndarray:
    """The array of that name, in this machine's byte order. Raises Refused where the model cannot
    take it."""
    found, dtype, _, _ = stored.head(name)
    shape = list(tensor["shape"])
    if list(found) != shape:
        if len(found) == len(shape) > 1 and list(found[1:]) == shape[1:]:
            raise Refused(
                f"input {name!r} holds {found[0]} samples, and one inference takes "
                f"{shape[0]}: give {shape[0]} at a time"
            )
        raise Refused(
            f"input {name!r} has the shape {str(list(found))[:200]}, and must have {shape}"
        )
    real = tensor.get("scale") and dtype.name == "float32"
    if dtype.name != tensor["dtype"] and not real:
        raise Refused(
            f"input {name!r} is {dtype.name}, and must be {tensor['dtype']}: "
            f"array.astype('{tensor['dtype']}'), if its values are right"
        )
    array = np.asarray(stored.get(name), dtype.newbyteorder("="), order="C")
    return quantized(array, tensor) if real else array


def quantized(array: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """The whole numbers that stand for these real ones by the input's scale and zero point."""
    limits = np.iinfo(tensor["dtype"])
    whole = np.rint(array / np.float32(tensor["scale"])) + tensor.get("zero_point", 0)
    return np.clip(whole, limits.min, limits.max).astype(tensor["dtype"])  # type: ignore[no-any-return]


def write_outputs(path: str, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all."""
    with explained(f"{path} cannot be written"):
        target = pathlib.Path(path).resolve()
        if target.exists() and not target.is_file():
            raise Refused(f"{path} cannot be written: it is there, and no regular file")
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with zipfile.ZipFile(part, "w") as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    try:
        with explained("the bundle cannot be run"):
            return answered(argv)
    except Refused as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def answered(argv: list[str]) -> int:
    """What the command line asks for. Raises Refused."""
    if argv == ["--library"]:
        print(library())
        return 0
    if len(argv) not in (0, 2):
        raise Refused("give no argument, or two: INPUTS.npz and OUT.npz (--help says more)")
    with explained("manifest.json cannot be read"):
        manifest = json.loads(read("manifest.json"))
    if not argv and not manifest["golden"]["vectors"]:
        raise Refused("this bundle holds no golden vectors: give INPUTS.npz and OUT.npz")
    feed = read_inputs(argv[0], manifest["run"]["inputs"]) if argv else {}
    with explained("the model cannot be opened", by_runtime=True):
        session = load()
    if argv:
        with explained("the model cannot be run", by_runtime=True):
            found = session.run(feed)
        write_outputs(argv[1], dict(zip(session.outputs, found, strict=True)))
        return 0
    with explained("the golden vectors cannot be run", by_runtime=True):
        wrong = golden(HERE, session)
    print("\n".join(wrong) or "the golden vectors agree")
    if wrong and (why := other_version()):
        print(f"run.py: they disagree{why}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
