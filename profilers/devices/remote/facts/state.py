"""What may change on a device while a run lasts: clocks, load, memory, battery, heat."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from onmetal.profilers.devices.remote.facts.cpu import (
    clock_values,
    group_clusters,
    read_clocks,
    running_cpus,
)
from onmetal.profilers.devices.remote.facts.lines import (
    MAX_MEMORY_BYTES,
    Sections,
    decimal,
    first_values,
    integer,
    memory_bytes_of,
    one_line,
    sections,
    split_pairs,
    within,
)
from onmetal.profilers.devices.remote.facts.records import Cluster

THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
"""PowerManager.THERMAL_STATUS_*, from 0."""
THROTTLED = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
"""vcgencmd get_throttled: the bits of now; the same 16 higher say "has occurred since boot"."""


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
    return read_state(sections(text))


def read_state(answers: Sections) -> dict[str, Any]:
    load = decimal(next(iter(answers["loadavg"]), "").partition(" ")[0])
    saver = next(iter(answers["low_power"]), "")
    state = {
        "load_1min": load if load is None or 0 <= load <= 1e6 else None,
        "temperature_c": _temperature(answers),
        "thermal_status": _thermal_status(answers["thermalservice"]),
        "low_power": {"0": False, "1": True}.get(saver),
        "throttled": _throttled(answers["vcgencmd"]),
        "free_bytes": _free(answers["df"]),
        "available_bytes": memory_bytes_of(answers["meminfo"], "MemAvailable"),
        **_clock_state(read_clocks(answers["clocks"])),
        **(_battery_of_android(answers["battery"]) or _battery_of_kernel(answers["supply"])),
    }
    return {name: value for name, value in state.items() if value is not None}


def _clock_state(clocks: Mapping[int, Mapping[str, str]]) -> dict[str, Any]:
    online = running_cpus(clocks)
    clusters = group_clusters(clocks, online)
    limit = clock_values(clocks, online, "scaling_max_freq")
    hardware = clock_values(clocks, online, "cpuinfo_max_freq")
    shares = [limit[cpu] / hardware[cpu] for cpu in online if cpu in limit and cpu in hardware]
    return {
        "governor": _joined_values(clocks, "scaling_governor"),
        "governor_driver": _joined_values(clocks, "scaling_driver"),
        "clock_khz": _highest_clocks(clusters, clock_values(clocks, online, "scaling_cur_freq")),
        "clock_limit_khz": _highest_clocks(clusters, limit),
        "clock_hardware_khz": _highest_clocks(clusters, hardware),
        "clock_limit_share": round(min(shares), 3) if shares else None,
    }


def _joined_values(clocks: Mapping[int, Mapping[str, str]], name: str) -> str | None:
    return one_line(", ".join(sorted({fields.get(name, "") for fields in clocks.values()} - {""})))


def _highest_clocks(clusters: Iterable[Cluster], khz: Mapping[int, int]) -> list[int | None] | None:
    if not khz:
        return None
    return [max((khz[cpu] for cpu in kind.cpus if cpu in khz), default=None) for kind in clusters]


def _free(lines: Iterable[str]) -> int | None:
    """The available blocks that `df -k` prints; old versions break the line after a long name."""
    words = " ".join(lines).split()
    for index, word in enumerate(words[4:], 4):
        if re.fullmatch("[0-9]{1,3}%", word):
            numbers = [integer(before) for before in words[index - 3 : index]]
            if None not in numbers:
                return within(max(0, numbers[-1] or 0) * 1024, MAX_MEMORY_BYTES)
    return None


def _temperature(answers: Sections) -> float | None:
    """The temperature of the CPU where a sensor is named as its own, by vcgencmd, by Android's HAL
    or by the kernel's zones, in this order."""
    if match := re.search(r"temp=([0-9.]+)", " ".join(answers["vcgencmd"])):
        return _plausible(decimal(match[1]))
    readings = [
        _plausible(decimal(value))
        for kind, value, _ in _hal(answers["thermalservice"])
        if kind == 0
    ]
    return max((value for value in readings if value is not None), default=_zones(answers["zones"]))


def _thermal_status(lines: list[str]) -> int | None:
    """The system's status, or the skin's (mType 3) where that is higher: some makers slow down by
    the latter and leave the former at 0. Heat of the chip alone is ordinary under load."""
    of_system = integer(first_values(lines, ":").get("Thermal Status"))
    statuses = [status for kind, _, status in _hal(lines) if kind == 3]
    statuses += [of_system] if of_system is not None else []
    return max((status for status in statuses if 0 <= status < len(THERMAL_STATUS)), default=None)


_HAL_READING = re.compile(r"mValue=([^,\s]{1,30}), mType=([0-9]{1,3}),")
_STATUS = re.compile(r"mStatus=([0-9]{1,3})")


def _hal(lines: list[str]) -> Iterator[tuple[int, str, int]]:
    """(mType, mValue, mStatus) of the temperatures that the HAL reads now; those cached are of the
    last change of status."""
    current = False
    for line in lines:
        if not line.startswith("Temperature{"):
            current = line.startswith("Current temperatures")
        elif current and (match := _HAL_READING.search(line)) and (status := _STATUS.search(line)):
            yield int(match[2]), match[1], int(status[1])


def _zones(lines: Iterable[str]) -> float | None:
    zones: dict[str, dict[str, str]] = {}
    for name, value in split_pairs(lines, ":"):
        zone, _, kind = name.rpartition("/")
        zones.setdefault(zone, {})[kind] = value
    readings = [(zone.get("type", ""), _celsius(zone.get("temp"))) for zone in zones.values()]
    temperatures = [(kind, value) for kind, value in readings if value is not None]
    of_cpu = [
        value
        for kind, value in temperatures
        if re.search("cpu|soc|pkg|core|big|little", kind, re.I)
    ]
    return max(of_cpu or [value for _, value in temperatures], default=None)


def _celsius(text: str | None) -> float | None:
    """A zone's temperature: thousandths of a degree; some makers write tenths, or whole ones."""
    value = decimal(text)
    if value is None:
        return None
    return _plausible(value / (1000 if abs(value) >= 1000 else 10 if abs(value) >= 200 else 1))


def _plausible(celsius: float | None) -> float | None:
    """None for temperatures that no chip survives, and for 0, with which makers write "no
    sensor"."""
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


def _battery_of_android(lines: Iterable[str]) -> dict[str, Any]:
    """The battery by Android's dumpsys; empty where there is none."""
    fields = first_values(lines, ":")
    level, scale = integer(fields.get("level")), integer(fields.get("scale")) or 100
    percent = None if level is None else within(round(100 * level / scale), 100)
    if fields.get("present") == "false" or percent is None:
        return {}
    tenths = integer(fields.get("temperature"))
    names = {"AC": "AC", "USB": "USB", "Wireless": "wireless", "Dock": "dock"}
    sources = [name for source, name in names.items() if fields.get(f"{source} powered") == "true"]
    status = integer(fields.get("status"))  # BatteryManager: 1 unknown, 2 charging, 3 discharging,
    return {  # 4 not charging, 5 full
        "battery_percent": percent,
        "battery_temperature_c": None if tenths is None else _plausible(tenths / 10),
        "charging": bool(sources) if status in (None, 1) else status == 2,
        "charging_by": " + ".join(sources) or None,
    }


def _battery_of_kernel(lines: Iterable[str]) -> dict[str, Any]:
    """The battery by the kernel's power_supply class, as laptops have it."""
    supplies: dict[str, dict[str, str]] = {}
    for name, value in split_pairs(lines, ":"):
        supply, _, kind = name.rpartition("/")
        supplies.setdefault(supply, {})[kind] = value
    battery = next((supply for supply in supplies.values() if supply.get("type") == "Battery"), {})
    percent = within(integer(battery.get("capacity")), 100)
    if percent is None:
        return {}
    tenths = decimal(battery.get("temp"))
    sources = {
        {"Mains": "AC"}.get(supply["type"], supply["type"])
        for supply in supplies.values()
        if supply.get("online") == "1" and supply.get("type", "Battery") != "Battery"
    }
    return {
        "battery_percent": percent,
        "battery_temperature_c": None if tenths is None else _plausible(tenths / 10),
        "charging": battery.get("status") == "Charging",
        "charging_by": one_line(" + ".join(sorted(sources))),
    }
