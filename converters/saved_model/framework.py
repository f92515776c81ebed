"""SavedModels as functions of TensorFlow. Imported in worker processes alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from onmetal.converters import tf
from onmetal.converters.imported import Declared
from onmetal.converters.saved_model.checks import GRAPH, check_operators
from onmetal.errors import UnsupportedError, UsageError

# After TensorFlow's messages were switched off.
import numpy as np  # isort: skip
import tensorflow  # isort: skip
from google.protobuf.message import DecodeError  # isort: skip
from tensorflow.core.protobuf import saved_model_pb2  # isort: skip
from tensorflow.python.framework import convert_to_constants, op_def_registry  # isort: skip

v1 = tensorflow.compat.v1
SERVED = "serving_default"
BY = tf.BY


class Signature:
    """The signature of a SavedModel that is deployed."""

    def __init__(self, source: Path, path: Path) -> None:
        """`source`: the copy of the SavedModel; `path`: the user's, for messages. Raises UsageError
        where it is damaged or unsafe."""
        self.source, self.path = source, path
        saved = saved_model_pb2.SavedModel()
        try:
            saved.ParseFromString((source / GRAPH).read_bytes())
        except DecodeError:
            raise UsageError(f"{path}: {GRAPH} in it is damaged or cut off") from None
        metas = [meta for meta in saved.meta_graphs if "serve" in meta.meta_info_def.tags]
        if len(metas) != 1:
            raise UsageError(f"{path}: it has {len(metas)} graphs tagged 'serve'; one is wanted")
        self.tags = list(metas[0].meta_info_def.tags)
        known = [
            name
            for name, entry in metas[0].signature_def.items()
            if entry.outputs and not name.startswith("__saved_model_")
        ]
        if SERVED not in known and len(known) != 1:
            names = ", ".join(sorted(known)) or "none"
            raise UsageError(
                f"{path}: it has no signature {SERVED!r}; there are: {names}; save it with the "
                f"function to deploy as signatures={{{SERVED!r}: function}}"
            )
        self.name = SERVED if SERVED in known else known[0]
        check_operators(saved, op_def_registry.get, self.name, path)
        self.definition = metas[0].signature_def[self.name]
        self.declared = [
            self._declared(name, entry) for name, entry in sorted(self.definition.inputs.items())
        ]
        self.outputs = sorted(self.definition.outputs)

    def _declared(self, name: str, entry: Any) -> Declared:
        dtype = tensorflow.as_dtype(entry.dtype)
        if dtype in (tensorflow.string, tensorflow.resource, tensorflow.variant):
            raise UnsupportedError(f"its input {name!r} holds {dtype.name}, not numbers")
        if entry.tensor_shape.unknown_rank:
            raise UnsupportedError(f"its input {name!r} has no shape: save it with a signature")
        axes = tuple(axis.size if axis.size > 0 else None for axis in entry.tensor_shape.dim)
        return Declared(name, str(np.dtype(dtype.as_numpy_dtype)), axes)

    def function(self, inputs: Sequence[Declared], outputs: Sequence[str] = ()) -> tf.Function:
        """`inputs`: with static shapes. Raises UnsupportedError where TensorFlow cannot load it."""
        call = self._call()
        names = [entry.name for entry in inputs]
        return tf.Function(
            lambda *arrays: call(dict(zip(names, arrays, strict=True))),
            inputs,
            outputs or self.outputs,
        )

    def _call(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        try:
            loaded = tensorflow.saved_model.load(str(self.source), tags=self.tags)
            signature = loaded.signatures[self.name]

            def call(feed: dict[str, Any]) -> dict[str, Any]:
                assert loaded  # whose variables are gone as soon as nothing holds it
                return dict(signature(**feed))

            return call
        except Exception as by_objects:
            try:
                return self._frozen()
            except Exception as error:
                raise UnsupportedError(
                    f"TensorFlow {tensorflow.__version__} cannot load it: "
                    f"{tf.first_line(by_objects)}; by its graph alone: {tf.first_line(error)}"
                ) from None

    def _frozen(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """By its graph alone: of older versions of Keras the objects cannot be restored."""
        taken = {name: entry.name for name, entry in self.definition.inputs.items()}
        given = {name: entry.name for name, entry in self.definition.outputs.items()}
        with v1.Graph().as_default() as graph, v1.Session(graph=graph) as session:
            v1.saved_model.load(session, self.tags, str(self.source))
            nodes = [name.partition(":")[0] for name in given.values()]
            frozen = convert_to_constants.convert_variables_to_constants_from_session_graph(
                session, graph.as_graph_def(add_shapes=True), nodes
            )
        order = list(taken)

        def imported(*arrays: Any) -> list[Any]:
            feed = {taken[name]: array for name, array in zip(order, arrays, strict=True)}
            tensors = v1.import_graph_def(frozen, feed, list(given.values()))
            return list(tensors)

        declared = {entry.name: entry for entry in self.declared}
        specs = [
            tensorflow.TensorSpec(declared[name].shape, declared[name].dtype) for name in order
        ]
        wrapped = v1.wrap_function(imported, specs)
        return lambda feed: dict(zip(given, wrapped(*(feed[name] for name in order)), strict=True))
