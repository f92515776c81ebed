"""The first layer of a model: whether its inputs are scaled as they were in training."""

from pathlib import Path

import numpy as np
import onnx
from msgspec import Struct

from onmetal.calibration.placement import WEIGHTED
from onmetal.calibration.search import spread, spread_outputs
from onmetal.converters.onnx.graph import Graph
from onmetal.records import Model
from onmetal.samples import Samples

EXAMINED = 64
"""How many inferences of the float model are examined."""
LARGE, SMALL = 10.0, 0.05
"""In a trained network a channel of the first layer's outputs has a standard deviation (spread) of
about 1, because of normalization. In six real networks the median channel's was 0.5 to 1.2, and the
widest channel's 0.9 to 10. With raw bytes as inputs instead of scaled images, the median was 37 or
more; with values that were scaled twice, the widest was 0.04 or less."""
STATED = 8.0
"""The factor by which the spread may be larger or smaller than the one in training that a
BatchNormalization holds."""
BEYOND = 8.0
"""The largest magnitude to be expected of normalized images."""
LAYOUT = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Pad")
SCALING = ("Add", "Sub", "Mul", "Div", "Cast", "BatchNormalization")
PREPARE = "Prepare them as in training (data.toml's scale, mean and std)"


class FirstLayer(Struct, frozen=True):
    """The first weighted layer of a graph. Between an input of the graph and it are only operators
    of layout and scaling."""

    input: str
    output: str
    channels: int
    """The axis of the channels in the output of one inference."""


def first_layer_of_onnx(
    path: str, data: Samples, entry: Model, most: int
) -> tuple[FirstLayer | None, dict[str, np.ndarray]]:
    """-> the first weighted layer, and by name the outputs of it and of the model on at most `most`
    inferences."""
    model = onnx.load(path)
    first = _find_first_layer(Graph(model))
    inner = [first.output] if first else []
    return first, spread_outputs(model, data, entry, inner, most)


def first_layer_of_tflite(
    path: str, data: Samples, entry: Model, most: int
) -> tuple[FirstLayer | None, dict[str, np.ndarray]]:
    from onmetal.converters.tflite.net import signature_names
    from onmetal.converters.tflite.parsing import read
    from onmetal.converters.tflite.reference import Exposed
    from onmetal.converters.tflite.specification import WEIGHTED as HEAVY

    net = read(Path(path))
    producers = net.producers()
    first = None
    for op in net.ops:
        if op.kind in HEAVY:
            source = op.inputs[HEAVY[op.kind].taken]
            while source in producers and producers[source].kind in ("TRANSPOSE", "RESHAPE", "PAD"):
                source = producers[source].inputs[0]
            if source in net.inputs:
                name = signature_names(net)[0][net.inputs.index(source)]
                first = FirstLayer(name, op.outputs[0].name, -1)
            break
    names = [tensor.name for tensor in entry.outputs] + ([first.output] if first else [])
    run = Exposed(net, names).run
    return first, spread(
        lambda feed: [arrays[name] for arrays in [run(feed)] for name in names],
        names,
        data,
        entry,
        most,
    )


def input_values(data: Samples, model: Model, most: int = EXAMINED) -> dict[str, np.ndarray]:
    """Input -> its values in up to `most` inferences, spread over all samples."""
    rows = list(data.spread(model, most))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _find_first_layer(graph: Graph) -> FirstLayer | None:
    for node in graph.nodes:
        if node.op_type not in WEIGHTED:
            continue
        source = _scaled_input(graph, node.input[0])
        if source is None:
            return None
        return FirstLayer(source, node.output[0], 1 if node.op_type.startswith("Conv") else -1)
    return None


def _scaled_input(graph: Graph, name: str) -> str | None:
    """The graph's input from which a tensor is computed by layout and scaling by constants alone;
    None where other operators take part."""
    while name not in graph.inputs:
        node = graph.producer.get(name)
        if node is None or node.op_type not in (*LAYOUT, *SCALING):
            return None
        operands = [
            operand for operand in node.input if operand and graph.constant(operand) is None
        ]
        if len(operands) != 1:
            return None
        name = operands[0]
    return name


def unlike_normalization(path: str, data: Samples, entry: Model) -> list[str]:
    """A warning where the spread of values differs from the one in training, which is known from a
    BatchNormalization of the input or of the first layer's outputs."""
    model = onnx.load(path, load_external_data=False)
    if not any(node.op_type == "BatchNormalization" for node in model.graph.node):
        return []
    model = onnx.load(path)
    graph = Graph(model)
    first = _find_first_layer(graph)
    for node in graph.nodes:
        if node.op_type != "BatchNormalization":
            continue
        source = node.input[0]
        if _scaled_input(graph, source) is None and (first is None or source != first.output):
            return []
        variance = graph.constant(node.input[4])
        inner = [] if source in graph.inputs else [source]
        if variance is None or not len(variance):
            return []
        outputs = spread_outputs(model, data, entry, inner, EXAMINED // 4) if inner else None
        values = outputs[source] if outputs else input_values(data, entry, EXAMINED // 4)[source]
        # [inferences, batch, channels, ...] -> [channels]: the spread relative to training
        ratio = _by_channel(values, 1).std(axis=1) / np.sqrt(np.maximum(variance, 1e-12))
        times = float(np.median(ratio))
        if 1 / STATED <= times <= STATED or not np.isfinite(times):
            return []
        unlike = _sentence_start(graph, first, source)
        how_far = f"{times:.3g} times as" if times > 1 else f"only {times:.2g} times as"
        return [
            f"{unlike}: they spread {how_far} far as in training, by what "
            f"the model's first normalization ({node.name or source!r}) says of it; {PREPARE}"
        ]
    return []


def _sentence_start(graph: Graph, first: FirstLayer | None, source: str) -> str:
    name = _scaled_input(graph, source) or (first.input if first else source)
    return f"the values of the input {name!r} are not those that the model was trained on"


def _by_channel(values: np.ndarray, axis: int) -> np.ndarray:
    """[inferences, …] -> [channels, …]; `axis`: of the channels in one inference."""
    moved = np.moveaxis(values, axis + 1 if axis >= 0 else axis, 0)
    return moved.reshape(len(moved), -1).astype(np.float64)


def unlike_training(
    first: FirstLayer, inputs: dict[str, np.ndarray], values: np.ndarray, data: Samples
) -> list[str]:
    """A warning where the first layer's outputs show that images are not scaled as in training."""
    array = inputs.get(first.input, np.zeros(0, np.int64))
    if values.dtype.kind != "f" or array.dtype.kind != "f" or values.ndim < 2:
        return []
    raw = _are_raw_bytes(array)
    if not (raw or data.preprocessing or _may_be_images(array)):
        return []
    spreads = _by_channel(values, first.channels).std(axis=1)
    low, high = float(array.min()), float(array.max())
    reach = f"the input {first.input!r} holds " + (
        "raw bytes (0 to 255)" if raw else f"values from {low:.3g} to {high:.3g}"
    )
    if float(np.median(spreads)) > LARGE and max(-low, high) > BEYOND:
        return [
            f"{reach}, and the first layer's channels spread by {np.median(spreads):.0f} where "
            f"about 1 is usual: images that were not normalized? {PREPARE}"
        ]
    if float(spreads.max()) < SMALL and low < high:
        return [
            f"{reach}, and the first layer hardly tells one image from another: its channels "
            f"spread by {spreads.max():.2g} at most where about 1 is usual: scaled twice, or for "
            f"a model that takes 0 to 255? {PREPARE}"
        ]
    return []


def _may_be_images(array: np.ndarray) -> bool:
    """Whether [inferences, …] values may be images: of 1 or 3 channels, first or last."""
    sides = array.shape[2:] if array.ndim == 5 else array.shape[1:]
    return len(sides) == 3 and bool({sides[0], sides[2]} & {1, 3}) and min(sides[1:2]) > 4


def _are_raw_bytes(array: np.ndarray) -> bool:
    return bool(
        array.dtype.kind == "f"
        and array.min() >= 0
        and 64 < array.max() <= 255
        and np.array_equal(array, np.round(array))
    )
