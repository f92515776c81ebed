"""Replaces calls of an ONNX file's model-local functions by the functions' nodes.

torch's exporter and onnxscript write such functions. Everything after the reader (counts, plan,
quantizer, every runtime) sees plain operators. Cases that onnx's inliner does not handle are
resolved before it runs: default values of attributes, functions written for another opset, and
outputs that are inputs of the same function.
"""

import graphlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx.inliner
from onnx import helper

from onmetal.errors import UnsupportedError, UsageError, reason

MOST_NODES = 1_000_000
"""The most nodes after inlining: functions that call one another twice grow exponentially."""
STANDARD = ("", "ai.onnx")

Key = tuple[str, str, str]
"""Domain, name and overload of a function; three empty strings stand for the model's own graph."""
MAIN: Key = ("", "", "")


def inline(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    """The model with its functions inlined; the model itself where it has none.

    Raises UsageError where functions call themselves or grow too large, UnsupportedError where a
    function needs another opset than the model and cannot be converted.
    """
    if not model.functions:
        return model
    _check_growth(model, source)
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    _write_defaults(converted)
    for function in converted.functions:
        _separate_outputs(function)
    convert = not _agree_on_opset(converted)
    try:
        if convert:  # which the inliner can only do of values whose types are known
            converted = onnx.shape_inference.infer_shapes(converted, data_prop=True)
        inlined = onnx.inliner.inline_local_functions(converted, convert)
    except Exception as error:
        cause = "some are written for another opset" if convert else "they do not fit their calls"
        raise UnsupportedError(
            f"{source}: its functions cannot be replaced by what they do, because {cause}: "
            f"{reason(error)}; export the model again with one opset, or with functions inlined"
        ) from None
    local = {_key(function) for function in converted.functions}
    if remaining := [node for node in _all_nodes(inlined.graph.node) if _callee(node) in local]:
        raise UnsupportedError(
            f"{source}: the function {remaining[0].op_type!r} cannot be replaced by what it does; "
            "export the model again with functions inlined"
        )
    del inlined.functions[:]
    used = {node.domain for node in _all_nodes(inlined.graph.node)}
    for entry in list(inlined.opset_import):
        if entry.domain not in used and entry.domain not in STANDARD:
            inlined.opset_import.remove(entry)
    return inlined


def _key(function: onnx.FunctionProto) -> Key:
    domain = "" if function.domain in STANDARD else function.domain
    return domain, function.name, function.overload


def _callee(node: onnx.NodeProto) -> Key:
    return "" if node.domain in STANDARD else node.domain, node.op_type, node.overload


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those inside their control flow."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _all_nodes(inner.node)


def _bodies(model: onnx.ModelProto) -> dict[Key, list[onnx.NodeProto]]:
    """All nodes of each function and of the model's own graph."""
    bodies = {_key(function): list(_all_nodes(function.node)) for function in model.functions}
    return {**bodies, MAIN: list(_all_nodes(model.graph.node))}


def _check_growth(model: onnx.ModelProto, source: Path) -> None:
    """Raises UsageError where inlining gives too many nodes or functions call themselves. A
    function's size follows from the sizes of the functions that it calls."""
    bodies = _bodies(model)
    calls = {
        key: [callee for node in nodes if (callee := _callee(node)) in bodies]
        for key, nodes in bodies.items()
    }
    sizes: dict[Key, int] = {}
    try:
        for key in graphlib.TopologicalSorter(calls).static_order():
            inner = sum(sizes[callee] for callee in calls[key])
            sizes[key] = len(bodies[key]) - len(calls[key]) + inner
    except graphlib.CycleError as error:
        raise UsageError(
            f"{source}: the function {error.args[1][0][1]!r} calls itself: a damaged ONNX file"
        ) from None
    if sizes[MAIN] > MOST_NODES:
        raise UsageError(
            f"{source}: its functions call one another so often that it would become "
            f"{sizes[MAIN]:,} operators, more than {MOST_NODES:,}"
        )


def _write_defaults(model: onnx.ModelProto) -> None:
    """Default values of a function's attributes, written into the calls that leave them out."""
    defaults = {_key(f): list(f.attribute_proto) for f in model.functions if f.attribute_proto}
    for nodes in _bodies(model).values():
        for node in nodes:
            set_names = {attribute.name for attribute in node.attribute}
            for default in defaults.get(_callee(node), []):
                if default.name not in set_names:
                    node.attribute.append(default)


def _separate_outputs(function: onnx.FunctionProto) -> None:
    """Where an output of a function is also an input or another output, make it an Identity of
    that, so that each output of a call is a value of its own."""
    used_names = {name for node in function.node for name in (*node.input, *node.output)}
    returned = set(function.input)
    for place, name in enumerate(function.output):
        if name in returned:
            copy = f"{name}_{place}"
            while copy in used_names:
                copy += "_"
            used_names.add(copy)
            function.node.append(helper.make_node("Identity", [name], [copy]))
            function.output[place] = copy
        returned.add(name)


def _agree_on_opset(model: onnx.ModelProto) -> bool:
    """Write one opset version for each domain into the model and all its functions. It is one of
    the versions that they name, for which all their operators keep their meaning. -> whether there
    was such a version for every domain."""
    scopes = [model.opset_import, *(function.opset_import for function in model.functions)]
    nodes = [list(_all_nodes(part.node)) for part in (model.graph, *model.functions)]
    agreed: dict[str, int] = {}
    for imports in scopes:
        for entry in imports:
            entry.domain = "" if entry.domain in STANDARD else entry.domain
    for domain in {entry.domain for imports in scopes for entry in imports}:
        versions_by_scope = [
            [e.version for e in imports if e.domain == domain] for imports in scopes
        ]
        versions = sorted(
            {version for scope_versions in versions_by_scope for version in scope_versions}
        )
        used = [
            (node.op_type, scope_versions[0])
            for scope_versions, scope_nodes in zip(versions_by_scope, nodes, strict=True)
            for node in scope_nodes
            if scope_versions and ("" if node.domain in STANDARD else node.domain) == domain
        ]
        fits = [
            version
            for version in versions
            if all(
                _since(kind, current, domain) == _since(kind, version, domain)
                for kind, current in used
            )
        ]
        if not fits:
            return False
        agreed[domain] = next(
            (version for version in versions_by_scope[0] if version in fits), fits[-1]
        )
    for imports in scopes:
        del imports[:]
        imports.extend(helper.make_opsetid(domain, agreed[domain]) for domain in sorted(agreed))
    return True


def _since(kind: str, version: int, domain: str) -> int | None:
    """The first opset version in which the operator has the meaning that it has in `version`. None
    for an unknown operator, which is assumed to have one meaning in all versions."""
    if not onnx.defs.has(kind, version, domain):
        return None
    return int(onnx.defs.get_schema(kind, version, domain).since_version)
