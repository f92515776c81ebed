"""The record of a conversion: what was written, and how closely it follows the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from onmetal.converters import format_named
from onmetal.deploy.candidates import calibration_warnings
from onmetal.deploy.context import Run
from onmetal.deploy.likeness import least_db
from onmetal.deploy.request import ConversionRequest
from onmetal.records import Candidate, Model, Tensor, Trial
from onmetal.reports import of_trials
from onmetal.reports.command_records import Conversion, Converted, NotTaken
from onmetal.runtimes import defining, spec
from onmetal.runtimes.protocol import Ends


def record(
    request: ConversionRequest,
    run: Run,
    trial: Trial,
    not_taken: list[NotTaken],
    files: Sequence[Path],
    ends: Ends,
) -> Conversion:
    """`files`: where they will lie; none where they are not written. `ends`: the inputs and outputs
    of the file itself."""
    candidate, task = trial.candidate, run.task
    assert candidate
    source = candidate.model
    fidelity = of_trials.candidate(trial).fidelity
    assert fidelity
    framework = defining(source.format)
    version = format_named(source.format).reference_version()
    title = spec(framework).title if framework else format_named(source.format).title
    return Conversion(
        schema=1,
        model=of_trials.model(source),
        files=[str(path) for path in files],
        size_bytes=candidate.size_bytes,
        sha256=candidate.sha256,
        recipe=candidate.recipe,
        runtime=candidate.runtime,
        runtime_version=candidate.runtime_version,
        target=request.target,
        inputs=_matched(source.inputs, ends["inputs"], candidate),
        outputs=_matched(source.outputs, ends["outputs"], candidate),
        compared_with=f"{title} ({version})",
        compared_on=compared_on(request),
        samples=task.data[str(source.path)].count,
        least_db=least_db(task.target.recipe(trial.recipe, trial.runtime), trial),
        fidelity=fidelity,
        operators_in_float=candidate.details.get("operators_in_float"),
        details=candidate.details,
        not_taken=not_taken,
        warnings=[
            *task.target.warnings,
            *_as_it_is(source),
            *calibration_warnings(run),
            *trial.warnings,
        ],
    )


def _as_it_is(source: Model) -> list[str]:
    if not source.quantized:
        return []
    return [
        f"the model is quantized already ({source.quantized} operators hold integers): it is "
        "converted as it is"
    ]


def _matched(
    tensors: tuple[Tensor, ...], described: list[dict[str, Any]], candidate: Candidate
) -> list[Converted]:
    """Each tensor of the file beside that of the model: by name, else by its place."""
    by_name = {entry["name"]: entry for entry in described}
    if by_name.keys() != {tensor.name for tensor in tensors}:
        by_name = {tensor.name: entry for tensor, entry in zip(tensors, described, strict=True)}
    turned = candidate.options.get("nhwc", ())
    return [_converted(tensor, by_name[tensor.name], tensor.name in turned) for tensor in tensors]


def _converted(tensor: Tensor, described: dict[str, Any], channels_last: bool) -> Converted:
    shape = list(described["shape"] or ())
    differences: dict[Literal["name", "dtype", "shape"], bool] = {
        "name": described["name"] != tensor.name,
        "dtype": described["dtype"] != tensor.dtype,
        "shape": shape != list(tensor.shape),
    }
    return Converted(
        name=described["name"],
        dtype=described["dtype"],
        shape=shape,
        scale=described.get("scale", 0.0),
        zero_point=described.get("zero_point", 0),
        channels_last=channels_last,
        source=tensor,
        differs_in=[name for name, differs in differences.items() if differs],
    )


def compared_on(request: ConversionRequest) -> Literal["calibration data", "random inputs"]:
    return "calibration data" if request.calibration_data else "random inputs"
