"""The energy of an inference, by a device's meter: raw windows, and what they come to."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onmetal.errors import DeviceError
from onmetal.profilers.devices import Device
from onmetal.profilers.meters import Meter
from onmetal.records import Artifact, Energy, Figure, Window

WINDOWS = 3
IDLE_S = 1.0
LIMIT_S = 3600.0


def measure(device: Device, artifact: Artifact, feeds: Path, seconds: float) -> Energy:
    """The energy of inferences, one after another, in windows of about `seconds`, or as long as the
    meter needs. Raises DeviceError where there is no meter, or no more is taken than while idle."""
    meter = device.meter
    if meter is None:
        raise DeviceError(device.no_meter)
    seconds = max(seconds, meter.least_window_s)
    limit_s = LIMIT_S + 3 * seconds
    with device.worker(artifact.runtime) as worker:
        worker.open(artifact, timeout_s=LIMIT_S)
        worker.keep_feeds(feeds, timeout_s=LIMIT_S)
        idle_mw = meter.idle_mw(IDLE_S)
        count = worker.pace(seconds, timeout_s=limit_s)
        windows = []
        for _ in range(WINDOWS):
            meter.begin()
            with contextlib.ExitStack() as failing:
                failing.callback(meter.abandon)
                worker.burst(count, timeout_s=limit_s)
                failing.pop_all()
            windows.append(meter.end(count))
    _check(windows, idle_mw, meter)
    return Energy(tuple(windows), idle_mw, meter.name, meter.covers)


def _check(windows: Sequence[Window], idle_mw: float, meter: Meter) -> None:
    """Raises DeviceError where computing takes no more than the meter can tell from waiting."""
    for window in windows:
        power_mw = window.energy_mj / window.seconds
        least_mw = meter.least_mw(power_mw)
        if power_mw <= idle_mw or power_mw - idle_mw < least_mw:
            raise DeviceError(
                f"{meter.covers} takes {power_mw:.4g} mW while it computes and {idle_mw:.4g} mW "
                f"while it waits; the meter cannot distinguish less than {least_mw:.4g} mW. "
                "See that nothing else runs and that it sleeps while it waits, or measure longer "
                "windows"
            )


def figure(windows: Energy) -> Figure:
    """The median of the windows."""
    shortest_s = min(window.seconds for window in windows.windows)
    return Figure(
        value=float(np.median(windows.each_mj)),
        ci95=None,
        samples=sum(window.samples for window in windows.windows),
        basis="measured",
        how=f"{windows.meter}, median of {len(windows.windows)} windows of {shortest_s:.3g} s or "
        f"more, of {windows.covers}; what it takes while it waits ({windows.idle_mw:.4g} mW) is "
        f"subtracted (with it: {float(np.median(windows.total_mj)):.4g} mJ)",
    )
