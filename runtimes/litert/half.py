"""Arithmetic in float16, which a .tflite file allows by an entry of its metadata.

XNNPACK reads `reduced_precision_support` and computes all that it runs of the model in float16
where the CPU has such instructions (`asimdhp` on ARM), else in float32. No option of the runtime is
needed: every program that opens the file does the same.
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/lite/delegates/xnnpack/README.md
"""

from typing import Any

import numpy as np

NAME, VALUE = "reduced_precision_support", b"fp16accfp16"
"""The value: inputs, products and sums are float16."""


def allow(content: bytes) -> bytes:
    """The .tflite file with this metadata. The same file gives the same bytes."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from onmetal.converters.tflite.net import IDENTIFIER

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content), 0))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(VALUE, np.uint8)
    entry.name, entry.buffer = NAME, len(model.buffers)
    other_entries = [item for item in model.metadata or [] if _text(item.name) != NAME]
    model.buffers, model.metadata = [*model.buffers, buffer], [*other_entries, entry]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def _text(name: Any) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
