"""What is asked, settled and checked before anything long begins."""

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal import budget, costs
from onmetal.budget import Asked
from onmetal.calibration import label_forms, metric_table, metrics, sample_checks, samples
from onmetal.calibration.metric_table import Metric
from onmetal.deploy import model
from onmetal.deploy.metric_check import try_metric
from onmetal.deploy.propose.plan import Planned, calibrates, plan, without_samples
from onmetal.errors import DeviceError, ShapeError, UnsupportedError, UsageError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers.devices import Device, connect
from onmetal.profilers.devices.local import Local
from onmetal.progress import OnProgress
from onmetal.records import Candidate, DeviceFacts, Model
from onmetal.runtimes import check_options, install, shipped, spec
from onmetal.runtimes.fit import load_target
from onmetal.samples import Samples
from onmetal.targets import Target
from onmetal.texts.suggest import did_you_mean
from onmetal.texts.units import Share

RANDOM_SAMPLES = 8
FEW_SAMPLES = 100


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
    follow_links: bool = False
    """Whether links in folders of data may lead out of them."""
    golden: Literal["real", "random", "none"] = "real"
    """What the bundle's golden vectors are made of."""
    keep_paths: bool = False
    """Whether the bundle holds paths and the device's address as they are."""


class Clock:
    """The time limit, shared out: judging may take 60 % of it, measuring goes on until 85 %."""

    def __init__(self, limit_s: float | None) -> None:
        self.began, self.limit_s = time.monotonic(), limit_s

    def deadline(self, share: float) -> float | None:
        return None if self.limit_s is None else self.began + share * self.limit_s

    def left_s(self, share: float) -> float:
        end = self.deadline(share)
        return 86400.0 if end is None else end - time.monotonic()


class Task(Struct, frozen=True):
    """What is judged, on what: settled before anything long begins."""

    request: Request
    target: Target
    device: Device | None
    """None: nothing is timed; accuracy is judged on the host all the same."""
    host: Local
    facts: DeviceFacts
    """Of the device; without one, of the host."""
    models: list[Model]
    threads: int
    planned: list[Planned]
    data: dict[str, Samples]
    """Model path -> the samples that it is judged and timed with."""
    calibration: dict[str, Samples]
    """Model path -> the samples that it is calibrated with; empty where nothing is."""
    labelled: bool
    metric: Metric | None
    output: str | None
    warnings: list[str]

    def holds(self, candidate: Candidate) -> bool:
        """Whether the device can run the candidate: a board only what was flashed, if it says."""
        return self.device is None or self.device.holds in (None, digest(candidate))

    @property
    def elsewhere(self) -> Device | None:
        """The device, where its kernels are not this machine's."""
        return self.device if self.device and not self.device.traits.kernels_of_host else None

    @property
    def ships_on(self) -> Device:
        """Where the bundle's golden outputs come from: the device, where it can run any candidate
        and its kernels are its own; else this machine."""
        there = self.elsewhere
        return there if there and not there.traits.holds_one_model else self.host

    @property
    def one_model(self) -> bool:
        """Whether the device holds one model in its firmware, and runs no other."""
        return self.device is not None and self.device.traits.holds_one_model

    @property
    def counted(self) -> bool:
        """Whether the device counts instructions, and has no time."""
        return self.device is not None and self.device.traits.counts_instructions

    @property
    def timed(self) -> bool:
        """Whether there is a device whose timings decide."""
        return self.device is not None and self.device.traits.time_is_real

    @property
    def interleaved(self) -> bool:
        """Whether there is a device on which candidates are timed in turn."""
        return self.timed and not self.one_model

    @property
    def emulated(self) -> bool:
        """Whether there is a device whose timings mean nothing."""
        return self.device is not None and not self.device.traits.time_is_real

    @property
    def calibration_samples(self) -> int:
        return next((found.count for found in self.calibration.values()), 0)


def digest(candidate: Candidate) -> str:
    """SHA-256 of the file that a board is flashed with."""
    return caches.sha256(*shipped(candidate.runtime, candidate.files))


def prepare(
    request: Request, cache: Cache, progress: OnProgress = lambda done, total, what: None
) -> Task:
    """Read and check everything that the user gave; close the task's device afterwards."""
    target = load_target(request.target)
    check_options(target)
    if asked := metric_table.known(request.metric):
        _check_meant(request, asked)  # as early as the metric is known
    device = _connect(request, target, cache)
    try:
        return _prepared(request, target, device, cache, progress)
    except BaseException:
        if device:
            device.close()
        raise


def _prepared(
    request: Request, target: Target, device: Device | None, cache: Cache, progress: OnProgress
) -> Task:
    host = device if isinstance(device, Local) else Local(cache)
    facts = device.facts() if device else host.facts()
    check_runtimes(target, host)
    _check_budget(request, target, device, facts)
    warnings = [*target.warnings, *check_fit(device)]
    if device and not request.dry_run:
        device.take()
    shapes = model.parse_shapes(list(request.input_shapes))
    models = _read(request, target, shapes, cache, host)
    _check_same_task(models)
    request.budget.check_shares(models[0])
    threads = choose_threads(request.threads, target, facts)
    if device:
        device.pin(threads)
        facts = device.facts()
    planned = plan(
        target,
        models,
        facts,
        None if request.recipes is None else list(request.recipes),
        samples=bool(request.data or request.calibration_data),
        timed=device is not None,
    )
    data, calibration, said = _load_data(request, models, calibrates(planned), cache, progress)
    warnings += said
    labelled = request.data is not None
    if not calibration:
        planned = without_samples(
            planned,
            f"{data[str(models[0].path)].count} samples are too few to set some aside "
            "for calibration: give more, or --calibration-data",
        )
    output, metric = None, None
    if labelled:
        # Each must go with the labels and the metric; the first one's output is the one named.
        for entry in reversed(models):
            place = str(entry.path)
            output, metric, data[place], said = _metric(request, entry, data[place], cache)
            if metric.function is not None:
                try_metric(metric, entry, data[place], host, cache)
        warnings += said
        if metric:
            _check_meant(request, metric)
    elif request.metric or request.output:
        raise UsageError("--metric and --output need labelled data: give it with --data")
    warnings += [note for entry in models for note in entry.notes]
    warnings += _few(request, labelled, data[str(models[0].path)].count, metric)
    return Task(
        request,
        target,
        device,
        host,
        facts,
        models,
        threads,
        planned,
        data,
        calibration,
        labelled,
        metric,
        output,
        warnings,
    )


def _read(
    request: Request, target: Target, shapes: dict[str, tuple[int, ...]], cache: Cache, host: Local
) -> list[Model]:
    try:
        return [model.read(path, shapes, request.batch, cache, host) for path in request.models]
    except ShapeError as error:
        if not target.micro:
            raise
        raise UnsupportedError(
            f"{error}; TFLite Micro plans its memory once, for static shapes"
        ) from None


def choose_threads(asked: int | None, target: Target, facts: DeviceFacts) -> int:
    """As asked for, else the target's, else the physical cores; more than fit are refused."""
    if target.micro:
        if asked and asked > 1:
            raise UsageError(
                f"--threads {asked}: TFLite Micro computes in one thread; leave --threads out"
            )
        return 1
    here = facts.address == "local"
    threads = asked or target.threads or facts.cores
    if not here and not asked:
        threads = min(threads, facts.cores)
    most = 4 * max(facts.cores, os.cpu_count() or 1 if here else 1)
    if threads > most:
        raise UsageError(
            f"{threads} threads are too many for {'this' if here else 'a'} machine of "
            f"{facts.cores} cores; "
            f"--threads may be up to {most}"
        )
    return threads


def _connect(request: Request, target: Target, cache: Cache) -> Device | None:
    if request.device == "none":
        return None
    if request.device is None and target.device.required:
        raise DeviceError(
            f"the target {target.name} needs a device: name it with --device, or use --no-device "
            "to choose by size alone, unmeasured"
        )
    address = request.device or target.device.transport
    if address == "serial" and request.device is None:
        return None  # what need not be timed is not, where no board is named
    if address == "ssh":
        raise DeviceError(f"the target {target.name} needs a device: --device ssh://user@host")
    return connect.connect(target, address, cache)


def check_runtimes(target: Target, host: Local) -> None:
    """What runs on this machine whatever the device must be here."""
    for name in (entry.name for entry in target.runtimes if spec(entry.name).in_firmware):
        if name not in host.facts().runtimes:
            raise DeviceError(
                f"{spec(name).title} is not installed here, which counts memory and gives the "
                f"golden outputs; `{install(name)}`"
            )
    if target.npu and not find_spec("ethosu"):
        raise DeviceError("Vela is not installed; `pip install 'onmetal[embedded]'`")


def check_fit(device: Device | None) -> list[str]:
    """What speaks against timing on the device now. Raises DeviceError where it must not be."""
    if device is None:
        return []
    fitness = device.fitness()
    if fitness.refused:
        why = "; ".join(fitness.refused)
        raise DeviceError(f"{device.address} is not fit to be measured on: {why}")
    return [f"{device.address}: {said}" for said in fitness.flagged]


def _check_budget(
    request: Request, target: Target, device: Device | None, facts: DeviceFacts
) -> None:
    """Refuse what cannot be measured, before hours are spent."""
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
            asking = [*([cost.limit.option] if cost.limit else []), f"--minimize {cost.name}"]
            raise DeviceError(
                f"{cost.name} cannot be measured here: {why.removeprefix('no meter: ')}; leave "
                f"{' or '.join(asking)} out, or name a board's meter in its address"
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


def _check_same_task(models: list[Model]) -> None:
    stems = [entry.stem for entry in models]
    if double := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise UsageError(f"two models are named {double[0]!r}: rename one file")
    first = models[0]
    for other in models[1:]:
        for kind, mine, theirs in (
            ("inputs", first.inputs, other.inputs),
            ("outputs", first.outputs, other.outputs),
        ):
            names = sorted(t.name for t in mine), sorted(t.name for t in theirs)
            single = len(mine) == len(theirs) == 1
            if names[0] != names[1] and not single:
                raise UsageError(
                    f"{other.path} and {first.path} cannot be compared: their {kind} differ "
                    f"({', '.join(names[1])} against {', '.join(names[0])})"
                )


def _load_data(
    request: Request, models: list[Model], calibrates: bool, cache: Cache, progress: OnProgress
) -> tuple[dict[str, Samples], dict[str, Samples], list[str]]:
    """-> by model, samples to judge with and to calibrate with; warnings."""
    data: dict[str, Samples] = {}
    calibration: dict[str, Samples] = {}
    warnings: list[str] = []
    for entry in models:
        place = str(entry.path)
        given, own = _loaded(request, entry, cache, progress)
        notes = [*(own.warnings if own else ()), *(given.warnings if given else ())]
        if own:
            data[place] = given or own
            if calibrates:
                calibration[place] = own
            if given and calibrates:
                notes += _shared(
                    sample_checks.hashes(given, entry, cache),
                    sample_checks.hashes(own, entry, cache),
                    "in --calibration-data too",
                )
        elif given and calibrates and (parts := samples.split(given)):
            calibration[place], data[place] = parts
            hashes = sample_checks.hashes(given, entry, cache)
            notes += _shared(
                hashes[data[place].places()],
                hashes[calibration[place].places()],
                "in the part of DATA that is used for calibration, too",
            )
        else:
            data[place] = given or samples.random(entry, cache, RANDOM_SAMPLES)
        if entry is models[0]:
            warnings += notes
    if not request.data:
        what = "the calibration data" if request.calibration_data else "random inputs"
        warnings.append(
            f"no labelled data: no task metric was measured; outputs on {what} are compared "
            "with the original model's"
        )
    return data, calibration, warnings


def _loaded(
    request: Request, entry: Model, cache: Cache, progress: OnProgress
) -> tuple[Samples | None, Samples | None]:
    """What --data and --calibration-data hold for a model."""
    given, own = None, None
    if request.calibration_data:
        own = samples.load(
            request.calibration_data,
            entry,
            cache,
            option="--calibration-data",
            labelled=False,
            follow_links=request.follow_links,
            progress=progress,
        )
    if request.data:
        tensor = entry.output(_output(request, entry))
        given = samples.load(
            request.data,
            entry,
            cache,
            option="--data",
            labelled=True,
            follow_links=request.follow_links,
            scores=label_forms.scores(tensor, entry.sample_shape(tensor)),
            progress=progress,
        )
    return given, own


def _shared(judging: np.ndarray, calibrating: np.ndarray, where: str) -> list[str]:
    both = int(np.isin(judging, calibrating).sum())
    if not both:
        return []
    return [
        f"{both} of the evaluation samples are {where}; the accuracy of calibrated candidates will "
        "look better than it is"
    ]


def _output(request: Request, entry: Model) -> str:
    """The output that is judged."""
    names = [tensor.name for tensor in entry.outputs]
    output = request.output or names[0]
    if entry.path != request.models[0] and len(names) == 1:
        output = names[0]  # competitors of one output may call it differently
    if output not in names:
        raise UsageError(
            f"--output {output}: no such output{did_you_mean(output, names)}; the model has: "
            f"{', '.join(names)}"
        )
    return output


def _metric(
    request: Request, entry: Model, data: Samples, cache: Cache
) -> tuple[str, Metric, Samples, list[str]]:
    """-> the output judged, by which metric, and the samples with labels as it takes them; what is
    to be said of the labels."""
    output = _output(request, entry)
    tensor = entry.output(output)
    shape = entry.sample_shape(tensor)
    given = replace(data, part="all").label_array()
    labels, said = label_forms.class_labels(request.metric, tensor, shape, given)
    if labels is not given:
        data = samples.relabelled(data, labels, cache)
    metric = metrics.choose(request.metric, tensor, shape, data.label_array())
    return output, metric, data, [f"{data.source}: {text}" for text in said]


def _check_meant(request: Request, metric: Metric) -> None:
    """Custom metrics have units of their own, in which any number may be meant."""
    if metric.proportion and metric.function is None:
        request.budget.check_meant(metric.name)


def _few(request: Request, labelled: bool, count: int, metric: Metric | None) -> list[str]:
    drop = request.budget.max_accuracy_drop
    if not labelled or metric is None:
        return []
    if metric.proportion and isinstance(drop, Share) and 0 < drop.value < 1 / count:
        return [
            f"{count} samples cannot show a drop of {drop.value:.2%}: a single one is worth "
            f"{1 / count:.2%}; give more data"
        ]
    if count < FEW_SAMPLES:
        return [f"{count} samples are few: the interval of the accuracy will be wide"]
    return []
