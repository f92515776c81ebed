"""A function of TensorFlow as a float .tflite file, by TensorFlow's own converter. Imported in
worker processes alone."""

from pathlib import Path
from typing import Any

from onmetal.converters import imported, tf
from onmetal.converters.tflite import parsing, reader, writing
from onmetal.converters.tflite.reference import Reference
from onmetal.errors import UnsupportedError, UsageError

BY = f"the converter of TensorFlow {tf.VERSION}"


def export(function: tf.Function, folder: Path) -> dict[str, Any]:
    """Write `model.tflite` to `folder`, inputs and outputs named as the function's. -> its facts,
    as converters.tflite.reader.examine.

    Raises UnsupportedError where it cannot be converted without TensorFlow's own operators, or the
    file cannot be used, or computes something else.
    """
    net = parsing.read(function.to_tflite())
    net.names = [entry.name for entry in function.inputs], function.outputs
    exported = folder / "exported.tflite"
    exported.write_bytes(writing.write(net))
    try:
        known = reader.examine(str(exported), {}, None, str(folder))
    except (UsageError, UnsupportedError) as error:
        why = str(error).removeprefix(f"{exported}: ")
        raise UnsupportedError(f"what {BY} wrote cannot be used: {why}") from None
    exported.unlink()
    inputs, outputs = ([tensor["name"] for tensor in known[end]] for end in ("inputs", "outputs"))
    graph = Reference(folder / "model.tflite", inputs, outputs)
    known["imported"] = {"by": BY, **imported.compared(function, graph, known)}
    return known
