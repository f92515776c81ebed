"""A root folder as a machine of its own: `hold` keeps its namespaces, `enter` runs a command there.

`hold` makes a user, mount, process and host-name namespace around a root folder that holds arm64
programs, with the kernel told (binfmt_misc) to run these through qemu. All of it belongs to the
namespaces: the host's mounts, registrations and processes stay as they are, and when the first
process of the machine ends, the kernel ends every other and forgets every mount. It does end as
soon as its standard input is closed, so even a killed test leaves nothing.

`enter` joins them, starts the command as the leader of a session of its own, as adbd and sshd do,
and is to its caller what the command would be: it hands signals on and ends as the command ended.

A script that imports next to nothing: each command on a device costs its start.
"""

# pathlib and contextlib would take as long to import as everything else here:
# ruff: noqa: PTH101, PTH102, PTH115, PTH211, SIM105

import ctypes
import os
import signal
import sys
from types import FrameType

NEW_MOUNTS, NEW_NAMES, NEW_USERS, NEW_PROCESSES = 0x00020000, 0x04000000, 0x10000000, 0x20000000
BIND, RECURSIVE, PRIVATE, DETACH = 0x1000, 0x4000, 0x40000, 2
NOSUID, NODEV, NOEXEC = 2, 4, 8
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)

MAGIC = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    words = [word.encode() or None for word in (source, target, kind)]
    done = libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None)
    check(done, f"mount {source} on {target}")


def write(path: str, text: bytes) -> None:
    # In one call, unbuffered: these files take one write each.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)


def register(folder: str, interpreter: str) -> None:
    """Tell a binfmt_misc instance how arm64 programs run.

    F: qemu is opened now, so that it need not be in the root folder. P: argv[0] is kept.
    """
    rule = b":qemu-aarch64:M::" + MAGIC + b":" + MASK + b":" + interpreter.encode() + b":PF"
    write(f"{folder}/register", rule)


def furnish(root: str, uid: int, interpreter: str) -> None:
    """Make `root` the root of this mount namespace, with /proc, /dev and a way to run arm64.

    `interpreter` is empty where the host as a whole already runs arm64 programs.
    """
    # Hidden by the real /proc in a moment; the descriptor still leads to it.
    own_cpuinfo = os.open(f"{root}/proc/cpuinfo", os.O_PATH)
    mount("proc", f"{root}/proc", "proc", NOSUID | NODEV | NOEXEC)
    # Some libraries crash where /proc/cpuinfo describes a CPU of the host's kind.
    mount(f"/proc/self/fd/{own_cpuinfo}", f"{root}/proc/cpuinfo", flags=BIND)
    os.close(own_cpuinfo)
    if interpreter:
        instance = f"{root}/proc/sys/fs/binfmt_misc"
        mount("binfmt_misc", instance, "binfmt_misc")
        register(instance, interpreter)
    mount("tmpfs", f"{root}/dev", "tmpfs", NOSUID, "mode=755")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        write(f"{root}/dev/{name}", b"")
        mount(f"/dev/{name}", f"{root}/dev/{name}", flags=BIND)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"{root}/dev/{name}")
    if uid == 0:
        # Linux has shared memory there; Android does not.
        os.mkdir(f"{root}/dev/shm")
        os.chmod(f"{root}/dev/shm", 0o1777)
    os.chdir(root)
    check(libc.pivot_root(b".", b"."), "pivot_root")
    check(libc.umount2(b".", DETACH), "umount of the host's root")
    os.chdir("/")


def first_process(root: str, uid: int, interpreter: str, name: str, overlay: str) -> None:
    """What process 1 of the machine does: never returns."""
    try:
        mount("none", "/", flags=RECURSIVE | PRIVATE)
        if overlay:
            mount("overlay", root, "overlay", 0, overlay)
        else:
            mount(root, root, flags=BIND)
        check(libc.sethostname(name.encode(), len(name)), "sethostname")
        furnish(root, uid, interpreter)
        # Orphans come to process 1; the kernel reaps the children of who ignores their end.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        print("ready", os.environ["MACHINE_PID"], flush=True)
        silent = os.open("/dev/null", os.O_RDWR)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        while os.read(0, 4096):
            pass
    except BaseException as error:
        print("failed", error, flush=True)
    finally:
        os._exit(0)


def keep(root: str, uid: int, interpreter: str, private: bool, name: str, overlay: str) -> None:
    """Make the namespaces and wait for the machine's end."""
    mapped_in, mapped_out = os.pipe()
    unshared_in, unshared_out = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            os.close(mapped_out)
            flags = NEW_MOUNTS | NEW_PROCESSES | NEW_NAMES | (NEW_USERS if private else 0)
            check(libc.unshare(flags), "unshare")
            os.write(unshared_out, b"1")
            if not os.read(mapped_in, 1):
                os._exit(1)
            os.close(mapped_in)
            start_in, start_out = os.pipe()
            first = os.fork()
            if first == 0:
                # It sees itself as process 1: only its parent knows what the host calls it.
                os.environ["MACHINE_PID"] = os.read(start_in, 32).decode()
                first_process(root, uid, interpreter, name, overlay)
            os.write(start_out, str(first).encode())
            os.waitpid(first, 0)
        except BaseException as error:
            print("failed", error, flush=True)
        finally:
            os._exit(0)
    os.close(unshared_out)
    if os.read(unshared_in, 1):
        if private:
            if os.geteuid() == 0:
                users = groups = b"0 0 65536"
            else:
                write(f"/proc/{holder}/setgroups", b"deny")
                # Registering with binfmt_misc is root's, so the one user there can be is root.
                users = f"0 {os.geteuid()} 1".encode()
                groups = f"0 {os.getegid()} 1".encode()
            write(f"/proc/{holder}/uid_map", users)
            write(f"/proc/{holder}/gid_map", groups)
        os.write(mapped_out, b"1")
    os.close(mapped_out)
    os.waitpid(holder, 0)


def join(pid: int) -> None:
    """Enter the namespaces of a process; children of the caller start in its process namespace."""
    names = [name for name in ("user", "mnt", "uts", "pid") if differs(pid, name)]
    spaces = [(name, os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY)) for name in names]
    for name, space in spaces:
        check(libc.setns(space, 0), f"setns to the {name} namespace of {pid}")
        os.close(space)


def differs(pid: int, name: str) -> bool:
    return os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")


def let_go_of_terminal() -> None:
    """A terminal has one session: leave it to the command's."""
    import fcntl
    import termios

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        fcntl.ioctl(0, termios.TIOCNOTTY)
    except OSError:
        pass  # It was not this process's terminal.


def take_terminal() -> None:
    import fcntl
    import termios

    try:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    except OSError:
        pass  # It belongs to another session, such as the one of whoever runs this by hand.


def enter(pid: int, uid: int, environment: dict[str, str], command: list[str]) -> None:
    """Run a command in a machine and end as it ends."""
    terminal = os.isatty(0)
    if terminal:
        let_go_of_terminal()
    # From here on the host's files are out of reach, and nothing new can be imported.
    join(pid)
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if terminal:
                take_terminal()
            if os.getuid() != uid:
                os.setgroups([uid])
                os.setgid(uid)
                os.setuid(uid)
            os.chdir(environment.get("HOME", "/"))
            for number in (*FORWARDED, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
            os.execve(command[0], command, environment)
        except BaseException as error:
            os.write(2, f"{command[0]}: {error}\n".encode())
        finally:
            os._exit(126)

    def forward(number: int, _: FrameType | None) -> None:
        try:
            os.kill(child, number)
        except ProcessLookupError:
            pass

    for number in FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    # The pipes are the command's: whoever waits for their end must not wait for this process.
    silent = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        cause = os.WTERMSIG(status)
        if cause != signal.SIGKILL:
            signal.signal(cause, signal.SIG_DFL)
        os.kill(os.getpid(), cause)
    os._exit(os.waitstatus_to_exitcode(status) & 255)


def main() -> None:
    verb, *words = sys.argv[1:]
    if verb == "hold":
        root, uid, interpreter, private, name, overlay = words
        keep(root, int(uid), interpreter, private == "private", name, overlay)
    else:
        pid, uid, *rest = words
        end = rest.index("--")
        variables = dict(variable.split("=", 1) for variable in rest[:end])
        enter(int(pid), int(uid), variables, rest[end + 1 :])


if __name__ == "__main__":
    main()
