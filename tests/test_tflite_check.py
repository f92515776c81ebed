"""The checker of .tflite files: silent on what is right, and a sentence for each violation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from onmetal.converters.tflite import smaller_weights
from onmetal.converters.tflite.check import problems
from onmetal.converters.tflite.grid import Activation
from onmetal.converters.tflite.net import Net, Tensor, constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.quantize import quantize
from onmetal.converters.tflite.writing import write
from onmetal.errors import UsageError
from tests.tflite_kinds import SQUARE, Making
from tests.tflite_nets import bias, content, model_of, moved, net, op, packed, scaled, weight
from tests.tflite_quantized import KERNELS, STEPS, calibrated, steps_off

# --- what is right


@pytest.mark.parametrize("activation", ["float", "s8", "s16"])
def test_nothing_is_wrong_with_what_is_written(activation: str) -> None:
    assert problems(net(activation)) == []


def test_nothing_is_wrong_with_smaller_weights() -> None:
    for make in (smaller_weights.halved, smaller_weights.dynamic):
        assert problems(read(write(make(net("float"))))) == []


# --- what is wrong


class Wrong(NamedTuple):
    plant: Callable[[Net], object]
    named: Callable[[Net], list[str]]
    """What some finding must name, of the net before."""
    activation: str = "s8"


WRONG: dict[str, Wrong] = {}
Named = Callable[[Net], list[str]]


def wrong(named: Named, activation: str = "s8") -> Callable[[Callable[[Net], Any]], None]:
    def register(plant: Callable[[Net], Any]) -> None:
        label = plant.__name__.replace("_", " ")
        assert label not in WRONG
        WRONG[label] = Wrong(plant, named, activation)

    return register


def of(kind: str, *more: Callable[[Net], Tensor]) -> Named:
    """The operator by its kind and its first output, and tensors."""

    def names(found: Net) -> list[str]:
        return [kind, repr(op(found, kind).outputs[0].name), *(repr(t(found).name) for t in more)]

    return names


def tensor_of(kind: str, place: int = 0) -> Named:
    return lambda found: [repr(op(found, kind).outputs[place].name)]


@wrong(of("CONV_2D", lambda n: bias(n, "CONV_2D")))
def a_bias_of_another_scale(found: Net) -> None:
    scaled(bias(found, "CONV_2D"), 2.0)


@wrong(of("CONV_2D", lambda n: bias(n, "CONV_2D")))
def one_channel_of_a_bias_of_another_scale(found: Net) -> None:
    tensor = bias(found, "CONV_2D")
    assert tensor.scale is not None
    factors = np.ones(8, np.float32)
    factors[5] = 1.01
    tensor.scale = tensor.scale * factors


@wrong(of("FULLY_CONNECTED", lambda n: bias(n, "FULLY_CONNECTED")))
def a_dense_bias_of_another_scale(found: Net) -> None:
    scaled(bias(found, "FULLY_CONNECTED"), 0.5)


@wrong(of("CONV_2D", lambda n: bias(n, "CONV_2D")), "s16")
def a_bias_of_another_scale_beside_16_bits(found: Net) -> None:
    scaled(bias(found, "CONV_2D"), 2.0)


@wrong(of("CONV_2D", lambda n: bias(n, "CONV_2D")))
def weights_of_512_times_their_scale(found: Net) -> None:
    scaled(weight(found, "CONV_2D"), 512)


@wrong(of("CONV_2D"))
def a_multiplier_of_512(found: Net) -> None:
    entry = op(found, "CONV_2D")
    inputs, scale = entry.inputs[0], weight(found, "CONV_2D").scale
    assert inputs is not None and inputs.scale is not None and scale is not None
    entry.outputs[0].scale = (inputs.scale * scale.max() / 512).astype(np.float32)


@wrong(of("CONV_2D"))
def an_output_of_a_convolution_far_too_fine(found: Net) -> None:
    op(found, "CONV_2D").outputs[0].scale = np.array([1e-9], np.float32)


@wrong(of("DEPTHWISE_CONV_2D"))
def an_output_of_a_depthwise_convolution_far_too_fine(found: Net) -> None:
    op(found, "DEPTHWISE_CONV_2D").outputs[0].scale = np.array([1e-9], np.float32)


@wrong(of("FULLY_CONNECTED"))
def an_output_of_a_dense_layer_far_too_fine(found: Net) -> None:
    op(found, "FULLY_CONNECTED").outputs[0].scale = np.array([1e-9], np.float32)


@wrong(of("ADD", lambda n: op(n, "ADD").taken[0]))
def a_sum_of_1e_4(found: Net) -> None:
    """Beside inputs of 0.01 and more, as images of 8 bits have."""
    for tensor in op(found, "ADD").taken:
        tensor.scale = np.array([0.04], np.float32)
    op(found, "ADD").outputs[0].scale = np.array([1e-4], np.float32)


@wrong(of("ADD", lambda n: op(n, "ADD").taken[0]))
def a_sum_far_coarser_than_a_term(found: Net) -> None:
    scaled(op(found, "ADD").taken[0], 1e-5)


@wrong(of("CONV_2D", lambda n: weight(n, "CONV_2D")))
def a_weight_with_a_zero_point(found: Net) -> None:
    moved(weight(found, "CONV_2D"), 3)


@wrong(of("FULLY_CONNECTED", lambda n: weight(n, "FULLY_CONNECTED")))
def a_dense_weight_with_a_zero_point(found: Net) -> None:
    moved(weight(found, "FULLY_CONNECTED"), -1)


@wrong(of("CONV_2D", lambda n: weight(n, "CONV_2D")))
def scales_of_a_convolution_along_axis_3(found: Net) -> None:
    weight(found, "CONV_2D").axis = 3


@wrong(lambda n: [repr(weight(n, "DEPTHWISE_CONV_2D").name)])
def scales_of_a_depthwise_convolution_along_axis_0(found: Net) -> None:
    tensor = weight(found, "DEPTHWISE_CONV_2D")
    tensor.axis = 0


@wrong(lambda n: [repr(weight(n, "CONV_2D").name)])
def scales_along_an_axis_that_is_not_there(found: Net) -> None:
    weight(found, "CONV_2D").axis = 4


@wrong(lambda n: [repr(weight(n, "CONV_2D").name), "7", "8"])
def fewer_scales_than_channels(found: Net) -> None:
    tensor = weight(found, "CONV_2D")
    assert tensor.scale is not None and tensor.zero_point is not None
    tensor.scale, tensor.zero_point = tensor.scale[:7], tensor.zero_point[:7]


@wrong(of("CONV_2D", lambda n: weight(n, "CONV_2D")))
def a_weight_of_minus_128(found: Net) -> None:
    tensor = weight(found, "CONV_2D")
    assert tensor.data is not None
    tensor.data = tensor.data.copy()
    tensor.data.reshape(-1)[11] = -128


@wrong(of("CONV_2D", lambda n: weight(n, "CONV_2D")))
def a_weight_without_a_scale(found: Net) -> None:
    tensor = weight(found, "CONV_2D")
    tensor.scale = tensor.zero_point = None


@wrong(of("CONV_2D", lambda n: bias(n, "CONV_2D")))
def a_bias_of_64_bits_beside_8(found: Net) -> None:
    tensor = bias(found, "CONV_2D")
    assert tensor.data is not None
    tensor.dtype, tensor.data = np.dtype(np.int64), tensor.data.astype(np.int64)


@wrong(of("CONV_2D", lambda n: bias(n, "CONV_2D")))
def a_bias_of_8_bits(found: Net) -> None:
    tensor = bias(found, "CONV_2D")
    assert tensor.data is not None
    tensor.dtype, tensor.data = np.dtype(np.int8), tensor.data.astype(np.int8)


@wrong(of("CONV_2D", lambda n: bias(n, "CONV_2D")))
def a_bias_of_floats(found: Net) -> None:
    tensor = bias(found, "CONV_2D")
    assert tensor.data is not None
    tensor.dtype, tensor.data = np.dtype(np.float32), tensor.data.astype(np.float32)
    tensor.scale = tensor.zero_point = None


@wrong(of("CONV_2D", lambda n: bias(n, "CONV_2D")))
def a_bias_without_scales(found: Net) -> None:
    tensor = bias(found, "CONV_2D")
    tensor.scale = tensor.zero_point = None


@wrong(lambda n: [repr(bias(n, "CONV_2D").name)])
def a_bias_with_a_zero_point(found: Net) -> None:
    moved(bias(found, "CONV_2D"), 1)


@wrong(lambda n: [repr(bias(n, "CONV_2D").name)], "s16")
def a_wide_bias_with_a_zero_point(found: Net) -> None:
    moved(bias(found, "CONV_2D"), 1)


@wrong(of("MAX_POOL_2D", lambda n: op(n, "MAX_POOL_2D").taken[0]))
def a_pooling_that_changes_the_scale(found: Net) -> None:
    scaled(op(found, "MAX_POOL_2D").outputs[0], 1.5)


@wrong(of("AVERAGE_POOL_2D", lambda n: op(n, "AVERAGE_POOL_2D").taken[0]))
def an_average_that_changes_the_zero_point(found: Net) -> None:
    tensor = op(found, "AVERAGE_POOL_2D").outputs[0]
    assert tensor.zero_point is not None
    moved(tensor, int(tensor.zero_point[0]) + 1)


@wrong(of("CONCATENATION", lambda n: op(n, "CONCATENATION").taken[1]))
def a_concatenation_of_two_scales(found: Net) -> None:
    scaled(op(found, "CONCATENATION").taken[1], 1.01)


@wrong(of("RESHAPE", lambda n: op(n, "RESHAPE").taken[0]))
def a_reshape_that_changes_the_scale(found: Net) -> None:
    scaled(op(found, "RESHAPE").outputs[0], 2)


@wrong(of("PAD", lambda n: op(n, "PAD").taken[0]), "s16")
def a_padding_that_changes_the_scale(found: Net) -> None:
    scaled(op(found, "PAD").outputs[0], 2)


@wrong(of("SOFTMAX"))
def a_softmax_of_another_scale(found: Net) -> None:
    scaled(op(found, "SOFTMAX").outputs[0], 1.01)


@wrong(of("SOFTMAX"))
def a_softmax_of_another_zero_point(found: Net) -> None:
    moved(op(found, "SOFTMAX").outputs[0], 0)


@wrong(of("SOFTMAX"), "s16")
def a_softmax_of_another_scale_with_16_bits(found: Net) -> None:
    scaled(op(found, "SOFTMAX").outputs[0], 128)


@wrong(of("LOGISTIC"))
def a_sigmoid_of_another_scale(found: Net) -> None:
    scaled(op(found, "LOGISTIC").outputs[0], 0.5)


@wrong(of("TANH"))
def a_tanh_of_another_zero_point(found: Net) -> None:
    moved(op(found, "TANH").outputs[0], -128)


@wrong(tensor_of("ADD"), "s16")
def a_zero_point_of_16_bits(found: Net) -> None:
    moved(op(found, "ADD").outputs[0], 5)


@wrong(tensor_of("ADD"))
def a_zero_point_outside_of_8_bits(found: Net) -> None:
    moved(op(found, "ADD").outputs[0], 128)


@wrong(tensor_of("ADD"))
def a_scale_of_zero(found: Net) -> None:
    op(found, "ADD").outputs[0].scale = np.array([0], np.float32)


@wrong(tensor_of("ADD"))
def a_negative_scale(found: Net) -> None:
    scaled(op(found, "ADD").outputs[0], -1)


@wrong(tensor_of("ADD"))
def a_scale_that_is_not_a_number(found: Net) -> None:
    op(found, "ADD").outputs[0].scale = np.array([np.nan], np.float32)


@wrong(tensor_of("ADD"))
def an_infinite_scale(found: Net) -> None:
    op(found, "ADD").outputs[0].scale = np.array([np.inf], np.float32)


@wrong(of("ADD"))
def an_activation_with_a_scale_for_each_channel(found: Net) -> None:
    tensor = op(found, "ADD").outputs[0]
    assert tensor.scale is not None and tensor.zero_point is not None
    tensor.scale, tensor.zero_point = tensor.scale.repeat(8), tensor.zero_point.repeat(8)
    tensor.axis = 3


@wrong(of("ADD"))
def a_sum_without_a_scale(found: Net) -> None:
    tensor = op(found, "ADD").outputs[0]
    tensor.scale = tensor.zero_point = None


@wrong(of("CONV_2D"))
def a_convolution_without_a_scale(found: Net) -> None:
    tensor = op(found, "CONV_2D").outputs[0]
    tensor.scale = tensor.zero_point = None


@wrong(of("CONV_2D"))
def a_convolution_from_integers_to_floats(found: Net) -> None:
    tensor = op(found, "CONV_2D").outputs[0]
    tensor.dtype, tensor.scale, tensor.zero_point = np.dtype(np.float32), None, None


@wrong(of("ADD"))
def a_sum_of_integers_that_is_float(found: Net) -> None:
    tensor = op(found, "ADD").outputs[0]
    tensor.dtype, tensor.scale, tensor.zero_point = np.dtype(np.float32), None, None


@wrong(of("MAX_POOL_2D"))
def a_pooling_of_8_bits_to_16(found: Net) -> None:
    op(found, "MAX_POOL_2D").outputs[0].dtype = np.dtype(np.int16)
    moved(op(found, "MAX_POOL_2D").outputs[0], 0)


@wrong(of("CONV_2D"))
def float_weights_beside_integers(found: Net) -> None:
    tensor = weight(found, "CONV_2D")
    assert tensor.data is not None
    tensor.dtype, tensor.data = np.dtype(np.float32), tensor.data.astype(np.float32)
    tensor.scale = tensor.zero_point = None


@wrong(of("CONV_2D"))
def a_shape_of_a_convolution(found: Net) -> None:
    op(found, "CONV_2D").outputs[0].shape = (1, 7, 8, 8)


@wrong(of("CONV_2D"), "float")
def channels_of_a_convolution(found: Net) -> None:
    op(found, "CONV_2D").outputs[0].shape = (1, 8, 8, 9)


@wrong(of("CONV_2D"), "float")
def a_bias_of_fewer_channels(found: Net) -> None:
    op(found, "CONV_2D").inputs[2] = constant("short", np.zeros(7, np.float32))


@wrong(of("CONV_2D"), "float")
def weights_of_another_depth(found: Net) -> None:
    op(found, "CONV_2D").inputs[1] = constant("deep", np.zeros((8, 1, 1, 5), np.float32))


@wrong(of("DEPTHWISE_CONV_2D"), "float")
def channels_of_a_depthwise_convolution(found: Net) -> None:
    op(found, "DEPTHWISE_CONV_2D").inputs[1] = constant("w", np.zeros((1, 3, 3, 16), np.float32))


@wrong(of("MAX_POOL_2D"), "float")
def a_shape_of_a_pooling(found: Net) -> None:
    op(found, "MAX_POOL_2D").outputs[0].shape = (1, 4, 5, 8)


@wrong(of("CONCATENATION"), "float")
def a_shape_of_a_concatenation(found: Net) -> None:
    op(found, "CONCATENATION").outputs[0].shape = (1, 4, 4, 15)


@wrong(of("RESHAPE"), "float")
def numbers_of_a_reshape(found: Net) -> None:
    op(found, "RESHAPE").outputs[0].shape = (1, 575)


@wrong(of("FULLY_CONNECTED"), "float")
def a_matrix_that_does_not_fit(found: Net) -> None:
    op(found, "FULLY_CONNECTED").inputs[1] = constant("w", np.zeros((8, 500), np.float32))


@wrong(of("FULLY_CONNECTED"), "float")
def outputs_of_a_matrix(found: Net) -> None:
    op(found, "FULLY_CONNECTED").outputs[0].shape = (1, 9)


@wrong(lambda n: [repr(op(n, "CONV_2D").outputs[0].name), "twice"])
def a_tensor_made_twice(found: Net) -> None:
    op(found, "DEPTHWISE_CONV_2D").outputs[0] = op(found, "CONV_2D").outputs[0]


@wrong(lambda n: [repr(n.inputs[0].name), "twice"], "float")
def an_input_that_is_made(found: Net) -> None:
    op(found, "CONV_2D").outputs[0] = found.inputs[0]


@wrong(lambda n: ["CONV_2D", repr(op(n, "CONV_2D").inputs[0].name)])  # type: ignore[union-attr]
def a_tensor_used_before_it_is_made(found: Net) -> None:
    first, second = found.ops[:2]
    assert (first.kind, second.kind) == ("QUANTIZE", "CONV_2D")
    found.ops[:2] = [second, first]


@wrong(lambda n: ["PAD", repr(op(n, "CONCATENATION").outputs[0].name)])
def a_tensor_that_nothing_makes(found: Net) -> None:
    found.ops.remove(op(found, "CONCATENATION"))


@wrong(lambda n: [repr(n.outputs[0].name)], "float")
def an_output_that_nothing_makes(found: Net) -> None:
    found.ops.remove(op(found, "SOFTMAX"))


@pytest.mark.parametrize("label", WRONG)
def test_a_violation_is_named(label: str) -> None:
    """By the checker of the net, and of the file that it would be."""
    plant, named, activation = WRONG[label]
    found = net(activation)
    words = named(found)
    plant(found)
    for checked in (found, read(write(found))):
        told = problems(checked)
        assert any(all(word in line for word in words) for line in told), (words, told)


def test_a_negative_shape() -> None:
    """Of a net; a file of it is not read."""
    found = net("float")
    tensor = op(found, "ADD").outputs[0]
    tensor.shape = (1, 8, -8, 8)
    assert any(repr(tensor.name) in line and "-8" in line for line in problems(found))
    with pytest.raises(UsageError, match=tensor.name):
        read(write(found))


def test_a_convolution_without_weights() -> None:
    model = model_of()
    model.subgraphs[0].operators[1].inputs = model.subgraphs[0].operators[1].inputs[:1]
    entry = op(net(), "CONV_2D")
    told = problems(read(packed(model)))
    assert any("CONV_2D" in line and repr(entry.outputs[0].name) in line for line in told), told


@pytest.mark.parametrize("activation", ["s8", "s16"])
def test_version_1_everywhere(activation: str) -> None:
    """It loads in every runtime of today, and in older ones that cannot compute it."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content(activation)))
    for code in model.operatorCodes:
        code.version = 1
    told = problems(read(packed(model)))
    late = {"CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "PAD", "CONCATENATION", "ADD"}
    for kind in late | {"AVERAGE_POOL_2D", "FULLY_CONNECTED", "SOFTMAX", "LOGISTIC", "TANH"}:
        name = op(net(activation), kind).outputs[0].name
        lines = [line for line in told if kind in line and repr(name) in line]
        assert any("version 1" in line for line in lines), kind


def test_a_float_file_of_version_1_is_right() -> None:
    assert {entry.version for entry in net("float").ops} == {1}


def test_every_finding_is_told() -> None:
    found = net()
    scaled(op(found, "MAX_POOL_2D").outputs[0], 1.5)
    moved(weight(found, "CONV_2D"), 3)
    told = problems(found)
    assert len([line for line in told if "MAX_POOL_2D" in line]) == 1
    assert len([line for line in told if line.startswith("CONV_2D")]) == 1
    assert any("CONCATENATION" in line for line in told)


# --- against the kernels: where nothing is said, nothing is wrong


POWERS = (-20, -14, -11, -9, -4, 0, 4, 6, 7, 7.5, 7.9, 8.1, 9, 12)


@pytest.mark.parametrize("activation", STEPS)
@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MUL"])
def test_scales_that_pass_compute_right(kind: str, power: float, activation: Activation) -> None:
    """Any ratio of scales: either it is a problem, or both kernels open it and are right."""
    m = Making(1, 4, 4, 2)
    first, second = m.conv(channels=2), m.conv(channels=2)
    if kind == "CONV_2D":
        m.done(m.conv(first, channels=2))
    elif kind == "FULLY_CONNECTED":
        flat = m.op("RESHAPE", [first, m.ints(1, 32)], 1, 32)
        m.done(m.op(kind, [flat, m.floats(4, 32), m.floats(4)], 1, 4))
    elif kind == "DEPTHWISE_CONV_2D":
        more = {"depthMultiplier": 1, **SQUARE()}
        m.done(m.op(kind, [first, m.floats(1, 3, 3, 2), m.floats(2)], 1, 4, 4, 2, **more))
    else:
        m.done(m.op(kind, [first, second], 1, 4, 4, 2))
    made = quantize(m.net, calibrated(m.net, m.feeds()), activation)
    entry = next(o for o in reversed(made.ops) if o.kind == kind)
    products = [t.scale for t in entry.taken[:2]]
    assert products[0] is not None and products[1] is not None
    whole_scale = float(products[0][0]) * (1.0 if kind == "ADD" else float(products[1].max()))
    entry.outputs[0].scale = np.array([whole_scale / 2.0**power], np.float32)
    if problems(made):
        assert not -9 <= power <= 0, problems(made)
        return
    for reference in KERNELS.values():
        assert steps_off(made, m.feeds(1), reference)[kind] <= STEPS[activation]
