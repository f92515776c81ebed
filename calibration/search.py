"""Makes the QDQ graph of a format, its estimator chosen by fidelity on the calibration samples.

Runs in a child process. Which data judges candidates in the end is never seen here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onmetal.calibration import placement, quantize
from onmetal.calibration.fidelity import sqnr_db
from onmetal.calibration.statistics import Statistics, session
from onmetal.converters.onnx.graph import Graph
from onmetal.errors import UnsupportedError
from onmetal.progress import OnCount
from onmetal.ranges import ESTIMATORS, Range, estimate
from onmetal.records import Model
from onmetal.samples import Samples
from onmetal.targets import Format

LOOKED_AT = 16
"""Calibration samples by which estimators are compared."""
WORTH_DB = 0.1
"""What an estimator must gain over the one before it; they stand from the simplest on."""


def tensors(path: str, formats: list[Format]) -> list[str]:
    """Every tensor that any of the formats may quantize; and the float outputs, whose ranges are
    compared with those in the samples that judge.

    Raises UnsupportedError where there is none.
    """
    graph = Graph(onnx.load(path))
    found: set[str] = set()
    for entry in formats:
        placed = placement.place(graph, entry)
        found |= {name for names in placed.groups().values() for name in names}
    if not found:
        raise UnsupportedError("nothing in it can be quantized: it has no products by constants")
    made = [name for name in graph.outputs if name in graph.producer and graph.is_float(name)]
    return sorted(found.union(made))


def choose(
    path: str,
    statistics: str,
    form: Format,
    samples: Samples,
    model: Model,
    progress: OnCount = lambda done, total: None,
) -> dict[str, Any]:
    """-> `estimator`: the first that none after it beats by WORTH_DB in the fidelity of the worst
    output over some calibration samples; `estimators_sqnr_db`: the fidelity of each.

    Raises UnsupportedError where the format quantizes nothing of the model.
    """
    rules, seen = form, Statistics(Path(statistics))
    original = onnx.load(path)
    placed = _placed(original, rules, seen, [])
    data, of = samples, model
    reference = spread_outputs(original, data, of)

    def tried(ranges: dict[str, Range]) -> float:
        made = quantize.quantize(original, rules, placed, ranges)
        return fidelity(reference, spread_outputs(made, data, of))

    return best(lambda name: _ranges(name, seen, rules), tried, progress)


def best(
    ranges_by: Callable[[str], dict[str, Range]],
    tried: Callable[[dict[str, Range]], float],
    progress: OnCount,
) -> dict[str, Any]:
    """What `choose` gives. `ranges_by`: an estimator's name -> its ranges; `tried`: ranges -> the
    fidelity in dB of what is made by them, asked once for equal ranges."""
    ranges: dict[str, dict[str, Range]] = {}
    found: dict[str, float] = {}
    chosen = ""
    for number, name in enumerate(ESTIMATORS):
        progress(number, len(ESTIMATORS))
        ranges[name] = ranges_by(name)
        twin = next((other for other in found if ranges[other] == ranges[name]), None)
        found[name] = found[twin] if twin else tried(ranges[name])
        if not chosen or found[name] > found[chosen] + WORTH_DB:
            chosen = name
    return {
        "estimator": chosen,
        "estimators_sqnr_db": {name: round(value, 2) for name, value in found.items()},
    }


def build(
    path: str,
    statistics: str,
    form: Format,
    keep_float: list[str],
    estimator: str,
    samples: Samples,
    model: Model,
    folder: str,
) -> dict[str, Any]:
    """Write `model.onnx`. -> how much of it is in 8 bits and what is not, and its fidelity.

    Raises UnsupportedError where nothing is.
    """
    rules, seen = form, Statistics(Path(statistics))
    original = onnx.load(path)
    placed = _placed(original, rules, seen, keep_float)
    made = quantize.quantize(original, rules, placed, _ranges(estimator, seen, rules))
    onnx.checker.check_model(made)
    (Path(folder) / "model.onnx").write_bytes(made.SerializeToString(deterministic=True))
    heavy = [n for n in original.graph.node if n.op_type in placement.WEIGHTED]
    data, of = samples, model
    reference = spread_outputs(original, data, of)
    return {
        "calibration_sqnr_db": round(fidelity(reference, spread_outputs(made, data, of)), 2),
        "operators_in_8_bits": sum(node.name in placed.integer for node in heavy),
        "operators_in_float": sorted(n.name for n in heavy if n.name not in placed.integer),
    }


def _placed(
    model: onnx.ModelProto, form: Format, seen: Statistics, keep_float: list[str]
) -> placement.Placement:
    graph = Graph(model)
    placed = placement.place(graph, form, frozenset(keep_float), seen.not_finite, seen.extremes)
    if not placed.integer:
        raise UnsupportedError(_nothing(seen, keep_float))
    return placed


def _nothing(seen: Statistics, keep_float: list[str]) -> str:
    if keep_float:
        return "all of it would stay float"
    if seen.not_finite:
        return (
            f"its tensors are NaN or infinite on the calibration samples ({min(seen.not_finite)!r} "
            "among them), so none can be quantized: does the float model work on this data?"
        )
    return "nothing in it can be quantized by this format"


def _ranges(name: str, seen: Statistics, form: Format) -> dict[str, Range]:
    grid = quantize.activation_grid(form)
    return {tensor: estimate(name, entry, grid) for tensor, entry in seen.seen.items()}


def spread_outputs(
    model: onnx.ModelProto,
    data: Samples,
    of: Model,
    inner: Sequence[str] = (),
    most: int = LOOKED_AT,
) -> dict[str, np.ndarray]:
    """[inferences, ...] of every output, and of `inner` tensors, over `most` samples or fewer,
    spread over all."""
    names = [value.name for value in model.graph.output]
    for name in inner:
        if name not in names:
            names.append(name)
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    opened = session(model)
    return spread(lambda feed: opened.run(names, feed), names, data, of, most)


def spread(
    run: Callable[[dict[str, np.ndarray]], list[np.ndarray]],
    names: Sequence[str],
    data: Samples,
    of: Model,
    most: int = LOOKED_AT,
) -> dict[str, np.ndarray]:
    """By name, [inferences, ...] of what `run` gives for samples spread over all."""
    rows = [run(feed) for feed in data.spread(of, most)]
    return {name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def fidelity(reference: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    """The worst output's SQNR in dB; floats alone count where there are any."""
    names = [name for name, array in reference.items() if array.dtype.kind == "f"]
    return min(sqnr_db(reference[name], found[name]) for name in names or reference)
