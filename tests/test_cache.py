import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onmetal.errors import UsageError
from onmetal.files import cache as caches
from onmetal.files.cache import Cache
from tests.conftest import deploy


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONMETAL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def cache(root: Path) -> Iterator[Cache]:
    with Cache() as opened:
        yield opened


def fill(folder: Path, size: int = 1000) -> None:
    (folder / "content").write_bytes(bytes(size))


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "entries").iterdir())


def building(root: Path) -> list[Path]:
    return list((root / "building").iterdir())


def test_a_key_does_not_depend_on_the_order_of_its_parts() -> None:
    parts = {"model": "abc", "options": {"b": 1, "a": [1, 2.5, None]}}
    assert caches.key(**parts) == caches.key(**dict(reversed(parts.items())))
    assert caches.key(options={"a": [1, 2.5, None], "b": 1}, model="abc") == caches.key(**parts)


def test_a_key_is_the_same_in_every_process() -> None:
    script = "from onmetal.files.cache import key; print(key(a='x', b=[1, 2], c={'d': None}))"
    keys = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert keys == {caches.key(c={"d": None}, b=[1, 2], a="x")}


def test_a_key_changes_with_every_part() -> None:
    keys = {
        caches.key(a="x", b=1),
        caches.key(a="x", b=2),
        caches.key(a="x", b="1"),
        caches.key(a="x", c=1),
        caches.key(a="x"),
        caches.key(a=["x"], b=1),
        caches.key(a="x", b=None),
    }
    assert len(keys) == 7


def test_digests_of_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"ab")
    two.write_bytes(b"c")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert caches.sha256(one, two) == digest
    assert caches.sha256(two, one) != digest


def test_get_builds_once(cache: Cache) -> None:
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        fill(folder)

    first = cache.get("kind", "digest", build)
    assert (first / "content").stat().st_size == 1000
    assert cache.get("kind", "digest", build) == first
    assert len(built) == 1
    cache.get("kind", "other", build)
    cache.get("other", "digest", build)
    assert len(built) == 3


def test_entries_outlive_a_run(root: Path) -> None:
    with Cache() as first:
        place = first.get("kind", "digest", fill)
    with Cache() as second:
        assert second.find("kind", "digest") == place
        assert second.find("kind", "absent") is None


def test_a_build_that_fails_leaves_nothing(cache: Cache, root: Path) -> None:
    def build(folder: Path) -> None:
        fill(folder)
        raise ValueError("half done")

    with pytest.raises(ValueError, match="half done"):
        cache.get("kind", "digest", build)
    assert (entries(root), building(root)) == ([], [])
    assert cache.get("kind", "digest", fill).exists()


def test_scratch_is_empty_and_removed(cache: Cache, root: Path) -> None:
    with cache.scratch() as one, cache.scratch() as two:
        assert one != two and not list(one.iterdir())
        fill(one)
        cache.sweep()
        assert (one / "content").exists()
    assert building(root) == []


GETTER = """
import sys, time
from onmetal.files.cache import Cache
def build(folder):
    for part in range(20):
        (folder / f"{part}").write_bytes(b"x" * 1000)
        time.sleep(0.002)
print("ready", flush=True)
sys.stdin.readline()
with Cache() as cache:
    for number in range(3):
        folder = cache.get("kind", f"digest{number}", build)
        assert b"".join(path.read_bytes() for path in folder.iterdir()) == b"x" * 20_000
"""


def test_concurrent_builders_all_succeed(root: Path) -> None:
    processes = [start(GETTER) for _ in range(6)]
    for process in processes:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    assert entries(root) == ["kind-digest0", "kind-digest1", "kind-digest2"]
    assert building(root) == []


BUILDER = """
import time
from onmetal.files.cache import Cache
def build(folder):
    (folder / "first").write_text("done")
    print("building", flush=True)
    time.sleep(60)
with Cache() as cache:
    cache.get("kind", "digest", build)
"""

HOLDER = """
import sys
from onmetal.files.cache import Cache
with Cache() as cache:
    assert cache.find("kind", "held")
    print("held", flush=True)
    sys.stdin.read()
"""


def start(script: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline()
    return process


def end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.communicate()


def test_a_killed_builder_leaves_nothing_half_done(root: Path) -> None:
    process = start(BUILDER)
    end(process)
    assert process.returncode == -signal.SIGKILL
    assert len(building(root)) == 1
    assert entries(root) == []
    with Cache() as after:
        assert after.find("kind", "digest") is None
        folder = after.get("kind", "digest", fill)
        assert [path.name for path in folder.iterdir()] == ["content"]
    assert building(root) == []


def test_a_sweep_leaves_what_another_process_is_building(root: Path) -> None:
    process = start(BUILDER)
    try:
        with Cache() as other:
            other.sweep()
        (folder,) = building(root)
        assert (folder / caches.CONTENT / "first").read_text() == "done"
    finally:
        end(process)


def test_the_sweep_takes_those_unused_for_longest(root: Path) -> None:
    with Cache() as first:
        for age, name in enumerate(["new", "middle", "old"]):
            folder = first.get("kind", name, fill).parent
            os.utime(folder, (0, time.time() - 1000 * age))
    Cache(limit_bytes=2500).sweep()
    assert entries(root) == ["kind-middle", "kind-new"]
    Cache(limit_bytes=2000).sweep()
    assert entries(root) == ["kind-middle", "kind-new"]
    Cache(limit_bytes=0).sweep()
    assert entries(root) == []


def test_a_use_makes_an_entry_young(root: Path) -> None:
    with Cache() as first:
        for age, name in enumerate(["new", "old"], 1):
            os.utime(first.get("kind", name, fill).parent, (0, time.time() - 1000 * age))
    with Cache() as second:
        assert second.find("kind", "old")
    Cache(limit_bytes=1000).sweep()
    assert entries(root) == ["kind-old"]


def test_the_sweep_runs_when_a_run_ends(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONMETAL_CACHE_LIMIT", "1kB")
    with Cache() as opened:
        for name in ("one", "two", "three"):
            opened.get("kind", name, fill)
        opened.sweep()
        assert len(entries(root)) == 3, "what this run holds stays"
    assert len(entries(root)) == 1


def test_the_sweep_leaves_what_another_process_holds(root: Path) -> None:
    with Cache() as first:
        first.get("kind", "held", fill)
        first.get("kind", "free", fill)
    process = start(HOLDER)
    try:
        Cache(limit_bytes=0).sweep()
        assert entries(root) == ["kind-held"]
    finally:
        end(process)
    Cache(limit_bytes=0).sweep()
    assert entries(root) == []


def test_a_sweep_of_another_process_is_waited_out(root: Path) -> None:
    """An entry that is just being removed is built again, not found half there."""
    with Cache() as first:
        place = first.get("kind", "digest", fill)
    doomed = os.open(place.parent, os.O_RDONLY)
    fcntl.flock(doomed, fcntl.LOCK_EX)
    try:
        with Cache() as second:
            assert second.find("kind", "digest") is None
    finally:
        os.close(doomed)


@pytest.mark.parametrize(
    ("text", "size"), [("1kB", 1000), ("2 MiB", 2 << 20), ("1.5GB", 1_500_000_000)]
)
def test_the_limit_can_be_set(
    root: Path, monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    monkeypatch.setenv("ONMETAL_CACHE_LIMIT", text)
    assert Cache().limit_bytes == size


@pytest.mark.parametrize("text", ["lots", "-1GB", "1 parsec", "nan", "50%"])
def test_a_limit_that_is_none(root: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ONMETAL_CACHE_LIMIT", text)
    with pytest.raises(UsageError, match="ONMETAL_CACHE_LIMIT"):
        Cache()


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONMETAL_HOME", str(tmp_path / "asked"))
    assert Cache().root == caches.home() == tmp_path / "asked"
    monkeypatch.setenv("ONMETAL_HOME", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert caches.home() == tmp_path / "xdg" / "onmetal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert caches.home() == tmp_path / ".cache" / "onmetal"
    monkeypatch.setenv("ONMETAL_HOME", "~/mine")
    assert caches.home() == tmp_path / "mine"


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONMETAL_HOME", "here")
    assert caches.home() == tmp_path / "here"


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/onmetal"])
def test_a_home_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ONMETAL_HOME", str(tmp_path / place))
    with pytest.raises(UsageError, match="set ONMETAL_HOME to a folder"):
        Cache()


def test_the_command_says_that_its_home_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = deploy(
        "model.onnx",
        "--target",
        "x86-64",
        "--dry-run",
        cwd=tmp_path,
        env={"ONMETAL_HOME": str(tmp_path / "file")},
    )
    assert (ran.code, ran.out) == (2, "")
    assert "ONMETAL_HOME" in ran.err


@pytest.mark.parametrize("where", ["entries", "building"])
@pytest.mark.parametrize("limit", [10_000, 0])
def test_files_that_do_not_belong_there_do_no_harm(root: Path, where: str, limit: int) -> None:
    with Cache(limit_bytes=limit) as opened:
        (root / where / "stray").write_text("stray")
        opened.get("kind", "digest", fill)
    with Cache() as again:
        assert bool(again.find("kind", "digest")) == bool(limit)


# --- what is believed


def rewritten(content: Path) -> None:
    file = content / "content"
    facts = file.stat()
    file.write_bytes(b"\1" + bytes(facts.st_size - 1))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as a disk's fault leaves it


def cut_short(content: Path) -> None:
    os.truncate(content / "content", 10)


def removed(content: Path) -> None:
    (content / "content").unlink()


def added(content: Path) -> None:
    (content / "more").write_text("more")


def linked(content: Path) -> None:
    aside = content.parent.parent.parent / "aside"
    (content / "content").rename(aside)
    (content / "content").symlink_to(aside)


def not_readable_as_text(content: Path) -> None:
    (content.parent / caches.SUMS).write_bytes(b"\xff\xfe")


def of_another_entry(content: Path) -> None:
    sums = content.parent / caches.SUMS
    sums.write_text(sums.read_text().replace("kind-digest", "kind-other"))


def a_pipe(content: Path) -> None:
    (content / "content").unlink()
    os.mkfifo(content / "content")


@pytest.mark.parametrize(
    "damage",
    [
        rewritten,
        cut_short,
        removed,
        added,
        linked,
        not_readable_as_text,
        of_another_entry,
        a_pipe,
    ],
)
def test_a_damaged_entry_is_made_anew_and_said(root: Path, damage: Callable[[Path], None]) -> None:
    with Cache() as first:
        damage(first.get("kind", "digest", fill))
    said: list[str] = []
    with Cache(say=said.append) as second:
        content = second.get("kind", "digest", fill)
        assert (content / "content").read_bytes() == bytes(1000)
        assert [path.name for path in content.iterdir()] == ["content"]
    assert len(said) == 1
    assert "kind-digest was damaged and is made anew" in said[0]
    with Cache(say=said.append) as third:
        assert third.find("kind", "digest") == content
    assert len(said) == 1
    assert building(root) == []


def test_an_entry_of_an_older_version_is_made_anew_in_silence(root: Path) -> None:
    with Cache():
        old, other = root / "entries/kind-digest", root / "entries/kind-other"
        for folder in (old, other):
            folder.mkdir()
            (folder / "content").write_bytes(b"old")
    old.mkdir(exist_ok=True)
    (old / "content").write_bytes(b"old")
    said: list[str] = []
    with Cache(say=said.append) as cache:
        assert (cache.get("kind", "digest", fill) / "content").read_bytes() == bytes(1000)
    assert said == []
    assert entries(root) == ["kind-digest"], "what nobody can use is swept"


def test_two_runs_that_meet_one_damaged_entry_both_go_on(root: Path) -> None:
    with Cache() as first:
        rewritten(first.get("kind", "digest", fill))
    script = """
import sys
from onmetal.files.cache import Cache
with Cache() as cache:
    print("ready", flush=True)
    sys.stdin.readline()
    def fill(folder):
        (folder / "content").write_bytes(bytes(1000))
    content = cache.get("kind", "digest", fill)
    assert (content / "content").read_bytes() == bytes(1000)
"""
    processes = [start(script) for _ in range(3)]
    for process in processes:
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert entries(root) == ["kind-digest"]


def test_the_cache_is_its_user_s_alone(root: Path) -> None:
    mask = os.umask(0)
    try:
        with Cache() as cache:
            content = cache.get("kind", "digest", fill)
            with cache.scratch() as scratch:
                assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    finally:
        os.umask(mask)
    for path in (root, *root.glob("*"), content, content.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    for path in (content / "content", content.parent / caches.SUMS):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_what_was_executable_stays_so(root: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "program").write_text("#!/bin/sh")
        (folder / "program").chmod(0o755)

    with Cache() as cache:
        program = cache.get("kind", "digest", build) / "program"
    assert stat.S_IMODE(program.stat().st_mode) == 0o700


def test_the_cache_folder_may_be_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir(mode=0o755)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("ONMETAL_HOME", str(tmp_path / "home"))
    with Cache() as cache:
        assert cache.root == tmp_path / "disk"
        assert cache.get("kind", "digest", fill).is_relative_to(tmp_path / "disk")
    assert stat.S_IMODE((tmp_path / "disk").stat().st_mode) == 0o755, "it is not onmetal's own"
    assert stat.S_IMODE((tmp_path / "disk/entries").stat().st_mode) == 0o700


@pytest.mark.parametrize("home", ["circle", "~nobody-of-this-name/x"])
def test_a_cache_folder_that_cannot_be_found_is_said(tmp_path: Path, home: str) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    asked = home if home.startswith("~") else str(tmp_path / home)
    ran = deploy("doctor", env={"ONMETAL_HOME": asked})
    assert (ran.code, ran.out) == (2, "")
    assert "ONMETAL_HOME" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o702, 0o1777])
def test_a_cache_that_others_may_write_to_is_refused(root: Path, mode: int) -> None:
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(UsageError, match=r"written to by other users.*chmod go-w"):
        Cache()
    assert list(root.iterdir()) == []


def test_a_cache_of_another_user_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir(mode=0o700)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)  # only root could give the folder away
    with pytest.raises(UsageError, match=f"another user .number {mine}."):
        Cache()
    assert list(root.iterdir()) == []
