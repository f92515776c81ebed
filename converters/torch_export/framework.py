"""PyTorch: exported programs, computed and exported to ONNX. Imported in worker processes alone."""

import io
import logging
import os
import warnings
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""
import numpy as np
import onnx
import torch

from onmetal.converters.imported import Declared
from onmetal.converters.torch_export import checks
from onmetal.errors import UnsupportedError

warnings.simplefilter("ignore")
logging.getLogger("torch").setLevel(logging.CRITICAL)
BY = f"PyTorch {torch.__version__} and onnxscript {version('onnxscript')}"


class Program:
    """An exported program whose inputs are tensors."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the checked program. Raises UnsupportedError where PyTorch cannot load
        it."""
        try:
            self.program = torch.export.load(_archived(folder))
        except Exception as error:
            raise UnsupportedError(
                f"PyTorch {torch.__version__} cannot load it: {_reason(error)}"
            ) from None
        if name := _trains(self.program):
            raise UnsupportedError(
                f"it was exported in training mode, in which its operator {name} gives other "
                f"results; {checks.EXPORT}"
            )
        signature = self.program.graph_signature
        values = {
            node.name: node.meta["val"]
            for node in self.program.graph.nodes
            if node.op == "placeholder"
        }
        self.inputs = [str(name) for name in signature.user_inputs]
        for name in self.inputs:
            if not isinstance(values.get(name), torch.Tensor):
                raise UnsupportedError(f"its input {name!r} is not a tensor; export it without")
        self.declared = [
            Declared(name, _dtype(values[name]), tuple(map(_axis, values[name].shape)))
            for name in self.inputs
        ]
        # PyTorch names the inputs of `module()` by those of the example, which is not loaded.
        self.program.example_inputs = self._zeros(self.declared)
        self.module: Any = None
        self.batch_is_free = any(None in entry.shape for entry in self.declared)

    def export(self, inputs: Sequence[Declared]) -> onnx.ModelProto:
        """`inputs`: with static shapes. Raises UnsupportedError where PyTorch's exporter cannot do
        it."""
        try:
            self.program.example_inputs = self._zeros(inputs)
            exported = torch.onnx.export(self.program, (), dynamo=True, verbose=False)
            exported.optimize()
            proto = exported.model_proto
        except Exception as error:
            raise UnsupportedError(
                f"PyTorch {torch.__version__} cannot export it to ONNX: {_reason(error)}"
            ) from None
        assert isinstance(proto, onnx.ModelProto)
        return proto

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        if self.module is None:
            self.module = self.program.module()
        with torch.no_grad():
            args, kwargs = self._arguments(
                [torch.from_numpy(np.array(feed[name])) for name in self.inputs]
            )
            result = self.module(*args, **kwargs)
        return [tensor.numpy() for tensor in torch.utils._pytree.tree_leaves(result)]

    def _zeros(self, inputs: Sequence[Declared]) -> tuple[Any, Any]:
        """Inputs of these shapes, a free axis of 1, as the arguments of the program."""
        return self._arguments(
            [
                torch.from_numpy(np.zeros([axis or 1 for axis in entry.shape], entry.dtype))
                for entry in inputs
            ]
        )

    def _arguments(self, tensors: list[Any]) -> tuple[Any, Any]:
        """The tensors, in the order of the inputs, as the arguments of the program."""
        structure = self.program.call_spec.in_spec
        args, kwargs = torch.utils._pytree.tree_unflatten(tensors, structure)
        return args, kwargs


def _trains(program: Any) -> str | None:
    """The operator of the program that computes as in training: its results are random, or depend
    on the other samples of the batch. None: there is none."""
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None or schema.overload_name == "no_stats":
            continue
        given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        given |= node.kwargs
        training = given.get("train", given.get("training")) is True
        if training and given.get("dropout", given.get("p")) != 0:
            return str(schema.name).removeprefix("aten::")
    return None


def _archived(folder: Path) -> io.BytesIO:
    """The program as an archive again, its pickled example inputs exchanged for none."""
    none = io.BytesIO()
    torch.save(((), {}), none)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
            name = file.relative_to(folder).as_posix()
            data = none.getvalue() if name == checks.SAMPLES else file.read_bytes()
            archive.writestr(f"{folder.name}/{name}", data)
    content.seek(0)
    return content


def _dtype(value: Any) -> str:
    return str(torch.zeros((), dtype=value.dtype).numpy().dtype)


def _axis(size: Any) -> int | None:
    return size if isinstance(size, int) else None


def _reason(error: BaseException) -> str:
    """The kind of an error of PyTorch and the first line of what its deepest cause says."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'it gives no reason'}"
