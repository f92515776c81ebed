"""Warnings, with advice, where calibration data does not look like the model's training data.

Runs in a child process, on the float graph and its statistics.
"""

from pathlib import Path

import numpy as np

from onmetal.calibration.collapse import ONE_CLASS, one_class
from onmetal.calibration.first_layer import (
    EXAMINED,
    first_layer_of_onnx,
    first_layer_of_tflite,
    input_values,
    unlike_normalization,
    unlike_training,
)
from onmetal.calibration.reach import range_warning
from onmetal.calibration.statistics import Statistics
from onmetal.ranges import Range
from onmetal.records import Model
from onmetal.samples import Samples

FEW = 32
GROWN, GROWING = 0.10, 0.5
"""The growth of a tensor's range in the second half of the samples, relative to the first half's
range, and the share of tensors with more growth than that, above which there is a warning."""
APART = 4.0
"""The ratio of two spreads, or the difference of means relative to the larger spread, above which
two inputs are said to differ."""

MOST_READ = 2048
"""The most samples whose inputs are read to find their ranges."""


def examine(
    path: str,
    prepared: str,
    statistics: str,
    samples: Samples,
    judged: Samples | None,
    model: Model,
) -> list[str]:
    """Warnings about the calibration `samples`, and about the evaluation samples `judged` where
    they are other data than these.

    `path`: the float graph that is calibrated; `prepared`: the model that it was made from.
    """
    observed = Statistics(Path(statistics))
    names = [tensor.name for tensor in model.inputs]
    warnings = [
        *_growing_ranges(observed, samples.count),
        *_dead_tensors(names, observed),
        *_not_finite_tensors(observed, samples.count),
    ]
    warnings += _input_warnings(path, prepared, samples, model, EXAMINED)
    if judged is not None:
        inputs = input_values(samples, model, EXAMINED)
        differing = _differing_inputs(inputs, input_values(judged, model))
        warnings += differing or _beyond_calibration(samples, judged, model)
    return warnings


def examine_inputs(path: str, samples: Samples, model: Model) -> list[str]:
    """Warnings about samples that are not used for calibration. `path`: the model."""
    return _input_warnings(path, path, samples, model, EXAMINED // 4)


def output_ranges(statistics: str, model: Model) -> dict[str, Range]:
    """The range of each float output in calibration, as far as it is known."""
    extremes = Statistics(Path(statistics)).extremes
    names = [tensor.name for tensor in model.outputs]
    return {name: extremes[name] for name in names if name in extremes}


def _input_warnings(path: str, prepared: str, data: Samples, entry: Model, most: int) -> list[str]:
    inputs = input_values(data, entry, most)
    first, outputs = (first_layer_of_tflite if path.endswith(".tflite") else first_layer_of_onnx)(
        path, data, entry, most
    )
    scaled = unlike_normalization(prepared, data, entry) if entry.graph_format == "onnx" else []
    if not scaled and first:
        scaled = unlike_training(first, inputs, outputs[first.output], data)
    return [*_constant_inputs(inputs), *scaled, *_same_prediction(outputs, entry)]


def _growing_ranges(statistics: Statistics, count: int) -> list[str]:
    warnings = []
    if count < FEW:
        warnings.append(
            f"{count} calibration samples are few: the ranges of activations may be incomplete; "
            "100 to 500 are usual"
        )
    grown = [
        name
        for name, (low, high) in statistics.half.items()
        if name in statistics.seen
        and (statistics.seen[name].high - statistics.seen[name].low) > (1 + GROWN) * (high - low)
    ]
    if len(statistics.seen) and len(grown) > GROWING * len(statistics.seen):
        warnings.append(
            f"ranges are still growing: {len(grown)} of {len(statistics.seen)} tensors went over "
            f"{GROWN:.0%} beyond the range that the first half of the calibration samples had "
            "shown; give more samples"
        )
    return warnings


def _dead_tensors(inputs: list[str], statistics: Statistics) -> list[str]:
    dead = [n for n, entry in statistics.seen.items() if entry.low == entry.high]
    dead = [name for name in dead if name not in inputs]
    if not dead:
        return []
    return [
        f"{len(dead)} tensors have one value only in all calibration samples, {dead[0]!r} "
        f"({statistics.seen[dead[0]].low:g}) among them: a dead layer, or samples too much alike"
    ]


def _not_finite_tensors(statistics: Statistics, count: int) -> list[str]:
    if not statistics.not_finite:
        return []
    return [
        f"{len(statistics.not_finite)} tensors are NaN or infinite in some calibration samples, "
        f"{min(statistics.not_finite)!r} among them: no range holds them, so what uses them stays "
        "float"
    ]


def _constant_inputs(inputs: dict[str, np.ndarray]) -> list[str]:
    return [
        f"the input {name!r} is {array.flat[0]:g} in all of the samples that were "
        "looked at: was the data prepared right?"
        for name, array in inputs.items()
        if array.size > 1 and array.dtype.kind == "f" and array.min() == array.max()
    ]


def _same_prediction(outputs: dict[str, np.ndarray], model: Model) -> list[str]:
    warnings = []
    for name in [tensor.name for tensor in model.outputs]:
        scores = outputs[name]
        if model.batch > 1 and scores.ndim > 1 and scores.shape[1] == model.batch:
            scores = scores.reshape(-1, *scores.shape[2:])
        share = one_class(scores)
        if share is not None and share >= ONE_CLASS:
            warnings.append(
                f"the float model gives the same prediction for {share:.0%} of the samples that "
                f"were looked at (output {name!r}): are they all of one class, or prepared "
                "otherwise than in training?"
            )
    return warnings


def _beyond_calibration(data: Samples, judged_data: Samples, entry: Model) -> list[str]:
    """Warnings where evaluation samples exceed the calibration samples' range. Images are left out:
    their values are bounded, and reading them takes long."""
    if data.preprocessing or judged_data.preprocessing:
        return []
    calibrated, judged = _input_ranges(data, entry), _input_ranges(judged_data, entry)
    warnings = [
        range_warning("input", name, calibrated[name], judged[name])
        for name in calibrated
        if name in judged
    ]
    return [text for text in warnings if text]


def _input_ranges(data: Samples, entry: Model) -> dict[str, Range]:
    """The least and the greatest value of every float input."""
    ranges: dict[str, Range] = {}
    for row in data.spread(entry, MOST_READ):
        for name, array in row.items():
            if array.dtype.kind == "f" and array.size:
                low, high = ranges.get(name, (np.inf, -np.inf))
                ranges[name] = min(low, float(array.min())), max(high, float(array.max()))
    return ranges


def _differing_inputs(
    calibrated: dict[str, np.ndarray], judged: dict[str, np.ndarray]
) -> list[str]:
    warnings = []
    for name, array in calibrated.items():
        if array.dtype.kind != "f":
            continue
        spreads = float(array.std()), float(judged[name].std())
        means = float(array.mean()), float(judged[name].mean())
        wide, narrow = max(spreads), min(spreads)
        if wide > APART * narrow or abs(means[0] - means[1]) > APART * max(wide, 1e-30):
            warnings.append(
                f"the input {name!r} differs between the calibration and the evaluation samples: "
                f"mean {means[0]:.3g} against {means[1]:.3g}, spread {spreads[0]:.3g} against "
                f"{spreads[1]:.3g}; was all of it prepared the same way?"
            )
    return warnings
