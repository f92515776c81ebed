"""The JSON schemas of docs/schema, made of the record's types, and documents held against these.

`python -m tests.schemas` writes the schemas.
"""

import ast
import inspect
import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from onmetal import costs
from onmetal.reports.command_records import (
    Comparison,
    Conversion,
    Doctor,
    Inspection,
    Verification,
)
from onmetal.reports.manifest_record import Manifest
from onmetal.reports.record import Bench, CountedBench, Document

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schema"
KINDS: dict[str, type[msgspec.Struct]] = {
    "deploy": Document,
    "manifest": Manifest,
    "bench": Bench,
    "bench-counted": CountedBench,
    "inspect": Inspection,
    "inspect-against": Comparison,
    "verify": Verification,
    "convert": Conversion,
    "doctor": Doctor,
}
"""By the name of the schema's file."""
WRITE = "python -m tests.schemas"


def schemas() -> dict[str, bytes]:
    """By the name of the file."""
    return {f"{name}.json": _schema(name, kind) for name, kind in KINDS.items()}


def _schema(name: str, kind: type[msgspec.Struct]) -> bytes:
    (own,), parts = msgspec.json.schema_components([kind])
    described = {part: _described(part, entry) for part, entry in parts.items()}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"onmetal {name}",
        **own,
        "$defs": dict(sorted(described.items())),
    }
    text = json.dumps(schema, indent=2, ensure_ascii=False).replace(
        "#/components/schemas", "#/$defs"
    )
    return f"{text}\n".encode()


def _described(part: str, entry: dict[str, Any]) -> dict[str, Any]:
    """With what the types' docstrings say of their fields."""
    texts = _field_texts()
    properties = {
        name: {**field, **({"description": text} if (text := texts.get((part, name))) else {})}
        for name, field in entry.get("properties", {}).items()
    }
    return {**entry, **({"properties": properties} if properties else {})}


@cache
def _field_texts() -> dict[tuple[str, str], str]:
    """(class, field as JSON has it) -> the docstring below the field."""
    figures = {cost.key: f"{cost.noun}, in {cost.unit}" for cost in costs.MEASURED}
    texts: dict[tuple[str, str], str] = {}
    for kind in _structs(msgspec.Struct):
        for base in reversed(kind.__mro__):
            texts |= {(kind.__name__, key): text for key, text in _own_texts(base).items()}
        for key in figures.keys() & set(kind.__struct_fields__):
            texts.setdefault((kind.__name__, key), figures[key])
    return texts


def _structs(base: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    own = base.__subclasses__()
    return [*own, *(kind for one in own for kind in _structs(one))]


@cache
def _own_texts(kind: type) -> dict[str, str]:
    if not kind.__module__.startswith("onmetal.re"):
        return {}
    try:
        (tree,) = ast.parse(inspect.getsource(kind)).body
    except (OSError, TypeError, SyntaxError):
        return {}  # it was not written but made
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert isinstance(field.target, ast.Name) and isinstance(after.value, ast.Constant)
            text = inspect.cleandoc(str(after.value.value))
            texts[field.target.id.rstrip("_")] = " ".join(text.split())
    return texts


MARKS: dict[str, type[msgspec.Struct]] = {
    "golden": Manifest,
    "pareto": Document,
    "seed": Bench,
    "support": Inspection,
    "first_bad": Comparison,
    "problems": Verification,
    "compared_on": Conversion,
}
"""A key that no other record has, but that a manifest has all that its run's document has."""


def kind_of(document: dict[str, Any]) -> type[msgspec.Struct] | None:
    """Which of the records a document is; None: of a command that has none."""
    keys = set(document)
    if keys == {"schema", "device", "candidates"}:
        return CountedBench
    if keys == {"schema", "checks"}:
        return Doctor
    return next((kind for key, kind in MARKS.items() if key in keys), None)


def check(text: str | bytes) -> Any:
    """Read a document, and hold it against its record, by which nothing of it may be lost."""
    document = json.loads(text)
    kind = kind_of(document) if isinstance(document, dict) else None
    if kind:
        again = msgspec.json.encode(msgspec.json.decode(text, type=kind, strict=True))
        assert json.dumps(json.loads(again)) == json.dumps(document)
    return document


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for file, content in schemas().items():
        (FOLDER / file).write_bytes(content)
