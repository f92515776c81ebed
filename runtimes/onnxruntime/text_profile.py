"""The operators that ONNX Runtime really ran on a device, by the trace that it wrote there."""

from typing import Any

import msgspec
from msgspec import Struct

from onmetal.files.reading import decode
from onmetal.runtimes.onnxruntime import events
from onmetal.runtimes.shares import FAULTS, Micros, Name, checked, unreadable

SHAPES_LENGTH = 10_000


class _Arguments(Struct, frozen=True):
    op_name: Name = ""
    provider: Name = ""
    output_type_shape: msgspec.Raw = msgspec.Raw(b"[]")


class _Event(Struct, frozen=True):
    """An event of ONNX Runtime's trace."""

    name: str
    cat: str = ""
    dur: Micros = 0.0
    args: _Arguments = _Arguments()


def shares(text: str, runs: int) -> dict[str, Any]:
    """As profile.profile gives them. Raises UnsupportedError where the trace cannot be read."""
    try:
        return checked(events.shares(events.kernels(_events(text), runs)))
    except FAULTS as error:
        raise unreadable("onnxruntime", error) from None


def _events(text: str) -> list[dict[str, Any]]:
    """The events of ONNX Runtime's trace that are used. A trace without its end, as a device leaves
    it that was cut off while it wrote, is an error."""
    events = decode(text.encode(errors="replace"), list[_Event])
    return [_event_fields(event) for event in events if event.cat == "Node"]


def _event_fields(event: _Event) -> dict[str, Any]:
    """The event as events.kernels takes it; an excessive list of a kernel's outputs is dropped."""
    if event.name.endswith("_kernel_time") and not event.args.op_name:
        raise ValueError("a kernel without the name of its operator")
    shapes = event.args.output_type_shape
    outputs = decode(shapes, list[dict[Name, Any]]) if len(bytes(shapes)) <= SHAPES_LENGTH else []
    detail = {**msgspec.structs.asdict(event.args), "output_type_shape": outputs}
    return {**msgspec.structs.asdict(event), "args": detail}
