"""Every format cut off anywhere, and little files that declare large tensors: each has a reason."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest

from onmetal.converters import operations
from onmetal.deploy import model as models
from onmetal.errors import DeviceError, UnsupportedError, UsageError
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.profilers.devices.local_worker import LocalWorker
from onmetal.profilers.operation import asked
from tests.conftest import DIGITS
from tests.onnx_models import build, node, save, value
from tests.tflite_nets import content

CUTS = 20
LARGE = 1 << 29
"""As many floats take 2 GiB."""

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def worker(shared_home: Path) -> Iterator[LocalWorker]:
    """One process that reads all that is cut off."""
    with Cache(shared_home) as cache, Local(cache).worker() as opened:
        yield opened


def reason(path: Path, cache: Cache, worker: LocalWorker) -> str:
    """Why the file is refused; it must be."""
    with cache.scratch() as scratch, pytest.raises((UsageError, UnsupportedError)) as error:
        form = models._recognize(path)
        worker.do(asked(operations.read, form.name, path, {}, None, scratch, False), timeout_s=120)
    assert not isinstance(error.value, DeviceError), "the process died"
    return str(error.value)


def sound(name: str, folder: Path, of_tensorflow: Path, of_torch: Path) -> tuple[Path, Path]:
    """A model and the file of it that is cut."""
    if name == "model.onnx":
        shutil.copyfile(DIGITS / "digits_cnn.onnx", folder / name)
    elif name == "weights.data":
        model = onnx.load_model(DIGITS / "digits_cnn.onnx")
        path = folder / "model.onnx"
        onnx.save_model(model, path, save_as_external_data=True, location=name, size_threshold=0)
        return path, folder / name
    elif name == "model.tflite":
        (folder / name).write_bytes(content("float"))
    elif name == "saved.zip":
        shutil.make_archive(str(folder / "saved"), "zip", of_tensorflow, "cnn")
    elif name.startswith(("saved_model.pb", "variables/")):
        shutil.copytree(of_tensorflow / "cnn", folder / "cnn")
        return folder / "cnn", folder / "cnn" / name
    else:
        source = of_torch if name.endswith(".pt2") else of_tensorflow
        shutil.copyfile(source / name, folder / name)
    return folder / name, folder / name


@pytest.mark.parametrize(
    "name",
    [
        *("model.onnx", "weights.data", "model.tflite", "cnn.keras", "cnn.h5", "cnn.pt2"),
        *("saved.zip", "saved_model.pb", "variables/variables.data-00000-of-00001"),
        "variables/variables.index",
    ],
)
def test_a_file_that_is_cut_anywhere_is_refused(
    of_tensorflow: Path,
    of_torch: Path,
    tmp_path: Path,
    cache: Cache,
    worker: LocalWorker,
    name: str,
) -> None:
    path, cut = sound(name, tmp_path, of_tensorflow, of_torch)
    whole = cut.read_bytes()
    for at in np.random.default_rng(len(name)).integers(1, len(whole), CUTS):
        cut.write_bytes(whole[:at])
        said = reason(path, cache, worker)
        assert len(said) > 20 and "Traceback" not in said, f"cut at {at}: {said}"


def large_onnx(folder: Path, *_: Path) -> Path:
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[LARGE])
    nodes = [node("ReduceSum", "w", "s"), node("Add", "x s", "y")]
    return save(build(nodes, [value("x", [1])], [value("y", [1])], [weight]), folder / "m.onnx")


def large_tflite(folder: Path, *_: Path) -> Path:
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import Builder

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content("float"), 0))
    weight = next(t for t in model.subgraphs[0].tensors if t.buffer and len(t.shape) == 4)
    weight.shape = [LARGE, 1, 1, 1]
    builder = Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    (folder / "m.tflite").write_bytes(bytes(builder.Output()))
    return folder / "m.tflite"


def large_h5(folder: Path, of_tensorflow: Path, of_torch: Path) -> Path:
    with h5py.File(of_tensorflow / "cnn.h5") as old, h5py.File(folder / "m.h5", "w") as new:
        new.attrs["model_config"] = old.attrs["model_config"]
        new.create_dataset("model_weights/w", (LARGE,), "f4", chunks=(1 << 20,))
    return folder / "m.h5"


def large_keras(folder: Path, of_tensorflow: Path, of_torch: Path) -> Path:
    with h5py.File(folder / "w.h5", "w") as weights:
        weights.create_dataset("layers/w", (LARGE,), "f4", chunks=(1 << 20,))
    path = folder / "m.keras"
    with zipfile.ZipFile(of_tensorflow / "cnn.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) if "weights" not in name else b"")
    with zipfile.ZipFile(path) as archive:
        parts = {n: archive.read(n) for n in archive.namelist()}
    parts["model.weights.h5"] = (folder / "w.h5").read_bytes()
    with zipfile.ZipFile(path, "w") as new:
        for name, data in parts.items():
            new.writestr(name, data)
    return path


def large_saved_model(folder: Path, of_tensorflow: Path, of_torch: Path) -> Path:
    """A constant of one number that stands for 2^29 of them."""
    return of_tensorflow / "swollen"


def large_pt2(folder: Path, of_tensorflow: Path, of_torch: Path) -> Path:
    """Its first weight is said to have more numbers than its bytes."""

    def swell(document: Any) -> None:
        entry = next(iter(document["config"].values()))
        meta = entry["tensor_meta"]
        meta["sizes"], meta["strides"] = [{"as_int": LARGE}], [{"as_int": 1}]

    path = folder / "m.pt2"
    with zipfile.ZipFile(of_torch / "cnn.pt2") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("model_weights_config.json"):
                document = json.loads(data)
                swell(document)
                data = json.dumps(document).encode()
            new.writestr(name, data)
    return path


def full_pt2(folder: Path, of_tensorflow: Path, of_torch: Path) -> Path:
    """An operator that makes 2^29 numbers of one."""
    return of_torch / "swollen.pt2"


@pytest.mark.parametrize(
    "make",
    [large_onnx, large_tflite, large_h5, large_keras, large_saved_model, large_pt2, full_pt2],
)
def test_a_large_tensor_in_a_small_file_is_refused(
    of_tensorflow: Path,
    of_torch: Path,
    tmp_path: Path,
    refused: Refused,
    make: Callable[..., Path],
) -> None:
    path = make(tmp_path, of_tensorflow, of_torch)
    said = refused(path)
    assert "Traceback" not in said and len(said) > len(str(path)) + 20
