"""labels.csv: its rows, its columns, and the images that it names."""

import csv
import difflib
import itertools
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from onmetal.calibration.class_names import LONG_NAME
from onmetal.calibration.image_folder import images_below
from onmetal.errors import UsageError
from onmetal.files.image_files import SUFFIXES
from onmetal.files.reading import FOLLOW, kind, linked, read_bytes

FILE_COLUMNS = [
    *("file", "filename", "file_name", "path", "filepath", "file_path", "image", "image_path"),
    *("image_name", "img", "name"),
]
LABEL_COLUMNS = [
    *("label", "labels", "class", "classes", "class_name", "class_id", "category", "target", "y"),
]
"""Names that the columns of labels.csv may have. A column with the first name is used even if there
are columns with other names of the list."""
DELIMITERS = ",;\t|"
SHAPE = "write two columns, the first line being `file,label`"
MOST_ROWS = 1_500_000
MOST_CELLS = 10_000_000
"""Most cells of labels.csv in all columns together; each takes memory many times its size."""
ROW_LINES = 100
"""Most lines of one row, whose cells may hold line ends between quotation marks."""
ROW_CELLS = 10_000
Row = tuple[int, list[str]]
"""The number of a line, and its cells without the blanks around them."""


def read_rows(table: Path, folder: Path, within: Path | None) -> tuple[list[str] | None, list[Row]]:
    """-> the names of the columns, where the first line holds them, and the rows below."""
    try:
        lines = _lines(read_bytes(table, within=within))
        first = {mark: list(itertools.islice(_parse_rows(lines, mark), 20)) for mark in DELIMITERS}

        def fits(mark: str) -> tuple[int, int]:
            rows = [cells for _, cells in first[mark] if len(cells) > 1]
            rows_with_image = sum(any(_is_image(folder, cell) for cell in cells) for cells in rows)
            return rows_with_image, max((len(cells) for cells in rows), default=0)

        rows = list(_parse_rows(lines, max(DELIMITERS, key=fits)))
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
    """The file's lines. Raises UnicodeDecodeError, and ValueError where there are too many."""
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff") and b"\0" in content
    text = content.decode("utf-16" if wide else "utf-8-sig")
    if text.count("\n") + text.count("\r") - text.count("\r\n") > MOST_ROWS:
        raise ValueError(f"it has more than {MOST_ROWS} lines, the most that are read")
    lines = re.split("\r\n|\r|\n", text)
    if lines[0].lower().startswith("sep="):  # by spreadsheets
        lines[0] = ""
    return lines


def _parse_rows(lines: list[str], delimiter: str) -> Iterator[Row]:
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
    """Whether a cell of labels.csv names an image, be the file present or missing."""
    return Path(cell).suffix.lower() in SUFFIXES or existing_file(folder, cell) is not None


def find_columns(
    table: Path, folder: Path, header: list[str] | None, rows: list[Row], labelled: bool
) -> tuple[int, int]:
    """-> the indices of the columns of files and of labels (equal where no labels are needed)."""
    at_file, at_label = (
        _column_named(header or [], names) for names in (FILE_COLUMNS, LABEL_COLUMNS)
    )
    if at_file is not None and at_label is not None:
        return at_file, at_label
    width = len(header or (rows[0][1] if rows else ()))
    if not width:
        return 0, 1
    if not labelled and (at_file is not None or width == 1):
        return at_file or 0, at_file or 0
    if width == 2:
        first_rows = [cells for _, cells in rows[:20] if len(cells) == 2]
        images = [sum(_is_image(folder, cells[at]) for cells in first_rows) for at in (0, 1)]
        if at_file is None and at_label is None and images[0] != images[1]:
            at_file = int(images[1] > images[0])
        if at_file is not None or at_label is not None:
            at_file = 1 - (at_label or 0) if at_file is None else at_file
            return at_file, 1 - at_file
    column_names = ", ".join(header or rows[0][1])
    raise UsageError(
        f"{table} line 1: which column names the image and which its label is not known "
        f"({column_names[:100]}): {SHAPE}"
    )


def _column_named(header: list[str], names: list[str]) -> int | None:
    """The column whose name is the first of `names`, else the only one whose name is among them."""
    present = [names[0]] if names[0] in header else [name for name in header if name in names]
    return header.index(present[0]) if len(present) == 1 else None


def existing_file(folder: Path, name: str) -> Path | None:
    """The file that a name in the table stands for: the name as written, with the separators of
    Windows, or in another Unicode normalization. None where no such file exists."""
    posix_name = name.replace("\\", "/")
    forms = [
        name,
        posix_name,
        *(unicodedata.normalize(form, posix_name) for form in ("NFC", "NFD")),
    ]
    try:
        for file in (folder / form for form in dict.fromkeys(forms) if form):
            if os.path.lexists(file) and not file.is_dir():
                return file
    except (OSError, ValueError):  # longer than a name may be
        pass
    return None


def file_of_row(where: str, folder: Path, name: str, within: Path | None) -> Path:
    """The file that a name stands for. `where`: where the name stands, for errors.

    Raises UsageError where it is missing, lies outside of the folder or is no regular file."""
    file = existing_file(folder, name)
    posix_name = name.replace("\\", "/")
    shown = name if len(name) <= LONG_NAME else f"{name[:LONG_NAME]}…"
    try:
        unresolved_path = Path(os.path.normpath(folder.absolute() / posix_name))
        inside = Path(os.path.realpath(file or folder / name)).is_relative_to(
            os.path.realpath(folder)
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"{where}: no name of a file ({error})") from None
    linked_out = (
        not inside and file is not None and unresolved_path.is_relative_to(folder.absolute())
    )
    if not inside and not (linked_out and ".." not in Path(posix_name).parts):
        raise UsageError(f"{where}: {shown} lies outside the folder: write paths within it")
    if linked_out and within:
        raise UsageError(
            f"{where}: {shown} is a link that leads out of the folder of data; {FOLLOW}"
        )
    if file is None:
        hint = _similar_name(folder, name, within)
        raise UsageError(
            f"{where}: there is no file {shown}{f' (did you mean {hint}?)' if hint else ''}"
        )
    try:
        mode = file.stat().st_mode
    except OSError as error:
        raise UsageError(
            f"{where}: {shown} is a link that leads nowhere ({error.strerror})"
        ) from None
    if not stat.S_ISREG(mode):
        raise UsageError(f"{where}: {shown} is {kind(mode)}, not a regular file")
    return file


def _similar_name(folder: Path, name: str, within: Path | None) -> str | None:
    """The image in the folder whose name is most similar to one that is not there."""
    by_name = {file.name.lower(): file for file in images_below(folder, within)[0]}
    by_name |= {file.stem.lower(): file for file in by_name.values()}
    base = name.replace("\\", "/").rpartition("/")[2].lower()[:LONG_NAME]
    matches = difflib.get_close_matches(base, by_name, 1)
    return str(by_name[matches[0]].relative_to(folder)) if matches else None
