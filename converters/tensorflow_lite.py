"""A function of TensorFlow as a float .tflite file, by TensorFlow's own converter. Imported in
worker processes alone."""

from pathlib import Path
from typing import Any

from onmetal.converters import imported, tf
from onmetal.converters.tflite import parsing, reader, writing
from onmetal.converters.tflite.net import signature_names
from onmetal.converters.tflite.reference import Reference
from onmetal.errors import UnsupportedError, UsageError

BY = f"the converter of TensorFlow {tf.VERSION}"


def export(
    function: tf.Function, converted: tuple[bytes, dict[str, str]], folder: Path
) -> dict[str, Any]:
    """Write `model.tflite` to `folder`, inputs and outputs named as the function's. `converted`: as
    its to_tflite gives it. -> its facts, as converters.tflite.reader.examine.

    Raises UnsupportedError where the file cannot be used, or computes something else.
    """
    content, names = converted
    net = parsing.read(content)
    inputs, numbered = signature_names(net)
    if set(numbered) != set(names) or set(inputs) != {entry.name for entry in function.inputs}:
        given = ", ".join((*inputs, *numbered))
        raise UnsupportedError(f"{BY} gives its inputs and outputs other names: {given}")
    outputs = [names[name] for name in numbered]
    net.names, function.outputs = (inputs, outputs), outputs
    exported = folder / "exported.tflite"
    exported.write_bytes(writing.write(net))
    try:
        known = reader.examine(str(exported), {}, None, str(folder))
    except (UsageError, UnsupportedError) as error:
        why = str(error).removeprefix(f"{exported}: ")
        raise UnsupportedError(f"what {BY} wrote cannot be used: {why}") from None
    exported.unlink()
    graph = Reference(folder / "model.tflite", inputs, outputs)
    known["imported"] = {"by": BY, **imported.compared(function, graph, known)}
    return known
