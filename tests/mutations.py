"""Damaged files by the thousand, over everything that onmetal reads: what a reader does with each.

    python -m tests.mutations --results DIR [--files 10000] [--shard 200] [--seed 0]

Each file is an honest one of its kind, damaged in one to four places by a seeded random source. It
must be read or refused with one of onmetal's own errors; nothing else may come of it, within 60
seconds and 2 GB. Many files are read in one process. A process that dies over a file is a finding,
except over a model, which `deploy` reads in a child process itself. A shard whose results are there
is not run again.
"""

import argparse
import json
import random
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onmetal.errors import OnmetalError
from tests import mutations_bundles, mutations_devices, mutations_files

FILE_S = 60
FILE_BYTES = 2 << 30
IN_A_CHILD = mutations_files.MODELS
"""Kinds that `deploy` reads in a child process, whose death it survives."""

INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63)
WORDS: tuple[bytes, ...] = (
    b"((((",
    b"[" * 3000,
    b"{" * 3000,
    b"9" * 5000,
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"../",
)
WORDS += (b"\x00", b"\xff\xfe", b"\n", b'"', b"\\", b"\x1b]0;x\x07", b"99999999999999999999")


def mutated(data: bytes, source: random.Random, others: list[bytes]) -> bytes:
    """The data, damaged in one to four places."""
    content = bytearray(data)
    for _ in range(source.choice((1, 1, 1, 2, 2, 3, 4))):
        _damage(content, source, others)
    return bytes(content)


def _damage(content: bytearray, source: random.Random, others: list[bytes]) -> None:
    place = source.randrange(len(content) + 1)
    length = min(source.choice((1, 1, 2, 4, 8, 16, 64, 256)), len(content) - place)
    kind = source.randrange(9)
    if kind == 0 and place < len(content):
        content[place] ^= 1 << source.randrange(8)
    elif kind == 1:
        content[place : place + length] = source.randbytes(length)
    elif kind == 2:
        del content[place : place + length]
    elif kind == 3:
        content[place:place] = content[place : place + length] * source.choice((1, 2, 50))
    elif kind == 4:
        del content[place:]
    elif kind == 5:
        width = source.choice((1, 2, 4, 8))
        number = source.choice(INTEGERS) % (1 << 8 * width)
        content[place : place + width] = number.to_bytes(width, source.choice(("little", "big")))
    elif kind == 6:
        content[place : place + source.choice((0, length))] = source.choice(WORDS)
    elif kind == 7:
        other = source.choice(others)
        start = source.randrange(len(other) + 1)
        content[place:place] = other[start : start + source.choice((8, 64, 512))]
    elif digits := [at for at, byte in enumerate(content) if 48 <= byte < 58]:
        at = source.choice(digits)
        content[at : at + 1] = source.choice((b"0", b"-", b"9" * 20, b"9" * 5000, b"1e9", b"."))


def seeds() -> list[tuple[str, bytes]]:
    """Honest files: (kind, content)."""
    return [*mutations_files.seeds(), *mutations_bundles.seeds(), *mutations_devices.seeds()]


def read(kind: str, data: bytes, folder: Path) -> None:
    """Read one damaged file as onmetal does. Raises OnmetalError where it is refused."""
    if kind in mutations_bundles.KINDS:
        mutations_bundles.read(kind, data, folder)
    elif kind in {name for name, _ in mutations_devices.seeds()}:
        mutations_devices.read(kind, data)
    else:
        path = folder / mutations_files.NAMES.get(kind, f"damaged.{kind}")
        path.write_bytes(data)
        mutations_files.read(kind, path)


def damaged(first: int, count: int, seed: int) -> Iterator[tuple[int, str, bytes]]:
    honest = seeds()
    others = [data for _, data in honest]
    for number in range(first, first + count):
        kind, data = honest[number % len(honest)]
        source = random.Random(f"{seed}/{number}")
        content = mutated(data, source, others)
        if source.random() < 0.5:
            content = mutations_files.repaired(kind, content)
        yield number, kind, content


# --- in the child


def run(first: int, count: int, seed: int) -> None:
    """A line before each file, and one after it: what came of it."""
    resource.setrlimit(resource.RLIMIT_DATA, (2 * FILE_BYTES, 2 * FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with TemporaryDirectory(prefix="onmetal-") as folder:
        for number, kind, data in damaged(first, count, seed):
            print(json.dumps({"begins": number, "kind": kind}), flush=True)
            began = time.monotonic()
            outcome, said = _outcome(kind, data, Path(folder))
            line: dict[str, Any] = {"number": number, "kind": kind, "outcome": outcome}
            line |= {"said": said[:300], "s": round(time.monotonic() - began, 3)}
            line["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps(line), flush=True)


def _outcome(kind: str, data: bytes, folder: Path) -> tuple[str, str]:
    try:
        read(kind, data, folder)
    except OnmetalError as error:
        if error.exit_code not in (2, 3, 4, 6) or not str(error).strip():
            return "defect", f"exit code {error.exit_code}: {error}"
        return f"refused with {error.exit_code}", str(error)
    except MemoryError:
        return ("refused" if kind in IN_A_CHILD else "defect"), "out of memory"
    except Exception as error:  # of a child process the worker says it, of this one it is a defect
        outcome = "refused" if kind in IN_A_CHILD else "defect"
        return outcome, f"{type(error).__name__}: {error}"
    return "read", ""


# --- in the parent


def results(first: int, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """What came of each file, in processes that are started again behind a file that ended one."""
    last = first + count
    while first < last:
        argv = [sys.executable, "-m", "tests.mutations", "--run", str(first), str(last - first)]
        with subprocess.Popen(
            [*argv, "--seed", str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=Path(__file__).parents[1],
        ) as process:
            assert process.stdout
            begun: dict[str, Any] | None = None
            while line := _line(process):
                found = json.loads(line)
                if "begins" in found:
                    begun = found
                    continue
                yield found
                first, begun = found["number"] + 1, None
            process.kill()
            process.wait()
            if begun is None:
                if first < last:
                    raise RuntimeError(f"the child ended before file {first}")
                return
            outcome = "the child died" if begun["kind"] in IN_A_CHILD else "defect"
            said = f"the process ended with {process.returncode}, or took more than {FILE_S} s"
            yield {"number": begun["begins"], "kind": begun["kind"], "outcome": outcome} | {
                "said": said,
                "s": None,
                "peak_bytes": None,
            }
            first = begun["begins"] + 1


def _line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], 2 * FILE_S)
    return process.stdout.readline() if ready else b""


def findings(of: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must not be."""
    return [
        entry
        for entry in of
        if entry["outcome"] == "defect"
        or (entry["s"] or 0) > FILE_S
        or (entry["peak_bytes"] or 0) > FILE_BYTES
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--run", type=int, nargs=2, metavar=("FIRST", "COUNT"))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--files", type=int, default=10_000)
    options.add_argument("--shard", type=int, default=200)
    options.add_argument("--results", type=Path)
    asked = options.parse_args()
    if asked.run:
        run(asked.run[0], asked.run[1], asked.seed)
        return
    if asked.results is None:
        options.error("--results DIR: where the results of each shard are kept")
    asked.results.mkdir(parents=True, exist_ok=True)
    everything: list[dict[str, Any]] = []
    for first in range(0, asked.files, asked.shard):
        place = asked.results / f"{asked.seed}-{first}-{asked.shard}.json"
        if not place.exists():
            shard = list(results(first, min(asked.shard, asked.files - first), asked.seed))
            part = place.with_suffix(".part")
            part.write_text(json.dumps(shard))
            part.replace(place)
        everything += json.loads(place.read_text())
    outcomes: dict[str, int] = {}
    for entry in everything:
        outcomes[entry["outcome"]] = outcomes.get(entry["outcome"], 0) + 1
    print(f"{len(everything)} files: {outcomes}")
    print(f"slowest {max(entry['s'] or 0 for entry in everything)} s")
    print(f"most memory {max(entry['peak_bytes'] or 0 for entry in everything) / 1e9:.2f} GB")
    for entry in findings(everything):
        print(json.dumps(entry))
    sys.exit(1 if findings(everything) else 0)


if __name__ == "__main__":
    main()
