"""--cut-at: named tensors become the outputs, in ONNX and TFLite; what follows is left out."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from onmetal import cli
from onmetal.converters.onnx.reader import examine
from onmetal.converters.tflite.convert import lower
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reader import examine as examine_tflite
from onmetal.converters.tflite.reference import Exposed
from onmetal.converters.tflite.writing import write
from onmetal.deploy.model import parse_cut
from onmetal.errors import UnsupportedError, UsageError
from tests.detectors import with_nms, yolo
from tests.onnx_models import build, node, save, value, weights

SHAPE = [1, 3, 8, 8]


def graph(**keywords: Any) -> Any:
    """c = conv(x), r = relu(c), m = max of r, e = m + b; b is the second input."""
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1], name="first"),
        node("Relu", "c", "r", name="act"),
        node("ReduceMax", "r", "m", axes=[2, 3], keepdims=0, name="top"),
        node("Add", "m b", "e", name="sum"),
    ]
    inputs = [value("x", ["N", *SHAPE[1:]]), value("b", ["N", 6])]
    tensors = [weights("w", 6, 3, 3, 3)]
    return build(nodes, inputs, [value("e", ["N", 6])], tensors, **keywords)


def cut(model: Any, folder: Path, *names: str, **keywords: Any) -> dict[str, Any]:
    path = save(model, folder / "whole.onnx")
    return examine(str(path), keywords.get("shapes", {}), None, str(folder), names)


def run(path: Path, names: list[str] | None, **feed: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {entry.name for entry in session.get_inputs()}
    found: list[np.ndarray] = session.run(names, {n: a for n, a in feed.items() if n in taken})
    return found


@pytest.mark.parametrize(
    ("names", "outputs", "inputs"),
    [
        (("r",), ["r"], ["x"]),
        (("act",), ["r"], ["x"]),
        (("m", "first"), ["m", "c"], ["x"]),
        (("e", "m"), ["e", "m"], ["x", "b"]),
        (("r", "act", "r"), ["r"], ["x"]),
    ],
)
def test_tensors_and_operators_become_outputs_in_the_order_of_their_names(
    names: tuple[str, ...], outputs: list[str], inputs: list[str], tmp_path: Path
) -> None:
    found = cut(graph(), tmp_path, *names)
    assert [entry["name"] for entry in found["outputs"]] == outputs
    assert [entry["name"] for entry in found["inputs"]] == inputs
    random = np.random.default_rng(0)
    feed = {
        "x": random.normal(size=SHAPE).astype(np.float32),
        "b": random.normal(size=(1, 6)).astype(np.float32),
    }
    whole = onnx.load(tmp_path / "whole.onnx")
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs if name != "e")
    expected = run(save(whole, tmp_path / "exposed.onnx"), outputs, **feed)
    for entry, wanted, given in zip(
        found["outputs"], expected, run(tmp_path / "model.onnx", None, **feed), strict=True
    ):
        assert entry["shape"] == list(given.shape)
        np.testing.assert_array_equal(wanted, given)


def test_what_is_left_out_is_said_and_is_not_in_the_graph(tmp_path: Path) -> None:
    found = cut(graph(), tmp_path, "r")
    first, second, *_ = found["notes"]
    assert "the output is 'r'" in first
    assert "2 operators (ReduceMax, Add)" in first
    assert "the input 'b'" in second
    assert found["operators"] == {"Conv": 1, "Relu": 1}


def test_what_no_runtime_knows_may_follow_the_cut(tmp_path: Path) -> None:
    model = graph(domains=["trt"])
    model.graph.node.append(node("EfficientNMS_TRT", "e", "n", domain="trt"))
    model.graph.output.append(onnx.ValueInfoProto(name="n"))
    with pytest.raises(UnsupportedError, match="EfficientNMS_TRT"):
        cut(model, tmp_path)
    assert [entry["name"] for entry in cut(model, tmp_path, "e")["outputs"]] == ["e"]


def test_what_a_subgraph_reads_is_kept(tmp_path: Path) -> None:
    branches = {
        name: onnx.helper.make_graph(
            [node(kind, "c", f"{name}_out")], name, [], [value(f"{name}_out", None)]
        )
        for name, kind in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]),
        node("ReduceMax", "x", "t", keepdims=0),
        node("Cast", "t", "flag", to=onnx.TensorProto.BOOL),
        node("If", "flag", "y", **branches),
        node("Exp", "y", "z"),
    ]
    model = build(nodes, [value("x", SHAPE)], [value("z", None)], [weights("w", 6, 3, 3, 3)])
    found = cut(model, tmp_path, "y")
    assert found["operators"].get("Conv") == 1
    (given,) = run(tmp_path / "model.onnx", None, x=np.ones(SHAPE, np.float32))
    assert given.min() >= 0


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("relu", "computes no tensor and has no operator"),
        ("firs", "did you mean first"),
        ("x", "an input or a constant"),
        ("w", "an input or a constant"),
        ("Relu", "no tensor"),
    ],
)
def test_other_names_are_errors(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason):
        cut(graph(), tmp_path, "r", name)


def test_names_are_separated_by_commas_and_each_is_taken_once() -> None:
    assert parse_cut(["a,b", " c ", "a"]) == ("a", "b", "c")
    for words in ([","], ["a,"], [" "]):
        with pytest.raises(UsageError, match="empty"):
            parse_cut(words)


def test_a_tflite_graph_is_cut(tmp_path: Path) -> None:
    path = yolo(tmp_path / "yolo.onnx")
    onnx.shape_inference.infer_shapes_path(str(path), str(path), data_prop=True)
    whole = tmp_path / "whole.tflite"
    whole.write_bytes(write(lower(path)))
    found = examine_tflite(str(whole), {}, None, str(tmp_path), ["scores", "centre"])
    assert [entry["name"] for entry in found["outputs"]] == ["scores", "centre"]
    assert found["sha256"] != found["prepared_sha256"]
    assert "CONCATENATION" in found["notes"][0]
    assert "CONCATENATION" not in found["operators"]
    feed = {"images": np.random.default_rng(0).random((1, 3, 64, 64), np.float32)}
    cut_outputs = Exposed(read(tmp_path / "model.tflite"), ["scores", "centre"]).run(feed)
    exposed = Exposed(read(whole), ["scores", "centre"]).run(feed)
    for name in ("scores", "centre"):
        np.testing.assert_array_equal(exposed[name], cut_outputs[name])
    for name in ("images", "nothing"):
        with pytest.raises(UsageError, match="--cut-at"):
            examine_tflite(str(whole), {}, None, str(tmp_path), [name])


def test_inspect_cuts_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = with_nms(tmp_path / "nms.onnx")
    assert cli.main(["inspect", str(path), "--cut-at", "boxes,scores"]) == 0
    shown = capsys.readouterr().out
    assert "output  boxes  float32[1, 16, 4]" in shown
    assert "output  scores  float32[1, 2, 16]" in shown
    assert "NonMaxSuppression" in shown.partition("note: ")[2]
    assert cli.main(["inspect", str(path), "--cut-at", "boxs"]) == 2
    assert "did you mean boxes" in capsys.readouterr().err
