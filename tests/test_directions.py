"""Who imports whom: from the command line down to the ground, never up and never in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.test_packaging import DOTTED, MODULES

ORDER = (
    *("targets", "converters", "runtimes", "profilers", "calibration", "compression", "reports"),
    *("bundles", "deploy", "commands", "cli", "__main__"),
)
"""Rooms from the lowest to the highest; everything else directly in onmetal is the ground."""
GROUND = -1
OFFERED = ("onmetal", "onmetal.deploy")
"""The one import that climbs: what the package offers to its users is imported when they ask for
it."""
TESTS = Path(__file__).parent
MOST_AT_THE_ROOT = 12
MOST_LINES_OF_A_TEST_FILE = 800
MOST_LINES = 400


def height(module: str) -> int:
    parts = module.split(".")
    return ORDER.index(parts[1]) if len(parts) > 1 and parts[1] in ORDER else GROUND


def own(path: Path) -> Iterator[str]:
    """onmetal's modules that a file imports, wherever in it."""
    for entry in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(entry, ast.ImportFrom) and entry.module in (*DOTTED, "onmetal"):
            for name in entry.names:
                full = f"{entry.module}.{name.name}"
                yield full if full in DOTTED else entry.module
        elif isinstance(entry, ast.Import):
            yield from (name.name for name in entry.names if name.name in DOTTED)


def test_no_import_climbs() -> None:
    climbing = [
        f"{module} imports {other}"
        for module, name in DOTTED.items()
        for other in sorted(set(own(MODULES[name])))
        if height(other) > height(module) and (module, other) != OFFERED
    ]
    assert not climbing


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: {*own(MODULES[name])} - {module} for module, name in DOTTED.items()}
    graph[OFFERED[0]].remove(OFFERED[1])
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_root_is_small() -> None:
    assert len([name for name in MODULES if name.count("/") == 1]) <= MOST_AT_THE_ROOT


def test_files_of_tests_can_be_read_at_a_sitting() -> None:
    lengths = {path.name: len(path.read_text("utf-8").splitlines()) for path in TESTS.glob("*.py")}
    assert not {n: length for n, length in lengths.items() if length > MOST_LINES_OF_A_TEST_FILE}


def test_no_module_is_long() -> None:
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    long = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not long, f"more than {MOST_LINES} lines: split them by subject"
