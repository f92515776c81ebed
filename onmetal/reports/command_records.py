"""The records of the commands beside the main job, as `--json` prints them."""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from onmetal.records import Imported, Tensor
from onmetal.reports.record import Failure, Fidelity, Model


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


class Converted(Struct, frozen=True):
    """An input or output of a file that was converted."""

    name: str
    dtype: str
    shape: list[int]
    scale: float
    """Of whole numbers that stand for real ones: real = scale * (number - zero_point); 0: they
    stand for themselves."""
    zero_point: int
    channels_last: bool
    """Whether its channels were moved to the last axis."""
    source: Tensor
    """What it is in the model."""
    differs_in: list[Literal["name", "dtype", "shape"]]
    """What of it is not as in the model."""


class NotTaken(Struct, frozen=True):
    """A recipe of the family that was tried before, and why another one was taken."""

    recipe: str
    reason: str


class Conversion(Struct, frozen=True):
    """What `deploy convert MODEL -o FILE` prints."""

    schema: Literal[1]
    model: Model
    files: list[str]
    """What was written, the file to open first; empty where its outputs are not the model's."""
    size_bytes: int
    sha256: str
    """Of all files together, in their order."""
    recipe: str
    runtime: str
    """The runtime whose format it is."""
    runtime_version: str
    target: str | None
    """The target whose rules it was made by; null: none was named."""
    inputs: list[Converted]
    outputs: list[Converted]
    compared_with: str
    """Which framework computed the model's own outputs."""
    compared_on: Literal["calibration data", "random inputs"]
    samples: int
    least_db: float
    """What each output of real numbers must have."""
    fidelity: Fidelity
    operators_in_float: list[str] | None
    """Those of convolution and matrix multiplication that a quantized file computes in float; null:
    it is not quantized, or by a recipe that does not say."""
    details: dict[str, Any]
    """What its conversion says: options, format, estimator; keys differ by recipe and runtime."""
    not_taken: list[NotTaken]
    warnings: list[str]
    error: Failure | UnsetType = UNSET
    """Where its outputs are not the model's."""


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
