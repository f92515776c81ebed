"""LiteRT: the .tflite file as converters/tflite made it, checked against the specification."""

import os
import shutil
from pathlib import Path
from typing import Any

from onmetal.errors import UnsupportedError
from onmetal.runtimes.bounds import Names, Threads
from onmetal.runtimes.protocol import Hardware

VERSION = 1
ALONE = False
OPTIONS: dict[str, Any] = {
    "num_threads": Threads,
    "nhwc": Names,
    "float16": Names,
    "stateful": bool,
}
"""`nhwc`: the inputs and outputs that the file has with channels last, which run.py transposes;
`float16`: those that the model has in float16 and the file has not, which run.py casts;
`stateful`: whether it has variable tensors, which are reset before every inference."""
RESERVED = frozenset(OPTIONS)


def convert(prepared: str, compute: str, folder: str, hardware: Hardware) -> list[str]:
    from onmetal.converters.tflite import check
    from onmetal.converters.tflite.parsing import read
    from onmetal.runtimes.litert import half

    if found := check.problems(read(Path(prepared))):
        raise UnsupportedError(f"the file violates TFLite's specification: {found[0]}")
    target = Path(folder) / "model.tflite"
    if compute == "f16":
        target.write_bytes(half.allow(Path(prepared).read_bytes()))
        return ["model.tflite"]
    try:
        os.link(prepared, target)
    except OSError:
        shutil.copyfile(prepared, target)
    return ["model.tflite"]


def options(compute: str, threads: int) -> dict[str, Any]:
    return {"num_threads": threads}


def precisions(path: str) -> dict[str, str]:
    """What each kind of operator of a .tflite file computes in: that of most of its operators."""
    from collections import Counter

    from onmetal.converters.tflite.parsing import read
    from onmetal.converters.tflite.precision import precision

    found: dict[str, Counter[str]] = {}
    for op in read(Path(path)).ops:
        types = [tensor.dtype.name for tensor in (*op.outputs, *op.taken)]
        found.setdefault(op.kind, Counter())[precision(op.kind, types)] += 1
    return {kind: counts.most_common(1)[0][0] for kind, counts in found.items()}


def describe(path: str) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs of a .tflite file, as it has them itself."""
    from onmetal.converters.tflite.ends import ends

    return ends(path)
