"""The record of a run: one typed document for each command, which every form of report renders.

JSON has the fields as they are here, in this order. Units are in the names; what was not measured
is null, with its reason in `missing`. Keys are only ever added: docs/json.md says what programs may
rely on, and docs/schema/ has the schemas, which are made of these types.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from onmetal import costs
from onmetal.records import Accelerator, Figure, Imported, Latency, Lineage, Status, Tensor, Verdict
from onmetal.reports.chip_record import Agreement, Embedded, Number

Interval = tuple[Number, Number]
Mode = Literal["quick", "default", "thorough"]


class Failure(Struct, frozen=True):
    """Why a command ended without what it was asked for."""

    code: int
    """The exit code."""
    message: str


class Model(Struct, frozen=True):
    """A model file as it was read."""

    path: str
    format: str
    sha256: str
    """Over the file and its external data."""
    size_bytes: int
    inputs: list[Tensor]
    outputs: list[Tensor]
    parameters: int
    macs: int | None
    """Multiply-accumulates of one inference; null: a shape inside is not static."""
    batch: int
    notes: list[str]
    imported: Imported | None
    """null: the file holds the graph itself."""


class Data(Struct, frozen=True):
    """What candidates were calibrated and judged with."""

    source: str
    digest: str
    metric: str | None
    """null: there were no labels."""
    output: str | None
    """The one that the metric reads."""
    calibration_samples: int
    evaluation_samples: int
    warnings: list[str]
    """Of the whole run."""


class Cluster(Struct, frozen=True):
    """CPUs of one kind."""

    cpus: list[int]
    max_khz: int | None
    capacity: int | None
    """The kernel's measure of a CPU's speed; 1024 is the fastest of the machine."""


class Device(Struct, frozen=True):
    """Where it was measured. Without a device `address` is `none` and the rest is null; what is not
    there does not apply to the kind of device."""

    address: str
    """In a bundle the transport alone."""
    digest: str | UnsetType = UNSET
    """In a bundle: of the address, keyed, so that bundles of one user can be compared."""
    cpu: str | None = None
    arch: str | None = None
    os: str | None = None
    cores: int | None = None
    """Physical ones."""
    memory_bytes: int | None = None
    emulated: bool = False
    """Whether its timings are not the hardware's."""
    flags: list[str] | UnsetType = UNSET
    """Instruction sets, as the CPU calls them."""
    runtimes: dict[str, str] | UnsetType = UNSET
    """Runtime -> its version there."""
    state: dict[str, Any] | UnsetType = UNSET
    """What may change while a run lasts: clocks, load, temperatures."""
    accelerators: list[Accelerator] | UnsetType = UNSET
    """GPUs and NPUs beside the CPU; not there where none was found."""
    model: str | UnsetType | None = UNSET
    soc: str | UnsetType | None = UNSET
    abis: list[str] | UnsetType = UNSET
    clusters: list[Cluster] | UnsetType = UNSET
    virtual: bool | UnsetType = UNSET
    emulated_why: str | UnsetType | None = UNSET
    python: str | UnsetType | None = UNSET
    model_digest: str | UnsetType | None = UNSET
    """SHA-256 of the model that a board's firmware holds."""
    profile: str | UnsetType | None = UNSET
    """The name of a board's firmware."""
    arena_bytes_used: int | UnsetType | None = UNSET
    arena_bytes_given: int | UnsetType | None = UNSET
    baud: int | UnsetType | None = UNSET
    meters: list[str] | UnsetType = UNSET
    pinned_to: list[int] | UnsetType = UNSET
    """CPUs that the measured processes run on."""


class Accuracy(Struct, frozen=True):
    """What labelled samples say."""

    metric: str
    value: Number
    drop: Number
    """How much worse than the float model, in the metric's own units; negative is better."""
    drop_ci95: Interval | None
    samples: int


class Slice(Struct, frozen=True):
    """The worst slice of an output: what has one index along one axis."""

    axis: int
    index: int
    sqnr_db: Number
    range: Interval
    """Of the original model's values in it."""


class Fidelity(Struct, frozen=True):
    """How outputs follow the original model's, by the name of the output."""

    sqnr_db: dict[str, Number]
    """Signal to quantization noise, of outputs of real numbers."""
    equal: dict[str, Number]
    """The share of equal elements, of outputs of whole numbers."""
    worst_slice: dict[str, Slice]
    """Of outputs whose slices differ much in range."""

    @property
    def least_db(self) -> float | None:
        return min((db for db in self.sqnr_db.values() if db is not None), default=None)


class Versus(Struct, frozen=True):
    """The baseline's p50 latency over this one's, from paired rounds."""

    speedup: Number
    ci95: Interval
    verdict: Verdict


class _Described(Struct, frozen=True, kw_only=True):
    """What is known of a candidate before it runs, how good it is, and how fast."""

    name: str
    model: str
    """The stem of the model file."""
    recipe: str
    runtime: str
    runtime_version: str | None
    details: dict[str, Any]
    """What its conversion says: options, format, estimator; keys differ by recipe and runtime."""
    sha256: str | None
    """Of the artifact; null: it was not made."""
    lineage: Lineage
    status: Status
    reason: str | None
    """Why it failed, was skipped, does not meet the budget or was not chosen."""
    warnings: list[str]
    size_bytes: int | None
    macs: int | None
    accuracy: Accuracy | None
    fidelity: Fidelity | None
    """null: its outputs were not compared."""
    latency_ms: Latency | None


if TYPE_CHECKING:
    _Measured = _Described
else:  # a field for each further figure in the table of costs
    _Measured = msgspec.defstruct(
        "_Measured",
        [(cost.key, Figure | None) for cost in costs.MEASURED if cost is not costs.LATENCY],
        bases=(_Described,),
        frozen=True,
        kw_only=True,
    )


class Candidate(_Measured, frozen=True, kw_only=True):
    """A candidate, tried or not."""

    versus_baseline: Versus | None
    ran_on: dict[str, Any] | None
    """What really ran, by the runtime's own profile: shares of time or operators by provider and
    precision; keys differ by runtime."""
    device_outputs: Agreement | None
    """How a remote device's outputs differ from those of this machine."""
    embedded: Embedded | None
    """Of a microcontroller's."""
    missing: dict[str, str]
    """Why a figure is null."""

    def figure(self, cost: costs.Cost) -> Figure | None:
        """Of a row whose figure says what it rests on."""
        figure = getattr(self, cost.key)
        return figure if isinstance(figure, Figure) else None

    def value(self, cost: costs.Cost) -> float | None:
        """Of one row of the table of costs; of latency the median."""
        figure: Latency | Figure | int | None = getattr(self, cost.key)
        if isinstance(figure, Latency):
            return figure.p50
        return figure.value if isinstance(figure, Figure) else figure

    @property
    def instructions(self) -> int | None:
        """Of one inference, where the device counts them."""
        counted: int | None = (self.ran_on or {}).get("instructions_per_inference")
        return counted


class Document(Struct, frozen=True, kw_only=True):
    """What `deploy MODEL --target T --json` prints."""

    schema: Literal[1]
    target: str
    mode: Mode
    decided_by: str
    """What was minimized: `size` where nothing could be timed."""
    models: list[Model]
    data: Data
    device: Device
    budget: Mapping[str, int | float | None]
    """Limits in base units; what is not there does not limit. null: no value meets it."""
    minimize: str
    batch: int
    threads: int
    candidates: list[Candidate]
    baseline: str | None
    chosen: str | None
    pareto: list[str]
    """Names of those that no other one beats in everything."""
    bundle: str | None
    dry_run: bool | UnsetType = UNSET
    error: Failure | UnsetType = UNSET

    def candidate(self, name: str | None) -> Candidate | None:
        return next((entry for entry in self.candidates if entry.name == name), None)


class Opinion(Struct, frozen=True, omit_defaults=True):
    """What Google's benchmark_model says of the same artifact, or why it says nothing."""

    error: str | None = None
    runs: int | None = None
    avg_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    std_ms: float | None = None
    median_ms: float | None = None
    p5_ms: float | None = None
    p95_ms: float | None = None
    init_ms: float | None = None
    first_ms: float | None = None
    memory_bytes: float | None = None


class BenchCandidate(Candidate, frozen=True, kw_only=True):
    benchmark_model: Opinion | None
    """null: it was not asked."""


class Bench(Struct, frozen=True, kw_only=True):
    """What `deploy bench --json` prints."""

    schema: Literal[1]
    mode: Mode
    seed: int
    device: Device
    warnings: list[str]
    threads: int
    baseline: str
    """The first artifact."""
    raw_samples: str | None
    """The .npz of all samples, in the cache."""
    candidates: list[BenchCandidate]


class Counted(Struct, frozen=True):
    """An artifact on an emulator, which counts instructions and has no time."""

    name: str
    ran_on: dict[str, Any]
    """The count, and how it came about."""

    @property
    def instructions(self) -> int:
        """Of one inference."""
        return int(self.ran_on["instructions_per_inference"])


class CountedBench(Struct, frozen=True):
    """What `deploy bench --json` prints where the device is an emulated board."""

    schema: Literal[1]
    device: Device
    candidates: list[Counted]


class Aside(Struct, frozen=True):
    """What the text for people says of a run that its document leaves to other fields or out."""

    higher_is_better: bool = True
    """Of the metric."""
    proportion: bool = True
    """Whether the metric lies in [0, 1], so that its changes are given in points."""
    impossible: frozenset[str] = frozenset()
    """Names of candidates that were never to be tried."""
    throughput: Versus | None = None
    """The chosen one's mean throughput over the baseline's."""
    baseline_again_ms: float | None = None
    """The baseline's median of when the chosen one was measured again."""


Kind = TypeVar("Kind", Document, Bench, CountedBench)


class Report(Struct, Generic[Kind], frozen=True):
    """What a form renders."""

    document: Kind
    aside: Aside = Aside()


AnyReport = Report[Document] | Report[Bench] | Report[CountedBench]
