"""A device's CPU: the names of its cores, its instruction sets, its clusters and their clocks."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from onmetal.profilers.devices.remote.facts.arm_cores import ARM_CORES, arm_identity
from onmetal.profilers.devices.remote.facts.lines import (
    FLAGS,
    MAX_CPUS,
    NAME_LENGTH,
    Sections,
    cpu_list,
    first_values,
    integer,
    split_pairs,
)
from onmetal.profilers.devices.remote.facts.records import Cluster

SAME_CLOCK = 0.92
"""x86 CPUs let single cores of a kind run a few percent faster (favoured cores, 2 to 6 %); kinds
of cores differ by more. Only where the kernel states no capacities."""
MAX_KHZ = 100_000_000
"""Largest clock: larger numbers are garbage."""


def read_processors(lines: Iterable[str]) -> list[dict[str, str]]:
    """/proc/cpuinfo: first the fields that belong to no processor, then those of each processor.
    Old Arm kernels print most fields once, at the end, so that the last processor has them."""
    processors: list[dict[str, str]] = [{}]
    for name, value in split_pairs(lines, ":"):
        if name == "processor" and len(processors) <= MAX_CPUS:
            processors.append({})
        processors[-1].setdefault(name, value)
    return processors


def cpu_name(processors: list[dict[str, str]]) -> str:
    names = [name for name in map(_core_name, processors) if name]
    if names:
        if len(names) < len(processors) - 1:  # printed once: which cores have the name is not known
            return " + ".join(dict.fromkeys(names))
        return " + ".join(f"{count}x {name}" for name, count in Counter(names).items())
    for name in ("model name", "Processor", "uarch", "cpu model", "cpu"):
        for fields in processors:
            if fields.get(name):
                return fields[name]
    return "unknown"


def _core_name(fields: Mapping[str, str]) -> str | None:
    """An Arm core's name; in hexadecimal where it has none here."""
    maker, part = arm_identity(fields)
    if maker is None or part is None:
        return None
    vendor, parts = ARM_CORES.get(maker, (f"0x{maker:02x}", {}))
    return parts.get(part, f"{vendor} 0x{part:03x}")


def common_flags(processors: Iterable[Mapping[str, str]]) -> tuple[str, ...]:
    """Flags that all processors have: a thread may run on any of them."""
    flags_of_each = [
        set(fields[name].split())
        for fields in processors
        for name in ("flags", "Features")
        if name in fields
    ]
    flags = sorted(set.intersection(*flags_of_each)) if flags_of_each else []
    return tuple(flag[:NAME_LENGTH] for flag in flags[:FLAGS])


def allowed_cpus(lines: Iterable[str]) -> tuple[int, ...]:
    return cpu_list(first_values(lines, ":").get("Cpus_allowed_list", ""))


_CLOCK = re.compile(r"cpu([0-9]{1,4})/(?:cpufreq/)?([a-z_]{1,40})")


def read_clocks(lines: Iterable[str]) -> dict[int, dict[str, str]]:
    """CPU -> name -> value, of `cpu3/cpufreq/scaling_max_freq:1803000`; -1 is all of them."""
    clocks: dict[int, dict[str, str]] = {-1: {}}
    for name, value in split_pairs(lines, ":"):
        if name == "online":
            clocks[-1]["online"] = value
        elif (match := _CLOCK.fullmatch(name)) and int(match[1]) < MAX_CPUS:
            clocks.setdefault(int(match[1]), {})[match[2]] = value
    return clocks


def running_cpus(clocks: Mapping[int, Mapping[str, str]]) -> tuple[int, ...]:
    listed = cpu_list(clocks[-1].get("online", "")) or sorted(cpu for cpu in clocks if cpu >= 0)
    return tuple(cpu for cpu in listed if clocks.get(cpu, {}).get("online") != "0")


def online_cpus(answers: Sections, processors: Iterable[Mapping[str, str]]) -> tuple[int, ...]:
    numbers = (integer(fields.get("processor")) for fields in processors)
    return running_cpus(read_clocks(answers["clocks"])) or tuple(
        sorted({number for number in numbers if number is not None and 0 <= number < MAX_CPUS})
    )


def physical_cores(
    answers: Sections,
    processors: Iterable[Mapping[str, str]],
    online: Collection[int],
    allowed: Collection[int],
) -> int | None:
    siblings = {
        int(match[1]): value
        for name, value in split_pairs(answers["topology"], ":")
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


def group_clusters(
    clocks: Mapping[int, Mapping[str, str]], online: Collection[int]
) -> tuple[Cluster, ...]:
    """The CPUs online, grouped by capacity where the kernel states different ones, else by the
    hardware's highest clock."""
    capacity = clock_values(clocks, online, "cpu_capacity")
    speed = clock_values(clocks, online, "cpuinfo_max_freq")
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


def clock_values(
    clocks: Mapping[int, Mapping[str, str]], cpus: Iterable[int], name: str
) -> dict[int, int]:
    numbers = {cpu: integer(clocks.get(cpu, {}).get(name)) for cpu in cpus}
    return {cpu: number for cpu, number in numbers.items() if number and 0 < number <= MAX_KHZ}


def _rounded(speed: Mapping[int, int]) -> dict[int, int]:
    """The highest clock of each CPU; clocks that are nearly the same become the highest of them."""
    rounded: dict[int, int] = {}
    top = 0
    for cpu in sorted(speed, key=lambda cpu: speed[cpu], reverse=True):
        if speed[cpu] < SAME_CLOCK * top or not top:
            top = speed[cpu]
        rounded[cpu] = top
    return rounded
