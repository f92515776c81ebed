"""The device side of adb, for tests: real clients in front of it, real arm64 programs behind it.

It speaks the transport protocol over TCP (`adb connect 127.0.0.1:PORT`): shell with and without
the shell protocol, exec, file sync, port forwarding, authorization. Where Android's adbd does
something that a client can notice, this does the same; the comments name it. Beyond that it can
fail on demand, and remembers what it was asked.

    python tests/adbd.py --root FOLDER          # a machine of its own; prints its port
    python tests/adbd.py --root FOLDER --enter '["prefix", "of", "commands"]'

Each line on its standard input is a JSON object, answered by one line (see `Device.command`). It
ends when its standard input does.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import pty
import signal
import socket
import stat
import struct
import sys
import termios
import tty
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, BinaryIO


def word(text: bytes) -> int:
    return int.from_bytes(text, "little")


CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = map(
    word, (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
WITH_CHECKSUMS, WITHOUT_CHECKSUMS = 0x01000000, 0x01000001
MAX_PAYLOAD = 1 << 20
TOKEN, SIGNATURE, PUBLIC_KEY = 1, 2, 3
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN, WINDOW_SIZE = range(6)

FEATURES = "shell_v2,cmd,stat_v2,ls_v2,fixed_push_mkdir,sendrecv_v2"
OLD_FEATURES = "cmd"
"""Android 6 and before: without the shell protocol, so no exit codes and one stream of output."""
WRITABLE = ("/data/local/tmp/", "/sdcard/")
"""Where the shell user may write."""


@dataclasses.dataclass
class Faults:
    """What goes wrong. `auth` and `features` count from the next connection on."""

    auth: str = "none"
    """`none`; `accept` any key; `never`: the client shows the device as unauthorized."""
    features: str = FEATURES
    quota: int | None = None
    """So many more bytes can be pushed, then the disk is full."""
    cut_after_pushed: int | None = None
    """The line is cut after so many more bytes of pushed files, also amid one."""
    cut_after_output: int | None = None
    """The line is cut after so many more bytes of commands' output."""
    keep_partial: bool = False
    """A file whose push was cut stays: adbd would remove it, but not if the battery fell out."""
    refuse_s: float = 0.0
    """For so long after each cut nothing can connect."""
    refuse: bool = False
    """Nothing can connect at all."""


class Stream:
    """One service in use: data goes each way one message at a time, each acknowledged."""

    def __init__(self, connection: "Connection", local: int, remote: int) -> None:
        self.connection, self.local, self.remote = connection, local, remote
        self.incoming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.rest = b""
        self.ended = self.closed = False
        self.acknowledged = asyncio.Event()

    def lose(self) -> None:
        """The other side is gone: nothing more comes, and nothing can be sent."""
        self.closed = True
        self.acknowledged.set()
        self.incoming.put_nowait(None)

    def drop(self) -> None:
        """As `lose`, and what has come but was not read yet is lost too."""
        self.ended, self.rest = True, b""
        self.lose()

    async def write(self, data: bytes) -> None:
        """Raises: ConnectionError if the other side is gone."""
        size = self.connection.max_payload
        for offset in range(0, len(data), size):
            self.acknowledged.clear()
            if self.closed:
                raise ConnectionResetError
            part = data[offset : offset + size]
            await self.connection.send(WRTE, self.local, self.remote, part)
            await self.acknowledged.wait()

    async def read_some(self) -> bytes:
        """One message; empty at the end. It is acknowledged here, so a slow reader slows."""
        if self.rest:
            data, self.rest = self.rest, b""
            return data
        if self.ended:
            return b""
        message = await self.incoming.get()
        if message is None or self.ended:
            self.ended = True
            return b""
        if not self.closed:
            await self.connection.send(OKAY, self.local, self.remote)
        return message

    async def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises: EOFError at the end."""
        if size == 0:
            return b""
        parts, have = [], 0
        while have < size:
            part = await self.read_some()
            if not part:
                raise EOFError
            parts.append(part)
            have += len(part)
        data = b"".join(parts)
        self.rest = data[size:]
        return data[:size]

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            await self.connection.send(CLSE, self.local, self.remote)
        self.connection.streams.pop(self.local, None)


class Connection:
    """One adb server, connected."""

    def __init__(
        self, device: "Device", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.device, self.reader, self.writer = device, reader, writer
        self.streams: dict[int, Stream] = {}
        self.last_local = 0
        self.max_payload, self.version = 4096, WITH_CHECKSUMS
        self.lock = asyncio.Lock()

    async def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        checksum = 0 if self.version >= WITHOUT_CHECKSUMS else sum(data) & 0xFFFFFFFF
        header = (command, first, second, len(data), checksum, command ^ 0xFFFFFFFF)
        async with self.lock:
            self.writer.write(struct.pack("<6I", *header) + data)
            await self.writer.drain()

    async def greet(self) -> None:
        banner = "device::" + "".join(
            f"{key}={value};"
            for key, value in self.device.properties().items()
            if key in ("ro.product.name", "ro.product.model", "ro.product.device")
        )
        features = f"features={self.device.faults.features}"
        await self.send(CNXN, WITHOUT_CHECKSUMS, MAX_PAYLOAD, (banner + features).encode())

    async def run(self) -> None:
        try:
            while await self.step():
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for stream in self.streams.values():
                stream.lose()
            self.writer.close()

    async def step(self) -> bool:
        """Read one message and act; False if it is not one."""
        header = await self.reader.readexactly(24)
        command, first, second, size, checksum, magic = struct.unpack("<6I", header)
        if magic != command ^ 0xFFFFFFFF or size > MAX_PAYLOAD:
            return False
        data = await self.reader.readexactly(size)
        if self.version < WITHOUT_CHECKSUMS and command != CNXN and sum(data) != checksum:
            return False
        if command == CNXN:
            self.max_payload = min(second, MAX_PAYLOAD)
            if self.device.faults.auth == "none":
                await self.greet()
            else:
                await self.send(AUTH, TOKEN, 0, os.urandom(20))
            self.version = min(first, WITHOUT_CHECKSUMS)
        elif command == AUTH:
            if first == PUBLIC_KEY and self.device.faults.auth == "accept":
                await self.greet()
            elif first == SIGNATURE:
                # No key is known: ask for the next, until the client offers its public key.
                await self.send(AUTH, TOKEN, 0, os.urandom(20))
        elif command == OPEN:
            self.last_local += 1
            stream = self.streams[self.last_local] = Stream(self, self.last_local, first)
            self.device.spawn(self.serve(stream, data.rstrip(b"\0").decode()))
        elif command in (OKAY, WRTE, CLSE):
            await self.on_stream(command, first, second, data)
        return True

    async def on_stream(self, command: int, remote: int, local: int, data: bytes) -> None:
        stream = self.streams.get(local)
        if command == CLSE:
            if stream and not stream.closed:
                del self.streams[local]
                stream.lose()
                await self.send(CLSE, stream.local, stream.remote)
        elif stream is None:
            await self.send(CLSE, 0, remote)
        elif command == OKAY:
            stream.acknowledged.set()
        else:
            stream.incoming.put_nowait(data)

    async def serve(self, stream: Stream, service: str) -> None:
        self.device.services.append(service)
        kind, _, rest = service.partition(":")
        kind, *words = kind.split(",")
        try:
            if kind in ("shell", "exec"):
                await self.send(OKAY, stream.local, stream.remote)
                await Shell(self.device, stream, kind, words).run(rest)
            elif kind == "sync":
                await self.send(OKAY, stream.local, stream.remote)
                await Sync(self.device, stream).run()
            elif kind == "tcp":
                reader, writer = await asyncio.open_connection("127.0.0.1", int(rest))
                await self.send(OKAY, stream.local, stream.remote)
                await relay(stream, reader, writer)
            else:
                await self.refuse(stream)
        except (EOFError, ConnectionError):
            pass
        except OSError:
            await self.refuse(stream)
        finally:
            with contextlib.suppress(ConnectionError):
                await stream.close()

    async def refuse(self, stream: Stream) -> None:
        stream.closed = True
        with contextlib.suppress(ConnectionError):
            await self.send(CLSE, 0, stream.remote)


async def relay(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Join a stream and a socket of the device."""

    async def outwards() -> None:
        with contextlib.suppress(ConnectionError):
            while data := await stream.read_some():
                writer.write(data)
                await writer.drain()
        writer.close()

    task = asyncio.create_task(outwards())
    try:
        while data := await reader.read(65536):
            await stream.write(data)
    finally:
        task.cancel()
        writer.close()


def abort(writer: asyncio.StreamWriter) -> None:
    """Also holds the writer until then: one that nobody holds closes its socket."""
    writer.transport.abort()


def hang_up(entered: int) -> None:
    """Send SIGHUP to the shell that `enter` started, before its pipes close and not after."""
    children: list[str] = []
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{entered}/task/{entered}/children").read_text().split()
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(children[0]) if children else entered, signal.SIGHUP)


class Shell:
    """One command, with or without the shell protocol.

    With it, input and output of the command are one socket, errors another, and the exit code is
    carried. Without it, everything is one terminal in raw mode, of which the client sees the end
    only. When the client goes, adbd sends SIGHUP to the shell (just to that process), closes the
    command's ends, and leaves it alone.
    """

    def __init__(self, device: "Device", stream: Stream, kind: str, words: list[str]) -> None:
        self.device, self.stream = device, stream
        self.protocol = "v2" in words
        self.interactive = "pty" in words

    async def run(self, command: str) -> None:
        terminal = self.interactive or not self.protocol
        self.raw = not self.interactive and bool(command)
        argv = [*self.device.enter, "/bin/sh", *(["-c", command] if command else ["-i"])]
        async with contextlib.AsyncExitStack() as stack:
            start = self.on_terminal if terminal else self.on_sockets
            process, outputs, writer, window = await start(stack, argv)
            feed = asyncio.create_task(self.feed(writer, window))
            pumps = asyncio.gather(*(self.pump(number, out) for number, out in outputs))
            try:
                await asyncio.wait((feed, pumps), return_when=asyncio.FIRST_COMPLETED)
                gone = feed.done() or pumps.exception() is not None
            finally:
                feed.cancel()
                pumps.cancel()
                await asyncio.gather(feed, pumps, return_exceptions=True)
            if gone:
                hang_up(process.pid)
        code = await process.wait()
        if self.protocol and not gone:
            answer = code if code >= 0 else 128 - code
            await self.stream.write(struct.pack("<BIB", EXIT, 1, answer & 255))

    async def on_sockets(self, stack: contextlib.AsyncExitStack, argv: list[str]) -> "Started":
        ours, theirs = socket.socketpair()
        our_errors, their_errors = socket.socketpair()
        with theirs, their_errors:
            both, errors_only = theirs.fileno(), their_errors.fileno()
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=both, stdout=both, stderr=errors_only, start_new_session=True
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        errors, unused = await asyncio.open_connection(sock=our_errors)
        # At once, unsent data and all: the command's ends break as this side's do on a phone.
        stack.callback(abort, writer)
        stack.callback(abort, unused)
        return process, [(STDOUT, reader), (STDERR, errors)], writer, None

    async def on_terminal(self, stack: contextlib.AsyncExitStack, argv: list[str]) -> "Started":
        master, slave = pty.openpty()
        if self.raw:
            tty.setraw(slave)
        try:
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
            )
        finally:
            os.close(slave)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        reading, _ = await loop.connect_read_pipe(
            lambda: Terminal(reader), os.fdopen(os.dup(master), "rb", 0)
        )
        writing, protocol = await loop.connect_write_pipe(
            lambda: asyncio.streams.FlowControlMixin(), os.fdopen(os.dup(master), "wb", 0)
        )
        stack.callback(os.close, master)
        stack.callback(reading.close)
        stack.callback(writing.abort)
        writer = asyncio.StreamWriter(writing, protocol, reader, loop)
        return process, [(STDOUT, reader)], writer, master

    async def pump(self, number: int, reader: asyncio.StreamReader) -> None:
        """Output of the command, to the client."""
        while True:
            data = await reader.read(32768)
            if not data:
                return
            data, cut = self.device.spend("cut_after_output", data)
            await self.stream.write(self.packet(number, data))
            if cut:
                self.device.cut()

    def packet(self, number: int, data: bytes) -> bytes:
        return struct.pack("<BI", number, len(data)) + data if self.protocol else data

    async def feed(self, writer: asyncio.StreamWriter, terminal: int | None) -> None:
        """Input from the client, to the command; returns when the client is gone."""
        try:
            async for number, data in self.packets():
                if number == STDIN:
                    # A command may have closed its input: adbd goes on without it.
                    with contextlib.suppress(OSError):
                        writer.write(data)
                        await writer.drain()
                elif number == CLOSE_STDIN and terminal is None:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                elif number == WINDOW_SIZE and terminal is not None:
                    text = data.rstrip(b"\0").decode().replace("x", " ").replace(",", " ")
                    size = struct.pack("4H", *map(int, text.split()))
                    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        except (EOFError, ConnectionError):
            return

    async def packets(self) -> AsyncIterator[tuple[int, bytes]]:
        while True:
            if self.protocol:
                number, size = struct.unpack("<BI", await self.stream.read(5))
                yield number, await self.stream.read(size)
            elif data := await self.stream.read_some():
                yield STDIN, data
            else:
                return


class Terminal(asyncio.StreamReaderProtocol):
    """A terminal ends with an error, EIO; what was read before it counts nevertheless."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(None)


Started = tuple[
    asyncio.subprocess.Process,
    list[tuple[int, asyncio.StreamReader]],
    asyncio.StreamWriter,
    int | None,
]


class Sync:
    """File transfer, in both versions of its messages."""

    def __init__(self, device: "Device", stream: Stream) -> None:
        self.device, self.stream = device, stream

    async def fail(self, message: str) -> None:
        text = message.encode()
        await self.stream.write(b"FAIL" + struct.pack("<I", len(text)) + text)

    async def run(self) -> None:
        while True:
            verb, size = struct.unpack("<4sI", await self.stream.read(8))
            if verb == b"QUIT":
                return
            path = (await self.stream.read(size)).decode()
            if verb == b"STAT":
                await self.stream.write(b"STAT" + brief(status(self.device.path(path), False)[1]))
            elif verb in (b"STA2", b"LST2"):
                found = status(self.device.path(path), verb == b"STA2")
                await self.stream.write(verb + full(*found))
            elif verb in (b"LIST", b"LIS2"):
                await self.list(verb, path)
            elif verb in (b"SEND", b"SND2"):
                await self.receive(verb, path)
            elif verb in (b"RECV", b"RCV2"):
                await self.send(verb, path)
            else:
                await self.fail(f"unknown command {verb!r}")
                return

    async def list(self, verb: bytes, path: str) -> None:
        folder = self.device.path(path)
        names = [".", ".."]
        with contextlib.suppress(OSError):
            names += sorted(entry.name for entry in folder.iterdir())
        lines = []
        for name in names:
            error, found = status(folder / name, False)
            encoded = os.fsencode(name)
            size = struct.pack("<I", len(encoded))
            if verb == b"LIST":
                lines.append(b"DENT" + brief(found) + size + encoded)
            else:
                lines.append(b"DNT2" + full(error, found) + size + encoded)
        lines.append(b"DONE" + bytes(16 if verb == b"LIST" else 72))
        await self.stream.write(b"".join(lines))

    async def receive(self, verb: bytes, path: str) -> None:
        """A pushed file. After an error the rest is read, and the error said at its end."""
        flags = 0
        if verb == b"SEND":
            path, _, text = path.rpartition(",")
            mode = int(text)
        else:
            _, mode, flags = struct.unpack("<4s2I", await self.stream.read(12))
        if flags & 7:
            await self.fail("compression not supported")
            return
        push: dict[str, Any] = {"path": path, "bytes": 0, "complete": False}
        self.device.pushed.append(push)
        target, error = self.device.path(path), None
        file: BinaryIO | None = None
        link = b""
        try:
            self.device.make_parents(path)
            if not stat.S_ISLNK(mode):
                target.unlink(missing_ok=True)
                file = target.open("wb")
                self.device.own(target)
        except OSError as problem:
            error = f"couldn't create file: {problem.strerror}"
        try:
            while True:
                verb, size = struct.unpack("<4sI", await self.stream.read(8))
                if verb == b"DONE":
                    break
                if verb != b"DATA" or size > 65536:
                    await self.fail("invalid data message")
                    return
                data, cut = self.device.spend("cut_after_pushed", await self.stream.read(size))
                push["bytes"] += len(data)
                if file:
                    try:
                        self.device.take(len(data))
                        file.write(data)
                    except OSError as problem:
                        error = f"write failed: {problem.strerror}"
                        file.close()
                        file = None
                        target.unlink()
                else:
                    link += data
                if cut:
                    self.device.cut()
        except EOFError:
            # As adbd does when a push breaks off.
            if file and not self.device.faults.keep_partial:
                target.unlink(missing_ok=True)
            raise
        finally:
            if file:
                file.close()
        if error is None:
            try:
                self.finish(target, mode, size, link)
                push["complete"] = True
            except OSError as problem:
                error = f"couldn't finish file: {problem.strerror}"
        if error is not None:
            await self.fail(error)
        else:
            await self.stream.write(b"OKAY" + bytes(4))

    def finish(self, target: Path, mode: int, seconds: int, link: bytes) -> None:
        if stat.S_ISLNK(mode):
            target.unlink(missing_ok=True)
            target.symlink_to(link.rstrip(b"\0").decode())
            return
        # The owner's rights go to everyone, as on a phone.
        target.chmod(mode & 0o777 | mode >> 3 & 0o070 | mode >> 3 & 0o007)
        os.utime(target, (seconds, seconds))

    async def send(self, verb: bytes, path: str) -> None:
        if verb == b"RCV2":
            _, flags = struct.unpack("<4sI", await self.stream.read(8))
            if flags & 7:
                await self.fail("compression not supported")
                return
        self.device.pulled.append(path)
        try:
            file = self.device.path(path).open("rb")
        except OSError as problem:
            await self.fail(f"open failed: {problem.strerror}")
            return
        with file:
            while data := file.read(65536):
                await self.stream.write(b"DATA" + struct.pack("<I", len(data)) + data)
        await self.stream.write(b"DONE" + bytes(4))


def normal(path: str) -> str:
    """With one slash in front: two would mean something else to POSIX, and stay."""
    return os.path.normpath("/" + path.lstrip("/"))


def status(path: Path, follow: bool) -> tuple[int, os.stat_result | None]:
    try:
        return 0, path.stat(follow_symlinks=follow)
    except OSError as problem:
        return problem.errno or errno.EIO, None


def brief(found: os.stat_result | None) -> bytes:
    if found is None:
        return bytes(12)
    low = 0xFFFFFFFF
    return struct.pack("<3I", found.st_mode, found.st_size & low, int(found.st_mtime) & low)


def full(error: int, found: os.stat_result | None) -> bytes:
    if found is None:
        return struct.pack("<I", error) + bytes(64)
    return struct.pack(
        "<I2Q4IQ3q",
        error,
        found.st_dev,
        found.st_ino,
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        found.st_size,
        int(found.st_atime),
        int(found.st_mtime),
        int(found.st_ctime),
    )


class Device:
    """The phone as adbd sees it: its files, its faults, and what was asked of it."""

    def __init__(self, root: Path, enter: list[str], faults: Faults, user: int) -> None:
        self.root, self.enter, self.faults, self.user = root, enter, faults, user
        self.services: list[str] = []
        self.pushed: list[dict[str, Any]] = []
        self.pulled: list[str] = []
        self.connected = 0
        self.port = 0
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.server: asyncio.Server | None = None

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def properties(self) -> dict[str, str]:
        try:
            text = (self.root / "system/etc/properties").read_text()
        except OSError:
            return {}
        return dict(line.split("=", 1) for line in text.splitlines())

    def path(self, path: str) -> Path:
        return self.root / normal(path).lstrip("/")

    def make_parents(self, path: str) -> None:
        """Raises: OSError as the shell user of a phone would get it."""
        if not normal(path).startswith(WRITABLE):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        missing = self.path(path).parent
        made = []
        while not missing.exists():
            made.append(missing)
            missing = missing.parent
        for folder in reversed(made):
            folder.mkdir()
            self.own(folder)

    def own(self, path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, self.user, self.user)

    def take(self, size: int) -> None:
        """Raises: OSError when the disk is full."""
        if self.faults.quota is not None:
            if size > self.faults.quota:
                self.faults.quota = 0
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.faults.quota -= size

    def spend(self, fault: str, data: bytes) -> tuple[bytes, bool]:
        """What of `data` still passes, and whether the line is to be cut after it."""
        left = getattr(self.faults, fault)
        if left is None or len(data) < left:
            if left is not None:
                setattr(self.faults, fault, left - len(data))
            return data, False
        setattr(self.faults, fault, None)
        return data[:left], True

    def cut(self) -> None:
        """The cable is pulled out."""
        for connection in list(self.connections):
            connection.writer.transport.abort()
            for stream in connection.streams.values():
                stream.drop()
        if self.faults.refuse_s and not self.faults.refuse:
            self.stop_listening()
            self.spawn(self.listen_again(self.faults.refuse_s))

    async def listen_again(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not self.faults.refuse:
            await self.listen()

    def stop_listening(self) -> None:
        server, self.server = self.server, None
        if server:
            server.close()

    async def listen(self) -> None:
        if self.server:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self.server = await asyncio.start_server(self.connect, sock=listener, limit=2 * MAX_PAYLOAD)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self.connected += 1
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)

    async def command(self, words: dict[str, Any]) -> dict[str, Any]:
        """`{"set": {fault: value}}`, `{"cut": true}`, `{"forget": true}`; answered by a report."""
        self.faults = dataclasses.replace(self.faults, **words.get("set", {}))
        if words.get("cut"):
            self.cut()
        if self.faults.refuse:
            self.stop_listening()
        elif "set" in words:
            await self.listen()
        report = {
            "services": self.services,
            "pushed": self.pushed,
            "pulled": self.pulled,
            "connected": self.connected,
            "quota": self.faults.quota,
        }
        if words.get("forget"):
            self.services, self.pushed, self.pulled, self.connected = [], [], [], 0
        return report


async def serve(device: Device) -> None:
    """Listen, say where, and obey standard input until it ends."""
    await device.listen()
    print(device.port, flush=True)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        print(json.dumps(await device.command(json.loads(line))), flush=True)
    transport.close()
    device.stop_listening()
    # The phone is off: what it ran ends with the machine, and is not waited for.
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, required=True, help="the device's files")
    parser.add_argument("--enter", type=json.loads, help="what runs a command there, as JSON")
    parser.add_argument("--faults", type=json.loads, default={}, help="see Faults, as JSON")
    parser.add_argument("--user", type=int, default=2000, help="who owns pushed files")
    words = parser.parse_args()
    faults = Faults(**words.faults)
    if words.enter is not None:
        asyncio.run(serve(Device(words.root, words.enter, faults, words.user)))
        return
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests import arm64

    environment = arm64.PHONE_ENVIRONMENT
    with arm64.Machine(words.root, environment=environment, uid=words.user) as machine:
        asyncio.run(serve(Device(machine.root, machine.enter, faults, words.user)))


if __name__ == "__main__":
    main()
