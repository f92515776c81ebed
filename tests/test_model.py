import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onmetal.deploy.convert import convert
from onmetal.deploy.model import parse_shapes
from onmetal.errors import UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.records import Tensor
from onmetal.runtimes import fit
from tests.conftest import DIGITS
from tests.onnx_models import (
    F32,
    add,
    build,
    constant,
    dense,
    node,
    read,
    relocate,
    relu,
    save,
    value,
    weights,
    with_external_data,
)

IR_OF_OPSET = {7: 3, 9: 4, 11: 6, 13: 7, 15: 8, 17: 8, 19: 9, 21: 10, 23: 11}
NEWEST = onnx.defs.onnx_opset_version()


def digest_of(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_the_example_model(tmp_path: Path) -> None:
    path = DIGITS / "digits_cnn.onnx"
    found = read(path, tmp_path)
    assert found.inputs == (Tensor("image", "float32", (1, 1, 8, 8)),)
    assert found.outputs == (Tensor("logits", "float32", (1, 10)),)
    assert [found.sha256] == digest_of(path)
    assert found.size_bytes == path.stat().st_size
    stored = onnx.load_model(str(path))
    numbers = sum(int(np.prod(tensor.dims)) for tensor in stored.graph.initializer)
    assert found.parameters == numbers
    assert sum(found.operators.values()) == len(stored.graph.node)


def test_a_static_model_is_taken_as_it_is(tmp_path: Path) -> None:
    path = save(relu([2, 3]), tmp_path / "model.onnx")
    found = read(path, tmp_path)
    assert found.prepared.read_bytes() == path.read_bytes()
    assert found.notes == ()
    assert found.inputs == (Tensor("x", "float32", (2, 3)),)


def test_a_free_batch_axis_becomes_one_and_is_noted(tmp_path: Path) -> None:
    found = read(dense(), tmp_path)
    assert found.inputs[0].shape == (1, 4)
    assert found.outputs[0].shape == (1, 3)
    assert found.batch == 1
    assert len(found.notes) == 1 and "batch axis of 'x'" in found.notes[0]


def test_batch_sets_a_free_batch_axis_without_a_note(tmp_path: Path) -> None:
    found = read(dense(), tmp_path, batch=5)
    assert (found.inputs[0].shape, found.outputs[0].shape) == ((5, 4), (5, 3))
    assert (found.batch, found.notes) == (5, ())
    assert found.macs == 5 * 4 * 3


def test_input_shape_sets_the_batch(tmp_path: Path) -> None:
    found = read(dense(), tmp_path, x=(6, 4))
    assert (found.batch, found.outputs[0].shape) == (6, (6, 3))


def test_batch_and_an_input_shape_that_agrees(tmp_path: Path) -> None:
    assert read(dense(), tmp_path, batch=2, x=(2, 4)).batch == 2


def test_batch_and_an_input_shape_that_disagrees(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--batch 3 and --input-shape x"):
        read(dense(), tmp_path, batch=3, x=(2, 4))


def test_an_input_shape_against_a_fixed_axis(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="axis 1 is fixed at 4"):
        read(dense(), tmp_path, x=(1, 5))


def test_an_input_shape_with_another_rank(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has 2 axes"):
        read(dense(), tmp_path, x=(1, 4, 1))


def test_an_input_shape_for_no_input_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="z: no such input; the model has: x"):
        read(dense(), tmp_path, z=(1, 4))


def test_a_fixed_batch_is_found(tmp_path: Path) -> None:
    model = dense(batch=4)
    assert read(model, tmp_path).batch == 4
    assert read(model, tmp_path, batch=4).batch == 4


@pytest.mark.parametrize("fixed", [1, 4])
def test_a_fixed_batch_cannot_be_asked_away(tmp_path: Path, fixed: int) -> None:
    with pytest.raises(UsageError, match=f"--batch 2.*fixed at {fixed}"):
        read(dense(batch=fixed), tmp_path, batch=2)


def test_free_axes_are_named_with_the_option_that_sets_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(relu(["N", 3, "high", None]), tmp_path)
    message = str(caught.value)
    assert "high" in message and "axis 3" in message
    assert "--input-shape x=1,3,…,…" in message


def test_input_shape_sets_free_axes(tmp_path: Path) -> None:
    found = read(relu(["N", 3, "high", None]), tmp_path, x=(1, 3, 5, 7))
    assert found.inputs[0].shape == found.outputs[0].shape == (1, 3, 5, 7)


def test_a_named_axis_is_the_same_in_later_inputs(tmp_path: Path) -> None:
    model = add(["N", "steps"], ["N", "steps"], ["N", "steps"])
    found = read(model, tmp_path, a=(2, 7))
    assert [tensor.shape for tensor in found.inputs] == [(2, 7), (2, 7)]
    assert found.batch == 2


def test_a_named_axis_is_the_same_in_earlier_inputs(tmp_path: Path) -> None:
    model = add(["N", "steps"], ["N", "steps"], ["N", "steps"])
    found = read(model, tmp_path, b=(2, 7))
    assert [tensor.shape for tensor in found.inputs] == [(2, 7), (2, 7)]
    assert found.batch == 2


def test_a_named_axis_of_two_sizes_is_refused(tmp_path: Path) -> None:
    model = add(["N", "steps"], ["N", "steps"], ["N", "steps"])
    with pytest.raises(UsageError, match="'steps' is 7 in one input and 8"):
        read(model, tmp_path, a=(1, 7), b=(1, 8))


def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path) -> None:
    model = build(
        [node("Add", "b a", "sum"), node("Mul", "a b", "product")],
        [value("b", ["N", 2]), value("a", ["N", 2])],
        [value("sum", ["N", 2]), value("product", ["N", 2])],
    )
    found = read(model, tmp_path, batch=3)
    assert [tensor.name for tensor in found.inputs] == ["b", "a"]
    assert [tensor.name for tensor in found.outputs] == ["sum", "product"]
    assert found.output("product").shape == (3, 2)


def test_a_scalar_input(tmp_path: Path) -> None:
    found = read(add([2, 3], [], [2, 3]), tmp_path)
    assert found.inputs[1] == Tensor("b", "float32", ())
    assert found.batch == 1


def test_an_input_without_a_shape_needs_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'x' has no shape.*--input-shape x="):
        read(relu(None), tmp_path)


def test_an_input_without_a_shape_can_be_given_one(tmp_path: Path) -> None:
    found = read(relu(None), tmp_path, x=(2, 5))
    assert found.inputs[0].shape == found.outputs[0].shape == (2, 5)


def test_weights_listed_as_inputs_are_none(tmp_path: Path) -> None:
    weight = weights("weight", 4, 3)
    model = build(
        [node("MatMul", "x weight", "y")],
        [value("x", ["N", 4]), value("weight", [4, 3])],
        [value("y", ["N", 3])],
        [weight],
        opset=8,
        ir=3,
    )
    found = read(model, tmp_path)
    assert [tensor.name for tensor in found.inputs] == ["x"]
    assert (found.parameters, found.macs) == (12, 12)


@pytest.mark.parametrize("opset", [*IR_OF_OPSET, NEWEST])
def test_every_opset_reads(tmp_path: Path, opset: int) -> None:
    found = read(convolution(opset), tmp_path)
    assert found.outputs == (Tensor("y", "float32", (1, 2, 6, 6)),)
    assert found.macs == 2 * 6 * 6 * 9


@pytest.mark.parametrize("opset", [7, 13, NEWEST])
def test_fp32_converts_on_both_runtimes(tmp_path: Path, opset: int) -> None:
    found = read(convolution(opset), tmp_path)
    target = fit.load_target("x86-64")
    for runtime in ("onnxruntime", "openvino"):
        with Cache() as cache:
            name, recipe, device = f"fp32@{runtime}", target.recipe("fp32"), Local(cache)
            made = convert(name, found, recipe, runtime, target, 1, device, cache)
            assert made.size_bytes == sum(file.stat().st_size for file in made.files) > 0


def convolution(opset: int) -> Any:
    inputs = [value("x", ["N", 1, 8, 8])]
    if opset < 9:  # weights had to be inputs too
        inputs.append(value("weight", [2, 1, 3, 3]))
    return build(
        [node("Conv", "x weight", "hidden"), node("Relu", "hidden", "y")],
        inputs,
        [value("y", ["N", 2, 6, 6])],
        [weights("weight", 2, 1, 3, 3)],
        opset=opset,
        ir=IR_OF_OPSET.get(opset, 11),
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.INT64, "int64"),
        (TensorProto.UINT8, "uint8"),
        (TensorProto.BOOL, "bool"),
    ],
)
def test_dtypes_of_inputs(tmp_path: Path, kind: int, name: str) -> None:
    model = build([node("Identity", "x", "y")], [value("x", [1, 2], kind)],
                  [value("y", [1, 2], kind)])  # fmt: skip
    found = read(model, tmp_path)
    assert found.inputs[0].dtype == found.outputs[0].dtype == name


@pytest.mark.parametrize(
    "kind", [TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.BFLOAT16, TensorProto.INT4]
)
def test_inputs_that_are_no_plain_numbers_are_unsupported(tmp_path: Path, kind: int) -> None:
    model = build(
        [node("Identity", "x", "y")],
        [value("x", [1, 2], kind)],
        [value("y", [1, 2], kind)],
        opset=21,
        ir=10,
    )
    with pytest.raises(UnsupportedError, match="'x'"):
        read(model, tmp_path)


def test_a_sequence_output_is_unsupported(tmp_path: Path) -> None:
    model = build(
        [node("SequenceConstruct", "x x", "pair")],
        [value("x", [1, 2])],
        [helper.make_tensor_sequence_value_info("pair", F32, [1, 2])],
    )
    with pytest.raises(UnsupportedError, match="'pair' is not a tensor but a sequence_type"):
        read(model, tmp_path)


def test_a_sequence_input_is_unsupported(tmp_path: Path) -> None:
    model = build(
        [node("ConcatFromSequence", "parts", "y", axis=0)],
        [helper.make_tensor_sequence_value_info("parts", F32, [1, 2])],
        [value("y", None)],
    )
    with pytest.raises(UnsupportedError, match="'parts' is not a tensor"):
        read(model, tmp_path)


def test_operators_for_classical_learning_are_known(tmp_path: Path) -> None:
    scaler = helper.make_node(
        "Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0, 1.0], scale=[1.0, 2.0]
    )
    inputs, outputs = [value("x", ["N", 2])], [value("y", ["N", 2])]
    found = read(build([scaler], inputs, outputs, domains=["ai.onnx.ml"]), tmp_path)
    assert found.operators == {"ai.onnx.ml.Scaler": 1}
    assert found.outputs[0].shape == (1, 2)


@pytest.mark.parametrize("domain", ["", "acme.ops"])
def test_an_unknown_operator_is_named_with_its_node(tmp_path: Path, domain: str) -> None:
    odd = helper.make_node("Frobnicate", ["x"], ["y"], name="strange_one", domain=domain)
    model = build(
        [odd], [value("x", [1, 2])], [value("y", [1, 2])], domains=[domain] if domain else []
    )
    with pytest.raises(UnsupportedError) as caught:
        read(model, tmp_path)
    for word in ("Frobnicate", "strange_one", domain or "ai.onnx"):
        assert word in str(caught.value)


def test_an_unknown_operator_without_a_name_is_known_by_its_output(tmp_path: Path) -> None:
    model = build(
        [node("Frobnicate", "x", "mystery")], [value("x", [1, 2])], [value("mystery", [1, 2])]
    )
    with pytest.raises(UnsupportedError, match="mystery"):
        read(model, tmp_path)


def test_an_operator_newer_than_the_opset_is_unknown(tmp_path: Path) -> None:
    model = build([node("Gelu", "x", "y")], [value("x", [1, 2])], [value("y", [1, 2])], opset=17)
    with pytest.raises(UnsupportedError, match=r"Gelu.*opset 17"):
        read(model, tmp_path)


def test_an_unknown_operator_in_a_branch_is_found(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="Frobnicate"):
        read(branching("Frobnicate"), tmp_path)


def test_an_unknown_operator_in_a_function_is_found(tmp_path: Path) -> None:
    odd = node("Frobnicate", "v w", "result", name="strange_one")
    with pytest.raises(UnsupportedError, match=r"Frobnicate.*strange_one"):
        read(with_function([odd]), tmp_path)


def branching(kind: str = "MatMul") -> Any:
    def branch(name: str) -> Any:
        result = f"{name}_result"
        return helper.make_graph(
            [node(kind, f"x {name}_weight", result)],
            name,
            [],
            [value(result, [2, 3])],
            [weights(f"{name}_weight", 4, 3)],
        )

    return build(
        [node("If", "flag", "y", then_branch=branch("yes"), else_branch=branch("no"))],
        [value("flag", [], TensorProto.BOOL), value("x", [2, 4])],
        [value("y", [2, 3])],
    )


def test_a_model_with_branches(tmp_path: Path) -> None:
    found = read(branching(), tmp_path)
    assert found.outputs == (Tensor("y", "float32", (2, 3)),)
    assert found.parameters == 24
    assert found.operators == {"If": 1, "MatMul": 2}


def test_macs_in_branches_that_use_values_from_outside(tmp_path: Path) -> None:
    assert read(branching(), tmp_path).macs == 2 * (2 * 4 * 3)


def test_a_loop_counts_one_pass(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            node("Constant", "", "weight", value=weights("weight", 3, 3)),
            node("MatMul", "state weight", "next"),
            node("Identity", "go_on", "still"),
        ],
        "body",
        [
            value("step", [], TensorProto.INT64),
            value("go_on", [], TensorProto.BOOL),
            value("state", [2, 3]),
        ],
        [value("still", [], TensorProto.BOOL), value("next", [2, 3])],
    )
    body.node[0].ClearField("input")
    model = build(
        [node("Loop", "times - x", "y", body=body)],
        [value("x", [2, 3])],
        [value("y", [2, 3])],
        [constant("times", 5, "int64")],
    )
    found = read(model, tmp_path)
    assert found.outputs[0].shape == (2, 3)
    assert (found.parameters, found.macs) == (9, 2 * 3 * 3)


def with_function(body: list[Any]) -> Any:
    function = helper.make_function(
        "local", "Apply", ["v", "w"], ["result"], body, [helper.make_opsetid("", 17)]
    )
    return build(
        [helper.make_node("Apply", ["x", "weight"], ["y"], domain="local")],
        [value("x", ["N", 4])],
        [value("y", ["N", 3])],
        [weights("weight", 4, 3)],
        domains=["local"],
        functions=[function],
    )


def test_a_model_with_a_function(tmp_path: Path) -> None:
    found = read(with_function([node("MatMul", "v w", "result")]), tmp_path, batch=2)
    assert found.outputs == (Tensor("y", "float32", (2, 3)),)
    assert found.operators == {"MatMul": 1}
    assert found.parameters == 12


def test_macs_in_a_function(tmp_path: Path) -> None:
    assert read(with_function([node("MatMul", "v w", "result")]), tmp_path).macs == 12


@pytest.mark.parametrize(
    ("kind", "x", "weight", "attributes", "macs"),
    [
        # every output value sums over its kernel
        ("Conv", (1, 3, 5, 5), (2, 3, 3, 3), {}, 2 * 3 * 3 * (3 * 3 * 3)),
        ("Conv", (1, 4, 9, 9), (6, 2, 3, 3), {"group": 2, "strides": [2, 2], "pads": [1] * 4},
         6 * 5 * 5 * (2 * 3 * 3)),
        ("Conv", (1, 4, 6, 6), (4, 1, 3, 3), {"group": 4}, 4 * 4 * 4 * 9),
        ("Conv", (1, 2, 9, 9), (3, 2, 3, 3), {"dilations": [2, 2]}, 3 * 5 * 5 * (2 * 9)),
        ("Conv", (2, 3, 10), (5, 3, 4), {}, 2 * 5 * 7 * (3 * 4)),
        # every input value is spread over its kernel
        ("ConvTranspose", (1, 3, 5, 5), (3, 2, 4, 4), {"strides": [2, 2]}, 3 * 5 * 5 * (2 * 16)),
        ("ConvTranspose", (1, 4, 5, 5), (4, 2, 3, 3), {"group": 2}, 4 * 5 * 5 * (2 * 9)),
        ("Gemm", (5, 7), (7, 3), {}, 5 * 7 * 3),
        ("Gemm", (7, 5), (7, 3), {"transA": 1}, 5 * 7 * 3),
        ("Gemm", (5, 7), (3, 7), {"transB": 1}, 5 * 7 * 3),
        ("MatMul", (2, 3, 4, 5), (2, 3, 5, 6), {}, 2 * 3 * 4 * 5 * 6),
        ("MatMul", (2, 1, 4, 5), (3, 5, 6), {}, 2 * 3 * 4 * 5 * 6),
        ("MatMul", (4, 5), (5,), {}, 4 * 5),
        ("MatMul", (5,), (5, 6), {}, 5 * 6),
        ("Einsum", (4, 5), (5, 6), {"equation": "ij,jk->ik"}, 4 * 5 * 6),
    ],
)  # fmt: skip
def test_macs_and_parameters_are_exact(
    tmp_path: Path,
    kind: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    attributes: dict[str, Any],
    macs: int,
) -> None:
    model = build(
        [node(kind, "x weight", "y", **attributes)],
        [value("x", x)],
        [value("y", None)],
        [weights("weight", *weight)],
    )
    found = read(model, tmp_path)
    assert found.parameters == int(np.prod(weight))
    assert found.macs == macs


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_macs_of_recurrent_layers(tmp_path: Path, kind: str, gates: int, directions: int) -> None:
    steps, batch, size, hidden = 6, 2, 3, 4
    model = build(
        [
            node(
                kind,
                "x weight recurrence",
                "y",
                hidden_size=hidden,
                direction="bidirectional" if directions == 2 else "forward",
            )
        ],
        [value("x", [steps, batch, size])],
        [value("y", [steps, directions, batch, hidden])],
        [
            weights("weight", directions, gates * hidden, size),
            weights("recurrence", directions, gates * hidden, hidden),
        ],
    )
    one_step = directions * gates * hidden * (size + hidden)
    found = read(model, tmp_path)
    assert found.parameters == one_step
    assert found.macs == steps * batch * one_step


def test_macs_of_a_quantized_convolution(tmp_path: Path) -> None:
    scale, zero = constant("scale", 0.1), constant("zero", 0, "uint8")
    model = build(
        [node("QLinearConv", "x scale zero weight scale zero scale zero", "y")],
        [value("x", [1, 2, 4, 4], TensorProto.UINT8)],
        [value("y", [1, 3, 2, 2], TensorProto.UINT8)],
        [constant("weight", np.ones((3, 2, 3, 3)), "uint8"), scale, zero],
    )
    assert read(model, tmp_path).macs == 3 * 2 * 2 * (2 * 9)


def test_macs_behind_paddings_that_are_computed_in_the_graph(tmp_path: Path) -> None:
    nodes = [
        node("ConstantOfShape", "missing", "zeros", value=constant("zero", [0], "int64")),
        node("Concat", "given zeros", "all", axis=0),
        node("Reshape", "all pairs_shape", "pairs"),
        node("Slice", "pairs from to axis step", "reversed"),
        node("Transpose", "reversed", "turned", perm=[1, 0]),
        node("Reshape", "turned flat", "pads64"),
        node("Cast", "pads64", "pads", to=TensorProto.INT64),
        node("Pad", "x pads", "padded"),
        node("Conv", "padded weight", "y"),
    ]
    tensors = [
        constant("missing", [4], "int64"),
        constant("given", [2, 1, 1, 2], "int64"),
        constant("pairs_shape", [-1, 2], "int64"),
        constant("from", [-1], "int64"),
        constant("to", [-(2**63)], "int64"),
        constant("axis", [0], "int64"),
        constant("step", [-1], "int64"),
        constant("flat", [-1], "int64"),
        weights("weight", 5, 1, 3, 3),
    ]
    model = build(nodes, [value("x", ["N", 1, 8, 8])], [value("y", ["N", 5, "h", "w"])], tensors)
    found = read(model, tmp_path)
    assert found.outputs[0].shape == (1, 5, 9, 9)
    assert found.macs == 5 * 9 * 9 * 9


def test_macs_are_none_where_the_data_decides_the_shape(tmp_path: Path) -> None:
    model = build(
        [
            node("NonZero", "x", "places"),
            node("Cast", "places", "numbers", to=F32),
            node("Transpose", "numbers", "rows"),
            node("MatMul", "rows weight", "products"),
            node("ReduceSum", "products", "y", keepdims=0),
        ],
        [value("x", [3, 4])],
        [value("y", [])],
        [weights("weight", 2, 5)],
    )
    assert read(model, tmp_path).macs is None


def test_macs_are_none_only_for_what_counts(tmp_path: Path) -> None:
    assert read(relu([1, 4]), tmp_path).macs == 0


def test_external_data_is_taken_into_the_copy(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    data = tmp_path / "weights.bin"
    before = digest_of(path, data)
    found = read(path, tmp_path)
    assert found.size_bytes == path.stat().st_size + data.stat().st_size
    inline = read(dense(), tmp_path)
    assert (found.parameters, found.macs) == (inline.parameters, inline.macs) == (15, 12)
    copy = onnx.load_model(str(found.prepared), load_external_data=False)
    assert all(tensor.raw_data for tensor in copy.graph.initializer)
    assert digest_of(path, data) == before


def test_the_digest_covers_external_data(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    first = read(path, tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[::-1])
    second = read(path, tmp_path)
    assert first.sha256 != second.sha256
    assert first.prepared_sha256 != second.prepared_sha256


def test_external_data_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path = with_external_data(tmp_path, "data/weights.bin")
    assert read(path, tmp_path).parameters == 15


def test_a_link_to_a_model_with_external_data(tmp_path: Path) -> None:
    for folder in ("real", "links"):
        (tmp_path / folder).mkdir()
    path = with_external_data(tmp_path / "real")
    link = tmp_path / "links" / "model.onnx"
    link.symlink_to(path)
    assert read(link, tmp_path).parameters == 15


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UsageError, match=r"'weights\.bin' is missing"):
        read(path, tmp_path)


def test_truncated_external_data_is_named(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    os.truncate(tmp_path / "weights.bin", 50)
    with pytest.raises(UsageError, match=r"'weights\.bin' is cut off"):
        read(path, tmp_path)


def test_truncated_external_data_of_no_stated_length(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    model = onnx.load_model(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        kept = [entry for entry in tensor.external_data if entry.key == "location"]
        del tensor.external_data[:]
        tensor.external_data.extend(kept)
    save(model, path)
    os.truncate(tmp_path / "weights.bin", 8)
    with pytest.raises(UsageError):
        read(path, tmp_path)


def test_weights_shorter_than_their_shape(tmp_path: Path) -> None:
    model = dense()
    model.graph.initializer[0].raw_data = b"\0\0\0\0"
    with pytest.raises(UsageError, match="weight"):
        read(model, tmp_path)


@pytest.mark.parametrize("location", ["{home}/outside/weights.bin", "../outside/weights.bin", ""])
def test_external_data_outside_the_folder_is_not_opened(tmp_path: Path, location: str) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    path = with_external_data(inside)
    (inside / "weights.bin").rename(outside / "weights.bin")
    relocate(path, location.format(home=tmp_path))
    before = digest_of(path, outside / "weights.bin")
    with pytest.raises(UsageError, match="outside the model's folder"):
        read(path, tmp_path)
    assert digest_of(path, outside / "weights.bin") == before


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_to_external_data_outside_the_folder_is_not_followed(
    tmp_path: Path, linked: str
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    path = with_external_data(inside)
    (inside / "weights.bin").rename(outside / "weights.bin")
    if linked == "file":
        (inside / "weights.bin").symlink_to(outside / "weights.bin")
    else:
        (inside / "data").symlink_to(outside)
        relocate(path, "data/weights.bin")
    with pytest.raises(UsageError, match="link out of the model's folder"):
        read(path, tmp_path)


def test_external_data_with_a_damaged_offset(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    model = onnx.load_model(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset":
                entry.value = "-12"
    save(model, path)
    with pytest.raises(UsageError):
        read(path, tmp_path)


def test_shapes_are_parsed() -> None:
    assert parse_shapes(["x=1,3,224,224", "a=b=2"]) == {"x": (1, 3, 224, 224), "a=b": (2,)}


@pytest.mark.parametrize("word", ["x", "x=", "=1,2", "x=1,0", "x=1,-2", "x=1,two", "x=1,,2"])
def test_shapes_that_are_none(word: str) -> None:
    with pytest.raises(UsageError, match="NAME=1,3,224,224"):
        parse_shapes([word])


def test_two_shapes_for_one_input() -> None:
    with pytest.raises(UsageError, match="'x' was given a shape already"):
        parse_shapes(["x=1,2", "x=1,3"])
