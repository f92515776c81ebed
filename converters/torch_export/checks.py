"""What may stand in a .pt2 file of torch.export: a graph of PyTorch's own operators, and raw
weights. Nothing that is pickled reaches PyTorch, and no text that it would evaluate.

The layout: https://docs.pytorch.org/docs/stable/export/pt2_archive.html
"""

import io
import json
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from onmetal.errors import UsageError

GRAPH = "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
SAMPLES = "data/sample_inputs/model.pt"
MOST_JSON_BYTES = 512 << 20
HARMLESS = {
    "collections OrderedDict",
    "torch._tensor _rebuild_from_type_v2",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch._utils _rebuild_tensor_v2",
    "torch.serialization _get_layout",
}
"""What the pickle of tensors names, besides `torch` and the kinds of storage. A tensor that an
exporter of PyTorch has used before has attributes, and is rebuilt from its type."""
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|quantized_decomposed|torchvision)(\.\w+)+"
    r"|torch\.sym_(float|int|ite|max|min|not|sqrt|sum)"
    r"|_operator\.(add|and_|eq|floordiv|ge|gt|le|lt|mod|mul|ne|neg|or_|pow|sub|truediv)"
    r"|math\.(ceil|floor|trunc)"
)
_STORAGE = re.compile(r"torch (\w+Storage|\w+|Size|device)")
_WORD = re.compile(r"[A-Za-z_]\w*")
_SYMBOL = re.compile(r"[suz]f?\d+")
_EXPRESSION = re.compile(r"([\w\s+\-*/(),<>=!&|~%']|(?<=\d)\.(?=\d))*")
"""A point stands within a number only: elsewhere it would name an attribute."""
FUNCTIONS = {
    *("Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "ExprCondPair"),
    *("Float", "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt"),
    *("ITE", "Identity", "IntTrueDiv", "Integer", "Le", "LessThan", "Lt", "Max", "Min", "Mod"),
    *("ModularIndexing", "Mul", "Ne", "Not", "Or", "Piecewise", "Pow", "PowByNatural"),
    *("PythonMod", "Rational", "RoundDecimal", "RoundToInt", "StrictGreaterThan", "StrictLessThan"),
    *("Symbol", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where", "ceiling"),
    *("False", "True", "false", "floor", "int_oo", "oo", "precision", "true"),
    *("integer", "positive", "nonnegative"),
}
"""Names that may stand in the expression of a symbolic size, which PyTorch evaluates."""
CONTAINERS = {"builtins.dict", "builtins.list", "builtins.tuple", "collections.OrderedDict"}
"""What inputs and outputs may be gathered in. Beside others a module may be named, and imported."""
EXPORT = (
    "in the program that defines the model: model.eval(); "
    "program = torch.export.export(model, (example,)); torch.export.save(program, 'model.pt2')"
)
OLD = (
    "it was saved by PyTorch before 2.8, which pickled weights; load it there with "
    "torch.export.load and save it with a newer one, or "
)


def is_program(names: list[str]) -> bool:
    """Whether the members of an archive are those of an exported program, of any version."""
    ends = {PurePosixPath(name).name for name in names}
    return "archive_format" in ends or "serialized_exported_program.json" in ends


def checked(parts: Path, path: Path) -> Path:
    """The folder of the program among the extracted `parts`, its JSON without what is evaluated or
    only of use to people. `path`: the user's file, for messages.

    Raises UsageError for pickles, compiled code, custom operators and custom objects.
    """
    tops = [entry for entry in parts.iterdir() if (entry / "archive_format").is_file()]
    if len(tops) != 1:
        raise UsageError(f"{path}: this is no .pt2 file of torch.export: {OLD}{EXPORT}")
    top = tops[0]
    if (top / "archive_format").read_bytes() != b"pt2":
        raise UsageError(f"{path}: this archive says another format than 'pt2'")
    names = [entry.relative_to(top).as_posix() for entry in top.rglob("*") if entry.is_file()]
    for name in sorted(names):
        _check_member(name, top / name, path)
    for name in CONFIGS:
        _check_config(_json(top / name, path), name, names, path)
    graph = _json(top / GRAPH, path)
    _check_graph(graph, path)
    _plain_structures(graph, path)
    graph["guards_code"] = []
    (top / GRAPH).write_text(json.dumps(graph))
    return top


def _check_member(name: str, file: Path, path: Path) -> None:
    if name.startswith("data/aotinductor/"):
        raise UsageError(
            f"{path}: it holds compiled code (AOTInductor), which is not loaded; export the model "
            f"itself: {EXPORT}"
        )
    if "custom_obj" in PurePosixPath(name).name:
        raise UsageError(f"{path}: it holds the custom object {name!r}, a pickle: refused")
    if name.startswith("data/sample_inputs/"):
        _check_pickle(file, name, path)


def _check_pickle(file: Path, name: str, path: Path) -> None:
    """The example inputs are a pickle in every .pt2 file. It is never loaded; one that is made of
    more than tensors is a sign of harm."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickles = [archive.read(n) for n in archive.namelist() if n.endswith(".pkl")]
        for word in (word for content in pickles for word in _imports(content)):
            if word not in HARMLESS and not _STORAGE.fullmatch(word):
                raise UsageError(
                    f"{path}: the pickle {name!r} in it names {word[:100]!r}, where example inputs "
                    f"are made of tensors alone: refused; {EXPORT}"
                )
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError):
        raise UsageError(f"{path}: {name!r} in it is damaged") from None


def _imports(content: bytes) -> Iterator[str]:
    """`MODULE NAME` of what a pickle imports."""
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL":
            yield " ".join(texts[-2:])
        elif opcode.name in ("EXT1", "EXT2", "EXT4"):
            yield f"extension {argument}"
        elif isinstance(argument, str):
            texts.append(argument)


def _json(file: Path, path: Path) -> Any:
    try:
        if file.stat().st_size > MOST_JSON_BYTES:
            raise UsageError(f"{path}: {file.name} in it is larger than any model's")
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path}: this .pt2 file has no {file.name}: it is damaged") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: {file.name} in it cannot be read: it is damaged") from None


def _check_config(config: Any, name: str, names: list[str], path: Path) -> None:
    """Each tensor is raw bytes of the size that it is declared to have."""
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise UsageError(f"{path}: {name} in it cannot be read: it is damaged")
    folder = str(PurePosixPath(name).parent)
    for tensor, entry in entries.items():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise UsageError(f"{path}: the tensor {tensor[:100]!r} in it is a pickle: refused")
        if f"{folder}/{entry.get('path_name')}" not in names:
            raise UsageError(f"{path}: the data of the tensor {tensor[:100]!r} is not in the file")


def _check_graph(graph: Any, path: Path) -> None:
    waiting = [graph]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        waiting += value.values()
        for key in ("target", "as_operator"):
            if isinstance(name := value.get(key), str) and not _OPERATOR.fullmatch(name):
                raise UsageError(
                    f"{path}: it holds the operator {name[:100]!r}, which is not PyTorch's own; "
                    "custom operators are not loaded"
                )
        if value.get("as_custom_obj") or value.get("custom_obj_values"):
            raise UsageError(f"{path}: it holds a custom object, a pickle: refused")
        if isinstance(text := value.get("expr_str"), str):
            _check_expression(text, path)


def _plain_structures(graph: dict[str, Any], path: Path) -> None:
    """Let the outputs be gathered in plain containers: a class is known by its name only.

    Raises UsageError where the inputs are gathered in another.
    """
    try:
        for module in graph["graph_module"]["module_call_graph"]:
            signature = module["signature"] or {}
            for key in signature.keys() & {"in_spec", "out_spec"}:
                protocol, structure = json.loads(signature[key])
                named = _plain(structure)
                if named and key == "in_spec":
                    raise UsageError(
                        f"{path}: its inputs are gathered in {named[0][:100]!r}, of which the file "
                        f"has the name only; export a model whose inputs are tensors; {EXPORT}"
                    )
                signature[key] = json.dumps([protocol, structure])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise UsageError(f"{path}: {GRAPH} in it cannot be read: it is damaged") from None


def _plain(structure: Any) -> list[str]:
    """Exchange all but plain containers of a structure for tuples. -> what those were."""
    named = []
    waiting = [structure]
    while waiting:
        entry = waiting.pop()
        waiting += entry["children_spec"]
        kind, context = entry["type"], entry["context"]
        if kind is None and context is None:
            continue
        keys = json.loads(context) if isinstance(context, str) else context
        plain = keys is None or (
            isinstance(keys, list) and all(isinstance(key, str | int) for key in keys)
        )
        if kind not in CONTAINERS or not plain:
            named.append(str(kind))
            entry["type"], entry["context"] = "builtins.tuple", "null"
    return named


def _check_expression(text: str, path: Path) -> None:
    words = set(_WORD.findall(text)) - FUNCTIONS
    if not _EXPRESSION.fullmatch(text) or not all(map(_SYMBOL.fullmatch, words)):
        raise UsageError(f"{path}: {text[:100]!r} in it is no expression of sizes: refused")
