"""The code of docs/exporting.md is run as it stands there, and what it writes is deployed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onmetal.converters import format_named
from onmetal.records import Model
from tests.conftest import ROOT, once
from tests.exporter_lines import KINDS, Block, blocks
from tests.imported_models import Read
from tests.onnx_models import build, constant, node, save, value, weights

TOLERANCE = 1e-5
ALL = [(framework, block) for framework in ("torch", "tensorflow") for block in blocks(framework)]


@pytest.fixture(scope="session")
def written(shared_folder: Path) -> dict[str, Path]:
    """framework -> the folder in which all of its blocks ran."""

    def made(framework: str) -> Path:
        folder = shared_folder / f"lines-{framework}"

        def make() -> None:
            folder.mkdir()
            words = [sys.executable, "-m", "tests.exporter_lines", framework, str(folder)]
            done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stderr[-3000:]

        once(shared_folder / f"lines-{framework}.made", make)
        return folder

    return {framework: made(framework) for framework in ("torch", "tensorflow")}


def computed(found: Model, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The first output for the first sample, by the reference of the graph's own format."""
    outputs = [tensor.name for tensor in found.outputs]
    inputs = [tensor.name for tensor in found.inputs]
    graph = format_named(found.graph_format)
    reference = graph.reference(found.prepared, inputs, outputs)
    feed = {}
    for tensor in found.inputs:
        array = arrays[tensor.name] if tensor.name in arrays else next(iter(arrays.values()))
        feed[tensor.name] = np.resize(array, tensor.shape)  # the samples again, where more are due
    return np.asarray(reference.run(feed)[0])[:1]


@pytest.mark.parametrize(
    ("framework", "block"), ALL, ids=[f"{b.section}-{b.number}-{b.file}" for _, b in ALL]
)
def test_what_the_lines_write_computes_what_the_framework_does(
    written: dict[str, Path], read: Read, framework: str, block: Block
) -> None:
    place = written[framework] / str(block.number)
    with np.load(place / "expected.npz") as archive:
        arrays = dict(archive)
    wanted = arrays.pop("y")[:1]
    found = read(place / block.file)
    given = computed(found, arrays)
    assert given.shape == wanted.shape
    assert np.abs(given - wanted).max() <= TOLERANCE * np.abs(wanted).max()
    if block.section != "Weights alone: state dicts, safetensors":
        assert found.batch == 1, "the batch axis was to be free"


def test_the_document_has_a_line_for_each_kind_of_file() -> None:
    files = [block.file for _, block in ALL]
    assert {file.rpartition(".")[2] for file in files} == {*KINDS, "model_folder"}
    assert files.count("model.onnx") >= 5


def free_axes(names: list[str], axes: list[str | int]) -> onnx.ModelProto:
    """As optimum exports: every axis free, shared by all inputs."""
    inputs = [value(name, axes, TensorProto.INT64) for name in names]
    nodes = [
        node("Gather", f"table {names[0]}", "embedded"),
        node("Cast", names[1], "mask", to=TensorProto.FLOAT),
        node("Unsqueeze", "mask last", "wide"),
        node("Mul", "embedded wide", "kept"),
        node("ReduceMean", "kept", "logits", axes=[1], keepdims=0),
    ]
    table = weights("table", 50, 3)
    last = constant("last", [2], "int64")
    return build(nodes, inputs, [value("logits", ["batch_size", 3])], [table, last])


def test_a_file_of_optimum_s_kind_takes_one_shape_for_all_inputs(
    tmp_path: Path, read: Read
) -> None:
    names = ["input_ids", "attention_mask"]
    model = free_axes(names, ["batch_size", "sequence_length"])
    found = read(save(model, tmp_path / "model.onnx"), input_ids=(1, 12))
    assert [(t.name, t.shape) for t in found.inputs] == [(name, (1, 12)) for name in names]
    assert found.outputs[0].shape == (1, 3)


def boxes() -> onnx.ModelProto:
    """As ultralytics exports with nms: as many boxes as are found, padded to a fixed number."""
    nodes = [
        node("Slice", "x zero four two", "places"),
        node("Slice", "x four five two", "column"),
        node("Transpose", "column", "scores", perm=[0, 2, 1]),
        node("NonMaxSuppression", "places scores most iou least", "kept"),
        node("Slice", "kept zero most none", "first"),
        node("Shape", "first", "size"),
        node("Gather", "size nought", "count"),
        node("Sub", "most count", "lacking"),
        node("Concat", "lacking_before lacking zero", "pads", axis=0),
        node("Pad", "first pads", "output0"),
    ]
    whole = {"zero": [0], "four": [4], "five": [5], "two": [2], "none": [0], "nought": [0]}
    whole |= {"most": [3], "lacking_before": [0, 0]}
    constants = [constant(name, n, "int64") for name, n in whole.items()]
    constants += [constant("iou", [0.5]), constant("least", [0.1])]
    return build(
        nodes, [value("x", [1, 20, 5])], [value("output0", [3, 3], TensorProto.INT64)], constants
    )


def test_a_file_of_ultralytics_kind_has_boxes_of_a_computed_number(
    tmp_path: Path, read: Read
) -> None:
    found = read(save(boxes(), tmp_path / "model.onnx"))
    assert found.outputs[0].shape == (3, 3)
    apart = np.tile(np.arange(20, dtype=np.float32)[:, None], 5)[None]  # all but one score enough
    apart[..., 2:4] += 0.5
    assert computed(found, {"x": apart}).tolist() == [[0, 0, 19]]  # the box of the best score
    assert found.operators["NonMaxSuppression"] == 1
