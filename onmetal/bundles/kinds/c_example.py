"""The C side of a Linux bundle: one file of plain C11 that runs the artifact, to copy from.

It is written for its bundle: names, shapes and quantization are constants in it. No header of a
runtime is needed to compile it; it loads the runtime's library when it runs.
"""

from typing import Any

import numpy as np

from onmetal.bundles.artifact_io import (
    ArtifactIo,
    ArtifactTensor,
    artifact_tensors,
    count_vectors,
    file_names,
    float_literal,
    programs,
    raw_vectors,
    runtime_template,
    template,
)
from onmetal.bundles.kinds import PART, BundleKind, Contents
from onmetal.records import Candidate
from onmetal.runtimes import pinned, spec
from onmetal.texts.quoting import c_string, plain


def files(
    candidate: Candidate, golden: dict[str, np.ndarray], tolerance: float
) -> dict[str, bytes]:
    """`example.c`, `requirements.txt` and `example-golden/…`, by their path in the bundle.

    `golden`: as `vectors.write_golden` makes it. Raises UnsupportedError for tensors of a type
    that the example does not know.
    """
    tensors = artifact_tensors(candidate)
    vectors = count_vectors(tensors, golden)
    return {
        "example.c": _source(candidate, tensors, vectors, tolerance).encode(),
        "requirements.txt": requirements(candidate).encode(),
        **{
            f"example-golden/{name}": content
            for name, content in raw_vectors(tensors, golden).items()
        },
    }


def requirements(candidate: Candidate) -> str:
    return pinned(candidate.runtime, candidate.runtime_version)


def _source(candidate: Candidate, tensors: ArtifactIo, vectors: int, tolerance: float) -> str:
    runtime = candidate.runtime
    runtime_values = programs(candidate).in_c(candidate.options)
    return template(
        "example.c",
        title=spec(runtime).title,
        version=plain(candidate.runtime_version),
        max_rank=str(max(4, *(len(p.shape) for p in (*tensors.inputs, *tensors.outputs)))),
        input_count=str(len(tensors.inputs)),
        output_count=str(len(tensors.outputs)),
        vectors=str(vectors),
        threads=str(programs(candidate).threads(candidate.options)),
        artifact=c_string(file_names(candidate)[0]),
        tolerance=repr(float(tolerance)),
        inputs=",\n    ".join(map(_tensor, tensors.inputs)),
        outputs=",\n    ".join(map(_tensor, tensors.outputs)),
        runtime_part=runtime_template(runtime, "example.c", **runtime_values),
    )


def _tensor(tensor: ArtifactTensor) -> str:
    fields = {
        "name": c_string(tensor.name),
        "dtype": tensor.dtype.upper(),
        "stored": tensor.stored.upper(),
        "place": str(tensor.place),
        "channels_last": str(tensor.turned).lower(),
        "scale": float_literal(tensor.scale),
        "zero_point": str(tensor.zero_point),
        "rank": str(len(tensor.shape)),
        "shape": f"{{{', '.join(map(str, tensor.shape)) or '0'}}}",
    }
    return "{" + ",\n     ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


class CExample(BundleKind):
    transport = "ssh"
    what = "an example in C"
    places = {  # noqa: RUF012
        "golden": rf"example-golden/{PART}\.bin",
        "requirements": r"requirements\.txt",
        "source": r"example\.c",
    }

    def files(self, contents: Contents) -> dict[str, bytes]:
        return files(contents.candidate, contents.golden, contents.tolerance)

    def without(self, candidate: Candidate) -> dict[str, bytes]:
        return {"requirements.txt": requirements(candidate).encode()}

    def shipped(self, candidate: Candidate, left_out: str | None, *, run: bool) -> dict[str, Any]:
        none = "nothing was measured: there was no device"
        return {
            "kind": "run.py" if left_out else "run.py, and an example in C",
            "path": "run.py",
            "artifact": f"{spec(candidate.runtime).packages[0]}=={candidate.runtime_version}",
            "measured": run,
            "note": left_out or ("the version of the runtime that was measured" if run else none),
        }


KIND: BundleKind = CExample()
