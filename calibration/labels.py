"""The labels of a folder of images: labels.csv, or one sub-folder a class; names become scores."""

import csv
import difflib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from onmetal.calibration.images import SUFFIXES, quoted
from onmetal.errors import UsageError

JUNK = {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"}
JUNK |= {"thumbs.db", "desktop.ini", "__pycache__"}
PARTS = {"train", "training", "val", "valid", "validation", "eval", "test", "testing", "calib"}
"""What the parts of a data set are called, not classes."""
OURS = ("data.toml", "labels.csv")

FILE = ["file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path"]
FILE += ["image_name", "img", "name"]
LABEL = ["label", "labels", "class", "classes", "class_name", "class_id", "category", "target", "y"]
"""What the columns of labels.csv may be called; the first is certain beside any other."""
DELIMITERS = ",;\t|"
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
COMMA = re.compile(r"[+-]?\d+,\d+")
NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
SHAPE = "write two columns, the first line being `file,label`"


class Listing(Struct, frozen=True):
    """The images of a folder, with a label each where they are labelled."""

    files: tuple[Path, ...]
    labels: np.ndarray | None
    """int64 class numbers, or float32 where any is not whole."""
    classes: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()


def listing(
    folder: Path, classes: tuple[str, ...] | None, scores: int | None, *, labelled: bool
) -> Listing:
    """What a folder of images holds. `classes`: as data.toml names them; `scores`: how many the
    model gives for a sample, None where it gives something else.

    Raises UsageError where a label is missing, or which score a name means is not known.
    """
    if labelled:
        _check_classes(folder, classes, scores)
    if (folder / "labels.csv").exists():
        return _of_table(folder, classes, scores, labelled)
    return _of_folders(folder, classes, scores) if labelled else _unlabelled(folder, classes)


def _check_classes(folder: Path, classes: tuple[str, ...] | None, scores: int | None) -> None:
    named = 2 if scores == 1 else scores  # one score tells two classes apart
    if classes is not None and named is not None and len(classes) != named:
        raise UsageError(
            f"{folder / 'data.toml'}: classes holds {len(classes)} names, and the model gives "
            f"{scores} score{'' if scores == 1 else 's'}: it must name every score, in order"
        )


# --- folders


def _is_junk(name: str) -> bool:
    return name.startswith((".", "~$")) or name.lower() in JUNK


def _inside(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """-> the images, other files and sub-folders that lie in a folder itself, sorted by name."""
    entries = sorted((e for e in folder.iterdir() if not _is_junk(e.name)), key=lambda e: e.name)
    files = [entry for entry in entries if entry.is_file() and entry.name not in OURS]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    others = [file for file in files if file.suffix.lower() not in SUFFIXES]
    return images, others, [entry for entry in entries if entry.is_dir()]


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """-> the images and the other files in a folder and all below it, sorted by path."""
    images: list[Path] = []
    others: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _is_junk(name))
        for file in (Path(place) / name for name in sorted(names) if not _is_junk(name)):
            if file.is_file() and file.name not in OURS:
                (images if file.suffix.lower() in SUFFIXES else others).append(file)
    return images, others


def _left_out(folder: Path, others: Sequence[Path]) -> list[str]:
    if not others:
        return []
    return [
        f"{folder}: {_count(len(others), 'file')} of a kind that is not read as an image, left "
        f"out ({others[0].relative_to(folder)}{' among them' if len(others) > 1 else ''})"
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _unlabelled(folder: Path, classes: tuple[str, ...] | None) -> Listing:
    """Images alone: those in the folder itself or, where there are none, in its sub-folders."""
    images, others, folders = _inside(folder)
    if not images:
        images, others = _below(folder)
        return Listing(tuple(images), None, classes, tuple(_left_out(folder, others)))
    said = _left_out(folder, others)
    if deeper := sum(len(_below(entry)[0]) for entry in folders):
        said.append(
            f"{folder}: the {_count(len(images), 'image')} in the folder itself "
            f"{'is' if len(images) == 1 else 'are'} taken, and {deeper} in its sub-folders left out"
        )
    return Listing(tuple(images), None, classes, tuple(said))


def _of_folders(folder: Path, classes: tuple[str, ...] | None, scores: int | None) -> Listing:
    """One sub-folder a class."""
    loose, others, folders = _inside(folder)
    below = {entry.name: _below(entry) for entry in folders}
    images = {name: listed[0] for name, listed in below.items() if listed[0]}
    if not images:
        raise UsageError(
            f"{folder}: there is no labels.csv (two columns: file,label) and no sub-folder a class"
        )
    _check_depth(folder, images, classes)
    empty = [name for name in below if name not in images]
    if empty and classes is None:
        raise UsageError(
            f"{folder}: there is no image in the sub-folder {empty[0]!r}; if it is a class, write "
            f"the names of all in data.toml, in the order of the model's scores: classes = "
            f"{quoted(sorted(below))}; else remove it"
        )
    names = [name for name, files in images.items() for _ in files]
    places = [f"the sub-folder {name}" for name in names]
    numbers, known, said = _numbered(folder, names, places, classes, scores, folders=True)
    if loose:
        said.append(
            f"{folder}: {_count(len(loose), 'image')} in no sub-folder of a class, left out "
            f"({loose[0].name})"
        )
    said += _left_out(folder, [*others, *(file for _, rest in below.values() for file in rest)])
    files = tuple(file for of_class in images.values() for file in of_class)
    return Listing(files, numbers, known, tuple(said))


def _check_depth(
    folder: Path, images: dict[str, list[Path]], classes: tuple[str, ...] | None
) -> None:
    """Refuse a data set of several parts, whose sub-folders are no classes."""
    deep = all(
        len(file.relative_to(folder).parts) > 2 for files in images.values() for file in files
    )
    named = classes is not None and set(images) <= set(classes)
    if (deep or {name.lower() for name in images} <= PARTS) and not named:
        name = next(iter(images))
        raise UsageError(
            f"{folder}: its sub-folders ({', '.join(list(images)[:4])}) look like the parts of a "
            f"data set, not like classes: give the folder that holds a sub-folder for each class, "
            f"such as {folder / name}, or a labels.csv"
        )


# --- labels.csv


def _of_table(
    folder: Path, classes: tuple[str, ...] | None, scores: int | None, labelled: bool
) -> Listing:
    table = folder / "labels.csv"
    header, rows = _rows(table, folder)
    at_file, at_label = _columns(table, folder, header, rows, labelled)
    files: dict[Path, tuple[int, str]] = {}
    listed: list[Path] = []
    for line, cells in rows:
        if max(at_file, at_label) >= len(cells) or not cells[at_file]:
            raise UsageError(f"{table} line {line}: wants the two columns file,label")
        file, label = _file_at(table, line, folder, cells[at_file]), cells[at_label]
        if labelled and not label:
            raise UsageError(f"{table} line {line}: the label of {cells[at_file]} is empty")
        first = files.setdefault(file, (line, label))
        if labelled and first[1] != label:
            raise UsageError(
                f"{table} line {line}: {cells[at_file]} has the label {label!r} here and "
                f"{first[1]!r} in line {first[0]}: one label an image"
            )
        listed.append(file)
    labels: np.ndarray | None = None
    said: list[str] = []
    if labelled:
        names = [cells[at_label] for _, cells in rows]
        places = [f"line {line}" for line, _ in rows]
        labels, classes, said = _numbered(table, names, places, classes, scores)
    resolved = {file.resolve() for file in listed}
    unlisted = [file for file in _below(folder)[0] if file.resolve() not in resolved]
    if unlisted and listed:
        said.append(
            f"{table}: {_count(len(unlisted), 'image')} of the folder not listed in it, left out "
            f"({unlisted[0].relative_to(folder)}{' among them' if len(unlisted) > 1 else ''})"
        )
    return Listing(tuple(listed), labels, classes, tuple(said))


Row = tuple[int, list[str]]
"""The number of a line, and its cells without the blanks around them."""


def _rows(table: Path, folder: Path) -> tuple[list[str] | None, list[Row]]:
    """-> the names of the columns, where the first line holds them, and the rows below."""
    try:
        content = table.read_bytes()
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff") and b"\0" in content
        text = content.decode("utf-16" if wide else "utf-8-sig")
        lines = re.split("\r\n|\r|\n", text)
        if lines[0].lower().startswith("sep="):  # by spreadsheets
            lines[0] = ""
        parsed = {mark: _parse(lines, mark) for mark in DELIMITERS}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{table}: cannot read it: {error}; save it as UTF-8") from None

    def fits(mark: str) -> tuple[int, int]:
        rows = [cells for _, cells in parsed[mark][:20] if len(cells) > 1]
        named = sum(any(_is_image(folder, cell) for cell in cells) for cells in rows)
        return named, max((len(cells) for cells in rows), default=0)

    rows = parsed[max(DELIMITERS, key=fits)]
    if not rows or any(_is_image(folder, cell) for cell in rows[0][1]):
        return None, rows
    return [cell.lower().strip("# ") for cell in rows[0][1]], rows[1:]


def _parse(lines: list[str], delimiter: str) -> list[Row]:
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    return [(line, cells) for line, cells in rows if any(cells)]


def _is_image(folder: Path, cell: str) -> bool:
    """Whether a cell of labels.csv names an image, there or not."""
    return Path(cell).suffix.lower() in SUFFIXES or _present(folder, cell) is not None


def _columns(
    table: Path, folder: Path, header: list[str] | None, rows: list[Row], labelled: bool
) -> tuple[int, int]:
    """-> which column names the file, and which the label (the same where none is needed)."""
    at_file, at_label = (_named(header or [], names) for names in (FILE, LABEL))
    if at_file is not None and at_label is not None:
        return at_file, at_label
    width = len(header or (rows[0][1] if rows else ()))
    if not width:
        return 0, 1
    if not labelled and (at_file is not None or width == 1):
        return at_file or 0, at_file or 0
    if width == 2:
        some = [cells for _, cells in rows[:20] if len(cells) == 2]
        images = [sum(_is_image(folder, cells[at]) for cells in some) for at in (0, 1)]
        if at_file is None and at_label is None and images[0] != images[1]:
            at_file = int(images[1] > images[0])
        if at_file is not None or at_label is not None:
            at_file = 1 - (at_label or 0) if at_file is None else at_file
            return at_file, 1 - at_file
    said = ", ".join(header or rows[0][1])
    raise UsageError(
        f"{table} line 1: which column names the image and which its label is not known "
        f"({said[:100]}): {SHAPE}"
    )


def _named(header: list[str], names: list[str]) -> int | None:
    """The column called by the first of `names`, else the only one called by any of them."""
    known = [names[0]] if names[0] in header else [name for name in header if name in names]
    return header.index(known[0]) if len(known) == 1 else None


def _present(folder: Path, name: str) -> Path | None:
    """The file that a name means: as it is written, with the separators of Windows, or with its
    letters and accents put together in another way."""
    plain = name.replace("\\", "/")
    forms = [name, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    try:
        return next(
            (folder / n for n in dict.fromkeys(forms) if n and (folder / n).is_file()), None
        )
    except (OSError, ValueError):  # longer than a name may be
        return None


def _file_at(table: Path, line: int, folder: Path, name: str) -> Path:
    file = _present(folder, name)
    try:
        inside = (file or folder / name).resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError) as error:
        raise UsageError(f"{table} line {line}: no name of a file ({error})") from None
    if not inside:
        raise UsageError(
            f"{table} line {line}: {name} lies outside the folder: write paths within it"
        )
    if file is None:
        hint = _like(folder, name)
        raise UsageError(
            f"{table} line {line}: there is no file {name}"
            f"{f' (did you mean {hint}?)' if hint else ''}"
        )
    return file


def _like(folder: Path, name: str) -> str | None:
    """The image in the folder whose name is most like one that is not there."""
    known = {file.name.lower(): file for file in _below(folder)[0]}
    known |= {file.stem.lower(): file for file in known.values()}
    base = name.replace("\\", "/").rpartition("/")[2].lower()
    like = difflib.get_close_matches(base, known, 1)
    return str(known[like[0]].relative_to(folder)) if like else None


# --- names and numbers


def _numbered(
    source: Path,
    names: list[str],
    places: list[str],
    classes: tuple[str, ...] | None,
    scores: int | None,
    *,
    folders: bool = False,
) -> tuple[np.ndarray, tuple[str, ...] | None, list[str]]:
    """-> the labels as numbers, what the scores are called, and what is to be said of that.

    `places`: where each name stands, in words. Folders have names, in a table numbers are class
    numbers or what is to be predicted, unless data.toml lists them as names.
    """
    used: dict[str, str] = {}  # name -> where it stands first
    for name, place in zip(names, places, strict=True):
        used.setdefault(name, place)
    numeric = [name for name in used if NUMBER.fullmatch(name)]
    if classes is not None:
        strange = [name for name in used if name not in classes]
        if not strange:
            at = {name: number for number, name in enumerate(classes)}
            return np.array([at[name] for name in names], np.int64), classes, []
        if folders or len(strange) < len(used) or len(numeric) < len(used):
            name = strange[0]
            like = difflib.get_close_matches(name, classes, 1)
            raise UsageError(
                f"{source}: {name!r} ({used[name]}) is not among the classes of data.toml"
                f"{f' (did you mean {like[0]!r}?)' if like else ''}: {quoted(classes)}"
            )
        return _as_numbers(names), classes, []
    if not folders and all(n in numeric or NO_NUMBER.fullmatch(n) for n in used):
        return _as_numbers(names), None, []
    kinds = tuple(sorted(used))
    if why := _doubtful(kinds, numeric, used, scores):
        order = sorted(kinds, key=float) if len(numeric) == len(kinds) else list(kinds)
        raise UsageError(
            f"{source}: {why}. Write the names in data.toml, in the order of the model's scores, "
            f"such as: classes = {quoted(order)}"
        )
    at = {name: number for number, name in enumerate(kinds)}
    said = (
        f"{source}: the {len(kinds)} class names stand for the model's scores in sorted order "
        f"(0 is {kinds[0]!r}, {len(kinds) - 1} is {kinds[-1]!r}); `classes` in data.toml says so "
        "where training had another"
    )
    return np.array([at[name] for name in names], np.int64), kinds, [said]


def _doubtful(
    kinds: tuple[str, ...], numeric: list[str], used: dict[str, str], scores: int | None
) -> str | None:
    """Why sorted names may not be the model's scores."""
    if numeric and len(numeric) < len(kinds):
        other = next(name for name in used if name not in numeric)
        return (
            f"labels are numbers ({numeric[0]}, {used[numeric[0]]}) and names ({other!r}, "
            f"{used[other]}) mixed"
        )
    if all(COMMA.fullmatch(name) for name in kinds):
        return f"the labels are written with decimal commas ({kinds[0]}): write them with points"
    folded = [name.casefold() for name in kinds]
    if len(set(folded)) < len(kinds):
        low = next(name for name in folded if folded.count(name) > 1)
        same = [name for name in kinds if name.casefold() == low]
        return f"the class names {same[0]!r} and {same[1]!r} differ in upper case only"
    if numeric:
        values = [float(name) for name in kinds]
        if values != sorted(set(values)):
            by_value = sorted(kinds, key=float)
            return (
                f"the class names are numbers, whose order by value ({', '.join(by_value[:3])} …) "
                f"and by letters ({', '.join(kinds[:3])} …) differ"
            )
    if scores != len(kinds):
        gives = "no score per class" if scores is None else f"{_count(scores, 'score')}"
        return (
            f"{_count(len(kinds), 'class name')} ({', '.join(kinds[:4])}"
            f"{' …' if len(kinds) > 4 else ''}), and the model gives {gives}: which name is which "
            "cannot be known"
        )
    return None


def _as_numbers(names: list[str]) -> np.ndarray:
    values = np.array([float(name) for name in names])
    whole = bool((np.abs(values) < 2**53).all() and (values == np.round(values)).all())
    return values.astype(np.int64 if whole else np.float32)
