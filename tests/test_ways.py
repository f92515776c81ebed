"""The ways from a model to a runtime: which there are, that their candidates compute the same, and
that a way which gives nothing new is not tried twice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from onmetal.deploy.propose.plan import plan
from onmetal.deploy.ways import NO_WAYS, Ways, usual, ways
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.records import Model
from onmetal.runtimes.fit import load_target
from tests.deploy_runs import Run
from tests.imported_models import Read

Find = Callable[[Model, str], dict[str, str | None]]


@pytest.fixture
def planned(cache: Cache) -> Find:
    """The names of a target's candidates -> why they are not tried."""
    device = Local(cache)

    def called(model: Model, name: str) -> dict[str, str | None]:
        target = load_target(name)
        known: Ways = ways([model], target, cache, device)
        return {e.name: e.skipped for e in plan(target, [model], device.facts(), None, ways=known)}

    return called


def test_a_saved_model_goes_to_each_runtime_in_every_way(
    of_tensorflow: Path, read: Read, planned: Find
) -> None:
    found = planned(read(of_tensorflow / "cnn"), "x86-64")
    for name in (
        *("fp32@onnxruntime", "fp32@openvino", "fp32-via-saved-model@openvino"),
        *("fp32@litert", "fp32-via-tensorflow@litert"),
        *("int8@litert", "int8-via-tensorflow@litert", "int8-u8s8@openvino"),
    ):
        assert found[name] is None, name
    # What is done to a graph cannot be done to a file that the runtime alone reads.
    assert "int8-u8s8-via-saved-model@openvino" not in found
    # A way besides the usual one is not told for recipes that the runtime does not run.
    assert "bf16-via-tensorflow@litert" not in found and "bf16@litert" in found


def test_a_way_that_there_is_not_says_why_once(
    of_tensorflow: Path, read: Read, planned: Find
) -> None:
    found = planned(read(of_tensorflow / "long.keras"), "tflite-x86")
    (said,) = [why for name, why in found.items() if "via-tensorflow" in name]
    assert said and "control flow" in said


def test_outputs_are_told_apart_by_name(
    of_tensorflow: Path, read: Read, cache: Cache, planned: Find
) -> None:
    """TensorFlow's converter gives outputs in an order of its own."""
    model = read(of_tensorflow / "two.keras")
    target, device = load_target("tflite-x86"), Local(cache)
    by_tensorflow = ways([model], target, cache, device)[model.path, "litert"][1]
    assert by_tensorflow.lacks is None
    assert by_tensorflow.model.imported
    assert "converter of TensorFlow" in by_tensorflow.model.imported.by
    assert by_tensorflow.model.imported.largest_difference <= 1e-5
    assert by_tensorflow.model.graph_format == "tflite"
    assert by_tensorflow.model.outputs == model.outputs


def test_an_export_is_made_once(
    of_tensorflow: Path, read: Read, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read(of_tensorflow / "cnn.keras")
    target, device = load_target("tflite-x86"), Local(cache)
    first = ways([model], target, cache, device)

    def no_worker() -> None:
        raise AssertionError("it was exported again")

    monkeypatch.setattr(device, "worker", no_worker)
    assert ways([model], target, cache, device) == first


def test_a_framework_is_not_asked_again_for_the_same_file(
    of_tensorflow: Path, read: Read, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = read(of_tensorflow / "cnn.keras")

    def no_worker(self: Local) -> None:
        raise AssertionError("it was read again")

    with monkeypatch.context() as patched:
        patched.setattr(Local, "worker", no_worker)
        assert read(of_tensorflow / "cnn.keras") == first
        with pytest.raises(AssertionError):  # other shapes are another import
            read(of_tensorflow / "cnn.keras", image=(2, 16, 16, 3))
        with pytest.raises(AssertionError):  # as is one that may run code in the file
            read(of_tensorflow / "cnn.keras", trust=True)
        changed = tmp_path / "cnn.keras"
        changed.write_bytes((of_tensorflow / "cnn.keras").read_bytes() + b"\0")
        with pytest.raises(AssertionError):
            read(changed)


def test_candidates_of_all_ways_are_compared_with_the_framework(
    of_tensorflow: Path, run_here: Run
) -> None:
    words = ("--target", "x86-64", "--no-device", "--recipes", "fp32", "--minimize", "size")
    code, found = run_here(of_tensorflow / "cnn", *words)
    candidates = {entry["name"]: entry for entry in found["candidates"]}
    assert code == 0
    for name in ("fp32@onnxruntime", "fp32@openvino", "fp32-via-saved-model@openvino"):
        assert candidates[name]["status"] in ("ok", "chosen"), candidates[name]
        assert min(candidates[name]["fidelity"]["sqnr_db"].values()) > 100
        assert candidates[name]["recipe"] == "fp32"
    by_tensorflow = candidates["fp32-via-tensorflow@litert"]
    assert by_tensorflow["status"] == "skipped"
    assert "gives the same operators, of the same shapes" in by_tensorflow["reason"]
    assert "imported" not in candidates["fp32@onnxruntime"]["details"]


def test_a_graph_goes_to_every_runtime_but_one_that_reads_another_format() -> None:
    path = Path("net.onnx")
    net = Model(path, path, "", "onnx", "", 1, (), (), 0, 0, {"Conv": 1}, 1)
    assert [usual(net, name).lacks for name in ("onnxruntime", "openvino", "litert")] == [None] * 3
    net = replace(net, prepared=Path("net.tflite"), format="tflite")
    assert usual(net, "litert").lacks is None
    assert usual(net, "onnxruntime").lacks == "ONNX Runtime does not read TFLite models"
    assert not NO_WAYS


def test_a_sample_of_each_input_reaches_openvino_by_its_name(
    of_tensorflow: Path, run_here: Run, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    data = tmp_path / "data.npz"
    np.savez(data, x=random.normal(size=(8, 4)).astype(np.float32))
    words = ("--target", "x86-openvino", "--no-device", "--recipes", "fp32")
    code, found = run_here(of_tensorflow / "doubles", "--calibration-data", data, *words)
    assert code == 0
    (own,) = [e for e in found["candidates"] if e["name"] == "fp32-via-saved-model@openvino"]
    assert set(own["fidelity"]["sqnr_db"]) == {"once", "twice"}
