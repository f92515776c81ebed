"""Golden vectors of a bundle, in worker processes: read, run, compared with a device's outputs."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.errors import reason
from onmetal.files import arrays
from onmetal.runtimes import run_tail, runtime
from onmetal.runtimes.protocol import Opened

FILE = "golden.npz"


def opened(folder: Path, name: str) -> Opened:
    """The session of a bundle, by the code that is in its run.py."""
    run = json.loads((folder / "manifest.json").read_text("utf-8"))["run"]
    files = [str(folder / file) for file in run["files"]]
    inputs, outputs = ([end["name"] for end in run[side]] for side in ("inputs", "outputs"))
    return runtime(name).session().Session(files, run["options"], inputs, outputs)


def check(folder: Path, name: str) -> list[str]:
    """The problems that the golden vectors show, by onmetal's own copy of the runtime's run.py."""
    try:
        return run_tail.golden(folder, opened(folder, name))
    except Exception as error:
        return [f"the artifact cannot be run: {reason(error)}"]


def describe(folder: Path, most_bytes: int) -> dict[str, dict[str, Any]]:
    """The dtype and shape of each array of the golden vectors, by its name, from the file headers.

    Raises UsageError where they are no arrays, or more than `most_bytes` together.
    """
    return {
        name: {"dtype": np.dtype(array.dtype).name, "shape": list(array.shape)}
        for name, array in arrays.heads(folder / FILE, most_bytes).items()
    }


def write_inputs(folder: Path, path: Path) -> None:
    """The golden inputs as feeds, for a device to run."""
    vectors = np.load(folder / FILE, allow_pickle=False)
    feeds = {
        f"{name.rpartition('/')[2]}/{name.removeprefix('input/').rpartition('/')[0]}": vectors[name]
        for name in vectors.files
        if name.startswith("input/")
    }
    np.savez(path, **feeds)


class Recorded:
    """Replays outputs that a device gave for the golden inputs through the Session interface."""

    def __init__(self, folder: Path, outputs: Path) -> None:
        run = json.loads((folder / "manifest.json").read_text("utf-8"))["run"]
        self.inputs = [tensor["name"] for tensor in run["inputs"]]
        self.outputs = [tensor["name"] for tensor in run["outputs"]]
        self.recorded, self.number = outputs, 0

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.number += 1
        return [
            np.load(self.recorded / f"{self.number - 1}-{index}.npy", allow_pickle=False)
            for index in range(len(self.outputs))
        ]


def compare(folder: Path, outputs: Path) -> list[str]:
    """What is wrong with outputs that a device gave for the golden inputs, as run.py would say."""
    return run_tail.golden(folder, Recorded(folder, outputs))
