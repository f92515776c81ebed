"""PyTorch modules in memory: exported to a .pt2 file, in the process that holds them."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onmetal.converters import LiveModel
from onmetal.errors import UnsupportedError, UsageError, reason

if TYPE_CHECKING:
    import torch


class TorchModule(LiveModel):
    title = "PyTorch module"

    def owns(self, model: Any) -> bool:
        loaded = sys.modules.get("torch")
        if loaded is None:
            return False
        kinds = (loaded.nn.Module, loaded.export.ExportedProgram)
        return isinstance(model, kinds)

    def save(
        self, model: Any, example_inputs: Any, folder: Path, stem: str
    ) -> tuple[Path, list[str]]:
        import torch

        path = folder / f"{stem}.pt2"
        if isinstance(model, torch.export.ExportedProgram):
            if example_inputs is not None:
                raise UsageError("an exported program has its shapes: leave example_inputs out")
            torch.export.save(model, path)
            return path, []
        if isinstance(model, torch.jit.ScriptModule):
            raise UsageError(
                "this is TorchScript, which is not exported; pass the module that it was made from"
            )
        arguments, named = _arguments(example_inputs)
        _check_on_cpu(model)
        with _evaluating(model):
            try:
                program = torch.export.export(model, arguments, named)
                torch.export.save(program, path)
            except Exception as error:
                raise UnsupportedError(
                    f"PyTorch {torch.__version__} cannot export this {type(model).__name__}: "
                    f"{reason(error)}; see the documentation of torch.export"
                ) from error
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (*arguments, *named.values()))
        note = f"exported from a PyTorch module in eval mode; its shapes are fixed: {shapes}"
        return path, [note]


def _arguments(example_inputs: Any) -> tuple[tuple["torch.Tensor", ...], dict[str, "torch.Tensor"]]:
    """Example inputs as the arguments of `forward`, by place and by name."""
    if example_inputs is None:
        raise UsageError(
            "a PyTorch module needs example_inputs, by whose shapes it is exported: "
            "onmetal.deploy(module, example_inputs=(torch.zeros(1, 3, 224, 224),), …)"
        )
    if isinstance(example_inputs, Mapping):
        return (), {str(name): _tensor(value) for name, value in example_inputs.items()}
    values = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    return tuple(map(_tensor, values)), {}


def _tensor(value: Any) -> "torch.Tensor":
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, torch.Tensor):
        raise UsageError(
            f"example_inputs hold a {type(value).__name__}; give tensors or arrays, in a tuple or, "
            "by the names of the arguments, in a dict"
        )
    return value.detach().cpu()


def _check_on_cpu(model: "torch.nn.Module") -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type != "cpu":
            raise UsageError(
                f"the module's {name} is on {tensor.device}; it is exported on the CPU: pass "
                "module.cpu()"
            )


@contextmanager
def _evaluating(model: "torch.nn.Module") -> Iterator[None]:
    """Inside the block every part of the module is in eval mode; after it, each is as it was."""
    training = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, was in training:
            part.training = was


LIVE: LiveModel = TorchModule()
