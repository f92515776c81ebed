"""The native runner for devices without a runtime of their own: built here, once, for AArch64.

It is a small C program (native/*.c beside this file) together with a loader, a C library and the
runtimes' own C libraries out of their AArch64 wheels, in the very versions that this machine has: a
folder that runs under Android's /data/local/tmp and on any 64-bit ARM Linux alike.
"""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from onmetal.errors import DeviceError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.runtimes import RUNTIMES, native, spec

SOURCES = Path(__file__).parent / "native"
CODE = 2
"""Raised whenever the same sources would be built otherwise."""
ARCH = "aarch64"
LOADER = "ld-linux-aarch64.so.1"
LIBC = (
    LOADER,
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libgcc_s.so.1",
    "libstdc++.so.6",
)
CROSS = Path("/usr/aarch64-linux-gnu/lib")
"""Where Debian's cross compiler brings these."""
DEBS = ("libc6", "libgcc-s1", "libstdc++6")
WHEELS = {name: spec(name).library for name in RUNTIMES if spec(name).library}
"""Runtime -> what its library's name in the wheel begins with."""
LIBRARIES = {name: Path(place).name for name, place in WHEELS.items()}
"""Runtime -> its library's name in the folder."""
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")


def versions() -> dict[str, str]:
    """The versions of the runtimes that the runner is built with: those that this machine has."""
    installed = {}
    for runtime in LIBRARIES:
        with contextlib.suppress(PackageNotFoundError):
            installed[runtime] = version(spec(runtime).packages[0])
    return installed


def sources() -> list[Path]:
    """The runner's own source files, and those of each runtime's folder."""
    return [*sorted(SOURCES.glob("*.[ch]")), *(native(name) for name in LIBRARIES)]


def key() -> str:
    return caches.key(sources=caches.sha256(*sources()), versions=versions(), code=CODE)


def find(cache: Cache) -> Path | None:
    """The folder, where it was built already."""
    return cache.find("runner", key())


def build(cache: Cache) -> Path:
    """The folder with `runner`, the loader and all libraries, built where it is missing.

    Needs a C compiler for AArch64, and PyPI and (without Debian's cross compiler) Debian's packages
    for the libraries. Raises DeviceError with what is missing and the command that brings it.
    """

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            _compile(folder / "runner", Path(scratch))
            _libc(folder, Path(scratch))
            for runtime, number in versions().items():
                _library(runtime, number, folder, Path(scratch))

    return cache.get("runner", key(), make)


def compiler() -> list[str] | None:
    """The command of a C compiler for AArch64: Debian's, else that of PyPI's `ziglang`."""
    if found := shutil.which("aarch64-linux-gnu-gcc"):
        return [found]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.34"]
    return None


def arguments() -> list[str]:
    """The arguments of the C compiler: flags, the runtimes that are compiled in, and sources."""
    runtime_macros = " ".join(f"X({name})" for name in LIBRARIES)
    code = [str(path) for path in sources() if path.suffix == ".c"]
    return [*FLAGS, f"-DRUNTIMES={runtime_macros}", f"-I{SOURCES}", *code]


def _compile(target: Path, scratch: Path) -> None:
    compiler_words = compiler()
    if compiler_words is None:
        raise DeviceError(
            "the runner for the device cannot be built: there is no C compiler for AArch64; "
            "`apt install gcc-aarch64-linux-gnu`, or without root `pip install ziglang`"
        )
    _run(
        [*compiler_words, *arguments(), "-o", str(target), "-ldl", "-lpthread"], "compiled", scratch
    )


def _run(argv: list[str], action: str, scratch: Path) -> None:
    """Run a tool in the scratch folder, in which it keeps its own caches too."""
    cache_variables = {
        f"ZIG_{kind}_CACHE_DIR": str(scratch / "zig") for kind in ("GLOBAL", "LOCAL")
    }
    try:
        result = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=scratch,
            env={**os.environ, **cache_variables, "PIP_NO_CACHE_DIR": "1"},
            timeout=900,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeviceError(f"the runner for the device could not be {action}: {error}") from None
    if result.returncode:
        last_lines = " / ".join((result.stderr or result.stdout).strip().splitlines()[-3:])
        raise DeviceError(f"the runner for the device could not be {action}: {last_lines}")


def _libc(folder: Path, scratch: Path) -> None:
    """Copy the loader, the C and the C++ library: the cross compiler's, else those of Debian's
    packages."""
    places = [CROSS]
    if not all((CROSS / name).is_file() for name in LIBC):
        root = scratch / "root"
        _debs(root, scratch)
        places = [root / "lib/aarch64-linux-gnu", root / "usr/lib/aarch64-linux-gnu"]
    for name in LIBC:
        files = [place / name for place in places if (place / name).is_file()]
        if not files:
            raise DeviceError(
                f"the runner for the device needs an AArch64 {name}, which is not here; "
                "`apt install libc6-arm64-cross libstdc++6-arm64-cross`"
            )
        shutil.copyfile(files[0].resolve(), folder / name)
    (folder / LOADER).chmod(0o755)


def _debs(root: Path, scratch: Path) -> None:
    """Download and unpack AArch64 packages; the machine's own package database stays untouched."""
    if not shutil.which("apt-get"):
        raise DeviceError(
            "the runner for the device needs an AArch64 C library: it is taken from Debian's "
            "packages libc6-arm64-cross and libstdc++6-arm64-cross, and there is no apt here; "
            f"put {', '.join(LIBC)} into {CROSS}"
        )
    state = scratch / "apt"
    (state / "lists/partial").mkdir(parents=True)
    (state / "archives/partial").mkdir(parents=True)
    (state / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State::Lists": str(state / "lists"),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(state),
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-qq", *(w for k, v in settings.items() for w in ("-o", f"{k}={v}"))]
    _run([*apt, "update"], "given a C library", scratch)
    _run([*apt, "download", *DEBS], "given a C library", scratch)
    for deb in scratch.glob("*.deb"):
        _unpack(deb, root)


def _unpack(deb: Path, root: Path) -> None:
    """A Debian package is an `ar` archive with a tar file in it (deb(5))."""
    content = deb.read_bytes()
    place = 8
    while place < len(content):
        name = content[place : place + 16].decode().strip().rstrip("/")
        size = int(content[place + 48 : place + 58])
        place += 60
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content[place : place + size])) as archive:
                archive.extractall(root, filter="tar")
        place += size + size % 2


def _library(runtime: str, number: str, folder: Path, scratch: Path) -> None:
    """Copy a runtime's C library from its wheel for AArch64, which is the same for every Python."""
    package = spec(runtime).packages[0]
    home = scratch / runtime
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    words = ["--no-deps", "--only-binary=:all:", "--python-version", python]
    for minor in (17, 27, 28, 31, 34):
        words += ["--platform", f"manylinux_2_{minor}_aarch64"]
    _run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            *words,
            "-d",
            str(home),
            f"{package}=={number}",
        ],
        f"given {package} {number} for AArch64 from PyPI (is it, or a mirror, reachable here?)",
        scratch,
    )
    with zipfile.ZipFile(next(home.glob("*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.startswith(WHEELS[runtime]):
                (folder / LIBRARIES[runtime]).write_bytes(wheel.read(name))
                return
    raise DeviceError(f"the wheel of {package} {number} for AArch64 has no {WHEELS[runtime]}")
