"""Zip archives of models, made to do harm."""

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from onmetal.converters import archive
from onmetal.errors import UsageError


def packed(folder: Path, *members: tuple[str, bytes]) -> Path:
    path = folder / "model.zip"
    with zipfile.ZipFile(path, "w") as made:
        for name, content in members:
            made.writestr(name, content)
    return path


def refused(path: Path, folder: Path) -> str:
    place = folder / "extracted"
    place.mkdir()
    with pytest.raises(UsageError) as error:
        archive.extract(path, place)
    assert not list(place.rglob("*"))
    return str(error.value)


def test_members_are_written_where_they_belong(tmp_path: Path) -> None:
    path = packed(tmp_path, ("a/b.txt", b"b"), ("c.txt", b"c"), ("empty/", b""))
    archive.extract(path, tmp_path / "all")
    archive.extract(path, tmp_path / "some", lambda name: name == "c.txt")
    for folder, names in (("all", ["a/b.txt", "c.txt"]), ("some", ["c.txt"])):
        place = tmp_path / folder
        files = sorted(p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file())
        assert files == names


@pytest.mark.parametrize(
    "name", ["../out", "/etc/out", "a/../../out", "a\\..\\out", "C:out", "..", "a/.."]
)
def test_a_member_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    said = refused(packed(tmp_path, ("fine", b""), (name, b"harm")), tmp_path)
    assert "leads out of the archive's folder" in said
    assert not (tmp_path / "out").exists() and not Path("/etc/out").exists()


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as made:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
    assert "is a link" in refused(path, tmp_path)


def test_what_swells_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as made:
        for number in range(3):
            with made.open(f"{number}", "w") as member:
                for _ in range(64):
                    member.write(bytes(1 << 20))
    assert "its members take 201326592 bytes, more than" in refused(path, tmp_path)


def test_a_member_longer_than_it_says_is_refused(tmp_path: Path) -> None:
    path = packed(tmp_path, ("weights", b"x" * 1000))
    content = path.read_bytes()
    short = (10).to_bytes(4, "little")
    path.write_bytes(content.replace((1000).to_bytes(4, "little"), short))
    with pytest.raises(UsageError):
        archive.extract(path, tmp_path / "extracted")


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = packed(tmp_path, ("config.json", b"1"), ("config.json", b"2"))
    assert "two members are named 'config.json'" in refused(path, tmp_path)


def test_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 3)
    path = packed(tmp_path, *((str(number), b"") for number in range(4)))
    assert "4 files in one archive" in refused(path, tmp_path)


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize("harm", [lambda content, at: content[:at], damaged])
def test_damage_is_an_error_or_harmless(
    harm: Callable[[bytes, int], bytes], tmp_path: Path
) -> None:
    path = packed(tmp_path, ("a/config.json", b"{}" * 50), ("weights", bytes(range(200))))
    content = path.read_bytes()
    for at in range(0, len(content) - 1, 7):
        path.write_bytes(harm(content, at))
        try:
            archive.extract(path, tmp_path / f"at-{at}")
        except UsageError as error:
            assert str(path) in str(error)
    assert archive.names(tmp_path / "nowhere") == []
