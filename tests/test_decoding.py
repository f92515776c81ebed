"""Post-processing stays float: what follows the last products and leads to NonMaxSuppression."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onmetal.calibration.placement import place
from onmetal.calibration.qdq_writer import quantize
from onmetal.converters.decoding import Node, post_processing
from onmetal.converters.onnx.graph import Graph
from onmetal.targets import Format
from tests.detectors import pixels, squares, with_nms, yolo
from tests.onnx_models import build, constant, node, value, weights
from tests.qdq_reference import ranges_of, traced

LISTED = Format(
    operators=(
        *("Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Concat", "MaxPool", "Reshape"),
        *("Transpose", "Split", "Sigmoid", "Softmax", "Gather", "Squeeze", "Unsqueeze"),
    ),
    same_scale=("MaxPool", "Reshape", "Transpose", "Split", "Gather", "Squeeze", "Unsqueeze"),
)


def named(model: Any) -> Any:
    """The model, shapes inferred, each node called after its first output."""
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for entry in model.graph.node:
        entry.name = entry.output[0]
    return model


def feeds(count: int = 8) -> list[dict[str, np.ndarray]]:
    images = [pixels(of_image) for of_image in squares(count)]
    return [
        {"images": (image.transpose(2, 0, 1)[None] / 255).astype(np.float32)} for image in images
    ]


def run(model: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, feed)
    return np.asarray(found)


def integer(model: Any) -> frozenset[str]:
    return place(Graph(model), LISTED).integer


def test_only_the_network_before_nonmaxsuppression_runs_in_8_bits(tmp_path: Path) -> None:
    model = named(onnx.load(with_nms(tmp_path / "nms.onnx")))
    assert integer(model) == {"conv"}


def test_int8_keeps_the_boxes_of_a_model_with_nonmaxsuppression(tmp_path: Path) -> None:
    model = named(onnx.load(with_nms(tmp_path / "nms.onnx")))
    given = feeds()
    placed = place(Graph(model), LISTED)
    written = quantize(model, LISTED, placed, ranges_of(traced(model, given)))
    for feed in given:
        float_rows, rows = (run(entry, feed) for entry in (model, written))
        np.testing.assert_array_equal(float_rows[..., :4], rows[..., :4])
        np.testing.assert_allclose(float_rows[..., 4], rows[..., 4], atol=0.02)
        np.testing.assert_array_equal(float_rows[..., 5], rows[..., 5])


def test_what_decodes_boxes_beside_scores_stays_float(tmp_path: Path) -> None:
    model = named(onnx.load(yolo(tmp_path / "yolo.onnx")))
    assert integer(model) == {"conv"}


@pytest.mark.parametrize("last", ["TopK", "ArgMax"])
def test_what_is_selected_from_stays_float(last: str) -> None:
    ends = {
        "TopK": node("TopK", "z k", "v i"),
        "ArgMax": node("ArgMax", "z", "i", axis=1),
    }
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        node("Conv", "r w2", "d"),
        node("Sigmoid", "d", "s"),
        node("Mul", "s two", "z"),
        ends[last],
    ]
    tensors = [weights("w", 6, 3, 1, 1), weights("w2", 6, 6, 1, 1), constant("two", 2.0)]
    tensors.append(constant("k", [2], "int64"))
    outputs = [value("i", None, onnx.TensorProto.INT64)]
    model = named(build(nodes, [value("x", [1, 3, 4, 4])], outputs, tensors))
    assert integer(model) == {"c", "d"}
    del model.graph.node[-1]
    model.graph.output[0].CopyFrom(value("z", None))
    assert integer(model) == {"c", "d", "s", "z"}


def bins(values: np.ndarray) -> Any:
    """YOLOv8's box decoding: the mean of a distribution over 16 bins, for 4 sides, 5 anchors."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Reshape", "c shape", "r"),
        node("Transpose", "r", "t", perm=[0, 2, 1, 3]),
        node("Softmax", "t", "p", axis=1),
        node("Conv", "p bins", "m"),
        node("Reshape", "m flat", "y"),
    ]
    tensors = [
        weights("w", 64, 3, 1, 1),
        constant("bins", values.reshape(1, 16, 1, 1)),
        constant("shape", [1, 4, 16, 5], "int64"),
        constant("flat", [1, 4, 5], "int64"),
    ]
    return named(build(nodes, [value("x", [1, 3, 1, 5])], [value("y", [1, 4, 5])], tensors))


def test_the_product_that_averages_bins_stays_float() -> None:
    assert integer(bins(np.arange(16))) == {"c"}
    assert "m" in integer(bins(np.arange(16)[::-1]))


def chain(*kinds: str) -> list[Node]:
    """Operators one after the other: P a product, S one that selects, others by any letter."""
    return [
        Node(str(place), [f"t{place}"], [f"t{place + 1}"], kind == "P", kind == "S")
        for place, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("kinds", "floats"),
    [
        ("PaPbSc", {"3", "4", "5"}),
        ("PabPc", set()),
        ("PSaPb", {"4"}),
        ("aSb", {"0", "1", "2"}),
        ("PSaPbSc", {"4", "5", "6"}),
        ("", set()),
    ],
)
def test_the_rule_on_chains(kinds: str, floats: set[str]) -> None:
    assert post_processing(chain(*kinds)) == floats


def joined(*parts: str) -> Any:
    """After the last Conv, parts of it by the operators named, joined and moved to the output."""
    nodes = [node("Conv", "x w", "c"), node("Split", "c halves", "a b", axis=1)]
    names = []
    for name, kinds in zip("ab", parts, strict=True):
        for kind in kinds.split():
            nodes.append(
                node(kind, f"{name} two" if kind in ("Mul", "Add") else name, f"{name}{kind}")
            )
            name += kind
        names.append(name)
    nodes += [node("Concat", " ".join(names), "j", axis=1), node("Reshape", "j flat", "y")]
    tensors = [weights("w", 6, 3, 1, 1), constant("two", 2.0), constant("flat", [1, -1], "int64")]
    tensors.append(constant("halves", [3, 3], "int64"))
    return named(build(nodes, [value("x", [1, 3, 4, 4])], [value("y", None)], tensors))


def test_parts_that_are_computed_alike_may_be_joined_in_8_bits() -> None:
    assert integer(joined("Sigmoid Mul", "Sigmoid Mul")) > {"c", "aSigmoid", "bSigmoidMul"}
    assert integer(joined("Sigmoid Mul", "Sigmoid")) == {"c"}
    assert integer(joined("Sigmoid", "")) == {"c"}


def test_a_branch_that_does_not_lead_to_the_selection_is_not_post_processing() -> None:
    nodes = [
        Node("product", ["x"], ["p"], True, False),
        Node("decode", ["p"], ["d"], False, False),
        Node("other", ["p"], ["o"], False, False),
        Node("select", ["d"], ["s"], False, True),
    ]
    assert post_processing(nodes) == {"decode", "select"}
