"""Computes nodes whose inputs are all constants: shapes, indices and rearranged weights."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

FOLDED_BYTES = 1 << 26
"""The largest result that is stored instead of computed."""
KEPT = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Integer weights stay integers."""


def folded(
    node: onnx.NodeProto, arrays: Mapping[str, np.ndarray], opset: int
) -> list[np.ndarray] | None:
    """The outputs of a node, by ONNX's reference implementation; None where they are too large."""
    from onnx.reference import ReferenceEvaluator

    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in arrays.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "constant", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    results = [np.asarray(array) for array in ReferenceEvaluator(model).run(None, dict(arrays))]
    if sum(array.nbytes for array in results) > FOLDED_BYTES:
        return None
    return results
