"""The number type in which an operator of a .tflite file computes."""

_NAMES = {"float32": "f32", "float16": "f16", "int8": "i8", "uint8": "i8", "int16": "i16"}


def precision(kind: str, types: list[str]) -> str:
    """The type of an operator: an integer type where its weights are integers, even with float
    activations.

    `types`: of the operator's outputs, then its inputs.
    """
    if kind in ("CONV_2D", "FULLY_CONNECTED") and "int8" in types:
        return "i16" if "int16" in types else "i8"
    return next((_NAMES[name] for name in types if name in _NAMES), "other")
