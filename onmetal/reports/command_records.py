"""The records of the commands beside the main job, as `--json` prints them."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from onmetal.records import Imported, Tensor
from onmetal.reports.record import Failure


class Verification(Struct, frozen=True):
    """What `deploy verify` prints."""

    schema: Literal[1]
    bundle: str
    ok: bool
    checks: dict[str, str]
    """Check -> `ok`, `failed`, or `none` where there was nothing to check by; what is not there was
    not reached."""
    problems: list[str]
    chosen: str | None
    error: Failure | UnsetType = UNSET
    """Where a check failed."""


class Check(Struct, frozen=True):
    """One thing of an installation that was looked at."""

    name: str
    found: str
    """What there is."""
    enables: str
    """What it is needed for."""
    fix: str | None = None
    """The command or deed that mends it; null: it is well."""


class Doctor(Struct, frozen=True):
    """What `deploy doctor` prints."""

    schema: Literal[1]
    checks: list[Check]


class Support(Struct, frozen=True):
    """Whether a candidate of a target can be made of the model."""

    candidate: str
    runs: bool
    says: str


class Sensitivity(Struct, frozen=True):
    """How much noise each operator adds when it alone is in 8 bits, the worst first."""

    recipe: str
    samples: int
    operators: list[dict[str, Any]]


class Inspection(Struct, frozen=True):
    """What `deploy inspect MODEL` prints."""

    schema: Literal[1]
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
    operators: dict[str, int]
    """Kind -> how many."""
    target: str | None
    support: list[Support]
    """Of the target's candidates."""
    memory: dict[str, Any] | None
    """On a microcontroller: arena, flash, plan and what an NPU is modelled to do, of the least
    exact candidate that runs."""
    sensitivity: Sensitivity | None
    """null: no data were given."""
    warnings: list[str]
    """Of the target."""


class Comparison(Struct, frozen=True):
    """What `deploy inspect ARTIFACT --against FLOAT` prints."""

    schema: Literal[1]
    artifact: str
    against: str
    samples: int
    bad_db: float
    """Under which a tensor is bad."""
    first_bad: str | None
    tensors: list[dict[str, Any]]
    """Those that both have, in the order of computation."""
