"""The labels of a folder of images: labels.csv, or one sub-folder a class; names become scores."""

import csv
import difflib
import itertools
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from onmetal.errors import UsageError
from onmetal.files.image_files import SUFFIXES
from onmetal.files.preprocessing import quoted
from onmetal.files.reading import FOLLOW, kind, linked, read_bytes

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
MOST_ROWS = 1_500_000
MOST_CELLS = 10_000_000
"""Of labels.csv, all columns together; each cell takes memory many times its size."""
LONG_NAME = 255
"""Of what is compared with other names: that takes the product of their lengths."""
ROW_LINES = 100
"""Of one row, whose cells may hold line ends between quotation marks."""
ROW_CELLS = 10_000


class Listing(Struct, frozen=True):
    """The images of a folder, with a label each where they are labelled."""

    files: tuple[Path, ...]
    labels: np.ndarray | None
    """int64 class numbers, or float32 where any is not whole."""
    classes: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()


def listing(
    folder: Path,
    classes: tuple[str, ...] | None,
    scores: int | None,
    *,
    labelled: bool,
    within: Path | None = None,
) -> Listing:
    """What a folder of images holds. `classes`: as data.toml names them; `scores`: how many the
    model gives for a sample, None where it gives something else; `within`: the folder, resolved,
    out of which no link may lead, None where links may lead anywhere.

    Raises UsageError where a label is missing, where which score a name means is not known, and
    where there is something in the folder that is no file to read or lies outside of it.
    """
    if labelled:
        _check_classes(folder, classes, scores)
    if os.path.lexists(folder / "labels.csv"):
        return _of_table(folder, classes, scores, labelled, within)
    if labelled:
        return _of_folders(folder, classes, scores, within)
    return _unlabelled(folder, classes, within)


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


class Entry(NamedTuple):
    """What lies in a folder, looked at but not opened."""

    path: Path
    folder: bool
    identity: tuple[int, int]
    """Device and number: the same by whichever links it is reached."""


def _entries(folder: Path, within: Path | None) -> list[Entry]:
    """The files and folders in a folder itself, sorted by name, without hidden files and what
    systems leave behind. Raises UsageError at what is to be read and must not be."""
    try:
        paths = sorted(path for path in folder.iterdir() if not _is_junk(path.name))
    except OSError as error:
        raise UsageError(f"{folder}: cannot read this folder ({error.strerror})") from None
    return [_entry(path, within) for path in paths]


def _entry(path: Path, within: Path | None) -> Entry:
    try:
        link = stat.S_ISLNK(path.lstat().st_mode)
        place = path.stat()
    except FileNotFoundError:
        raise UsageError(f"{path}: it is a link to what is not there; remove it") from None
    except OSError as error:  # links in a circle, among others
        raise UsageError(f"{path}: cannot look at it ({error.strerror})") from None
    is_folder = stat.S_ISDIR(place.st_mode)
    if not is_folder and not stat.S_ISREG(place.st_mode):
        raise UsageError(
            f"{path}: it is {kind(place.st_mode)}, where only files and folders may be; remove it"
        )
    read = is_folder or path.name in OURS or path.suffix.lower() in SUFFIXES
    if link and read and within and not Path(os.path.realpath(path)).is_relative_to(within):
        raise UsageError(f"{path}: it is a link that leads out of the folder of data; {FOLLOW}")
    return Entry(path, is_folder, (place.st_dev, place.st_ino))


def _inside(folder: Path, within: Path | None) -> tuple[list[Path], list[Path], list[Path]]:
    """-> the images, other files and sub-folders that lie in a folder itself, sorted by name."""
    entries = _entries(folder, within)
    images, others = _kinds(entries)
    return images, others, [entry.path for entry in entries if entry.folder]


def _kinds(entries: Iterable[Entry]) -> tuple[list[Path], list[Path]]:
    """-> the images and the other files."""
    files = [e.path for e in entries if not e.folder and e.path.name not in OURS]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    return images, [file for file in files if file.suffix.lower() not in SUFFIXES]


def _below(folder: Path, within: Path | None) -> tuple[list[Path], list[Path]]:
    """-> the images and the other files in a folder and all below it, sorted by path.

    Links to folders are followed; one that leads to what is read already, as a circle does, is
    refused.
    """
    place = folder.stat()
    known = {(place.st_dev, place.st_ino): folder}
    images: list[Path] = []
    others: list[Path] = []
    waiting = [folder]
    while waiting:
        entries = _entries(waiting.pop(), within)
        of_images, rest = _kinds(entries)
        images += of_images
        others += rest
        folders = [entry for entry in entries if entry.folder]
        for entry in folders:
            same = known.setdefault(entry.identity, entry.path)
            if same is not entry.path:
                raise UsageError(
                    f"{entry.path}: it is the same folder as {same}, by a link, and would be read "
                    "twice; remove the link"
                )
        waiting += [entry.path for entry in reversed(folders)]
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


def _unlabelled(folder: Path, classes: tuple[str, ...] | None, within: Path | None) -> Listing:
    """Images alone: those in the folder itself or, where there are none, in its sub-folders."""
    images, others, folders = _inside(folder, within)
    if not images:
        images, others = _below(folder, within)
        return Listing(tuple(images), None, classes, tuple(_left_out(folder, others)))
    said = _left_out(folder, others)
    if deeper := sum(len(_below(entry, within)[0]) for entry in folders):
        said.append(
            f"{folder}: the {_count(len(images), 'image')} in the folder itself "
            f"{'is' if len(images) == 1 else 'are'} taken, and {deeper} in its sub-folders left out"
        )
    return Listing(tuple(images), None, classes, tuple(said))


def _of_folders(
    folder: Path, classes: tuple[str, ...] | None, scores: int | None, within: Path | None
) -> Listing:
    """One sub-folder a class."""
    loose, others, folders = _inside(folder, within)
    below = {entry.name: _below(entry, within) for entry in folders}
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
    folder: Path,
    classes: tuple[str, ...] | None,
    scores: int | None,
    labelled: bool,
    within: Path | None,
) -> Listing:
    table = folder / "labels.csv"
    header, rows = _rows(table, folder, within)
    at_file, at_label = _columns(table, folder, header, rows, labelled)
    files: dict[Path, tuple[int, str]] = {}
    listed: list[Path] = []
    for line, cells in rows:
        if max(at_file, at_label) >= len(cells) or not cells[at_file]:
            raise UsageError(f"{table} line {line}: wants the two columns file,label")
        file = _file_at(table, line, folder, cells[at_file], within)
        label = cells[at_label]
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
    unlisted = [file for file in _below(folder, within)[0] if file.resolve() not in resolved]
    if unlisted and listed:
        said.append(
            f"{table}: {_count(len(unlisted), 'image')} of the folder not listed in it, left out "
            f"({unlisted[0].relative_to(folder)}{' among them' if len(unlisted) > 1 else ''})"
        )
    return Listing(tuple(listed), labels, classes, tuple(said))


Row = tuple[int, list[str]]
"""The number of a line, and its cells without the blanks around them."""


def _rows(table: Path, folder: Path, within: Path | None) -> tuple[list[str] | None, list[Row]]:
    """-> the names of the columns, where the first line holds them, and the rows below."""
    try:
        lines = _lines(read_bytes(table, within=within))
        first = {mark: list(itertools.islice(_parsed(lines, mark), 20)) for mark in DELIMITERS}

        def fits(mark: str) -> tuple[int, int]:
            rows = [cells for _, cells in first[mark] if len(cells) > 1]
            named = sum(any(_is_image(folder, cell) for cell in cells) for cells in rows)
            return named, max((len(cells) for cells in rows), default=0)

        rows = list(_parsed(lines, max(DELIMITERS, key=fits)))
    except FileNotFoundError:
        raise UsageError(f"{table}: it is a link to what is not there") from None
    except OSError as error:
        raise UsageError(f"{table}: cannot read it ({error.strerror}){linked(error)}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{table}: cannot read it: {error}; save it as UTF-8") from None
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{table}: cannot read it: {error}") from None
    if not rows or any(_is_image(folder, cell) for cell in rows[0][1]):
        return None, rows
    return [cell.lower().strip("# ") for cell in rows[0][1]], rows[1:]


def _lines(content: bytes) -> list[str]:
    """Raises UnicodeDecodeError, and ValueError where there are too many."""
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff") and b"\0" in content
    text = content.decode("utf-16" if wide else "utf-8-sig")
    if text.count("\n") + text.count("\r") - text.count("\r\n") > MOST_ROWS:
        raise ValueError(f"it has more than {MOST_ROWS} lines, the most that are read")
    lines = re.split("\r\n|\r|\n", text)
    if lines[0].lower().startswith("sep="):  # by spreadsheets
        lines[0] = ""
    return lines


def _parsed(lines: list[str], delimiter: str) -> Iterator[Row]:
    """The rows that are not empty. Raises ValueError where they are too many or too long."""
    begun = 0

    def counted() -> Iterator[str]:
        for number, line in enumerate(lines, 1):
            if line.count(delimiter) > ROW_CELLS or number - begun > ROW_LINES:
                raise ValueError(
                    f"its row in line {begun + 1} has more than {ROW_CELLS} columns or "
                    f"{ROW_LINES} lines"
                )
            yield line

    cells_in_all = 0
    reader = csv.reader(counted(), delimiter=delimiter, skipinitialspace=True)
    for row in reader:
        begun = reader.line_num
        cells = [cell.strip() for cell in row]
        if any(cells):
            cells_in_all += len(cells)
            if cells_in_all > MOST_CELLS:
                raise ValueError(
                    f"it has more than {MOST_CELLS} cells, the most that are read; leave out other "
                    "columns than file and label"
                )
            yield reader.line_num, cells


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
    """What a name means: as it is written, with the separators of Windows, or with its letters and
    accents put together in another way."""
    plain = name.replace("\\", "/")
    forms = [name, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    try:
        for file in (folder / form for form in dict.fromkeys(forms) if form):
            if os.path.lexists(file) and not file.is_dir():
                return file
    except (OSError, ValueError):  # longer than a name may be
        pass
    return None


def _file_at(table: Path, line: int, folder: Path, name: str, within: Path | None) -> Path:
    file = _present(folder, name)
    plain = name.replace("\\", "/")
    shown = name if len(name) <= LONG_NAME else f"{name[:LONG_NAME]}…"
    try:
        written = Path(os.path.normpath(folder.absolute() / plain))
        inside = Path(os.path.realpath(file or folder / name)).is_relative_to(
            os.path.realpath(folder)
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{table} line {line}: no name of a file ({error})") from None
    linked_out = not inside and file is not None and written.is_relative_to(folder.absolute())
    if not inside and not (linked_out and ".." not in Path(plain).parts):
        raise UsageError(
            f"{table} line {line}: {shown} lies outside the folder: write paths within it"
        )
    if linked_out and within:
        raise UsageError(
            f"{table} line {line}: {shown} is a link that leads out of the folder of data; {FOLLOW}"
        )
    if file is None:
        hint = _like(folder, name, within)
        raise UsageError(
            f"{table} line {line}: there is no file {shown}"
            f"{f' (did you mean {hint}?)' if hint else ''}"
        )
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise UsageError(
            f"{table} line {line}: {shown} is a link that leads nowhere ({error.strerror})"
        ) from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{table} line {line}: {shown} is {kind(mode)}, not a regular file")
    return file


def _like(folder: Path, name: str, within: Path | None) -> str | None:
    """The image in the folder whose name is most like one that is not there."""
    known = {file.name.lower(): file for file in _below(folder, within)[0]}
    known |= {file.stem.lower(): file for file in known.values()}
    base = name.replace("\\", "/").rpartition("/")[2].lower()[:LONG_NAME]
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
        known = set(classes)
        strange = [name for name in used if name not in known]
        if not strange:
            at = {name: number for number, name in enumerate(classes)}
            return np.array([at[name] for name in names], np.int64), classes, []
        if folders or len(strange) < len(used) or len(numeric) < len(used):
            name = strange[0]
            like = difflib.get_close_matches(name[:LONG_NAME], classes, 1)
            raise UsageError(
                f"{source}: {name!r} ({used[name]}) is not among the classes of data.toml"
                f"{f' (did you mean {like[0]!r}?)' if like else ''}: {quoted(classes)}"
            )
        return _as_numbers(names), classes, []
    if not folders and all(NUMBER.fullmatch(n) or NO_NUMBER.fullmatch(n) for n in used):
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
        other = next(name for name in used if not NUMBER.fullmatch(name))
        return (
            f"labels are numbers ({numeric[0]}, {used[numeric[0]]}) and names ({other!r}, "
            f"{used[other]}) mixed"
        )
    if all(COMMA.fullmatch(name) for name in kinds):
        return f"the labels are written with decimal commas ({kinds[0]}): write them with points"
    folded = Counter(name.casefold() for name in kinds)
    if len(folded) < len(kinds):
        low = next(name for name, times in folded.items() if times > 1)
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
