"""Android devices, through the adb client that the user has: $ADB, the one on PATH, or the one that
PyPI's `adbutils` brings. adb itself respects ANDROID_SERIAL and ANDROID_ADB_SERVER_PORT."""

import os
import re
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path

from msgspec import Struct

from onmetal.errors import DeviceError
from onmetal.profilers.output import Done, collect, megabytes, quoted, too_much

ADVICE = {
    "unauthorized": "unlock it and allow this computer's key in the dialog; if there is none, "
    "revoke USB debugging authorizations in the developer options and plug it in again",
    "authorizing": "unlock it and allow this computer's key in the dialog",
    "offline": "plug it in again, or `adb reconnect offline`",
    "no permissions": "this user may not open its USB port: the package "
    "android-sdk-platform-tools-common brings the udev rules; then plug it in again",
    "bootloader": "it is in its bootloader: start Android",
    "recovery": "it is in recovery: start Android",
    "sideload": "it is in recovery: start Android",
}
MOST_ATTACHED = 1000
INSTALL = "`apt install adb`, or `pip install 'onmetal[devices]'`, which brings one"


class Attached(Struct, frozen=True):
    """A line of `adb devices`. State "device" is the ready one."""

    serial: str
    state: str
    model: str | None

    @property
    def trouble(self) -> str | None:
        """Why it cannot be used and what to do; None: it can."""
        if not self.serial.isprintable():
            return "its serial number has characters that no program can be given"
        if self.state == "device":
            return None
        advice = ADVICE.get(self.state)
        return self.state + (f": {advice}" if advice else "")


def client() -> str | None:
    """The adb program; None where there is none. Raises DeviceError where $ADB is no program."""
    if configured := os.environ.get("ADB"):
        if found := shutil.which(configured):
            return found
        raise DeviceError(f"$ADB is {configured}, which is no program that can be run")
    if found := shutil.which("adb"):
        return found
    spec = find_spec("adbutils")
    if spec and spec.origin:
        bundled = Path(spec.origin).parent / "binaries" / "adb"
        if bundled.is_file():
            return str(bundled)
    return None


def attached(adb: str) -> list[Attached]:
    """The devices that `adb devices` lists. Raises DeviceError where adb itself fails."""
    done = _adb([adb, "devices", "-l"], 30)
    if done.code:
        raise DeviceError(f"`adb devices` failed: {_error_text(done)}")
    return listed(_text(done.out))


def listed(text: str) -> list[Attached]:
    """The entries in the output of `adb devices -l`. Raises DeviceError where there are more than
    anybody can have attached."""
    attached = []
    for line in text.partition(_HEADER)[2].split("\n"):
        if len(line) <= _ENTRY_LENGTH and (entry := _ENTRY.match(line)):
            model = re.search(r"\bmodel:(\S{1,100})", entry["rest"])
            attached.append(Attached(entry["serial"], entry["state"], model[1] if model else None))
        if len(attached) > MOST_ATTACHED:
            raise DeviceError(
                f"`adb devices` lists more than {MOST_ATTACHED} devices: its server is broken, or "
                "is not adb's; `adb kill-server` ends it"
            )
    return attached


_HEADER = "List of devices attached"
_ENTRY_LENGTH = 1000
"""adb itself takes serials of up to 256 characters."""
_ENTRY = re.compile(
    r"^(?P<serial>\S.*?)(?<![ \t])[ \t]+"
    r"(?P<state>no permissions|device|offline|unauthorized|authorizing"
    r"|connecting|detached|bootloader|recovery|rescue|sideload|host|unknown)\b(?P<rest>.*)$"
)
"""A serial may hold blanks: `adb-… (2)._adb-tls-connect._tcp`, `(no serial number)`."""


def choose(serial: str | None) -> "Adb":
    """The device of this serial number, else of $ANDROID_SERIAL, else the only one that is ready.
    Raises DeviceError, with what to do, where it is not ready."""
    adb = client()
    if adb is None:
        raise DeviceError(f"there is no adb program: {INSTALL}")
    serial = serial or os.environ.get("ANDROID_SERIAL") or None
    devices = attached(adb)
    if serial:
        matching = [device for device in devices if device.serial == serial]
        if not matching:
            serials = ", ".join(device.serial for device in devices) or "none"
            raise DeviceError(f"adb sees no device {serial}; attached: {serials}")
    else:
        ready = [device for device in devices if device.trouble is None]
        matching = ready or devices
        if not matching:
            raise DeviceError(
                "adb sees no device: plug one in and switch USB debugging on in its developer "
                "options, or `adb connect HOST:PORT`"
            )
        if len(matching) > 1:
            names = ", ".join(device.serial for device in matching)
            raise DeviceError(
                f"adb sees {len(matching)} devices: say --device adb:SERIAL ({names})"
            )
    if trouble := matching[0].trouble:
        raise DeviceError(f"{matching[0].serial} is not ready: {trouble}")
    return Adb(adb, matching[0].serial)


class Adb:
    """One device. See profilers/devices/remote/folder.py for what a transport offers."""

    place = "/data/local/tmp/onmetal"
    """Where the shell user may write and run programs."""
    lock = "/data/local/tmp/onmetal.lock"
    python = "python3"

    def __init__(self, adb: str, serial: str) -> None:
        self.adb, self.serial = adb, serial
        self.address = f"adb:{serial}"
        self._streams: bool | None = None

    def argv(self, script: str, *, stream: bool, main: bool = False) -> list[str]:
        """A process here, whose standard input and output are those of the script there."""
        if not stream:
            return [self.adb, "-s", self.serial, "shell", script]
        if self._streams is None:
            features = _adb([self.adb, "-s", self.serial, "features"], 30)
            self._streams = b"shell_v2" in features.out
        if not self._streams:
            raise DeviceError(
                f"{self.address} speaks the old shell protocol of Android 6 and before, through "
                "which no program can be fed; Android 7 or newer is needed"
            )
        return [self.adb, "-s", self.serial, "shell", "-T", script]

    def push(self, source: Path, target: str, timeout_s: float) -> None:
        self._copy(["push", str(source), target], timeout_s)

    def pull(self, source: str, target: Path, timeout_s: float, most_bytes: int) -> None:
        # A server that adb started for the copy would inherit the limit of its files' size.
        _adb([self.adb, "start-server"], 30)
        self._copy(["pull", source, str(target)], timeout_s, most_bytes)

    def _copy(self, words: list[str], timeout_s: float, file_bytes: int | None = None) -> None:
        done = _adb([self.adb, "-s", self.serial, *words], timeout_s, file_bytes)
        if done.code == -signal.SIGXFSZ:
            assert file_bytes
            raise too_much(f"{self.address}: {words[1]}", megabytes(file_bytes))
        if done.code:
            raise DeviceError(f"{self.address}: `adb {words[0]}` failed: {_error_text(done)}")

    def close(self) -> None:
        """Nothing is to be done: adb's server is the user's and goes on."""


def _adb(argv: list[str], timeout_s: float, file_bytes: int | None = None) -> Done:
    operation = argv[3] if argv[1] == "-s" else argv[1]
    try:
        return collect(argv, timeout_s, f"`adb {operation}`", file_bytes=file_bytes)
    except OSError as error:
        raise DeviceError(f"{argv[0]} cannot be run ({error.strerror}): {INSTALL}") from None


def _error_text(done: Done) -> str:
    lines = (_text(done.err) + "\n" + _text(done.out)).splitlines()
    relevant = [line for line in lines if not line.startswith("* daemon")]
    return quoted("\n".join(relevant), 2) or f"code {done.code}"


def _text(printed: bytes) -> str:
    return printed.decode(errors="replace").replace("\r\n", "\n")
