"""The record as JSON: what `--json` prints and a bundle's manifest.json holds."""

from typing import Any

import msgspec

from onmetal.records import plain
from onmetal.reports.record import AnyReport
from onmetal.texts import terminal
from onmetal.texts.terminal import Screen


def render(report: AnyReport, screen: Screen) -> bytes:
    return encode(plain(report.document))


def encode(document: dict[str, Any]) -> bytes:
    """Indented JSON. NaN and infinity become null; bytes of names that are not valid UTF-8 are
    written as escapes."""
    try:
        content = msgspec.json.encode(document)
    except UnicodeEncodeError:
        content = msgspec.json.encode(spelled(document))
    return terminal.spelled(msgspec.json.format(content, indent=2)) + b"\n"


def spelled(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {spelled(key): spelled(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(inner) for inner in value]
    return value
