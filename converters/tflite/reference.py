"""Runs .tflite graphs in LiteRT, with access to inner tensors for calibration.

Inner tensors become additional outputs of the graph, so that the same fast kernels run as without.
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
    """A LiteRT interpreter with one thread and allocated tensors. `reference`: with the reference
    kernels instead of the fast ones."""
    kind = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    opened = Interpreter(
        model_content=content,
        num_threads=1,
        experimental_op_resolver_type=kind,
        # LiteRT 2.3 without XNNPACK lets operators that work in place overwrite memory that a
        # RESHAPE shares with other tensors, unless every tensor is preserved.
        experimental_preserve_all_tensors=reference,
    )
    opened.allocate_tensors()
    return opened


class Exposed:
    """Runs a graph and returns its tensors by name; outputs also by their signature names."""

    def __init__(self, net: Net, tensors: Sequence[str], reference: bool = False) -> None:
        names = signature_names(net)
        tensor_by_name = {tensor.name: tensor for tensor in net.tensors()}
        tensor_by_name |= dict(zip(names[1], net.outputs, strict=True))
        self.fed = {
            name: name if name in tensors else tensor.name
            for name, tensor in zip(names[0], net.inputs, strict=True)
        }
        inner = {
            name: tensor_by_name[name] for name in tensors if tensor_by_name[name] not in net.inputs
        }
        outputs = list(dict.fromkeys(inner.values())) or net.outputs
        self.interpreter = interpreter(
            write(Net(net.inputs, outputs, net.ops)), reference=reference
        )
        details = self.interpreter.get_input_details()
        self.places = [
            (name, entry["index"], entry["dtype"])
            for name, entry in zip(names[0], details, strict=True)
        ]
        indices = [entry["index"] for entry in self.interpreter.get_output_details()]
        index = dict(zip(outputs, indices, strict=True))
        self.given = {name: index[tensor] for name, tensor in inner.items()}

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`feed`: arrays by the signature names of the inputs; float16 is converted to the inputs'
        types. -> copies of the tensors by name."""
        feed = {
            name: feed[name].astype(dtype) if feed[name].dtype == np.float16 else feed[name]
            for name, _, dtype in self.places
        }
        for name, index, _ in self.places:
            self.interpreter.set_tensor(index, feed[name])
        self.interpreter.invoke()
        arrays = {self.fed[name]: array for name, array in feed.items()}
        arrays |= {name: self.interpreter.get_tensor(index) for name, index in self.given.items()}
        return arrays


def exposed(path: str, tensors: Sequence[str]) -> Exposed:
    return Exposed(read(Path(path)), tensors)


class Reference:
    """A prepared model in LiteRT with its fast kernels, in one thread; variables are reset before
    each run.

    Inputs have the dtypes of the model's records. Quantized outputs are returned dequantized.
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
