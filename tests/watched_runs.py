"""`deploy` in a process that is watched while it works, to be interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import psutil


@contextlib.contextmanager
def started(
    *words: str | Path, home: Path, cwd: Path, more: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[str]]:
    """`more`: of its environment."""
    # What a shell starts in the background ignores ^C, and so would what it starts in turn.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "onmetal.cli", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "ONMETAL_HOME": str(home), **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def reach(process: subprocess.Popen[str], title: str) -> None:
    """Wait until progress says that a step began."""
    assert process.stderr
    said = []
    for line in process.stderr:
        said.append(line)
        if title in line:
            return
    raise AssertionError(f"it ended before {title!r}: {said}")


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The worker processes of a run, once there is one."""
    for _ in range(500):
        if found := psutil.Process(process.pid).children(recursive=True):
            return found
        time.sleep(0.01)
    raise AssertionError("it has no worker")


def ended(processes: list[psutil.Process], within_s: float = 60) -> bool:
    """A process that nobody has waited for yet counts as ended."""
    deadline = time.monotonic() + within_s
    left = list(processes)
    while left and time.monotonic() < deadline:
        left = [process for process in left if alive(process)]
        time.sleep(0.02)
    return not left


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kept(home: Path) -> dict[str, tuple[int, int]]:
    """Every file in the cache's entries, with what would change if it were built again."""
    return {
        str(path.relative_to(home)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (home / "entries").rglob("*")
        if path.is_file()
    }
