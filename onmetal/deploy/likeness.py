"""Whether a candidate's outputs are the model's: what of any precision must hold before it ships.

The rule is in docs/fidelity.md: fp32 gives every output with 60 dB or more (30 where the source
rounds); fp16 and bf16 with 20 dB; what is quantized or trained with 20 dB, except the output that a
metric reads, where there are labels. Whole numbers are equal in 99 % of the elements, of float
candidates.
"""

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from onmetal.budget import FIDELITY_DB
from onmetal.calibration import collapse, fidelity
from onmetal.calibration.fidelity import Extent, Fidelity
from onmetal.files.stored import Outputs
from onmetal.records import Model, Trial
from onmetal.targets import EXACT, Recipe

FLOAT_DB = 60.0
"""Of fp32: rounding in another order of the sums gives 100 dB and more."""
COARSE_DB = 30.0
"""Of fp32 where the source itself rounds, to 8 bits or float16: other kernels round otherwise."""
HALF_DB = 20.0
"""Of fp16 and bf16."""
LOST_DB = 3.0
"""Fidelity under which nothing of the model is left."""
ADVICE = {
    True: " (the metric does not read it)",
    False: " (with labelled data, --data, the metric would decide instead)",
}
"""Behind the reason why an inexact candidate is rejected: where a metric reads another output, and
where there are no labels."""
EQUAL = 0.99
"""The share of whole numbers that a float candidate gives as the original does."""


def compared(
    trial: Trial,
    recipe: Recipe,
    outputs: Mapping[str, Outputs],
    original: Mapping[str, Outputs],
    extents: Mapping[str, Extent],
    read: Collection[str],
) -> Trial:
    """The trial with how its outputs follow the original's.

    `read`: the outputs that a metric with labels reads. A float candidate whose outputs are not the
    model's has failed; of an inexact one `unlike` says it.
    """
    if reason := _another_form(outputs, original):
        return replace(trial, status="failed", failure="conversion", reason=reason)
    fidelities = {
        name: fidelity.compare(original[name], output, extents[name])
        if output is not original[name]
        else fidelity.perfect(output)
        for name, output in outputs.items()
    }
    trial = replace(
        trial,
        sqnr_db={n: f.sqnr_db for n, f in fidelities.items() if f.sqnr_db is not None},
        equal={n: f.equal for n, f in fidelities.items() if f.equal is not None},
        slices={n: f.worst_slice for n, f in fidelities.items() if f.worst_slice is not None},
    )
    collapsed: list[str] = []
    for name, output in outputs.items():
        if output is not original[name]:
            collapsed += collapse.collapsed(name, original[name], output, fidelities[name])
    trial = replace(trial, collapsed=tuple(collapsed))
    if recipe.quantized_by in (None, "half"):
        least = HALF_DB if recipe.name != EXACT else least_float_db(trial)
        if reasons := [*_too_far(fidelities, least, ()), *_unequal(fidelities), *collapsed]:
            reason = f"its outputs are not the model's: {'; '.join(reasons)}"
            return replace(trial, status="failed", failure="conversion", reason=reason)
        return trial
    reasons = [
        f"{reason}{ADVICE[bool(read)]}" for reason in _too_far(fidelities, FIDELITY_DB, read)
    ]
    warnings = [f"{reason}: hardly anything of it is left" for reason in _lost(fidelities, read)]
    return replace(trial, unlike=tuple(reasons), warnings=(*trial.warnings, *warnings))


def _lost(fidelities: Mapping[str, Fidelity], read: Collection[str]) -> list[str]:
    """Of the outputs that a metric reads, those that do not follow the original's at all."""
    return _too_far({name: fidelities[name] for name in read if name in fidelities}, LOST_DB, ())


def least_float_db(trial: Trial) -> float:
    """What fp32 of the trial's model must have."""
    return COARSE_DB if trial.candidate and _coarse(trial.candidate.model) else FLOAT_DB


def _coarse(model: Model) -> bool:
    """Whether the source rounds its own values to few bits."""
    tensors = (*model.inputs, *model.outputs)
    return bool(
        model.quantized or model.half or any(tensor.dtype == "float16" for tensor in tensors)
    )


def _another_form(outputs: Mapping[str, Outputs], original: Mapping[str, Outputs]) -> str | None:
    """Whether outputs have other names, shapes or dtypes than the original's."""
    if set(outputs) != set(original):
        return f"its outputs are {', '.join(outputs)}, the model's are {', '.join(original)}"
    for name, output in outputs.items():
        for attribute in ("shape", "dtype"):
            actual, expected = getattr(output, attribute), getattr(original[name], attribute)
            if actual != expected:
                if attribute == "shape":
                    actual, expected = list(actual[1:]), list(expected[1:])
                return (
                    f"its output {name!r} has the {attribute} {actual}, the model's has {expected}"
                )
    return None


def _too_far(
    fidelities: Mapping[str, Fidelity], least_db: float, read: Collection[str]
) -> list[str]:
    """In words, which outputs do not follow the original's, but for those that a metric reads."""
    reasons = []
    for name, output_fidelity in fidelities.items():
        if name in read or output_fidelity.sqnr_db is None:
            continue
        if output_fidelity.sqnr_db < least_db:
            reasons.append(
                f"the output {name!r} follows it with {output_fidelity.sqnr_db:.1f} dB, under "
                f"{least_db:.0f} dB"
            )
        elif output_fidelity.worst_slice and output_fidelity.worst_slice.sqnr_db < least_db:
            reasons.append(
                f"the output {name!r} follows it with "
                f"{output_fidelity.worst_slice.sqnr_db:.1f} dB in {output_fidelity.worst_slice}, "
                f"under {least_db:.0f} dB"
            )
    return reasons


def _unequal(fidelities: Mapping[str, Fidelity]) -> list[str]:
    return [
        f"the output {name!r} has {output_fidelity.equal:.1%} of its elements equal, "
        f"under {EQUAL:.0%}"
        for name, output_fidelity in fidelities.items()
        if output_fidelity.equal is not None and output_fidelity.equal < EQUAL
    ]
