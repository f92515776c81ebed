"""Vela compiles a .tflite file for an Ethos-U, and models what it costs there: cycles, memory.

Its figures are a model of the NPU alone. The operators that are left to the core beside it are in
none of these figures, and are listed here, each with Vela's reason. Runs in a child process.
https://gitlab.arm.com/artificial-intelligence/ethos-u/ethos-u-vela
"""

import csv
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onmetal.converters.tflite.parsing import read
from onmetal.errors import UnsupportedError

NPU_OPERATOR = "ethos-u"
"""The custom operator that stands for all operators that the NPU runs."""
LIMIT_S = 1800
INSTALL = "Vela is not installed; `pip install 'onmetal[embedded]'`"
_REASON = re.compile(
    r"Warning \(supported operators\) operator: (\w+), ofm: '([^\n]*)'\n((?:[^\n]+\n?)*)"
)
_LEFT = re.compile(r"CPU operators = (\d+)")


def compile_(path: Path, npu: dict[str, str], target: Path) -> dict[str, Any]:
    """Write the file that the NPU's driver runs to `target`. -> Vela's figures, as of `figures_of`.

    `npu`: as targets.Npu. Raises UnsupportedError, with Vela's words, where it compiles nothing.
    """
    if not find_spec("ethosu"):
        raise UnsupportedError(INSTALL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "model.tflite"
        source.write_bytes(path.read_bytes())
        process = _run(source, npu, folder)
        compiled = list(folder.glob("*_vela.tflite"))
        summary = list(folder.glob("*_summary_*.csv"))
        if process.returncode or len(compiled) != 1 or len(summary) != 1:
            raise UnsupportedError(f"Vela does not compile it: {_last_error(process.stdout)}")
        content = compiled[0].read_bytes()
        layers = folder / "model_per-layer.csv"
        rows = _rows(layers.read_text("utf-8", "replace")) if layers.is_file() else []
        figures = figures_of(
            process.stdout, _rows(summary[0].read_text("utf-8", "replace"))[0], rows, content
        )
    target.write_bytes(content)
    return figures


def _run(source: Path, npu: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    words = ["--accelerator-config", npu["accelerator"], "--system-config", npu["system_config"]]
    words += ["--memory-mode", npu["memory_mode"], "--config", "Arm/vela.ini"]
    words += ["--output-dir", str(folder), "--verbose-performance"]
    try:
        return subprocess.run(
            [sys.executable, "-P", "-m", "ethosu.vela", str(source), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        raise UnsupportedError(f"Vela did not end within {LIMIT_S // 60} minutes") from None


def _rows(text: str) -> list[dict[str, str]]:
    rows = csv.reader(line for line in text.splitlines() if line.strip())
    head = [name.strip() for name in next(rows, [])]
    return [dict(zip(head, (cell.strip() for cell in row), strict=False)) for row in rows]


def _last_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line] or lines or ["it says nothing"]
    return errors[-1][:400]


def figures_of(
    text: str, summary: dict[str, str], layers: list[dict[str, str]], content: bytes
) -> dict[str, Any]:
    """Vela's figures in base units.

    `cycles`: of the NPU itself, of its accesses by memory, and in all, as they overlap; `layers`:
    of each operator on the NPU its cycles and the share of its multipliers that work; `on_cpu`: of
    each operator that is left to the core, its kind, output and the reason; `cpu_operators`: how
    many Vela counts itself, where that is more.
    """
    cycles = {
        name.removeprefix("cycles_"): int(float(value))
        for name, value in summary.items()
        if name.startswith("cycles_")
    }
    memory = {
        name.removesuffix("_memory_used"): round(float(value) * 1024)
        for name, value in summary.items()
        if name.endswith("_memory_used")
    }
    on_cpu = operators_on_core(text, content)
    count = _LEFT.search(text)
    macs, total = int(float(summary["nn_macs"])), cycles.get("total", 0)
    clock_hz = float(summary["core_clock"])
    return {
        "vela": version("ethos-u-vela"),
        "accelerator": summary["accelerator_configuration"],
        "system_config": summary["system_config"],
        "memory_mode": summary["memory_mode"],
        "clock_mhz": clock_hz / 1e6,
        "cycles": cycles,
        "inferences_per_s": float(summary["inferences_per_second"]) if total else None,
        "inference_ms": total / clock_hz * 1e3,
        "memory_bytes": memory,
        "macs": macs,
        "utilisation": round(macs / total / _macs_a_cycle(summary), 4) if total else None,
        "layers": [_layer(row) for row in layers if row.get("Target") == "NPU"],
        "on_cpu": on_cpu,
        "cpu_operators": max(len(on_cpu), int(count[1]) if count else 0),
        "basis": "modelled",
    }


def _macs_a_cycle(summary: dict[str, str]) -> int:
    """Multiplications in a cycle, by the name of the accelerator: Ethos_U55_128 has 128."""
    return int(summary["accelerator_configuration"].rpartition("_")[2])


def _layer(row: dict[str, str]) -> dict[str, Any]:
    return {
        "operator": row.get("Original Operator") or row.get("NNG Operator") or "",
        "name": row.get("Name", ""),
        "cycles": int(float(row.get("Op Cycles") or 0)),
        "macs": int(float(row.get("MAC Count") or 0)),
        "utilisation": round(float(row.get("Util% (MAC)") or 0) / 100, 4),
        "staging_bytes": int(float(row.get("Staging Usage") or 0)),
    }


def operators_on_core(text: str, content: bytes) -> list[dict[str, str]]:
    """The operators of the compiled file that the NPU does not run, with Vela's reason for each,
    which Vela prints by the name of the operator's output."""
    reasons = {
        name: " ".join(reason.removeprefix("Reason:").split())
        for _, name, reason in _REASON.findall(text)
    }
    return [
        {
            "operator": op.custom or op.kind,
            "output": op.outputs[0].name,
            "reason": reasons.get(op.outputs[0].name, "Vela gives no reason"),
        }
        for op in read(content).ops
        if op.custom != NPU_OPERATOR
    ]
