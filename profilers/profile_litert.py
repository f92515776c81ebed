"""What LiteRT really ran: which operators its XNNPACK delegate took, and the types computed in."""

from collections import Counter
from typing import Any

import numpy as np

from onmetal.errors import UnsupportedError
from onmetal.profilers.run_litert import Session

_NAMES = {"float32": "f32", "float16": "f16", "int8": "i8", "uint8": "i8", "int16": "i16"}


def profile(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> dict[str, Any]:
    """Shares of the operators, since LiteRT's Python has no clock for each of them."""
    session = Session(files, options, inputs, outputs)
    session.run(feed)
    ops = session.interpreter._get_ops_details()
    types = {
        entry["index"]: entry["dtype"]
        for entry in session.interpreter.get_tensor_details()
        if entry["name"]
    }
    real = [op for op in ops if op["op_name"] != "DELEGATE"]
    taken = delegated(ops)
    left = [op for op in real if op["index"] not in taken]
    share = len(taken) / max(1, len(real))
    precisions = Counter(_precision(op, types) for op in real)
    names = Counter(str(op["op_name"]) for op in real)
    total = max(1, sum(precisions.values()))
    return {
        "provider": {"XNNPACK": round(share, 4), "LiteRT": round(1 - share, 4)},
        "precision": {kind: round(n / total, 4) for kind, n in precisions.most_common()},
        "operators": {name: round(n / total, 4) for name, n in names.most_common()},
        "not_delegated": dict(Counter(str(op["op_name"]) for op in left)),
        "of": "operators",
        "kernels": len(left) + sum(op["op_name"] == "DELEGATE" for op in ops),
    }


def delegated(ops: list[dict[str, Any]]) -> set[int]:
    """Indices of the operators that a delegate does the work of: all between what it takes and what
    it gives."""
    makers = {int(out): op for op in ops if op["op_name"] != "DELEGATE" for out in op["outputs"]}
    found: set[int] = set()
    for delegate in ops:
        if delegate["op_name"] != "DELEGATE":
            continue
        taken = {int(tensor) for tensor in delegate["inputs"]}
        waiting = [int(tensor) for tensor in delegate["outputs"]]
        while waiting:
            op = makers.get(waiting.pop())
            if op is None or op["index"] in found:
                continue
            found.add(op["index"])
            waiting += [int(t) for t in op["inputs"] if int(t) not in taken]
    return found


def _precision(op: dict[str, Any], types: dict[int, Any]) -> str:
    """By what it computes with: integers where its weights are integers, also beside floats."""
    kinds = [
        np.dtype(types[int(tensor)]).name
        for tensor in (*op["outputs"], *op["inputs"])
        if int(tensor) in types
    ]
    if op["op_name"] in ("CONV_2D", "FULLY_CONNECTED") and "int8" in kinds:
        return "i16" if "int16" in kinds else "i8"
    return next((_NAMES[kind] for kind in kinds if kind in _NAMES), "other")


def layers(**_: Any) -> list[dict[str, Any]]:
    raise UnsupportedError("LiteRT's Python has no clock for each operator")
