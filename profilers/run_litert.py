"""Runs this model with LiteRT: needs `pip install ai-edge-litert numpy`, nothing else.

On boards that have only its predecessor, `pip install tflite-runtime` (Python 3.11 and NumPy 1)
does too.

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

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:  # the same interpreter under its older name
    from tflite_runtime.interpreter import Interpreter


NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class Session:
    """One model, opened once and run many times, one inference at a time.

    Arrays are handed over and come back in the layout and type that the original model has; where
    the artifact has channels last, or whole numbers, or float32 for float16, that is done here.
    """

    def __init__(
        self, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> None:
        self.interpreter = Interpreter(
            model_path=files[0], num_threads=int(options.get("num_threads", 1))
        )
        self.interpreter.allocate_tensors()
        self.inputs, self.outputs = inputs, outputs
        turned, half = options.get("nhwc", []), options.get("float16", [])
        taken, given = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        self.taken = [
            (
                *(name, entry["index"], name in turned, name in half),
                *(entry["dtype"], entry["quantization"]),
            )
            for name, entry in zip(
                inputs, _ordered(self.interpreter, taken, inputs, 0), strict=True
            )
        ]
        self.given = [
            (entry["index"], name in turned, name in half, entry["dtype"], entry["quantization"])
            for name, entry in zip(
                outputs, _ordered(self.interpreter, given, outputs, 1), strict=True
            )
        ]
        self.stateful = bool(options.get("stateful"))
        self.set, self.get = self.interpreter.set_tensor, self.interpreter.get_tensor
        self.invoke = self.interpreter.invoke

    def run(self, feed: dict[str, np.ndarray], keep_state: bool = False) -> list[np.ndarray]:
        """Arrays by input name, as in the manifest -> arrays in the order of its outputs.

        A model that keeps state begins anew each time; `keep_state`: it goes on where it was.
        """
        if self.stateful and not keep_state:
            self.interpreter.reset_all_variables()
        for name, index, turned, half, dtype, (scale, zero) in self.taken:
            array = feed[name]
            if turned:
                array = np.ascontiguousarray(array.transpose(NHWC))
            if half:
                array = array.astype(np.float32)
            if array.dtype != dtype and scale:
                limits = np.iinfo(dtype)
                array = np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(dtype)
            self.set(index, array)
        self.invoke()
        found = []
        for index, turned, half, dtype, (scale, zero) in self.given:
            array = self.get(index)
            if scale and dtype in (np.int8, np.uint8, np.int16):
                array = (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)
            if half:
                array = array.astype(np.float16)
            found.append(np.ascontiguousarray(array.transpose(NCHW)) if turned else array)
        return found


def _ordered(
    interpreter: Any, details: list[dict[str, Any]], names: list[str], kind: int
) -> list[dict[str, Any]]:
    """The tensors in the order of the names that the signature gives them."""
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return details
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    known = runner.get_output_details() if kind else runner.get_input_details()
    if not set(names) <= set(known):
        return details
    return [known[name] for name in names]


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
