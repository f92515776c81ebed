"""A bundle for this machine: run.py and the artifact, and nothing besides."""

from typing import Any

from onmetal.bundles.kinds import BundleKind, Contents
from onmetal.records import Candidate


class Python(BundleKind):
    transport = "local"
    what = ""
    places: dict[str, str] = {}  # noqa: RUF012

    def files(self, contents: Contents) -> dict[str, bytes]:
        return {}

    def without(self, candidate: Candidate) -> dict[str, bytes]:
        return {}

    def shipped(self, candidate: Candidate, left_out: str | None, *, run: bool) -> dict[str, Any]:
        return {}


KIND: BundleKind = Python()
