"""Opens zip archives of models, which are untrusted: no member leads out of the folder that it is
extracted to, none is a link, and none takes more than it says."""

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from onmetal.errors import UsageError

MOST_MEMBERS = 100_000
MOST_SWELL = 100
"""How many times the archive's size its members may take; weights hardly compress."""
SPARE_BYTES = 64 << 20
"""What they may take besides."""
PIECE_BYTES = 1 << 20


def is_zip(head: bytes) -> bool:
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def names(path: Path) -> list[str]:
    """The names of the members, unchecked; none where it is no readable archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()[:MOST_MEMBERS]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return []


def extract(path: Path, folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Write the members that are wanted to a folder, after a check of all of them.

    Raises UsageError where the archive is damaged, a member leads out of the folder, is a link or
    encrypted, or they take more memory than a sound archive of this size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check(path, members)
            for member in members:
                if not member.is_dir() and wanted(member.filename):
                    _write(path, archive, member, folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError) as error:
        raise UsageError(
            f"{path}: this zip archive cannot be read ({error}): it is damaged or cut off; export "
            "or download it again"
        ) from None


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MOST_MEMBERS:
        raise UsageError(f"{path}: {len(members)} files in one archive, which no model has")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts or "\\" in name or ":" in name:
            raise UsageError(f"{path}: the member {name!r} leads out of the archive's folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UsageError(f"{path}: the member {name!r} is a link; archives of models have none")
        if member.flag_bits & 1:
            raise UsageError(f"{path}: the member {name!r} is encrypted")
        if name in seen:
            raise UsageError(f"{path}: two members are named {name!r}")
        seen.add(name)
    taken, most = sum(member.file_size for member in members), _most_bytes(path)
    if taken > most:
        raise UsageError(
            f"{path}: its members take {taken} bytes, more than the {most} that a model's archive "
            "of this size takes"
        )


def _most_bytes(path: Path) -> int:
    return SPARE_BYTES + MOST_SWELL * path.stat().st_size


def _write(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    place = folder / member.filename
    place.parent.mkdir(parents=True, exist_ok=True)
    left = member.file_size
    with archive.open(member) as source, place.open("xb") as target:
        while piece := source.read(min(PIECE_BYTES, left + 1)):
            left -= len(piece)
            if left < 0:
                raise UsageError(f"{path}: the member {member.filename!r} is longer than it says")
            target.write(piece)
