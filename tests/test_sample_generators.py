"""A generator of the user's own module as samples."""

import sys
from pathlib import Path

import numpy as np
import pytest

from onmetal.errors import UsageError
from onmetal.files.cache import Cache
from tests.sample_files import PAIR, VECTOR, everything, load

GENERATORS = """
import numpy as np

def single():
    for i in range(4):
        yield np.full(4, i, np.float32), i

def scores():
    for i in range(4):
        yield np.full(4, i, np.float32), i / 2

def pairs():
    for i in range(4):
        yield {"left": np.full(2, i, np.float32), "right": np.full(3, i)}, None

def lists():
    yield [1.0, 2.0, 3.0, 4.0], 1
    yield [1.0, 2.0, 3.0, 5.0], 0

def growing():
    yield np.zeros(4, np.float32), 0
    yield np.zeros(5, np.float32), 0

def half_labelled():
    yield np.zeros(4, np.float32), 0
    yield np.ones(4, np.float32), None

def mixed_labels():
    yield np.zeros(4, np.float32), 0
    yield np.ones(4, np.float32), 0.5

def no_first_label():
    yield np.zeros(4, np.float32), None
    yield np.ones(4, np.float32), 1

def half_missing():
    yield {"left": np.zeros(2, np.float32), "right": np.zeros(3, np.int64)}, 0
    yield {"left": np.ones(2, np.float32)}, 0

def failing():
    yield np.zeros(4, np.float32), 0
    raise KeyError("no such picture")

def nothing():
    return iter(())

def no_pairs():
    yield np.zeros(4, np.float32)

def objects():
    yield np.array([object()] * 4), 0

def ragged():
    yield [[1.0], [1.0, 2.0]], 0

def nan():
    yield np.zeros(4, np.float32), 0
    yield np.full(4, np.nan, np.float32), 0

def with_argument(path):
    yield np.zeros(4, np.float32), 0

def leaving():
    raise SystemExit(9)
    yield

number = 5
"""


@pytest.fixture
def generators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of generators in the folder that the command is started in. -> its name."""
    name = f"made_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(GENERATORS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def test_a_generator(cache: Cache, generators: str) -> None:
    found = load(f"{generators}:single", VECTOR, cache, labelled=True)
    assert found.count == 4
    expected = np.repeat(np.arange(4, dtype=np.float32)[:, None], 4, axis=1)
    np.testing.assert_array_equal(everything(found, VECTOR, "vector"), expected)
    assert found.label_array().dtype.kind == "i"
    np.testing.assert_array_equal(found.label_array(), range(4))
    assert load(f"{generators}:single", VECTOR, cache).digest == found.digest


def test_a_generator_of_float_labels(cache: Cache, generators: str) -> None:
    found = load(f"{generators}:scores", VECTOR, cache, labelled=True)
    np.testing.assert_array_equal(found.label_array(), [0, 0.5, 1, 1.5])


def test_a_generator_of_several_inputs(cache: Cache, generators: str) -> None:
    found = load(f"{generators}:pairs", PAIR, cache)
    assert found.labels is None
    assert found.feed(PAIR, [2])["right"].tolist() == [[2, 2, 2]]


def test_a_generator_of_lists(cache: Cache, generators: str) -> None:
    found = load(f"{generators}:lists", VECTOR, cache, labelled=True)
    assert found.feed(VECTOR, [1])["vector"].tolist() == [[1, 2, 3, 5]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("growing", r"sample 1 .*'x' float32\[5\].*sample 0 .*'x' float32\[4\]"),
        ("half_labelled", "label"),
        ("no_first_label", "label"),
        ("mixed_labels", "label"),
        ("failing", "failed with KeyError: 'no such picture'"),
        ("nothing", "yielded no samples"),
        ("no_pairs", r"must yield \(inputs, label\) pairs"),
        ("objects", r"'x' object\[4\]; only numbers"),
        ("ragged", "ragged"),
        ("nan", "sample 1 holds NaN"),
        ("with_argument", "failed with TypeError"),
        ("leaving", "leaving"),
        ("number", "number"),
        ("absent", "cannot import it"),
        ("", ":"),
    ],
)
def test_a_generator_that_is_wrong(cache: Cache, generators: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load(f"{generators}:{name}", VECTOR, cache)
    assert str(caught.value).isprintable()


def test_a_generator_that_leaves_an_input_out(cache: Cache, generators: str) -> None:
    with pytest.raises(UsageError, match="right"):
        load(f"{generators}:half_missing", PAIR, cache)


@pytest.mark.parametrize("text", ["no_such_module_here:f", "a b:f", ":f", "json:no_such", "..x:f"])
def test_a_callable_that_cannot_be_imported(cache: Cache, text: str) -> None:
    with pytest.raises(UsageError, match="cannot import it"):
        load(text, VECTOR, cache)


def test_a_module_that_does_not_compile(cache: Cache, generators: str) -> None:
    Path("broken_module_here.py").write_text("def f(:\n")
    with pytest.raises(UsageError, match="broken_module_here"):
        load("broken_module_here:f", VECTOR, cache)
