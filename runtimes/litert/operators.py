"""LiteRT's list of operators, from this machine or a device, as the shares that a delegate runs."""

from collections import Counter
from typing import Any

import numpy as np

from onmetal.converters.tflite.precision import precision


def shares(
    ops: list[dict[str, Any]], types: dict[int, Any], in_float16: bool = False
) -> dict[str, Any]:
    """`ops`: as Interpreter._get_ops_details gives them; `types`: tensor -> its dtype;
    `in_float16`: whether XNNPACK computes in float16 where the file has float32.

    Shares of the operators, since LiteRT's Python has no clock for each of them.
    """
    real = [op for op in ops if op["op_name"] != "DELEGATE"]
    in_delegates = delegated(ops)
    undelegated = [op for op in real if op["index"] not in in_delegates]
    share = len(in_delegates) / max(1, len(real))
    precisions: Counter[str] = Counter()
    for op in real:
        tensors = [int(t) for t in (*op["outputs"], *op["inputs"]) if int(t) in types]
        kind = precision(str(op["op_name"]), [np.dtype(types[t]).name for t in tensors])
        narrowed = in_float16 and kind == "f32" and op["index"] in in_delegates
        precisions["f16" if narrowed else kind] += 1
    names = Counter(str(op["op_name"]) for op in real)
    total = max(1, sum(precisions.values()))
    return {
        "provider": {"XNNPACK": round(share, 4), "LiteRT": round(1 - share, 4)},
        "precision": {kind: round(n / total, 4) for kind, n in precisions.most_common()},
        "operators": {name: round(n / total, 4) for name, n in names.most_common()},
        "not_delegated": dict(Counter(str(op["op_name"]) for op in undelegated)),
        "of": "operators",
        "kernels": len(undelegated) + sum(op["op_name"] == "DELEGATE" for op in ops),
    }


def delegated(ops: list[dict[str, Any]]) -> set[int]:
    """Indices of the operators that a delegate replaces: all between its inputs and its outputs."""
    makers = {int(out): op for op in ops if op["op_name"] != "DELEGATE" for out in op["outputs"]}
    indices: set[int] = set()
    for delegate in ops:
        if delegate["op_name"] != "DELEGATE":
            continue
        inputs = {int(tensor) for tensor in delegate["inputs"]}
        waiting = [int(tensor) for tensor in delegate["outputs"]]
        while waiting:
            op = makers.get(waiting.pop())
            if op is None or op["index"] in indices:
                continue
            indices.add(op["index"])
            waiting += [int(t) for t in op["inputs"] if int(t) not in inputs]
    return indices
