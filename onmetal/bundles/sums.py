"""SHA256SUMS: the digests of all files of a bundle."""

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"


def files_inside(folder: Path) -> dict[str, Path]:
    """Path in the bundle -> path on disk, of all files and everything that is neither file nor
    folder. A link to a folder is not followed; an empty folder is included, since no sum would show
    it."""
    paths = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        plain_folder = path.is_dir() and not path.is_symlink()
        if name != SUMS and not (plain_folder and any(path.iterdir())):
            paths[name] = path
    return paths


def rendered_sums(digests: dict[str, str]) -> str:
    """The text of SHA256SUMS, in the format of `sha256sum -c`."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
