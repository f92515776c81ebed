"""A device's model, chip, operating system, and the Python packages that it has."""

import re
from collections.abc import Collection, Iterable, Mapping

from onmetal.profilers.devices.remote.facts.lines import (
    NAME_LENGTH,
    first_values,
    hexadecimal,
    split_pairs,
)
from onmetal.profilers.devices.remote.facts.script import PACKAGES
from onmetal.runtimes import RUNTIMES, spec

_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!_-]{0,60}")
MACHINE_OF_ABI = {
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
_NO_NAME = re.compile(
    "to be filled|o\\.e\\.m|default string|system (product|manufacturer)|^none$", re.I
)
"""What makers of PC boards leave in DMI where a name should be."""


def android_properties(lines: Iterable[str]) -> dict[str, str]:
    """Android's properties, `[name]: [value]` each; values of several lines lose all but one."""
    matches = (re.fullmatch(r"\[([^\]]+)\]: \[(.*?)\]?", line) for line in lines)
    return {match[1]: match[2].strip() for match in matches if match}


def android_abis(properties: Mapping[str, str]) -> tuple[str, ...]:
    for name in ("ro.product.cpu.abilist", "ro.vendor.product.cpu.abilist", "ro.product.cpu.abi"):
        abis = [abi.strip()[:NAME_LENGTH] for abi in properties.get(name, "").split(",")]
        if abis := [abi for abi in abis if abi]:
            return tuple(abis[:16])
    return ()


def program_architecture(machine: str, header: Iterable[str]) -> str | None:
    """The architecture that programs are built for: by the ELF header of one that runs, else by
    uname. `header`: its first 20 bytes in hexadecimal. `machine`: uname's, which is the kernel's.
    """
    octets = " ".join(header).split()
    if octets[:4] == ["7f", "45", "4c", "46"] and len(octets) >= 20:
        machine_type = _MACHINES.get(hexadecimal(f"0x{octets[19]}{octets[18]}") or 0)
        if machine_type and not (machine_type == "armv7l" and re.match("armv[5-7]", machine)):
            return machine_type
    # armv8l: a 32-bit program that asks a 64-bit kernel.
    return {"armv8l": "armv7l", "arm64": "aarch64", "amd64": "x86_64"}.get(machine, machine) or None


def device_model(
    properties: Mapping[str, str], tree: Collection[str], dmi: Collection[str]
) -> str | None:
    for name in ("ro.product.marketname", "ro.product.odm.marketname", "ro.config.marketing_name"):
        if properties.get(name):
            return properties[name]
    maker, model = (properties.get(f"ro.product.{name}", "") for name in ("manufacturer", "model"))
    if model:  # a model with a space is a name for people: "Pixel 8 Pro", not "SM-S921B"
        named = " " in model or not maker or model.lower().startswith(maker.lower())
        return model if named else f"{maker[:1].upper()}{maker[1:]} {model}"
    if tree:
        return next(iter(tree))
    names = [value for value in dmi if value and not _NO_NAME.search(value)]
    return " ".join(dict.fromkeys(names)) or None


def chip_name(
    properties: Mapping[str, str], tree: Iterable[str], processors: Iterable[Mapping[str, str]]
) -> str | None:
    """The chip's name. Of a device tree it is the last string, the most general one, unless that
    names a family of chips ("nvidia,tegra23x")."""
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


def operating_system(
    properties: Mapping[str, str], release: Iterable[str], uname: Collection[str]
) -> str | None:
    version, level = (properties.get(f"ro.build.version.{name}", "") for name in ("release", "sdk"))
    if version:
        return f"Android {version}" + (f" (API {level})" if level else "")
    fields = {name: value.strip("\"'") for name, value in split_pairs(release, "=")}
    name = f"{fields.get('NAME', '')} {fields.get('VERSION_ID', '')}".strip()
    kernel = " ".join([*uname][:2]).strip()
    return ", ".join(part for part in (name or fields.get("PRETTY_NAME"), kernel) if part) or None


def jetson_release(lines: Iterable[str]) -> str | None:
    match = re.search(r"R([0-9]+) \(release\), REVISION: ([0-9.]+)", " ".join(lines))
    return f"L4T {match[1]}.{match[2]}" if match else None


def python_versions(lines: Iterable[str]) -> tuple[str | None, dict[str, str]]:
    """The version of Python, and those of the packages that the script asks for."""
    versions = {
        name: version
        for name, version in first_values(lines, " ").items()
        if name in (*PACKAGES, "python") and _VERSION.fullmatch(version)
    }
    return versions.pop("python", None), versions


def installed_runtimes(versions: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(runtime -> version, runtime -> package); of several packages, the one to install first."""
    packages = {
        runtime: package
        for runtime in RUNTIMES
        for package in spec(runtime).packages[::-1]
        if package in versions
    }
    return {runtime: versions[package] for runtime, package in packages.items()}, packages
