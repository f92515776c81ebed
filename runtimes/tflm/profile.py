"""Which operators TFLite Micro runs, in which types it computes them, and the memory it takes."""

import re
from typing import Any

import numpy as np

from onmetal.errors import DeviceError, UnsupportedError
from onmetal.runtimes.protocol import Feed
from onmetal.runtimes.tflm.session import Session, said

_TOTAL = re.compile(r"Arena allocation (total|head|tail) (\d+) bytes")
_CATEGORY = re.compile(r"'([^']+)' used (\d+) bytes with alignment overhead \(requested (\d+)")


def profile(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> dict[str, Any]:
    """Shares of the operators: TFLite Micro has one kernel for each, and gives no clock for it."""
    from onmetal.runtimes.tflm.operators import operators

    Session(files, options, inputs, outputs).run(feed)
    return {"provider": {"TFLite Micro, reference kernels": 1.0}, **operators(files[0])}


def layers(
    feed: Feed, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
) -> list[dict[str, Any]]:
    raise UnsupportedError("TFLite Micro's Python interface reports no time per operator")


def arena(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> dict[str, Any]:
    """What an inference takes of the arena, in bytes, by its recording allocator: `total` is `head`
    (activations and scratch, planned to share memory) and `tail` (what stays); `categories` of the
    tail, with what was asked for before alignment. Exact for a host of 64 bits."""
    session = Session(files, options, inputs, outputs)
    session.run(feed)
    with said() as captured:
        session.interpreter.print_allocations()
        text = captured()
    sizes: dict[str, Any] = {kind: int(count) for kind, count in _TOTAL.findall(text)}
    if set(sizes) != {"total", "head", "tail"}:
        raise DeviceError(
            f"TFLite Micro does not report its allocations as expected: {text[:200]!r}"
        )
    sizes["categories"] = {
        name: {"used": int(used), "requested": int(requested_bytes)}
        for name, used, requested_bytes in _CATEGORY.findall(text)
    }
    return sizes
