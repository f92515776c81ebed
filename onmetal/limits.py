"""Limits of memory and time for child processes: a file of two kilobytes may demand all memory.

Reading and converting run under limits of the kernel. Elsewhere a limit of the address space would
break runtimes, which reserve far more than they use, so the resident set is watched from outside.
Nothing is watched while something is timed.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psutil

CONVERTING_BYTES = 4 << 30
"""Memory to convert and open a small model; FOLD times its size and its largest tensor are
added."""
POLL_S = 0.05
READING_BYTES = 2 << 30
"""Memory to read a small model file; FOLD times its size is added."""
FOLD = 8
READING_CPU_S = 30
OPENING = 4
"""The factor on `cpu_s` for opening a model and a few inferences, in which several threads
count."""
CONVERTING = 20
"""The factor on `cpu_s` for converting a model."""
BYTES_PER_CPU_S = 5 << 20
"""A larger file may take one second longer for every so many bytes."""
RESERVE = 0.1
"""The part of this machine's memory that is left to other processes."""


def converting_bytes(size_bytes: int, largest_bytes: int) -> int:
    """The memory that a process may take to convert a model file of `size_bytes`, whose largest
    tensor has `largest_bytes`."""
    return min(CONVERTING_BYTES + FOLD * (size_bytes + largest_bytes), free_bytes())


def cpu_s(size_bytes: int) -> float:
    """The processor seconds that a process may take to read or open a model file of this size, in
    which a runtime computes constant parts of the graph."""
    return float(READING_CPU_S + size_bytes // BYTES_PER_CPU_S)


def restrict_reading(size_bytes: int) -> None:
    """Limit this process from now on, for reading a model file of this size: its private memory
    (Linux: private pages that can be written, RLIMIT_DATA of setrlimit(2)), the size of its files,
    and the time of all its threads."""
    if sys.platform == "win32":
        return
    import resource

    memory_bytes = min(READING_BYTES + FOLD * size_bytes, free_bytes())
    for kind, most in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, memory_bytes),
        (resource.RLIMIT_CPU, int(cpu_s(size_bytes))),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (most, hard))


def widen_reading(size_bytes: int) -> None:
    """Raise the limits of this process, where it has any, for a model that is larger than its
    file."""
    if sys.platform == "win32":
        return
    import resource

    if resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY:
        restrict_reading(size_bytes)


def free_bytes() -> int:
    """The memory of this machine, or of its container, that a process may take at this moment."""
    memory = psutil.virtual_memory()
    free = memory.available - int(RESERVE * memory.total)
    with contextlib.suppress(OSError, ValueError):  # "max": a ValueError
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cached = _inactive_file(group)
        free = min(free, most - (used - cached) - int(RESERVE * most))
    return max(free, READING_BYTES // 2)


def _inactive_file(group: Path) -> int:
    """The bytes of file pages that the kernel reclaims before it kills a process for lack of
    memory."""
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


class Process(Protocol):
    @property
    def pid(self) -> int: ...

    def kill(self) -> None: ...


class Watch:
    """Ends a process that takes more memory, or processor time, than it may."""

    def __init__(self, process: Process, most_bytes: int, cpu_s: float | None) -> None:
        self.most_bytes = most_bytes
        self.cpu_s = cpu_s
        self.exceeded: str | None = None
        """The limit that the process exceeded, in words; None: it has exceeded none."""
        self._process = process
        self._until_s = None if cpu_s is None else processor_s(process.pid) + cpu_s
        self._over = threading.Event()

    def look(self) -> None:
        while not self._over.wait(POLL_S):
            if resident_bytes(self._process.pid) > self.most_bytes:
                self.exceeded = f"{self.most_bytes / 1e9:.1f} GB of memory"
            elif self._until_s is not None and processor_s(self._process.pid) > self._until_s:
                self.exceeded = f"{self.cpu_s:.0f} s of processor time"
            if self.exceeded:
                self._process.kill()
                return

    def end(self) -> None:
        self._over.set()


@contextlib.contextmanager
def watched(
    process: Process, most_bytes: int | None = None, cpu_s: float | None = None
) -> Iterator[Watch]:
    """Inside the block, the process is killed when its resident set exceeds `most_bytes` (None:
    what it holds and what is free at the beginning), or when it takes `cpu_s` more seconds of
    processor time."""
    if most_bytes is None:
        most_bytes = free_bytes() + resident_bytes(process.pid)
    watch = Watch(process, most_bytes, cpu_s)
    thread = threading.Thread(target=watch.look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


def processor_s(pid: int) -> float:
    """The processor seconds of all threads of a process; 0 once it has ended."""
    with contextlib.suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def resident_bytes(pid: int) -> int:
    """The resident set of the process; 0 once it has ended. Only anonymous memory counts, where the
    kernel reports it, since the pages of mapped files can be reclaimed."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_bytes().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(pid).memory_info().rss)
        return 0
