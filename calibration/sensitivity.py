"""Which operators bear 8 bits badly: each is quantized alone, and the outputs are compared.

Runs in a child process.
"""

from pathlib import Path
from typing import Any

import onnx

from onmetal.calibration import placement, quantize
from onmetal.calibration.search import fidelity, spread_outputs
from onmetal.calibration.statistics import Statistics
from onmetal.converters.onnx.graph import Graph
from onmetal.errors import UnsupportedError
from onmetal.progress import OnCount
from onmetal.ranges import estimate
from onmetal.records import Model
from onmetal.samples import Samples
from onmetal.targets import Format

ESTIMATOR = "percentile-99.999"


def each(
    path: str,
    statistics: str,
    form: Format,
    samples: Samples,
    model: Model,
    progress: OnCount = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Of every weighted operator: the SQNR in dB of the worst output where it alone is in 8 bits,
    worst first. `node` is its name in the simplified graph; `tensor`, what it gives, is called so
    in the user's file too.

    Raises UnsupportedError where the format quantizes nothing of the model.
    """
    rules, seen = form, Statistics(Path(statistics))
    data, of = samples, model
    original = onnx.load(path)
    graph = Graph(original)
    whole = placement.place(graph, rules, frozenset(), seen.not_finite, seen.extremes)
    names = [n.name for n in graph.nodes if n.name in whole.integer]
    heavy = [n for n in graph.nodes if n.name in whole.integer and n.op_type in placement.WEIGHTED]
    if not heavy:
        raise UnsupportedError("nothing in it can be quantized by this format")
    grid = quantize.activation_grid(rules)
    ranges = {name: estimate(ESTIMATOR, entry, grid) for name, entry in seen.seen.items()}
    reference = spread_outputs(onnx.load(path), data, of)
    found = []
    for number, node in enumerate(heavy):
        progress(number, len(heavy))
        alone = frozenset(name for name in names if name != node.name)
        placed = placement.place(graph, rules, alone, seen.not_finite, seen.extremes)
        made = quantize.quantize(original, rules, placed, ranges)
        value = fidelity(reference, spread_outputs(made, data, of))
        found.append(
            {
                "node": node.name,
                "operator": node.op_type,
                "tensor": node.output[0],
                "sqnr_db": round(value, 2),
            }
        )
    return sorted(found, key=lambda entry: (entry["sqnr_db"], entry["node"]))
