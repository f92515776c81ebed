"""Devices for tests: a phone behind the real adb, a board behind the real sshd, both arm64.

    with Phone(folder, adb_client("debian")) as phone: ...
    with Board(folder) as board: ...

Set `.environment` and give onmetal the `.serial` or `.address`. What runs on a device and what is
left there can be asked; lines can be cut, frozen and refused. At the end nothing remains: no
process, no mount, no server, and what was written lies in the given folder.
"""

import contextlib
import getpass
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import psutil
import pytest

from tests import arm64
from tests.arm64 import Machine, Missing, needs

CLIENTS = ("debian", "adbutils")
"""adb clients of different ages: Debian's (29), and the one in PyPI's adbutils (36)."""
PHONE_FOLDER = "data/local/tmp"


def adb_client(origin: str) -> Path:
    """An adb program. Raises: Missing, saying how to have it."""
    if origin == "debian":
        return Path(needs("adb", "adb"))
    spec = find_spec("adbutils")
    if spec is None or spec.origin is None:
        raise Missing("adbutils is missing, which brings adb 36 (pip install 'onmetal[devices]')")
    return Path(spec.origin).parent / "binaries" / "adb"


def free_port() -> int:
    """A port of the loopback that nobody uses at this moment.

    Not one of those that the kernel gives to whoever asks for any, so that no connection which
    another process opens meanwhile takes it.
    """
    while True:
        number = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", number))
            return number


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    """Raises: TimeoutError, saying what did not happen."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s} s: {what}")
        time.sleep(0.01)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Push(NamedTuple):
    """A file that adb sent. `complete` is False where it was cut or refused."""

    path: str
    bytes: int
    complete: bool


class Report(NamedTuple):
    """What adbd was asked to do."""

    services: list[str]
    """Each service that was opened, as in `shell,v2,raw:COMMAND` and `sync:`."""
    pushed: list[Push]
    pulled: list[str]
    connected: int
    """How often an adb server came."""


class Device:
    """What a phone and a board have in common."""

    machine: Machine
    environment: dict[str, str]
    """What to set for onmetal, so that it finds this device and leaves the user's things alone."""

    @property
    def root(self) -> Path:
        """The device's files, as the host sees them."""
        return self.machine.root

    def processes(self) -> dict[int, str]:
        """What runs on the device: command lines, by the host's process ids."""
        return self.machine.processes()

    def wait_until_idle(self, timeout_s: float = 120) -> None:
        """Raises: TimeoutError, naming what still runs on the device."""
        try:
            wait_for(lambda: not self.processes(), "idle", timeout_s)
        except TimeoutError:
            raise TimeoutError(f"still on the device: {self.processes()}") from None

    def replace(self, path: str, old: str, new: str) -> None:
        """Change the text of a file of the device, in which `old` must occur."""
        file = self.root / path.lstrip("/")
        text = file.read_text()
        assert old in text, f"{old!r} is not in {path} of the device"
        file.write_text(text.replace(old, new))

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Adbd:
    """The device side of adb, in a process of its own."""

    def __init__(self, machine: Machine, faults: Mapping[str, object], log: Path) -> None:
        script = Path(__file__).with_name("adbd.py")
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, str(script), "--root", str(machine.root)),
                    *("--enter", json.dumps(machine.enter), "--faults", json.dumps(dict(faults))),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        said = self._line()
        if not said.strip().isdigit():
            self.close()
            raise RuntimeError(f"the test adbd does not start: {log.read_text()}")
        self.port = int(said)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def command(self, **words: object) -> Report:
        """See Device.command in adbd.py; returns the report from before it forgets."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line())
        pushed = [Push(**push) for push in answer["pushed"]]
        return Report(answer["services"], pushed, answer["pulled"], answer["connected"])

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


class Phone(Device):
    """An Android phone with nothing but its shell, connected to an adb server of its own.

    Attributes: `serial`; `adb`, the client; `environment`; `root`, of which only /data/local/tmp
    is the shell user's.
    """

    def __init__(
        self, folder: Path, adb: Path, cpu: tuple[str, str] | None = None, **faults: object
    ) -> None:
        """`folder`: an empty one, for everything this writes. `cpu`: another than arm64.CPU, by its
        name in qemu, and a core of it as in /proc/cpuinfo. `faults`: see adbd.Faults."""
        self.adb = adb
        name, core = cpu or (arm64.CPU, arm64.PROCESSOR)
        with contextlib.ExitStack() as stack:
            template = folder / "phone"
            shutil.copytree(arm64.phone_root(), template, symlinks=True)
            if os.geteuid() == 0:
                os.chown(template / PHONE_FOLDER, arm64.SHELL_USER, arm64.SHELL_USER)
            (template / "proc/cpuinfo").write_text("".join(core.format(n) for n in range(2)))
            self.machine = Machine(
                template,
                environment={**arm64.PHONE_ENVIRONMENT, "QEMU_CPU": name},
                uid=arm64.SHELL_USER,
                name="phone",
            )
            stack.callback(self.machine.close)
            self.adbd = Adbd(self.machine, faults, folder / "adbd.log")
            stack.callback(self.adbd.close)
            self.serial = f"127.0.0.1:{self.adbd.port}"
            self._start_server(folder, stack)
            self.connect(ready=not {"auth", "refuse"} & faults.keys())
            self._stack = stack.pop_all()

    def _start_server(self, folder: Path, stack: contextlib.ExitStack) -> None:
        home, temporary = folder / "home", folder / "tmp"
        home.mkdir()
        temporary.mkdir()
        port = str(free_port())
        self.environment = {
            "ADB": str(self.adb),
            "ANDROID_ADB_SERVER_PORT": port,
            "HOME": str(home),
            # Only what is connected here, not what else this computer has, emulates or hears of.
            # Without USB adb 36 waits three seconds for it.
            "ADB_LIBUSB": "0",
            "ADB_LOCAL_TRANSPORT_MAX_PORT": "5553",
            "ADB_MDNS": "0",
            "ADB_USB": "0",
        }
        with (folder / "adb.log").open("w") as log:
            server = subprocess.Popen(
                [self.adb, "-P", port, "nodaemon", "server"],
                env={**os.environ, **self.environment, "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def stop() -> None:
            # Also one that a client started anew.
            if answers(int(port)):
                self.run("kill-server")
            server.kill()
            server.wait()

        stack.callback(stop)
        wait_for(lambda: answers(int(port)), f"the adb server of {self.adb} answers")

    def run(self, *words: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """`adb WORDS`, with its output as text."""
        settings = {"stdin": subprocess.DEVNULL, "timeout": 60, **options}
        return subprocess.run(
            [self.adb, *words],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            **settings,
        )

    def shell(self, command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """`adb shell COMMAND`."""
        return self.run("-s", self.serial, "shell", command, **options)

    def state(self) -> str:
        """`device`, `offline`, `unauthorized`, or empty where adb does not know it."""
        for line in self.run("devices").stdout.splitlines()[1:]:
            serial, _, state = line.partition("\t")
            if serial == self.serial:
                return state.strip()
        return ""

    def connect(self, ready: bool = True) -> None:
        """Plug it in again, with the `auth` and `features` of now.

        Raises: TimeoutError unless the device is then ready.
        """

        def connected() -> bool:
            # To an adb that lost it a moment ago, it is connected, if offline, for ten seconds.
            self.run("disconnect", self.serial)
            self.run("connect", self.serial)
            return self.state() == "device"

        if ready:
            wait_for(connected, f"{self.adb} sees {self.serial} as a device")
        else:
            connected()

    def faults(self, **faults: object) -> Report:
        """Switch faults on or, with their defaults, off: see adbd.Faults.

        `auth` and `features` are for new connections: call `connect` after.
        """
        return self.adbd.command(set=faults)

    def report(self, forget: bool = False) -> Report:
        """What adbd was asked for since the start, or since `forget`."""
        return self.adbd.command(forget=forget)

    def cut(self) -> None:
        """Pull the cable out; adb's server tries to come back at once, as it does over a network.

        Commands there get what adbd gives them: SIGHUP to the shell, and their pipes close.
        """
        self.adbd.command(cut=True)

    def freeze(self) -> None:
        """adbd stops answering without a word, as behind a Wi-Fi that is gone."""
        self.adbd.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.adbd.signal(signal.SIGCONT)

    def leftovers(self) -> list[str]:
        """All files and folders in /data/local/tmp, relative to it."""
        top = self.root / PHONE_FOLDER
        return sorted(str(path.relative_to(top)) for path in top.rglob("*"))

    def close(self) -> None:
        self.adbd.signal(signal.SIGCONT)
        self._stack.close()


class Board(Device):
    """A Debian board with Python, NumPy and both runtimes, behind a real sshd on the loopback.

    Attributes: `address`, `environment`, `config` (the client's configuration file), `root`.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: an empty one, for everything this writes. Raises: Missing."""
        needs("ssh", "openssh-client")
        self._sshd = needs("sshd", "openssh-server")
        self._folder = folder
        self._listener: subprocess.Popen[bytes] | None = None
        self._sessions: list[psutil.Process] = []
        self.port = free_port()
        self.user = getpass.getuser()
        self.address = f"ssh://{self.user}@127.0.0.1:{self.port}"
        self.config = folder / "ssh_config"
        self.environment = {"ONMETAL_SSH": f"ssh -F {self.config}"}
        changes = folder / "board"
        changes.mkdir()
        with contextlib.ExitStack() as stack:
            self.machine = Machine(
                arm64.board_root(),
                environment=arm64.BOARD_ENVIRONMENT,
                private=changes,
                name="board",
            )
            stack.callback(self.machine.close)
            self._write_configuration()
            self._make_host_key()
            self.trust()
            stack.callback(self.cut)
            stack.callback(self._stop)
            self._start()
            self._stack = stack.pop_all()

    def _write_configuration(self) -> None:
        folder = self._folder
        make_key(folder / "user_key")
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        forced = folder / "forced"
        forced.write_text(
            "#!/bin/sh\n"
            # Nothing but the command: what the shell of whoever runs the tests does is not asked.
            f'exec {shlex.join(self.machine.enter)} /bin/sh -c "${{SSH_ORIGINAL_COMMAND-sh -i}}"\n'
        )
        forced.chmod(0o755)
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\n"
            f"HostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/authorized_keys\n"
            f"ForceCommand {forced}\n"
            "AuthenticationMethods publickey\n"
            "PermitRootLogin yes\n"
            "MaxSessions 50\n"
            "MaxStartups 50\n"
            "PermitUserRC no\n"
            "PidFile none\n"
            "PrintLastLog no\n"
            "PrintMotd no\n"
            "StrictModes no\n"
            "UseDNS no\n"
            "UsePAM no\n"
        )
        self.config.write_text(
            "Host *\n"
            f"  IdentityFile {folder}/user_key\n"
            "  IdentitiesOnly yes\n"
            "  IdentityAgent none\n"
            f"  UserKnownHostsFile {folder}/known_hosts\n"
            "  GlobalKnownHostsFile none\n"
            "  StrictHostKeyChecking yes\n"
        )

    def _make_host_key(self) -> None:
        for name in ("host_key", "host_key.pub"):
            (self._folder / name).unlink(missing_ok=True)
        make_key(self._folder / "host_key")

    def trust(self) -> None:
        """Have the client know the host's present key."""
        key = (self._folder / "host_key.pub").read_text()
        (self._folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}")

    def forget(self) -> None:
        """Have the client know no host."""
        (self._folder / "known_hosts").write_text("")

    def change_host_key(self) -> None:
        """What a client sees when another machine answers in this one's place."""
        self._stop()
        self._make_host_key()
        self._start()

    def _start(self) -> None:
        command = [self._sshd, "-D", "-e", "-f", str(self._folder / "sshd_config")]
        if os.geteuid() == 0:
            # As root it wants /run/sshd, writes logins to /var/log, and runs the user's shell,
            # which may read start files: let all of them be its own.
            users = self._folder / "passwd"
            lines = Path("/etc/passwd").read_text().splitlines()
            own = f"root:x:0:0:root:{self._folder}:/bin/sh"
            lines = [own if line.startswith("root:") else line for line in lines]
            users.write_text("\n".join(lines) + "\n")
            script = (
                "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log && "
                'mkdir /run/sshd && touch /var/log/lastlog && mount --bind "$0" /etc/passwd && '
                'exec "$@"'
            )
            unshare = needs("unshare", "util-linux")
            command = [unshare, "-m", "sh", "-c", script, str(users), *command]
        log = self._folder / "sshd.log"
        with log.open("a") as errors:
            self._listener = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )
        listener = self._listener

        def up() -> bool:
            if listener.poll() is not None:
                raise RuntimeError(f"the test sshd does not start: {log.read_text()}")
            return answers(self.port)

        wait_for(up, "sshd answers")

    def _stop(self) -> None:
        """Listen no longer; open sessions go on."""
        self.sessions()
        listener, self._listener = self._listener, None
        if listener:
            listener.send_signal(signal.SIGCONT)
            listener.terminate()
            listener.wait(timeout=60)

    def sessions(self) -> list[psutil.Process]:
        """The processes of sshd that serve a connection."""
        if self._listener:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self._listener.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if child.name().startswith("sshd") and child not in self._sessions:
                            self._sessions.append(child)
        self._sessions = [process for process in self._sessions if process.is_running()]
        return list(self._sessions)

    def run(self, command: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """`ssh ADDRESS COMMAND`, with its output as text."""
        settings = {"stdin": subprocess.DEVNULL, "timeout": 60, **options}
        return subprocess.run(
            [*self.client(), command], capture_output=True, text=True, check=False, **settings
        )

    def client(self, *options: str) -> list[str]:
        """An ssh command without its last word, the command for the board."""
        return ["ssh", "-F", str(self.config), *options, self.address]

    def cut(self) -> None:
        """The line drops: sshd's side of every connection is gone, and commands are left alone.

        Those without a terminal go on and only find their pipes closed.
        """
        for process in self.sessions():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def freeze(self) -> None:
        """sshd stops answering without a word, as behind a Wi-Fi that is gone."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._listener:
            self._listener.send_signal(number)
        for process in self.sessions():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def close(self) -> None:
        self._stack.close()


def make_key(path: Path) -> None:
    subprocess.run(
        [needs("ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", path],
        check=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


@pytest.fixture(params=CLIENTS)
def adb(request: pytest.FixtureRequest) -> Path:
    """Each adb client in turn."""
    return adb_client(request.param)


@pytest.fixture
def phone(adb: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phone]:
    """A phone behind each adb client in turn."""
    with Phone(tmp_path_factory.mktemp("phone"), adb) as device:
        yield device


@pytest.fixture
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    """A board behind sshd."""
    with Board(tmp_path_factory.mktemp("board")) as device:
        yield device
