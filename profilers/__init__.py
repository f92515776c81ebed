"""Where a candidate runs and what it costs: devices, runners, measuring, statistics."""

from importlib import import_module
from typing import Any

from onmetal.cache import Cache
from onmetal.errors import DeviceError, UsageError
from onmetal.profilers.local import Local
from onmetal.targets import Target, packages

TRANSPORTS = ("local",)


def connect(target: Target, address: str, cache: Cache) -> Local:
    """The device at the address, checked to be of the target's kind.

    Raises UsageError for an unknown transport, DeviceError where the device does not fit.
    """
    transport = address.partition(":")[0]
    if transport not in TRANSPORTS or address != transport:
        raise UsageError(
            f"--device {address}: unknown; this version knows: {', '.join(TRANSPORTS)}"
        )
    device = Local(cache)
    facts = device.facts()
    if facts.arch != target.arch:
        raise DeviceError(
            f"this machine is {facts.arch}; the target {target.name} needs {target.arch}"
        )
    if missing := [r.name for r in target.runtimes if r.name not in facts.runtimes]:
        package = packages(missing[0])[0]
        raise DeviceError(
            f"the runtime {missing[0]} is not installed here; `pip install {package}`"
        )
    return device


def runtime_module(kind: str, runtime: str) -> Any:
    """`profilers/run_<runtime>.py` or `profilers/profile_<runtime>.py`, by name."""
    return import_module(f"onmetal.profilers.{kind}_{runtime}")
