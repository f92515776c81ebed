"""The costs of a candidate: the one table that the command line, the budget, the ranking and the
reports read.

A new cost needs a row in this table, and the code that measures it must put its figure under `key`
into `Trial.figures`. Nothing heavy is imported: the command line reads the table before it answers
`--help`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from onmetal.texts import units

if TYPE_CHECKING:
    from onmetal.records import Model, Trial

Noise = Literal["paired medians", "paired means", "interval", "relative", "interval of the drop"]
"""The noise of a cost: by how much two values must differ to count as different.

- *paired medians*, *paired means*: the interval of the speed-up over paired rounds, each of which
  is reduced to its median or its mean;
- *interval*: the 95 % intervals of both must not touch; *relative* where one has none;
- *relative*: RELATIVE of the one that is better;
- *interval of the drop*: neither interval of the accuracy drop may hold the other's value.
"""
RELATIVE = 0.02
"""File headers and names, and the pages and allocators of a process, cause no larger
differences."""
Needs = Literal["nothing", "timed device", "meter"]
"""What is needed to know a cost: nothing (it follows from the artifact), a device whose timings are
those of the hardware, or a power meter of the device."""


class Limit(NamedTuple):
    """The option that limits a cost."""

    option: str
    key: str
    """The key of the limit in the budget of a document, in base units."""
    metavar: str
    help: str
    parse: Callable[[str, str], Any]
    """(value on the command line, option) -> a number in base units, or a Share of the original
    model's figure. Raises UsageError."""
    exceeded: str
    """The objection where it is exceeded: a format string with `value` and `limit`."""
    judged: "Callable[[Trial], float | None] | None" = None
    """The value that is compared with the limit; None: the cost itself."""
    original: "Callable[[Model], int | None] | None" = None
    """The original model's figure that a Share refers to; None: the limit cannot be a share."""
    counted_in: str = ""
    uncounted: str = ""
    """Why the original model's figure may be unknown."""


class Column(NamedTuple):
    """The column of a cost in the table for people."""

    title: str
    place: int
    """Its position, counted from the left."""
    scales: tuple[tuple[str, float], ...]
    """(unit that it may be shown in, factor to the base unit), the largest unit first."""
    leaves: int | None = None
    """Narrow terminals leave out columns, the one with the least number first; None: never this
    one."""
    only_if_minimized: bool = False
    chip_title: str = ""
    """The title where the candidates are for a microcontroller."""


class Merit(NamedTuple):
    """The words in favour of the better one of two candidates that are equal in the minimized
    cost."""

    order: int
    """Of all merits that apply, the one with the least order is used."""
    words: str


class Cost(NamedTuple):
    """One row of the table. An unknown value is None, meets no limit and is never the better
    one."""

    name: str
    """The name in `--minimize`."""
    key: str
    """The key of its figure in documents and in `Trial.figures`, and of the reason in
    `Trial.missing`."""
    unit: str
    noun: str
    noise: Noise
    needs: Needs
    figure: Callable[[float], str]
    """Formats a value that is compared with another one, in a reason."""
    own: Callable[[float], str]
    """Formats a single value, in the sentence about the decision."""
    more_is_better: bool = False
    minimize: bool = True
    """Whether it is a goal: `--minimize` accepts it, and the Pareto set considers it."""
    must_pay: bool = False
    """Whether, where this cost is minimized, an inexact candidate must be better in it than the
    baseline, beyond noise."""
    stands_in: bool = False
    """Whether this cost decides where the requested one cannot be timed. Among candidates that are
    equal in it, the fastest one, or the one that needs the least memory of the chip, is preferred,
    and only then the most exact one."""
    known_on_chips: bool = False
    """Whether its value for a microcontroller is known without a device."""
    read: "Callable[[Trial], float | None] | None" = None
    """Reads its value from a trial; None: the value of the figure under `key`."""
    limit: Limit | None = None
    column: Column | None = None
    merit: Merit | None = None
    comparison: str = "more {name} than"
    """The words for a candidate that is worse in it: a format string with `name`."""

    @property
    def paired(self) -> bool:
        """Whether it is timed in rounds, which are compared in pairs."""
        return self.noise in ("paired medians", "paired means")

    @property
    def by_means(self) -> bool:
        return self.noise == "paired means"

    def of(self, trial: "Trial") -> float | None:
        if self.read is not None:
            return self.read(trial)
        figure = trial.figures.get(self.key)
        return None if figure is None else figure.value

    def minimized(self, trial: "Trial") -> float | None:
        """The value of the cost, negated where more is better, so that less is always better."""
        value = self.of(trial)
        return -value if self.more_is_better and value is not None else value

    def why_missing(self, trial: "Trial") -> str:
        return trial.missing.get(self.key, "no reason given")


def _drop(trial: "Trial") -> float | None:
    """The accuracy drop; without labels, the negated SQNR in dB of the worst output."""
    if trial.accuracy is not None:
        drop = trial.accuracy.drop
        return None if drop is None or drop != drop else drop
    return -min(trial.sqnr_db.values()) if trial.sqnr_db else None


LATENCY = Cost(
    name="latency",
    key="latency_ms",
    unit="ms",
    noun="latency",
    noise="paired medians",
    needs="timed device",
    figure="{:.4g}".format,
    own=units.milliseconds,
    must_pay=True,
    read=lambda trial: trial.latency_ms.p50 if trial.latency_ms else None,
    limit=Limit(
        option="--max-latency",
        key="max_latency_ms",
        metavar="20ms",
        help="judged on the 90th percentile",
        parse=units.parse_ms,
        judged=lambda trial: trial.latency_ms.p90 if trial.latency_ms else None,
        exceeded="p90 latency {value:.4g} ms is over {limit:.4g} ms",
    ),
    column=Column("p50", 2, units.TIMES),
    merit=Merit(1, "is faster"),
)
THROUGHPUT = Cost(
    name="throughput",
    key="throughput_per_s",
    unit="a second",
    noun="throughput",
    noise="paired means",
    needs="timed device",
    figure="{:.4g}".format,
    own=lambda per_second: f"{units.rate(per_second)} inferences a second",
    more_is_better=True,
    must_pay=True,
    column=Column("rate", 5, (("a second", 1.0),), leaves=3, only_if_minimized=True),
    comparison="less {name} than",
)
LOAD = Cost(
    name="load",
    key="load_ms",
    unit="ms",
    noun="load time",
    noise="relative",
    needs="timed device",
    figure="{:.4g}".format,
    own=units.milliseconds,
    minimize=False,
)
SIZE = Cost(
    name="size",
    key="size_bytes",
    unit="bytes",
    noun="size",
    noise="relative",
    needs="nothing",
    figure=units.size,
    own=units.size,
    stands_in=True,
    read=lambda trial: trial.candidate.size_bytes if trial.candidate else None,
    limit=Limit(
        option="--max-size",
        key="max_size_bytes",
        metavar="4MB|50%",
        help="of the artifact; a %% is of the model's file",
        parse=units.parse_share_or_bytes,
        original=lambda model: model.size_bytes,
        counted_in="bytes",
        exceeded="size {value} bytes is over {limit} bytes",
    ),
    column=Column("size", 1, units.BYTES),
    merit=Merit(3, "has less size"),
    comparison="larger than",
)
MACS = Cost(
    name="MACs",
    key="macs",
    unit="MACs",
    noun="the number of multiply-accumulates",
    noise="relative",
    needs="nothing",
    figure="{:,.0f}".format,
    own="{:,.0f} multiply-accumulates".format,
    minimize=False,
    read=lambda trial: trial.candidate.model.macs if trial.candidate else None,
    limit=Limit(
        option="--max-macs",
        key="max_macs",
        metavar="70%",
        help="of the model's multiply-accumulates",
        parse=units.parse_share_above_zero,
        original=lambda model: model.macs,
        counted_in="multiply-accumulates",
        uncounted="the multiply-accumulates of this model could not be counted (a shape inside it "
        "is not static)",
        exceeded="{value} MACs are over {limit}",
    ),
)
MEMORY = Cost(
    name="memory",
    key="peak_memory_bytes",
    unit="bytes",
    noun="peak memory",
    noise="relative",
    needs="timed device",
    figure=units.size,
    own=lambda count: f"peak memory {units.size(count)}",
    known_on_chips=True,
    limit=Limit(
        option="--max-memory",
        key="max_memory_bytes",
        metavar="64MB",
        help="peak above the loaded runtime; the arena on a chip",
        parse=units.parse_bytes,
        exceeded="peak memory {value:.6g} bytes is over {limit} bytes",
    ),
    column=Column("memory", 7, units.BYTES, leaves=1, chip_title="RAM"),
    merit=Merit(2, "has less memory"),
)
ENERGY = Cost(
    name="energy",
    key="energy_mj",
    unit="mJ",
    noun="energy",
    noise="interval",
    needs="meter",
    figure="{:.4g}".format,
    own="{:.3g} mJ an inference".format,
    must_pay=True,
    limit=Limit(
        option="--max-energy",
        key="max_energy_mj",
        metavar="5mJ",
        help="of one inference",
        parse=units.parse_mj,
        exceeded="energy {value:.6g} mJ is over {limit} mJ",
    ),
    column=Column("energy", 6, (("mJ", 1.0),), leaves=4),
    merit=Merit(4, "has less energy"),
)
COSTS = (LATENCY, THROUGHPUT, LOAD, SIZE, MACS, MEMORY, ENERGY)

DROP = Cost(
    name="accuracy-drop",
    key="accuracy",
    unit="of the metric",
    noun="accuracy drop",
    noise="interval of the drop",
    needs="nothing",
    figure="{:.4g}".format,
    own="{:.4g}".format,
    read=_drop,
)
"""The loss of quality, which can be minimized like a cost. Its limits, of which one is set by
default, are fields of the budget itself."""

GOALS = (*(cost for cost in COSTS if cost.minimize), DROP)
"""The costs that `--minimize` accepts."""
MEASURED = tuple(cost for cost in COSTS if cost.needs != "nothing")
"""The costs that only a device can measure, with a reason in `Trial.missing` where none did."""
MERITS = tuple(
    (cost, cost.merit.words)
    for cost in sorted(COSTS, key=lambda cost: cost.merit.order if cost.merit else 0)
    if cost.merit
)
"""(cost, words in favour of the candidate that is better in it), in the order of use."""
LIMITS = tuple((cost, cost.limit) for cost in COSTS if cost.limit is not None)


def goal(name: str) -> Cost:
    """The cost that `--minimize NAME` minimizes."""
    return next(cost for cost in GOALS if cost.name == name)


def stand_in() -> Cost:
    """The cost that decides where nothing can be timed."""
    return next(cost for cost in GOALS if cost.stands_in)
