"""Where a .tflite artifact leaves the float graph that it was made from: tensor by tensor.

Runs in a child process. Both graphs hold tensors of the same layout; what was quantized is called
after its float (`name/quantized`) and compared as the numbers that it stands for.
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
    """As calibration.compare.tensors, of two .tflite files, the one in float.

    Raises UnsupportedError where they have no tensor in common.
    """
    data, of = samples, model
    mine, theirs = read(Path(artifact)), read(Path(reference))
    known = {tensor.name: tensor for tensor in mine.tensors() if tensor.data is None}
    pairs: list[tuple[str, Tensor, str]] = []
    for op in theirs.ops:
        for tensor in op.outputs:
            found = known.get(f"{tensor.name}/quantized") or known.get(tensor.name)
            if found is not None and found.size == tensor.size and tensor.is_float:
                pairs.append((tensor.name, found, op.kind))
    if not pairs:
        raise UnsupportedError(
            "the two files have no tensor of the same name: was one made from the other?"
        )
    given = Exposed(mine, [found.name for _, found, _ in pairs])
    wanted = Exposed(theirs, [name for name, _, _ in pairs])
    sums = Sums(len(pairs))
    count = max(1, data.count // of.batch)
    for number in range(count):
        progress(number, count)
        start = number * of.batch
        feed = data.feed(of, [min(start + place, data.count - 1) for place in range(of.batch)])
        real = wanted.run(dict(zip(signature_names(theirs)[0], feed.values(), strict=True)))
        other = given.run(_fed(mine, list(feed.values())))
        for place, (name, tensor, _) in enumerate(pairs):
            sums.add(place, real[name], _real(tensor, other[tensor.name]).reshape(real[name].shape))
    return [sums.row(place, name, kind) for place, (name, _, kind) in enumerate(pairs)]


def _fed(net: Net, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
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


def _real(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    if tensor.scale is None or array.dtype.kind == "f":
        return array
    assert tensor.zero_point is not None
    return (array.astype(np.float64) - int(tensor.zero_point[0])) * float(tensor.scale[0])
