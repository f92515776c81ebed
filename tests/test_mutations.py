"""The first of the damaged files; `python -m tests.mutations` tries ten thousand and more."""

import random

from tests.mutations import IN_A_CHILD, findings, mutated, results, seeds

FILES = 300


def test_three_hundred_damaged_files_are_read_or_refused_with_a_reason() -> None:
    outcomes = list(results(0, FILES, 0))
    assert [entry["number"] for entry in outcomes] == list(range(FILES))
    assert findings(outcomes) == []
    kinds = {kind for kind, _ in seeds()}
    assert {entry["kind"] for entry in outcomes} == kinds
    assert all(entry["said"] for entry in outcomes if entry["outcome"].startswith("refused"))
    read = sum(entry["outcome"] == "read" for entry in outcomes)
    assert read > FILES // 20, "what leaves nothing standing tries little"
    assert read < FILES * 2 // 3, "what leaves all standing tries little"


def test_what_is_found_is_told() -> None:
    """A defect, a long time, much memory; a model that ends the process that reads it is none."""
    fine = {"number": 0, "kind": "png", "outcome": "read", "said": "", "s": 1.0, "peak_bytes": 1}
    bad = [
        fine | {"outcome": "defect"},
        fine | {"s": 61.0},
        fine | {"peak_bytes": 3 << 30},
        fine | {"outcome": "defect", "s": None, "peak_bytes": None},
    ]
    survived = fine | {"kind": IN_A_CHILD[0], "outcome": "the child died", "s": None}
    assert findings([fine, *bad, survived | {"peak_bytes": None}]) == bad


def test_a_seed_gives_the_same_damage_everywhere() -> None:
    honest = [data for _, data in seeds()]
    once, again = (
        [mutated(data, random.Random(f"7/{n}"), honest) for n, data in enumerate(honest)]
        for _ in range(2)
    )
    assert once == again
    assert sum(one != other for one, other in zip(once, honest, strict=True)) > len(honest) * 0.8
