"""Every operator that is lowered to TFLite, alone, beside ONNX Runtime."""

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from onmetal.converters.onnx import reader
from onmetal.converters.tflite import lowering
from tests.onnx_models import build, node, save, value
from tests.tflite_graphs import (
    STORED,
    Graph,
    agrees,
    compare,
    expected,
    floats,
    lowered,
)
from tests.tflite_operator_cases import CASES, OPERATORS, Case, label


def test_every_rule_has_a_case() -> None:
    quantized = {"QuantizeLinear", "DequantizeLinear"}  # tests/test_tflite_qdq.py
    assert set(lowering.TABLE) - quantized == OPERATORS


@pytest.mark.parametrize("case", CASES, ids=label)
def test_an_operator(case: Case, tmp_path: Path) -> None:
    """Simplified before, as users' files are."""
    agrees(case.graph("plain"), tmp_path)


def storable(case: Case, stored: str) -> bool:
    """Whether that is another graph than the plain one."""
    return stored == "plain" or len(case.graph(stored).model.graph.node) > 1


@pytest.mark.parametrize(
    ("stored", "case"),
    [(stored, case) for stored in STORED for case in CASES if storable(case, stored)],
    ids=lambda found: found if isinstance(found, str) else label(found),
)
def test_a_rule(stored: str, case: Case, tmp_path: Path) -> None:
    """Nothing simplified before, so that no other program can have done the rule's work."""
    agrees(case.graph(stored), tmp_path, simplified=False)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("sizes", "kernel", "strides", "pads"),
    [
        ((15, 18), [3, 2], [2, 2], [1, 0, 1, 1]),  # one axis has a last window behind the input
        ((9, 7), [2, 2], [2, 2], [0, 1, 1, 1]),
        ((8, 8), [3, 3], [2, 2], [1, 1, 1, 1]),  # none has
        ((6, 8), [1, 1], [2, 2], [0, 0, 0, 0]),  # both have, and no padding
    ],
)
def test_a_pool_leaves_out_a_window_that_begins_behind_the_input(
    kind: str,
    sizes: tuple[int, int],
    kernel: list[int],
    strides: list[int],
    pads: list[int],
    tmp_path: Path,
) -> None:
    """Shape inference may count it, so shapes of what follows are known by another spelling."""
    more: dict[str, Any] = {"count_include_pad": 1} if kind == "AveragePool" else {}
    more |= {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": 1}
    model = build(
        [
            node(kind, "x", "p", **more),
            node("Transpose", "p", "t", perm=[0, 2, 3, 1]),
            node("Relu", "t", "y"),
        ],
        [value("x", [1, 3, *sizes])],
        [helper.make_empty_tensor_value_info("y")],
        opset=13,
    )
    feed = {"x": floats(1, 3, *sizes)}
    wanted = expected(model, feed)["y"]
    model.graph.output[0].CopyFrom(value("y", wanted.shape))
    examined = tmp_path / "examined"
    examined.mkdir()
    facts = reader.examine(str(save(model, tmp_path / "x.onnx")), {}, None, str(examined))
    assert facts["outputs"][0]["shape"] == list(wanted.shape)
    net = lowered(onnx.load(examined / "model.onnx"), tmp_path)
    compare(net, Graph(model, feed, {"y": wanted}))
