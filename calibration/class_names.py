"""Labels as numbers: the classes that names stand for, and numbers written as text."""

import difflib
import re
from collections import Counter
from pathlib import Path

import numpy as np

from onmetal.errors import UsageError
from onmetal.files.preprocessing import quoted

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
LONG_NAME = 255
"""Most characters of a name that is compared with others: the time of a comparison grows with the
product of the lengths."""


def count_of(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def number_labels(
    source: Path,
    names: list[str],
    places: list[str],
    classes: tuple[str, ...] | None,
    scores: int | None,
    *,
    folders: bool = False,
) -> tuple[np.ndarray, tuple[str, ...] | None, list[str]]:
    """-> the labels as numbers, the names of the scores, and warnings about these.

    `places`: where each name stands, in words. The names of folders are class names. Numbers in a
    table are class numbers or values to be predicted, unless data.toml lists them as class names.
    """
    used: dict[str, str] = {}  # name -> where it stands first
    for name, place in zip(names, places, strict=True):
        used.setdefault(name, place)
    numeric = [name for name in used if _NUMBER.fullmatch(name)]
    if classes is not None:
        class_names = set(classes)
        unknown = [name for name in used if name not in class_names]
        if not unknown:
            number_of = {name: number for number, name in enumerate(classes)}
            return np.array([number_of[name] for name in names], np.int64), classes, []
        if folders or len(unknown) < len(used) or len(numeric) < len(used):
            name = unknown[0]
            similar = difflib.get_close_matches(name[:LONG_NAME], classes, 1)
            raise UsageError(
                f"{source}: {name!r} ({used[name]}) is not among the classes of data.toml"
                f"{f' (did you mean {similar[0]!r}?)' if similar else ''}: {quoted(classes)}"
            )
        return _parse_numbers(names), classes, []
    if not folders and all(_NUMBER.fullmatch(n) or _NOT_FINITE.fullmatch(n) for n in used):
        return _parse_numbers(names), None, []
    ordered = tuple(sorted(used))
    if reason := _reason_to_ask(ordered, numeric, used, scores):
        order = sorted(ordered, key=float) if len(numeric) == len(ordered) else list(ordered)
        raise UsageError(
            f"{source}: {reason}. Write the names in data.toml, in the order of the model's "
            f"scores, such as: classes = {quoted(order)}"
        )
    number_of = {name: number for number, name in enumerate(ordered)}
    warning = (
        f"{source}: the {len(ordered)} class names stand for the model's scores in sorted order "
        f"(0 is {ordered[0]!r}, {len(ordered) - 1} is {ordered[-1]!r}); `classes` in data.toml "
        "says so where training had another"
    )
    return np.array([number_of[name] for name in names], np.int64), ordered, [warning]


def _reason_to_ask(
    names: tuple[str, ...], numeric: list[str], used: dict[str, str], scores: int | None
) -> str | None:
    """Why the model's scores may be in another order than the sorted class names, so that the user
    must say it; None where there is no sign of that."""
    if numeric and len(numeric) < len(names):
        word = next(name for name in used if not _NUMBER.fullmatch(name))
        return (
            f"labels are numbers ({numeric[0]}, {used[numeric[0]]}) and names ({word!r}, "
            f"{used[word]}) mixed"
        )
    if all(_DECIMAL_COMMA.fullmatch(name) for name in names):
        return f"the labels are written with decimal commas ({names[0]}): write them with points"
    folded = Counter(name.casefold() for name in names)
    if len(folded) < len(names):
        folded_name = next(name for name, times in folded.items() if times > 1)
        alike = [name for name in names if name.casefold() == folded_name]
        return f"the class names {alike[0]!r} and {alike[1]!r} differ in upper case only"
    if numeric:
        values = [float(name) for name in names]
        if values != sorted(set(values)):
            by_value = sorted(names, key=float)
            return (
                f"the class names are numbers, whose order by value ({', '.join(by_value[:3])} …) "
                f"and by letters ({', '.join(names[:3])} …) differ"
            )
    if scores != len(names):
        score_count = "no score per class" if scores is None else f"{count_of(scores, 'score')}"
        return (
            f"{count_of(len(names), 'class name')} ({', '.join(names[:4])}"
            f"{' …' if len(names) > 4 else ''}), and the model gives {score_count}: which name is "
            "which cannot be known"
        )
    return None


def _parse_numbers(names: list[str]) -> np.ndarray:
    values = np.array([float(name) for name in names])
    whole = bool((np.abs(values) < 2**53).all() and (values == np.round(values)).all())
    return values.astype(np.int64 if whole else np.float32)
