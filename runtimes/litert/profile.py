"""The operators that LiteRT really ran: which in its XNNPACK delegate, and in which types."""

from typing import Any

import numpy as np

from onmetal.errors import UnsupportedError
from onmetal.runtimes.litert import on_device, operators
from onmetal.runtimes.litert.session import Session
from onmetal.runtimes.protocol import Feed


def profile(
    feed: dict[str, np.ndarray],
    files: list[str],
    options: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
) -> dict[str, Any]:
    """Shares of the operators, as operators.shares gives them."""
    session = Session(files, options, inputs, outputs)
    session.run(feed)
    types = {
        entry["index"]: entry["dtype"]
        for entry in session.interpreter.get_tensor_details()
        if entry["name"]
    }
    ops = session.interpreter._get_ops_details()
    in_float16 = on_device.in_float16(
        files[0],
        lambda scale: session.run(
            {name: on_device.multiplied(array, scale) for name, array in feed.items()}
        ),
    )
    return operators.shares(ops, types, in_float16)


def layers(
    feed: Feed, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
) -> list[dict[str, Any]]:
    raise UnsupportedError("LiteRT's Python interface reports no time per operator")
