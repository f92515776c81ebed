# run.py: the first part of every one, which running.py puts together
"""@@title@@

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

# run.py: its imports
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

PACKAGES: tuple[str, ...] = ()  # run.py: those of its runtime
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

# run.py: before its imports
try:
    import numpy as np
    # run.py: its runtime
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
