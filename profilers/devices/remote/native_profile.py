"""What a runtime on a device really ran, from the profile that its runner brought: text in, shares
out, in the form that profilers/profile_*.py give."""

import math
import re
from collections import defaultdict
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from onmetal.converters.tflite import precision
from onmetal.errors import UnsupportedError
from onmetal.profilers.devices.line import decode
from onmetal.runtimes.onnxruntime import events as ort_events

MOST_KINDS, KIND_LENGTH = 1000, 200
ROW_LENGTH = 1000
"""Longer rows are none of LiteRT's, whose names of kernels have up to 100 characters."""
WHY, SHAPES_LENGTH = 300, 10_000

Index = Annotated[int, Meta(ge=-1, lt=1 << 31)]
Name = Annotated[str, Meta(max_length=KIND_LENGTH)]
DType = Annotated[str, Meta(pattern="^[a-z0-9_]{1,20}$")]
Micros = Annotated[float, Meta(ge=0, le=1e15)]


class _Arguments(Struct, frozen=True):
    op_name: Name = ""
    provider: Name = ""
    output_type_shape: msgspec.Raw = msgspec.Raw(b"[]")


class _Event(Struct, frozen=True):
    """Of ONNX Runtime's trace."""

    name: str
    cat: str = ""
    dur: Micros = 0.0
    args: _Arguments = _Arguments()


class _Op(Struct, frozen=True):
    """As python_runner.py writes it."""

    index: Index
    op_name: Name
    inputs: list[Index]
    outputs: list[Index]


class _Graph(Struct, frozen=True):
    ops: list[_Op]
    types: dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], DType]
    """Of its tensors, as NumPy names them."""


def read(runtime: str, text: str, runs: int, kinds: dict[str, str]) -> dict[str, Any]:
    """`kinds`: of a .tflite file, what each kind of operator computes in.

    Raises UnsupportedError where the profile cannot be read.
    """
    try:
        if runtime == "onnxruntime":
            found = ort_events.shares(ort_events.kernels(_events(text), runs))
        elif text.startswith("{"):
            graph = decode(text.encode(errors="replace"), _Graph)
            types = {int(index): kind for index, kind in graph.types.items()}
            found = precision.shares([msgspec.structs.asdict(op) for op in graph.ops], types)
        else:
            found = litert_summary(text, kinds)
        return _checked(found)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = str(error)[:WHY]
        raise UnsupportedError(f"the profile of {runtime} could not be read: {why}") from None


def _events(text: str) -> list[dict[str, Any]]:
    """Of ONNX Runtime's trace what is used of it. A device that was cut off in the middle of
    writing leaves no end, which is an error."""
    events = decode(text.encode(errors="replace"), list[_Event])
    return [_plain(event) for event in events if event.cat == "Node"]


def _plain(event: _Event) -> dict[str, Any]:
    """As ort_events takes it; of the outputs of a kernel there are few."""
    if event.name.endswith("_kernel_time") and not event.args.op_name:
        raise ValueError("a kernel without the name of its operator")
    shapes = event.args.output_type_shape
    outputs = decode(shapes, list[dict[Name, Any]]) if len(bytes(shapes)) <= SHAPES_LENGTH else []
    detail = {**msgspec.structs.asdict(event.args), "output_type_shape": outputs}
    return {**msgspec.structs.asdict(event), "args": detail}


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError where the device names more than a model has, or what is no share."""
    for name in ("provider", "precision", "operators", "not_delegated"):
        entries = found.get(name, {})
        if len(entries) > MOST_KINDS or any(len(kind) > KIND_LENGTH for kind in entries):
            raise ValueError(f"more than {MOST_KINDS} kinds of operators, or one of a long name")
        if not all(math.isfinite(share) and share >= 0 for share in entries.values()):
            raise ValueError("a share that is no number, or negative")
    return found


_ROW = re.compile(
    r"(?P<kind>\S.*?) -?[\d.]+ -?[\d.]+ -?[\d.]+ (?P<share>[\d.]+)% [\d.]+% [\d.]+ \d+"
    r" \[(?P<name>\w+)\]:\d+"
)
"""With one blank between its columns: of many, each would be tried as the first."""
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
    lines = [" ".join(line.split()) for line in part.splitlines() if len(line) <= ROW_LENGTH]
    rows = [found for line in lines if (found := _ROW.fullmatch(line))]
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
