"""`deploy inspect`: a model's inputs, outputs and costs, whether a target can run it, and which
operators are sensitive to 8 bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from onmetal import runtimes, targets
from onmetal.bundles import manifest
from onmetal.calibration import operations, samples, steps
from onmetal.calibration.calibrated import CalibratedModel
from onmetal.calibration.fidelity import BAD_DB
from onmetal.converters import format_named
from onmetal.deploy import micro, model
from onmetal.deploy.convert import convert
from onmetal.deploy.propose.plan import plan
from onmetal.deploy.request import check_runtimes
from onmetal.deploy.ways import ways
from onmetal.errors import DeviceError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.operation import asked
from onmetal.progress import Progress
from onmetal.records import Imported, Model, plain
from onmetal.reports import of_trials
from onmetal.reports.chip_record import Npu
from onmetal.reports.command_records import Comparison, Inspection, Sensitivity, Support
from onmetal.reports.embedded import npu_lines
from onmetal.runtimes import check_options, spec
from onmetal.runtimes.fit import load_target
from onmetal.samples import Samples
from onmetal.targets import Recipe, Target
from onmetal.texts import units
from onmetal.texts.suggest import near

Shown = tuple[dict[str, Any], list[str]]

RANDOM_SAMPLES = 8
SHOWN = 10
"""How many rows of a long list are shown to people; `--json` has all."""


def inspect(
    path: Path,
    target_name: str | None,
    batch: int | None,
    shapes: list[str],
    data: str | None,
    follow_links: bool,
    plot: Path | None,
    trust: bool,
    cut_at: list[str],
    progress: Progress,
) -> Shown:
    target = load_target(target_name) if target_name else None
    if target:
        check_options(target)
        for warning in target.warnings:
            progress.warn(warning)
    with Cache() as cache:
        device = Local(cache)
        if target:
            check_runtimes(target, device)
        fixed, cut = model.parse_shapes(shapes), model.parse_cut(cut_at)
        loaded_model = model.read(path, fixed, batch, cache, device, trust, cut)
        support: list[Support] = []
        memory: dict[str, Any] | None = None
        if target and target.micro:
            support, memory = _on_micro(target, loaded_model, device, cache, plot)
        elif target:
            support = _support(target, loaded_model, device, cache, bool(data))
        sensitivity = None
        if data:
            rules = target or load_target(targets.default_for("local"))
            sensitivity = _sensitivity(
                rules, loaded_model, data, follow_links, device, cache, progress
            )
    inspection = Inspection(
        schema=1,
        **asdict(of_trials.model(loaded_model)),
        operators=loaded_model.operators,
        target=target.name if target else None,
        support=support,
        memory=memory,
        sensitivity=sensitivity,
        warnings=list(target.warnings) if target else [],
    )
    title = format_named(loaded_model.format).title
    lines = [f"{path}: {title}, {units.size(loaded_model.size_bytes)}, batch {loaded_model.batch}"]
    for kind, tensors in (("input", loaded_model.inputs), ("output", loaded_model.outputs)):
        lines += [f"{kind}  {t.name}  {t.dtype}{list(t.shape)}" for t in tensors]
    macs = (
        "not counted: a shape is not static"
        if loaded_model.macs is None
        else f"{loaded_model.macs:,}"
    )
    lines.append(f"parameters {loaded_model.parameters:,}; multiply-accumulates {macs}")
    lines.append(
        "operators " + ", ".join(f"{n} {name}" for name, n in loaded_model.operators.items())
    )
    if loaded_model.imported:
        lines.append(_import_line(loaded_model.imported))
    lines += [f"note: {note}" for note in loaded_model.notes]
    lines += [f"{entry.candidate}: {entry.says}" for entry in support]
    if memory:
        lines += _memory_lines(memory, target)
    if sensitivity:
        lines += _sensitivity_lines(sensitivity)
    return plain(inspection), lines


def _support(
    target: Target, loaded_model: Model, device: Local, cache: Cache, samples: bool
) -> list[Support]:
    """Whether each planned candidate of the target can run the model, and why not. Float candidates
    are converted to find out; for quantized ones the plan decides."""
    support = []
    by_runtime = ways([loaded_model], target, cache, device)
    for entry in plan(target, [loaded_model], device.facts(), None, ways=by_runtime):
        says, runs = entry.skipped or "runs completely", not entry.skipped
        if runs and entry.recipe.quantized_by:
            says = "can be tried" if samples else "can be tried, once calibrated with --data"
        elif runs:
            try:
                calibrated_model = CalibratedModel(entry.model, target, None, device, cache)
                source = steps.source(calibrated_model, entry.recipe, entry.runtime)
                convert(
                    entry.name,
                    entry.model,
                    entry.recipe,
                    entry.runtime,
                    target,
                    1,
                    device,
                    cache,
                    source,
                )
            except UnsupportedError as error:
                says, runs = f"cannot run it: {error}", False
        support.append(Support(entry.name, runs, says))
    return support


def _on_micro(
    target: Target, loaded_model: Model, device: Local, cache: Cache, plot: Path | None
) -> tuple[list[Support], dict[str, Any] | None]:
    """-> whether TFLite Micro can run each planned candidate, and why not; the memory of the least
    exact one that it runs."""
    support: list[Support] = []
    last = None
    by_runtime = ways([loaded_model], target, cache, device)
    for entry in plan(target, [loaded_model], device.facts(), None, ways=by_runtime):
        runs = not entry.skipped
        says = entry.skipped or "runs completely, once calibrated with --data"
        if runs:
            try:
                lacking = micro.lacking(entry, target, device, cache)
            except UnsupportedError as error:
                lacking = [str(error)]
            if lacking:
                says, runs = f"TFLite Micro does not run {'; '.join(lacking)}", False
        if runs and not entry.recipe.does("split"):
            last = entry
        support.append(Support(entry.name, runs, says))
    memory = micro.preview(last, target, device, cache) if last else None
    if memory:
        drawing = memory["plan"].pop("svg")
        if plot:
            plot.write_text(drawing, "utf-8")
    return support, memory


def _memory_lines(memory: dict[str, Any], target: Target | None) -> list[str]:
    arena, flash, plan = memory["arena"], memory["flash"], memory["plan"]
    chip = target.chip if target else None
    lines = [f"memory of {memory['candidate']}, in the order that needs the least:"]
    text = f"arena {arena['total']:,} bytes, counted by TFLite Micro here"
    if plan["modelled"]:
        text += f"; {plan['modelled']['total_bytes']:,} modelled with CMSIS-NN's kernels"
    lines.append(text + (f"; the chip has {chip.ram_kib * 1024:,}" if chip else ""))
    text = f"flash {flash['total_bytes']:,} bytes: weights {flash['weights_bytes']:,}, graph "
    text += f"{flash['graph_bytes']:,}, code about {flash['code_bytes']:,}"
    lines.append(text + (f"; the chip has {chip.flash_kib * 1024:,}" if chip else ""))
    if memory["npu"]:  # Vela plans its memory by itself
        vela_memory = memory["npu"]["memory_bytes"]
        lines[1] = (
            f"RAM {vela_memory['sram']:,} bytes of SRAM, {vela_memory['dram']:,} of DRAM, by Vela"
        )
        return [*lines, *npu_lines(of_trials.typed(memory["npu"], Npu))]
    return [*lines, *plan["timeline"].splitlines()]


def _sensitivity(
    target: Target,
    loaded_model: Model,
    data: str,
    follow_links: bool,
    device: Local,
    cache: Cache,
    progress: Progress,
) -> Sensitivity:
    """The sensitivity of each operator, quantized alone to 8 bits in the first static format of the
    target that fits the model."""
    if loaded_model.quantized:
        raise UsageError(
            f"{loaded_model.path}: it is quantized already; sensitivity is told of float "
            "models: give the float one, or leave --data out"
        )
    recipe, in_tflite = _static(target, loaded_model)
    progress.step("asking how sensitive each operator is")
    loaded = _loaded(data, follow_links, loaded_model, cache)
    parts = samples.split(loaded)
    calibration = parts.calibration if parts else loaded
    calibrated = CalibratedModel(loaded_model, target, calibration, device, cache)
    assert recipe.format
    analysed_model = calibrated.tflite if in_tflite else calibrated
    rows = analysed_model.sensitivity(recipe.format, _callback(progress))
    return Sensitivity(recipe.name, calibration.count, rows)


def _import_line(imported: Imported) -> str:
    return (
        f"imported by {imported.by}; on {imported.inputs} inputs, the graph's outputs are within "
        f"{imported.largest_difference:.1e} of the largest of the framework's own"
    )


def _static(target: Target, loaded_model: Model) -> tuple[Recipe, bool]:
    """-> the recipe, and whether it quantizes a TFLite graph. 8-bit activations come first, and of
    these the formats of ONNX graphs."""
    static = [
        (recipe.compute != "i8", spec(recipe.runtimes[0]).reads == "tflite", recipe)
        for recipe in target.recipes
        if recipe.quantized_by == "static"
    ]
    for _, in_tflite, recipe in sorted(static, key=lambda entry: entry[:2]):
        if in_tflite or loaded_model.graph_format == "onnx":
            return recipe, in_tflite
    raise UsageError(
        f"the target {target.name} has no calibrated 8-bit recipe for "
        f"{format_named(loaded_model.format).title} models, by which sensitivity would be told; "
        f"try --target {targets.default_for('local')}"
    )


def _callback(progress: Progress) -> Callable[[float, float, str], None]:
    return lambda done, total, what: progress(done, total, what)


def _sensitivity_lines(sensitivity: Sensitivity) -> list[str]:
    rows = sensitivity.operators
    lines = [
        "",
        f"sensitivity to {sensitivity.recipe}: each operator alone in 8 bits, worst first",
        "(SQNR of the worst output; an operator far below the others is one to keep in float)",
    ]
    lines += [
        f"  {row['sqnr_db']:6.1f} dB  {row['operator']} that gives {row['tensor']}"
        for row in rows[:SHOWN]
    ]
    if len(rows) > SHOWN:
        lines.append(f"  and {len(rows) - SHOWN} more, the best {rows[-1]['sqnr_db']:.1f} dB")
    return lines


# --- an artifact against its float model


def compare(
    path: Path,
    against: Path,
    batch: int | None,
    shapes: list[str],
    data: str | None,
    follow_links: bool,
    progress: Progress,
) -> Shown:
    """Compare an artifact with its float model: every tensor that both have, and the first bad one.

    `path`: an ONNX or TFLite file, an OpenVINO IR (.xml) or a bundle.
    """
    progress.step("comparing")
    artifact = _artifact(path)
    with Cache() as cache:
        device = Local(cache)
        loaded_model = model.read(against, model.parse_shapes(shapes), batch, cache, device)
        reference, compare = loaded_model.prepared, operations.compare
        if artifact.suffix == ".tflite" or loaded_model.graph_format == "tflite":
            if artifact.suffix != ".tflite":
                raise UsageError(f"{path}: only a .tflite file can be compared with a .tflite file")
            model.read(artifact, {}, None, cache, device)  # refused here where it is damaged
            calibrated = CalibratedModel(
                loaded_model, load_target(targets.default_for("local")), None, device, cache
            )
            reference, compare = calibrated.tflite.path(), operations.tflite_compare
        elif not runtimes.own(artifact):
            artifact = model.read(
                artifact, model.parse_shapes(shapes), batch, cache, device
            ).prepared
        if data is None:
            compared_samples = samples.random(loaded_model, cache, RANDOM_SAMPLES)
        else:
            compared_samples = _loaded(data, follow_links, loaded_model, cache)
        with device.worker() as worker:
            try:
                rows = worker.do(
                    asked(compare, str(artifact), str(reference), compared_samples, loaded_model),
                    timeout_s=86400,
                    progress=lambda done, total: progress(done, total, f"sample {done} of {total}"),
                )
            except DeviceError as error:
                raise UnsupportedError(
                    f"{path} and {against} cannot be compared: {error}"
                ) from None
    first = next((row for row in rows if row["sqnr_db"] < BAD_DB), None)
    worst = min(rows, key=lambda row: float(row["sqnr_db"]))
    comparison = Comparison(
        schema=1,
        artifact=str(path),
        against=str(against),
        samples=compared_samples.count,
        bad_db=BAD_DB,
        first_bad=first["tensor"] if first else None,
        tensors=rows,
    )
    return plain(comparison), _compared(rows, first, worst, compared_samples, data)


def _artifact(path: Path) -> Path:
    if not path.is_dir():
        if runtimes.own(path) and not path.is_file():
            raise UsageError(f"{path}: there is no such file{near(path, ('.xml',))}")
        return path
    document, problems = manifest.read(path)
    if problems:
        raise UsageError(f"{path}: {'; '.join(problems)}")
    return path / str(document["run"]["files"][0])


def _loaded(data: str, follow_links: bool, loaded_model: Model, cache: Cache) -> Samples:
    return samples.load(
        data, loaded_model, cache, option="--data", labelled=False, follow_links=follow_links
    )


def _compared(
    rows: list[dict[str, Any]],
    first: dict[str, Any] | None,
    worst: dict[str, Any],
    compared_samples: Samples,
    data: str | None,
) -> list[str]:
    lines = [
        f"{len(rows)} tensors compared on {compared_samples.count} samples, in the order of "
        "computation"
    ]
    if data is None:
        lines.append("on random inputs: real ones, by --data, say more")
    shown = (
        rows if len(rows) <= 2 * SHOWN else sorted(rows, key=lambda r: float(r["sqnr_db"]))[:SHOWN]
    )
    if len(shown) < len(rows):
        lines.append(f"the {SHOWN} worst:")
    lines += [f"  {row['sqnr_db']:7.1f} dB  {row['operator']}  {row['tensor']}" for row in shown]
    if first:
        lines.append(
            f"first bad tensor (under {BAD_DB:.0f} dB): {first['tensor']} of {first['operator']}, "
            f"{first['sqnr_db']:.1f} dB, peak {first['peak']:.4g} where the float has "
            f"{first['peak_float']:.4g}"
        )
    else:
        lines.append(
            f"no tensor is under {BAD_DB:.0f} dB; the worst is {worst['tensor']}, "
            f"{worst['sqnr_db']:.1f} dB"
        )
    return lines
