"""Files of every kind with mutations: each is read or refused with a reason."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.mutations_files import MODELS, PICTURES

COUNT = 50
TEXTS = ("npz", "data.toml", "labels.csv", "target.toml")


def mutations(first: int, *kinds: str) -> tuple[int, list[str]]:
    """-> how the process ended that read them, and what it said of each."""
    words = [sys.executable, "-m", "tests.mutations_files", str(first), str(COUNT), *kinds]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=300, check=False
    )
    return done.returncode, done.stdout.splitlines()


def check(lines: list[str]) -> None:
    for line in lines:
        assert " 'read'" in line or "UsageError " in line or "UnsupportedError " in line, line


def test_pictures_and_data_of_strangers_end_no_process() -> None:
    code, lines = mutations(0, *PICTURES, *TEXTS)
    assert code == 0, lines[-1:]
    assert len(lines) == COUNT * (len(PICTURES) + len(TEXTS))
    check(lines)
    assert sum("'read'" in line for line in lines) > 50, "what leaves nothing standing tries little"


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_strangers_have_a_reason(kind: str) -> None:
    """Here without the worker that `deploy` has for them, which may die in their place."""
    first = 0
    while first < COUNT:
        code, lines = mutations(first, kind)
        check(lines if code == 0 else lines[:-1])
        assert code <= 0, lines[-1:]
        first += len(lines)
