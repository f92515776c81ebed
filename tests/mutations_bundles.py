"""Honest parts of a bundle, and how each is read, for the mutations."""

import hashlib
import io
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from onmetal.bundles import manifest
from onmetal.bundles import verify as verifying
from onmetal.bundles.sums import SUMS
from onmetal.errors import VerificationError
from onmetal.files import cache as caches
from onmetal.files.arrays import read_npz
from onmetal.reports.json import encode
from onmetal.runtimes import run_tail, running
from tests import onnx_models

TENSOR = {"name": "x", "dtype": "float32", "shape": [1, 4]}


@cache
def honest() -> dict[str, bytes]:
    """The files of a bundle, by name."""
    with TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        onnx_models.save(onnx_models.relu((1, 4)), model)
        files = {"model.onnx": model.read_bytes()}
        digest = caches.sha256(model)
    stored = io.BytesIO()
    values = np.arange(4, dtype=np.float32).reshape(1, 4)
    np.savez(stored, **{"input/x/0": values, "output/y/0": values})  # type: ignore[arg-type]
    files["golden.npz"] = stored.getvalue()
    files["run.py"] = running.program("onnxruntime")
    files["README.md"] = b"# A bundle\n"
    names = ["README.md", "golden.npz", "manifest.json", "model.onnx", "run.py"]
    document = {
        "schema": 1,
        "chosen": "fp32@onnxruntime",
        "run": {
            "runtime": "onnxruntime",
            "runtime_version": "1.25.0",
            "files": ["model.onnx"],
            "options": {"intra_op_num_threads": 2, "session.intra_op.allow_spinning": "1"},
            "inputs": [TENSOR],
            "outputs": [TENSOR | {"name": "y"}],
        },
        "golden": {"vectors": 1, "tolerance": 1e-4},
        "digests": {"artifact": digest},
        "files": manifest.named(names),
        "candidates": [{"name": "fp32@onnxruntime", "latency_ms": {"p50": 1.25, "samples": 300}}],
    }
    files["manifest.json"] = encode(document)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[SUMS] = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    return files


KINDS = ("manifest.json", SUMS, "golden.npz", "inputs.npz")


def seeds() -> list[tuple[str, bytes]]:
    stored = io.BytesIO()
    np.savez_compressed(stored, x=np.arange(4, dtype=np.float32).reshape(1, 4))
    files = honest() | {"inputs.npz": stored.getvalue()}
    return [(kind, files[kind]) for kind in KINDS]


def read(kind: str, data: bytes, folder: Path) -> None:
    """Raises VerificationError where it is refused."""
    place = folder / "bundle"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if kind == "inputs.npz":
        (place / kind).write_bytes(data)
        try:
            run_tail.read_inputs(str(place / kind), [TENSOR])
        except run_tail.Refused as error:
            raise VerificationError(str(error)) from None
        return
    for name, content in (honest() | {kind: data}).items():
        (place / name).write_bytes(content)
    problems: list[str] = []
    if kind == "golden.npz":
        read_npz(place / kind, 64 << 20)
    elif kind == SUMS:
        copy = folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        problems = verifying._copy_files(place, copy)
    else:
        document, problems = manifest.read(place)
        names = [name for name in honest() if name != SUMS]
        problems = problems or manifest.strangers(document, names)
        json.dumps(document)
    if problems:
        raise VerificationError("; ".join(problems))
