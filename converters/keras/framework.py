"""Keras: models as functions of TensorFlow. Imported in worker processes alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmetal.converters import tf
from onmetal.converters.imported import Declared
from onmetal.errors import UnsupportedError

# After TensorFlow, whose messages are switched off there.
import keras  # isort: skip
import numpy as np  # isort: skip

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
