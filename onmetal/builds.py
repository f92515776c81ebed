"""What a bundle for a phone or a board holds besides, and whose measurement it is: the runtime's
build that was measured is not always the one that an application will have."""

from pathlib import Path
from typing import Any

import numpy as np

from onmetal import android, c_example, firmware
from onmetal.converters import shipped
from onmetal.errors import UnsupportedError, UsageError
from onmetal.records import Candidate, Trial
from onmetal.targets import Target, packages
from onmetal.task import Task

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


def beside(
    task: Task, chosen: Trial, golden: Path, tolerance: float
) -> tuple[dict[str, bytes], dict[str, Any] | None]:
    """Files by their path in the bundle, and the manifest's `builds`; nothing for this machine."""
    candidate, transport = chosen.candidate, task.target.device.transport
    assert candidate
    if transport == "local":
        return {}, None
    with np.load(golden, allow_pickle=False) as stored:
        vectors = {name: stored[name] for name in stored.files}
    what = WHAT[transport]
    try:
        if transport == "serial":
            core = task.target.chip.core if task.target.chip else None
            files = {**_memory(chosen), **_firmware(chosen, vectors, core)}
        elif transport == "adb":
            files = android.files(candidate, vectors, tolerance)
        else:
            files = c_example.files(candidate, vectors, tolerance)
        left_out = None
    except UnsupportedError as error:
        files, left_out = {}, f"{what} was not written: {error}"
        task.warnings.append(left_out)
        if transport == "ssh":
            files = {"requirements.txt": c_example.requirements(candidate).encode()}
    return files, {
        "measured": _measured(task, candidate),
        "shipped": _shipped(
            transport, candidate, left_out, run=task.elsewhere is not None and not task.counted
        ),
    }


def _memory(chosen: Trial) -> dict[str, bytes]:
    """Who lives in the arena, and when: in text, and drawn. Vela plans an NPU's itself."""
    assert chosen.embedded
    if chosen.embedded["npu"]:
        return {}
    plan = chosen.embedded["plan"]
    return {"memory.txt": plan["timeline"].encode(), "memory.svg": plan["svg"].encode()}


def _firmware(chosen: Trial, golden: dict[str, np.ndarray], core: str | None) -> dict[str, bytes]:
    """The sources of a firmware around the file that the chip holds."""
    candidate, found, memory = chosen.candidate, chosen.embedded, chosen.peak_memory_bytes
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


def _measured(task: Task, candidate: Candidate) -> dict[str, Any] | None:
    """The runtime's build that gave the figures; None: nothing was run on a device."""
    if task.board and task.timed:
        return {
            "runner": "firmware",
            "runtime": candidate.runtime,
            "runtime_version": str(task.facts.more["profile"]),
            "from": f"the board {task.facts.cpu}",
        }
    if task.remote is None:
        return None
    runner = task.remote.runner(candidate.runtime)
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
