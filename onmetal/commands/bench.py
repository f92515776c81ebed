"""The commands targets, runner, verify and bench. Each function returns the document of `--json`
and the lines for people, or a report of both."""

import contextlib
import shlex
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from msgspec.structs import replace

from onmetal import runtimes, targets
from onmetal.bundles import manifest
from onmetal.bundles import verify as verifying
from onmetal.calibration import samples, steps
from onmetal.calibration.calibrated import CalibratedModel
from onmetal.commands.artifacts import from_bundle, from_own
from onmetal.deploy import agree, model
from onmetal.deploy.convert import convert
from onmetal.deploy.measure import with_figures
from onmetal.deploy.propose.plan import candidate_name
from onmetal.deploy.request import check_fit, choose_threads
from onmetal.deploy.vectors import keep_raw
from onmetal.deploy.ways import to_runtime
from onmetal.errors import DeviceError, UnsupportedError, UsageError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from onmetal.profilers import benchmark_model, intervals, measure
from onmetal.profilers.devices import Device, connect
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.remote import native_runner
from onmetal.progress import Progress
from onmetal.records import Candidate, DeviceFacts, Model, Trial, plain, shown
from onmetal.reports import of_trials
from onmetal.reports.record import Bench, BenchCandidate, Counted, CountedBench, Opinion, Report
from onmetal.runtimes import check_options, spec
from onmetal.runtimes.fit import load_target
from onmetal.targets import EXACT, Recipe, Target, inline
from onmetal.texts import units

Shown = tuple[dict[str, Any], list[str]]
FEED_BYTES = 512 << 20
"""The most bytes of random inputs of one inference."""


def show_targets(name: str | None) -> Shown:
    if name:
        target = load_target(name)
        check_options(target)
        return _target_document(target), _target_lines(target)
    all_targets = [load_target(known) for known in targets.names()]
    document = {
        "schema": 1,
        "targets": [{"name": t.name, "description": t.description} for t in all_targets],
    }
    width = max(len(target.name) for target in all_targets)
    return document, [f"{t.name:{width}}  {t.description}" for t in all_targets]


def _target_document(target: Target) -> dict[str, Any]:
    recipes = [
        {**plain(recipe), "method": inline.method(recipe), "split": recipe.does("split")}
        for recipe in target.recipes
    ]
    return {"schema": 1, **plain(target), "recipes": recipes}


def _target_lines(target: Target) -> list[str]:
    lines = [f"{target.name}: {target.description}", f"architecture {target.arch}"]
    lines.append(f"device: {target.device.transport}")
    threads = 1 if target.micro else target.threads or "the physical cores"
    lines.append(f"threads: {threads}")
    for runtime in target.runtimes:
        own = f", options {runtime.options}" if runtime.options else ""
        lines.append(f"runtime {runtime.name}{own}")
    for recipe in target.recipes:
        needs = " or ".join(recipe.requires_any_flag)
        lines.append(
            f"recipe {recipe.name}: computes in {recipe.compute} on {', '.join(recipe.runtimes)}"
            + (f", needs the CPU flag {needs}" if needs else "")
        )
    if chip := target.chip:
        lines.append(
            f"chip: {chip.core} at {chip.clock_mhz} MHz, flash {chip.flash_kib} KiB, RAM "
            f"{chip.ram_kib} KiB, of which the application has {chip.application_flash_kib} and "
            f"{chip.application_ram_kib} KiB"
        )
    if npu := target.npu:
        lines.append(f"npu: {npu.accelerator}, {npu.system_config}, {npu.memory_mode} (Vela)")
    for name, limit in plain(target.limits).items():
        if limit:
            lines.append(f"limit {name} {limit}")
    return [*lines, *(f"warning: {warning}" for warning in target.warnings)]


def build_runner() -> Shown:
    """The native runner for ARM devices, built here where it is missing."""
    with Cache() as cache:
        already_built = native_runner.find(cache) is not None
        folder = native_runner.build(cache)
        size = sum(file.stat().st_size for file in folder.iterdir())
        document = {
            "schema": 1,
            "folder": str(folder),
            "arch": "aarch64",
            "runtimes": native_runner.versions(),
            "size_bytes": size,
            "files": {file.name: caches.sha256(file) for file in sorted(folder.iterdir())},
        }
    known = ", ".join(f"{name} {number}" for name, number in native_runner.versions().items())
    state = "was built already" if already_built else "built"
    return document, [f"{folder}: {state}, {units.size(size)}, with {known}"]


def verify(folder: Path, address: str, *, run: bool) -> Shown:
    with Cache() as cache, cache.scratch() as scratch:
        connect.check_address(address)
        verifying.check_folder(folder)
        device = connect.reach(address, cache)
        try:
            if run and address != Local.address:
                raise UsageError("--run executes run.py on this machine: leave --device out")
            verified = verifying.verify(folder, Local(cache), device, run=run, scratch=scratch)
        finally:
            device.close(keep=True)
    checks = [name for name, result in verified.checks.items() if result != verifying.NO_VECTORS]
    lines = [f"{shown(folder)}: verified ({', '.join(checks)})"]
    if verifying.NO_VECTORS in verified.checks.values():
        lines.append("it holds no golden vectors: what its model gives was not checked")
    lines.append(
        "known to be unchanged, and no more: README.md and whatever it holds of sources, build "
        "files and measurements; read them before you follow or build them"
    )
    return plain(verified), lines


# --- bench


def bench(
    paths: list[Path],
    target_name: str | None,
    address: str,
    threads: int | None,
    batch: int | None,
    shapes: list[str],
    mode: Literal["quick", "default", "thorough"],
    seed: int,
    second_opinion: Path | None,
    progress: Progress,
) -> Report[Bench] | Report[CountedBench]:
    """Time artifacts against each other; the first is the baseline.

    `second_opinion`: a copy of Google's benchmark_model, run on .tflite artifacts besides.
    """
    default = targets.default_for("serial" if connect.is_board(address) else "local")
    target = load_target(target_name or default)
    check_options(target)
    if second_opinion:
        benchmark_model.check(second_opinion)
    with Cache() as cache, cache.scratch() as scratch, contextlib.ExitStack() as stack:
        device = connect.connect(target, address, cache)
        stack.callback(lambda: device.close(keep=True))
        facts = device.facts()
        threads = choose_threads(threads, target, facts)
        flagged = [*target.warnings, *check_fit(device)]
        device.take()
        device.pin(threads)
        for said in flagged:
            progress.say(f"warning: {said}")
        host = Local(cache)
        progress.step("reading and converting")
        candidates: list[Candidate] = []
        failed: list[Trial] = []
        for path in paths:
            converted, refused = _candidates(
                path, target, threads, batch, shapes, host, cache, scratch
            )
            candidates += converted
            failed += refused
        candidates = _unique(candidates)
        progress.step("measuring")
        feeds = _random_feeds(candidates, scratch, cache)
        if device.traits.holds_one_model:
            _check_held(device, host, candidates, feeds)
        if device.traits.counts_instructions:
            return _counted(device, candidates, feeds, facts)
        modes = measure.BOARD if device.traits.holds_one_model else measure.MODES
        outcome = measure.measure(
            device, candidates, feeds.__getitem__, modes[mode], progress, seed=seed
        )
        trials = [_trial(c, outcome, candidates[0].name, facts.emulated) for c in candidates]
        if device.traits.holds_one_model:
            flashed = "the model is part of the firmware, and is not loaded"
            trials = [trial.without_figure("load_ms", flashed) for trial in trials]
        trials += failed
        opinions = _opinions(device, candidates, second_opinion, threads)
        raw = keep_raw(trials, cache)
    if not outcome.rounds:
        said = "; ".join(f"{name}: {why}" for name, why in outcome.failures.items())
        raise DeviceError(f"nothing could be measured: {said}")
    document = Bench(
        schema=1,
        mode=mode,
        seed=seed,
        device=of_trials.device(facts),
        warnings=flagged,
        threads=threads,
        baseline=candidates[0].name,
        raw_samples=str(raw) if raw else None,
        candidates=[
            BenchCandidate(**of_trials.fields(trial), benchmark_model=opinions.get(trial.name))
            for trial in trials
        ],
    )
    return Report(document)


def _check_held(board: Device, host: Local, candidates: list[Candidate], feeds: "_Feeds") -> None:
    """Raises DeviceError where firmware that does not say which model it holds gives other outputs
    than a candidate."""
    for candidate in candidates if board.holds is None else ():
        comparison = agree.agreement(host, board, candidate, feeds[candidate], floats=False)
        if comparison.largest_difference > manifest.TOLERANCE["i8"] * comparison.peak:
            raise agree.wrong_model(board.address, candidate.name, comparison)


def _counted(
    device: Device, candidates: list[Candidate], feeds: "_Feeds", facts: DeviceFacts
) -> Report[CountedBench]:
    """The report of an emulator, which counts instructions and measures no time."""
    profiles = [Counted(c.name, measure.profile(device, c, feeds[c])) for c in candidates]
    return Report(CountedBench(1, of_trials.device(facts), profiles))


def _opinions(
    device: Device, candidates: list[Candidate], program: Path | None, threads: int
) -> dict[str, Opinion]:
    """Name of a candidate -> the figures of benchmark_model, or its error, for .tflite
    artifacts."""
    if program is None:
        return {}
    opinions: dict[str, Opinion] = {}
    for candidate in candidates:
        if spec(candidate.runtime).benchmark_model:
            try:
                figures = benchmark_model.run(device, program, candidate.files[0], threads)
                opinions[candidate.name] = of_trials.typed(figures, Opinion)
            except DeviceError as error:
                opinions[candidate.name] = Opinion(error=str(error))
    return opinions


def _candidates(
    path: Path,
    target: Target,
    threads: int,
    batch: int | None,
    shapes: list[str],
    device: Local,
    cache: Cache,
    scratch: Path,
) -> tuple[list[Candidate], list[Trial]]:
    """-> the candidates of a path; the failed trials of runtimes that cannot run it, with the
    reasons."""
    if path.is_dir():
        return [from_bundle(path, device, scratch)], []
    if name := runtimes.own(path):
        return [from_own(path, name, threads, device)], []
    loaded_model = model.read(path, model.parse_shapes(shapes), batch, cache, device)
    recipe = _as_it_is(path, loaded_model, target)
    converted, failed = [], []
    for runtime in recipe.runtimes:
        for way in to_runtime(loaded_model, runtime, cache, device):
            name = f"{path.name} {candidate_name(recipe, runtime, way.model)}"
            try:
                if way.lacks:
                    raise UnsupportedError(way.lacks)
                calibrated = CalibratedModel(way.model, target, None, device, cache)
                source = steps.source(calibrated, recipe, runtime)
                converted.append(
                    convert(
                        name, way.model, recipe, runtime, target, threads, device, cache, source
                    )
                )
            except UnsupportedError as error:
                trial = Trial(
                    name,
                    recipe.name,
                    runtime,
                    loaded_model.stem,
                    status="failed",
                    reason=str(error),
                )
                failed.append(replace(trial, failure="conversion"))
    if not converted:
        reasons = "; ".join(trial.reason or "" for trial in failed)
        raise UnsupportedError(f"{path}: no runtime of {target.name} runs it: {reasons}")
    return converted, failed


def _as_it_is(path: Path, loaded_model: Model, target: Target) -> Recipe:
    """The recipe under which a file is run unchanged: the float one, or where a target has none,
    the one whose format the model has. Raises UnsupportedError where there is none."""
    for recipe in target.recipes:
        if recipe.name == EXACT:
            return recipe
        if (
            loaded_model.quantized
            and not recipe.does("split")
            and (recipe.compute == "i16") == loaded_model.wide
        ):
            return recipe
    raise UnsupportedError(
        f"{path}: {target.name} runs no floats; `deploy {shlex.quote(str(path))} --target "
        f"{target.name} --data …` quantizes it"
    )


def _unique(candidates: list[Candidate]) -> list[Candidate]:
    """The candidates with unique names: a file that was given twice is measured twice, and the
    second candidate is called `… #2`."""
    name_counts: Counter[str] = Counter()
    renamed = []
    for candidate in candidates:
        name_counts[candidate.name] += 1
        number = name_counts[candidate.name]
        name = candidate.name if number == 1 else f"{candidate.name} #{number}"
        renamed.append(replace(candidate, name=name))
    return renamed


class _Feeds(dict[str, Path]):
    def __getitem__(self, candidate: Any) -> Path:
        return super().__getitem__(candidate.name)


def _random_feeds(candidates: list[Candidate], scratch: Path, cache: Cache) -> _Feeds:
    feeds = _Feeds()
    for number, candidate in enumerate(candidates):
        input_bytes = sum(manifest.size_bytes(tensor) for tensor in candidate.model.inputs)
        if input_bytes > FEED_BYTES:
            raise UsageError(
                f"{candidate.name}: its inputs take {input_bytes} bytes; random ones are made of "
                f"at most {FEED_BYTES}"
            )
        data = samples.random(candidate.model, cache, candidate.model.batch)
        input_arrays = data.feed(candidate.model, range(candidate.model.batch))
        path = scratch / f"feeds-{number}.npz"
        np.savez(path, **{f"0/{name}": array for name, array in input_arrays.items()})  # type: ignore[arg-type]
        feeds[candidate.name] = path
    return feeds


def _trial(candidate: Candidate, outcome: measure.Outcome, baseline: str, emulated: bool) -> Trial:
    trial = Trial(
        candidate.name,
        candidate.recipe,
        candidate.runtime,
        candidate.model.stem,
        candidate,
    )
    rounds = outcome.rounds.get(candidate.name)
    if rounds is None:
        why = outcome.failures.get(candidate.name, "not measured")
        return replace(trial, status="failed", failure="device", reason=why)
    versus = None
    if baseline in outcome.rounds and not emulated:
        versus = intervals.compare(outcome.rounds[baseline], rounds)
    trial = with_figures(trial, rounds, candidate.model.batch, emulated=emulated)
    return replace(trial, versus_baseline=versus)
