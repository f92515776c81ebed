"""What a runtime on a device really ran, from the profile that its runner brought: text in, shares
out, in the form that profilers/profile_*.py give."""

import json
import re
from collections import defaultdict
from typing import Any

from onmetal.errors import UnsupportedError
from onmetal.profilers import ort_events, tflite_ops


def read(runtime: str, text: str, runs: int, kinds: dict[str, str]) -> dict[str, Any]:
    """`kinds`: of a .tflite file, what each kind of operator computes in.

    Raises UnsupportedError where the profile cannot be read.
    """
    try:
        if runtime == "onnxruntime":
            return ort_events.shares(ort_events.kernels(json.loads(text), runs))
        if text.startswith("{"):
            found = json.loads(text)
            types = {int(index): kind for index, kind in found["types"].items()}
            return tflite_ops.shares(found["ops"], types)
        return litert_summary(text, kinds)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UnsupportedError(f"the profile of {runtime} could not be read: {error}") from None
    except RecursionError:
        raise UnsupportedError(f"the profile of {runtime} could not be read: too deep") from None


_ROW = re.compile(
    r"^\s*(?P<kind>\S.*?)\s+-?[\d.]+\s+-?[\d.]+\s+-?[\d.]+\s+(?P<share>[\d.]+)%\s+[\d.]+%\s+[\d.]+"
    r"\s+\d+\s+\[(?P<name>\w+)\]:\d+\s*$"
)
_KINDS = (
    ("QD8", "i8"),
    ("QS8", "i8"),
    ("QC8", "i8"),
    ("QU8", "i8"),
    ("F16", "f16"),
    ("F32", "f32"),
)
"""XNNPACK's names of what a kernel computes in; QD8 are 8-bit products of ranges taken anew."""


def litert_summary(text: str, kinds: dict[str, str]) -> dict[str, Any]:
    """LiteRT's own summary (LiteRtGetProfileSummary), the part in the order of execution.

    Rows of XNNPACK's kernels begin with `Delegate/` and name the type; all others ran in LiteRT's
    own kernels, which compute in what the file says (`kinds`).
    """
    part = text.partition("Run Order")[2].partition("=====\n")[2].partition("\n=====")[0]
    rows = [found for line in part.splitlines() if (found := _ROW.match(line))]
    if not rows:
        raise ValueError("it has no rows")
    providers: dict[str, float] = defaultdict(float)
    precisions: dict[str, float] = defaultdict(float)
    operators: dict[str, float] = defaultdict(float)
    total = sum(float(row["share"]) for row in rows) or 1.0
    left: dict[str, int] = defaultdict(int)
    for row in rows:
        share = float(row["share"]) / total
        kind = row["kind"].strip()
        delegated = kind.startswith("Delegate/")
        providers["XNNPACK" if delegated else "LiteRT"] += share
        precisions[_precision(kind) if delegated else kinds.get(kind, "other")] += share
        operators[kind.removeprefix("Delegate/")] += share
        if not delegated:
            left[kind] += 1
    return {
        "provider": _rounded(providers),
        "precision": _rounded(precisions),
        "operators": _rounded(operators),
        "not_delegated": dict(left),
        "of": "operator time",
        "kernels": len(rows),
    }


def _precision(kind: str) -> str:
    return next((name for mark, name in _KINDS if mark in kind), "other")


def _rounded(spent: dict[str, float]) -> dict[str, float]:
    largest = sorted(spent.items(), key=lambda entry: -entry[1])
    return {name: round(share, 4) for name, share in largest if share > 0}
