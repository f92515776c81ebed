"""The images, other files and sub-folders of a folder of data."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from onmetal.errors import UsageError
from onmetal.files.image_files import SUFFIXES
from onmetal.files.reading import FOLLOW, kind

JUNK = {
    *("__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information"),
    *("thumbs.db", "desktop.ini", "__pycache__"),
}
"""What systems and programs leave behind in folders."""
OURS = ("data.toml", "labels.csv", "annotations.json")
"""Files that say what the images are."""


def _is_junk(name: str) -> bool:
    return name.startswith((".", "~$")) or name.lower() in JUNK


class Entry(NamedTuple):
    """A file or a folder, not opened yet."""

    path: Path
    folder: bool
    identity: tuple[int, int]
    """The device and inode numbers, which are the same whichever links lead to the entry."""


def _entries(folder: Path, within: Path | None) -> list[Entry]:
    """The files and folders in a folder itself, sorted by name, without hidden files and those that
    systems leave behind. Raises UsageError where an entry cannot be read or must not be."""
    try:
        paths = sorted(path for path in folder.iterdir() if not _is_junk(path.name))
    except OSError as error:
        raise UsageError(f"{folder}: cannot read this folder ({error.strerror})") from None
    return [_entry(path, within) for path in paths]


def _entry(path: Path, within: Path | None) -> Entry:
    try:
        link = stat.S_ISLNK(path.lstat().st_mode)
        status = path.stat()
    except FileNotFoundError:
        raise UsageError(f"{path}: it is a link to what is not there; remove it") from None
    except OSError as error:  # links in a circle, among others
        raise UsageError(f"{path}: cannot look at it ({error.strerror})") from None
    is_folder = stat.S_ISDIR(status.st_mode)
    if not is_folder and not stat.S_ISREG(status.st_mode):
        raise UsageError(
            f"{path}: it is {kind(status.st_mode)}, where only files and folders may be; remove it"
        )
    is_read = is_folder or path.name in OURS or path.suffix.lower() in SUFFIXES
    if link and is_read and within and not Path(os.path.realpath(path)).is_relative_to(within):
        raise UsageError(f"{path}: it is a link that leads out of the folder of data; {FOLLOW}")
    return Entry(path, is_folder, (status.st_dev, status.st_ino))


def images_inside(folder: Path, within: Path | None) -> tuple[list[Path], list[Path], list[Path]]:
    """-> the images, other files and sub-folders that lie in a folder itself, sorted by name."""
    entries = _entries(folder, within)
    images, others = _split_by_kind(entries)
    return images, others, [entry.path for entry in entries if entry.folder]


def _split_by_kind(entries: Iterable[Entry]) -> tuple[list[Path], list[Path]]:
    """-> the images and the other files."""
    files = [e.path for e in entries if not e.folder and e.path.name not in OURS]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    return images, [file for file in files if file.suffix.lower() not in SUFFIXES]


def images_below(folder: Path, within: Path | None) -> tuple[list[Path], list[Path]]:
    """-> the images and the other files in a folder and all below it, sorted by path.

    Links to folders are followed; one that leads to a folder that is read already, as in a circle,
    is refused.
    """
    place = folder.stat()
    first_paths = {(place.st_dev, place.st_ino): folder}
    images: list[Path] = []
    others: list[Path] = []
    waiting = [folder]
    while waiting:
        entries = _entries(waiting.pop(), within)
        of_images, of_others = _split_by_kind(entries)
        images += of_images
        others += of_others
        folders = [entry for entry in entries if entry.folder]
        for entry in folders:
            first = first_paths.setdefault(entry.identity, entry.path)
            if first is not entry.path:
                raise UsageError(
                    f"{entry.path}: it is the same folder as {first}, by a link, and would be read "
                    "twice; remove the link"
                )
        waiting += [entry.path for entry in reversed(folders)]
    return images, others
