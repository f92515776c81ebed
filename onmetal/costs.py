"""What a candidate costs: the one table that the command line, the budget, the ranking and the
reports read.

One more cost is one more row here, and the figure put under its `key` into `Trial.figures` where it
is measured. Nothing heavy is imported: the command line reads the table before it answers `--help`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from onmetal.texts import units

if TYPE_CHECKING:
    from onmetal.records import Model, Trial

Noise = Literal["paired medians", "paired means", "interval", "relative", "interval of the drop"]
"""Beyond what two values must lie apart to differ:

- *paired medians*, *paired means*: the interval of the speed-up over paired rounds, each of which
  is reduced to its median or its mean;
- *interval*: the 95 % intervals of both must not touch; *relative* where one has none;
- *relative*: RELATIVE of the one that is better;
- *interval of the drop*: neither interval of the accuracy drop may hold the other's value.
"""
RELATIVE = 0.02
"""Headers and names of a file, pages and allocators of a process differ by no more."""
Needs = Literal["nothing", "timed device", "meter"]
"""What a cost cannot be known without: nothing (the artifact says it), a device whose timings are
the hardware's, or a meter of what the device takes."""


class Limit(NamedTuple):
    """The option that limits a cost."""

    option: str
    key: str
    """In the budget of a document, in base units."""
    metavar: str
    help: str
    parse: Callable[[str, str], Any]
    """(what was written, option) -> a number in base units, or a Share of the original's. Raises
    UsageError."""
    exceeded: str
    """The objection, of `value` and `limit`."""
    judged: "Callable[[Trial], float | None] | None" = None
    """What is held against the limit; None: the cost itself."""
    original: "Callable[[Model], int | None] | None" = None
    """What a share is of; None: shares are not taken."""
    counted_in: str = ""
    uncounted: str = ""
    """Why the original's may be unknown."""


class Column(NamedTuple):
    """How a cost stands in the table for people."""

    title: str
    place: int
    """From the left."""
    scales: tuple[tuple[str, float], ...]
    """Units that it may be shown in, the largest first, with what each is of the base unit."""
    leaves: int | None = None
    """Narrow terminals do without columns, the least number first; None: never without this one."""
    only_if_minimized: bool = False
    chip_title: str = ""
    """Where the candidates are a microcontroller's."""


class Merit(NamedTuple):
    """What is said for the better one of two that are equal in what is minimized."""

    order: int
    """The least that applies is said."""
    words: str


class Cost(NamedTuple):
    """One row. A value that is not known is None, satisfies no limit and wins nothing."""

    name: str
    """As `--minimize` calls it."""
    key: str
    """Of its figure in documents and in `Trial.figures`; of its reason in `Trial.missing`."""
    unit: str
    noun: str
    noise: Noise
    needs: Needs
    figure: Callable[[float], str]
    """A value beside another one's, in a reason."""
    own: Callable[[float], str]
    """A value by itself, in the sentence that says the decision."""
    more_is_better: bool = False
    minimize: bool = True
    """Whether it is a goal: `--minimize` takes it, and the Pareto set is of it."""
    must_pay: bool = False
    """Whether an inexact candidate that is not better in it, beyond noise, has no point where it is
    what is minimized."""
    stands_in: bool = False
    """Whether it decides where what was asked for cannot be timed. Of those that are equal in it,
    the fastest or what needs the least of the chip is taken, before the most exact."""
    known_on_chips: bool = False
    """Whether a microcontroller's is known without a device."""
    read: "Callable[[Trial], float | None] | None" = None
    """Its value; None: that of the figure under `key`."""
    limit: Limit | None = None
    column: Column | None = None
    merit: Merit | None = None
    comparison: str = "more {name} than"
    """What a candidate that is worse in it has or is, of `name`."""

    @property
    def paired(self) -> bool:
        """Whether it is timed in rounds, which are compared by pairs."""
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
        """The same, so that less is better."""
        value = self.of(trial)
        return -value if self.more_is_better and value is not None else value

    def why_missing(self, trial: "Trial") -> str:
        return trial.missing.get(self.key, "no reason given")


def _drop(trial: "Trial") -> float | None:
    """Without labels the worst output's noise stands for it: the less signal, the more."""
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
"""No cost but a loss of quality, which can be minimized as costs are. Its limits, of which one is
there by default, are the budget's own."""

GOALS = (*(cost for cost in COSTS if cost.minimize), DROP)
"""What `--minimize` takes."""
MEASURED = tuple(cost for cost in COSTS if cost.needs != "nothing")
"""What only a device tells, and has a reason in `Trial.missing` where none did."""
MERITS = tuple(
    (cost, cost.merit.words)
    for cost in sorted(COSTS, key=lambda cost: cost.merit.order if cost.merit else 0)
    if cost.merit
)
"""What is said for the better one of two, the first that applies."""
LIMITS = tuple((cost, cost.limit) for cost in COSTS if cost.limit is not None)


def goal(name: str) -> Cost:
    """What `--minimize NAME` minimizes."""
    return next(cost for cost in GOALS if cost.name == name)


def stand_in() -> Cost:
    """What decides where nothing can be timed."""
    return next(cost for cost in GOALS if cost.stands_in)
