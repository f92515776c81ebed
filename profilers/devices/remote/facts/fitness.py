"""Whether a device is fit to be measured on now, and what limits its measurements."""

from collections.abc import Iterator, Mapping
from typing import Any

from onmetal.profilers.devices.remote.facts.records import Facts
from onmetal.profilers.devices.remote.facts.state import THERMAL_STATUS

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
"""Share of the cores: with more than half of them busy, threads of a model wait for other work."""
CLOCK_CAP = 0.95
"""Share of the hardware's highest clock: steps and rounding of drivers explain no lower one."""
_MANAGED = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
"""Drivers whose "powersave" is the ordinary governor that follows the load: the CPU itself picks
the clock (https://docs.kernel.org/admin-guide/pm/intel_pstate.html)."""


def unfit(facts: Facts, needed_bytes: int) -> tuple[list[str], list[str]]:
    """(why it cannot be measured on now, what to bear in mind), each saying what can be done.

    `needed_bytes` is what will be written to the folder asked for.
    """
    return list(_reasons_against(facts.state, needed_bytes)), list(_cautions(facts))


def _reasons_against(state: Mapping[str, Any], needed_bytes: int) -> Iterator[str]:
    free = state.get("free_bytes")
    if free is not None and free < needed_bytes:
        yield (
            f"{_size_text(free)} of storage are free where {_size_text(needed_bytes)} are needed: "
            "delete something on the device or choose another folder"
        )
    available = state.get("available_bytes")
    if available is not None and available < MIN_AVAILABLE_BYTES:
        yield (
            f"{_size_text(available)} of memory are available, less than "
            f"{_size_text(MIN_AVAILABLE_BYTES)}: close applications or restart the device"
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
    source = state.get("charging_by")
    if state.get("charging"):
        by_source = f" by {source}" if source else ""
        yield f"charging{by_source}: it warms up and no energy can be measured; unplug it for that"
    elif source:
        yield f"powered by {source}: no energy can be measured from its battery; unplug it for that"
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


def _size_text(size_bytes: int) -> str:
    if size_bytes >= 1_000_000_000:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.1f} MB"
