"""The limits that a deployment must meet: parsed from the command line, resolved to base units, and
checked against trials."""

import math
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from onmetal import costs
from onmetal.errors import UsageError
from onmetal.records import Model, Trial
from onmetal.texts.units import Share, parse_share_or_number

DROP, LEAST = "--max-accuracy-drop", "--min-accuracy"
"""The two options that limit quality; those that limit a cost stand in the table of costs."""
OPTIONS = (DROP, LEAST, *(limit.option for _, limit in costs.LIMITS))


class Asked(Struct, frozen=True):
    """The budget as the user gave it: percentages are not resolved yet."""

    max_accuracy_drop: Share | float | None = Share(0.01)
    min_accuracy: Share | float | None = None
    limits: Mapping[str, Share | float] = {}
    """Name of a cost -> the most of it, in base units."""

    def check_meant(self, metric: str) -> None:
        """Raises UsageError, with a suggestion, for a limit of a metric in [0, 1] that is larger
        than the metric can be, or that can only be a percentage without its sign."""
        limits = ((DROP, self.max_accuracy_drop, True), (LEAST, self.min_accuracy, False))
        for option, limit, drop in limits:
            if isinstance(limit, Share) and limit.value > 1:
                shown = f"{100 * limit.value:.6g}%"
                raise UsageError(f"{option} {shown}: {metric} lies between 0 and 100 %")
            if isinstance(limit, float) and (limit > 1 or (drop and limit == 1)):
                points_text = f"{100 * limit:.6g} points of {metric}, which has 100"
                likely = f"; did you mean {limit:g}%?" if limit <= 100 else ""
                raise UsageError(f"{option} {limit:g}: these are {points_text}{likely}")

    def check_shares(self, original: Model) -> None:
        """Raises UsageError where a share of the original model's figure is less than one, or where
        that figure is not known."""
        for cost, limit in costs.LIMITS:
            share = self.limits.get(cost.name)
            if not isinstance(share, Share):
                continue
            whole = _whole(limit, original)
            if share.of(whole) < 1:
                raise UsageError(
                    f"{limit.option} {100 * share.value:.6g}%: of {whole} {limit.counted_in} that "
                    "is less than one"
                )

    def resolve(self, original: Model, *, proportion: bool, float_value: float | None) -> "Budget":
        """The budget in base units. `proportion`: the metric lies in [0, 1], so that a percentage
        of it means points; otherwise it is a part of `float_value`, the float model's value of the
        metric."""

        def points(requested: Share | float | None) -> float | None:
            if not isinstance(requested, Share):
                return requested
            if proportion:
                return requested.value
            # The float value is not known: NaN is a limit that nothing meets.
            return math.nan if float_value is None else requested.value * abs(float_value)

        limits: dict[str, float] = {}
        for cost, limit in costs.LIMITS:
            requested = self.limits.get(cost.name)
            if isinstance(requested, Share):
                limits[cost.name] = requested.of(_whole(limit, original))
            elif requested is not None:
                limits[cost.name] = requested
        return Budget(points(self.max_accuracy_drop), points(self.min_accuracy), limits)


def read(texts: Mapping[str, str | None]) -> Asked:
    """Parse the budget. `texts`: option of OPTIONS -> its value on the command line; None where it
    was not given. Raises UsageError."""
    budget, drop, least = Asked(), texts[DROP], texts[LEAST]
    if drop is not None:
        off = drop.strip().casefold() == "none"
        budget = replace(
            budget, max_accuracy_drop=None if off else parse_share_or_number(drop, DROP)
        )
    if least is not None:
        budget = replace(budget, min_accuracy=parse_share_or_number(least, LEAST))
    limits = {
        cost.name: limit.parse(text, limit.option)
        for cost, limit in costs.LIMITS
        if (text := texts[limit.option]) is not None
    }
    return replace(budget, limits=limits)


def _whole(limit: costs.Limit, original: Model) -> int:
    """The original model's figure that a share refers to. Raises UsageError where it is not
    known."""
    assert limit.original
    whole = limit.original(original)
    if whole is None:
        raise UsageError(f"{limit.option}: {limit.uncounted}; leave the option out")
    return whole


FIDELITY_DB = 20.0
"""Where no labels were given, an inexact candidate must reproduce every output this well."""


_SLACK = 1e-9
"""Tolerance for rounding: 0.91 - 0.90 is not 0.01 in binary."""


class Budget(Struct, frozen=True):
    """The limits in base units; one that is None or missing does not limit."""

    max_accuracy_drop: float | None = None
    min_accuracy: float | None = None
    limits: Mapping[str, float] = {}
    """Name of a cost -> the most of it."""

    def document(self) -> dict[str, float]:
        """Key in documents -> limit, for all limits that are set."""
        quality = {
            "max_accuracy_drop": self.max_accuracy_drop,
            "min_accuracy": self.min_accuracy,
        }
        cost_limits = {limit.key: self.limits.get(cost.name) for cost, limit in costs.LIMITS}
        return {key: most for key, most in {**quality, **cost_limits}.items() if most is not None}

    def objections(self, trial: Trial, *, higher_is_better: bool = True) -> list[str]:
        """Why the trial does not meet the budget, in words; empty if it does. A missing number
        never meets a limit.

        Without labels no accuracy is judged here; the fidelity of the outputs is checked elsewhere.
        """
        return [
            *self.accuracy_objections(trial, higher_is_better),
            *self.static_objections(trial),
            *self._exceeded(trial, static=False),
        ]

    def accuracy_objections(self, trial: Trial, higher_is_better: bool) -> list[str]:
        """The objections that follow from the accuracy on labelled data."""
        reasons: list[str] = []
        if trial.accuracy is None:
            return [] if self.min_accuracy is None else ["accuracy is not known"]
        drop, value = trial.accuracy.drop, trial.accuracy.value
        if self.max_accuracy_drop is not None and not (
            drop is not None and drop <= self.max_accuracy_drop + _SLACK
        ):
            shown = "unknown" if drop is None else f"{drop:.4g}"
            reasons.append(f"accuracy drop {shown} is over {self.max_accuracy_drop:.4g}")
        if self.min_accuracy is not None:
            fits = value >= self.min_accuracy if higher_is_better else value <= self.min_accuracy
            if not fits:
                word = "under" if higher_is_better else "over"
                reasons.append(
                    f"{trial.accuracy.metric} {value:.4g} is {word} {self.min_accuracy:.4g}"
                )
        return reasons

    def static_objections(self, trial: Trial) -> list[str]:
        """The objections that are known without running it: to its size and
        multiply-accumulates."""
        return self._exceeded(trial, static=True)

    def _exceeded(self, trial: Trial, *, static: bool) -> list[str]:
        reasons = []
        for cost, limit in costs.LIMITS:
            most = self.limits.get(cost.name)
            if most is None or static != (cost.needs == "nothing"):
                continue
            value = (limit.judged or cost.of)(trial)
            if value is None and static:
                reasons.append(f"{cost.noun} is not known")
            elif value is None:
                reasons.append(f"{cost.noun} was not measured ({cost.why_missing(trial)})")
            elif not (value >= most if cost.more_is_better else value <= most):
                reasons.append(limit.exceeded.format(value=value, limit=most))
        return reasons

    def crossed(self, trial: Trial) -> bool:
        """Whether the accuracy drop meets the budget but its 95 % interval exceeds it: more samples
        would be needed to be sure."""
        accuracy = trial.accuracy
        return (
            self.max_accuracy_drop is not None
            and accuracy is not None
            and accuracy.drop is not None
            and accuracy.drop_ci95 is not None
            and accuracy.drop <= self.max_accuracy_drop + _SLACK < accuracy.drop_ci95[1]
        )
