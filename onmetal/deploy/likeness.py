"""Checks that a candidate's outputs follow the original model's closely enough to ship.

The rule is in docs/fidelity.md: fp32 must give every output with 60 dB or more (30 where the source
model rounds its values); fp16 and bf16 with 20 dB; quantized or trained candidates with 20 dB,
except the output that a metric reads, where there are labels. Outputs of whole numbers of float
candidates must be equal in 99 % of the elements.
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
"""The least fidelity of fp32: sums in another order differ by rounding alone, at 100 dB and
more."""
COARSE_DB = 30.0
"""The least fidelity of fp32 where the source model itself rounds to 8 bits or float16, since other
kernels round differently."""
HALF_DB = 20.0
"""The least fidelity of fp16 and bf16."""
LOST_DB = 3.0
"""Fidelity under which the outputs no longer resemble the model's."""
ADVICE = {
    True: " (the metric does not read it)",
    False: " (with labelled data, --data, the metric would decide instead)",
}
"""Text after the reason why an inexact candidate is rejected. True: there are labels, and a metric
reads another output; False: there are no labels."""
EQUAL = 0.99
"""The least share of whole-number elements in which a float candidate must equal the original."""


def compared(
    trial: Trial,
    recipe: Recipe,
    outputs: Mapping[str, Outputs],
    original: Mapping[str, Outputs],
    extents: Mapping[str, Extent],
    read: Collection[str],
) -> Trial:
    """The trial with the fidelity of its outputs to the original's.

    `read`: the outputs that a metric with labels reads. A float candidate whose outputs are not the
    model's gets the status failed; for an inexact one the reasons are put into `unlike`.
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
        least = least_db(recipe, trial)
        if reasons := [*_too_far(fidelities, least, ()), *_unequal(fidelities), *collapsed]:
            reason = f"its outputs are not the model's: {'; '.join(reasons)}"
            return replace(trial, status="failed", failure="conversion", reason=reason)
        return trial
    reasons = [
        f"{reason}{ADVICE[bool(read)]}"
        for reason in _too_far(fidelities, least_db(recipe, trial), read)
    ]
    warnings = [f"{reason}: hardly anything of it is left" for reason in _lost(fidelities, read)]
    return replace(trial, unlike=tuple(reasons), warnings=(*trial.warnings, *warnings))


def _lost(fidelities: Mapping[str, Fidelity], read: Collection[str]) -> list[str]:
    """Sentences about those outputs that a metric reads whose fidelity is below LOST_DB."""
    return _too_far({name: fidelities[name] for name in read if name in fidelities}, LOST_DB, ())


def least_db(recipe: Recipe, trial: Trial) -> float:
    """The least fidelity that the outputs of the trial must have, where no metric reads them."""
    if recipe.quantized_by not in (None, "half"):
        return FIDELITY_DB
    return HALF_DB if recipe.name != EXACT else least_float_db(trial)


def least_float_db(trial: Trial) -> float:
    """The least fidelity that fp32 of the trial's model must have."""
    return COARSE_DB if trial.candidate and _coarse(trial.candidate.model) else FLOAT_DB


def _coarse(model: Model) -> bool:
    """Whether the source rounds its own values to few bits."""
    tensors = (*model.inputs, *model.outputs)
    return bool(
        model.quantized or model.half or any(tensor.dtype == "float16" for tensor in tensors)
    )


def _another_form(outputs: Mapping[str, Outputs], original: Mapping[str, Outputs]) -> str | None:
    """A sentence about the first output whose name, shape or dtype differs from the original's;
    None where there is none."""
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
    """Sentences about the outputs whose fidelity is under `least_db`, except those in `read`."""
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
