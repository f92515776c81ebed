"""SHA256SUMS: the digests of all that a bundle holds."""

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"


def files_inside(folder: Path) -> dict[str, Path]:
    """What lies in the bundle, by its path there: files and what is neither file nor folder. A link
    to a folder is not followed; an empty folder counts, since no sum would tell of it."""
    paths = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        plain_folder = path.is_dir() and not path.is_symlink()
        if name != SUMS and not (plain_folder and any(path.iterdir())):
            paths[name] = path
    return paths


def rendered_sums(digests: dict[str, str]) -> str:
    """As `sha256sum -c` reads it."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
