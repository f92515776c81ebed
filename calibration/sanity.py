"""Does the calibration data look like what the model wants? Said as warnings, with advice.

Runs in a child process, on the float graph and its statistics.
"""

from pathlib import Path

import numpy as np
import onnx
from msgspec import Struct

from onmetal.calibration.collapse import ONE_CLASS, one_class
from onmetal.calibration.placement import WEIGHTED
from onmetal.calibration.reach import range_warning
from onmetal.calibration.search import spread, spread_outputs
from onmetal.calibration.statistics import Statistics
from onmetal.converters.onnx.graph import Graph
from onmetal.ranges import Range
from onmetal.records import Model
from onmetal.samples import Samples

FEW = 32
LOOKED_AT = 64
"""Inferences of the float model that are looked at."""
GROWN, GROWING = 0.10, 0.5
"""A range that grew by so much in the second half of the samples; the share of such tensors."""
LARGE, SMALL = 10.0, 0.05
"""A channel of the first layer's outputs spreads by about 1 in a trained network (normalization
sees to that): of six real ones the median channel by 0.5 to 1.2, the widest by 0.9 to 10. Fed raw
bytes instead of what they were trained on, the median was 37 or more; fed values that were scaled
once too often, the widest was 0.04 or less."""
STATED = 8.0
"""How many times the spread may be larger or smaller than a BatchNormalization says of training."""
BEYOND = 8.0
"""Images that were normalized hold no value beyond."""
LAYOUT = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Pad")
SCALING = ("Add", "Sub", "Mul", "Div", "Cast", "BatchNormalization")
PREPARE = "Prepare them as in training (data.toml's scale, mean and std)"
APART = 4.0
"""The ratio of spreads, or the difference of means in spreads, from which inputs are unlike."""

MOST_READ = 2048
"""Samples whose inputs are read for their range."""


class First(Struct, frozen=True):
    """The first weighted layer of a graph, where it takes an input, but for what scales it."""

    input: str
    output: str
    channels: int
    """The axis of the channels among an output's own."""


def examine(
    path: str,
    prepared: str,
    statistics: str,
    samples: Samples,
    judged: Samples | None,
    model: Model,
) -> list[str]:
    """Warnings about the calibration `samples`, and about `judged` where it is other data.

    `path`: the float graph that is calibrated; `prepared`: the model that it was made from.
    """
    seen = Statistics(Path(statistics))
    data, of = samples, model
    names = [tensor.name for tensor in of.inputs]
    said = [*_growing(seen, data.count), *_dead(names, seen), *_not_finite(seen, data.count)]
    said += _looked_at(path, prepared, data, of, LOOKED_AT)
    if judged is not None:
        other = judged
        mine = _inputs(data, of, LOOKED_AT)
        said += _apart(mine, _inputs(other, of)) or _beyond(data, other, of)
    return said


def examine_inputs(path: str, samples: Samples, model: Model) -> list[str]:
    """Warnings about samples with which nothing is calibrated. `path`: the model."""
    return _looked_at(path, path, samples, model, LOOKED_AT // 4)


def output_ranges(statistics: str, model: Model) -> dict[str, Range]:
    """What calibration saw of each float output, as far as it is known."""
    seen = Statistics(Path(statistics)).extremes
    names = [tensor.name for tensor in model.outputs]
    return {name: seen[name] for name in names if name in seen}


def _looked_at(path: str, prepared: str, data: Samples, of: Model, most: int) -> list[str]:
    inputs = _inputs(data, of, most)
    first, outputs = (_tflite if path.endswith(".tflite") else _onnx)(path, data, of, most)
    scaled = _normalized(prepared, data, of) if of.format == "onnx" else []
    if not scaled and first:
        scaled = _first_layer(first, inputs, outputs[first.output], data)
    return [*_constant(inputs), *scaled, *_alike(outputs, of)]


def _onnx(
    path: str, data: Samples, of: Model, most: int
) -> tuple[First | None, dict[str, np.ndarray]]:
    """-> the first weighted layer; what it gives and the outputs by name, on some samples."""
    model = onnx.load(path)
    first = _first(Graph(model))
    inner = [first.output] if first else []
    return first, spread_outputs(model, data, of, inner, most)


def _tflite(
    path: str, data: Samples, of: Model, most: int
) -> tuple[First | None, dict[str, np.ndarray]]:
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
                first = First(name, op.outputs[0].name, -1)
            break
    names = [tensor.name for tensor in of.outputs] + ([first.output] if first else [])
    run = Exposed(net, names).run
    return first, spread(
        lambda feed: [found[name] for found in [run(feed)] for name in names], names, data, of, most
    )


def _growing(seen: Statistics, count: int) -> list[str]:
    said = []
    if count < FEW:
        said.append(
            f"{count} calibration samples are few: the ranges of activations may be incomplete; "
            "100 to 500 are usual"
        )
    grown = [
        name
        for name, (low, high) in seen.half.items()
        if name in seen.seen
        and (seen.seen[name].high - seen.seen[name].low) > (1 + GROWN) * (high - low)
    ]
    if len(seen.seen) and len(grown) > GROWING * len(seen.seen):
        said.append(
            f"ranges are still growing: {len(grown)} of {len(seen.seen)} tensors went over "
            f"{GROWN:.0%} beyond the range that the first half of the calibration samples had "
            "shown; give more samples"
        )
    return said


def _dead(inputs: list[str], seen: Statistics) -> list[str]:
    dead = [n for n, entry in seen.seen.items() if entry.low == entry.high]
    dead = [name for name in dead if name not in inputs]
    if not dead:
        return []
    return [
        f"{len(dead)} tensors have one value only in all calibration samples, {dead[0]!r} "
        f"({seen.seen[dead[0]].low:g}) among them: a dead layer, or samples too much alike"
    ]


def _not_finite(seen: Statistics, count: int) -> list[str]:
    if not seen.not_finite:
        return []
    return [
        f"{len(seen.not_finite)} tensors are NaN or infinite in some calibration samples, "
        f"{min(seen.not_finite)!r} among them: no range holds them, so what uses them stays float"
    ]


def _inputs(data: Samples, model: Model, most: int = LOOKED_AT) -> dict[str, np.ndarray]:
    """By input, up to `most` inferences spread over all samples."""
    rows = list(data.spread(model, most))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _constant(inputs: dict[str, np.ndarray]) -> list[str]:
    return [
        f"the input {name!r} is {array.flat[0]:g} in all of the samples that were "
        "looked at: was the data prepared right?"
        for name, array in inputs.items()
        if array.size > 1 and array.dtype.kind == "f" and array.min() == array.max()
    ]


def _first(graph: Graph) -> First | None:
    for node in graph.nodes:
        if node.op_type not in WEIGHTED:
            continue
        source = _scaled(graph, node.input[0])
        if source is None:
            return None
        return First(source, node.output[0], 1 if node.op_type.startswith("Conv") else -1)
    return None


def _scaled(graph: Graph, name: str) -> str | None:
    """The graph's input that a tensor is, but for its layout and scaling by constants."""
    while name not in graph.inputs:
        node = graph.producer.get(name)
        if node is None or node.op_type not in (*LAYOUT, *SCALING):
            return None
        taken = [given for given in node.input if given and graph.constant(given) is None]
        if len(taken) != 1:
            return None
        name = taken[0]
    return name


def _normalized(path: str, data: Samples, of: Model) -> list[str]:
    """What a BatchNormalization of the input, or of what the first layer gives, says of training
    against what it takes now."""
    model = onnx.load(path, load_external_data=False)
    if not any(node.op_type == "BatchNormalization" for node in model.graph.node):
        return []
    model = onnx.load(path)
    graph = Graph(model)
    first = _first(graph)
    for node in graph.nodes:
        if node.op_type != "BatchNormalization":
            continue
        taken = node.input[0]
        if _scaled(graph, taken) is None and (first is None or taken != first.output):
            return []
        variance = graph.constant(node.input[4])
        inner = [] if taken in graph.inputs else [taken]
        if variance is None or not len(variance):
            return []
        found = spread_outputs(model, data, of, inner, LOOKED_AT // 4) if inner else None
        values = found[taken] if found else _inputs(data, of, LOOKED_AT // 4)[taken]
        # [inferences, batch, channels, ...]: by channel, how it spreads against training
        ratio = _by_channel(values, 1).std(axis=1) / np.sqrt(np.maximum(variance, 1e-12))
        times = float(np.median(ratio))
        if 1 / STATED <= times <= STATED or not np.isfinite(times):
            return []
        many = f"{times:.3g} times as" if times > 1 else f"only {times:.2g} times as"
        return [
            f"{_loud(graph, first, taken)}: they spread {many} far as in training, by what the "
            f"model's first normalization ({node.name or taken!r}) says of it; {PREPARE}"
        ]
    return []


def _loud(graph: Graph, first: First | None, taken: str) -> str:
    name = _scaled(graph, taken) or (first.input if first else taken)
    return f"the values of the input {name!r} are not those that the model was trained on"


def _by_channel(values: np.ndarray, axis: int) -> np.ndarray:
    """[inferences, …] -> [channels, …]; `axis`: of the channels in one inference."""
    moved = np.moveaxis(values, axis + 1 if axis >= 0 else axis, 0)
    return moved.reshape(len(moved), -1).astype(np.float64)


def _first_layer(
    first: First, inputs: dict[str, np.ndarray], values: np.ndarray, data: Samples
) -> list[str]:
    """Signs in what the first layer gives that images are not scaled as those of training."""
    array = inputs.get(first.input, np.zeros(0, np.int64))
    if values.dtype.kind != "f" or array.dtype.kind != "f" or values.ndim < 2:
        return []
    raw = _bytes(array)
    if not (raw or data.preprocessing or _pictures(array)):
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


def _pictures(array: np.ndarray) -> bool:
    """Whether [inferences, …] values may be images: of 1 or 3 channels, first or last."""
    sides = array.shape[2:] if array.ndim == 5 else array.shape[1:]
    return len(sides) == 3 and bool({sides[0], sides[2]} & {1, 3}) and min(sides[1:2]) > 4


def _alike(outputs: dict[str, np.ndarray], model: Model) -> list[str]:
    said = []
    for name in [tensor.name for tensor in model.outputs]:
        scores = outputs[name]
        if model.batch > 1 and scores.ndim > 1 and scores.shape[1] == model.batch:
            scores = scores.reshape(-1, *scores.shape[2:])
        share = one_class(scores)
        if share is not None and share >= ONE_CLASS:
            said.append(
                f"the float model gives the same prediction for {share:.0%} of the samples that "
                f"were looked at (output {name!r}): are they all of one class, or prepared "
                "otherwise than in training?"
            )
    return said


def _bytes(array: np.ndarray) -> bool:
    return bool(
        array.dtype.kind == "f"
        and array.min() >= 0
        and 64 < array.max() <= 255
        and np.array_equal(array, np.round(array))
    )


def _beyond(data: Samples, other: Samples, of: Model) -> list[str]:
    """Pictures are left out: what they are made of is bounded, and reading them takes long."""
    if data.preprocessing or other.preprocessing:
        return []
    calibrated, judged = _reached(data, of), _reached(other, of)
    said = [
        range_warning("input", name, calibrated[name], judged[name])
        for name in calibrated
        if name in judged
    ]
    return [text for text in said if text]


def _reached(data: Samples, of: Model) -> dict[str, Range]:
    """The least and the greatest value of every float input."""
    found: dict[str, Range] = {}
    for row in data.spread(of, MOST_READ):
        for name, array in row.items():
            if array.dtype.kind == "f" and array.size:
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = min(low, float(array.min())), max(high, float(array.max()))
    return found


def _apart(mine: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    said = []
    for name, array in mine.items():
        if array.dtype.kind != "f":
            continue
        spreads = float(array.std()), float(other[name].std())
        means = float(array.mean()), float(other[name].mean())
        wide, narrow = max(spreads), min(spreads)
        if wide > APART * narrow or abs(means[0] - means[1]) > APART * max(wide, 1e-30):
            said.append(
                f"the input {name!r} differs between the calibration and the evaluation samples: "
                f"mean {means[0]:.3g} against {means[1]:.3g}, spread {spreads[0]:.3g} against "
                f"{spreads[1]:.3g}; was all of it prepared the same way?"
            )
    return said
