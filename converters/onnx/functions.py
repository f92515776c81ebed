"""Model-local functions of an ONNX file, put in the place of their calls.

torch's exporter and onnxscript write them. Everything after the reader (counts, plan, quantizer,
every runtime) sees plain operators. What onnx's inliner leaves out is done before it: the default
values of attributes, functions written for another opset, and outputs that are inputs as they are.
"""

import graphlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx.inliner
from onnx import helper

from onmetal.errors import UnsupportedError, UsageError, reason

MOST_NODES = 1_000_000
"""Functions that call one another twice grow beyond all memory when they are written out."""
STANDARD = ("", "ai.onnx")

Key = tuple[str, str, str]
"""Domain, name and overload of a function; three empty strings stand for the model's own graph."""
MAIN: Key = ("", "", "")


def inline(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    """The model without functions; the same one where it has none.

    Raises UsageError where functions call themselves or grow too large, UnsupportedError where a
    function needs another opset than the model and cannot be converted.
    """
    if not model.functions:
        return model
    _check_growth(model, source)
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    _write_defaults(whole)
    for function in whole.functions:
        _separate_outputs(function)
    convert = not _agree_on_opset(whole)
    try:
        if convert:  # which the inliner can only do of values whose types are known
            whole = onnx.shape_inference.infer_shapes(whole, data_prop=True)
        plain = onnx.inliner.inline_local_functions(whole, convert)
    except Exception as error:
        why = "some are written for another opset" if convert else "they do not fit their calls"
        raise UnsupportedError(
            f"{source}: its functions cannot be replaced by what they do, because {why}: "
            f"{reason(error)}; export the model again with one opset, or with functions inlined"
        ) from None
    local = {_key(function) for function in whole.functions}
    if left := [node for node in _all_nodes(plain.graph.node) if _called(node) in local]:
        raise UnsupportedError(
            f"{source}: the function {left[0].op_type!r} cannot be replaced by what it does; "
            "export the model again with functions inlined"
        )
    del plain.functions[:]
    used = {node.domain for node in _all_nodes(plain.graph.node)}
    for entry in list(plain.opset_import):
        if entry.domain not in used and entry.domain not in STANDARD:
            plain.opset_import.remove(entry)
    return plain


def _key(function: onnx.FunctionProto) -> Key:
    domain = "" if function.domain in STANDARD else function.domain
    return domain, function.name, function.overload


def _called(node: onnx.NodeProto) -> Key:
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
    found = {_key(function): list(_all_nodes(function.node)) for function in model.functions}
    return {**found, MAIN: list(_all_nodes(model.graph.node))}


def _check_growth(model: onnx.ModelProto, source: Path) -> None:
    """How many nodes there would be: a function's size follows from those that it calls."""
    bodies = _bodies(model)
    calls = {
        key: [called for node in nodes if (called := _called(node)) in bodies]
        for key, nodes in bodies.items()
    }
    sizes: dict[Key, int] = {}
    try:
        for key in graphlib.TopologicalSorter(calls).static_order():
            inner = sum(sizes[called] for called in calls[key])
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
            given = {attribute.name for attribute in node.attribute}
            for default in defaults.get(_called(node), []):
                if default.name not in given:
                    node.attribute.append(default)


def _separate_outputs(function: onnx.FunctionProto) -> None:
    """An output that is an input, or another output, becomes a copy of it: a call makes it anew."""
    known = {name for node in function.node for name in (*node.input, *node.output)}
    taken = set(function.input)
    for place, name in enumerate(function.output):
        if name in taken:
            copy = f"{name}_{place}"
            while copy in known:
                copy += "_"
            known.add(copy)
            function.node.append(helper.make_node("Identity", [name], [copy]))
            function.output[place] = copy
        taken.add(name)


def _agree_on_opset(model: onnx.ModelProto) -> bool:
    """Write one version of each domain into the model and its functions, where some version of
    those they name means the same for every operator in all of them. -> whether there was one."""
    scopes = [model.opset_import, *(function.opset_import for function in model.functions)]
    nodes = [list(_all_nodes(part.node)) for part in (model.graph, *model.functions)]
    agreed: dict[str, int] = {}
    for imports in scopes:
        for entry in imports:
            entry.domain = "" if entry.domain in STANDARD else entry.domain
    for domain in {entry.domain for imports in scopes for entry in imports}:
        named = [[e.version for e in imports if e.domain == domain] for imports in scopes]
        versions = sorted({version for found in named for version in found})
        used = [
            (node.op_type, found[0])
            for found, inside in zip(named, nodes, strict=True)
            for node in inside
            if found and ("" if node.domain in STANDARD else node.domain) == domain
        ]
        fits = [
            version
            for version in versions
            if all(_since(kind, own, domain) == _since(kind, version, domain) for kind, own in used)
        ]
        if not fits:
            return False
        agreed[domain] = next((version for version in named[0] if version in fits), fits[-1])
    for imports in scopes:
        del imports[:]
        imports.extend(helper.make_opsetid(domain, agreed[domain]) for domain in sorted(agreed))
    return True


def _since(kind: str, version: int, domain: str) -> int | None:
    """The version in which the operator got the meaning that it has in this one; None: unknown,
    and then taken to be the same in all."""
    if not onnx.defs.has(kind, version, domain):
        return None
    return int(onnx.defs.get_schema(kind, version, domain).since_version)
