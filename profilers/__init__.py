"""Where a candidate runs and what it costs: devices, runners, measuring, statistics."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onmetal.profilers.devices import Device, check_address, connect, is_board, reach

__all__ = ["Device", "check_address", "connect", "is_board", "reach", "runtime_module"]


def __getattr__(name: str) -> Any:
    """What `devices` has is imported when it is asked for: worker processes, of which a run starts
    dozens, ask for none of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("onmetal.profilers.devices"), name)


def runtime_module(kind: str, runtime: str) -> Any:
    """`profilers/run_<runtime>.py` or `profilers/profile_<runtime>.py`, by name."""
    return import_module(f"onmetal.profilers.{kind}_{runtime}")
