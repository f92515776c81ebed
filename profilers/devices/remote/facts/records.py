"""The records of a device's facts."""

from typing import Any

from msgspec import Struct


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
    """The architecture of its programs, as uname has it: "aarch64", "armv7l", "x86_64", "i686". A
    64-bit kernel under 32-bit programs is not a 64-bit device."""
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
