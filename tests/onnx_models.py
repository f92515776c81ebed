"""Small ONNX models, built as a test needs them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onmetal.deploy import model as model_file
from onmetal.files.cache import Cache
from onmetal.profilers.devices.local import Local
from onmetal.records import Model

F32 = TensorProto.FLOAT
Shape = Sequence[int | str | None] | None


def value(name: str, shape: Shape, kind: int = F32) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name: str, array: Any, dtype: str = "float32") -> Any:
    return numpy_helper.from_array(np.asarray(array, dtype), name)


def weights(name: str, *shape: int) -> Any:
    return constant(name, np.random.default_rng(len(name)).normal(size=shape))


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """Names are separated by blanks; `-` is an input left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


def build(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    tensors: Sequence[Any] = (),
    *,
    opset: int = 17,
    ir: int = 8,
    domains: Sequence[str] = (),
    functions: Sequence[Any] = (),
) -> Any:
    graph = helper.make_graph(list(nodes), "small", list(inputs), list(outputs), list(tensors))
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=list(functions))


def save(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def relu(shape: Shape, kind: int = F32, **keywords: Any) -> Any:
    """`x` in, `y` out, of the same shape."""
    inputs, outputs = [value("x", shape, kind)], [value("y", shape, kind)]
    return build([node("Relu", "x", "y")], inputs, outputs, **keywords)


def add(left: Shape, right: Shape, out: Shape, kind: int = F32) -> Any:
    """`a` + `b` = `sum`."""
    return build(
        [node("Add", "a b", "sum")],
        [value("a", left, kind), value("b", right, kind)],
        [value("sum", out, kind)],
    )


def dense(batch: int | str | None = "N", features: int = 4, classes: int = 3) -> Any:
    """`x` [batch, features] -> `scores` [batch, classes] by one Gemm."""
    return build(
        [node("Gemm", "x weight bias", "scores")],
        [value("x", [batch, features])],
        [value("scores", [batch, classes])],
        [weights("weight", features, classes), weights("bias", classes)],
    )


def with_external_data(folder: Path, location: str = "weights.bin") -> Path:
    """`dense`, whose weights lie in a file beside it. -> the model file."""
    path = folder / "external.onnx"
    onnx.save_model(
        dense(),
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=location,
        size_threshold=0,
    )
    return path


def relocate(path: Path, location: str) -> None:
    """Let the weights of the model at `path` be looked for elsewhere."""
    model = onnx.load_model(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    save(model, path)


def read(model: Any, folder: Path, *, batch: int | None = None, **shapes: tuple[int, ...]) -> Model:
    """What `deploy` would read of a model, or of the file that `model` is the path of."""
    path = model if isinstance(model, Path) else save(model, folder / "model.onnx")
    with Cache() as cache:
        return model_file.read(path, shapes, batch, cache, Local(cache))
