"""The devices that an address may name, and whether one fits a target."""

import re

from onmetal.errors import DeviceError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices import Device
from onmetal.profilers.devices.board import address as boards
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import adb, ssh
from onmetal.profilers.devices.remote.device import Remote
from onmetal.targets import Target
from onmetal.texts.suggest import did_you_mean

TRANSPORTS = (
    "local",
    "adb[:SERIAL]",
    "ssh://[user@]host[:port][?python=PATH]",
    boards.SERIAL,
    boards.SOCKET,
    boards.QEMU,
)


def connect(target: Target, address: str, cache: Cache) -> Device:
    """The device at the address, checked to be of the target's kind; `close` it.

    Raises UsageError for an unknown transport, DeviceError where the device does not fit.
    """
    device = reach(address, cache)
    try:
        _check(target, device)
    except BaseException:
        device.close()
        raise
    return device


def is_board(address: str) -> bool:
    """Whether it is a microcontroller's. Raises as `check_address` where it is malformed."""
    return boards.place(address) is not None


def check_address(address: str) -> None:
    """Raises UsageError where no transport has such addresses."""
    if is_board(address):
        return
    if address != "local" and not re.match(r"adb(:.|$)|ssh://.", address):
        transports = ", ".join(TRANSPORTS)
        likely = did_you_mean(address, ("local", "none", "adb"))
        raise UsageError(f"--device {address}: unknown{likely}; this version knows: {transports}")


def reach(address: str, cache: Cache) -> Device:
    """The device at the address, not checked against a target; `close` it. Raises as `connect`."""
    check_address(address)
    if address == "local":
        return Local(cache)
    if address.startswith("adb"):
        return Remote(adb.choose(address[len("adb:") :]), cache)
    if (place := boards.place(address)) is not None:
        return boards.reach(place, cache)
    return Remote(ssh.choose(address), cache)


def _check(target: Target, device: Device) -> None:
    facts = device.facts()
    where = "this machine" if device.address == Local.address else device.address
    if target.arch not in (facts.arch, "any"):
        abis = ", ".join(facts.more.get("abis", []))
        raise DeviceError(
            f"{where} is {facts.arch}{f' ({abis})' if abis else ''}; the target {target.name} "
            f"needs {target.arch}"
        )
    if missing := [r.name for r in target.runtimes if r.name not in facts.runtimes]:
        raise DeviceError(f"the runtime {missing[0]} {device.lacks(missing[0])}")
