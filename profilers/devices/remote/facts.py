"""What a device says of itself, read from the output of one shell script. Text in, records out.

The transport runs `SCRIPT` in the device's own shell, for example `sh -s -- FOLDER` with the
script on its standard input, and hands what it printed to `parse`. `STATE_SCRIPT` and `parse_state`
are the part of it that may change while a run lasts. Nothing is written on the device, and whatever
it does not say is None or absent, never guessed. No text makes these functions raise.

Where the formats come from:

/proc/cpuinfo, /sys/devices/system/cpu   https://docs.kernel.org/admin-guide/cputopology.html,
                                         .../admin-guide/pm/cpufreq.html (frequencies in kHz)
CPU implementer and part                 Arm's MIDR_EL1; names as in util-linux, lscpu-arm.c
getprop, ABI names                       https://developer.android.com/ndk/guides/abis
dumpsys battery                          AOSP, BatteryService.java (0.1 degrees Celsius)
dumpsys thermalservice                   AOSP, ThermalManagerService.java and PowerManager.java
vcgencmd get_throttled                   https://www.raspberrypi.com/documentation/computers/os.html
thermal zones (millidegrees Celsius)     https://docs.kernel.org/driver-api/thermal/sysfs-api.html
/etc/nv_tegra_release                    NVIDIA Jetson Linux Developer Guide
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct

from onmetal.runtimes import RUNTIMES, spec

# --- The scripts ----------------------------------------------------------------------------------

# One function, read whole before it runs: the script may come on standard input. mksh has an alias
# `r`, and here-documents need a folder to write in, so neither is used. `grep . FILES /dev/null`
# prints `path:line` of all that can be read, in one process. Old busybox has another `timeout`.
_HEAD = """\
onmetal_facts() {
s() { echo; echo "@@$1"; }
has() { command -v "$1" >/dev/null; }
T=; timeout 10 true && T="timeout 10"
D=${1:-.}; while [ ! -d "$D" ] && [ "${D%/*}" != "$D" ]; do D=${D%/*}; D=${D:-/}; done
C=/sys/devices/system/cpu
P=/sys/class/power_supply
"""

_FACTS = """\
s uname; uname -s; uname -r; uname -v; uname -m
s kernel_arch; cat /proc/sys/kernel/arch
s exe; od -An -tx1 -N20 /proc/self/exe
s cpuinfo; cat /proc/cpuinfo
s allowed; grep Cpus_allowed_list /proc/self/status
s topology; grep . $C/cpu[0-9]*/topology/thread_siblings_list /dev/null
s boot_id; cat /proc/sys/kernel/random/boot_id
s getprop; has getprop && $T getprop
s os_release; cat /etc/os-release || cat /usr/lib/os-release
s dt_model; cat /proc/device-tree/model
s dt_compatible; cat /proc/device-tree/compatible
s dmi; grep . /sys/class/dmi/id/sys_vendor /sys/class/dmi/id/product_name /dev/null
s tegra; head -n 1 /etc/nv_tegra_release
s python; has "${2:-python3}" && $T "${2:-python3}" -c '
import sys
print("python", sys.version.split()[0])
from importlib.metadata import version
for name in "PACKAGES".split():
    try: print(name, version(name))
    except Exception: pass
'
s meters
first() { for f; do grep -q . "$f" && return; done; return 1; }
first /sys/class/powercap/intel-rapl:*/energy_uj && echo rapl
I=/sys/bus/i2c/drivers/ina3221
if first $I/*/hwmon/hwmon*/in1_input ${I}x/*/iio:device*/in_power0_input; then echo ina3221; fi
first /sys/bus/iio/devices/iio:device*/energy_value && echo odpm
first $P/[Bb][Aa][Tt]*/current_now && echo battery
has vcgencmd && $T vcgencmd pmic_read_adc | grep -q current && echo pmic
"""

_STATE = """\
s clocks
F="cpu[0-9]*/cpufreq"
(cd $C && grep . online cpu[0-9]*/online cpu[0-9]*/cpu_capacity \\
$F/cpuinfo_max_freq $F/scaling_max_freq $F/scaling_cur_freq $F/scaling_governor $F/scaling_driver \\
/dev/null)
s meminfo; grep Mem /proc/meminfo
s loadavg; cat /proc/loadavg
s df; $T df -k "$D"
s battery; has dumpsys && $T dumpsys battery
s supply; grep . $P/*/type $P/*/status $P/*/capacity $P/*/online $P/*/temp /dev/null
s thermalservice; has dumpsys && $T dumpsys thermalservice
Z=/sys/class/thermal
s zones; $T grep . $Z/thermal_zone*/type $Z/thermal_zone*/temp /dev/null
s vcgencmd; if has vcgencmd; then $T vcgencmd get_throttled; $T vcgencmd measure_temp; fi
s low_power; has settings && $T settings get global low_power
"""

_TAIL = """\
s end
}
onmetal_facts "$@" 2>/dev/null </dev/null
"""

METERS = ("rapl", "ina3221", "odpm", "battery", "pmic")
"""What the script prints of the power meters that can be read."""

_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!_-]{0,60}")

_PACKAGES = ("numpy", *(package for runtime in RUNTIMES for package in spec(runtime).packages))

SCRIPT: str = _HEAD + _FACTS.replace("PACKAGES", " ".join(_PACKAGES)) + _STATE + _TAIL
"""Everything, for POSIX shells: mksh with toybox (Android 7 and later), busybox ash, dash, bash.

$1 is the folder whose free space counts (else the current one), $2 the Python to ask for its
packages (else python3). It prints sections that begin with a line `@@name`."""

STATE_SCRIPT: str = _HEAD + _STATE + _TAIL
"""Only what may change while a run lasts: clocks, load, memory, free space, battery, heat."""

Sections = Mapping[str, list[str]]

# --- What is told from it, and where the lines are ------------------------------------------------

MIN_AVAILABLE_BYTES = 100_000_000
"""Below it the smallest runtime (about 30 MB), a model and its arena compete with the system, which
then swaps or, on Android, kills the process."""

HOT_BATTERY_C = 45.0
"""Lithium cells are not to be charged above about 45 degrees Celsius, and phones throttle to get
below it (Android's compatibility tests of heat start well under it)."""

SEVERE_THERMAL_STATUS = 3
"""THERMAL_STATUS_SEVERE: by Android's definition the user's experience is largely impacted."""

LOW_BATTERY_PERCENT = 20
"""At 20 % or above that Android offers its battery saver, and makers begin to lower the clocks."""

BUSY_SHARE = 0.5
"""Of the cores: with more than half of them taken, threads of a model wait for others' work."""

CLOCK_CAP = 0.95
"""Of the hardware's highest clock: less is more than the steps and rounding of drivers explain."""

SAME_CLOCK = 0.92
"""x86 CPUs let single cores of a kind run a few percent faster (favoured cores, 2 to 6 %); kinds
of cores differ by more. Only where the kernel states no capacities."""

MAX_CPUS = 4096
"""More than any kernel is built for: larger numbers are garbage."""

TEXT_LENGTH, LINES, LINE_LENGTH = 8_000_000, 300_000, 32_768
"""Most characters that are read, lines, and characters of a line: a server with 256 CPUs says
400,000 in 10,000 lines, and its lines of flags have 2500."""

NAME_LENGTH, FLAGS = 200, 2000
"""Most characters of a name, and most flags of a CPU."""

MAX_MEMORY_BYTES = 1 << 53
MAX_KHZ = 100_000_000
"""Of a clock: larger numbers are garbage."""

THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""PowerManager.THERMAL_STATUS_*, from 0."""

THROTTLED = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""vcgencmd get_throttled: the bits of now; the same 16 higher say "has occurred since boot"."""

_ABIS = {
    "arm64-v8a": "aarch64",
    "armeabi-v7a": "armv7l",
    "armeabi": "armv5l",
    "x86_64": "x86_64",
    "x86": "i686",
    "riscv64": "riscv64",
}
"""Android's names of ABIs -> as uname has them."""

_MACHINES = {0xB7: "aarch64", 0x28: "armv7l", 0x3E: "x86_64", 0x03: "i686", 0xF3: "riscv64"}
"""e_machine of the ELF header -> as uname has them."""

_MANAGED = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
"""Drivers whose "powersave" is the ordinary governor that follows the load: the CPU itself picks
the clock (https://docs.kernel.org/admin-guide/pm/intel_pstate.html)."""

_GUESTS = re.compile(
    "qemu|kvm|vmware|virtualbox|innotek|xen|bochs|parallels|openstack|firecracker|virtualization"
    "|virtual machine|virtual platform|google compute engine|hvm domu|cloud hypervisor",
    re.IGNORECASE,
)
"""In DMI's vendor or product: what hypervisors call the machines that they make."""

_NO_NAME = re.compile(
    "to be filled|o\\.e\\.m|default string|system (product|manufacturer)|^none$", re.I
)
"""What makers of PC boards leave in DMI where a name should be."""

_CORES_TEXT = """\
41 ARM: b76 ARM1176, c05 Cortex-A5, c07 Cortex-A7, c08 Cortex-A8, c09 Cortex-A9, c0d Cortex-A17,
    c0e Cortex-A17, c0f Cortex-A15, d01 Cortex-A32, d02 Cortex-A34, d03 Cortex-A53,
    d04 Cortex-A35, d05 Cortex-A55, d06 Cortex-A65, d07 Cortex-A57, d08 Cortex-A72,
    d09 Cortex-A73, d0a Cortex-A75, d0b Cortex-A76, d0c Neoverse-N1, d0d Cortex-A77,
    d0e Cortex-A76AE, d40 Neoverse-V1, d41 Cortex-A78, d42 Cortex-A78AE, d43 Cortex-A65AE,
    d44 Cortex-X1, d46 Cortex-A510, d47 Cortex-A710, d48 Cortex-X2, d49 Neoverse-N2,
    d4a Neoverse-E1, d4b Cortex-A78C, d4c Cortex-X1C, d4d Cortex-A715, d4e Cortex-X3,
    d4f Neoverse-V2, d80 Cortex-A520, d81 Cortex-A720, d82 Cortex-X4, d83 Neoverse-V3AE,
    d84 Neoverse-V3, d85 Cortex-X925, d87 Cortex-A725, d88 Cortex-A520AE, d89 Cortex-A720AE,
    d8a C1-Nano, d8b C1-Pro, d8c C1-Ultra, d8e Neoverse-N3, d8f Cortex-A320, d90 C1-Premium
42 Broadcom: 00f Brahma-B15, 100 Brahma-B53, 516 ThunderX2
43 Cavium: 0a0 ThunderX, 0af ThunderX2, 0b8 ThunderX3
46 Fujitsu: 001 A64FX
48 HiSilicon: d01 Kunpeng-920, d40 Cortex-A76
4e NVIDIA: 000 Denver, 003 Denver 2, 004 Carmel, 010 Olympus
50 APM: 000 X-Gene
51 Qualcomm: 001 Oryon, 002 Oryon Gen 3, 04d Krait, 06f Krait, 201 Kryo Silver, 205 Kryo Gold,
    211 Kryo Silver, 800 Kryo 2xx Gold, 801 Kryo 2xx Silver, 802 Kryo 3xx Gold, 803 Kryo 3xx Silver,
    804 Kryo 4xx Gold, 805 Kryo 4xx Silver, c00 Falkor, c01 Saphira
53 Samsung: 001 Exynos-M1, 002 Exynos-M3, 003 Exynos-M4, 004 Exynos-M5
61 Apple: 020 Apple Icestorm (A14), 021 Apple Firestorm (A14), 022 Apple Icestorm (M1),
    023 Apple Firestorm (M1), 024 Apple Icestorm (M1 Pro), 025 Apple Firestorm (M1 Pro),
    028 Apple Icestorm (M1 Max), 029 Apple Firestorm (M1 Max), 032 Apple Blizzard (M2),
    033 Apple Avalanche (M2)
70 Phytium: 660 FTC660, 661 FTC661, 662 FTC662, 663 FTC663
c0 Ampere: ac3 Ampere-1, ac4 Ampere-1a
"""


def _read_cores(text: str) -> dict[int, tuple[str, dict[int, str]]]:
    makers = (line.split(":") for line in text.replace("\n    ", " ").splitlines())
    return {
        int(maker[:2], 16): (
            maker[3:],
            {int(part[:3], 16): part[4:] for part in parts.strip().split(", ")},
        )
        for maker, parts in makers
    }


_CORES = _read_cores(_CORES_TEXT)
"""CPU implementer -> (vendor, CPU part -> name)."""

_QEMU_MAX = (0x00, 0x051)
"""qemu's own CPU, `-cpu max`: no implementer, and the letter Q (target/arm/tcg/cpu64.c). Under KVM
the guest sees the host's instead."""

_QEMU_BOGOMIPS = "125.00"
"""qemu's emulated Arm counter runs at 62.5 MHz, of which Linux makes this, for CPUs that qemu had
before 9.1 and for older versions of its machines. Under KVM the guest sees the host's counter, and
no maker is known to take that rate. Since 9.1 qemu's other CPUs run it at 1 GHz, as Armv8.6 asks of
every core: 2000.00 is what real phones and servers say too, and proves nothing
(https://gitlab.com/qemu-project/qemu/-/blob/master/target/arm/internals.h, GTIMER_DEFAULT_HZ)."""


class Cluster(Struct, frozen=True):
    """CPUs of one kind."""

    cpus: tuple[int, ...]
    max_khz: int | None
    """The hardware's highest clock."""
    capacity: int | None
    """The kernel's measure of a CPU's speed; 1024 is the fastest of the machine."""


class Facts(Struct, frozen=True):
    """What a device says of itself; None and absent is what it does not say."""

    model: str | None
    """What it is sold as: "Pixel 8 Pro", "Raspberry Pi 5 Model B Rev 1.0"."""
    soc: str | None
    """The chip: "Google Tensor G3", "brcm,bcm2712"."""
    cpu: str
    """Its cores: "4x Cortex-A55 + 2x Cortex-A76", "AMD EPYC 7763"; else "unknown"."""
    arch: str | None
    """That programs are built for, as uname has it: "aarch64", "armv7l", "x86_64", "i686". A 64-bit
    kernel under 32-bit programs is not a 64-bit device."""
    abis: tuple[str, ...]
    """Android's, best first; empty elsewhere."""
    os: str | None
    """"Android 14 (API 34)", "Debian GNU/Linux 12, Linux 6.6.31"."""
    build: str | None
    """Android's build fingerprint, or the release of Jetson Linux ("L4T 36.3.0")."""
    kernel: str | None
    """Its release."""
    cores: int | None
    """Physical cores that are online, or as many as a program may run on where those are fewer."""
    online: int | None
    """Logical CPUs that are online."""
    allowed: tuple[int, ...]
    """CPUs that a program started like the script may run on; empty where not known."""
    memory_bytes: int | None
    available_bytes: int | None
    """Of memory, what new programs can have without swapping."""
    free_bytes: int | None
    """Of storage, what this user can still write to the folder asked for."""
    flags: tuple[str, ...]
    """Instruction sets that every CPU has, by the kernel's names, sorted."""
    clusters: tuple[Cluster, ...]
    """The CPUs online, fastest kind first."""
    emulated: bool
    """Its instructions are translated in software: it shows function, never time."""
    emulated_why: str | None
    virtual: bool
    """A guest of a hypervisor, or an emulator."""
    runtimes: dict[str, str]
    """Runtime -> installed version, for the Python asked."""
    packages: dict[str, str]
    """Runtime -> the package on PyPI that it came from."""
    numpy: str | None
    python: str | None
    meters: tuple[str, ...]
    """Readable power meters: rapl, ina3221, odpm, battery, pmic."""
    boot_id: str | None
    """Another one after every boot."""
    state: dict[str, Any]
    """What may change while a run lasts: see `parse_state`."""


def parse(text: str) -> Facts:
    """The facts in the output of `SCRIPT`."""
    said = _sections(text)
    properties = _properties(said["getprop"])
    processors = _processors(said["cpuinfo"])
    device_tree = _strings(said["dt_compatible"])
    dmi = [value for _, value in _pairs(said["dmi"], ":")]
    uname = (said["uname"] + [""] * 4)[:4]
    abis = _abis(properties)
    arch = _ABIS.get(abis[0]) if abis else _userland(uname[3], said["exe"])
    why = _emulated(properties, processors, said["kernel_arch"], arch or uname[3])
    python, versions = _python(said["python"])
    runtimes, packages = _runtimes(versions)
    online = _online(said, processors)
    allowed = _allowed(said["allowed"])
    state = _state(said)
    return Facts(
        model=_named(_model(properties, _strings(said["dt_model"]), dmi)),
        soc=_named(_soc(properties, device_tree, processors)),
        cpu=_named(_cpu(processors)) or "unknown",
        arch=_named(arch),
        abis=abis,
        os=_named(_os(properties, said["os_release"], uname)),
        build=_named(properties.get("ro.build.fingerprint") or _tegra(said["tegra"])),
        kernel=_named(uname[1]),
        cores=_cores(said, processors, online, allowed),
        online=len(online) or None,
        allowed=allowed,
        memory_bytes=_kib(said["meminfo"], "MemTotal"),
        available_bytes=state.get("available_bytes"),
        free_bytes=state.get("free_bytes"),
        flags=_flags(processors),
        clusters=_clusters(_clocks(said["clocks"]), online),
        emulated=why is not None,
        emulated_why=_named(why),
        virtual=why is not None or _virtual(properties, processors, device_tree, dmi, uname[1]),
        runtimes=runtimes,
        packages=packages,
        numpy=versions.get("numpy"),
        python=python,
        meters=tuple(name for name in METERS if name in said["meters"]),
        boot_id=_named(next(iter(said["boot_id"]), None)),
        state=state,
    )


def parse_state(text: str) -> dict[str, Any]:
    """What of the output of either script may change while a run lasts; absent is not known.

    governor               of the clock, several joined by ", "
    governor_driver        whose it is: "intel_pstate" means something else by "powersave"
    clock_khz              a list, one a cluster (fastest first): the highest clock just now
    clock_limit_khz        likewise: the highest clock that is allowed now
    clock_hardware_khz     likewise: the highest clock that the hardware has
    clock_limit_share      the smallest of limit / hardware, 1.0 where nothing is capped
    load_1min              processes that run or want to
    temperature_c          the hottest sensor of the CPU, else of all, in degrees Celsius
    thermal_status         Android's, system's or skin's: 0 none, 1 light, 2 moderate, 3 severe to 6
    battery_percent        of its capacity
    battery_temperature_c  in degrees Celsius
    charging               whether the battery is being charged
    charging_by            what powers the device from outside: "AC", "USB", "AC + wireless"
    low_power              whether Android's battery saver is on
    throttled              a Raspberry Pi's {"now": [...], "since_boot": [...]}, see THROTTLED
    free_bytes             of storage, in the folder asked for
    available_bytes        of memory
    """
    return _state(_sections(text))


# --- Whether it is fit to be measured on ----------------------------------------------------------


def unfit(facts: Facts, needed_bytes: int) -> tuple[list[str], list[str]]:
    """(why it cannot be measured on now, what to bear in mind), each saying what can be done.

    `needed_bytes` is what will be written to the folder asked for.
    """
    return list(_refusals(facts.state, needed_bytes)), list(_cautions(facts))


def _refusals(state: Mapping[str, Any], needed_bytes: int) -> Iterator[str]:
    free = state.get("free_bytes")
    if free is not None and free < needed_bytes:
        yield (
            f"{_size(free)} of storage are free where {_size(needed_bytes)} are needed: "
            "delete something on the device or choose another folder"
        )
    available = state.get("available_bytes")
    if available is not None and available < MIN_AVAILABLE_BYTES:
        yield (
            f"{_size(available)} of memory are available, less than {_size(MIN_AVAILABLE_BYTES)}: "
            "close applications or restart the device"
        )
    status = state.get("thermal_status", 0)
    if status >= SEVERE_THERMAL_STATUS:
        yield f"it is too hot (thermal status {status}, {THERMAL_STATUS[status]}): let it cool down"
    heat = state.get("battery_temperature_c", 0.0)
    if heat >= HOT_BATTERY_C:
        yield f"its battery has {heat:.1f} degrees Celsius: unplug it and let it cool down"
    if now := state.get("throttled", {}).get("now"):
        yield (
            f"it is slowed down now ({', '.join(now)}): give it a power supply of the maker's "
            "rating and a heat sink or fan, then try again"
        )


def _cautions(facts: Facts) -> Iterator[str]:
    if facts.emulated:
        yield f"emulated ({facts.emulated_why}): timings mean nothing here, only results do"
    elif facts.virtual:
        yield (
            "a virtual machine: its neighbours take part in every timing, and whether an emulator "
            "stands behind it cannot always be told; measure on hardware"
        )
    yield from _power(facts.state)
    yield from _speed(facts)


def _power(state: Mapping[str, Any]) -> Iterator[str]:
    by = state.get("charging_by")
    if state.get("charging"):
        source = f" by {by}" if by else ""
        yield f"charging{source}: it warms up and no energy can be measured; unplug it for that"
    elif by:
        yield f"powered by {by}: no energy can be measured from its battery; unplug it for that"
    percent = state.get("battery_percent")
    if percent is not None and percent < LOW_BATTERY_PERCENT:
        yield f"its battery is at {percent} %: clocks may be lowered; charge it first"
    if state.get("low_power"):
        yield "its battery saver is on, which lowers the clocks: turn it off"


def _speed(facts: Facts) -> Iterator[str]:
    state = facts.state
    status = state.get("thermal_status", 0)
    if 0 < status < SEVERE_THERMAL_STATUS:
        name = THERMAL_STATUS[status]
        yield f"warm (thermal status {status}, {name}): it may be slowed down; let it cool down"
    load = state.get("load_1min")
    if load is not None and facts.cores and load > BUSY_SHARE * facts.cores:
        yield f"busy (load {load:g} on {facts.cores} cores): stop other programs"
    share = state.get("clock_limit_share")
    if share is not None and share < CLOCK_CAP:
        yield (
            f"its clock is capped at {share:.0%} of the hardware's: let it cool down, or lift the "
            "limit (power mode, battery saver, scaling_max_freq)"
        )
    governors = state.get("governor", "").split(", ")
    if "powersave" in governors and state.get("governor_driver") not in _MANAGED:
        yield "its governor is powersave, the lowest clock: set schedutil or performance"


def pin(facts: Facts, threads: int) -> tuple[int, ...]:
    """The CPUs to run `threads` threads on: the fastest cluster, joined by the next fastest until
    there are as many. Empty where there is nothing to choose: one kind of CPU, or all are needed.
    """
    allowed = set(facts.allowed)
    kinds = [
        [cpu for cpu in cluster.cpus if not allowed or cpu in allowed] for cluster in facts.clusters
    ]
    kinds = [kind for kind in kinds if kind]
    chosen: list[int] = []
    for kind in kinds:
        if chosen and len(chosen) >= threads:
            return tuple(sorted(chosen))
        chosen += kind
    return ()


def mask(cpus: Iterable[int]) -> str:
    """CPUs as the hexadecimal mask that every `taskset` takes (util-linux, busybox, toybox: without
    0x). Raises ValueError where there are none, or one is negative."""
    bits = 0
    for cpu in cpus:
        bits |= 1 << cpu
    if not bits:
        raise ValueError("a mask of no CPUs: nothing could run there")
    return f"{bits:x}"


def _size(size_bytes: int) -> str:
    if size_bytes >= 1_000_000_000:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.1f} MB"


# --- Lines ----------------------------------------------------------------------------------------

_NAMES = re.findall(r"(?m)^s ([a-z_]+)", SCRIPT)


def _sections(text: str) -> dict[str, list[str]]:
    """Section -> its lines, stripped and without empty ones; all names are there. A carriage return
    is what old versions of adb make of a line's end."""
    found: dict[str, list[str]] = {name: [] for name in _NAMES}
    lines: list[str] = []
    for line in text[:TEXT_LENGTH].replace("\r", "").split("\n", LINES)[:LINES]:
        if line.startswith("@@") and line[2:] in found:
            lines = found[line[2:]]
        elif stripped := line[:LINE_LENGTH].strip():
            lines.append(stripped)
    return found


def _pairs(lines: Iterable[str], separator: str) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, found, value = line.partition(separator)
        if found:
            yield name.strip(), value.strip()


def _first(lines: Iterable[str], separator: str) -> dict[str, str]:
    """Name -> its first value: makers append lines of their own to Android's."""
    found: dict[str, str] = {}
    for name, value in _pairs(lines, separator):
        found.setdefault(name, value)
    return found


def _strings(lines: Iterable[str]) -> list[str]:
    """A device tree's strings, which end with NUL."""
    return [part.strip() for line in lines for part in line.split("\0") if part.strip()]


def _integer(text: str | None) -> int | None:
    """A decimal number of the size that counters have."""
    if text is not None and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    return None


def _number(text: str | None) -> float | None:
    if text is not None and re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", text):
        return float(text)
    return None


def _hexadecimal(text: str | None) -> int | None:
    if text is not None and re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text, 16)
    return None


def _within(number: int | None, most: int) -> int | None:
    """None where it is negative or larger: no such thing is counted so."""
    return number if number is not None and 0 <= number <= most else None


def _named(text: str | None) -> str | None:
    """A name that the device gives: on one line, of a bounded length, None where it is empty."""
    return " ".join(text[:LINE_LENGTH].split())[:NAME_LENGTH].strip() or None if text else None


def _range(text: str) -> tuple[int, ...]:
    """The kernel's lists of CPUs, "0-3,6"."""
    parts = (
        re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip()) for part in text.split(",")
    )
    found: list[int] = []
    # In their order, so that what was counted is not counted again.
    for first, last in sorted((int(m[1]), int(m[2] or m[1])) for m in parts if m):
        begin = max(first, found[-1] + 1) if found else first
        found += range(begin, min(last, MAX_CPUS - 1) + 1)
    return tuple(found)


# --- Who it is ------------------------------------------------------------------------------------


def _properties(lines: Iterable[str]) -> dict[str, str]:
    """Android's properties, `[name]: [value]` each; values of several lines lose all but one."""
    found = (re.fullmatch(r"\[([^\]]+)\]: \[(.*?)\]?", line) for line in lines)
    return {match[1]: match[2].strip() for match in found if match}


def _abis(properties: Mapping[str, str]) -> tuple[str, ...]:
    for name in ("ro.product.cpu.abilist", "ro.vendor.product.cpu.abilist", "ro.product.cpu.abi"):
        abis = [abi.strip()[:NAME_LENGTH] for abi in properties.get(name, "").split(",")]
        if abis := [abi for abi in abis if abi]:
            return tuple(abis[:16])
    return ()


def _userland(machine: str, header: Iterable[str]) -> str | None:
    """What programs are built for: by the ELF header of one that runs, else by uname. `header` is
    its first 20 bytes in hexadecimal; uname's machine is the kernel's."""
    octets = " ".join(header).split()
    if octets[:4] == ["7f", "45", "4c", "46"] and len(octets) >= 20:
        kind = _MACHINES.get(_hexadecimal(f"0x{octets[19]}{octets[18]}") or 0)
        if kind and not (kind == "armv7l" and re.match("armv[5-7]", machine)):
            return kind
    # armv8l: a 32-bit program that asks a 64-bit kernel.
    return {"armv8l": "armv7l", "arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine) or None


def _model(
    properties: Mapping[str, str], tree: Collection[str], dmi: Collection[str]
) -> str | None:
    for name in ("ro.product.marketname", "ro.product.odm.marketname", "ro.config.marketing_name"):
        if properties.get(name):
            return properties[name]
    maker, model = (properties.get(f"ro.product.{name}", "") for name in ("manufacturer", "model"))
    if model:  # with a space in it, it is a name for people: "Pixel 8 Pro", not "SM-S921B"
        named = " " in model or not maker or model.lower().startswith(maker.lower())
        return model if named else f"{maker[:1].upper()}{maker[1:]} {model}"
    if tree:
        return next(iter(tree))
    names = [value for value in dmi if value and not _NO_NAME.search(value)]
    return " ".join(dict.fromkeys(names)) or None


def _soc(
    properties: Mapping[str, str], tree: Iterable[str], processors: Iterable[Mapping[str, str]]
) -> str | None:
    """Of a device tree the last string, which is the most general one of the board: the chip's, or
    ("nvidia,tegra23x") its family's after it."""
    maker, model = (properties.get(f"ro.soc.{name}", "") for name in ("manufacturer", "model"))
    if model:
        return model if model.lower().startswith(maker.lower()) else f"{maker} {model}"
    for name in (
        "ro.hardware.chipname",
        "ro.chipname",
        "ro.mediatek.platform",
        "ro.board.platform",
    ):
        if properties.get(name):
            return properties[name]
    chips = [name for name in tree if "," in name and not re.search(r"[0-9]x$", name)]
    if chips:
        return None if chips[-1] == "linux,dummy-virt" else chips[-1]
    return next((fields["Hardware"] for fields in processors if fields.get("Hardware")), None)


def _os(
    properties: Mapping[str, str], release: Iterable[str], uname: Collection[str]
) -> str | None:
    version, level = (properties.get(f"ro.build.version.{name}", "") for name in ("release", "sdk"))
    if version:
        return f"Android {version}" + (f" (API {level})" if level else "")
    fields = {name: value.strip("\"'") for name, value in _pairs(release, "=")}
    name = f"{fields.get('NAME', '')} {fields.get('VERSION_ID', '')}".strip()
    kernel = " ".join([*uname][:2]).strip()
    return ", ".join(part for part in (name or fields.get("PRETTY_NAME"), kernel) if part) or None


def _tegra(lines: Iterable[str]) -> str | None:
    match = re.search(r"R([0-9]+) \(release\), REVISION: ([0-9.]+)", " ".join(lines))
    return f"L4T {match[1]}.{match[2]}" if match else None


def _python(lines: Iterable[str]) -> tuple[str | None, dict[str, str]]:
    """Its version, and those of the packages asked for."""
    versions = {
        name: version
        for name, version in _first(lines, " ").items()
        if name in (*_PACKAGES, "python") and _VERSION.fullmatch(version)
    }
    return versions.pop("python", None), versions


def _runtimes(versions: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(runtime -> version, runtime -> package); of several packages, the one to install first."""
    packages = {
        runtime: package
        for runtime in RUNTIMES
        for package in spec(runtime).packages[::-1]
        if package in versions
    }
    return {runtime: versions[package] for runtime, package in packages.items()}, packages


# --- Its CPU --------------------------------------------------------------------------------------


def _processors(lines: Iterable[str]) -> list[dict[str, str]]:
    """/proc/cpuinfo: first what is said of no single processor, then each one's fields. Old Arm
    kernels say most of it once, at the end, and it lands in the last one's."""
    found: list[dict[str, str]] = [{}]
    for name, value in _pairs(lines, ":"):
        if name == "processor" and len(found) <= MAX_CPUS:
            found.append({})
        found[-1].setdefault(name, value)
    return found


def _cpu(processors: list[dict[str, str]]) -> str:
    kinds = [kind for kind in map(_kind, processors) if kind]
    if kinds:
        if len(kinds) < len(processors) - 1:  # said once for all: which ones are so is not known
            return " + ".join(dict.fromkeys(kinds))
        return " + ".join(f"{count}x {kind}" for kind, count in Counter(kinds).items())
    for name in ("model name", "Processor", "uarch", "cpu model", "cpu"):
        for fields in processors:
            if fields.get(name):
                return fields[name]
    return "unknown"


def _kind(fields: Mapping[str, str]) -> str | None:
    """An Arm core's name; in hexadecimal where it has none here."""
    maker, part = _identity(fields)
    if maker is None or part is None:
        return None
    vendor, parts = _CORES.get(maker, (f"0x{maker:02x}", {}))
    return parts.get(part, f"{vendor} 0x{part:03x}")


def _identity(fields: Mapping[str, str]) -> tuple[int | None, int | None]:
    return _hexadecimal(fields.get("CPU implementer")), _hexadecimal(fields.get("CPU part"))


def _flags(processors: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Those that all have: a thread may land on any of them."""
    said = [
        set(fields[name].split())
        for fields in processors
        for name in ("flags", "Features")
        if name in fields
    ]
    flags = sorted(set.intersection(*said)) if said else []
    return tuple(flag[:NAME_LENGTH] for flag in flags[:FLAGS])


def _allowed(lines: Iterable[str]) -> tuple[int, ...]:
    return _range(_first(lines, ":").get("Cpus_allowed_list", ""))


_CLOCK = re.compile(r"cpu([0-9]{1,4})/(?:cpufreq/)?([a-z_]{1,40})")


def _clocks(lines: Iterable[str]) -> dict[int, dict[str, str]]:
    """CPU -> name -> value, of `cpu3/cpufreq/scaling_max_freq:1803000`; -1 is all of them."""
    found: dict[int, dict[str, str]] = {-1: {}}
    for name, value in _pairs(lines, ":"):
        if name == "online":
            found[-1]["online"] = value
        elif (match := _CLOCK.fullmatch(name)) and int(match[1]) < MAX_CPUS:
            found.setdefault(int(match[1]), {})[match[2]] = value
    return found


def _running(clocks: Mapping[int, Mapping[str, str]]) -> tuple[int, ...]:
    listed = _range(clocks[-1].get("online", "")) or sorted(cpu for cpu in clocks if cpu >= 0)
    return tuple(cpu for cpu in listed if clocks.get(cpu, {}).get("online") != "0")


def _online(said: Sections, processors: Iterable[Mapping[str, str]]) -> tuple[int, ...]:
    numbers = (_integer(fields.get("processor")) for fields in processors)
    return _running(_clocks(said["clocks"])) or tuple(
        sorted({number for number in numbers if number is not None and 0 <= number < MAX_CPUS})
    )


def _cores(
    said: Sections,
    processors: Iterable[Mapping[str, str]],
    online: Collection[int],
    allowed: Collection[int],
) -> int | None:
    siblings = {
        int(match[1]): value
        for name, value in _pairs(said["topology"], ":")
        if (match := re.search(r"/cpu([0-9]{1,4})/topology/", name))
    }
    cores = len({siblings.get(cpu, f"cpu{cpu}") for cpu in online})
    if not siblings:
        pairs = {
            (fields["physical id"], fields["core id"])
            for fields in processors
            if "physical id" in fields and "core id" in fields
        }
        cores = len(pairs) or cores
    return (min(cores, len(allowed)) if allowed else cores) or None


def _clusters(
    clocks: Mapping[int, Mapping[str, str]], online: Collection[int]
) -> tuple[Cluster, ...]:
    """By capacity where the kernel tells CPUs apart by it, else by the hardware's highest clock."""
    capacity = _of_each(clocks, online, "cpu_capacity")
    speed = _of_each(clocks, online, "cpuinfo_max_freq")
    if len(capacity) == len(online) and len(set(capacity.values())) > 1:
        rank: Mapping[int, int] = capacity
    elif len(speed) == len(online):
        rank = _rounded(speed)
    else:
        rank = {}
    groups: dict[int, list[int]] = {}
    for cpu in sorted(online):
        groups.setdefault(rank.get(cpu, 0), []).append(cpu)
    return tuple(
        Cluster(
            cpus=tuple(groups[key]),
            max_khz=max((speed[cpu] for cpu in groups[key] if cpu in speed), default=None),
            capacity=max((capacity[cpu] for cpu in groups[key] if cpu in capacity), default=None),
        )
        for key in sorted(groups, reverse=True)
    )


def _of_each(
    clocks: Mapping[int, Mapping[str, str]], cpus: Iterable[int], name: str
) -> dict[int, int]:
    numbers = {cpu: _integer(clocks.get(cpu, {}).get(name)) for cpu in cpus}
    return {cpu: number for cpu, number in numbers.items() if number and 0 < number <= MAX_KHZ}


def _rounded(speed: Mapping[int, int]) -> dict[int, int]:
    """Clocks that are nearly the same, up to the highest of them."""
    found: dict[int, int] = {}
    top = 0
    for cpu in sorted(speed, key=lambda cpu: speed[cpu], reverse=True):
        if speed[cpu] < SAME_CLOCK * top or not top:
            top = speed[cpu]
        found[cpu] = top
    return found


# --- Whether it is what it seems ------------------------------------------------------------------


def _emulated(
    properties: Mapping[str, str],
    processors: Iterable[Mapping[str, str]],
    kernel: Iterable[str],
    arch: str,
) -> str | None:
    """Why it is an emulator, None where nothing says so."""
    for name in ("ro.kernel.qemu", "ro.boot.qemu"):
        if properties.get(name) == "1":
            return f"an Android emulator: {name} is 1"
    if properties.get("ro.hardware") in ("goldfish", "ranchu"):
        return f"an Android emulator: its hardware is {properties['ro.hardware']}"
    host = next(iter(kernel), "")
    if _family(host) and _family(arch) and _family(host) != _family(arch):
        return f"programs for {arch} on a kernel for {host}: qemu-user or the like"
    for fields in processors:
        if why := _translated(fields, arch):
            return why
    return None


def _translated(fields: Mapping[str, str], arch: str) -> str | None:
    """The same, by one processor of /proc/cpuinfo: user-mode emulators show the host's."""
    if fields.get("vendor_id") == "VirtualApple":
        return "Apple's Rosetta translates x86-64"
    if _family(arch) == "arm" and "vendor_id" in fields:
        return f"programs for {arch} on a CPU by {fields['vendor_id']}: qemu-user or the like"
    if _family(arch) == "x86" and "CPU implementer" in fields:
        return f"programs for {arch} on an Arm CPU: qemu-user or the like"
    if "TCG" in fields.get("model name", ""):
        return f"qemu without hardware behind it: {fields['model name']}"
    if _identity(fields) == _QEMU_MAX:
        return "qemu without hardware behind it: its CPU is qemu's own, max"
    if _family(arch) == "arm" and fields.get("BogoMIPS") == _QEMU_BOGOMIPS:
        return "qemu without hardware behind it: its counter runs at qemu's 62.5 MHz"
    return None


def _family(arch: str) -> str | None:
    """The instruction set apart from its width: a 64-bit kernel runs 32-bit programs by itself."""
    if re.match("aarch64|arm", arch):
        return "arm"
    if re.fullmatch("x86_64|amd64|x86|i[3-6]86", arch):
        return "x86"
    return arch[:5] or None


def _virtual(
    properties: Mapping[str, str],
    processors: Iterable[Mapping[str, str]],
    tree: Collection[str],
    dmi: Iterable[str],
    release: str,
) -> bool:
    names = " ".join(dmi)
    return (
        any("hypervisor" in fields.get("flags", "").split() for fields in processors)
        or "linux,dummy-virt" in tree
        or properties.get("ro.hardware", "").startswith("cutf")  # Cuttlefish, AOSP's virtual device
        or "microsoft-standard" in release  # WSL 2
        or bool(_GUESTS.search(names))
        or ("Amazon EC2" in names and ".metal" not in names)
    )


# --- How it is just now ---------------------------------------------------------------------------


def _state(said: Sections) -> dict[str, Any]:
    load = _number(next(iter(said["loadavg"]), "").partition(" ")[0])
    saver = next(iter(said["low_power"]), "")
    found = {
        "load_1min": load if load is None or 0 <= load <= 1e6 else None,
        "temperature_c": _temperature(said),
        "thermal_status": _thermal_status(said["thermalservice"]),
        "low_power": {"0": False, "1": True}.get(saver),
        "throttled": _throttled(said["vcgencmd"]),
        "free_bytes": _free(said["df"]),
        "available_bytes": _kib(said["meminfo"], "MemAvailable"),
        **_clock_state(_clocks(said["clocks"])),
        **(_dumped(said["battery"]) or _supplied(said["supply"])),
    }
    return {name: value for name, value in found.items() if value is not None}


def _clock_state(clocks: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
    online = _running(clocks)
    clusters = _clusters(clocks, online)
    limit = _of_each(clocks, online, "scaling_max_freq")
    hardware = _of_each(clocks, online, "cpuinfo_max_freq")
    shares = [limit[cpu] / hardware[cpu] for cpu in online if cpu in limit and cpu in hardware]
    return {
        "governor": _joined(clocks, "scaling_governor"),
        "governor_driver": _joined(clocks, "scaling_driver"),
        "clock_khz": _highest(clusters, _of_each(clocks, online, "scaling_cur_freq")),
        "clock_limit_khz": _highest(clusters, limit),
        "clock_hardware_khz": _highest(clusters, hardware),
        "clock_limit_share": round(min(shares), 3) if shares else None,
    }


def _joined(clocks: Mapping[int, Mapping[str, str]], name: str) -> str | None:
    return _named(", ".join(sorted({fields.get(name, "") for fields in clocks.values()} - {""})))


def _highest(clusters: Iterable[Cluster], khz: Mapping[int, int]) -> list[int | None] | None:
    if not khz:
        return None
    return [max((khz[cpu] for cpu in kind.cpus if cpu in khz), default=None) for kind in clusters]


def _kib(lines: Iterable[str], name: str) -> int | None:
    kib = _integer(_first(lines, ":").get(name, "").removesuffix("kB").strip())
    return None if kib is None else _within(kib * 1024, MAX_MEMORY_BYTES)


def _free(lines: Iterable[str]) -> int | None:
    """Of df -k the available blocks; a long device name breaks the line of old versions."""
    words = " ".join(lines).split()
    for at, word in enumerate(words[4:], 4):
        if re.fullmatch("[0-9]{1,3}%", word):
            numbers = [_integer(before) for before in words[at - 3 : at]]
            if None not in numbers:
                return _within(max(0, numbers[-1] or 0) * 1024, MAX_MEMORY_BYTES)
    return None


def _temperature(said: Sections) -> float | None:
    """Of the CPU where a sensor says that it is its: what vcgencmd, Android's HAL or the kernel's
    zones say, in this order."""
    if match := re.search(r"temp=([0-9.]+)", " ".join(said["vcgencmd"])):
        return _sane(_number(match[1]))
    readings = [
        _sane(_number(value)) for kind, value, _ in _hal(said["thermalservice"]) if kind == 0
    ]
    return max((value for value in readings if value is not None), default=_zones(said["zones"]))


def _thermal_status(lines: list[str]) -> int | None:
    """The system's, or the skin's (mType 3) where that is higher: some makers slow down by the
    latter and leave the former at 0. Heat of the chip alone is ordinary under load."""
    said = _integer(_first(lines, ":").get("Thermal Status"))
    known = [status for kind, _, status in _hal(lines) if kind == 3]
    known += [said] if said is not None else []
    return max((status for status in known if 0 <= status < len(THERMAL_STATUS)), default=None)


_HAL = re.compile(r"mValue=([^,\s]{1,30}), mType=([0-9]{1,3}),")
_STATUS = re.compile(r"mStatus=([0-9]{1,3})")


def _hal(lines: list[str]) -> Iterator[tuple[int, str, int]]:
    """(mType, mValue, mStatus) of the temperatures that the HAL reads now; those cached are of the
    last change of status."""
    current = False
    for line in lines:
        if not line.startswith("Temperature{"):
            current = line.startswith("Current temperatures")
        elif current and (match := _HAL.search(line)) and (status := _STATUS.search(line)):
            yield int(match[2]), match[1], int(status[1])


def _zones(lines: Iterable[str]) -> float | None:
    zones: dict[str, dict[str, str]] = {}
    for name, value in _pairs(lines, ":"):
        zone, _, kind = name.rpartition("/")
        zones.setdefault(zone, {})[kind] = value
    warm = [(zone.get("type", ""), _celsius(zone.get("temp"))) for zone in zones.values()]
    known = [(kind, value) for kind, value in warm if value is not None]
    of_cpu = [
        value for kind, value in known if re.search("cpu|soc|pkg|core|big|little", kind, re.I)
    ]
    return max(of_cpu or [value for _, value in known], default=None)


def _celsius(text: str | None) -> float | None:
    """A zone's temperature: thousandths of a degree; some makers write tenths, or whole ones."""
    value = _number(text)
    if value is None:
        return None
    return _sane(value / (1000 if abs(value) >= 1000 else 10 if abs(value) >= 200 else 1))


def _sane(celsius: float | None) -> float | None:
    """Without what no chip survives, and 0, which is how makers write "no sensor"."""
    return celsius if celsius is not None and -40 < celsius < 130 and celsius != 0 else None


def _throttled(lines: Iterable[str]) -> dict[str, list[str]] | None:
    match = re.search(r"throttled=(0x[0-9a-fA-F]{1,8})\b", " ".join(lines))
    if not match:
        return None
    bits = int(match[1], 16)
    return {
        "now": [name for bit, name in THROTTLED.items() if bits >> bit & 1],
        "since_boot": [name for bit, name in THROTTLED.items() if bits >> bit + 16 & 1],
    }


def _dumped(lines: Iterable[str]) -> dict[str, Any]:
    """The battery by Android's dumpsys; empty where there is none."""
    said = _first(lines, ":")
    level, scale = _integer(said.get("level")), _integer(said.get("scale")) or 100
    percent = None if level is None else _within(round(100 * level / scale), 100)
    if said.get("present") == "false" or percent is None:
        return {}
    tenths = _integer(said.get("temperature"))
    names = {"AC": "AC", "USB": "USB", "Wireless": "wireless", "Dock": "dock"}
    by = [name for source, name in names.items() if said.get(f"{source} powered") == "true"]
    status = _integer(said.get("status"))  # BatteryManager: 1 unknown, 2 charging, 3 discharging,
    return {  # 4 not charging, 5 full
        "battery_percent": percent,
        "battery_temperature_c": None if tenths is None else _sane(tenths / 10),
        "charging": bool(by) if status in (None, 1) else status == 2,
        "charging_by": " + ".join(by) or None,
    }


def _supplied(lines: Iterable[str]) -> dict[str, Any]:
    """The battery by the kernel's power_supply class, as laptops have it."""
    supplies: dict[str, dict[str, str]] = {}
    for name, value in _pairs(lines, ":"):
        supply, _, kind = name.rpartition("/")
        supplies.setdefault(supply, {})[kind] = value
    battery = next((one for one in supplies.values() if one.get("type") == "Battery"), {})
    percent = _within(_integer(battery.get("capacity")), 100)
    if percent is None:
        return {}
    tenths = _number(battery.get("temp"))
    by = {
        {"Mains": "AC"}.get(one["type"], one["type"])
        for one in supplies.values()
        if one.get("online") == "1" and one.get("type", "Battery") != "Battery"
    }
    return {
        "battery_percent": percent,
        "battery_temperature_c": None if tenths is None else _sane(tenths / 10),
        "charging": battery.get("status") == "Charging",
        "charging_by": _named(" + ".join(sorted(by))),
    }
