"""The labels of a folder of images: labels.csv, or one sub-folder a class; names become scores."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from onmetal.calibration.class_names import count_of, number_labels
from onmetal.calibration.image_folder import images_below, images_inside
from onmetal.calibration.label_table import file_of_row, find_columns, read_rows
from onmetal.errors import UsageError
from onmetal.files.preprocessing import quoted

PARTS = {"train", "training", "val", "valid", "validation", "eval", "test", "testing", "calib"}
"""Names of the parts of data sets, which are no classes."""


class Listing(Struct, frozen=True):
    """The images of a folder, with a label each where they are labelled."""

    files: tuple[Path, ...]
    labels: np.ndarray | None
    """int64 class numbers, or float32 where any is not whole; of a COCO file boxes."""
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
    """The images and labels of a folder. `classes`: as data.toml names them; `scores`: how many
    scores the model has for a sample, None where its output is something else; `within`: the
    resolved folder that no link may lead out of, None where links may lead anywhere.

    Raises UsageError where a label is missing, where it is not known which score a class name
    stands for, and where the folder holds something that is not a readable file or a link that
    leads out of it.
    """
    if labelled:
        _check_classes(folder, classes, scores)
    if os.path.lexists(folder / "labels.csv"):
        return _from_table(folder, classes, scores, labelled, within)
    if labelled:
        return _from_folders(folder, classes, scores, within)
    return _unlabelled(folder, classes, within)


def _check_classes(folder: Path, classes: tuple[str, ...] | None, scores: int | None) -> None:
    class_count = 2 if scores == 1 else scores  # one score tells two classes apart
    if classes is not None and class_count is not None and len(classes) != class_count:
        raise UsageError(
            f"{folder / 'data.toml'}: classes holds {len(classes)} names, and the model gives "
            f"{scores} score{'' if scores == 1 else 's'}: it must name every score, in order"
        )


def _left_out(folder: Path, files: Sequence[Path]) -> list[str]:
    if not files:
        return []
    return [
        f"{folder}: {count_of(len(files), 'file')} of a kind that is not read as an image, left "
        f"out ({files[0].relative_to(folder)}{' among them' if len(files) > 1 else ''})"
    ]


def _unlabelled(folder: Path, classes: tuple[str, ...] | None, within: Path | None) -> Listing:
    """Images alone: those in the folder itself or, where there are none, in its sub-folders."""
    images, other_files, folders = images_inside(folder, within)
    if not images:
        images, other_files = images_below(folder, within)
        return Listing(tuple(images), None, classes, tuple(_left_out(folder, other_files)))
    warnings = _left_out(folder, other_files)
    if deeper := sum(len(images_below(entry, within)[0]) for entry in folders):
        warnings.append(
            f"{folder}: the {count_of(len(images), 'image')} in the folder itself "
            f"{'is' if len(images) == 1 else 'are'} taken, and {deeper} in its sub-folders left out"
        )
    return Listing(tuple(images), None, classes, tuple(warnings))


def _from_folders(
    folder: Path, classes: tuple[str, ...] | None, scores: int | None, within: Path | None
) -> Listing:
    """One sub-folder a class."""
    loose, other_files, folders = images_inside(folder, within)
    below = {entry.name: images_below(entry, within) for entry in folders}
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
    numbers, score_names, warnings = number_labels(
        folder, names, places, classes, scores, folders=True
    )
    if loose:
        warnings.append(
            f"{folder}: {count_of(len(loose), 'image')} in no sub-folder of a class, left out "
            f"({loose[0].name})"
        )
    warnings += _left_out(
        folder,
        [
            *other_files,
            *(file for _, files_of_folder in below.values() for file in files_of_folder),
        ],
    )
    files = tuple(file for of_class in images.values() for file in of_class)
    return Listing(files, numbers, score_names, tuple(warnings))


def _check_depth(
    folder: Path, images: dict[str, list[Path]], classes: tuple[str, ...] | None
) -> None:
    """Refuse a data set of several parts, whose sub-folders are no classes."""
    deep = all(
        len(file.relative_to(folder).parts) > 2 for files in images.values() for file in files
    )
    named_as_classes = classes is not None and set(images) <= set(classes)
    if (deep or {name.lower() for name in images} <= PARTS) and not named_as_classes:
        name = next(iter(images))
        raise UsageError(
            f"{folder}: its sub-folders ({', '.join(list(images)[:4])}) look like the parts of a "
            f"data set, not like classes: give the folder that holds a sub-folder for each class, "
            f"such as {folder / name}, or a labels.csv"
        )


def _from_table(
    folder: Path,
    classes: tuple[str, ...] | None,
    scores: int | None,
    labelled: bool,
    within: Path | None,
) -> Listing:
    table = folder / "labels.csv"
    header, rows = read_rows(table, folder, within)
    at_file, at_label = find_columns(table, folder, header, rows, labelled)
    files: dict[Path, tuple[int, str]] = {}
    listed: list[Path] = []
    for line, cells in rows:
        if max(at_file, at_label) >= len(cells) or not cells[at_file]:
            raise UsageError(f"{table} line {line}: wants the two columns file,label")
        file = file_of_row(f"{table} line {line}", folder, cells[at_file], within)
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
    warnings: list[str] = []
    if labelled:
        names = [cells[at_label] for _, cells in rows]
        places = [f"line {line}" for line, _ in rows]
        labels, classes, warnings = number_labels(table, names, places, classes, scores)
    resolved = {file.resolve() for file in listed}
    unlisted = [file for file in images_below(folder, within)[0] if file.resolve() not in resolved]
    if unlisted and listed:
        warnings.append(
            f"{table}: {count_of(len(unlisted), 'image')} of the folder not listed in it, left out "
            f"({unlisted[0].relative_to(folder)}{' among them' if len(unlisted) > 1 else ''})"
        )
    return Listing(tuple(listed), labels, classes, tuple(warnings))
