"""The shapes of tensors whose shapes in the file are those of no run.

TensorFlow's converter writes 1 for each size that it does not know, as behind a RESHAPE to a shape
that is computed from the batch. LiteRT finds the sizes when it runs the graph, so it is run once.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from onmetal.converters.tflite.net import Net, Tensor
from onmetal.converters.tflite.writing import write


def are_open(content: bytes) -> bool:
    """Whether a file has tensors with unknown sizes."""
    model = schema.Model.GetRootAs(content)
    for graph in map(model.Subgraphs, range(model.SubgraphsLength())):
        for tensor in map(graph.Tensors, range(graph.TensorsLength())):
            if tensor.ShapeSignatureLength() and np.any(tensor.ShapeSignatureAsNumpy() < 0):
                return True
    return False


def _number(tensor: Tensor) -> np.ndarray:
    """A value that every operator can compute with: small, and above 0 where that is possible."""
    if tensor.dtype.kind == "f":
        return np.full(tensor.shape, 0.5, tensor.dtype)
    if tensor.scale is not None and tensor.zero_point is not None:
        most = np.iinfo(tensor.dtype).max
        return np.full(tensor.shape, min(int(tensor.zero_point[0]) + 1, most), tensor.dtype)
    return np.zeros(tensor.shape, tensor.dtype)


def settle(net: Net) -> None:
    """Set the shapes that LiteRT computes with. Where it cannot run the graph on made-up values,
    the file's shapes stay."""
    try:
        opened = Interpreter(
            model_content=write(net),
            num_threads=1,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        opened.allocate_tensors()
        for tensor, entry in zip(net.inputs, opened.get_input_details(), strict=True):
            opened.set_tensor(entry["index"], _number(tensor))
        opened.invoke()
    except (RuntimeError, ValueError):
        return
    shapes = {entry["name"]: entry["shape"] for entry in opened.get_tensor_details()}
    for tensor in net.tensors():
        if tensor.data is None and tensor.name in shapes:
            tensor.shape = tuple(int(size) for size in shapes[tensor.name])
