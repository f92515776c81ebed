"""Keras: models as functions of TensorFlow. Imported in worker processes alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onmetal.converters import imported, tf
from onmetal.converters.imported import Declared
from onmetal.errors import UnsupportedError

# After TensorFlow, whose messages are switched off there.
import keras  # isort: skip
import numpy as np  # isort: skip
import onnx  # isort: skip

MOST_STEPS = 64
"""How many steps are exported one by one: each is some twenty operators, and tf2onnx takes more
than the square of their number."""
BY = f"Keras {keras.__version__}, {tf.BY}"


def load(path: Path, trust: bool = False) -> Any:
    """The model, not compiled. Raises UnsupportedError where Keras cannot load it."""
    try:
        return keras.models.load_model(str(path), compile=False, safe_mode=not trust)
    except Exception as error:
        raise UnsupportedError(
            f"Keras {keras.__version__} cannot load it: {tf.first_line(error)}"
        ) from None


def declared(model: Any) -> list[Declared]:
    """Raises UnsupportedError where the model has no inputs of known shapes."""
    if not getattr(model, "inputs", None):
        raise UnsupportedError(
            "the model was built by calling it and declares no inputs; call "
            "model.export('model_folder'), which writes a SavedModel, and deploy that"
        )
    return [
        Declared(str(tensor.name), str(np.dtype(tensor.dtype)), tuple(tensor.shape))
        for tensor in model.inputs
    ]


def function(model: Any, inputs: Sequence[Declared], outputs: Sequence[str] = ()) -> tf.Function:
    """The model as a function. `inputs`: with static shapes; `outputs`: their order, by default
    Keras's own."""
    names = output_names(model)

    def call(*arrays: Any) -> dict[str, Any]:
        given = list(arrays) if len(arrays) > 1 else arrays[0]
        return dict(zip(names, keras.tree.flatten(model(given, training=False)), strict=True))

    return tf.Function(call, inputs, outputs or names)


def exported(model: Any, given: imported.Static) -> tuple[tf.Function, onnx.ModelProto]:
    """The model as a function of static shapes, and that as ONNX.

    A recurrent layer becomes one operator where tf2onnx recognizes it, which it does of LSTM with a
    free batch axis; else its steps one by one, and a loop where these are more than MOST_STEPS: few
    runtimes run loops, none in 8 bits. Raises UnsupportedError where tf2onnx cannot convert it.
    """
    reference = function(model, given.inputs)
    proto = reference.export()
    if _loops(proto):
        proto = _with_operators(model, given) or _step_by_step(model, given) or proto
    reference.outputs = [value.name for value in proto.graph.output]
    return reference, proto


def _loops(proto: onnx.ModelProto) -> bool:
    return any(node.op_type in ("Loop", "Scan") for node in proto.graph.node)


def _with_operators(model: Any, given: imported.Static) -> onnx.ModelProto | None:
    """The graph exported with a free batch axis. None: it has loops still."""
    if any(entry.shape[0] is not None for entry in declared(model)):
        return None
    free = [entry._replace(shape=(None, *entry.shape[1:])) for entry in given.inputs]
    try:
        proto = function(model, free).export()
    except UnsupportedError:
        return None
    return None if _loops(proto) else imported.with_shapes(proto, given)


def _step_by_step(model: Any, given: imported.Static) -> onnx.ModelProto | None:
    """The graph with the steps of recurrent layers one by one. None: there are too many, or tf2onnx
    cannot convert it."""
    if not 0 < _steps(model) <= MOST_STEPS:
        return None
    with without_loops(model):
        try:
            proto = function(model, given.inputs).export()
        except UnsupportedError:
            return None
    return None if _loops(proto) else proto


def _steps(model: Any) -> float:
    """The number of steps of all recurrent layers; infinite where one is not known."""
    total = 0.0
    for layer in model._flatten_layers():
        both = isinstance(layer, keras.layers.Bidirectional)
        if (both or isinstance(layer, keras.layers.RNN)) and layer._inbound_nodes:
            try:
                total += (1 + both) * (layer.input.shape[1] or float("inf"))
            except (AttributeError, ValueError, IndexError):  # it is used twice, say
                return float("inf")
    return total


@contextmanager
def without_loops(model: Any) -> Iterator[None]:
    """All recurrent layers step by step, for as long as it is open, unless they have too many."""
    layers = []
    if 0 < _steps(model) <= MOST_STEPS:
        layers = [x for x in model._flatten_layers() if getattr(x, "unroll", None) is False]
    for layer in layers:
        layer.unroll = True
    try:
        yield
    finally:
        for layer in layers:
            layer.unroll = False


def output_names(model: Any) -> list[str]:
    """The names of the outputs, in the order in which Keras flattens them: the keys of a model that
    gives a dictionary, else its layers'; equal ones are numbered."""
    if isinstance(model, keras.Sequential):  # whose `output` is undefined in a file that was loaded
        return [str(model.layers[-1].name)]
    structure = model.output
    if isinstance(structure, dict):
        return [str(name) for name in keras.tree.flatten({name: name for name in structure})]
    names: list[str] = []
    for number, tensor in enumerate(model.outputs):
        known = getattr(model, "output_names", None) or []
        name = known[number] if number < len(known) else str(tensor.name)
        names.append(name if name not in names else f"{name}_{number}")
    return names
