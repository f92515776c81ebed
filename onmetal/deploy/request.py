"""The request of a deployment, and the checks of it before any long step begins."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from msgspec import Struct

from onmetal import budget, costs
from onmetal.budget import Asked
from onmetal.calibration.metric_table import Metric
from onmetal.errors import DeviceError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices import Device, connect
from onmetal.profilers.devices.local import Local
from onmetal.records import DeviceFacts
from onmetal.runtimes import install, spec
from onmetal.targets import Target


class Request(Struct, frozen=True):
    """Everything that was asked for on the command line."""

    models: tuple[Path, ...]
    target: str
    data: str | None = None
    calibration_data: str | None = None
    metric: str | None = None
    output: str | None = None
    device: str | None = None
    budget: Asked = Asked()
    budget_given: tuple[str, ...] = ()
    """The budget options that the user gave, as against the default ones."""
    minimize: str = costs.LATENCY.name
    """The name of a row of the table of costs."""
    recipes: tuple[str, ...] | None = None
    batch: int | None = None
    threads: int | None = None
    input_shapes: tuple[str, ...] = ()
    out: Path | None = None
    force: bool = False
    time_limit_s: float | None = None
    mode: Literal["quick", "default", "thorough"] = "default"
    dry_run: bool = False
    cut_at: tuple[str, ...] = ()
    """Names of tensors or operators that become the models' outputs."""
    follow_links: bool = False
    """Whether links in folders of data may lead out of them."""
    trust: bool = False
    """Whether code that a model file holds may be run."""
    golden: Literal["real", "random", "none"] = "real"
    """What the bundle's golden vectors are made of."""
    keep_paths: bool = False
    """Whether the bundle holds paths and the device's address as they are."""
    notes: tuple[str, ...] = ()
    """How the model became a file, where it was an object in memory."""


class ConversionRequest(Struct, frozen=True):
    """What `deploy convert` was asked for on the command line."""

    model: Path
    file: Path
    calibration_data: str | None = None
    recipe: str | None = None
    target: str | None = None
    batch: int | None = None
    input_shapes: tuple[str, ...] = ()
    cut_at: tuple[str, ...] = ()
    force: bool = False
    follow_links: bool = False
    trust: bool = False


def choose_threads(requested: int | None, target: Target, facts: DeviceFacts) -> int:
    """The number of threads: the requested one, else the target's, else the physical cores. Raises
    UsageError where it is too large."""
    if target.micro:
        if requested and requested > 1:
            raise UsageError(
                f"--threads {requested}: TFLite Micro computes in one thread; leave --threads out"
            )
        return 1
    is_local = facts.address == "local"
    threads = requested or target.threads or facts.cores
    if not is_local and not requested:
        threads = min(threads, facts.cores)
    most_threads = 4 * max(facts.cores, os.cpu_count() or 1 if is_local else 1)
    if threads > most_threads:
        raise UsageError(
            f"{threads} threads are too many for {'this' if is_local else 'a'} machine of "
            f"{facts.cores} cores; "
            f"--threads may be up to {most_threads}"
        )
    return threads


def connect_device(request: Request, target: Target, cache: Cache) -> Device | None:
    if request.device == "none":
        return None
    if request.device is None and target.device.required:
        raise DeviceError(
            f"the target {target.name} needs a device: name it with --device, or use --no-device "
            "to choose by size alone, unmeasured"
        )
    address = request.device or target.device.transport
    if address == "serial" and request.device is None:
        return None  # no board is named, and the target does not require one
    if address == "ssh":
        raise DeviceError(f"the target {target.name} needs a device: --device ssh://user@host")
    return connect.connect(target, address, cache)


def check_runtimes(target: Target, host: Local) -> None:
    """Raises DeviceError where a tool is missing that must run on this machine, whatever the
    device."""
    for name in (entry.name for entry in target.runtimes if spec(entry.name).in_firmware):
        if name not in host.facts().runtimes:
            raise DeviceError(
                f"{spec(name).title} is not installed here, which counts memory and gives the "
                f"golden outputs; `{install(name)}`"
            )
    if target.npu and not find_spec("ethosu"):
        raise DeviceError("Vela is not installed; `pip install 'onmetal[embedded]'`")


def check_fit(device: Device | None) -> list[str]:
    """Warnings about the state of the device that disturb timings. Raises DeviceError where it is
    not fit to be measured on."""
    if device is None:
        return []
    fitness = device.fitness()
    if fitness.refused:
        why = "; ".join(fitness.refused)
        raise DeviceError(f"{device.address} is not fit to be measured on: {why}")
    return [f"{device.address}: {problem}" for problem in fitness.flagged]


def check_budget(
    request: Request, target: Target, device: Device | None, facts: DeviceFacts
) -> None:
    """Raises DeviceError or UsageError where a limit or goal cannot be measured here."""
    limited = [cost for cost, _ in costs.LIMITS if cost.name in request.budget.limits]
    timed = {cost: limit.option for cost, limit in costs.LIMITS if cost.needs == "timed device"}
    options = " and ".join(timed.values())
    limits_timed = any(c in timed and not (c.known_on_chips and target.micro) for c in limited)
    if device and facts.emulated and limits_timed:
        raise DeviceError(
            f"{options} cannot be judged on an emulated device, whose timings and memory are not "
            "the hardware's: leave them out, or measure on a real one"
        )
    for cost in costs.MEASURED if device is None or device.meter is None else ():
        if cost.needs == "meter" and (cost in limited or cost.name == request.minimize):
            why = device.no_meter if device else "there is no device"
            metered_options = [
                *([cost.limit.option] if cost.limit else []),
                f"--minimize {cost.name}",
            ]
            raise DeviceError(
                f"{cost.name} cannot be measured here: {why}; leave "
                f"{' or '.join(metered_options)} out, or name a board's meter in its address"
            )
    if device is None and limits_timed:
        raise DeviceError(
            f"{options} need a device to be measured on: name one with --device"
            + (", and leave --no-device out" if request.device == "none" else "")
        )
    if request.data is not None:
        return
    for option, value in (
        (budget.DROP, request.budget.max_accuracy_drop),
        (budget.LEAST, request.budget.min_accuracy),
    ):
        if option in request.budget_given and value is not None:
            raise UsageError(f"{option} needs labelled data: give it with --data")
    if request.minimize == costs.DROP.name:
        raise UsageError("--minimize accuracy-drop needs labelled data: give it with --data")
    if len(request.models) > 1 and request.budget.max_accuracy_drop is not None:
        raise UsageError(
            "several models are compared by accuracy too: give labelled data with --data, "
            "or switch the accuracy budget off with --max-accuracy-drop none"
        )


def check_meant(request: Request, metric: Metric) -> None:
    """Check the limits of accuracy against the metric's range. Custom metrics are left out: any
    number may be meant in their units."""
    if metric.proportion and metric.function is None:
        request.budget.check_meant(metric.name)
