"""Whether arrays match a model's inputs: their names, shapes and types."""

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np

from onmetal.errors import UsageError
from onmetal.files.arrays import ArrayFile
from onmetal.records import Model, Shape, Tensor
from onmetal.samples import Samples


def match_members(source: str, digest: str, arrays: dict[str, ArrayFile], model: Model) -> Samples:
    """The arrays of a file, of which `y` holds the labels unless a model's input has that name."""
    labelled = "y" not in {tensor.name for tensor in model.inputs}
    labels = arrays.pop("y", None) if labelled else None
    return match_arrays(source, digest, arrays, labels, model)


def match_arrays(
    source: str,
    digest: str,
    arrays: dict[str, ArrayFile],
    labels: ArrayFile | None,
    model: Model,
) -> Samples:
    """Match arrays with the model's inputs by name, shape and dtype."""
    inputs = {tensor.name: tensor for tensor in model.inputs}
    if len(inputs) == 1 and "x" in arrays and "x" not in inputs:
        arrays = {next(iter(inputs)) if name == "x" else name: a for name, a in arrays.items()}
    if unknown := sorted(set(arrays) - set(inputs)):
        raise UsageError(
            f"{source}: {unknown[0]!r} is no input of the model (its inputs: {', '.join(inputs)}"
            f"{'; `x` for a single input' if len(inputs) == 1 else ''}; labels: y)"
            f"{_naming_hint(unknown[0], list(inputs), labels is None)}"
        )
    if missing := sorted(set(inputs) - set(arrays)):
        raise UsageError(f"{source}: there is no array for the model's input {missing[0]!r}")
    counts = {name: (array.shape or (0,))[0] for name, array in arrays.items()}
    if labels is not None:
        counts["y"] = (labels.shape or (0,))[0]
    if len(set(counts.values())) > 1:
        counts_shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UsageError(f"{source}: its arrays differ in the number of samples ({counts_shown})")
    for name, array in arrays.items():
        check_sample(
            source, name, array.shape[1:], np.dtype(array.dtype), inputs[name], model, _array_advice
        )
    return Samples(source, digest, next(iter(counts.values())), arrays, labels=labels)


LIKELY_LABELS = {
    *("label", "labels", "target", "targets", "class", "classes", "gt", "y_true", "y_test"),
    *("y_train", "y_val", "ys", "label_ids"),
}
"""Names that arrays of labels often have; `y` is the one that is read."""
LIKELY_INPUTS = {
    "data",
    "images",
    "image",
    "input",
    "inputs",
    "features",
    "x_test",
    "x_train",
    "x_val",
}
NAMES_ARE_NO_LABELS = (
    ", and which score a name means is not known: give class numbers, such as "
    "names.index(label), names being those of the model's scores in order"
)


def _naming_hint(name: str, inputs: list[str], unlabelled: bool) -> str:
    """The name that the user may have meant by an array's name that no input has."""
    if unlabelled and name.lower() in LIKELY_LABELS | {"y"}:
        return ": labels are read under `y`; did you mean that?"
    if len(inputs) == 1 and name.lower() in LIKELY_INPUTS | {"x"}:
        return ": the single input is read under `x`; did you mean that?"
    similar = difflib.get_close_matches(name, inputs, 1)
    return f": did you mean {similar[0]!r}?" if similar else ""


Advice = Callable[[Shape, "np.dtype[Any]", Shape, "np.dtype[Any]"], str | None]
"""(shape and dtype of a sample, shape and dtype of the model's input) -> how to correct it."""


def check_sample(
    source: str,
    name: str,
    shape: Shape,
    dtype: "np.dtype[Any]",
    tensor: Tensor,
    model: Model,
    advice: Advice,
) -> None:
    expected, wanted_dtype = model.sample_shape(tensor), np.dtype(tensor.dtype)
    # A model without a batch axis, or with one of 1, may be fed whole inputs too.
    if shape != expected and not (model.batch == 1 and shape == tensor.shape):
        hint = ""
        if sorted(shape) == sorted(expected):
            hint = "; the axes look permuted (NCHW and NHWC?)"
        if line := advice(shape, dtype, expected, wanted_dtype):
            hint += f"; {line}"
        raise UsageError(
            f"{source}: a sample of {name!r} has shape {list(shape)}, "
            f"the model takes {list(expected)}{hint}"
        )
    floats = [np.dtype(kind) for kind in (np.float64, np.float32, np.float16)]
    narrowed = dtype in floats and wanted_dtype in floats[floats.index(dtype) + 1 :]
    widened = dtype.kind in "iu" and np.can_cast(dtype, wanted_dtype, "safe")
    real = tensor.scale > 0 and dtype.kind == "f"
    if not (dtype == wanted_dtype or narrowed or widened or real):
        line = advice(shape, dtype, expected, wanted_dtype)
        raise UsageError(
            f"{source}: {name!r} has dtype {dtype}, the model takes {wanted_dtype}; "
            "only narrowing of floats and lossless widening of integers are done automatically"
            f"{f'; {line}' if line else ''}"
        )


def _array_advice(
    shape: Shape, dtype: "np.dtype[Any]", expected: Shape, wanted_dtype: "np.dtype[Any]"
) -> str | None:
    """How to correct an array whose dtype is not the model's."""
    if (
        shape != expected
        or dtype == wanted_dtype
        or dtype.kind not in "biuf"
        or wanted_dtype.kind not in "iuf"
    ):
        return None
    if wanted_dtype.kind in "iu":
        limits = np.iinfo(wanted_dtype)
        return (
            f"if it holds whole numbers from {limits.min} to {limits.max}, save it with "
            f".astype({wanted_dtype.name!r})"
        )
    condition = "" if dtype.kind == "f" else ", if the model was trained on such numbers"
    return f"save it with .astype({wanted_dtype.name!r}){condition}"
