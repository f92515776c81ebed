"""How far a .tflite artifact is from the float graph that it was made from, tensor by tensor.

Runs in a child process. Tensors of both graphs have the same layout. A quantized tensor has the
float tensor's name with a suffix (`name/quantized`), and is dequantized to be compared.
"""

from pathlib import Path
from typing import Any

import numpy as np

from onmetal.calibration.compare import Sums
from onmetal.converters.tflite.net import Net, Tensor, signature_names
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.reference import Exposed
from onmetal.errors import UnsupportedError
from onmetal.profilers.tensor_bytes import NHWC
from onmetal.progress import OnCount
from onmetal.records import Model
from onmetal.samples import Samples


def tensors(
    artifact: str,
    reference: str,
    samples: Samples,
    model: Model,
    progress: OnCount = lambda done, total: None,
) -> list[dict[str, Any]]:
    """As calibration.compare.tensors, for two .tflite files; `reference` is the float one.

    Raises UnsupportedError where they have no tensor in common.
    """
    data, entry = samples, model
    artifact_net, reference_net = read(Path(artifact)), read(Path(reference))
    artifact_tensors = {
        tensor.name: tensor for tensor in artifact_net.tensors() if tensor.data is None
    }
    pairs: list[tuple[str, Tensor, str]] = []
    for op in reference_net.ops:
        for tensor in op.outputs:
            counterpart = artifact_tensors.get(f"{tensor.name}/quantized") or artifact_tensors.get(
                tensor.name
            )
            if counterpart is not None and counterpart.size == tensor.size and tensor.is_float:
                pairs.append((tensor.name, counterpart, op.kind))
    if not pairs:
        raise UnsupportedError(
            "the two files have no tensor of the same name: was one made from the other?"
        )
    artifact_run = Exposed(artifact_net, [counterpart.name for _, counterpart, _ in pairs])
    reference_run = Exposed(reference_net, [name for name, _, _ in pairs])
    sums = Sums(len(pairs))
    count = max(1, data.count // entry.batch)
    for number in range(count):
        progress(number, count)
        start = number * entry.batch
        feed = data.feed(
            entry, [min(start + place, data.count - 1) for place in range(entry.batch)]
        )
        expected = reference_run.run(
            dict(zip(signature_names(reference_net)[0], feed.values(), strict=True))
        )
        actual = artifact_run.run(_artifact_inputs(artifact_net, list(feed.values())))
        for place, (name, tensor, _) in enumerate(pairs):
            sums.add(
                place,
                expected[name],
                _dequantized(tensor, actual[tensor.name]).reshape(expected[name].shape),
            )
    return [sums.row(place, name, kind) for place, (name, _, kind) in enumerate(pairs)]


def _artifact_inputs(net: Net, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs in the layout and type that the artifact takes them in."""
    feed = {}
    for name, tensor, array in zip(signature_names(net)[0], net.inputs, arrays, strict=True):
        if array.shape != tensor.shape and array.ndim == 4:
            array = np.ascontiguousarray(array.transpose(NHWC))
        if array.dtype == np.float16:
            array = array.astype(np.float32)
        if tensor.scale is not None and array.dtype != tensor.dtype:
            assert tensor.zero_point is not None
            limits = np.iinfo(tensor.dtype)
            steps = np.rint(array / tensor.scale[0]) + tensor.zero_point[0]
            array = np.clip(steps, limits.min, limits.max).astype(tensor.dtype)
        feed[name] = array
    return feed


def _dequantized(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    if tensor.scale is None or array.dtype.kind == "f":
        return array
    assert tensor.zero_point is not None
    return (array.astype(np.float64) - int(tensor.zero_point[0])) * float(tensor.scale[0])
