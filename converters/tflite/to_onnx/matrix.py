"""Products of matrices."""

from onmetal.converters.tflite.net import Op, Shape, Tensor
from onmetal.converters.tflite.to_onnx.convolution import bias_of
from onmetal.converters.tflite.to_onnx.fused import activated, finish
from onmetal.converters.tflite.to_onnx.graph import Graph, is_quantized, plain
from onmetal.converters.tflite.to_onnx.rules import refuse, taken, writes


def _as_matrix(graph: Graph, source: Tensor, depth: int) -> str:
    """The rows of a tensor: [size / depth, depth]."""
    if source in graph.scrambled:
        return graph.real(source)
    name, rows = graph.real(source), source.size // depth
    if source.shape == (rows, depth):
        return name
    name = graph.emit("Reshape", [name, graph.ints([rows, depth])])
    return graph.again(name, source) if is_quantized(source) else name


@writes("FULLY_CONNECTED", to="Gemm; MatMul and Add where axes are kept")
def fully_connected(graph: Graph, op: Op) -> None:
    """Weights [out, in]."""
    source, weight, out = taken(op, 0), taken(op, 1), op.outputs[0]
    if op.options.get("weightsFormat"):
        raise refuse(op, "shuffled weights are not supported")
    if len(weight.shape) != 2 or not weight.shape[1] or source.size % weight.shape[1]:
        raise refuse(op, f"weights of {list(weight.shape)} do not fit {list(source.shape)}")
    width, depth = weight.shape
    bias = bias_of(graph, op, 2, source, weight)
    kept = source.shape[-1:] == (depth,) and len(out.shape) == len(source.shape) > 2
    if kept and not is_quantized(source):
        result = graph.emit("MatMul", [graph.real(source), graph.weight(weight, (1, 0))])
        if bias:
            result = graph.emit("Add", [result, *bias])
        return finish(graph, op, result)
    rows = source.size // depth
    columns = graph.scrambled.get(source)
    inputs = [_as_matrix(graph, source, depth), graph.weight(weight, columns=columns), *bias]
    _give_rows(graph, op, graph.emit("Gemm", inputs, transB=1), (rows, width))


def _give_rows(graph: Graph, op: Op, result: str, shape: Shape) -> None:
    """Set a matrix as an operator's output, which may have other axes."""
    out = op.outputs[0]
    if out.shape == shape:
        return finish(graph, op, result)
    result = activated(graph, out, result, op.activation)
    if is_quantized(out):
        result = graph.again(result, out)
    graph.give(out, graph.emit("Reshape", [result, graph.ints(out.shape)]))


@writes("BATCH_MATMUL", to="MatMul, Transpose")
def batch_matmul(graph: Graph, op: Op) -> None:
    names = []
    for place, turned in enumerate((op.options.get("adjX"), op.options.get("adjY"))):
        tensor = taken(op, place)
        order = plain(tensor)
        if turned:
            order = (*order[:-2], order[-1], order[-2])
        names.append(graph.real(tensor, order))
    graph.give(op.outputs[0], graph.emit("MatMul", names))
