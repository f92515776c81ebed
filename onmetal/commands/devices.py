"""`deploy devices`: the devices that are attached, whether they are ready, and what each lacks."""

from collections.abc import Sequence
from typing import Any

from onmetal import runtimes, targets
from onmetal.errors import DeviceError
from onmetal.files.cache import Cache
from onmetal.profilers.devices import connect
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import adb, native_runner
from onmetal.records import DeviceFacts, plain
from onmetal.reports import of_trials
from onmetal.runtimes.fit import load_target
from onmetal.targets import Target
from onmetal.texts import units

Shown = tuple[dict[str, Any], list[str]]


def show(addresses: list[str]) -> Shown:
    """This machine, what adb sees, and the addresses given (boards over ssh are in no list)."""
    for address in addresses:
        connect.check_address(address)
    with Cache() as cache:
        entries = [_local(cache), *_by_adb(cache)]
        for address in dict.fromkeys(addresses):
            listed_addresses = {entry["address"] for entry in entries}
            if address not in listed_addresses | {"adb"}:  # all phones are in the list already
                entries.append(_reached(address, cache))
    lines = [line for entry in entries for line in _lines(entry)]
    return {"schema": 1, "devices": entries}, lines


def _local(cache: Cache) -> dict[str, Any]:
    device = Local(cache)
    facts = device.facts()
    lacks = [
        f"the runtime {name}: {runtimes.install(name)}"
        for name in runtimes.RUNTIMES
        if name not in facts.runtimes
    ]
    if device.meter is None:
        lacks.append(f"a power meter: {device.no_meter.removeprefix('no meter: ')}")
    if facts.state.get("virtual_machine"):
        lacks.append("a machine of its own: it is virtual, others on its host disturb timings")
    if facts.state.get("governor") not in (None, "performance"):
        lacks.append(
            f"a steady clock: the governor is {facts.state['governor']}; "
            "`cpupower frequency-set -g performance` makes timings steadier"
        )
    return _entry(facts, bool(facts.runtimes), None, lacks)


def _by_adb(cache: Cache) -> list[dict[str, Any]]:
    """The entries of the phones that adb lists; a single entry with the reason where adb is missing
    or fails, or where no phone is attached."""
    try:
        program = adb.client()
        if program is None:
            return [_absent("adb", f"there is no adb program: {adb.INSTALL}")]
        phones = adb.attached(program)
    except DeviceError as error:
        return [_absent("adb", str(error))]
    if not phones:
        return [
            _absent(
                "adb",
                "no phone is attached: plug one in and switch USB debugging on in its developer "
                "options, or `adb connect HOST:PORT`",
            )
        ]
    return [
        {**_absent(f"adb:{phone.serial}", phone.trouble), "model": phone.model}
        if phone.trouble
        else _reached(f"adb:{phone.serial}", cache)
        for phone in phones
    ]


def _reached(address: str, cache: Cache) -> dict[str, Any]:
    try:
        device = connect.reach(address, cache)
    except DeviceError as error:
        return _absent(address, str(error))
    try:
        facts = device.facts()
        fitness = device.fitness()
        lacks = []
        if (
            facts.arch == "aarch64"
            and native_runner.find(cache) is None
            and native_runner.compiler() is None
        ):
            lacks.append(
                "onmetal's own runner, and a compiler to build it with: "
                "`apt install gcc-aarch64-linux-gnu` or `pip install ziglang`"
            )
        if not facts.more.get("meters"):
            lacks.append("a power meter that could be read")
        ready = not fitness.refused and bool(facts.runtimes)
        return _entry(facts, ready, "; ".join(fitness.refused), lacks, fitness.flagged)
    finally:
        device.close()


def _entry(
    facts: DeviceFacts, ready: bool, why: str | None, lacks: list[str], warnings: Sequence[str] = ()
) -> dict[str, Any]:
    fitting_targets = [t.name for t in map(load_target, targets.names()) if _fits(t, facts)]
    if not fitting_targets:
        why = why or f"no target is for {facts.arch}"
    return {
        **plain(of_trials.device(facts)),
        "ready": ready and bool(fitting_targets),
        "why": why or None,
        "targets": fitting_targets,
        "lacks": lacks,
        "warnings": list(warnings),
    }


REACHED = {"ssh": ("ssh", "local"), "socket": ("serial",), "qemu": ("serial",)}
"""Transport of an address -> the transports of the targets that it may reach."""


def _fits(target: Target, facts: DeviceFacts) -> bool:
    """Whether the target is for such a device: a machine over ssh may be any that runs Linux."""
    transport = facts.address.partition(":")[0]
    reached = REACHED.get(transport, (transport,))
    return target.arch == facts.arch and target.device.transport in reached


def _absent(address: str, why: str | None) -> dict[str, Any]:
    return {
        "address": address,
        "ready": False,
        "why": why,
        "targets": [],
        "lacks": [],
        "warnings": [],
    }


def _lines(entry: dict[str, Any]) -> list[str]:
    state = "ready" if entry["ready"] else "not ready"
    lines = [f"{entry['address']}  {state}" + (f": {entry['why']}" if entry["why"] else "")]
    if "arch" not in entry:
        return lines
    model_text = " ".join(word for word in (entry.get("model"), entry.get("soc")) if word)
    if model_text:
        lines.append(f"  {model_text}")
    memory = units.size(entry["memory_bytes"]) if entry["memory_bytes"] else "memory not known"
    lines.append(
        f"  {entry['cpu']}, {entry['cores']} cores, {memory}, {entry['os']}, {entry['arch']}"
    )
    for cluster in entry.get("clusters", []):
        clock = f" at up to {cluster['max_khz'] / 1000:.0f} MHz" if cluster["max_khz"] else ""
        lines.append(f"  cores {', '.join(map(str, cluster['cpus']))}{clock}")
    state = _state(entry["state"])
    lines += [f"  {state}"] if state else []
    lines.append("  runtimes: " + (", ".join(f"{n} {v}" for n, v in entry["runtimes"].items())))
    if entry.get("meters"):
        note = "" if connect.is_board(entry["address"]) else " (not read by this version)"
        lines.append(f"  meters seen{note}: {', '.join(entry['meters'])}")
    lines.append(f"  targets: {', '.join(entry['targets']) or 'none'}")
    lines += [f"  lacks {lack}" for lack in entry["lacks"]]
    return lines + [f"  note: {warning}" for warning in entry["warnings"]]


def _state(state: dict[str, Any]) -> str:
    parts = []
    if "battery_percent" in state:
        charging = ", charging" if state.get("charging") else ""
        parts.append(f"battery {state['battery_percent']:.0f} %{charging}")
    for name, prefix in (("temperature_c", ""), ("battery_temperature_c", "battery ")):
        if name in state:
            parts.append(f"{prefix}{state[name]:.0f} °C")
    if "thermal_status" in state:
        parts.append(f"thermal status {state['thermal_status']}")
    return ", ".join(parts)
