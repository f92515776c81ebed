"""Does the calibration data look like what the model wants? Said as warnings, with advice.

Runs in a child process, on the float graph and its statistics.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from onmetal.calibration.collapse import ONE_CLASS, one_class
from onmetal.calibration.graph import Graph
from onmetal.calibration.placement import WEIGHTED
from onmetal.calibration.ranges import Range
from onmetal.calibration.samples import Samples
from onmetal.calibration.search import spread, spread_outputs
from onmetal.calibration.statistics import Statistics
from onmetal.records import Model, restore

FEW = 32
LOOKED_AT = 64
"""Inferences of the float model that are looked at."""
GROWN, GROWING = 0.10, 0.5
"""A range that grew by so much in the second half of the samples; the share of such tensors."""
UNNORMALIZED = 20.0
"""The first layer's outputs spread by about 1 in a trained network (normalization sees to that), by
over 50 in each that was fed raw bytes instead of what it was trained on (ResNet-20, ResNet-56,
EfficientNet-Lite0), and by 0.8 in one that was trained on raw bytes (MLPerf Tiny's ResNet-8)."""
APART = 4.0
"""The ratio of spreads, or the difference of means in spreads, from which inputs are unlike."""

BEYOND = 0.5
"""How much wider than calibration's range, in parts of it, that of other samples may be without a
word. Ten times as many samples of a normal distribution make it about 0.2 wider, of one with
exponential tails about 0.35."""
MOST_READ = 2048
"""Samples whose inputs are read for their range."""


def examine(
    path: str,
    statistics: str,
    samples: dict[str, Any],
    judged: dict[str, Any] | None,
    model: dict[str, Any],
) -> list[str]:
    """Warnings about the calibration `samples`, and about `judged` where it is other data."""
    seen = Statistics(Path(statistics))
    data, of = restore(samples, Samples), restore(model, Model)
    names = [tensor.name for tensor in of.inputs]
    first, outputs = _tflite(path, data, of) if path.endswith(".tflite") else _onnx(path, data, of)
    said = [*_growing(seen, data.count), *_dead(names, seen), *_not_finite(seen, data.count)]
    mine = _inputs(data, of)
    said += _constant(mine)
    said += _unlike(first, mine, outputs, of)
    if judged is not None:
        other = restore(judged, Samples)
        said += _apart(mine, _inputs(other, of)) or _beyond(data, other, of)
    return said


def range_warning(
    kind: Literal["input", "output"], name: str, calibrated: Range, judged: Range
) -> str | None:
    """Says that what judges reaches far beyond what calibrated: 8 bits clip it there."""
    low, high = calibrated
    over = max(low - judged[0], 0.0) + max(judged[1] - high, 0.0)
    if not np.isfinite([*calibrated, *judged]).all() or over <= BEYOND * (high - low):
        return None
    return (
        f"the {kind} {name!r} goes from {judged[0]:.3g} to {judged[1]:.3g} in the samples that "
        f"judge, and from {low:.3g} to {high:.3g} in those that calibrate: 8 bits clip what is "
        "beyond; calibrate with samples that reach as far"
    )


def output_ranges(statistics: str, model: dict[str, Any]) -> dict[str, Range]:
    """What calibration saw of each float output, as far as it is known."""
    seen = Statistics(Path(statistics)).extremes
    names = [tensor.name for tensor in restore(model, Model).outputs]
    return {name: seen[name] for name in names if name in seen}


def _onnx(path: str, data: Samples, of: Model) -> tuple[str | None, dict[str, np.ndarray]]:
    """-> what the first weighted layer gives, where it takes an input; that and the outputs by
    name, on some samples."""
    model = onnx.load(path)
    first = _first(Graph(model))
    return next(iter(first), None), spread_outputs(model, data, of, first, LOOKED_AT)


def _tflite(path: str, data: Samples, of: Model) -> tuple[str | None, dict[str, np.ndarray]]:
    from onmetal.calibration.exposed import Exposed
    from onmetal.converters.tflite.net import read
    from onmetal.converters.tflite.specification import WEIGHTED as HEAVY

    net = read(Path(path))
    producers = net.producers()
    first = None
    for op in net.ops:
        if op.kind in HEAVY:
            source = op.inputs[HEAVY[op.kind].taken]
            while source in producers and producers[source].kind in ("TRANSPOSE", "RESHAPE", "PAD"):
                source = producers[source].inputs[0]
            first = op.outputs[0].name if source in net.inputs else None
            break
    names = [tensor.name for tensor in of.outputs] + ([first] if first else [])
    run = Exposed(net, names).run
    return first, spread(
        lambda feed: [found[name] for found in [run(feed)] for name in names],
        names,
        data,
        of,
        LOOKED_AT,
    )


def _growing(seen: Statistics, count: int) -> list[str]:
    said = []
    if count < FEW:
        said.append(
            f"{count} calibration samples are few: the ranges of activations may not be all there; "
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


def _inputs(data: Samples, model: Model) -> dict[str, np.ndarray]:
    """By input, up to 64 samples spread over all."""
    rows = list(data.spread(model, LOOKED_AT))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _constant(inputs: dict[str, np.ndarray]) -> list[str]:
    return [
        f"the input {name!r} is {array.flat[0]:g} in all of the calibration samples that were "
        "looked at: was the data prepared right?"
        for name, array in inputs.items()
        if array.size > 1 and array.dtype.kind == "f" and array.min() == array.max()
    ]


def _first(graph: Graph) -> list[str]:
    """What the first weighted layer gives, where it takes a graph input as it is."""
    for node in graph.nodes:
        if node.op_type not in WEIGHTED:
            continue
        source = node.input[0]
        while source in graph.producer and graph.producer[source].op_type in (
            "Transpose",
            "Reshape",
            "Flatten",
        ):
            source = graph.producer[source].input[0]
        return [node.output[0]] if source in graph.inputs else []
    return []


def _unlike(
    first: str | None,
    inputs: dict[str, np.ndarray],
    outputs: dict[str, np.ndarray],
    model: Model,
) -> list[str]:
    """Signs that the values are not those that the model was trained on."""
    said = []
    raw = [name for name, array in inputs.items() if _bytes(array)]
    if first and raw and float(outputs[first].std()) > UNNORMALIZED:
        said.append(
            f"the input {raw[0]!r} holds raw bytes (0 to 255), and the first layer answers with a "
            f"spread of {float(outputs[first].std()):.0f} where about 1 is usual: images that were "
            "not normalized? Scale them as in training (data.toml's scale, mean and std)"
        )
    for name in [tensor.name for tensor in model.outputs]:
        scores = outputs[name]
        if model.batch > 1 and scores.ndim > 1 and scores.shape[1] == model.batch:
            scores = scores.reshape(-1, *scores.shape[2:])
        share = one_class(scores)
        if share is not None and share >= ONE_CLASS:
            said.append(
                f"the float model gives the same prediction for {share:.0%} of the calibration "
                f"samples (output {name!r}): are they all of one class, or prepared otherwise than "
                "in training?"
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
                f"the input {name!r} is unlike in what calibrates and in what judges: mean "
                f"{means[0]:.3g} against {means[1]:.3g}, spread {spreads[0]:.3g} against "
                f"{spreads[1]:.3g}; was all of it prepared the same way?"
            )
    return said
