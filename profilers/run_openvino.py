"""Runs this model with OpenVINO: needs `pip install openvino numpy`, nothing else.

    python run.py                       runs the golden vectors and compares: exit 0 if they agree
    python run.py INPUTS.npz OUT.npz    runs your inputs (one array per model input, under its name,
                                        shaped as in manifest.json) and writes every output

In your own program: `from run import load; outputs = load().run({"input": array})`, with
`python -B`, so that no __pycache__ is added to the folder (`deploy verify` would find it).
It reads manifest.json beside it; this file is the same in every bundle of this runtime.
"""

import json
import pathlib
import sys
from typing import Any

# The user of a model asked for no telemetry: openvino does without this module, and its import
# would write to the home folder and look up a host.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import numpy as np
import openvino


class Session:
    """One model, opened once and run many times, one inference at a time."""

    def __init__(
        self, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> None:
        core = openvino.Core()
        self.compiled = core.compile_model(core.read_model(files[0]), "CPU", options)
        self.request = self.compiled.create_infer_request()
        self.inputs, self.outputs = inputs, outputs
        # Shapes are static, so the runtime's own buffers can be held on to: handing arrays over
        # by `infer(feed)` costs 20 us more an inference.
        self.fed = [(name, self.request.input_tensors[i].data) for i, name in enumerate(inputs)]
        self.infer = self.request.infer
        self.static = all(output.partial_shape.is_static for output in self.compiled.outputs)
        self.results = (
            [tensor.data for tensor in self.request.output_tensors] if self.static else []
        )

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Arrays by input name, as in the manifest -> arrays in the order of its outputs."""
        for name, buffer in self.fed:
            if feed[name].shape != buffer.shape:
                raise ValueError(f"input {name!r} is {feed[name].shape}, must be {buffer.shape}")
            buffer[...] = feed[name]
        self.infer()
        if not self.static:
            return [tensor.data.copy() for tensor in self.request.output_tensors]
        return [result.copy() for result in self.results]


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
