"""Harm to the files of a bundle, and things that are no files."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onmetal.files.cache import sha256

Capture = pytest.CaptureFixture[str]
Spoil = Callable[[Path], object]
MIB = 1 << 20


def sign(folder: Path) -> None:
    """Write SHA256SUMS anew over all regular files, however deep."""
    listed = {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name != "SHA256SUMS"
    }
    (folder / "SHA256SUMS").write_text("".join(f"{listed[n]}  {n}\n" for n in sorted(listed)))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    edit(document)
    (folder / "manifest.json").write_text(json.dumps(document))
    sign(folder)


def put(folder: Path, name: str, content: bytes = b"") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    path.unlink()
    place = Path.cwd()
    os.chdir(path.parent)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(place)


def link_to(target: str) -> Spoil:
    def spoil(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return spoil


def of_size(size_bytes: int) -> Spoil:
    def spoil(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(size_bytes)

    return spoil


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ODD: dict[str, Spoil] = {
    "a FIFO": fifo,
    "a socket": unix_socket,
    "a link to a device": link_to("/dev/zero"),
    "a link to a file": link_to("/etc/passwd"),
    "a link to nothing": link_to("nothing"),
    "a link to itself": link_to("SHA256SUMS"),
    "a folder": a_folder,
    "very long": of_size(1 << 40),
}


def special(path: Path, kind: str) -> Path:
    """Something at the path that is no file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "broken link":
        path.symlink_to("nowhere")
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    return path
