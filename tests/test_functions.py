"""Model-local functions: whatever they hold, what is read has plain operators and gives the same.

Expected values are NumPy's, since runtimes themselves read some of these files wrong or not at all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onmetal.converters.onnx import reader
from onmetal.errors import UnsupportedError, UsageError
from tests.conftest import deploy_here as deploy
from tests.onnx_models import build, constant, node, save, value, weights

OWN = "pkg.local"
X = np.random.default_rng(7).normal(size=(2, 3, 4)).astype(np.float32)


def function(
    name: str, inputs: str, outputs: str, nodes: list[Any], opset: int = 18, **keywords: Any
) -> Any:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(OWN, 1)]
    return helper.make_function(
        OWN, name, inputs.split(), outputs.split(), nodes, imports, **keywords
    )


def call(name: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    made = node(name, inputs, outputs, domain=OWN, **attributes)
    made.output[:] = ["" if output == "-" else output for output in made.output]
    return made


def by_reference(made: Any, attribute: str, name: str, kind: int) -> Any:
    entry = made.attribute.add()
    entry.name, entry.ref_attr_name, entry.type = attribute, name, kind
    return made


def leaky(**keywords: Any) -> Any:
    slope = by_reference(node("LeakyRelu", "a", "o"), "alpha", "slope", onnx.AttributeProto.FLOAT)
    return function("leaky", "a", "o", [slope], **keywords)


def passing(**keywords: Any) -> Any:
    """Hands its own attribute on to the function that it calls."""
    slope = by_reference(call("leaky", "a", "o"), "slope", "s", onnx.AttributeProto.FLOAT)
    return function("outer", "a", "o", [slope], **keywords)


def branching() -> Any:
    """Its branches take what is outside of them, and one calls a function."""
    branches = {
        f"{name}_branch": helper.make_graph([made], name, [], [value(name, None)])
        for name, made in (
            ("then", call("leaky", "a", "then", slope=0.5)),
            ("else", node("Neg", "a", "else")),
        )
    }
    nodes = [
        node("ReduceSum", "a", "s", keepdims=0),
        node("Greater", "s bound", "c"),
        node("If", "c", "o", **branches),
    ]
    return function("choose", "a bound", "o", nodes)


def looping() -> Any:
    body = helper.make_graph(
        [node("Add", "v a", "w"), node("Identity", "go", "on")],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", None)],
        [value("on", [], TensorProto.BOOL), value("w", None)],
    )
    count = node("Constant", "", "k", value=constant("", 3, "int64"))
    return function("repeat", "a", "o", [count, node("Loop", "k - a", "o", body=body)])


def slope(x: np.ndarray, by: float) -> np.ndarray:
    return np.where(x < 0, np.float32(by) * x, x)


def silu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / (1 + np.exp(-x)))


def flat_softmax(x: np.ndarray) -> np.ndarray:
    """As it was before opset 13: over all axes from the second one on."""
    raised = np.exp(x)
    return np.asarray(raised / raised.sum(axis=(1, 2), keepdims=True))


class Case(NamedTuple):
    functions: list[Any]
    nodes: list[Any]
    right: Callable[[np.ndarray], np.ndarray]
    operators: set[str]


SILU = function("silu", "x", "y", [node("Sigmoid", "x", "s"), node("Mul", "s x", "y")])
CLIP = function("clip", "a low high", "o", [node("Clip", "a low high", "o")])
TWO = function("two", "a", "o p", [node("Relu", "a", "o"), node("Neg", "a", "p")])
BOTH = function("both", "a b", "a o", [node("Add", "a b", "o")])

CASES = {
    "attribute by reference": Case(
        [leaky(attributes=["slope"])],
        [call("leaky", "x", "y", slope=0.3)],
        lambda x: slope(x, 0.3),
        {"LeakyRelu"},
    ),
    "default of an attribute": Case(
        [leaky(attribute_protos=[helper.make_attribute("slope", 0.25)])],
        [call("leaky", "x", "y")],
        lambda x: slope(x, 0.25),
        {"LeakyRelu"},
    ),
    "default that is overridden": Case(
        [leaky(attribute_protos=[helper.make_attribute("slope", 0.25)])],
        [call("leaky", "x", "y", slope=0.75)],
        lambda x: slope(x, 0.75),
        {"LeakyRelu"},
    ),
    "default handed on to an inner call": Case(
        [
            passing(attribute_protos=[helper.make_attribute("s", 0.35)]),
            leaky(attribute_protos=[helper.make_attribute("slope", 0.9)]),
        ],
        [call("outer", "x", "h"), call("leaky", "h", "y")],
        lambda x: slope(slope(x, 0.35), 0.9),
        {"LeakyRelu"},
    ),
    "constant of an attribute": Case(
        [
            function(
                "total",
                "a",
                "o",
                [
                    by_reference(
                        node("Constant", "", "k"), "value_ints", "axes", onnx.AttributeProto.INTS
                    ),
                    node("ReduceSum", "a k", "o"),
                ],
                attributes=["axes"],
            )
        ],
        [call("total", "x", "y", axes=[1, 2])],
        lambda x: x.sum(axis=(1, 2), keepdims=True),
        {"Constant", "ReduceSum"},
    ),
    "inputs left out at the end": Case(
        [CLIP], [call("clip", "x half", "y")], lambda x: np.maximum(x, 0.5), {"Clip"}
    ),
    "inputs left out between others": Case(
        [CLIP], [call("clip", "x - half", "y")], lambda x: np.minimum(x, 0.5), {"Clip"}
    ),
    "outputs left out": Case([TWO], [call("two", "x", "- y")], lambda x: -x, {"Relu", "Neg"}),
    "outputs that are inputs": Case(
        [BOTH],
        [call("both", "x half", "u v"), node("Mul", "u v", "y")],
        lambda x: x * (x + np.float32(0.5)),
        {"Add", "Identity", "Mul"},
    ),
    "names that the graph has too": Case(
        [SILU],
        [
            node("Neg", "x", "s"),
            call("silu", "s", "m"),
            call("silu", "m", "t"),
            node("Add", "t s", "y"),
        ],
        lambda x: silu(silu(-x)) - x,
        {"Neg", "Sigmoid", "Mul", "Add"},
    ),
    "names that weights have too": Case(
        [function("half", "x", "y", [node("Neg", "x", "half"), node("Exp", "half", "y")])],
        [call("half", "x", "h"), node("Mul", "h half", "y")],
        lambda x: np.exp(-x) * 0.5,
        {"Neg", "Exp", "Mul"},
    ),
    "branches": Case(
        [branching(), leaky(attributes=["slope"])],
        [call("choose", "x low", "h"), call("choose", "h high", "y")],
        lambda x: -slope(x, 0.5),
        {"ReduceSum", "Greater", "If", "LeakyRelu", "Neg"},
    ),
    "a loop": Case(
        [looping()],
        [call("repeat", "x", "h"), call("repeat", "h", "y")],
        lambda x: 16 * x,
        {"Constant", "Loop", "Add", "Identity"},
    ),
    "an older opset of the same meaning": Case(
        [function("silu", "x", "y", list(SILU.node), opset=14)],
        [call("silu", "x", "y")],
        silu,
        {"Sigmoid", "Mul"},
    ),
    "an older opset of another meaning": Case(
        [function("flat", "a", "o", [node("Softmax", "a", "o", axis=1)], opset=11)],
        [call("flat", "x", "h"), node("Neg", "h", "y")],
        lambda x: -flat_softmax(x),
        {"Neg", "Shape", "Flatten", "Softmax", "Reshape"},
    ),
    "an attribute that became an input": Case(
        [function("wide", "a", "o", [node("Unsqueeze", "a", "o", axes=[0])], opset=11)],
        [call("wide", "x", "h"), node("Neg", "h", "y")],
        lambda x: -x[None],
        {"Constant", "Neg", "Unsqueeze"},
    ),
    "a newer opset": Case(
        [function("soft", "a", "o", [node("Gelu", "a", "o", approximate="tanh")], opset=20)],
        [call("soft", "x", "h"), node("Neg", "h", "y")],
        lambda x: -0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        {"Gelu", "Neg"},
    ),
    "a function that nothing calls": Case([SILU], [node("Neg", "x", "y")], lambda x: -x, {"Neg"}),
}


def written(case: Case) -> Any:
    tensors = [
        constant(name, number)
        for name, number in (("half", 0.5), ("low", -1e6), ("high", 1e6))
        if any(name in made.input for made in case.nodes)
    ]
    return build(
        case.nodes,
        [value("x", list(X.shape))],
        [value("y", None)],
        tensors,
        opset=18,
        domains=[OWN],
        functions=case.functions,
    )


def examined(model: Any, folder: Path) -> dict[str, Any]:
    (folder / "prepared").mkdir()
    path = save(model, folder / "model.onnx")
    return reader.examine(str(path), {}, None, str(folder / "prepared"))


@pytest.mark.parametrize("name", CASES)
def test_functions_are_put_in_the_place_of_their_calls(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    facts = examined(written(case), tmp_path)
    assert set(facts["operators"]) == case.operators
    prepared = tmp_path / "prepared/model.onnx"
    plain = onnx.load(str(prepared))
    assert not plain.functions
    assert OWN not in {entry.domain for entry in plain.opset_import}
    session = onnxruntime.InferenceSession(str(prepared), providers=["CPUExecutionProvider"])
    given = session.run(["y"], {"x": X})[0]
    np.testing.assert_allclose(given, case.right(X), rtol=2e-5, atol=2e-6)


def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    functions = [
        function("one", "a", "o", [call("two", "a", "o")]),
        function("two", "a", "o", [call("one", "a", "o")]),
    ]
    made = Case(functions, [call("one", "x", "y")], silu, set())
    with pytest.raises(UsageError, match="calls itself"):
        examined(written(made), tmp_path)


def test_functions_that_grow_beyond_all_bounds_are_refused(tmp_path: Path) -> None:
    functions = [function("f0", "a", "o", [node("Relu", "a", "o")])]
    for number in range(1, 40):
        below = f"f{number - 1}"
        twice = [call(below, "a", "h"), call(below, "h", "o")]
        functions.append(function(f"f{number}", "a", "o", twice))
    with pytest.raises(UsageError, match="549,755,813,888 operators"):
        examined(written(Case(functions, [call("f39", "x", "y")], silu, set())), tmp_path)


def test_an_opset_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    """Gelu is newer than the model, whose Unsqueeze is older than Gelu."""
    soft = function("soft", "a", "o", [node("Gelu", "a", "o")], opset=20)
    made = build(
        [call("soft", "x", "h"), node("Unsqueeze", "h", "y", axes=[0])],
        [value("x", list(X.shape))],
        [value("y", None)],
        opset=12,
        domains=[OWN],
        functions=[soft],
    )
    with pytest.raises(UnsupportedError, match="written for another opset"):
        examined(made, tmp_path)


def test_weights_of_functions_are_not_read_from_elsewhere(tmp_path: Path) -> None:
    stolen = constant("", 0.0)
    stolen.ClearField("raw_data")
    stolen.data_location = onnx.TensorProto.EXTERNAL
    entry = stolen.external_data.add()
    entry.key, entry.value = "location", "../secret"
    branches = {
        f"{name}_branch": helper.make_graph(
            [node("Constant", "", name, value=stolen)], name, [], [value(name, None)]
        )
        for name in ("then", "else")
    }
    hidden = function(
        "hidden",
        "a",
        "o",
        [
            node("ReduceSum", "a", "s", keepdims=0),
            node("Cast", "s", "c", to=TensorProto.BOOL),
            node("If", "c", "o", **branches),
        ],
    )
    with pytest.raises(UsageError, match="outside the model's folder"):
        examined(written(Case([hidden], [call("hidden", "x", "y")], silu, set())), tmp_path)


def test_a_model_of_functions_is_deployed_in_8_bits(tmp_path: Path) -> None:
    """Counted, planned and converted as if it had been written without them."""
    block = function(
        "block", "x w b", "y", [node("Conv", "x w b", "c", pads=[1] * 4), call("silu", "c", "y")]
    )
    made = build(
        [
            call("block", "x w0 b0", "h0"),
            call("block", "h0 w1 b1", "h1"),
            node("GlobalAveragePool", "h1", "g"),
            node("Flatten", "g", "y"),
        ],
        [value("x", [1, 3, 12, 12])],
        [value("y", [1, 8])],
        [
            weights("w0", 8, 3, 3, 3),
            weights("b0", 8),
            weights("w1", 8, 8, 3, 3),
            weights("b1", 8),
        ],
        opset=18,
        domains=[OWN],
        functions=[SILU, block],
    )
    path = save(made, tmp_path / "functions.onnx")
    x = np.random.default_rng(1).normal(size=(48, 3, 12, 12)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    words = ("--target", "x86-64", "--calibration-data", tmp_path / "data.npz", "--no-device")
    ran = deploy(
        path, *words, "--recipes", "int8-u8s8,int8-dynamic", "--out", tmp_path / "out", "--json"
    )
    assert ran.code == 0, ran.err
    found = ran.document
    assert found["models"][0]["macs"] == 12 * 12 * 8 * (27 + 72)
    status = {c["name"]: c["status"] for c in found["candidates"]}
    for name in ("int8-u8s8@onnxruntime", "int8-u8s8@openvino", "int8-dynamic@litert"):
        assert status[name] in ("ok", "chosen"), (name, ran.err)
