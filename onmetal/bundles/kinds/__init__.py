"""Kinds of bundles: what bundles for each kind of device hold beside run.py and the artifact.

A module in this folder that defines `KIND`, a `BundleKind`, adds a kind of bundle; the transport of
a target selects it.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from msgspec import Struct

from onmetal.records import Candidate, Trial
from onmetal.targets import Target


class Contents(Struct, frozen=True):
    """The inputs from which the programs of a bundle are written."""

    chosen: Trial
    candidate: Candidate
    target: Target
    golden: dict[str, np.ndarray]
    """The golden vectors, as deploy.vectors.write_golden makes them."""
    tolerance: float


class BundleKind(Protocol):
    """One kind of bundle."""

    transport: str
    """The transport of the targets whose bundles are of this kind."""
    what: str
    """The programs that it holds, in words; empty where it holds none but run.py."""
    places: dict[str, str]
    """Where its own files may lie, as regular expressions by their kind: a file elsewhere makes a
    bundle fail its verification. PART stands for the name of a file or folder."""

    def files(self, contents: Contents) -> dict[str, bytes]:
        """Path in the bundle -> content of each file. Raises UnsupportedError where the programs
        cannot be written for this artifact."""

    def without(self, candidate: Candidate) -> dict[str, bytes]:
        """Path in the bundle -> content of each file, where the programs cannot be written."""

    def shipped(self, candidate: Candidate, left_out: str | None, *, run: bool) -> dict[str, Any]:
        """What an application made from the bundle runs, for the manifest. `left_out`: why the
        programs were not written; `run`: whether anything ran on a device."""


PART = r"\w[\w.-]*"
"""The name of a file or folder, as a regular expression."""


@cache
def kinds() -> tuple[BundleKind, ...]:
    folder = Path(__file__).parent
    names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
    return tuple(import_module(f"onmetal.bundles.kinds.{name}").KIND for name in names)


def kind_for(target: Target) -> BundleKind:
    return next(kind for kind in kinds() if kind.transport == target.device.transport)
