"""The commands beside the main job: each a function -> (the document of `--json`, its text)."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec.structs import replace

from onmetal import bundle, model, profilers, report, targets
from onmetal import cache as caches
from onmetal.cache import Cache
from onmetal.calibration import samples
from onmetal.converters import check_options, convert
from onmetal.errors import DeviceError, OnmetalError, UnsupportedError, UsageError
from onmetal.profilers import measure, statistics
from onmetal.profilers.local import Local
from onmetal.progress import Progress
from onmetal.records import Candidate, Model, Tensor, Trial, plain
from onmetal.sources import Hub
from onmetal.targets import EXACT, Target
from onmetal.task import choose_threads
from onmetal.vectors import keep_raw

Shown = tuple[dict[str, Any], str]


def show_targets(name: str | None) -> Shown:
    if name:
        target = targets.load(name)
        check_options(target)
        return {"schema": 1, **plain(target)}, _target_text(target)
    found = [targets.load(known) for known in targets.names()]
    document = {
        "schema": 1,
        "targets": [{"name": t.name, "description": t.description} for t in found],
    }
    width = max(len(target.name) for target in found)
    return document, "\n".join(f"{t.name:{width}}  {t.description}" for t in found)


def _target_text(target: Target) -> str:
    lines = [f"{target.name}: {target.description}", f"architecture {target.arch}"]
    lines.append(f"device: {target.device.transport}")
    lines.append(f"threads: {target.threads or 'the physical cores'}")
    for runtime in target.runtimes:
        own = f", options {runtime.options}" if runtime.options else ""
        lines.append(f"runtime {runtime.name}{own}")
    for recipe in target.recipes:
        needs = " or ".join(recipe.requires_any_flag)
        lines.append(
            f"recipe {recipe.name}: computes in {recipe.compute} on {', '.join(recipe.runtimes)}"
            + (f", needs the CPU flag {needs}" if needs else "")
        )
    for name, limit in plain(target.limits).items():
        if limit:
            lines.append(f"limit {name} {limit}")
    return "\n".join(lines)


def show_devices() -> Shown:
    """This machine: transports to others are not part of this version."""
    with Cache() as cache:
        facts = Local(cache).facts()
    lacks = [
        f"the runtime {name}: pip install {targets.packages(name)[0]}"
        for name in targets.RUNTIMES
        if name not in facts.runtimes
    ]
    lacks.append("a power meter: energy is not measured by this version")
    if facts.state.get("virtual_machine"):
        lacks.append("a machine of its own: it is virtual, its neighbours disturb timings")
    if facts.state.get("governor") not in (None, "performance"):
        lacks.append(
            f"a steady clock: the governor is {facts.state['governor']}; "
            "`cpupower frequency-set -g performance` makes timings steadier"
        )
    fits = [t.name for t in map(targets.load, targets.names()) if t.arch == facts.arch]
    ready = bool(facts.runtimes) and bool(fits)
    document = {
        "schema": 1,
        "devices": [{**plain(facts), "ready": ready, "targets": fits, "lacks": lacks}],
    }
    memory = report.size(facts.memory_bytes)
    lines = [f"local  {'ready' if ready else 'not ready'}"]
    lines.append(f"  {facts.cpu}, {facts.cores} cores, {memory}, {facts.os}, {facts.arch}")
    lines.append("  runtimes: " + ", ".join(f"{n} {v}" for n, v in facts.runtimes.items()))
    lines.append(f"  targets: {', '.join(fits) or 'none'}")
    lines += [f"  lacks {lack}" for lack in lacks]
    return document, "\n".join(lines)


def verify(folder: Path, address: str, *, run: bool) -> Shown:
    if address != "local":
        raise UsageError(f"--device {address}: unknown; this version verifies on: local")
    with Cache() as cache:
        document = bundle.verify(folder, Local(cache), run=run)
    said = ", ".join(document["checks"])
    return document, f"{folder}: as it says it is ({said})"


# --- bench


def bench(
    paths: list[Path],
    target_name: str,
    address: str,
    threads: int | None,
    batch: int | None,
    shapes: list[str],
    mode: Literal["quick", "default", "thorough"],
    seed: int,
    progress: Progress,
) -> Shown:
    """Time artifacts against each other; the first is the baseline."""
    target = targets.load(target_name)
    check_options(target)
    with Cache() as cache, cache.scratch() as scratch:
        device = profilers.connect(target, address, cache)
        facts = device.facts()
        threads = choose_threads(threads, target, facts)
        progress.step("reading and converting")
        candidates: list[Candidate] = []
        failed: list[Trial] = []
        for path in paths:
            made, refused = _candidates(path, target, threads, batch, shapes, device, cache)
            candidates += made
            failed += refused
        candidates = _unique(candidates)
        progress.step("measuring")
        feeds = _random_feeds(candidates, scratch, cache)
        outcome = measure.measure(
            device, candidates, feeds.__getitem__, measure.MODES[mode], progress, seed=seed
        )
        trials = [_trial(candidate, outcome, candidates[0].name) for candidate in candidates]
        trials += failed
        raw = keep_raw(trials, cache)
    if not outcome.rounds:
        said = "; ".join(f"{name}: {why}" for name, why in outcome.failures.items())
        raise DeviceError(f"nothing could be measured: {said}")
    document = {
        "schema": 1,
        "mode": mode,
        "seed": seed,
        "device": report.device_document(facts),
        "threads": threads,
        "baseline": candidates[0].name,
        "raw_samples": str(raw) if raw else None,
        "candidates": [report.candidate_document(trial) for trial in trials],
    }
    return document, report.table(trials, None)


def _candidates(
    path: Path,
    target: Target,
    threads: int,
    batch: int | None,
    shapes: list[str],
    device: Local,
    cache: Cache,
) -> tuple[list[Candidate], list[Trial]]:
    """-> what can be measured of a path, and what cannot, with the reason."""
    if path.is_dir():
        return [_from_bundle(path)], []
    if path.suffix == ".xml":
        return [_from_ir(path, target, threads, device)], []
    found = model.read(path, model.parse_shapes(shapes), batch, cache, device)
    recipe = target.recipe(EXACT)
    made, failed = [], []
    hub = Hub(found, target, None, device, cache)
    for runtime in recipe.runtimes:
        if found.format == "tflite" and runtime != "litert":
            continue
        name = f"{path.name} {EXACT}@{runtime}"
        try:
            source = hub.source(recipe, runtime, lambda *_: None)
            made.append(
                convert(name, found, recipe, runtime, target, threads, device, cache, source)
            )
        except UnsupportedError as error:
            trial = Trial(name, EXACT, runtime, found.stem, status="failed", reason=str(error))
            failed.append(replace(trial, failure="conversion"))
    if not made:
        if found.format == "tflite" and not failed:
            raise UnsupportedError(
                f"{path}: the target {target.name} has no LiteRT, which alone runs .tflite files; "
                "try --target tflite-x86"
            )
        reasons = "; ".join(trial.reason or "" for trial in failed)
        raise UnsupportedError(f"{path}: no runtime of {target.name} runs it: {reasons}")
    return made, failed


def _from_bundle(folder: Path) -> Candidate:
    """The artifact of a bundle, with the options that it ships with."""
    manifest, problems = bundle.read_manifest(folder)
    if problems:
        raise UsageError(f"{folder}: {'; '.join(problems)}")
    run = manifest["run"]
    files = tuple(folder / name for name in run["files"])
    return _candidate(
        f"{folder.name} {manifest['chosen']}", run["runtime"], files, run["options"], run
    )


def _from_ir(path: Path, target: Target, threads: int, device: Local) -> Candidate:
    """OpenVINO's own format: its inputs are asked of OpenVINO."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    with device.worker() as worker:
        try:
            found = worker.call(
                "call",
                timeout_s=600,
                function="onmetal.converters.openvino:describe",
                path=str(path),
            )
        except OnmetalError as error:
            raise UsageError(f"{path}: OpenVINO cannot read it: {error}") from None
    from onmetal.converters import for_runtime

    options = for_runtime("openvino").options("f32", threads)
    files = (path, path.with_suffix(".bin"))
    return _candidate(f"{path.name} fp32@openvino", "openvino", files, options, found)


def _candidate(
    name: str,
    runtime: str,
    files: tuple[Path, ...],
    options: dict[str, Any],
    tensors: dict[str, Any],
) -> Candidate:
    from importlib.metadata import version

    there = tuple(file for file in files if file.is_file())
    digest = caches.sha256(*there)
    inputs = msgspec.convert(tensors["inputs"], tuple[Tensor, ...])
    outputs = msgspec.convert(tensors["outputs"], tuple[Tensor, ...])
    firsts = {tensor.shape[0] if tensor.shape else None for tensor in (*inputs, *outputs)}
    of = Model(
        path=files[0],
        prepared=files[0],
        prepared_sha256=digest,
        format="onnx",
        sha256=digest,
        size_bytes=sum(file.stat().st_size for file in there),
        inputs=inputs,
        outputs=outputs,
        parameters=0,
        macs=None,
        operators={},
        batch=(firsts.pop() if len(firsts) == 1 else 1) or 1,
    )
    return Candidate(
        name=name,
        recipe=name.rpartition(" ")[2].partition("@")[0].rpartition("/")[2],
        runtime=runtime,
        runtime_version=version(targets.packages(runtime)[0]),
        model=of,
        files=there,
        sha256=digest,
        size_bytes=of.size_bytes,
        options=options,
    )


def _unique(candidates: list[Candidate]) -> list[Candidate]:
    """One file given twice is measured twice: the second is called `… #2`."""
    seen: Counter[str] = Counter()
    found = []
    for candidate in candidates:
        seen[candidate.name] += 1
        number = seen[candidate.name]
        name = candidate.name if number == 1 else f"{candidate.name} #{number}"
        found.append(replace(candidate, name=name))
    return found


class _Feeds(dict[str, Path]):
    def __getitem__(self, candidate: Any) -> Path:
        return super().__getitem__(candidate.name)


def _random_feeds(candidates: list[Candidate], scratch: Path, cache: Cache) -> _Feeds:
    found = _Feeds()
    for number, candidate in enumerate(candidates):
        data = samples.random(candidate.model, cache, candidate.model.batch)
        fed = data.feed(candidate.model, range(candidate.model.batch))
        path = scratch / f"feeds-{number}.npz"
        np.savez(path, **{f"0/{name}": array for name, array in fed.items()})  # type: ignore[arg-type]
        found[candidate.name] = path
    return found


def _trial(candidate: Candidate, outcome: measure.Outcome, baseline: str) -> Trial:
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
    if baseline in outcome.rounds:
        versus = statistics.compare(outcome.rounds[baseline], rounds)
    return replace(
        trial,
        rounds=rounds,
        latency_ms=statistics.latency(rounds),
        throughput_per_s=statistics.throughput(rounds, candidate.model.batch),
        load_ms=measure.load_figure(rounds),
        versus_baseline=versus,
    )
