"""What must be known of a .tflite file to communicate with a board that it is compiled into."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters.tflite.ends import ends
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.precision import precision


def operators(path: str) -> dict[str, Any]:
    """Shares of a .tflite file's operators, by kind and by the type computed in: TFLite Micro has
    one kernel for each."""
    ops = read(Path(path)).ops
    kinds = Counter(op.custom or op.kind for op in ops)
    computed = Counter(
        precision(op.kind, [tensor.dtype.name for tensor in (*op.outputs, *op.taken)]) for op in ops
    )
    total = max(1, len(ops))
    return {
        "precision": {kind: round(n / total, 4) for kind, n in computed.most_common()},
        "operators": {name: round(n / total, 4) for name, n in kinds.most_common()},
        "of": "operators",
        "kernels": len(ops),
    }


def tensors(path: str) -> dict[str, Any]:
    """A .tflite file's inputs and outputs, as devices.answers.TensorsOnDevice, in its own order."""
    stored = ends(path)
    return {
        side: [
            {
                "name": end["name"],
                "dtype": end["dtype"],
                "bytes": int(np.prod(end["shape"], dtype=np.int64))
                * np.dtype(end["dtype"]).itemsize,
                "scale": end["scale"],
                "zero": end["zero_point"],
                "shape": end["shape"],
            }
            for end in stored[side]
        ]
        for side in ("inputs", "outputs")
    }
