"""Makes the .tflite file of a recipe. Each function runs in a child process, on files."""

from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from onmetal.calibration.search import best, fidelity, spread
from onmetal.calibration.sensitivity import ESTIMATOR
from onmetal.calibration.statistics import Statistics
from onmetal.converters.tflite import check, grid, io, quantize, smaller_weights
from onmetal.converters.tflite.net import Net, signature_names
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reference import Exposed
from onmetal.converters.tflite.specification import WEIGHTED
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from onmetal.progress import OnCount
from onmetal.ranges import Grid, Range, estimate
from onmetal.records import Model, plain
from onmetal.samples import Samples
from onmetal.targets import Format, Io


def observed(path: str) -> list[str]:
    """Names of every tensor whose range quantization may need, and of the float outputs.

    Raises UnsupportedError where nothing can be quantized."""
    net = read(Path(path))
    quantizable = quantize.observed(net)
    if not quantizable:
        raise UnsupportedError("nothing in it can be quantized in TFLite")
    makers = net.producers()
    named_outputs = zip(signature_names(net)[1], net.outputs, strict=True)
    float_outputs = [name for name, tensor in named_outputs if tensor.is_float and tensor in makers]
    return list(dict.fromkeys([*quantizable, *float_outputs]))


def outputs(net: Net, data: Samples, entry: Model) -> dict[str, np.ndarray]:
    """[inferences, ...] of every output over some samples, spread over all."""
    names = signature_names(net)[1]
    run = Exposed(net, names).run
    return spread(lambda feed: [run(feed)[name] for name in names], names, data, entry)


def choose(
    path: str,
    statistics: str,
    form: Format,
    samples: Samples,
    model: Model,
    progress: OnCount = lambda done, total: None,
) -> dict[str, Any]:
    """The best estimator, in the form of calibration.search.choose. For 16-bit activations it is
    always `minmax`: steps are so fine that clipping a range would cost more than it gains."""
    rules = form
    if rules.activation == "s16":
        return {"estimator": "minmax"}
    net, collected = read(Path(path)), Statistics(Path(statistics))
    data, entry = samples, model
    reference = outputs(net, data, entry)

    def measure_fidelity(ranges: dict[str, Range]) -> float:
        return fidelity(
            reference,
            outputs(quantize.quantize(net, ranges, extremes=collected.extremes), data, entry),
        )

    return best(lambda name: _ranges(name, collected), measure_fidelity, progress)


def _ranges(name: str, collected: Statistics, wide: bool = False) -> dict[str, Range]:
    grid = Grid(65534, True) if wide else Grid()
    return {tensor: estimate(name, entry, grid) for tensor, entry in collected.seen.items()}


def sensitivity(
    path: str,
    statistics: str,
    form: Format,
    samples: Samples,
    model: Model,
    progress: OnCount = lambda done, total: None,
) -> list[dict[str, Any]]:
    """As calibration.sensitivity.each, by TFLite's grids and LiteRT's kernels: the SQNR in dB of
    the worst output where one product alone is in integers, worst first.

    Raises UnsupportedError where nothing of the graph can be quantized.
    """
    net, collected, rules = read(Path(path)), Statistics(Path(statistics)), form
    wide = rules.activation == "s16"
    activation: grid.Activation = "s16" if wide else "s8"
    ranges = _ranges("minmax" if wide else ESTIMATOR, collected, wide)
    data, entry = samples, model
    reference = outputs(net, data, entry)
    heavy, names = quantize.products(net, ranges, activation)
    rows = []
    for number, op in enumerate(heavy):
        progress(number, len(heavy))
        name = op.outputs[0].name
        alone = quantize.quantize(net, ranges, activation, names - {name})
        value = round(fidelity(reference, outputs(alone, data, entry)), 2)
        rows.append({"node": name, "operator": op.kind, "tensor": name, "sqnr_db": value})
    return sorted(rows, key=lambda row: (row["sqnr_db"], row["node"]))


def static(
    path: str,
    statistics: str,
    form: Format,
    estimator: str,
    samples: Samples,
    model: Model,
    target_io: Io,
    folder: str,
) -> dict[str, Any]:
    """Write `model.tflite`. -> `details`, how many operators are in integers and the fidelity; and
    `options`."""
    net, collected, rules = read(Path(path)), Statistics(Path(statistics)), form
    wide = rules.activation == "s16"
    ranges = _ranges(estimator, collected, wide)
    quantized = quantize.quantize(net, ranges, "s16" if wide else "s8", extremes=collected.extremes)
    data, entry = samples, model
    heavy = [op for op in quantized.ops if op.kind in WEIGHTED]
    in_integers = [op for op in heavy if not op.outputs[0].is_float]
    details = {
        "calibration_sqnr_db": round(
            fidelity(outputs(net, data, entry), outputs(quantized, data, entry)), 2
        ),
        "operators_in_8_bits": len(in_integers),
        "operators_in_float": sorted(op.outputs[0].name for op in heavy if op not in in_integers),
    }
    return _checked_and_written(quantized, target_io, folder, details)


def float_(path: str, target_io: Io, folder: str) -> dict[str, Any]:
    return _checked_and_written(read(Path(path)), replace(target_io, dtype="float32"), folder, {})


def given(path: str, target_io: Io, folder: str) -> dict[str, Any]:
    """Write `model.tflite` of a model that is quantized already."""
    return _checked_and_written(read(Path(path)), target_io, folder, {})


def half(path: str, target_io: Io, folder: str) -> dict[str, Any]:
    return _checked_and_written(smaller_weights.halved(read(Path(path))), target_io, folder, {})


def dynamic(path: str, target_io: Io, folder: str) -> dict[str, Any]:
    return _checked_and_written(smaller_weights.dynamic(read(Path(path))), target_io, folder, {})


def _checked_and_written(
    net: Net, target_io: Io, folder: str, details: dict[str, Any]
) -> dict[str, Any]:
    """Change inputs and outputs to the target's types and layout, check the graph, and write it."""
    if target_io.dtype == "int8":
        io.integers(net)
    turned = io.channels_last(net) if target_io.layout == "nhwc" else []
    content = write(net)
    if problems := check.problems(read(content)):
        raise UnsupportedError(
            f"no file was written, since it would violate TFLite's specification: {problems[0]}"
        )
    (Path(folder) / "model.tflite").write_bytes(content)
    kinds = [op.kind for op in net.ops]
    details |= {
        "operators": len(kinds),
        "io": {**plain(target_io), "nhwc": turned} if turned else plain(target_io),
    }
    return {"details": details, "options": {"nhwc": turned} if turned else {}}
