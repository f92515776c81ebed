"""A run's folder on a device that is reached by adb or ssh, which carry a shell and files.

A run has one folder on the device. A small shell script, the guard, creates it and holds its lock.
The guard waits on a connection of its own. When that connection ends for whatever reason (the run
is done, ^C, kill, a pulled cable), the guard ends the processes that this run started on the device
and removes the folder. Only a run that ended well leaves the files that it pushed, named by their
digests, in a folder `kept` of limited size, so that the next run pushes changed files only.
"""

import contextlib
import getpass
import re
import secrets
import shlex
import socket
from pathlib import Path
from types import NoneType
from typing import Annotated, Protocol

from msgspec import Meta, Struct

from onmetal.errors import DeviceError
from onmetal.files import cache as caches
from onmetal.profilers.devices.line import Line
from onmetal.profilers.output import QUOTED, collect, quoted

SHELL_S = 60.0
COPY_S = 900.0
KEPT_MB = 500
"""Most megabytes of pushed files that stay on the device for the next run; those that were unused
for longest are deleted first."""


class Transport(Protocol):
    """What adb.py and ssh.py offer."""

    address: str
    place: str
    """The folder on the device that all runs of onmetal use, as the device's shell expands it."""
    lock: str
    python: str
    """The command of the device's Python, in which runtimes may be installed."""

    def argv(self, script: str, *, stream: bool, main: bool = False) -> list[str]: ...
    def push(self, source: Path, target: str, timeout_s: float) -> None: ...
    def pull(self, source: str, target: Path, timeout_s: float, most_bytes: int) -> None:
        """Raises DeviceError where it is larger than `most_bytes`."""

    def close(self) -> None: ...


def shell(transport: Transport, script: str, timeout_s: float = SHELL_S) -> str:
    """Run a shell script on the device. -> what it prints.

    Its exit code comes back in a last line that is printed after it: an old adb gives 0 for every
    command, and all give 0 where the device vanishes. Raises DeviceError where the script fails or
    that line is missing.
    """
    end = secrets.token_hex(8)
    argv = transport.argv(f"( {script}\n); s=$?; echo; echo onmetal:{end}:$s", stream=False)
    result = collect(argv, timeout_s, transport.address)
    text = result.out.decode(errors="replace").replace("\r\n", "\n")
    said, marker, code = text.rpartition(f"\nonmetal:{end}:")
    errors = result.err.decode(errors="replace")
    if not marker:
        raise DeviceError(lost(transport.address, errors))
    if code.strip() != "0":
        why = quoted(errors + "\n" + said, 3) or f"code {code.strip()[:QUOTED]}"
        raise DeviceError(f"{transport.address}: {why}")
    return said.removesuffix("\n")


def lost(address: str, said: str) -> str:
    """The message for a connection that ended too early, by what adb or ssh printed (`said`)."""
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return (
            f"{address}: its host key is not the one in known_hosts: another machine, or one set "
            "up anew; if you are sure, `ssh-keygen -R` its name and connect once by hand"
        )
    if "Host key verification failed" in said:
        return f"{address}: its host key is unknown: connect once by hand to accept it"
    if "Permission denied" in said and address.startswith("ssh:"):
        return f"{address}: the login was refused: set up a key (`ssh-copy-id`) or the agent"
    last = quoted(said, 2)
    return f"the line to {address} was cut" + (f": {last}" if last else "")


# The guard and the programs that it starts ignore signals: where the connection is cut, adbd sends
# SIGHUP just when the end of standard input, which ends the guard, has begun the tidying up.
GUARD = """\
trap '' HUP INT TERM PIPE
run=$base/run-%(name)s
umask 022
mkdir -p "$base/kept" || exit 1
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
take() { ln -s "$$:$boot:%(who)s" "$lock" 2>/dev/null; }
if ! take; then
  held=$(readlink "$lock")
  pid=${held%%%%:*}; rest=${held#*:}
  if [ "${rest%%%%:*}" = "$boot" ] && { kill -0 "$pid" 2>/dev/null || [ -d "/proc/$pid" ]; }; then
    echo "{\\"busy\\": \\"$(printf %%s "${rest#*:}" | tr -cd 'A-Za-z0-9_.@-')\\"}"; exit 0
  fi
  rm -f "$lock"
  take || { echo "{\\"busy\\": \\"another run\\"}"; exit 0; }
fi
clean() {
  tries=0
  while [ -e "$run" ] && [ $tries -lt 10 ]; do  # what is just starting may still write there
    for file in "$run"/*.pid; do
      [ -f "$file" ] && kill -9 "$(cat "$file")" 2>/dev/null
    done
    rm -rf "$run" 2>/dev/null
    [ -e "$run" ] && sleep 1
    tries=$((tries + 1))
  done
  rmdir "$base/kept" "$base" 2>/dev/null
  rm -f "$lock"
}
trap clean EXIT
rm -rf "$base"/run-*
mkdir -p "$run/new" "$run/lib" || exit 1
echo "{\\"kept\\": \\"$(ls "$base/kept" | tr '\\n' ' ' | tr -cd '0-9a-f ')\\"}"
while read -r word; do
  if [ "$word" = keep ]; then
    rm -f "$run"/new/*.part
    mv -f "$run"/new/* "$base/kept/" 2>/dev/null
    while [ "$(du -sk "$base/kept" | cut -f1)" -gt %(limit)d ]; do
      rm -f "$base/kept/$(ls -tr "$base/kept" | head -n 1)" || break
    done
    echo '{"result": null}'
  fi
done
"""


class RemoteLine(Line):
    """A program on the device; its exit code comes in a last line that is printed after it."""

    def __init__(self, transport: Transport, script: str, who: str, main: bool = False) -> None:
        self._end = secrets.token_hex(8)
        self._address = transport.address
        self.status: int | None = None
        wrapped = f"( {script}\n); s=$?; echo; echo onmetal:{self._end}:$s"
        super().__init__(transport.argv(wrapped, stream=True, main=main), None, who)

    def __enter__(self) -> "RemoteLine":
        return self

    def overheard(self, line: bytes) -> None:
        if marker := re.search(rf"onmetal:{self._end}:([0-9]{{1,3}})".encode(), line):
            self.status = int(marker[1])

    def death(self) -> DeviceError:
        self.drain(5)
        if self.status is None:
            self.hang_up(10)
            return DeviceError(lost(self._address, self.said()))
        return DeviceError(f"{self.who} {ended(self.status)}{self.last_words()}")

    def last_words(self) -> str:
        said = self.said()
        return f": {said}" if said else ""


def ended(status: int) -> str:
    """A shell's exit code in words."""
    meanings = {
        126: "cannot be executed there",
        127: "was not found there",
        132: "crashed: an instruction that this CPU does not have (SIGILL)",
        134: "aborted (SIGABRT)",
        135: "crashed (SIGBUS)",
        136: "crashed (SIGFPE)",
        137: "was killed (SIGKILL): out of memory?",
        139: "crashed (SIGSEGV)",
        143: "was ended (SIGTERM)",
    }
    return meanings.get(status, f"ended with code {status}")


class Held(Struct, frozen=True):
    """The guard's first line: the files that are kept, or who has the device."""

    kept: Annotated[str, Meta(max_length=1 << 20)] = ""
    """Names of files, with blanks between them."""
    busy: Annotated[str, Meta(max_length=200)] | None = None
    """Who has the device."""


def _checked(address: str, folder: str) -> str:
    """The device's folder for caches, which goes into shell scripts and into requests of one line.
    Raises DeviceError where it is not a path that can."""
    if not re.fullmatch(r"/[^\x00-\x1f\x7f]{1,1000}", folder):
        raise DeviceError(
            f"{address}: its folder for caches is {folder[:QUOTED]!r}, which is no absolute path "
            "without line breaks: set HOME or XDG_CACHE_HOME there"
        )
    return folder


class Folder:
    """This run's folder on the device, from the first use to `close`."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        name = secrets.token_hex(6)
        self.base = _checked(transport.address, shell(transport, f'printf %s "{transport.place}"'))
        self.path = f"{self.base}/run-{name}"
        who = re.sub(r"[^A-Za-z0-9_.@-]", "", f"{_user()}@{socket.gethostname()}")
        script = GUARD % {"name": name, "who": who, "limit": KEPT_MB * 1000}
        places = f"base={shlex.quote(self.base)}; lock={shlex.quote(transport.lock)}\n"
        self._guard = RemoteLine(transport, places + script, "onmetal's guard there", main=True)
        try:
            first = self._guard.answer(SHELL_S, "its folder", Held)
        except DeviceError:
            self._guard.close()
            raise
        if first.busy is not None:
            self._guard.close()
            raise DeviceError(
                f"{transport.address} is in use by another run of onmetal ({first.busy}): two "
                f"would disturb each other's timings; wait, or remove {transport.lock} there if "
                "you know that it is left over"
            )
        self._kept = set(first.kept.split())
        self._trusted: set[str] = set()
        """The kept files whose digests were checked in this run."""
        self._new: set[str] = set()
        self._digests: dict[tuple[str, int, int], str] = {}
        self._count = 0

    def put(self, files: list[Path]) -> list[str]:
        """Push the files that the device does not have yet, by digest. -> their paths there."""
        digests = [self._digest(file) for file in files]
        files_by_digest = dict(zip(digests, files, strict=True))
        self._check_kept(set(digests) & self._kept - self._trusted)
        absent = [name for name in files_by_digest if name not in self._new | self._kept]
        for name in absent:
            self._check_guard()
            self.transport.push(files_by_digest[name], f"{self.path}/new/{name}.part", COPY_S)
        if absent:
            self._check(absent)
            self._new |= set(absent)
        return [
            f"{self.path}/new/{name}" if name in self._new else f"{self.base}/kept/{name}"
            for name in digests
        ]

    def _check_guard(self) -> None:
        """Raises DeviceError where the guard is gone, and the folder with it: nobody would remove
        a file that was written now, over a connection that came back."""
        if not self._guard.running:
            raise DeviceError(
                f"the line to {self.transport.address} was cut, and this run's folder there is "
                "gone with it; run it again"
            )

    def _check_kept(self, names: set[str]) -> None:
        """Check the digests of kept files that are to be used: damaged ones are deleted; the others
        are marked as used, since the files that were unused for longest are deleted first."""
        if not names:
            return
        said = shell(
            self.transport,
            f"cd {shlex.quote(self.base)}/kept || exit 1\n"
            f"for name in {' '.join(sorted(names))}; do\n"
            "  if command -v sha256sum >/dev/null &&\n"
            '    [ "$(sha256sum "$name" | cut -c1-64)" != "$name" ]; then\n'
            '    rm -f "$name"; echo "bad $name"\n'
            '  else touch "$name"; fi\n'
            "done",
            COPY_S,
        )
        bad = {line.removeprefix("bad ") for line in said.splitlines() if line.startswith("bad ")}
        self._kept -= bad
        self._trusted |= names - bad

    def _check(self, names: list[str]) -> None:
        """Raises DeviceError where a pushed file arrived damaged; the others get their names."""
        shell(
            self.transport,
            f"cd {shlex.quote(self.path)}/new || exit 1\n"
            f"for name in {' '.join(names)}; do\n"
            "  if command -v sha256sum >/dev/null; then\n"
            '    [ "$(sha256sum "$name.part" | cut -c1-64)" = "$name" ] ||'
            ' { echo "a pushed file arrived damaged" >&2; exit 1; }\n'
            "  fi\n"
            '  chmod 755 "$name.part" && touch "$name.part" && mv "$name.part" "$name" || exit 1\n'
            "done",
            COPY_S,
        )

    def _digest(self, file: Path) -> str:
        file_stat = file.stat()
        key = (str(file), file_stat.st_mtime_ns, file_stat.st_size)
        if key not in self._digests:
            self._digests[key] = caches.sha256(file)
        return self._digests[key]

    def name(self, kind: str) -> str:
        """An unused path in the folder."""
        self._count += 1
        return f"{self.path}/{self._count}.{kind}"

    def link(self, places: dict[str, str], folder: str) -> None:
        """Give pushed files names in a folder of this run. `places`: name -> path on the device."""
        self._check_guard()
        commands = [f"mkdir -p {shlex.quote(folder)}"]
        for name, path in places.items():
            target = shlex.quote(f"{folder}/{name}")
            # A hard link where the system allows it: ONNX Runtime follows no link out of a folder.
            commands.append(f"ln {shlex.quote(path)} {target} 2>/dev/null || "
                            f"cp {shlex.quote(path)} {target} || exit 1")  # fmt: skip
        shell(self.transport, "\n".join(commands), COPY_S)

    def push(self, source: Path, kind: str) -> str:
        """Push a file that only this run uses. -> its path on the device."""
        place = self.name(kind)
        self._check_guard()
        self.transport.push(source, place, COPY_S)
        return place

    def pull(self, source: str, target: Path, most_bytes: int) -> None:
        self.transport.pull(source, target, COPY_S, most_bytes)

    def remove(self, *paths: str) -> None:
        shell(self.transport, "rm -rf " + " ".join(map(shlex.quote, paths)))

    def close(self, *, keep: bool) -> None:
        """Remove the folder; with `keep`, the pushed files stay for the next run."""
        if self._guard.closed:
            return
        if keep:
            with contextlib.suppress(DeviceError):  # the guard removes the folder nevertheless
                self._guard.ask(b"keep", "tidying up", timeout_s=SHELL_S, kind=NoneType)
        self._guard.hang_up(20)
        self._guard.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "someone"
