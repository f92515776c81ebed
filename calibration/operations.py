"""The functions that calibration runs in worker processes. Each imports its module when called."""

from typing import Any

from onmetal.progress import OnCount
from onmetal.ranges import Range
from onmetal.records import Model
from onmetal.samples import Samples
from onmetal.targets import Format, Io

Rows = list[dict[str, Any]]
Facts = dict[str, Any]


def _silent(done: int, total: int) -> None:
    """The callback where progress is not reported."""


# --- ONNX


def simplify(prepared: str, folder: str) -> Facts:
    """As calibration.float_graph.simplify."""
    from onmetal.calibration import float_graph

    return float_graph.simplify(prepared, folder)


def tensors(path: str, formats: list[Format]) -> list[str]:
    """As calibration.search.tensors."""
    from onmetal.calibration import search

    return search.tensors(path, formats)


def choose(
    path: str,
    statistics: str,
    form: Format,
    samples: Samples,
    model: Model,
    progress: OnCount = _silent,
) -> Facts:
    """As calibration.search.choose."""
    from onmetal.calibration import search

    return search.choose(path, statistics, form, samples, model, progress)


def build(
    path: str,
    statistics: str,
    form: Format,
    keep_float: list[str],
    estimator: str,
    samples: Samples,
    model: Model,
    folder: str,
) -> Facts:
    """As calibration.search.build."""
    from onmetal.calibration import search

    return search.build(path, statistics, form, keep_float, estimator, samples, model, folder)


def cuts(
    path: str, statistics: str, form: Format, in_float: Rows, in_8_bits: Rows
) -> list[list[str]]:
    """As calibration.mixed.cuts."""
    from onmetal.calibration import mixed

    return mixed.cuts(path, statistics, form, in_float, in_8_bits)


def sensitivity(
    path: str,
    statistics: str,
    form: Format,
    samples: Samples,
    model: Model,
    progress: OnCount = _silent,
) -> Rows:
    """As calibration.sensitivity.each."""
    from onmetal.calibration import sensitivity

    return sensitivity.each(path, statistics, form, samples, model, progress)


def weights(path: str, form: Format | None, folder: str) -> Facts:
    """As calibration.uncalibrated.weights."""
    from onmetal.calibration import uncalibrated

    assert form
    return uncalibrated.weights(path, form, folder)


def dynamic(path: str, form: Format | None, folder: str) -> Facts:
    """As calibration.uncalibrated.dynamic."""
    from onmetal.calibration import uncalibrated

    return uncalibrated.dynamic(path, form, folder)


def compare(
    artifact: str, reference: str, samples: Samples, model: Model, progress: OnCount = _silent
) -> Rows:
    """As calibration.compare.tensors."""
    from onmetal.calibration import compare

    return compare.tensors(artifact, reference, samples, model, progress)


# --- statistics, of graphs of either format


def extremes(
    path: str,
    tensors: list[str],
    samples: Samples,
    model: Model,
    part: int,
    parts: int,
    folder: str,
    progress: OnCount = _silent,
) -> None:
    """As calibration.statistics.extremes."""
    from onmetal.calibration import statistics

    statistics.extremes(path, tensors, samples, model, part, parts, folder, progress)


def ranges_of(folder: str, parts: int) -> list[list[float]]:
    """As calibration.statistics.ranges_of."""
    from onmetal.calibration import statistics

    return statistics.ranges_of(folder, parts)


def histograms(
    path: str,
    tensors: list[str],
    ranges: list[list[float]],
    samples: Samples,
    model: Model,
    part: int,
    parts: int,
    folder: str,
    progress: OnCount = _silent,
) -> None:
    """As calibration.statistics.histograms."""
    from onmetal.calibration import statistics

    statistics.histograms(path, tensors, ranges, samples, model, part, parts, folder, progress)


def finish(folder: str, parts: int, tensors: list[str], count: int) -> None:
    """As calibration.statistics.finish."""
    from onmetal.calibration import statistics

    statistics.finish(folder, parts, tensors, count)


def examine(
    path: str,
    prepared: str,
    statistics: str,
    samples: Samples,
    judged: Samples | None,
    model: Model,
) -> list[str]:
    """As calibration.sanity.examine."""
    from onmetal.calibration import sanity

    return sanity.examine(path, prepared, statistics, samples, judged, model)


def examine_inputs(path: str, samples: Samples, model: Model) -> list[str]:
    """As calibration.sanity.examine_inputs."""
    from onmetal.calibration import sanity

    return sanity.examine_inputs(path, samples, model)


def output_ranges(statistics: str, model: Model) -> dict[str, Range]:
    """As calibration.sanity.output_ranges."""
    from onmetal.calibration import sanity

    return sanity.output_ranges(statistics, model)


# --- TFLite


def to_tflite(path: str, folder: str) -> None:
    """As converters.tflite.convert.to_float."""
    from onmetal.converters.tflite import convert

    convert.to_float(path, folder)


def tflite_tensors(path: str) -> list[str]:
    """As calibration.tflite_recipes.observed."""
    from onmetal.calibration import tflite_recipes

    return tflite_recipes.observed(path)


def tflite_sensitivity(
    path: str,
    statistics: str,
    form: Format,
    samples: Samples,
    model: Model,
    progress: OnCount = _silent,
) -> Rows:
    """As calibration.tflite_recipes.sensitivity."""
    from onmetal.calibration import tflite_recipes

    return tflite_recipes.sensitivity(path, statistics, form, samples, model, progress)


def tflite_choose(
    path: str,
    statistics: str,
    form: Format,
    samples: Samples,
    model: Model,
    progress: OnCount = _silent,
) -> Facts:
    """As calibration.tflite_recipes.choose."""
    from onmetal.calibration import tflite_recipes

    return tflite_recipes.choose(path, statistics, form, samples, model, progress)


def tflite_static(
    path: str,
    statistics: str,
    form: Format,
    estimator: str,
    samples: Samples,
    model: Model,
    target_io: Io,
    folder: str,
) -> Facts:
    """As calibration.tflite_recipes.static."""
    from onmetal.calibration import tflite_recipes

    return tflite_recipes.static(
        path, statistics, form, estimator, samples, model, target_io, folder
    )


def tflite_float(path: str, target_io: Io, folder: str) -> Facts:
    """As calibration.tflite_recipes.float_."""
    from onmetal.calibration import tflite_recipes

    return tflite_recipes.float_(path, target_io, folder)


def tflite_half(path: str, target_io: Io, folder: str) -> Facts:
    """As calibration.tflite_recipes.half."""
    from onmetal.calibration import tflite_recipes

    return tflite_recipes.half(path, target_io, folder)


def tflite_dynamic(path: str, target_io: Io, folder: str) -> Facts:
    """As calibration.tflite_recipes.dynamic."""
    from onmetal.calibration import tflite_recipes

    return tflite_recipes.dynamic(path, target_io, folder)


def tflite_given(path: str, target_io: Io, folder: str) -> Facts:
    """As calibration.tflite_recipes.given."""
    from onmetal.calibration import tflite_recipes

    return tflite_recipes.given(path, target_io, folder)


def tflite_compare(
    artifact: str, reference: str, samples: Samples, model: Model, progress: OnCount = _silent
) -> Rows:
    """As calibration.compare_tflite.tensors."""
    from onmetal.calibration import compare_tflite

    return compare_tflite.tensors(artifact, reference, samples, model, progress)
