"""The scripts' output as sections of lines, and the numbers and names in them."""

import re
from collections.abc import Iterable, Iterator, Mapping

from onmetal.profilers.devices.remote.facts.script import SCRIPT

Sections = Mapping[str, list[str]]
MAX_CPUS = 4096
"""No kernel is built for more: larger numbers of CPUs are garbage."""
TEXT_LENGTH, LINES, LINE_LENGTH = 8_000_000, 300_000, 32_768
"""Most characters that are read, lines, and characters of a line: a server with 256 CPUs prints
400,000 in 10,000 lines, and its lines of flags have 2500."""
NAME_LENGTH, FLAGS = 200, 2000
"""Most characters of a name, and most flags of a CPU."""
MAX_MEMORY_BYTES = 1 << 53
SECTION_NAMES = re.findall(r"(?m)^s ([a-z_]+)", SCRIPT)


def sections(text: str) -> dict[str, list[str]]:
    """Section -> its lines, stripped and without empty ones; all names are there. A carriage return
    is what old versions of adb make of a line's end."""
    by_section: dict[str, list[str]] = {name: [] for name in SECTION_NAMES}
    lines: list[str] = []
    for line in text[:TEXT_LENGTH].replace("\r", "").split("\n", LINES)[:LINES]:
        if line.startswith("@@") and line[2:] in by_section:
            lines = by_section[line[2:]]
        elif stripped := line[:LINE_LENGTH].strip():
            lines.append(stripped)
    return by_section


def split_pairs(lines: Iterable[str], separator: str) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, parted, value = line.partition(separator)
        if parted:
            yield name.strip(), value.strip()


def first_values(lines: Iterable[str], separator: str) -> dict[str, str]:
    """Name -> its first value: makers append lines of their own to Android's."""
    values: dict[str, str] = {}
    for name, value in split_pairs(lines, separator):
        values.setdefault(name, value)
    return values


def device_tree_strings(lines: Iterable[str]) -> list[str]:
    """A device tree's strings, which end with NUL."""
    return [part.strip() for line in lines for part in line.split("\0") if part.strip()]


def integer(text: str | None) -> int | None:
    """A decimal number of the size that counters have."""
    if text is not None and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    return None


def decimal(text: str | None) -> float | None:
    if text is not None and re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", text):
        return float(text)
    return None


def hexadecimal(text: str | None) -> int | None:
    if text is not None and re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text, 16)
    return None


def within(number: int | None, most: int) -> int | None:
    """The number, or None where it is negative or larger than `most`: then it is garbage."""
    return number if number is not None and 0 <= number <= most else None


def one_line(text: str | None) -> str | None:
    """A name that the device gives: on one line, of a bounded length, None where it is empty."""
    return " ".join(text[:LINE_LENGTH].split())[:NAME_LENGTH].strip() or None if text else None


def cpu_list(text: str) -> tuple[int, ...]:
    """The kernel's lists of CPUs, "0-3,6"."""
    parts = (
        re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip()) for part in text.split(",")
    )
    cpus: list[int] = []
    # In ascending order, so that CPUs of overlapping ranges are not counted again.
    for first, last in sorted((int(m[1]), int(m[2] or m[1])) for m in parts if m):
        begin = max(first, cpus[-1] + 1) if cpus else first
        cpus += range(begin, min(last, MAX_CPUS - 1) + 1)
    return tuple(cpus)


def memory_bytes_of(lines: Iterable[str], name: str) -> int | None:
    kib = integer(first_values(lines, ":").get(name, "").removesuffix("kB").strip())
    return None if kib is None else within(kib * 1024, MAX_MEMORY_BYTES)
