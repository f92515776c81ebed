"""Runs this model with ONNX Runtime: needs `pip install onnxruntime numpy`, nothing else.

    python run.py                       runs the golden vectors and compares: exit 0 if they agree
    python run.py INPUTS.npz OUT.npz    runs your inputs (one array per model input, under its name,
                                        shaped as in manifest.json) and writes every output

In your own program: `from run import load; outputs = load().run({"input": array})`, with
`python -B`, so that no __pycache__ is added to the folder (`deploy verify` would find it).
It reads manifest.json beside it; this file is the same in every bundle of this runtime.
"""

import json
import os
import pathlib
import sys
from typing import Any

# The user of a model asked for no telemetry: it must be off before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime

ENUMS = {
    "execution_mode": onnxruntime.ExecutionMode,
    "graph_optimization_level": onnxruntime.GraphOptimizationLevel,
}


class Session:
    """One model, opened once and run many times, one inference at a time."""

    def __init__(
        self, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for name, value in options.items():
            if "." in name:
                settings.add_session_config_entry(name, str(value))
            elif name in ENUMS:
                setattr(settings, name, getattr(ENUMS[name], str(value)))
            elif hasattr(settings, name):
                setattr(settings, name, value)
            else:
                raise ValueError(f"onnxruntime {onnxruntime.__version__} has no option {name!r}")
        self.session = onnxruntime.InferenceSession(
            files[0], settings, providers=["CPUExecutionProvider"]
        )
        self.inputs, self.outputs = inputs, outputs

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Arrays by input name, as in the manifest -> arrays in the order of its outputs."""
        return self.session.run(self.outputs, feed)  # type: ignore[no-any-return]


# What follows is the same for every runtime.


HERE = pathlib.Path(__file__).resolve().parent


def load(folder: pathlib.Path = HERE) -> Session:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    how = manifest["run"]
    return Session(
        [str(folder / name) for name in how["files"]],
        how["options"],
        [tensor["name"] for tensor in how["inputs"]],
        [tensor["name"] for tensor in how["outputs"]],
    )


def differences(
    expected: np.ndarray, found: np.ndarray, tolerance: float
) -> tuple[float, float, bool]:
    """The largest absolute difference, what is allowed, and whether it fits.

    The tolerance is relative to the largest magnitude expected; integers must be equal.
    """
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf"), 0.0, False
    if expected.dtype.kind != "f":
        return (
            float(np.count_nonzero(expected != found)),
            0.0,
            bool(np.array_equal(expected, found)),
        )
    gap = np.abs(expected.astype(np.float64) - found.astype(np.float64))
    same = np.isnan(expected) & np.isnan(found) | (expected == found)
    worst = float(np.max(np.where(same, 0.0, gap), initial=0.0))
    peak = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return worst, tolerance * float(peak), bool(worst <= tolerance * float(peak))


def golden(folder: pathlib.Path, session: Session) -> list[str]:
    """What is wrong with the outputs for the golden vectors, in words; empty if nothing is."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    vectors = np.load(folder / "golden.npz", allow_pickle=False)
    wrong = []
    for number in range(manifest["golden"]["vectors"]):
        feed = {name: vectors[f"input/{name}/{number}"] for name in session.inputs}
        for name, found in zip(session.outputs, session.run(feed), strict=True):
            expected = vectors[f"output/{name}/{number}"]
            worst, allowed, fits = differences(expected, found, manifest["golden"]["tolerance"])
            if not fits:
                wrong.append(
                    f"golden vector {number}, output {name!r}: "
                    f"off by {worst:.4g} where {allowed:.4g} is allowed"
                )
    return wrong


def main(argv: list[str]) -> int:
    if len(argv) not in (0, 2):
        print(__doc__, file=sys.stderr)
        return 2
    session = load()
    if not argv:
        wrong = golden(HERE, session)
        print("\n".join(wrong) or "the golden vectors agree")
        return 1 if wrong else 0
    given = np.load(argv[0], allow_pickle=False)
    found = session.run({name: given[name] for name in session.inputs})
    np.savez(argv[1], **dict(zip(session.outputs, found, strict=True)))  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
