"""What a bundle for a phone or a board holds besides, and whose measurement it is: the runtime's
build that was measured is not always the one that an application will have."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct

from onmetal.bundles.kinds import android, c_example, firmware
from onmetal.errors import UnsupportedError, UsageError
from onmetal.profilers.devices.remote.device import Remote
from onmetal.records import Candidate, DeviceFacts, Trial
from onmetal.runtimes import shipped
from onmetal.targets import Target, packages

WHAT = {"adb": "an Android module", "ssh": "an example in C", "serial": "the firmware"}
NPU_TAIL_BYTES = 16 * 1024
"""Of the arena, beside what Vela plans: what the interpreter keeps of the few operators left."""


def check_golden(target: Target, golden: str) -> None:
    """Raises UsageError where what the bundle would hold checks itself by golden vectors, and there
    are to be none."""
    what = WHAT.get(target.device.transport)
    if golden == "none" and what:
        raise UsageError(
            f"--golden none: {what}, which the bundle for {target.name} holds, checks itself by "
            "golden vectors; --golden random makes some without your data"
        )


class Ran(Struct, frozen=True):
    """On what the chosen candidate ran, beside this machine."""

    facts: DeviceFacts
    remote: Remote | None = None
    board: bool = False
    timed: bool = False
    """Whether its time there is the hardware's."""
    counted: bool = False
    """Whether the device counts instructions, and has no time."""


class Beside(NamedTuple):
    """What a bundle holds besides."""

    files: dict[str, bytes]
    """By their path in the bundle."""
    builds: dict[str, Any] | None
    """Of the manifest; None: the bundle is for this machine."""
    warnings: tuple[str, ...]


def beside(target: Target, ran: Ran, chosen: Trial, golden: Path, tolerance: float) -> Beside:
    """What the bundle holds beside run.py and the artifact."""
    candidate, transport = chosen.candidate, target.device.transport
    assert candidate
    if transport == "local":
        return Beside({}, None, ())
    with np.load(golden, allow_pickle=False) as stored:
        vectors = {name: stored[name] for name in stored.files}
    what = WHAT[transport]
    try:
        if transport == "serial":
            core = target.chip.core if target.chip else None
            files = {**_memory(chosen), **_firmware(chosen, vectors, core)}
        elif transport == "adb":
            files = android.files(candidate, vectors, tolerance)
        else:
            files = c_example.files(candidate, vectors, tolerance)
        left_out = None
    except UnsupportedError as error:
        files, left_out = {}, f"{what} was not written: {error}"
        if transport == "ssh":
            files = {"requirements.txt": c_example.requirements(candidate).encode()}
    elsewhere = ran.remote is not None or ran.board
    builds = {
        "measured": _measured(ran, candidate),
        "shipped": _shipped(transport, candidate, left_out, run=elsewhere and not ran.counted),
    }
    return Beside(files, builds, (left_out,) if left_out else ())


def _memory(chosen: Trial) -> dict[str, bytes]:
    """Who lives in the arena, and when: in text, and drawn. Vela plans an NPU's itself."""
    assert chosen.embedded
    if chosen.embedded["npu"]:
        return {}
    plan = chosen.embedded["plan"]
    return {"memory.txt": plan["timeline"].encode(), "memory.svg": plan["svg"].encode()}


def _firmware(chosen: Trial, golden: dict[str, np.ndarray], core: str | None) -> dict[str, bytes]:
    """The sources of a firmware around the file that the chip holds."""
    candidate, found = chosen.candidate, chosen.embedded
    memory = chosen.figures.get("peak_memory_bytes")
    assert candidate and found and memory
    held = shipped(candidate.runtime, candidate.files)[0]
    if found["npu"]:
        reserve = int(memory.value) + NPU_TAIL_BYTES
    else:  # also where a board took less: other kernels may be linked the next time
        modelled = found["arena"]["modelled"] or {"total_bytes": 0}
        known = found["arena"]["host"]["total"], modelled["total_bytes"]
        reserve = max(int(memory.value), *known)
    return firmware.files(
        candidate,
        golden,
        shipped=held,
        arena_bytes=-(-reserve // 1024) * 1024,
        operators=found["flash"]["operators"],
        name=candidate.model.stem,
        core=core,
    )


def _measured(ran: Ran, candidate: Candidate) -> dict[str, Any] | None:
    """The runtime's build that gave the figures; None: nothing was run on a device."""
    if ran.board and ran.timed:
        return {
            "runner": "firmware",
            "runtime": candidate.runtime,
            "runtime_version": str(ran.facts.more["profile"]),
            "from": f"the board {ran.facts.cpu}",
        }
    if ran.remote is None:
        return None
    runner = ran.remote.runner(candidate.runtime)
    package = packages(candidate.runtime)[0]
    origin = "the device's own Python"
    if runner.kind == "native":
        origin = f"PyPI's {package} for AArch64, under onmetal's native runner with its own libc"
    return {
        "runner": runner.kind,
        "runtime": candidate.runtime,
        "runtime_version": runner.version,
        "from": origin,
    }


def _shipped(
    transport: str, candidate: Candidate, left_out: str | None, *, run: bool
) -> dict[str, Any]:
    """What an application made from the bundle runs. `run`: whether anything ran on a device."""
    none = "nothing was measured: there was no device"
    if transport == "serial":
        none = "nothing was measured: there was no board"
        return {
            "kind": "firmware",
            "path": None if left_out else "firmware",
            "artifact": "TFLite Micro, which you build",
            "measured": run,
            "note": left_out or (none if not run else "the firmware that was on the board"),
        }
    if transport == "adb":
        return {
            "kind": "Android module",
            "path": None if left_out else "android",
            "artifact": android.dependency(candidate)[0],
            "measured": False,
            "note": left_out
            or (none if not run else "the application's build of the runtime is unmeasured"),
        }
    return {
        "kind": "run.py" if left_out else "run.py, and an example in C",
        "path": "run.py",
        "artifact": f"{packages(candidate.runtime)[0]}=={candidate.runtime_version}",
        "measured": run,
        "note": left_out or ("the version of the runtime that was measured" if run else none),
    }
