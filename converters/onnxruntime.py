"""ONNX -> ONNX Runtime: the static model itself; the runtime optimizes it where it is opened.

An offline-optimized graph is not shipped: it holds layouts for the CPU that wrote it.
"""

import os
import shutil
from pathlib import Path
from typing import Any

VERSION = 1
ALONE = False
OPTIONS = frozenset(
    {
        "graph_optimization_level",
        "execution_mode",
        "intra_op_num_threads",
        "inter_op_num_threads",
        "enable_mem_pattern",
        "enable_cpu_mem_arena",
        "use_deterministic_compute",
        "session.intra_op.allow_spinning",
        "session.inter_op.allow_spinning",
        "session.intra_op_thread_affinities",
        "session.set_denormal_as_zero",
        "session.disable_prepacking",
        "session.use_env_allocators",
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "session.dynamic_block_base",
    }
)
"""Of SessionOptions and its configuration entries, those that neither read nor write files."""
RESERVED = frozenset({"intra_op_num_threads", "inter_op_num_threads", "execution_mode"})


def convert(prepared: str, compute: str, folder: str) -> list[str]:
    home = Path(prepared).parent
    names = [name for name in ("model.onnx", "model.data") if (home / name).exists()]
    for name in names:
        try:
            os.link(home / name, Path(folder) / name)  # as large as the model: not twice on disk
        except OSError:
            shutil.copyfile(home / name, Path(folder) / name)
    return names


def options(compute: str, threads: int) -> dict[str, Any]:
    return {
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "execution_mode": "ORT_SEQUENTIAL",
        "intra_op_num_threads": threads,
        "inter_op_num_threads": 1,
        # Waiting threads spin for a moment instead of sleeping: lower latency for one model that
        # runs back to back. Without a second thread there is nothing to wait for.
        "session.intra_op.allow_spinning": "1" if threads > 1 else "0",
    }
