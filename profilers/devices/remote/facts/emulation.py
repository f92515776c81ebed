"""Whether a device is an emulator or a virtual machine, and the evidence for it."""

import re
from collections.abc import Collection, Iterable, Mapping

from onmetal.profilers.devices.remote.facts.arm_cores import arm_identity

_GUESTS = re.compile(
    "qemu|kvm|vmware|virtualbox|innotek|xen|bochs|parallels|openstack|firecracker|virtualization"
    "|virtual machine|virtual platform|google compute engine|hvm domu|cloud hypervisor",
    re.IGNORECASE,
)
"""In DMI's vendor or product: what hypervisors call the machines that they make."""
_QEMU_MAX = (0x00, 0x051)
"""qemu's own CPU, `-cpu max`: no implementer, and the letter Q (target/arm/tcg/cpu64.c). Under KVM
the guest sees the host's instead."""
_QEMU_BOGOMIPS = "125.00"
"""qemu's emulated Arm counter runs at 62.5 MHz, of which Linux makes this, for CPUs that qemu had
before 9.1 and for older versions of its machines. Under KVM the guest sees the host's counter, and
no maker is known to take that rate. Since 9.1 qemu's other CPUs run it at 1 GHz, as Armv8.6 asks of
every core: 2000.00 is what real phones and servers say too, and proves nothing
(https://gitlab.com/qemu-project/qemu/-/blob/master/target/arm/internals.h, GTIMER_DEFAULT_HZ)."""


def why_emulated(
    properties: Mapping[str, str],
    processors: Iterable[Mapping[str, str]],
    kernel: Iterable[str],
    arch: str,
) -> str | None:
    """Why the device is an emulator; None where nothing says so."""
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
    """Why one processor of /proc/cpuinfo is emulated: user-mode emulators show the host's."""
    if fields.get("vendor_id") == "VirtualApple":
        return "Apple's Rosetta translates x86-64"
    if _family(arch) == "arm" and "vendor_id" in fields:
        return f"programs for {arch} on a CPU by {fields['vendor_id']}: qemu-user or the like"
    if _family(arch) == "x86" and "CPU implementer" in fields:
        return f"programs for {arch} on an Arm CPU: qemu-user or the like"
    if "TCG" in fields.get("model name", ""):
        return f"qemu without hardware behind it: {fields['model name']}"
    if arm_identity(fields) == _QEMU_MAX:
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


def is_virtual(
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
