"""The operators that LiteRT really ran on a device, from the summary that it wrote there, or from
its list of operators as the Python runner there writes it."""

import re
from collections import defaultdict
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from onmetal.files.reading import decode
from onmetal.runtimes.litert import operators
from onmetal.runtimes.shares import FAULTS, DType, Index, Name, checked, unreadable

ROW_LENGTH = 1000
"""Longer rows are none of LiteRT's, whose names of kernels have up to 100 characters."""


class _Op(Struct, frozen=True):
    """An operator, as python_runner.py writes it."""

    index: Index
    op_name: Name
    inputs: list[Index]
    outputs: list[Index]


class _Graph(Struct, frozen=True):
    ops: list[_Op]
    types: dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], DType]
    """Index of a tensor -> its type, as NumPy names it."""
    in_float16: bool = False


def shares(text: str, kinds: dict[str, str]) -> dict[str, Any]:
    """As profile.profile gives them. `kinds`: what each kind of operator of the file computes in.

    Raises UnsupportedError where the text cannot be read.
    """
    try:
        if text.startswith("{"):
            graph = decode(text.encode(errors="replace"), _Graph)
            types = {int(index): kind for index, kind in graph.types.items()}
            return checked(
                operators.shares(
                    [msgspec.structs.asdict(op) for op in graph.ops], types, graph.in_float16
                )
            )
        return checked(summary(text, kinds))
    except FAULTS as error:
        raise unreadable("litert", error) from None


_ROW = re.compile(
    r"(?P<kind>\S.*?) -?[\d.]+ -?[\d.]+ -?[\d.]+ (?P<share>[\d.]+)% [\d.]+% [\d.]+ \d+"
    r" \[(?P<name>\w+)\]:\d+"
)
"""A row with one blank between its columns: of a run of blanks, each would be tried as the first.
"""
_KINDS = (
    ("QD8", "i8"),
    ("QS8", "i8"),
    ("QC8", "i8"),
    ("QU8", "i8"),
    ("F16", "f16"),
    ("F32", "f32"),
)
"""XNNPACK's names of what a kernel computes in; QD8 are 8-bit products of ranges taken anew."""


def summary(text: str, kinds: dict[str, str]) -> dict[str, Any]:
    """LiteRT's own summary (LiteRtGetProfileSummary), the part in the order of execution.

    Rows of XNNPACK's kernels begin with `Delegate/` and name the type; all others ran in LiteRT's
    own kernels, which compute in what the file says (`kinds`).
    """
    part = text.partition("Run Order")[2].partition("=====\n")[2].partition("\n=====")[0]
    lines = [" ".join(line.split()) for line in part.splitlines() if len(line) <= ROW_LENGTH]
    rows = [match for line in lines if (match := _ROW.fullmatch(line))]
    if not rows:
        raise ValueError("it has no rows")
    providers: dict[str, float] = defaultdict(float)
    precisions: dict[str, float] = defaultdict(float)
    kernels: dict[str, float] = defaultdict(float)
    total = sum(float(row["share"]) for row in rows) or 1.0
    not_delegated: dict[str, int] = defaultdict(int)
    for row in rows:
        share = float(row["share"]) / total
        kind = row["kind"].strip()
        delegated = kind.startswith("Delegate/")
        providers["XNNPACK" if delegated else "LiteRT"] += share
        precisions[_precision(kind) if delegated else kinds.get(kind, "other")] += share
        kernels[kind.removeprefix("Delegate/")] += share
        if not delegated:
            not_delegated[kind] += 1
    return {
        "provider": _rounded(providers),
        "precision": _rounded(precisions),
        "operators": _rounded(kernels),
        "not_delegated": dict(not_delegated),
        "of": "operator time",
        "kernels": len(rows),
    }


def _precision(kind: str) -> str:
    return next((name for mark, name in _KINDS if mark in kind), "other")


def _rounded(shares_by_name: dict[str, float]) -> dict[str, float]:
    largest = sorted(shares_by_name.items(), key=lambda entry: -entry[1])
    return {name: round(share, 4) for name, share in largest if share > 0}
