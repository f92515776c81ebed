"""The C side of a Linux bundle: one file of plain C11 that runs the artifact, to copy from.

It is written for its bundle: names, shapes and quantization are constants in it. No header of a
runtime is needed to compile it; it loads the runtime's library when it runs.
"""

import numpy as np

from onmetal.bundles.artifact_io import (
    Port,
    Ports,
    count_vectors,
    file_names,
    float_literal,
    ports,
    raw_vectors,
    template,
)
from onmetal.errors import UnsupportedError
from onmetal.records import Candidate
from onmetal.runtimes import pinned
from onmetal.texts.quoting import c_string, plain

TITLES = {"litert": "LiteRT", "onnxruntime": "ONNX Runtime"}


def files(
    candidate: Candidate, golden: dict[str, np.ndarray], tolerance: float
) -> dict[str, bytes]:
    """`example.c`, `requirements.txt` and `example-golden/…`, by their path in the bundle.

    `golden`: as `vectors.write_golden` makes it. Raises UnsupportedError for tensors of a type
    that the example does not know.
    """
    found = ports(candidate)
    vectors = count_vectors(found, golden)
    return {
        "example.c": _source(candidate, found, vectors, tolerance).encode(),
        "requirements.txt": requirements(candidate).encode(),
        **{
            f"example-golden/{name}": content
            for name, content in raw_vectors(found, golden).items()
        },
    }


def requirements(candidate: Candidate) -> str:
    return pinned(candidate.runtime, candidate.runtime_version)


def _source(candidate: Candidate, found: Ports, vectors: int, tolerance: float) -> str:
    runtime = candidate.runtime
    own = {"options": _options(candidate)} if runtime == "onnxruntime" else {}
    return template(
        "c/example.c",
        title=TITLES[runtime],
        version=plain(candidate.runtime_version),
        max_rank=str(max(4, *(len(p.shape) for p in (*found.inputs, *found.outputs)))),
        input_count=str(len(found.inputs)),
        output_count=str(len(found.outputs)),
        vectors=str(vectors),
        threads=str(_threads(candidate)),
        artifact=c_string(file_names(candidate)[0]),
        tolerance=repr(float(tolerance)),
        inputs=",\n    ".join(map(_tensor, found.inputs)),
        outputs=",\n    ".join(map(_tensor, found.outputs)),
        runtime_part=template(f"c/{runtime}.c", **own),
    )


def _threads(candidate: Candidate) -> int:
    names = {"litert": "num_threads", "onnxruntime": "intra_op_num_threads"}
    return int(candidate.options.get(names[candidate.runtime], 1))


def _tensor(port: Port) -> str:
    fields = {
        "name": c_string(port.name),
        "dtype": port.dtype.upper(),
        "stored": port.stored.upper(),
        "place": str(port.place),
        "channels_last": str(port.turned).lower(),
        "scale": float_literal(port.scale),
        "zero_point": str(port.zero_point),
        "rank": str(len(port.shape)),
        "shape": f"{{{', '.join(map(str, port.shape)) or '0'}}}",
    }
    return "{" + ",\n     ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


LEVELS = {
    "ORT_DISABLE_ALL": 0,
    "ORT_ENABLE_BASIC": 1,
    "ORT_ENABLE_EXTENDED": 2,
    "ORT_ENABLE_LAYOUT": 3,
    "ORT_ENABLE_ALL": 99,
    "ORT_SEQUENTIAL": 0,
    "ORT_PARALLEL": 1,
}
"""ONNX Runtime's enumerations, as its C API numbers them."""


def _options(candidate: Candidate) -> str:
    lines = [_option(name, value) for name, value in sorted(candidate.options.items())]
    return "\n    ".join(lines)


def _option(name: str, value: object) -> str:
    """ONNX Runtime's option by its function in C."""
    if "." in name:
        return f"CALL(AddSessionConfigEntry, options, {c_string(name)}, {c_string(str(value))});"
    switches = {"enable_mem_pattern": "MemPattern", "enable_cpu_mem_arena": "CpuMemArena"}
    if name in switches:
        return f"CALL({'Enable' if value else 'Disable'}{switches[name]}, options);"
    setters = {
        "intra_op_num_threads": ("SetIntraOpNumThreads", value),
        "inter_op_num_threads": ("SetInterOpNumThreads", value),
        "execution_mode": ("SetSessionExecutionMode", LEVELS.get(str(value))),
        "graph_optimization_level": ("SetSessionGraphOptimizationLevel", LEVELS.get(str(value))),
        "use_deterministic_compute": ("SetDeterministicCompute", int(bool(value))),
    }
    setter, number = setters.get(name, ("", None))
    if number is None:
        raise UnsupportedError(f"ONNX Runtime's C API has no option {name!r} of {value!r}")
    return f"CALL({setter}, options, {int(str(number))});"
