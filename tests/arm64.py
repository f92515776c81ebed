"""arm64 devices on any host: root folders, and machines that run what is in them through qemu.

A *root* is a folder with the files of a device. Both kinds are made once from Debian packages and
wheels, without root rights, debootstrap or maintainer scripts, and kept in `$ONMETAL_TEST_CACHE`
(else `~/.cache/onmetal-tests`). A *machine* runs one of them (see machine.py), changes only files
of its own, and takes every process with it when it ends.

What is shown there is function, never time: qemu's figures say nothing about a real device.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

SCRIPT = Path(__file__).with_name("machine.py")
KEPT_S = 7 * 86400
"""How long a root that nobody uses is kept."""
QEMU = "qemu-aarch64-static"
CPU = "cortex-a76"
"""Not qemu 7's default, `max`: with that, XNNPACK's int8 results are wrong."""

SHELL_USER = 2000
"""Who `adb shell` is on a phone: not root."""
PHONE_ENVIRONMENT = {
    "PATH": "/product/bin:/apex/com.android.runtime/bin:/apex/com.android.art/bin"
    ":/system_ext/bin:/system/bin:/system/xbin:/odm/bin:/vendor/bin:/vendor/xbin",
    "ANDROID_DATA": "/data",
    "ANDROID_ROOT": "/system",
    "EXTERNAL_STORAGE": "/sdcard",
    "HOME": "/",
    "HOSTNAME": "emu64a",
    "LOGNAME": "shell",
    "SHELL": "/bin/sh",
    "TERM": "dumb",
    "TMPDIR": "/data/local/tmp",
    "USER": "shell",
    "QEMU_CPU": CPU,
}
BOARD_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "LOGNAME": "root",
    "SHELL": "/bin/sh",
    "USER": "root",
    "QEMU_CPU": CPU,
}

PHONE_PACKAGES = "busybox-static mksh"
BOARD_PACKAGES = (
    "busybox-static libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5"
    " libuuid1 libcrypt1 libncursesw6 libtinfo6 libreadline8 libsqlite3-0 libdb5.3 libnsl2"
    " libtirpc3 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3.11"
)
BOARD_WHEELS = ("numpy", "ai-edge-litert", "onnxruntime")
"""In the host's own versions: what is compared across devices must be the same runtime."""

TOYBOX = (
    "[ awk base64 basename bc blockdev cal cat chgrp chmod chown chroot chrt cksum clear cmp comm"
    " cp cpio cut date dd devmem df diff dirname dmesg dos2unix du echo egrep env expand expr"
    " fallocate false fgrep file find flock fmt free getconf getopt grep groups gunzip gzip head"
    " hostname hwclock id ifconfig inotifyd insmod install ionice iotop kill killall ln log"
    " logname losetup ls lsattr lsmod lsof lspci lsusb md5sum microcom mkdir mkfifo mknod mkswap"
    " mktemp modinfo modprobe more mount mountpoint mv nc netcat netstat nice nl nohup nproc"
    " nsenter od paste patch pgrep pidof ping ping6 pivot_root pkill pmap printenv printf ps pwd"
    " readelf readlink realpath renice rev rm rmdir rmmod sed seq setsid sha1sum sha224sum"
    " sha256sum sha384sum sha512sum sleep sort split stat strings stty sync sysctl tac tail tar"
    " taskset tee test time timeout top touch tr traceroute true truncate tty umount uname uniq"
    " unix2dos unlink unshare uptime usleep uudecode uuencode uuidgen vi vmstat watch wc which"
    " whoami xargs xxd yes zcat"
)
"""What Android's shell user finds in /system/bin (Android 14's toybox): nothing else is there."""

PROPERTIES = {
    "ro.boot.hardware": "ranchu",
    "ro.boot.qemu": "1",
    "ro.bootmode": "unknown",
    "ro.build.characteristics": "emulator",
    "ro.build.fingerprint": "google/sdk_gphone64_arm64/emu64a:14/UE1A.230829.036.A1/11228894"
    ":userdebug/dev-keys",
    "ro.build.id": "UE1A.230829.036.A1",
    "ro.build.type": "userdebug",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.build.version.security_patch": "2023-09-05",
    "ro.debuggable": "1",
    "ro.hardware": "ranchu",
    "ro.kernel.qemu": "1",
    "ro.product.board": "goldfish_arm64",
    "ro.product.brand": "google",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.product.cpu.abilist": "arm64-v8a",
    "ro.product.cpu.abilist32": "",
    "ro.product.cpu.abilist64": "arm64-v8a",
    "ro.product.device": "emu64a",
    "ro.product.manufacturer": "Google",
    "ro.product.model": "sdk_gphone64_arm64",
    "ro.product.name": "sdk_gphone64_arm64",
    "ro.serialno": "EMULATOR34X1X19X0",
    "ro.soc.manufacturer": "AOSP",
    "ro.soc.model": "ranchu",
    "sys.boot_completed": "1",
}

BATTERY = """\
Current Battery Service state:
  AC powered: false
  USB powered: false
  Wireless powered: false
  Dock powered: false
  Max charging current: 0
  Max charging voltage: 0
  Charge counter: 10000
  status: 4
  health: 2
  present: true
  level: 100
  scale: 100
  voltage: 5000
  temperature: 250
  technology: Li-ion
"""

THERMAL = """\
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 2
\tkilled: false
\tbroadcasts count: -1
ThermalStatusListeners:
\tcallbacks: 1
\tkilled: false
\tbroadcasts count: -1
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=30.8, mType=3, mName=test temperature sensor, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 1  connected: yes
Current temperatures from HAL:
\tTemperature{mValue=30.8, mType=3, mName=test temperature sensor, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=100, mType=0, mName=test cooling device}
Temperature static thresholds from HAL:
"""

GETPROP = """\
#!/system/bin/sh
if [ $# = 0 ]; then
  while IFS= read -r line; do
    echo "[${line%%=*}]: [${line#*=}]"
  done < /system/etc/properties
  exit 0
fi
while IFS= read -r line; do
  case "$line" in
  "$1="*) echo "${line#*=}"; exit 0 ;;
  esac
done < /system/etc/properties
echo "$2"
"""

DUMPSYS = """\
#!/system/bin/sh
if [ -f "/system/etc/dumpsys/$1" ]; then
  exec cat "/system/etc/dumpsys/$1"
fi
echo "Can't find service: $1" >&2
"""

PROCESSOR = """\
processor\t: {}
BogoMIPS\t: 125.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
"""A Cortex-A76, and no feature that `CPU` lacks: a program that believed it would die of SIGILL."""


class Missing(RuntimeError):
    """This host cannot have what a test needs: says what it lacks and which package brings it.

    A test that raises it is skipped (see conftest.py).
    """


def needs(program: str, package: str) -> str:
    """Where a program of the host is.

    Raises: Missing, naming the Debian package.
    """
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(
            f"{program} is missing: it is in the Debian package `{package}` "
            f"(apt-get install {package})"
        )
    return found


def cache() -> Path:
    """The folder that is kept from one run of the tests to the next."""
    given = os.environ.get("ONMETAL_TEST_CACHE")
    folder = Path(given) if given else Path.home() / ".cache" / "onmetal-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


@contextlib.contextmanager
def making(kind: str, recipe: object) -> Iterator[tuple[Path, Path | None]]:
    """Where a cached root is or will be, and a folder to make it in, None where it is there.

    The folder becomes the root when the block ends without an error. Another process that wants
    the same waits.
    """
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    final = cache() / f"{kind}-{digest}"
    with (cache() / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.is_dir():
            final.touch()
            yield final, None
            return
        # Of other recipes, perhaps of another checkout that is at work: only what lies unused.
        for other in cache().glob(f"{kind}-*"):
            if time.time() - other.stat().st_mtime > KEPT_S:
                shutil.rmtree(other)
        work = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=cache()))
        try:
            root = work / "root"
            root.mkdir()
            yield final, root
            root.rename(final)
        finally:
            shutil.rmtree(work)


def ran(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command of the host printed.

    Raises: Missing, with the end of what it said, if it failed.
    """
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
        raise Missing(f"{command[0]} failed while an arm64 root was made:\n{said}")
    return done.stdout


def unpack_debian(packages: str, root: Path) -> None:
    """Packages of Debian's arm64 into a folder, by an apt state of their own."""
    apt_get, dpkg_deb = needs("apt-get", "apt"), needs("dpkg-deb", "dpkg")
    state = root.with_name("apt")
    for name in ("debs", "lists/partial", "archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::Cache": state,
        "Dir::State::Lists": state / "lists",
        "Dir::State::status": state / "status",
    }
    words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    ran(apt_get, "-qq", *words, "update")
    ran(apt_get, "-qq", *words, "download", *packages.split(), cwd=state / "debs")
    for package in sorted((state / "debs").iterdir()):
        ran(dpkg_deb, "-x", package, root)


def applets(busybox: Path) -> list[str]:
    """What a busybox can be called."""
    return ran(needs(QEMU, "qemu-user-static"), busybox, "--list").split()


def put(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def put_processors(root: Path) -> None:
    """Two cores, as /proc and /sys show them.

    Without `possible` and `present` XNNPACK drops out silently.
    """
    put(root / "proc/cpuinfo", "".join(PROCESSOR.format(core) for core in range(2)))
    folder = root / "sys/devices/system/cpu"
    for name in ("possible", "present", "online"):
        put(folder / name, "0-1\n")
    for core in range(2):
        frequencies = folder / f"cpu{core}" / "cpufreq"
        put(frequencies / "cpuinfo_min_freq", "300000\n")
        put(frequencies / "cpuinfo_max_freq", "2000000\n")
        put(frequencies / "scaling_min_freq", "300000\n")
        put(frequencies / "scaling_max_freq", "2000000\n")
        put(frequencies / "scaling_cur_freq", "2000000\n")
        put(frequencies / "scaling_governor", "performance\n")


def phone_root() -> Path:
    """The cached root of a phone with nothing: Android's shell, its small tools, no Python.

    Never change it: tests have copies. It has no C library either: a program brings its own.
    """
    recipe = [1, PHONE_PACKAGES, Path(__file__).read_text()]
    with making("phone", recipe) as (final, root):
        if root is None:
            return final
        packages = root.with_name("packages")
        packages.mkdir()
        unpack_debian(PHONE_PACKAGES, packages)
        for name in ("bin", "etc/dumpsys", "lib"):
            (root / "system" / name).mkdir(parents=True)
        (root / "bin").symlink_to("system/bin")
        # Not on the PATH: what a phone lacks must be missing here.
        shutil.copy(packages / "bin/busybox", root / "system/lib/busybox")
        for applet in set(TOYBOX.split()).intersection(applets(root / "system/lib/busybox")):
            (root / "system/bin" / applet).symlink_to("../lib/busybox")
        # The very shell that Android has, linked statically.
        shutil.copy(
            packages / "usr/lib/aarch64-linux-musl/bin/mksh",
            root / "system/bin/sh",
        )
        put(root / "system/bin/getprop", GETPROP, 0o755)
        put(root / "system/bin/dumpsys", DUMPSYS, 0o755)
        put(
            root / "system/etc/properties",
            "".join(f"{key}={value}\n" for key, value in PROPERTIES.items()),
        )
        put(root / "system/etc/dumpsys/battery", BATTERY)
        put(root / "system/etc/dumpsys/thermalservice", THERMAL)
        put(root / "system/etc/passwd", "root::0:0:::\nshell::2000:2000:::\n")
        (root / "etc").symlink_to("system/etc")
        put_processors(root)
        for name in ("data/local/tmp", "dev"):
            (root / name).mkdir(parents=True)
    return final


def board_root() -> Path:
    """The cached root of a Debian board: busybox's tools, Python 3.11, NumPy and both runtimes.

    Never change it: machines lay a folder of their own over it.
    """
    pins = [f"{name}=={metadata.version(name)}" for name in BOARD_WHEELS]
    recipe = [1, BOARD_PACKAGES, pins, Path(__file__).read_text()]
    with making("board", recipe) as (final, root):
        if root is None:
            return final
        unpack_debian(BOARD_PACKAGES, root)
        for applet in applets(root / "bin/busybox"):
            if not any((root / place / applet).exists() for place in ("bin", "usr/bin")):
                (root / "bin" / applet).symlink_to("busybox")
        (root / "usr/bin/python3").symlink_to("python3.11")
        unpack_wheels(pins, root)
        put(root / "etc/hostname", "board\n")
        put(root / "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        put(root / "etc/group", "root:x:0:\n")
        put(root / "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
        put(root / "sys/class/thermal/thermal_zone0/temp", "45000\n")
        put(root / "sys/firmware/devicetree/base/model", "linux,dummy-virt\0")
        put_processors(root)
        for name in ("dev", "root", "tmp", "var/tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name in ("tmp", "var/tmp"):
            (root / name).chmod(0o1777)
        # Shows that it works, and leaves the bytecode that would else be made for each machine.
        with Machine(root, environment=BOARD_ENVIRONMENT) as board:
            board.output("python3 -c 'import ai_edge_litert.interpreter, onnxruntime, json, re'")
            board.output("rm -rf /root/.cache /root/.local /tmp/* /tmp/.[!.]*")
    return final


def unpack_wheels(pins: list[str], root: Path) -> None:
    """Wheels for the board's Python, and what they need, into its /opt/site."""
    wheels = root.with_name("wheels")
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
    words = [
        word for name in (*platforms, "manylinux2014_aarch64") for word in ("--platform", name)
    ]
    ran(
        *(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download"),
        *("--only-binary=:all:", *words, "--python-version", "311", "--implementation", "cp"),
        *("--abi", "cp311", "--abi", "abi3", "--abi", "none", "-d", str(wheels), *pins),
    )
    site = root / "opt/site"
    for wheel in sorted(wheels.iterdir()):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    put(root / "usr/lib/python3/dist-packages/onmetal-tests.pth", "/opt/site\n")


class Machine:
    """A running device with the files of a root folder; ends, with all its processes, at `close`.

    Attributes: `pid` of its first process as the host sees it; `root`, its files as the host sees
    them; `enter`, what to put before `["/bin/sh", "-c", COMMAND]` to run a command there.
    """

    def __init__(
        self,
        base: Path,
        *,
        environment: Mapping[str, str],
        uid: int = 0,
        private: Path | None = None,
        name: str = "device",
    ) -> None:
        """`private`: an empty folder that takes all changes, so that `base` stays as it is. `uid`:
        who commands run as; where the host's user is not root, one user is all there can be, 0.

        Raises: Missing where this host cannot run arm64 programs.
        """
        qemu = needs(QEMU, "qemu-user-static")
        uid = 0 if os.geteuid() else uid
        self._process: subprocess.Popen[str] | None = None
        top, overlay = base.resolve(), ""
        if private is not None:
            private = private.resolve()
            top, upper, work = (private / part for part in ("root", "upper", "work"))
            for folder in (top, upper, work):
                folder.mkdir()
            upper.chmod(0o755)
            overlay = f"lowerdir={base.resolve()},upperdir={upper},workdir={work},userxattr"
        said = self._hold(top, uid, qemu, "private", name, overlay)
        if not said.startswith("ready") and overlay and "overlay" in said:
            # Where folders for temporary files lie on an overlay themselves, as in containers.
            shutil.copytree(base, top, symlinks=True, dirs_exist_ok=True)
            overlay = ""
            said = self._hold(top, uid, qemu, "private", name, overlay)
        if not said.startswith("ready"):
            # A kernel before 6.7, or one that allows no user namespaces: register for the host.
            first = said
            register_for_host(qemu, first)
            how = "private" if os.geteuid() else "shared"
            said = self._hold(top, uid, "", how, name, overlay)
        if not said.startswith("ready"):
            raise Missing(f"no arm64 machine can be made here: {first.strip()}; {said.strip()}")
        self.pid = int(said.split()[1])
        # In an overlay only the machine itself, and who looks through its eyes, sees the files.
        self.root = Path(f"/proc/{self.pid}/root") if overlay else top
        self.enter = [
            *(sys.executable, "-I", "-S", str(SCRIPT), "enter", str(self.pid), str(uid)),
            *(f"{key}={value}" for key, value in environment.items()),
            "--",
        ]
        self._space = Path(f"/proc/{self.pid}/ns/pid").readlink()

    def _hold(
        self, top: Path, uid: int, interpreter: str, how: str, name: str, overlay: str
    ) -> str:
        """Start process 1 and say what it said."""
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", SCRIPT, "hold"),
                *(top, str(uid), interpreter, how, name, overlay),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        said = process.stdout.readline()
        process.stdout.close()
        self._process = process
        if not said.startswith("ready"):
            self.close()
        return said

    def run(self, command: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run a command line there, straight from the host."""
        return subprocess.run(
            [*self.enter, "/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def output(self, command: str) -> str:
        """What a command line printed there.

        Raises: Missing if it failed.
        """
        done = self.run(command)
        if done.returncode:
            raise Missing(f"`{command}` failed on an arm64 machine:\n{done.stdout}{done.stderr}")
        return done.stdout

    def processes(self) -> dict[int, str]:
        """The command line of each process there but the first, by the host's process id."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == self.pid:
                continue
            # One that has just ended is none.
            with contextlib.suppress(OSError):
                if (folder / "ns/pid").readlink() == self._space:
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    found[int(folder.name)] = b" ".join(words).decode(errors="replace").strip()
        return {pid: line for pid, line in found.items() if line}

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def register_for_host(qemu: str, reason: str) -> None:
    """Have the whole host run arm64 programs through qemu, unless it does already.

    Raises: Missing where it does not and only root may change it.
    """
    instance = Path("/proc/sys/fs/binfmt_misc")
    for entry in instance.iterdir() if instance.is_dir() else ():
        if entry.name not in ("register", "status"):
            text = entry.read_text()
            if "aarch64" in text and text.startswith("enabled") and "F" in flags_of(text):
                return
    if os.geteuid() != 0:
        raise Missing(
            f"arm64 programs cannot run here ({reason.strip()}): "
            "have them registered for the host (apt-get install qemu-user-static binfmt-support)"
        )
    code = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); import machine\n"
        "folder = '/proc/sys/fs/binfmt_misc'\n"
        "if not os.path.exists(folder + '/register'):\n"
        "    machine.mount('binfmt_misc', folder, 'binfmt_misc')\n"
        "machine.register(folder, sys.argv[2])\n"
    )
    ran(sys.executable, "-I", "-S", "-c", code, SCRIPT.parent, qemu)


def flags_of(entry: str) -> str:
    """The flags of a binfmt_misc entry."""
    lines = [line for line in entry.splitlines() if line.startswith("flags:")]
    return lines[0].removeprefix("flags:") if lines else ""
