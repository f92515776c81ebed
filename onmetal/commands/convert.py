"""`deploy convert`: a model becomes one file, with the checks of a deployment."""

from pathlib import Path
from typing import Any

from onmetal.converters import format_named
from onmetal.deploy.conversion import convert_model
from onmetal.deploy.request import ConversionRequest
from onmetal.progress import Progress
from onmetal.records import plain
from onmetal.reports.command_records import Conversion, Converted
from onmetal.runtimes import spec
from onmetal.texts import units

MOST_NAMES = 10
"""How many names of operators are shown to people; `--json` has all."""


def convert(request: ConversionRequest, progress: Progress) -> tuple[dict[str, Any], list[str]]:
    """-> the record as JSON values; the lines for people. Raises the errors of `convert_model`."""
    conversion = convert_model(request, progress)
    for text in [*conversion.model.notes, *conversion.warnings]:
        progress.warn(text)
    return plain(conversion), lines(conversion)


def lines(conversion: Conversion) -> list[str]:
    """The record as text for people."""
    model, name = conversion.model, Path(conversion.model.path).name
    size = units.size(conversion.size_bytes)
    share = ""
    if model.size_bytes:
        percent = f"{100 * conversion.size_bytes / model.size_bytes:.0f} %"
        share = f", {percent} of {name} ({units.size(model.size_bytes)})"
    title, source = spec(conversion.runtime).title, format_named(model.format).title
    text = [
        f"{' and '.join(conversion.files)}: {size}{share}",
        f"{conversion.recipe} for {title}, from {source}",
    ]
    for kind, tensors in (("input", conversion.inputs), ("output", conversion.outputs)):
        text += [f"{kind}  {_tensor(tensor, name)}" for tensor in tensors]
    if model.imported:
        text.append(f"imported by {model.imported.by}")
    if options := conversion.details.get("options"):
        settings = ", ".join(f"{key}={value}" for key, value in options.items())
        text.append(f"opened with {settings}")
    text.append(_compared(conversion))
    for output, value in conversion.fidelity.sqnr_db.items():
        worst = conversion.fidelity.worst_slice.get(output)
        by_slice = f", in its worst slice {worst.sqnr_db:.1f} dB" if worst and worst.sqnr_db else ""
        text.append(
            f"  {output}  {'the same bits' if value == 300 else f'{value:.1f} dB'}{by_slice}"
        )
    text += [
        f"  {output}  {value:.2%} of its elements equal"
        for output, value in conversion.fidelity.equal.items()
        if value is not None
    ]
    text += [f"not {entry.recipe}: {entry.reason}" for entry in conversion.not_taken]
    if conversion.operators_in_float is not None:
        text.append(_in_float(conversion.operators_in_float))
    return text


def _tensor(tensor: Converted, model: str) -> str:
    """A tensor as it is in the file, and what of it is not as in the model."""
    text = f"{tensor.name}  {tensor.dtype}{tensor.shape}"
    if tensor.scale:
        text += f" = {tensor.scale:.6g} * (number - {tensor.zero_point})"
    if not tensor.differs_in:
        return text
    source = tensor.source
    last = ", with its channels last in the file" if tensor.channels_last else ""
    return f"{text}; in {model}: {source.name}  {source.dtype}{list(source.shape)}{last}"


def _compared(conversion: Conversion) -> str:
    where = f"{conversion.samples} samples of the calibration data"
    if conversion.compared_on == "random inputs":
        where = f"{conversion.samples} random inputs (real ones, by --calibration-data, say more)"
    return (
        f"outputs against those of {conversion.compared_with}, on {where}; needed are "
        f"{conversion.least_db:.0f} dB:"
    )


def _in_float(names: list[str]) -> str:
    if not names:
        return "no convolution or matrix multiplication is left in float"
    shown = ", ".join(names[:MOST_NAMES])
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"left in float: {shown}{more}"
