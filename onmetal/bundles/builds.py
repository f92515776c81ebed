"""Additional files of a bundle for a phone or a board, and which build of the runtime its figures
are of: the build that was measured is not always the one that an application will use."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onmetal.bundles.kinds import Contents, kind_for
from onmetal.errors import UnsupportedError, UsageError
from onmetal.profilers.devices import Build, Device
from onmetal.records import Trial
from onmetal.targets import Target


def check_golden(target: Target, golden: str) -> None:
    """Raises UsageError where the programs in the bundle check themselves by golden vectors, and
    --golden none was given."""
    what = kind_for(target).what
    if golden == "none" and what:
        raise UsageError(
            f"--golden none: {what}, which the bundle for {target.name} holds, checks itself by "
            "golden vectors; --golden random makes some without your data"
        )


class Beside(NamedTuple):
    """The additional contents of a bundle."""

    files: dict[str, bytes]
    """By their path in the bundle."""
    builds: dict[str, Any] | None
    """Of the manifest; None: the bundle is for this machine."""
    warnings: tuple[str, ...]


def beside(
    target: Target, device: Device | None, chosen: Trial, golden: Path, tolerance: float
) -> Beside:
    """The contents of the bundle beside run.py and the artifact."""
    candidate, kind = chosen.candidate, kind_for(target)
    assert candidate
    if not kind.what:
        return Beside({}, None, ())
    with np.load(golden, allow_pickle=False) as stored:
        vectors = {name: stored[name] for name in stored.files}
    try:
        files = kind.files(Contents(chosen, candidate, target, vectors, tolerance))
        left_out = None
    except UnsupportedError as error:
        files, left_out = kind.without(candidate), f"{kind.what} was not written: {error}"
    elsewhere = device is not None and not device.traits.kernels_of_host
    counted = device is not None and device.traits.counts_instructions
    build = device.built(candidate.runtime) if device else None
    builds = {
        "measured": _measured(build),
        "shipped": kind.shipped(candidate, left_out, run=elsewhere and not counted),
    }
    return Beside(files, builds, (left_out,) if left_out else ())


def _measured(build: Build | None) -> dict[str, Any] | None:
    """The runtime's build that gave the figures; None: nothing was run on a device."""
    if build is None:
        return None
    return {
        "runner": build.runner,
        "runtime": build.runtime,
        "runtime_version": build.runtime_version,
        "from": build.origin,
    }
