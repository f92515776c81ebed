"""The axes of an ONNX model: made static by the user's options and by shape inference."""

from typing import Any

import onnx

from onmetal.errors import ShapeError, UnsupportedError, UsageError


def is_static(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(axis.dim_value > 0 for axis in kind.shape.dim)


def fix_axes(
    model: onnx.ModelProto, shapes: dict[str, list[int]], batch: int | None
) -> tuple[bool, int | None, list[str]]:
    """Make every input axis static.

    -> (whether anything changed, the batch where a free batch axis was set, notes for the user)
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in constants]
    if unknown := sorted(set(shapes) - {value.name for value in values}):
        names = ", ".join(value.name for value in values)
        raise UsageError(f"--input-shape {unknown[0]}: no such input; the model has: {names}")
    for value in values:
        _check_axes(value, shapes.get(value.name))
    named_sizes = _named_sizes(values, shapes, batch)
    notes: list[str] = []
    batches = [
        _fix_input(value, shapes.get(value.name), named_sizes, batch, notes) for value in values
    ]
    changed = any(was_free for was_free, _ in batches)
    if changed:
        del model.graph.value_info[:]
    return changed, next((size for _, size in batches if size), None), notes


def _check_axes(value: onnx.ValueInfoProto, sizes: list[int] | None) -> None:
    """Check that the input has as many axes as the user's shape; add them where it has no shape."""
    if value.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedError(f"input {value.name!r} is not a tensor; it cannot be given data")
    if not value.type.tensor_type.HasField("shape"):
        if not sizes:
            raise ShapeError(
                f"input {value.name!r} has no shape in the file; "
                f"give it by --input-shape {value.name}=…"
            )
        for _ in sizes:
            value.type.tensor_type.shape.dim.add()
    rank = len(value.type.tensor_type.shape.dim)
    if sizes and len(sizes) != rank:
        raise UsageError(
            f"--input-shape {value.name}={','.join(map(str, sizes))}: the input has {rank} axes"
        )


def _named_sizes(
    values: list[onnx.ValueInfoProto], shapes: dict[str, list[int]], batch: int | None
) -> dict[str, int]:
    """Sizes of named axes from the user's shapes. All axes of one name must have one size."""
    named_sizes: dict[str, int] = {}
    for value in values:
        axes = value.type.tensor_type.shape.dim
        for axis, size in zip(axes, shapes.get(value.name, []), strict=False):
            if axis.dim_param and named_sizes.setdefault(axis.dim_param, size) != size:
                raise UsageError(
                    f"input {value.name!r}: the axis {axis.dim_param!r} is "
                    f"{named_sizes[axis.dim_param]} in one input and {size} in another; "
                    "give matching --input-shape"
                )
    return named_sizes


def _fix_input(
    value: onnx.ValueInfoProto,
    requested: list[int] | None,
    named_sizes: dict[str, int],
    batch: int | None,
    notes: list[str],
) -> tuple[bool, int | None]:
    """-> (whether an axis was free, the size of the first axis where that one was)"""
    axes = value.type.tensor_type.shape.dim
    free: list[str] = []
    was_free, size_of_batch = False, None
    for place, axis in enumerate(axes):
        requested_size = requested[place] if requested else None
        if axis.dim_value > 0:
            if requested_size not in (None, axis.dim_value):
                raise UsageError(
                    f"--input-shape {value.name}: axis {place} is fixed at {axis.dim_value} in the "
                    f"model, {requested_size} was asked for; export it with a free axis"
                )
            continue
        name, was_free = axis.dim_param, True
        size = requested_size or named_sizes.get(name)
        if place == 0:
            size = _batch_size(value.name, size, batch, notes)
            size_of_batch = size
            if name:
                named_sizes.setdefault(name, size)
        if size is None:
            free.append(name or f"axis {place}")
            continue
        axis.Clear()
        axis.dim_value = size
    if free:
        words = [str(axis.dim_value) if axis.dim_value > 0 else "…" for axis in axes]
        raise ShapeError(
            f"input {value.name!r} has free axes ({', '.join(free)}); "
            f"give its shape: --input-shape {value.name}={','.join(words)}"
        )
    return was_free, size_of_batch


def _batch_size(name: str, size: int | None, batch: int | None, notes: list[str]) -> int:
    """The size of a free first axis: the user's, else 1, with a note for the user."""
    if size is None:
        if not batch:
            notes.append(f"the free batch axis of {name!r} was set to 1")
        return batch or 1
    if batch and size != batch:
        raise UsageError(
            f"--batch {batch} and --input-shape {name} do not agree: its first axis is {size}"
        )
    return size


def static_batch(
    inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], requested: int | None
) -> int:
    """The batch of a model whose axes were static already: the size of all first axes if it is the
    same, else 1."""
    firsts = {tensor["shape"][0] if tensor["shape"] else None for tensor in (*inputs, *outputs)}
    fixed = firsts.pop() if len(firsts) == 1 else 1
    if requested and requested != (fixed or 1):
        raise UsageError(
            f"--batch {requested}: this model's batch is fixed at {fixed or 1}; "
            "export it with a free batch axis"
        )
    return fixed or 1


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # an operator that onnx has no rule for; what is unknown stays unknown
        return model


def adopt_output_shapes(model: onnx.ModelProto, inferred: onnx.ModelProto) -> None:
    for value, inferred_value in zip(model.graph.output, inferred.graph.output, strict=True):
        if value.type.WhichOneof("value") == "tensor_type" and is_static(inferred_value):
            value.CopyFrom(inferred_value)
        elif value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.ClearField("shape")
        elif value.type.WhichOneof("value") is None:  # it became an output by being cut at
            value.CopyFrom(inferred_value)
