"""The facts about a run, besides its candidates, that the text for people needs."""

from msgspec import Struct

from onmetal import costs
from onmetal.reports.record import AnyReport, Document, Versus


class Setting(Struct, frozen=True):
    decided_by: str = costs.LATENCY.name
    minimize: str = costs.LATENCY.name
    """What was asked to be minimized."""
    metric: str | None = None
    higher_is_better: bool = True
    proportion: bool = True
    """Whether the metric lies in [0, 1], so that its changes are given in points."""
    several_models: bool = False
    original_size_bytes: int | None = None
    emulated: bool = False
    p90: bool = False
    """Whether the budget limits it, so that the table shows it."""
    impossible: frozenset[str] = frozenset()
    """Names of candidates that were never to be tried."""
    throughput: Versus | None = None
    """The chosen one's mean throughput over the baseline's."""
    baseline_again_ms: float | None = None
    """The baseline's median of when the chosen one was measured again."""


def setting(report: AnyReport) -> Setting:
    """The setting of a deployment; for a benchmark, only the facts that do not depend on a run."""
    document, aside = report.document, report.aside
    if not isinstance(document, Document):
        return Setting(p90=True)
    several = len(document.models) > 1
    limit = costs.LATENCY.limit
    return Setting(
        decided_by=document.decided_by,
        minimize=document.minimize,
        metric=document.data.metric,
        higher_is_better=aside.higher_is_better,
        proportion=aside.proportion,
        several_models=several,
        original_size_bytes=None if several else document.models[0].size_bytes,
        emulated=document.device.emulated,
        p90=bool(limit and limit.key in document.budget),
        impossible=aside.impossible,
        throughput=aside.throughput,
        baseline_again_ms=aside.baseline_again_ms,
    )
