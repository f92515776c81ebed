"""The record of a bundle: the document of the run that wrote it, and how to run what was chosen."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from onmetal.records import Tensor
from onmetal.reports.record import Document


class Run(Struct, frozen=True):
    """How run.py runs the artifact."""

    runtime: str
    runtime_version: str
    command: str
    files: list[str]
    """The artifact; the first is the one that the runtime opens."""
    options: dict[str, Any]
    """The runtime's own options."""
    inputs: list[Tensor]
    outputs: list[Tensor]


class Golden(Struct, frozen=True):
    """The golden vectors of a bundle."""

    vectors: int
    inputs: Literal["real", "random", "none"]
    tolerance: float
    """By which outputs may differ, as a part of the largest magnitude of an output."""


class Measured(Struct, frozen=True):
    """The runtime's build that gave the figures."""

    runner: str
    runtime: str
    runtime_version: str
    from_: str = msgspec.field(name="from")


class Shipped(Struct, frozen=True):
    """What an application made from the bundle runs."""

    kind: str
    path: str | None
    artifact: str
    measured: bool
    """Whether the figures are of it."""
    note: str


class Builds(Struct, frozen=True):
    measured: Measured | None
    """null: nothing was run on a device."""
    shipped: Shipped


class Digests(Struct, frozen=True):
    models: dict[str, str]
    data: str
    artifact: str


class File(Struct, frozen=True):
    path: str
    kind: str


class Manifest(Document, frozen=True, kw_only=True):
    """manifest.json of a bundle: the document, and how to run what was chosen. Sentences name no
    path of the machine, and `device` has no address, unless `--keep-paths` was given."""

    run: Run
    golden: Golden
    preprocessing: dict[str, Any] | None
    """How an image becomes an input; null where DATA is no folder of images."""
    classes: list[str] | None
    """What the scores are called, in their order."""
    evaluation_indices: list[int]
    digests: Digests
    tools: dict[str, str]
    """Versions."""
    device_after: dict[str, Any] | None
    """The device's state once all was measured."""
    measured: bool
    """Whether the timings are the hardware's."""
    unmeasured: str | UnsetType = UNSET
    """Why not."""
    builds: Builds | None
    """null: the bundle is for a machine like this one."""
    files: list[File] | UnsetType = UNSET
    """All of the bundle but the sums."""
