"""The decision in one sentence: the cost that was minimized comes first, compared with the
baseline, with intervals."""

import math
from collections.abc import Callable

from msgspec import Struct

from onmetal import costs
from onmetal.calibration.fidelity import PERFECT_DB
from onmetal.costs import Cost
from onmetal.reports.chip_record import Number
from onmetal.reports.record import Accuracy, Candidate, Versus
from onmetal.reports.setting import Setting
from onmetal.runtimes import spec
from onmetal.texts.terminal import clean
from onmetal.texts.units import size

ALIKE = 0.01
"""Sizes and memories that differ by less than this part are described as the same."""


class Clause(Struct, frozen=True):
    """`3.7x smaller`; the interval comes after the baseline, where that is named."""

    head: str
    joint: str | None = "than"
    """The word before the baseline's name; None: nothing is compared."""
    tail: str = ""

    def with_baseline(self, name: str | None) -> str:
        named = f" {self.joint} {name}" if name and self.joint else ""
        return f"{self.head}{named}{self.tail}"


def sentence(chosen: Candidate, base: Candidate | None, setting: Setting) -> str:
    """The sentence about the chosen candidate: the cost that was minimized comes first, compared
    with the baseline, which is named once."""
    if base is not None and base.name == chosen.name:
        return _baseline_itself(chosen, setting)
    goals = [costs.goal(setting.decided_by), costs.LATENCY, costs.SIZE, costs.DROP]
    if chosen.embedded:
        goals.append(costs.MEMORY)
    clauses = [_clause(goal, chosen, base, setting) for goal in dict.fromkeys(goals)]
    name = called(base, setting) if base else _original(setting)
    texts = []
    for clause in clauses:
        if clause is not None:
            texts.append(clause.with_baseline(name))
            name = None if clause.joint else name
    return f"{called(chosen, setting)}: {', '.join(texts)}."


def _baseline_itself(chosen: Candidate, setting: Setting) -> str:
    """The sentence where the baseline itself is chosen: its figures, without a comparison."""
    goal = costs.goal(setting.decided_by)
    goals = [
        each_goal
        for each_goal in (goal, costs.LATENCY)
        if each_goal not in (costs.SIZE, costs.DROP)
    ]
    clauses = [_clause(each_goal, chosen, None, setting) for each_goal in dict.fromkeys(goals)]
    texts = [clause.head + clause.tail for clause in clauses if clause is not None]
    if chosen.size_bytes is not None:
        texts.append(size(chosen.size_bytes))
    if chosen.accuracy:
        texts.append(f"{clean(chosen.accuracy.metric)} {level(chosen.accuracy.value, setting)}")
    return f"{called(chosen, setting)}, the baseline itself: {', '.join(texts)}."


def called(candidate: Candidate, setting: Setting) -> str:
    """A candidate in words, such as `int8-u8s8 on OpenVINO`, with its model where there are
    several."""
    model_text = f" of {candidate.model}" if setting.several_models else ""
    return clean(f"{candidate.recipe}{model_text} on {spec(candidate.runtime).title}")


def _original(setting: Setting) -> str | None:
    return None if setting.original_size_bytes is None else "the model's file"


# --- a clause of each cost


def _clause(
    cost: Cost, chosen: Candidate, base: Candidate | None, setting: Setting
) -> Clause | None:
    """The clause about one cost; None where its value is not known."""
    return _OF_COST.get(cost.name, _figure)(cost, chosen, base, setting)


def _figure(
    cost: Cost, chosen: Candidate, base: Candidate | None, setting: Setting
) -> Clause | None:
    chosen_value, base_value = chosen.value(cost), base.value(cost) if base else None
    if chosen_value is None:
        return None
    own = cost.own(chosen_value)
    if chosen.embedded and cost.column and cost.column.chip_title:
        return Clause(f"{cost.column.chip_title} {cost.figure(chosen_value)}", None)
    if base_value is None or not chosen_value:
        return Clause(own, None)
    return Clause(f"{_more_or_less(base_value / chosen_value)} {cost.name}", "than", f" ({own})")


def _more_or_less(ratio: float) -> str:
    if abs(ratio - 1) < ALIKE:
        return "no more"
    return f"{times(ratio)[0]}x less" if ratio > 1 else f"{times(1 / ratio)[0]}x more"


def _speed(
    cost: Cost, chosen: Candidate, base: Candidate | None, setting: Setting
) -> Clause | None:
    latency = chosen.latency_ms
    if latency is None or latency.basis == "emulated":
        return None
    own = cost.own(latency.p50)
    if latency.basis != "measured":
        return Clause(f"{own} by a model of the hardware, not measured", None)
    if base is not None and chosen.versus_baseline is not None:
        return _ratio(chosen.versus_baseline, "fast", "as fast")
    interval = latency.p50_ci95
    shown = f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else ""
    return Clause(f"p50 {own}{shown}", None)


def _ratio(versus: Versus, word: str, alike: str) -> Clause:
    value, (low, high) = _known(versus.speedup), map(_known, versus.ci95)
    if versus.verdict == "inconclusive":
        shown = times(value, low, high)
        return Clause(f"{alike} within the noise", "as", f" ({shown[0]}x [{shown[1]}, {shown[2]}])")
    if versus.verdict == "slower":
        value, low, high, word = 1 / value, 1 / high, 1 / low if low else math.inf, "slow"
    shown = times(value, low, high)
    return Clause(f"{shown[0]}x {word}er", "than", f" [{shown[1]}, {shown[2]}]")


def _throughput(
    cost: Cost, chosen: Candidate, base: Candidate | None, setting: Setting
) -> Clause | None:
    figure = chosen.figure(cost)
    if figure is None or figure.basis == "emulated":
        return None
    own, versus = cost.own(figure.value), setting.throughput
    if base is None or versus is None:
        return Clause(own, None)
    shown = times(_known(versus.speedup), *map(_known, versus.ci95))
    return Clause(f"{shown[0]}x the throughput", "of", f" [{shown[1]}, {shown[2]}] ({own})")


def _size(cost: Cost, chosen: Candidate, base: Candidate | None, setting: Setting) -> Clause | None:
    chosen_value = chosen.size_bytes
    if chosen_value is None:
        return None
    base_value = base.size_bytes if base and base.size_bytes else setting.original_size_bytes
    if not base_value or not chosen_value or (base is None and setting.original_size_bytes is None):
        return Clause(cost.own(chosen_value), None)
    ratio = base_value / chosen_value
    if abs(ratio - 1) < ALIKE:
        return Clause("the same size", "as")
    return Clause(f"{_short(ratio)}x smaller" if ratio > 1 else f"{_short(1 / ratio)}x larger")


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 1.1 else f"{ratio:.1f}" if ratio < 20 else f"{ratio:.0f}"


def _quality(
    cost: Cost, chosen: Candidate, base: Candidate | None, setting: Setting
) -> Clause | None:
    accuracy = chosen.accuracy
    if accuracy is None:
        return _fidelity(chosen)
    metric, change = clean(accuracy.metric), changed(accuracy, setting)
    if change is None:
        return Clause(f"{metric} {level(accuracy.value, setting)}, its drop is not known", None)
    value, unit, interval = change
    shown = f" [{signless(interval[0])}, {signless(interval[1])}]" if interval else ""
    return Clause(f"{metric} {signed(value)}{unit}{shown}", None)


def _fidelity(candidate: Candidate) -> Clause | None:
    worst = candidate.fidelity.least_db if candidate.fidelity else None
    if worst is None:
        return None
    if worst >= PERFECT_DB:
        return Clause("its outputs are those of the original model", None)
    return Clause(f"fidelity {worst:.0f} dB (no task metric was measured)", None)


_OF_COST: dict[str, Callable[[Cost, Candidate, Candidate | None, Setting], Clause | None]] = {
    costs.LATENCY.name: _speed,
    costs.THROUGHPUT.name: _throughput,
    costs.SIZE.name: _size,
    costs.DROP.name: _quality,
}
"""Name of a cost -> the function for its clause; the other costs use `_figure`."""


# --- numbers


def _known(value: Number) -> float:
    return math.nan if value is None else value


def times(*ratios: float) -> list[str]:
    """Ratios with only as many digits as the one nearest to 1 needs."""
    digits = 2 if min(ratios) < 2 and max(ratios) < 10 else 1 if min(ratios) < 20 else 0
    return [f"{ratio:.{digits}f}" for ratio in ratios]


def changed(
    accuracy: Accuracy, setting: Setting
) -> tuple[float, str, tuple[float, float] | None] | None:
    """By how much the metric differs from the float model's: in points, else in percent of the
    float model's value, and with its sign. None where that is not known."""
    drop = accuracy.drop
    if drop is None or not math.isfinite(drop):
        return None
    sign = -1.0 if setting.higher_is_better else 1.0
    original = _known(accuracy.value) - sign * drop
    if setting.proportion:
        scale, unit = 100.0, " points"
    elif original and math.isfinite(original):
        scale, unit = 100.0 / abs(original), " %"
    else:
        scale, unit = 1.0, ""
    ends = None
    if accuracy.drop_ci95 is not None:
        ends = sorted(sign * scale * _known(end) for end in accuracy.drop_ci95)
    return sign * scale * drop, unit, (ends[0], ends[1]) if ends else None


def signed(value: float) -> str:
    """
    >>> signed(-0.42), signed(0.0), signed(0.004), signed(12.0)
    ('-0.4', '±0.0', '+0.004', '+12.0')
    """
    text = signless(value)
    if float(text) == 0:
        return "±0.0"
    return text if value < 0 else f"+{text}"


def signless(value: float) -> str:
    """One decimal, or where that would round to nothing, the first digit that there is."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) < 1e-6:
        return "0.0"
    return f"{value:.1f}" if abs(value) >= 0.05 else f"{value:.1g}"


def level(value: Number, setting: Setting) -> str:
    if value is None:
        return "undefined"
    return f"{100 * value:.1f} %" if setting.proportion else f"{value:.4g}"
