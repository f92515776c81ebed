"""The record as text for people: the decision in a sentence, the table, the reasons that matter."""

from collections.abc import Sequence

from onmetal import costs
from onmetal.reports import embedded
from onmetal.reports.reasons import reasons
from onmetal.reports.record import AnyReport, Bench, Candidate, CountedBench, Document, Opinion
from onmetal.reports.sentence import sentence
from onmetal.reports.setting import Setting, setting
from onmetal.reports.table import ORDER, table
from onmetal.texts.terminal import Screen, clean
from onmetal.texts.units import milliseconds

TIES = (
    "Sizes within 2 % of the smallest count as equal; among those, less memory or fewer modelled "
    "cycles decide, then exactness."
)


def render(report: AnyReport, screen: Screen) -> list[str]:
    document = report.document
    if isinstance(document, Bench):
        return _bench(document, setting(report), screen)
    if isinstance(document, CountedBench):
        return _counted(document)
    if document.dry_run is True:
        return _plan(document)
    return _deployment(document, setting(report), screen)


# --- a deployment


def _deployment(document: Document, run_setting: Setting, screen: Screen) -> list[str]:
    """The lines of a deployment. Where none was chosen, the error after them has the objections to
    each candidate."""
    base, chosen = document.candidate(document.baseline), document.candidate(document.chosen)
    lines = text(document.candidates, base, chosen, run_setting, screen)
    return [*lines, "", f"The bundle is in {document.bundle}"] if chosen else lines


def text(
    candidates: Sequence[Candidate],
    base: Candidate | None,
    chosen: Candidate | None,
    run_setting: Setting,
    screen: Screen,
) -> list[str]:
    lines = decision(base, chosen, run_setting, screen)
    lines += ["", *table(candidates, base, run_setting, screen)]
    lines += notes(candidates, screen)
    if chosen:
        lines += reasons(candidates, run_setting, screen)
    return lines


def decision(
    base: Candidate | None, chosen: Candidate | None, run_setting: Setting, screen: Screen
) -> list[str]:
    lines = []
    if chosen:
        decided = screen.prose(sentence(chosen, base, run_setting))
        lines += [screen.paint(line, "bold") for line in decided]
    else:
        lines += screen.prose(screen.paint("No candidate meets the budget.", "bold"))
    if why := replaced(run_setting, chosen):
        lines += screen.prose(why)
    return lines


def replaced(run_setting: Setting, chosen: Candidate | None) -> str:
    """Which goal replaced the one that was asked for, and why; without a choice, why alone."""
    if run_setting.decided_by == run_setting.minimize:
        return ""
    why = (
        "The device is emulated, so its timings mean nothing"
        if run_setting.emulated
        else "Nothing was timed, because no device was given"
    )
    if chosen is None:
        return f"{why}."
    ties = f" {TIES}" if costs.goal(run_setting.decided_by).stands_in else ""
    return f"{why}: decided by {run_setting.decided_by} instead of {run_setting.minimize}.{ties}"


def notes(candidates: Sequence[Candidate], screen: Screen) -> list[str]:
    """Lines about figures that are emulated or modelled, and about the memory that the first
    candidate takes on a microcontroller."""
    lines: list[str] = []
    rows = sorted((c for c in candidates if c.status in ORDER), key=lambda c: ORDER[c.status])
    bases = {row.latency_ms.basis for row in rows if row.latency_ms}
    if "emulated" in bases:
        lines += screen.prose("The device is emulated: its timings mean nothing and are not shown.")
    if "modelled" in bases:
        lines += screen.prose("~ modelled by Vela for the NPU alone; not measured.")
    for row in rows[:1]:
        for line in embedded.lines(row):
            lines += screen.prose(clean(line)) if line else [""]
    return lines


def _plan(document: Document) -> list[str]:
    """The plan of `--dry-run`."""
    lines = ["Would be tried:"]
    tried = [entry for entry in document.candidates if entry.status == "planned"]
    reasons_of = [f" ({entry.reason})" if entry.reason else "" for entry in tried]
    lines += [f"  {e.name}{why}" for e, why in zip(tried, reasons_of, strict=True)] or ["  nothing"]
    skipped = [entry for entry in document.candidates if entry.status == "skipped"]
    if skipped:
        lines += ["Would not be tried:", *(f"  {entry.name}: {entry.reason}" for entry in skipped)]
    return lines


# --- a benchmark


def _bench(document: Bench, run_setting: Setting, screen: Screen) -> list[str]:
    base = next(entry for entry in document.candidates if entry.name == document.baseline)
    lines = table(document.candidates, base, run_setting, screen)
    lines += notes(document.candidates, screen)
    lines += [f"{entry.name}: {entry.reason}" for entry in document.candidates if entry.reason]
    return lines + [
        f"benchmark_model of {entry.name}: {_opinion(entry.benchmark_model)}"
        for entry in document.candidates
        if entry.benchmark_model
    ]


def _opinion(opinion: Opinion) -> str:
    if opinion.avg_ms is None:
        return str(opinion.error)
    return f"{milliseconds(opinion.avg_ms)} on average"


def _counted(document: CountedBench) -> list[str]:
    return [
        f"{entry.name}: {entry.instructions:,} instructions per inference"
        for entry in document.candidates
    ]
