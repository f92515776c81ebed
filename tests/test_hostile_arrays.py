""".npz files that lie: each ends with a reason, in little memory, and nothing of it is believed."""

import contextlib
import io
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from onmetal.calibration import samples
from onmetal.errors import UsageError
from onmetal.files import arrays
from onmetal.files.arrays import ArrayFile
from onmetal.files.cache import Cache
from onmetal.samples import Samples
from tests.conftest import DIGITS, deploy
from tests.hostile_files import special
from tests.sample_files import image_model

MODEL = image_model(3, 4, 5)
X = np.arange(4 * 3 * 4 * 5, dtype=np.float32).reshape(4, 3, 4, 5)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    (tmp_path / "home").mkdir()
    with Cache(tmp_path / "home") as opened:
        yield opened


def load(path: Path, cache: Cache) -> Samples:
    return samples.load(str(path), MODEL, cache, option="--data", labelled=False)


def only(found: Samples) -> ArrayFile:
    (array,) = found.arrays.values()
    return array


def npy(header: bytes, values: bytes = b"", version: bytes = b"\1\0") -> bytes:
    width = "<H" if version == b"\1\0" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(header)) + header + values


def described(shape: str, descr: str = "'<f4'", order: str = "False") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


def archived(path: Path, *members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


# --- heads


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (0, 4), (2, 3, 4)])
def test_a_head_is_understood_as_numpy_understands_it(
    version: tuple[int, int], order: str, dtype: str, shape: tuple[int, ...]
) -> None:
    array = np.asarray(np.ones(shape, dtype), order=order)  # type: ignore[call-overload]
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    file.seek(0)
    found = arrays.read_header(file, Path("x.npy"), len(file.getvalue()), "x")
    file.seek(0)
    assert np.lib.format.read_magic(file) == version
    wanted = (
        np.lib.format.read_array_header_1_0(file)
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0(file)
    )
    assert (found.shape, found.fortran, np.dtype(found.dtype)) == wanted
    assert found.offset == file.tell()


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr':'<f4','fortran_order':False,'shape':(2,)}",
        b'{"shape": (2L, ), "fortran_order": False, "descr": "<f4"}   \n',
        b"{'descr': 'float32', 'fortran_order': False, 'shape': (2, ), }",
    ],
)
def test_heads_of_other_writers_are_understood(header: bytes) -> None:
    content = npy(header, bytes(8))
    found = arrays.read_header(io.BytesIO(content), Path("x.npy"), len(content), "x")
    assert (found.shape, found.dtype) == ((2,), "<f4")


HEADS: dict[str, bytes] = {
    "nothing": b"",
    "brackets": b"(" * 9000,
    "lists": b"[" * 9000,
    "dicts": b"{" * 9000,
    "minus": b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"-" * 9000 + b"1,)}",
    "not": b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"not " * 2000 + b"1,)}",
    "calls": b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"a(" * 4000 + b")",
    "attributes": b"a" + b".a" * 4000,
    "lambdas": b"lambda:" * 1000 + b"0",
    "a call": b"__import__('os').system('touch /tmp/x')",
    "a bool axis": described("(True, 3)"),
    "a float axis": described("(2.0,)"),
    "no tuple": described("(2)"),
    "a number": described("2"),
    "a list": described("[2]"),
    "a negative axis": described("(-1,)"),
    "two negative axes": described("(-2, -2)"),
    "digits": described(f"({'9' * 5000},)"),
    "digits of other scripts": described("(\u0662,)"),
    "a huge axis": described(f"({10**18},)"),
    "axes that overflow": described(f"({2**32}, {2**32}, 2)"),
    "axes that overflow to what is there": described(f"({2**62}, 4, 3)"),
    "many axes": described(f"({'1,' * 60})"),
    "very many axes": described(f"({'1,' * 4000})"),
    "objects": described("(2,)", "'|O'"),
    "text": described("(2,)", "'<U5'"),
    "times": described("(2,)", "'<M8[ns]'"),
    "complex": described("(2,)", "'<c8'"),
    "fields": described("(2,)", "[('a', '<f4'), ('b', '<f4')]"),
    "fields by commas": described("(2,)", "'f4,f4'"),
    "a sub-array": described("(2,)", "'(1000000000,)f4'"),
    "an unknown dtype": described("(2,)", "'flurp'"),
    "a dtype of a huge size": described("(2,)", "'<U1000000000000'"),
    "NaN": described("(2,)", "nan"),
    "no order": b"{'descr': '<f4', 'shape': (2,)}",
    "an order of another type": described("(2,)", order="1"),
    "a key twice": b"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
    "more keys": b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}",
    "no end": b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,)",
    "bytes": bytes(range(256)),
    "NUL": b"{'descr': '<f4\0', 'fortran_order': False, 'shape': (2,)}",
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("version", [b"\1\0", b"\2\0"])
def test_a_head_that_lies_has_a_reason(name: str, version: bytes) -> None:
    content = npy(HEADS[name], bytes(8), version)
    with pytest.raises(UsageError, match=r"^it ") as caught:
        arrays.read_header(io.BytesIO(content), Path("x.npy"), len(content), "it")
    assert 20 < len(str(caught.value)) < 500
    assert "cut short" not in str(caught.value) or "huge" in name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\1\0",
        b"\x93NUMPY\1\0\xff\xff{",
        b"\x93NUMPY\2\0\xff\xff\xff\xff{",
        npy(described("(2,)"), bytes(8), b"\3\0"),
        npy(described("(2,)"), bytes(8), b"\xff\xff"),
        npy(described("(2,)"), bytes(7)),
        npy(described("(2,)"), bytes(9)),
        npy(described("(0, 5)"), bytes(9)),
        npy(described("()"), bytes(3)),
    ],
)
def test_an_array_of_another_length_has_a_reason(content: bytes) -> None:
    with pytest.raises(UsageError, match=r"^it .*(readable|cut short|more than)"):
        arrays.read_header(io.BytesIO(content), Path("x.npy"), len(content), "it")


# --- archives

GOOD = npy(described("(4, 3, 4, 5)"), X.tobytes())


def honest(path: Path) -> Path:
    return archived(path, ("x.npy", GOOD))


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def patched(path: Path, *changes: tuple[int, str, int], central: bool) -> Path:
    """An archive whose head of its only member, or its line in the directory, says otherwise."""
    content = bytearray(honest(path).read_bytes())
    start = content.rindex(b"PK\1\2") if central else 0
    for at, form, value in changes:
        struct.pack_into(form, content, start + at, value)
    path.write_bytes(content)
    return path


LIES: dict[str, Callable[[Path], Path]] = {
    "longer in the directory": lambda p: patched(p, (24, "<I", 10**9), central=True),
    "shorter in the directory": lambda p: patched(p, (24, "<I", 100), central=True),
    "of no length": lambda p: patched(p, (24, "<I", 0), (20, "<I", 0), central=True),
    "packed longer": lambda p: patched(p, (20, "<I", 2**31), (24, "<I", 2**31), central=True),
    "ZIP64 without its field": lambda p: patched(p, (24, "<I", 2**32 - 1), central=True),
    "elsewhere": lambda p: patched(p, (42, "<I", 10**6), central=True),
    "another checksum": lambda p: patched(p, (16, "<I", 1), central=True),
    "encrypted": lambda p: patched(p, (8, "<H", 1), central=True),
    "encrypted strongly": lambda p: patched(p, (8, "<H", 0x40), central=True),
    "patched": lambda p: patched(p, (8, "<H", 0x20), central=True),
    "of a later version": lambda p: patched(p, (6, "<H", 99), central=True),
    "deflated, it says": lambda p: patched(p, (10, "<H", 8), central=True),
    "LZMA, it says": lambda p: patched(p, (10, "<H", 14), central=True),
    "PPMd, it says": lambda p: patched(p, (10, "<H", 98), central=True),
    "another name in its head": lambda p: patched(p, (30, "<B", ord("q")), central=False),
    "a head of no magic": lambda p: patched(p, (0, "<I", 0), central=False),
    "a longer name in its head": lambda p: patched(p, (26, "<H", 60000), central=False),
    "LZMA": lambda p: archived(p, ("x.npy", GOOD), method=zipfile.ZIP_LZMA),
    "BZIP2": lambda p: archived(p, ("x.npy", GOOD), method=zipfile.ZIP_BZIP2),
    "no array": lambda p: archived(p, ("x.npy", GOOD), ("notes.txt", b"hello")),
    "a folder": lambda p: archived(p, ("x.npy", GOOD), ("a/", b"")),
    "a path out": lambda p: archived(p, ("../../x.npy", GOOD)),
    "an absolute path": lambda p: archived(p, ("/etc/x.npy", GOOD)),
    "a name of control codes": lambda p: archived(p, ("x\n\x1b]0;t\7.npy", GOOD)),
    "no name": lambda p: archived(p, (".npy", GOOD)),
    "another array": lambda p: archived(p, ("x.npy", GOOD), ("z.npy", GOOD)),
    "a pickle": lambda p: archived(p, ("x.npy", b"\x80\x04N.")),
    "objects": lambda p: archived(p, ("x.npy", npy(described("(4,)", "'|O'"), b"\x80\x04N."))),
    "too many": lambda p: archived(p, *((f"{n}.npy", b"") for n in range(10_001))),
    "nothing": lambda p: archived(p),
    "no archive": lambda p: written(p, b"hello"),
    "an empty file": lambda p: written(p, b""),
    "a comment alone": lambda p: written(p, b"PK\5\6" + bytes(18)),
    "a directory before the file": lambda p: written(
        p, b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 1, 1, 2**31, 2**31, 0)
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_an_archive_that_lies_has_a_reason(name: str, tmp_path: Path, cache: Cache) -> None:
    path = LIES[name](tmp_path / "data.npz")
    with pytest.raises(UsageError) as caught:
        load(path, cache)
    said = str(caught.value)
    assert said.startswith((str(path), f"--data {path}")) and len(said) > len(str(path)) + 15
    assert "\x1b" not in said and "\n" not in said
    assert not [*tmp_path.rglob("*.npy")], "nothing is left where it was unpacked"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(tmp_path: Path, cache: Cache) -> None:
    path = archived(tmp_path / "data.npz", ("x.npy", GOOD), ("x.npy", GOOD))
    with pytest.raises(UsageError, match="two arrays of the name 'x'"):
        load(path, cache)


def test_members_that_overlap_are_no_way_around(tmp_path: Path, cache: Cache) -> None:
    """Two lines of the directory that name the same bytes."""
    content = bytearray(honest(tmp_path / "data.npz").read_bytes())
    start, end = content.rindex(b"PK\1\2"), content.rindex(b"PK\5\6")
    line = content[start:end].replace(b"x.npy", b"z.npy")
    tail = bytearray(content[end:])
    struct.pack_into("<2HI", tail, 8, 2, 2, 2 * (end - start))
    (tmp_path / "data.npz").write_bytes(content[:end] + line + tail)
    with pytest.raises(UsageError):
        load(tmp_path / "data.npz", cache)


@pytest.mark.parametrize("before", [b"#!/bin/sh\n", b"PK\3\4" + bytes(100)])
def test_what_is_honest_stays_readable(tmp_path: Path, cache: Cache, before: bytes) -> None:
    path = honest(tmp_path / "data.npz")
    path.write_bytes(before + path.read_bytes())
    found = load(path, cache)
    assert np.array_equal(np.asarray(only(found).open()), X)


@pytest.mark.parametrize("at", [28, 30, 32])
def test_a_directory_that_says_it_is_longer_changes_no_value(
    tmp_path: Path, cache: Cache, at: int
) -> None:
    path = patched(tmp_path / "data.npz", (at, "<H", 65535), central=True)
    with contextlib.suppress(UsageError):
        assert np.array_equal(np.asarray(only(load(path, cache)).open()), X)


@pytest.mark.parametrize("descriptor", [False, True])
def test_savez_and_streams_are_read(tmp_path: Path, cache: Cache, descriptor: bool) -> None:
    path = tmp_path / "data.npz"
    if descriptor:  # sizes follow the members, and their heads say 0

        class Stream(io.BytesIO):
            def seekable(self) -> bool:
                return False

        stream = Stream()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", GOOD)
        path.write_bytes(stream.getvalue())
    else:
        np.savez_compressed(path, x=X)
    assert np.array_equal(np.asarray(only(load(path, cache)).open()), X)
    assert np.array_equal(arrays.read_npz(path, X.nbytes)["x"], X)
    with pytest.raises(UsageError, match="the most that they may"):
        arrays.read_npz(path, X.nbytes - 1)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """5 GiB of zeros in a file whose directory says so honestly; its bytes are not even there."""
    path = tmp_path / "data.npz"
    size = 5 << 30
    extra = struct.pack("<2H2Q", 1, 16, size, 5 << 20)
    name = b"x.npy"
    fields = (45, 45, 0, 8, 0, 0, 0, 2**32 - 1, 2**32 - 1, len(name), len(extra), 0, 0, 0, 0, 0)
    line = struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + name + extra
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(line), 0, 0)
    path.write_bytes(line + tail)
    with pytest.raises(UsageError, match="made to fill disks"), arrays.opened(path):
        pass


def test_a_directory_without_end_costs_no_memory(tmp_path: Path) -> None:
    """A million members of no bytes: each would be an object of Python."""
    path = tmp_path / "data.npz"
    fields = (20, 20, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0)
    line = struct.pack("<4s6H3I5H2I", b"PK\1\2", *fields) + b"x.npy"
    count = 1_000_000
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, count * len(line), 0, 0)
    path.write_bytes(line * count + tail)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match="its directory is too long"), arrays.opened(path):
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


# --- what changes while it is read


def test_another_file_at_the_path_is_not_what_was_looked_at(tmp_path: Path) -> None:
    path, other = honest(tmp_path / "data.npz"), tmp_path / "other.npz"
    np.savez(other, x=-X)
    digest = arrays_digest(path)
    with contextlib.suppress(UsageError), arrays.opened(path) as archive:  # whether it is noticed
        other.replace(path)
        assert archive.sha256() == digest != arrays_digest(path)
        archive.unpack(tmp_path)
    assert np.array_equal(np.load(tmp_path / "0.npy"), X)


def arrays_digest(path: Path) -> str:
    with arrays.opened(path) as archive:
        return archive.sha256()


@pytest.mark.parametrize("change", ["longer", "shorter", "other"])
def test_a_file_that_changes_is_refused(tmp_path: Path, change: str) -> None:
    path = honest(tmp_path / "data.npz")
    with pytest.raises(UsageError, match=r"data\.npz"), arrays.opened(path) as archive:
        with path.open("r+b") as file:
            if change == "shorter":
                file.truncate(200)
            else:
                file.seek(10**4 if change == "longer" else 300)
                file.write(b"changed")
        archive.unpack(tmp_path)


# --- what is no file


@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "broken link", "circle"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, cache: Cache, kind: str
) -> None:
    path = special(tmp_path / "data.npz", kind)
    wanted = "no such file" if kind in ("broken link", "circle") else "not a regular file"
    with pytest.raises(UsageError, match=wanted):
        load(path, cache)


@pytest.mark.parametrize("option", ["--data", "--calibration-data"])
def test_the_command_refuses_a_pipe(tmp_path: Path, option: str) -> None:
    path = special(tmp_path / "data.npz", "pipe")
    words = (DIGITS / "digits_cnn.onnx", "--target", "x86-64", option, path, "--dry-run")
    ran = deploy(*words, "--out", tmp_path / "out")
    assert ran.code == 2
    assert f"{path}: cannot read it (it is not a regular file but a pipe" in ran.err
