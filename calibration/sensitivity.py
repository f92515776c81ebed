"""Which operators lose most fidelity in 8 bits: each is quantized alone, and outputs are compared.

Runs in a child process.
"""

from pathlib import Path
from typing import Any

import onnx

from onmetal.calibration import placement, qdq_writer
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
    """For every weighted operator: the SQNR in dB of the worst output where it alone is in 8 bits,
    worst first. `node`: its name in the simplified graph; `tensor`: the name of its output, which
    is the same in the user's file.

    Raises UnsupportedError where the format quantizes nothing of the model.
    """
    rules, observed = form, Statistics(Path(statistics))
    data, model_entry = samples, model
    original = onnx.load(path)
    graph = Graph(original)
    full_placement = placement.place(
        graph, rules, frozenset(), observed.not_finite, observed.extremes
    )
    names = [n.name for n in graph.nodes if n.name in full_placement.integer]
    heavy = [
        n
        for n in graph.nodes
        if n.name in full_placement.integer and n.op_type in placement.WEIGHTED
    ]
    if not heavy:
        raise UnsupportedError("nothing in it can be quantized by this format")
    grid = qdq_writer.activation_grid(rules)
    ranges = {name: estimate(ESTIMATOR, entry, grid) for name, entry in observed.seen.items()}
    reference = spread_outputs(onnx.load(path), data, model_entry)
    rows = []
    for number, node in enumerate(heavy):
        progress(number, len(heavy))
        alone = frozenset(name for name in names if name != node.name)
        placed = placement.place(graph, rules, alone, observed.not_finite, observed.extremes)
        quantized = qdq_writer.quantize(original, rules, placed, ranges)
        value = fidelity(reference, spread_outputs(quantized, data, model_entry))
        rows.append(
            {
                "node": node.name,
                "operator": node.op_type,
                "tensor": node.output[0],
                "sqnr_db": round(value, 2),
            }
        )
    return sorted(rows, key=lambda entry: (entry["sqnr_db"], entry["node"]))
