"""Cuts an ONNX graph at named tensors: these become its outputs, and what follows is left out."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from onmetal.converters import cutting
from onmetal.converters.onnx.axes import infer_shapes


def cut_at(model: onnx.ModelProto, names: Sequence[str], source: Path) -> list[str]:
    """Make the named tensors the outputs of the main graph, in that order, and remove what they do
    not need: operators, weights and inputs. A node's name stands for all that it gives.

    -> notes for the user. Raises UsageError where a name is unknown, or no tensor that is computed.
    """
    graph = model.graph
    tensors = _tensors(graph, names, source)
    typed = {
        value.name: value
        for shaped in (infer_shapes(model).graph, graph)
        for value in (*shaped.value_info, *shaped.output)
    }
    kept, read = _needed(graph, tensors)
    left_out = [node for number, node in enumerate(graph.node) if number not in kept]
    nodes = [node for number, node in enumerate(graph.node) if number in kept]
    inputs = [value for value in graph.input if value.name in read]
    constants = {tensor.name for tensor in graph.initializer}
    dropped = [
        value.name
        for value in graph.input
        if value.name not in read and value.name not in constants
    ]
    outputs = [typed.get(name, onnx.ValueInfoProto(name=name)) for name in tensors]
    for field, entries in (
        ("node", nodes),
        ("input", inputs),
        ("initializer", [t for t in graph.initializer if t.name in read]),
        ("sparse_initializer", [t for t in graph.sparse_initializer if t.values.name in read]),
        ("output", outputs),
        ("value_info", [v for v in graph.value_info if v.name in read - set(tensors)]),
        (
            "quantization_annotation",
            [a for a in graph.quantization_annotation if a.tensor_name in read],
        ),
    ):
        _replace(graph, field, entries)
    return cutting.notes(tensors, [node.op_type for node in left_out], dropped)


def _replace(graph: onnx.GraphProto, field: str, entries: Sequence[object]) -> None:
    copies = [type(entry)() for entry in entries]
    for copy, entry in zip(copies, entries, strict=True):
        copy.CopyFrom(entry)  # type: ignore[attr-defined]
    graph.ClearField(field)
    getattr(graph, field).extend(copies)


def _tensors(graph: onnx.GraphProto, names: Sequence[str], source: Path) -> list[str]:
    """The tensors that the names stand for."""
    computed = [name for node in graph.node for name in node.output if name]
    of_node = {
        node.name: [name for name in node.output if name] for node in graph.node if node.name
    }
    fixed = {tensor.name for tensor in graph.initializer}
    given = {value.name for value in graph.input} | fixed
    return cutting.resolve(names, computed, of_node, given, source)


def _needed(graph: onnx.GraphProto, tensors: Sequence[str]) -> tuple[set[int], set[str]]:
    """-> the places of the nodes that the tensors need, and all names that are read for them."""
    producer = {name: place for place, node in enumerate(graph.node) for name in node.output}
    kept: set[int] = set()
    read: set[str] = set()
    waiting = list(tensors)
    while waiting:
        name = waiting.pop()
        if not name or name in read:
            continue
        read.add(name)
        place = producer.get(name)
        if place is not None and place not in kept:
            kept.add(place)
            waiting += _read_by(graph.node[place])
    return kept, read


def _read_by(node: onnx.NodeProto) -> list[str]:
    """All names that a node and the nodes in its subgraphs read; some may be the subgraphs' own."""
    names = list(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names += [value.name for value in graph.output]
            for inner in graph.node:
                names += _read_by(inner)
    return names
