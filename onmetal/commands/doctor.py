"""`deploy doctor`: which parts of an installation work, what each enables, and how to repair the
others."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onmetal import __version__, runtimes
from onmetal.errors import DeviceError
from onmetal.files.cache import Cache
from onmetal.profilers import meters
from onmetal.profilers.devices.remote import adb, native_runner
from onmetal.profilers.meters import Missing
from onmetal.records import plain
from onmetal.reports.command_records import Check, Doctor

Shown = tuple[dict[str, Any], list[str]]
FREE_BYTES = 2_000_000_000
"""The least free space on the cache's disk: conversions and calibration data of a medium model."""


EXTRAS = (
    ("nncf", "nncf", "the candidate int8-nncf for OpenVINO"),
    ("adbutils", "devices", "adb without an installation of Android's tools"),
    ("ziglang", "devices", "building the runner for ARM without root"),
    ("ethos-u-vela", "embedded", "candidates for the Ethos-U NPU"),
    ("pyserial", "devices", "microcontrollers: --device serial:///dev/tty…"),
)
"""Package, the extra of onmetal that has it, what it is for."""


def show() -> Shown:
    checks = [
        *_core(),
        *_extras(),
        _adb(),
        _ssh(),
        *_runner(),
        *_power(),
        _clock(),
        _gpu(),
        _disk(),
    ]
    return plain(Doctor(1, checks)), [line for check in checks for line in _lines(check)]


def _lines(check: Check) -> list[str]:
    mark = "ok     " if check.fix is None else "missing"
    lines = [f"{mark}  {check.name}: {check.found} ({check.enables})"]
    return lines + ([f"         {check.fix}"] if check.fix else [])


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _core() -> list[Check]:
    checks = [
        Check("onmetal", f"{__version__}, Python {platform.python_version()}", "everything else")
    ]
    for runtime in runtimes.RUNTIMES:
        names = runtimes.spec(runtime).packages
        installed = next((f"{name} {_installed(name)}" for name in names if _installed(name)), None)
        fix = None if installed else runtimes.install(runtime)
        checks.append(Check(runtime, installed or "not installed", f"candidates of {runtime}", fix))
    return checks


def _extras() -> list[Check]:
    checks = []
    for package, extra, enables in EXTRAS:
        installed = _installed(package)
        fix = f"pip install 'onmetal[{extra}]'"
        checks.append(
            Check(package, installed or "not installed", enables, None if installed else fix)
        )
    return checks


def _adb() -> Check:
    enables = "Android phones: --device adb"
    try:
        program = adb.client()
        if program is None:
            return Check("adb", "not found", enables, adb.INSTALL.replace("`", ""))
        phones = adb.attached(program)
    except DeviceError as error:
        adb_setting = os.environ.get("ADB")
        fix = (
            "unset ADB"
            if adb_setting and not shutil.which(adb_setting)
            else "adb kill-server; adb devices"
        )
        return Check("adb", str(error), enables, fix)
    troubled = [f"{phone.serial} is {phone.trouble}" for phone in phones if phone.trouble]
    if troubled:
        return Check("adb", program, enables, "; ".join(troubled))
    return Check("adb", f"{program}, {len(phones)} device(s)", enables)


def _ssh() -> Check:
    program = shutil.which("ssh")
    fix = None if program else "apt install openssh-client"
    return Check("ssh", program or "not found", "Linux boards: --device ssh://user@host", fix)


def _runner() -> list[Check]:
    enables = "phones and ARM boards without Python and runtimes"
    if lacking := [
        name for name in native_runner.LIBRARIES if name not in native_runner.versions()
    ]:
        package = runtimes.spec(lacking[0]).packages[0]
        return [Check("runner for ARM", f"{package} is missing", enables, f"pip install {package}")]
    with Cache() as cache:
        built = native_runner.find(cache)
    if built:
        return [Check("runner for ARM", str(built), enables)]
    compiler = native_runner.compiler()
    if compiler is None:
        fix = "apt install gcc-aarch64-linux-gnu, or without root: pip install ziglang"
        return [Check("compiler for ARM", "not found", "building the runner for ARM", fix)]
    return [
        Check("compiler for ARM", " ".join(compiler[:3]), "building the runner for ARM"),
        Check("runner for ARM", "not built yet", enables, "deploy runner build"),
    ]


def _power() -> list[Check]:
    enables = "energy on this machine"
    meter = meters.on_host()
    if isinstance(meter, Missing):
        return [Check("power meter", meter.why, enables, meter.fix)]
    return [Check("power meter", meter.name, enables)]


def _clock() -> Check:
    try:
        governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return Check("clock", "its governor is not visible here", "steady timings")
    fix = None if governor == "performance" else "sudo cpupower frequency-set -g performance"
    return Check("clock", f"governor {governor}", "steady timings", fix)


def _gpu() -> Check:
    enables = "a GPU, which is no target of this version"
    try:
        driver = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        driver = ""
    if driver:
        return Check("GPU driver", " ".join(driver.split())[:80], enables)
    nodes = sorted(Path("/dev/dri").glob("renderD*"))
    if not nodes:
        return Check("GPU driver", "none seen", enables)
    readable = os.access(nodes[0], os.R_OK | os.W_OK)
    fix = None if readable else 'sudo usermod -aG render "$USER", then log in again'
    return Check("GPU driver", str(nodes[0]), enables, fix)


def _disk() -> Check:
    with Cache() as cache:
        free = shutil.disk_usage(cache.root).free
        fix = None if free > FREE_BYTES else f"free space on the disk of {cache.root}"
        return Check("cache", f"{cache.root}, {free / 1e9:.1f} GB free", "all work", fix)
