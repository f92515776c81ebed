"""What may stand in a SavedModel: TensorFlow's own operators, none of which reads or writes files
or runs Python.

The folder is untrusted. TensorFlow runs some functions of a SavedModel while it loads it, so all
operators of the file are checked before.
"""

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onmetal.converters import archive
from onmetal.errors import UsageError

GRAPH = "saved_model.pb"
MOST_GRAPH_BYTES = 1 << 31
PLACES = ("variables", GRAPH)
"""What is read of a SavedModel; its assets are not, since no operator may read files."""
RUNS_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
FILES = {
    "GenerateVocabRemapping",
    "ImmutableConst",
    "LoadAndRemapMatrix",
    "MatchingFiles",
    "PrintV2",
    "ReadFile",
    "Restore",
    "RestoreSlice",
    "Save",
    "SaveSlices",
    "WriteFile",
}
"""Operators that name files, besides those of a checkpoint."""
CHECKPOINT = {"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"}
"""They save and restore variables, and are in every SavedModel; no signature may run them."""
STATEFUL = {
    "Assert",
    "AssignAddVariableOp",
    "AssignSubVariableOp",
    "AssignVariableOp",
    "Case",
    "CudnnRNNV3",
    "DestroyResourceOp",
    "DisableCopyOnRead",
    "For",
    "HashTableV2",
    "If",
    "IsVariableInitializedOp",
    "LookupTableExportV2",
    "LookupTableFindV2",
    "LookupTableImportV2",
    "LookupTableInsertV2",
    "LookupTableSizeV2",
    "Multinomial",
    "MutableDenseHashTableV2",
    "MutableHashTableV2",
    "NoOp",
    "ParameterizedTruncatedNormal",
    "PlaceholderWithDefault",
    "RandomGamma",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "ReadVariableOp",
    "ResourceGather",
    "ResourceGatherNd",
    "StatefulPartitionedCall",
    "StatefulRandomBinomial",
    "StatefulStandardNormalV2",
    "StatefulUniform",
    "StatefulUniformFullInt",
    "StatefulUniformInt",
    "TensorArrayCloseV3",
    "TensorArrayConcatV3",
    "TensorArrayGatherV3",
    "TensorArrayGradV3",
    "TensorArrayReadV3",
    "TensorArrayScatterV3",
    "TensorArraySizeV3",
    "TensorArraySplitV3",
    "TensorArrayV3",
    "TensorArrayWriteV3",
    "TruncatedNormal",
    "VarHandleOp",
    "VarIsInitializedOp",
    "VariableShape",
    "Variable",
    "VariableV2",
    "While",
}
"""Operators with state or effects that a model may have: variables, tables, random numbers,
control flow."""


def copied(path: Path, folder: Path) -> Path:
    """A copy of what is read of a SavedModel, a folder or a zip archive of one.

    Raises UsageError where it has links, members that lead out of it, or no graph.
    """
    source = folder / "source"
    if path.is_dir():
        for name in PLACES:
            _copy(path / name, source / name, path)
    else:
        prefix = root(archive.names(path))
        if prefix is None:
            raise UsageError(f"{path}: this archive has no {GRAPH}, or several")
        parts = folder / "parts"
        wanted = tuple(prefix + name for name in PLACES)
        archive.extract(path, parts, lambda name: name.startswith(wanted))
        (parts / prefix).rename(source)
        shutil.rmtree(parts, ignore_errors=True)
    if not (source / GRAPH).is_file():
        raise UsageError(f"{path}: this SavedModel has no {GRAPH}")
    if (source / GRAPH).stat().st_size > MOST_GRAPH_BYTES:
        raise UsageError(f"{path}: {GRAPH} is larger than protobufs can be")
    return source


def root(names: list[str]) -> str | None:
    """The folder of the only SavedModel among the members of an archive; None where there is none,
    or several."""
    found = [name for name in names if name == GRAPH or name.endswith(f"/{GRAPH}")]
    return found[0].removesuffix(GRAPH) if len(found) == 1 else None


def _copy(source: Path, target: Path, path: Path) -> None:
    """Copy a file, or a folder of files, without links."""
    try:
        mode = source.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        for entry in sorted(source.iterdir()):
            _copy(entry, target / entry.name, path)
        return
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path}: {source.name!r} in it is a link or no regular file: refused")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target, follow_symlinks=False)


def check_operators(saved: Any, registry: Any, signature: str, path: Path) -> None:
    """`saved`: a SavedModel of one graph, as TensorFlow's protobuf; `registry`: operator -> its
    OpDef, or None; `signature`: the one that is deployed.

    Raises UsageError for what runs code or touches files, UnsupportedError for operators that
    TensorFlow itself has not.
    """
    for meta in saved.meta_graphs:
        functions = {entry.signature.name: entry for entry in meta.graph_def.library.function}
        nodes = [*meta.graph_def.node, *(n for f in functions.values() for n in f.node_def)]
        for node in nodes:
            if node.op not in functions:
                _check(node.op, registry(node.op), path)
        for name in sorted({node.op for node in _reached(meta, functions, signature)} & CHECKPOINT):
            raise UsageError(
                f"{path}: its signature {signature!r} runs {name}, which reads or writes files"
            )


def _check(name: str, definition: Any, path: Path) -> None:
    if name in RUNS_PYTHON:
        raise UsageError(
            f"{path}: it holds the operator {name}, which runs Python code: refused; write this "
            "part of the model with TensorFlow's own operators"
        )
    if name in FILES:
        raise UsageError(
            f"{path}: it holds the operator {name}, which reads or writes files: refused; leave "
            "the reading of files out of the model"
        )
    if definition is None:
        raise UsageError(
            f"{path}: it holds the operator {name}, which TensorFlow itself does not have; custom "
            "operators are not loaded"
        )
    if definition.is_stateful and name not in STATEFUL | CHECKPOINT:
        raise UsageError(
            f"{path}: it holds the operator {name}, which has effects beside its outputs: refused"
        )


def _reached(meta: Any, functions: dict[str, Any], signature: str) -> Iterator[Any]:
    """The nodes that the signature's outputs depend on, in the graph and in functions."""
    nodes = {node.name: node for node in meta.graph_def.node}
    outputs = meta.signature_def[signature].outputs.values()
    waiting = [tensor.name.partition(":")[0] for tensor in outputs]
    seen: set[str] = set(waiting)
    called: set[str] = set()
    while waiting:
        node = nodes.get(waiting.pop())
        if node is None:
            continue
        yield node
        names = {name.lstrip("^").partition(":")[0] for name in node.input} - seen
        seen |= names
        waiting += names
        yield from _in_functions(node, functions, called)


def _in_functions(node: Any, functions: dict[str, Any], called: set[str]) -> Iterator[Any]:
    waiting = [node]
    while waiting:
        current = waiting.pop()
        names = {value.func.name for value in current.attr.values() if value.HasField("func")}
        names |= {entry.name for value in current.attr.values() for entry in value.list.func}
        for name in ({current.op} | names) & functions.keys() - called:
            called.add(name)
            yield from functions[name].node_def
            waiting += functions[name].node_def
