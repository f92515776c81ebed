"""Runs this model with ONNX Runtime: needs `pip install onnxruntime numpy`, nothing else.

    python run.py                       runs the golden vectors and compares: exit 0 if they agree
    python run.py INPUTS.npz OUT.npz    runs your inputs (one array per model input, under its name,
                                        shaped as in manifest.json) and writes every output
    python run.py --help                this text, and what the inputs of this bundle are
    python run.py --library             where the runtime's library for C is

`python` is the interpreter of an environment that has the runtime. Exit code 1: the golden vectors
disagree; 2: it could not be run, and standard error says why. Inputs are what `preprocessing` in
manifest.json makes of an image; where that is null, the arrays that the model itself takes.

In your own program: `from run import load; outputs = load().run({"input": array})`, with
`python -B`, so that no __pycache__ is added to the folder (`deploy verify` would find it).
It reads manifest.json beside it; this file is the same in every bundle of this runtime.

No module beside this file is imported by it. As a program it takes its own folder out of `sys.path`
before it imports anything. Imported, it does so only while it imports what it needs: then the
`sys.path` of your program is as it was, and what your program imports is for you to look after.
"""

import sys

_stat = __import__("posix" if "posix" in sys.builtin_module_names else "nt").stat


def _place(folder: object) -> object:
    """The same for every spelling of a folder; None where there is none."""
    try:
        found = _stat(folder or ".")
    except (OSError, TypeError, ValueError):
        return None
    return (found.st_dev, found.st_ino)


def _beside() -> list[tuple[int, str]]:
    """The entries of `sys.path` that are the folder of this file, or of the program that it is."""
    folders = [__file__[: max(__file__.rfind("/"), __file__.rfind("\\")) + 1]]
    if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", 0)):
        folders += sys.path[:1]  # another one, where this file was started by a link to it
    own = {_place(folder) for folder in folders} - {None}
    return [(number, entry) for number, entry in enumerate(sys.path) if _place(entry) in own]


def _put_back(entries: list[tuple[int, str]]) -> None:
    for number, entry in entries if __name__ != "__main__" else []:
        sys.path.insert(number, entry)


_ASIDE = _beside()
for _number, _ in reversed(_ASIDE):
    del sys.path[_number]

import contextlib
import errno
import io
import json
import math
import os
import pathlib
import stat
import zipfile
from collections.abc import Iterator
from importlib import metadata
from typing import IO, Any

PACKAGES = ("onnxruntime",)
"""On PyPI, the one to install first."""
HERE = pathlib.Path(__file__).resolve().parent
SMALL_BYTES = 64 << 20
"""More than any manifest.json has."""


def recorded() -> dict[str, Any]:
    """What manifest.json says; nothing where it cannot be read."""
    try:
        found = json.loads(read("manifest.json"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("run"), dict) else {}


def read(name: str, folder: pathlib.Path = HERE) -> str:
    """A small file of the bundle. Raises OSError where it is no regular file, or not small."""
    with regular(folder / name) as file:
        content = file.read(SMALL_BYTES + 1)
    if len(content) > SMALL_BYTES:
        raise OSError(f"it is longer than {SMALL_BYTES} bytes")
    return content.decode("utf-8")


def regular(path: pathlib.Path) -> IO[bytes]:
    """Opened for reading. Raises OSError where it is no regular file: no FIFO is waited for."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return path.open("rb")


def shown(text: object) -> str:
    """For a terminal: characters that would steer it are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def usage() -> str:
    """The text at the top, and what manifest.json says of this bundle's inputs."""
    lines, manifest = [__doc__ or ""], recorded()
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # it says less, or otherwise
        for tensor in manifest.get("run", {}).get("inputs", []):
            lines.append(shown(f"input {tensor['name']!r}: {tensor['dtype']} {tensor['shape']}"))
        for key, value in (manifest.get("preprocessing") or {}).items():
            lines.append(shown(f"preprocessing {key} = {json.dumps(value)}"))
        if manifest.get("classes"):
            names = ", ".join(manifest["classes"])
            lines.append(shown(f"classes, in the order of the scores: {names}"))
    return "\n".join(lines)


def needed() -> str:
    """The command that installs what this bundle was made with."""
    version = str(recorded().get("run", {}).get("runtime_version") or "")
    plain = version.isascii() and version.replace(".", "").replace("+", "").isalnum()
    wanted = f"{PACKAGES[0]}=={version}" if plain else PACKAGES[0]
    return f"{sys.executable} -m pip install numpy {wanted}"


if __name__ == "__main__" and sys.argv[1:] in (["-h"], ["--help"]):  # needs no runtime
    print(usage())
    sys.exit(0)

# The user of a model asked for no telemetry: it must be off before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

try:
    import numpy as np
    import onnxruntime
except Exception as error:
    _put_back(_ASIDE)
    if __name__ != "__main__":
        raise
    print(
        f"run.py: {PACKAGES[0]} and numpy cannot be imported here: {error}. Run it with the Python "
        f"of an environment that has them, or install them: {needed()}",
        file=sys.stderr,
    )
    sys.exit(2)
_put_back(_ASIDE)

ENUMS = {
    "execution_mode": onnxruntime.ExecutionMode,
    "graph_optimization_level": onnxruntime.GraphOptimizationLevel,
}


class Session:
    """One model, opened once and run many times, one inference at a time."""

    def __init__(
        self, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for name, value in options.items():
            if "." in name:
                settings.add_session_config_entry(name, str(value))
            elif name in ENUMS:
                setattr(settings, name, getattr(ENUMS[name], str(value)))
            elif hasattr(settings, name):
                setattr(settings, name, value)
            else:
                raise ValueError(f"onnxruntime {onnxruntime.__version__} has no option {name!r}")
        self.session = onnxruntime.InferenceSession(
            files[0], settings, providers=["CPUExecutionProvider"]
        )
        self.inputs, self.outputs = inputs, outputs

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Arrays by input name, as in the manifest -> arrays in the order of its outputs."""
        return self.session.run(self.outputs, feed)  # type: ignore[no-any-return]


def library() -> pathlib.Path:
    """ONNX Runtime's C API as a shared library."""
    for found in pathlib.Path(onnxruntime.__path__[0]).glob("capi/libonnxruntime.*"):
        return found
    raise Refused("this package of onnxruntime has no shared library with the C API")


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
    real = tensor.get("scale") and dtype.name == "float32"  # it is quantized on the way
    if dtype.name != tensor["dtype"] and not real:
        raise Refused(
            f"input {name!r} is {dtype.name}, and must be {tensor['dtype']}: "
            f"array.astype('{tensor['dtype']}'), if its values are right"
        )
    return np.asarray(stored.get(name), dtype.newbyteorder("="), order="C")


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
