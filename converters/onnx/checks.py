"""Checks of an ONNX file before anything else is done with it."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from onmetal.errors import UnsupportedError, UsageError

ORT_DOMAINS = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")
"""Domains of onnxruntime's own operators; onnxruntime itself refuses those that it lacks."""


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its control flow."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for inner in graphs(graph):
        yield from inner.node


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    functions = [node for function in model.functions for node in function.node]
    for graph in graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in (*graph.node, *functions):
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
                for sparse in attribute.sparse_tensors:
                    yield from (sparse.values, sparse.indices)
        functions = []


def size_bytes(tensor: onnx.TensorProto, source: Path) -> int:
    """The size of a tensor's data by its shape and element type. Raises UsageError where these are
    invalid."""
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except KeyError:
        raise UsageError(f"{source}: {tensor.name!r} has no element type: damaged") from None
    if min(tensor.dims, default=0) < 0:
        raise UsageError(
            f"{source}: the tensor {tensor.name!r} has the shape {list(tensor.dims)}: damaged"
        )
    bits = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}.get(dtype.name)
    return -(-math.prod(map(int, tensor.dims)) * (bits or dtype.itemsize * 8) // 8)


def check_sizes(model: onnx.ModelProto, source: Path) -> None:
    """Raises UsageError where a tensor holds more or fewer bytes than its shape needs: runtimes
    notice that late, or never."""
    for tensor in tensors(model):
        expected = size_bytes(tensor, source)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != expected:
            raise UsageError(
                f"{source}: the tensor {tensor.name!r} of shape {list(tensor.dims)} holds "
                f"{len(tensor.raw_data)} bytes instead of {expected}: the file is cut off or "
                "damaged"
            )
        elsewhere = any(len(getattr(tensor, field)) for field in _DATA)
        if expected and not elsewhere and not tensor.HasField("raw_data"):
            raise UsageError(
                f"{source}: the tensor {tensor.name!r} of shape {list(tensor.dims)} has no data: "
                "the file is cut off or damaged"
            )


_DATA = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
"""Where a tensor's elements lie that are not `raw_data`."""


def check_operators(model: onnx.ModelProto, source: Path) -> None:
    local_functions = {(function.domain, function.name) for function in model.functions}
    versions = {entry.domain: entry.version for entry in model.opset_import}
    for node in nodes(model.graph):
        _check_operator(node, versions, local_functions, source)
    for function in model.functions:
        function_versions = versions | {
            entry.domain: entry.version for entry in function.opset_import
        }
        for node in function.node:
            _check_operator(node, function_versions, local_functions, source)


def _check_operator(
    node: onnx.NodeProto,
    versions: dict[str, int],
    local_functions: set[tuple[str, str]],
    source: Path,
) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    if domain in ORT_DOMAINS or (node.domain, node.op_type) in local_functions:
        return
    newest = onnx.defs.onnx_opset_version()
    version = versions.get(node.domain, versions.get(domain, versions.get("ai.onnx", 0)))
    if not onnx.defs.has(node.op_type, min(version or newest, newest), domain):
        place = f"node {node.name!r}" if node.name else f"the node that makes {node.output[:1]}"
        raise UnsupportedError(
            f"{source}: unknown operator {node.op_type!r} (domain {domain or 'ai.onnx'}, "
            f"opset {version}) at {place}; custom operators cannot be deployed: "
            "export the model with standard ones"
        )


def check_wiring(model: onnx.ModelProto, source: Path) -> None:
    """Raises UsageError where a value is computed twice, by nothing, or from itself.

    Nodes may stand in any order: onnxruntime sorts them.
    """
    _check_graph(model.graph, set(), source)


def _check_graph(graph: onnx.GraphProto, outside: set[str], source: Path) -> None:
    inputs = [value.name for value in graph.input]
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {sparse.values.name for sparse in graph.sparse_initializer}
    produced = [name for node in graph.node for name in node.output if name]
    defined = [*inputs, *(constants - set(inputs)), *produced]
    if double := sorted(
        {name for name in defined if defined.count(name) > 1} if _repeats(defined) else set()
    ):
        raise UsageError(f"{source}: the value {double[0]!r} is made twice: a damaged ONNX file")
    visible = outside | set(defined)
    for node in graph.node:
        for name in node.input:
            if name and name not in visible:
                raise UsageError(
                    f"{source}: {node.op_type} {node.name!r} reads {name!r}, which nothing makes: "
                    "a damaged or incomplete ONNX file"
                )
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.output:
                    _check_graph(inner, visible, source)
    for value in graph.output:
        if value.name not in visible:
            raise UsageError(f"{source}: nothing makes the output {value.name!r}: damaged")
    _check_cycles(graph, set(produced), source)


def _repeats(names: list[str]) -> bool:
    return len(set(names)) < len(names)


def _check_cycles(graph: onnx.GraphProto, produced: set[str], source: Path) -> None:
    """Raises UsageError where nodes form a cycle: where Kahn's algorithm cannot order them all."""
    waiting = [{name for name in node.input if name in produced} for node in graph.node]
    readers: dict[str, list[int]] = {}
    for number, names in enumerate(waiting):
        for name in names:
            readers.setdefault(name, []).append(number)
    ready = [number for number, names in enumerate(waiting) if not names]
    reached = 0
    while ready:
        node = graph.node[ready.pop()]
        reached += 1
        for name in node.output:
            for number in readers.get(name, ()):
                waiting[number].discard(name)
                if not waiting[number]:
                    ready.append(number)
    if reached < len(graph.node):
        raise UsageError(f"{source}: its nodes depend on one another in a cycle: damaged")
