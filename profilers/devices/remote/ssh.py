"""Linux boards and machines, through the user's own ssh with its configuration, agent and
known_hosts. Nothing but a shell is needed there: files are copied through `cat`."""

import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from onmetal.errors import DeviceError, UsageError
from onmetal.profilers.output import Done, collect, quoted

OPTIONS = (
    "BatchMode=yes",  # a question would hang where nobody sees it
    "StrictHostKeyChecking=yes",  # an unknown machine is refused, as is one that changed
    "ConnectTimeout=15",
    "ServerAliveInterval=10",
    "ServerAliveCountMax=3",
)


def choose(address: str) -> "Ssh":
    """`ssh://[user@]host[:port][?python=PATH]`. Raises UsageError where it is none."""
    refused = UsageError(
        f"--device {address}: must be ssh://[user@]host[:port][?python=PATH], the Python of an "
        "environment there"
    )
    if re.search(r"[\x00-\x1f\x7f]", address):  # urlsplit drops some of these
        raise refused
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        raise refused from None
    name, _, python = parts.query.partition("=")
    malformed = any((parts.path.strip("/"), parts.fragment, parts.password))
    malformed = malformed or bool(parts.query and (name != "python" or not python))
    if parts.scheme != "ssh" or not parts.hostname or malformed:
        raise refused
    place = address.removeprefix("ssh://").partition("?")[0].rstrip("/").rpartition("@")
    host = parts.hostname if ":" in parts.hostname else place[2].partition(":")[0]
    for word in (place[0], host):
        if not re.fullmatch(r"[A-Za-z0-9_.:%\\-]*", word) or word.startswith("-"):
            raise refused
    return Ssh(address, place[0], host, port, python or "python3")


class Ssh:
    """One machine. See profilers/devices/remote/folder.py for what a transport offers."""

    place = "${XDG_CACHE_HOME:-$HOME/.cache}/onmetal-device"
    lock = "/tmp/onmetal-device.lock"
    """One for all users of the machine."""

    def __init__(
        self, address: str, user: str, host: str, port: int | None, python: str = "python3"
    ) -> None:
        self.address, self.python = address, python
        program = shlex.split(os.environ.get("ONMETAL_SSH", "ssh"))
        if not program or not shutil.which(program[0]):
            raise DeviceError("there is no ssh program: `apt install openssh-client`")
        # The path of a Unix socket is at most 104 characters long, so not in the cache.
        self._folder = tempfile.TemporaryDirectory(prefix="onmetal-")
        self._socket = str(Path(self._folder.name) / "s")
        self._argv = [*program, *(word for option in OPTIONS for word in ("-o", option))]
        self._target = [*(["-p", str(port)] if port else []), f"{user}@{host}" if user else host]

    def argv(self, script: str, *, stream: bool, main: bool = False) -> list[str]:
        """A process here, whose standard input and output are those of the script there. The
        connection of the `main` one carries the others too."""
        shared = ["-o", f"ControlMaster={'yes' if main else 'no'}", "-o", "ControlPersist=no"]
        command = f"exec sh -c {shlex.quote(script)}"  # the user's login shell may be another
        return [*self._argv, *shared, "-S", self._socket, "-T", *self._target, "--", command]

    def push(self, source: Path, target: str, timeout_s: float) -> None:
        argv = self.argv(f"cat > {shlex.quote(target)}", stream=True)
        with source.open("rb") as file:
            self._check(collect(argv, timeout_s, self._copying(target), given=file.fileno()))

    def pull(self, source: str, target: Path, timeout_s: float, most_bytes: int) -> None:
        argv, copying = self.argv(f"cat {shlex.quote(source)}", stream=True), self._copying(source)
        with target.open("wb") as file:
            self._check(collect(argv, timeout_s, copying, taken=file, most_bytes=most_bytes))

    def _copying(self, path: str) -> str:
        return f"{self.address}: the copy of {path}"

    def _check(self, copied: Done) -> None:
        if copied.code:
            error_text = quoted(copied.err.decode(errors="replace"), 2)
            raise DeviceError(f"{self.address}: a copy failed: {error_text or copied.code}")

    def close(self) -> None:
        self._folder.cleanup()
