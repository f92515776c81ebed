"""Makes the QDQ graph of a format, its estimator chosen by fidelity on the calibration samples.

Runs in a child process. The evaluation samples, by which candidates are judged, are not read here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onmetal.calibration import placement, qdq_writer
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
"""An estimator must gain this much over the one chosen before it. `ESTIMATORS` lists the simplest
first."""


def tensors(path: str, formats: list[Format]) -> list[str]:
    """Every tensor that any of the formats may quantize; and the float outputs, whose ranges are
    compared with those in the evaluation samples.

    Raises UnsupportedError where no tensor can be quantized.
    """
    graph = Graph(onnx.load(path))
    quantizable: set[str] = set()
    for entry in formats:
        placed = placement.place(graph, entry)
        quantizable |= {name for names in placed.groups().values() for name in names}
    if not quantizable:
        raise UnsupportedError("nothing in it can be quantized: it has no products by constants")
    float_outputs = [
        name for name in graph.outputs if name in graph.producer and graph.is_float(name)
    ]
    return sorted(quantizable.union(float_outputs))


def choose(
    path: str,
    statistics: str,
    form: Format,
    samples: Samples,
    model: Model,
    progress: OnCount = lambda done, total: None,
) -> dict[str, Any]:
    """-> `estimator`: the simplest that no later one beats by WORTH_DB, compared by the fidelity of
    the worst output over some calibration samples; `estimators_sqnr_db`: the fidelity of each.

    Raises UnsupportedError where the format quantizes nothing of the model.
    """
    rules, observed = form, Statistics(Path(statistics))
    original = onnx.load(path)
    placed = _placed(original, rules, observed, [])
    data, entry = samples, model
    reference = spread_outputs(original, data, entry)

    def measure_fidelity(ranges: dict[str, Range]) -> float:
        quantized = qdq_writer.quantize(original, rules, placed, ranges)
        return fidelity(reference, spread_outputs(quantized, data, entry))

    return best(lambda name: _ranges(name, observed, rules), measure_fidelity, progress)


def best(
    ranges_by: Callable[[str], dict[str, Range]],
    measure_fidelity: Callable[[dict[str, Range]], float],
    progress: OnCount,
) -> dict[str, Any]:
    """The result of `choose`. `ranges_by`: an estimator's name -> its ranges; `measure_fidelity`:
    ranges -> the fidelity in dB of the graph that is quantized by them, called once for equal
    ranges."""
    ranges: dict[str, dict[str, Range]] = {}
    fidelities: dict[str, float] = {}
    chosen = ""
    for number, name in enumerate(ESTIMATORS):
        progress(number, len(ESTIMATORS))
        ranges[name] = ranges_by(name)
        twin = next((earlier for earlier in fidelities if ranges[earlier] == ranges[name]), None)
        fidelities[name] = fidelities[twin] if twin else measure_fidelity(ranges[name])
        if not chosen or fidelities[name] > fidelities[chosen] + WORTH_DB:
            chosen = name
    return {
        "estimator": chosen,
        "estimators_sqnr_db": {name: round(value, 2) for name, value in fidelities.items()},
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
    """Write `model.onnx`. -> how many weighted operators are in 8 bits, which ones are in float,
    and the fidelity.

    Raises UnsupportedError where no operator is in 8 bits.
    """
    rules, observed = form, Statistics(Path(statistics))
    original = onnx.load(path)
    placed = _placed(original, rules, observed, keep_float)
    quantized = qdq_writer.quantize(original, rules, placed, _ranges(estimator, observed, rules))
    onnx.checker.check_model(quantized)
    (Path(folder) / "model.onnx").write_bytes(quantized.SerializeToString(deterministic=True))
    heavy = [n for n in original.graph.node if n.op_type in placement.WEIGHTED]
    data, entry = samples, model
    reference = spread_outputs(original, data, entry)
    return {
        "calibration_sqnr_db": round(
            fidelity(reference, spread_outputs(quantized, data, entry)), 2
        ),
        "operators_in_8_bits": sum(node.name in placed.integer for node in heavy),
        "operators_in_float": sorted(n.name for n in heavy if n.name not in placed.integer),
    }


def _placed(
    model: onnx.ModelProto, form: Format, observed: Statistics, keep_float: list[str]
) -> placement.Placement:
    graph = Graph(model)
    placed = placement.place(
        graph, form, frozenset(keep_float), observed.not_finite, observed.extremes
    )
    if not placed.integer:
        raise UnsupportedError(_why_nothing_is_quantized(observed, keep_float))
    return placed


def _why_nothing_is_quantized(observed: Statistics, keep_float: list[str]) -> str:
    if keep_float:
        return "all of it would stay float"
    if observed.not_finite:
        return (
            "its tensors are NaN or infinite on the calibration samples "
            f"({min(observed.not_finite)!r} among them), so none can be quantized: does the float "
            "model work on this data?"
        )
    return "nothing in it can be quantized by this format"


def _ranges(name: str, observed: Statistics, form: Format) -> dict[str, Range]:
    grid = qdq_writer.activation_grid(form)
    return {tensor: estimate(name, entry, grid) for tensor, entry in observed.seen.items()}


def spread_outputs(
    model: onnx.ModelProto,
    data: Samples,
    entry: Model,
    inner: Sequence[str] = (),
    most: int = LOOKED_AT,
) -> dict[str, np.ndarray]:
    """[inferences, ...] of every output, and of `inner` tensors, over at most `most` samples,
    which are spread evenly over all."""
    names = [value.name for value in model.graph.output]
    for name in inner:
        if name not in names:
            names.append(name)
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    opened = session(model)
    return spread(lambda feed: opened.run(names, feed), names, data, entry, most)


def spread(
    run: Callable[[dict[str, np.ndarray]], list[np.ndarray]],
    names: Sequence[str],
    data: Samples,
    entry: Model,
    most: int = LOOKED_AT,
) -> dict[str, np.ndarray]:
    """By name, [inferences, ...] of the arrays that `run` returns for samples spread over all."""
    rows = [run(feed) for feed in data.spread(entry, most)]
    return {name: np.stack([row[i] for row in rows]) for i, name in enumerate(names)}


def fidelity(reference: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> float:
    """The worst output's SQNR in dB; floats alone count where there are any."""
    names = [name for name, array in reference.items() if array.dtype.kind == "f"]
    return min(sqnr_db(reference[name], outputs[name]) for name in names or reference)
