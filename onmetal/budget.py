"""Limits that a deployment must meet, from the words on the command line to objections."""

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
    """The budget as it was asked for: percentages are not yet of anything."""

    max_accuracy_drop: Share | float | None = Share(0.01)
    min_accuracy: Share | float | None = None
    limits: Mapping[str, Share | float] = {}
    """Name of a cost -> the most of it, in base units."""

    def check_meant(self, metric: str) -> None:
        """Refuse limits of a metric in [0, 1] that can only be a percentage without its sign, or
        more than there is. Raises UsageError, with the likely one."""
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
        """Refuse a part of what the original has that comes to nothing or is not known."""
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
        """In base units. `proportion`: the metric lies in [0, 1], so that a % of it is points;
        otherwise a % is a part of the float model's value."""

        def points(asked: Share | float | None) -> float | None:
            if not isinstance(asked, Share):
                return asked
            if proportion:
                return asked.value
            # A part of what is not known: a limit that nothing meets, rather than none.
            return math.nan if float_value is None else asked.value * abs(float_value)

        limits: dict[str, float] = {}
        for cost, limit in costs.LIMITS:
            asked = self.limits.get(cost.name)
            if isinstance(asked, Share):
                limits[cost.name] = asked.of(_whole(limit, original))
            elif asked is not None:
                limits[cost.name] = asked
        return Budget(points(self.max_accuracy_drop), points(self.min_accuracy), limits)


def read(texts: Mapping[str, str | None]) -> Asked:
    """`texts`: what was written behind each of OPTIONS; None where it was not given. Raises
    UsageError."""
    asked, drop, least = Asked(), texts[DROP], texts[LEAST]
    if drop is not None:
        off = drop.strip().casefold() == "none"
        asked = replace(asked, max_accuracy_drop=None if off else parse_share_or_number(drop, DROP))
    if least is not None:
        asked = replace(asked, min_accuracy=parse_share_or_number(least, LEAST))
    limits = {
        cost.name: limit.parse(text, limit.option)
        for cost, limit in costs.LIMITS
        if (text := texts[limit.option]) is not None
    }
    return replace(asked, limits=limits)


def _whole(limit: costs.Limit, original: Model) -> int:
    """What a share is of. Raises UsageError where it is not known."""
    assert limit.original
    whole = limit.original(original)
    if whole is None:
        raise UsageError(f"{limit.option}: {limit.uncounted}; leave the option out")
    return whole


FIDELITY_DB = 20.0
"""Where no labels were given, an inexact candidate must reproduce every output this well."""


_SLACK = 1e-9
"""Rounding's: 0.91 - 0.90 is not 0.01 in binary."""


class Budget(Struct, frozen=True):
    """In base units; what is None, or not there, does not limit."""

    max_accuracy_drop: float | None = None
    min_accuracy: float | None = None
    limits: Mapping[str, float] = {}
    """Name of a cost -> the most of it."""

    def document(self) -> dict[str, float]:
        """The limits that there are, by their keys in documents."""
        quality = {
            "max_accuracy_drop": self.max_accuracy_drop,
            "min_accuracy": self.min_accuracy,
        }
        cost_limits = {limit.key: self.limits.get(cost.name) for cost, limit in costs.LIMITS}
        return {key: most for key, most in {**quality, **cost_limits}.items() if most is not None}

    def objections(self, trial: Trial, *, higher_is_better: bool = True) -> list[str]:
        """Why the trial does not fit, in words; empty if it does. A missing number never passes.

        Without labels there is no accuracy to be judged by; whether the outputs are the model's is
        seen elsewhere.
        """
        return [
            *self.accuracy_objections(trial, higher_is_better),
            *self.static_objections(trial),
            *self._exceeded(trial, static=False),
        ]

    def accuracy_objections(self, trial: Trial, higher_is_better: bool) -> list[str]:
        """Of what labelled data say."""
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
        """Of what is known without running it: its size and its multiply-accumulates."""
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
        """Whether the interval of the accuracy drop reaches over the budget that its point meets:
        more samples would be needed to be sure."""
        accuracy = trial.accuracy
        return (
            self.max_accuracy_drop is not None
            and accuracy is not None
            and accuracy.drop is not None
            and accuracy.drop_ci95 is not None
            and accuracy.drop <= self.max_accuracy_drop + _SLACK < accuracy.drop_ci95[1]
        )
