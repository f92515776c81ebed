"""ONNX -> ONNX Runtime: the static model itself; the runtime optimizes it where it is opened.

An offline-optimized graph is not shipped: it holds layouts for the CPU that wrote it.
"""

import os
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from onmetal.runtimes.bounds import MOST_THREADS, Entry, Switch, whole
from onmetal.runtimes.protocol import Hardware

VERSION = 1
ALONE = False
OPTIONS: dict[str, Any] = {
    "graph_optimization_level": Literal[
        "ORT_DISABLE_ALL",
        "ORT_ENABLE_BASIC",
        "ORT_ENABLE_EXTENDED",
        "ORT_ENABLE_LAYOUT",
        "ORT_ENABLE_ALL",
    ],
    "execution_mode": Literal["ORT_SEQUENTIAL", "ORT_PARALLEL"],
    # 0: as many as there are cores.
    "intra_op_num_threads": Annotated[int, Meta(ge=0, le=MOST_THREADS)],
    "inter_op_num_threads": Annotated[int, Meta(ge=0, le=MOST_THREADS)],
    "enable_mem_pattern": Switch,
    "enable_cpu_mem_arena": Switch,
    "use_deterministic_compute": Switch,
    "session.intra_op_thread_affinities": Annotated[str, Meta(pattern=r"^[0-9,;-]{1,4096}\Z")],
    "session.dynamic_block_base": whole(0, 4096),
    **dict.fromkeys(
        (
            "session.intra_op.allow_spinning",
            "session.inter_op.allow_spinning",
            "session.set_denormal_as_zero",
            "session.disable_prepacking",
            "session.use_env_allocators",
            "mlas.enable_gemm_fastmath_arm64_bfloat16",
        ),
        Entry,
    ),
}
"""Of SessionOptions and its configuration entries, those that neither read nor write files."""
RESERVED = frozenset({"intra_op_num_threads", "inter_op_num_threads", "execution_mode"})


def convert(prepared: str, compute: str, folder: str, hardware: Hardware) -> list[str]:
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


def describe(path: str) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs of the static ONNX model."""
    import onnx  # not at the top: processes that only need the options do not load it

    from onmetal.converters.onnx import external

    model = onnx.load(path, load_external_data=False)
    external.check(model, Path(path))  # onnxruntime would open whatever the model names
    graph = model.graph
    constant = {tensor.name for tensor in graph.initializer}

    def described(value: onnx.ValueInfoProto) -> dict[str, Any]:
        value_type = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value_type.elem_type).name
        sizes = [axis.dim_value if axis.dim_value > 0 else -1 for axis in value_type.shape.dim]
        shape = sizes if value_type.HasField("shape") else None
        return {"name": value.name, "dtype": dtype, "shape": shape}

    return {
        "inputs": [described(value) for value in graph.input if value.name not in constant],
        "outputs": [described(value) for value in graph.output],
    }
