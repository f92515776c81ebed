"""A .tflite graph whose inner tensors can be read: how calibration sees what is in it.

They are outputs beside the graph's own, so that the fast kernels run and compute as always.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from onmetal.converters.tflite.net import Net, signature_names
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write


def interpreter(content: bytes, reference: bool = False) -> Any:
    """Opened with one thread, tensors allocated. `reference`: by the plainest kernels."""
    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    opened = Interpreter(
        model_content=content,
        num_threads=1,
        experimental_op_resolver_type=kind,
        # LiteRT 2.3 without XNNPACK lets operators that work in place overwrite what a RESHAPE
        # shares with others; with every tensor kept, none does.
        experimental_preserve_all_tensors=reference,
    )
    opened.allocate_tensors()
    return opened


class Exposed:
    """Runs a graph and gives any of its tensors by name; outputs by what the graph calls them."""

    def __init__(self, net: Net, tensors: Sequence[str], reference: bool = False) -> None:
        names = signature_names(net)
        known = {tensor.name: tensor for tensor in net.tensors()}
        known |= dict(zip(names[1], net.outputs, strict=True))
        self.fed = {
            name: name if name in tensors else tensor.name
            for name, tensor in zip(names[0], net.inputs, strict=True)
        }
        inner = {name: known[name] for name in tensors if known[name] not in net.inputs}
        outputs = list(dict.fromkeys(inner.values())) or net.outputs
        self.interpreter = interpreter(
            write(Net(net.inputs, outputs, net.ops)), reference=reference
        )
        details = self.interpreter.get_input_details()
        self.places = [
            (name, entry["index"], entry["dtype"])
            for name, entry in zip(names[0], details, strict=True)
        ]
        found = [entry["index"] for entry in self.interpreter.get_output_details()]
        index = dict(zip(outputs, found, strict=True))
        self.given = {name: index[tensor] for name, tensor in inner.items()}

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`feed`: by what the graph calls its inputs; float16 is widened to what they are. -> the
        tensors by name, copied."""
        feed = {
            name: feed[name].astype(dtype) if feed[name].dtype == np.float16 else feed[name]
            for name, _, dtype in self.places
        }
        for name, index, _ in self.places:
            self.interpreter.set_tensor(index, feed[name])
        self.interpreter.invoke()
        found = {self.fed[name]: array for name, array in feed.items()}
        found |= {name: self.interpreter.get_tensor(index) for name, index in self.given.items()}
        return found


def exposed(path: str, tensors: Sequence[str]) -> Exposed:
    return Exposed(read(Path(path)), tensors)


class Reference:
    """A prepared model by LiteRT's fast kernels, in one thread; variables begin anew each time.

    Arrays are handed over and come back as the model's records have them: real numbers come back
    for whole ones that stand for them.
    """

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        content = path.read_bytes()
        net = read(content)
        names = signature_names(net)
        self.interpreter = interpreter(content)
        places = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        by_name = [
            dict(zip(side, details, strict=True))
            for side, details in zip(names, places, strict=True)
        ]
        self.taken = [(name, by_name[0][name]) for name in inputs]
        self.given = [by_name[1][name] for name in outputs]

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.interpreter.reset_all_variables()
        for name, entry in self.taken:
            self.interpreter.set_tensor(entry["index"], feed[name])
        self.interpreter.invoke()
        arrays = []
        for entry in self.given:
            array = self.interpreter.get_tensor(entry["index"])
            scale, zero = entry["quantization"]
            if scale and entry["dtype"] in (np.int8, np.uint8, np.int16):
                array = (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)
            arrays.append(array)
        return arrays
