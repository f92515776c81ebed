"""Compares the outputs of a device with those of this machine for the same inputs, bit by bit."""

import tempfile
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from onmetal.errors import DeviceError
from onmetal.profilers.devices import Device
from onmetal.records import Candidate

LIMIT_S = 3600.0


class Agreement(Struct, frozen=True):
    """How a device's outputs for the golden vectors differ from this machine's."""

    identical: bool
    """Bit by bit, all of them."""
    largest_difference: float
    peak: float
    """The largest magnitude among this machine's outputs."""
    same_argmax: bool
    """Of every output along its last axis."""
    vectors: int
    judged_on: str
    """Where the evaluation data ran: `device`, or `host` where the outputs are identical."""


def outputs(device: Device, candidate: Candidate, feeds: Path) -> list[list[np.ndarray]]:
    """The outputs for every feed of an .npz: by feed, then in the order of the model's outputs."""
    with tempfile.TemporaryDirectory(prefix="onmetal-") as name, device.worker() as worker:
        folder = Path(name)
        worker.open(candidate.artifact, timeout_s=LIMIT_S)
        worker.run(feeds, folder, timeout_s=LIMIT_S)
        count = len(list(folder.glob("*-0.npy")))
        return [
            [
                np.load(folder / f"{number}-{index}.npy", allow_pickle=False)
                for index in range(len(candidate.model.outputs))
            ]
            for number in range(count)
        ]


def agreement(
    host: Device, device: Device, candidate: Candidate, feeds: Path, floats: bool
) -> Agreement:
    """Run the feeds on both devices and compare the outputs.

    `floats`: whether the candidate computes with floats. Other CPUs may round those differently for
    other inputs even where these outputs agree, so then all of the data is judged on the device.
    """
    here, there = outputs(host, candidate, feeds), outputs(device, candidate, feeds)
    comparison = compared(here, there, "device")
    return (
        comparison if floats or not comparison.identical else replace(comparison, judged_on="host")
    )


def compared(
    here: list[list[np.ndarray]], there: list[list[np.ndarray]], judged_on: str
) -> Agreement:
    """Compare the outputs of two devices or runtimes that should compute the same, for every
    feed."""
    pairs = [
        pair
        for here_outputs, there_outputs in zip(here, there, strict=True)
        for pair in zip(here_outputs, there_outputs)  # noqa: B905
    ]
    identical = all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)
    gaps = [_gap(a, b) for a, b in pairs]
    return Agreement(
        identical=identical,
        largest_difference=max(gaps, default=0.0),
        peak=max((_peak(a) for a, _ in pairs), default=0.0),
        same_argmax=all(_argmax(a, b) for a, b in pairs),
        vectors=len(here),
        judged_on=judged_on,
    )


def wrong_model(address: str, name: str, comparison: Agreement) -> DeviceError:
    """The error for a board that does not say which model it holds, and computes another one."""
    return DeviceError(
        f"the firmware at {address} does not say which model it holds, and what it computes is not "
        f"{name}: off by {comparison.largest_difference:.3g} where outputs reach "
        f"{comparison.peak:.3g}; flash the firmware of this candidate's bundle"
    )


def _gap(here: np.ndarray, there: np.ndarray) -> float:
    if here.shape != there.shape:
        return float("inf")
    difference = np.abs(here.astype(np.float64) - there.astype(np.float64))
    return float(np.nanmax(difference, initial=0.0))


def _peak(array: np.ndarray) -> float:
    return float(np.nanmax(np.abs(array.astype(np.float64)), initial=0.0))


def _argmax(here: np.ndarray, there: np.ndarray) -> bool:
    if here.shape != there.shape:
        return False
    return not here.ndim or bool(np.array_equal(here.argmax(-1), there.argmax(-1)))
