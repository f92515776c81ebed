"""ONNX -> OpenVINO's IR (.xml and .bin): opened faster than ONNX, and free of its front end."""

from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from onmetal.errors import UnsupportedError, reason
from onmetal.runtimes.bounds import MOST_THREADS, Switch, Threads, whole
from onmetal.runtimes.protocol import Hardware

VERSION = 2
ALONE = True
"""OpenVINO numbers nodes without a name through the life of a process, and writes these numbers."""

_OnOff = Switch | Literal["YES", "NO", "TRUE", "FALSE", "true", "false"]
_ShareText = Annotated[str, Meta(pattern=r"^[01](\.[0-9]{1,9})?\Z")]
_Share = Annotated[float, Meta(ge=0, le=1)] | _ShareText
OPTIONS: dict[str, Any] = {
    "PERFORMANCE_HINT": Literal["LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"],
    "PERFORMANCE_HINT_NUM_REQUESTS": whole(0, MOST_THREADS),
    "EXECUTION_MODE_HINT": Literal["PERFORMANCE", "ACCURACY"],
    "INFERENCE_PRECISION_HINT": Literal["f32", "f16", "bf16", "dynamic"],
    "INFERENCE_NUM_THREADS": Threads,
    "NUM_STREAMS": Annotated[int, Meta(ge=1, le=MOST_THREADS)] | Literal["AUTO", "NUMA"],
    "ENABLE_CPU_PINNING": _OnOff,
    "ENABLE_CPU_RESERVATION": _OnOff,
    "ENABLE_HYPER_THREADING": _OnOff,
    "SCHEDULING_CORE_TYPE": Literal["ANY_CORE", "PCORE_ONLY", "ECORE_ONLY"],
    "CPU_DENORMALS_OPTIMIZATION": _OnOff,
    "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": _Share,
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": whole(0, 1 << 16),
    "KV_CACHE_PRECISION": Literal["u4", "u8", "i8", "f16", "bf16", "f32"],
}
"""Of the CPU plugin's properties, those that neither read nor write files."""
RESERVED = frozenset({"INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS"})


def convert(prepared: str, compute: str, folder: str, hardware: Hardware) -> list[str]:
    from onmetal.converters.openvino_ir.quiet import openvino
    from onmetal.runtimes.openvino import fixed

    by_itself = Path(prepared).suffix not in (".onnx", ".xml")
    if Path(prepared).suffix == ".onnx":
        _refuse_signed_concat(prepared)
        _refuse_counted_padding(prepared)
    try:
        model = openvino.Core().read_model(prepared)
        if by_itself:
            model = fixed.static(model, fixed.wanted(Path(prepared)))
        openvino.save_model(
            model, str(Path(folder) / "model.xml"), compress_to_fp16=compute == "f16"
        )
    except RuntimeError as error:
        raise UnsupportedError(f"it cannot read the model: {reason(error)}") from None
    return ["model.xml", "model.bin"]


_MOVING = frozenset(
    {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "Gather"}
    | {"MaxPool", "Relu", "Clip", "Expand", "Identity"}
)


def _refuse_signed_concat(path: str) -> None:
    """OpenVINO 2026.4 rounds the inputs of a Concat to whole numbers where activations are
    quantized to s8, without an error; with u8, the same arithmetic is right."""
    import onnx  # not at the top: processes that only need the options do not load it

    graph = onnx.load(path, load_external_data=False).graph
    signed = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
    by_s8 = [
        node
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and set(node.input[2:]) & signed
    ]
    around = {name for node in by_s8 for name in (*node.input[:1], *node.output)}
    # OpenVINO moves scales through operators that only move numbers.
    moving = [node for node in graph.node if node.op_type in _MOVING]
    for node in (*moving, *reversed(moving)):
        if around & {node.input[0], *node.output}:
            around |= {node.input[0], *node.output}
    for node in graph.node:
        if node.op_type == "Concat" and around & {*node.input, *node.output}:
            raise UnsupportedError(
                "OpenVINO computes Concat wrong where activations are signed 8-bit integers; "
                "the same model with unsigned ones (int8-u8s8) is right"
            )


def _refuse_counted_padding(path: str) -> None:
    """OpenVINO 2026.4 reads the padding that an AveragePool counts as the integer 0 where the input
    was quantized, even if the pool itself stays float: it moves the scale behind the pool."""
    import onnx  # not at the top: processes that only need the options do not load it

    graph = onnx.load(path, load_external_data=False).graph
    if not any(node.op_type == "QuantizeLinear" for node in graph.node):
        return
    for node in graph.node:
        attributes = {
            entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute
        }
        padded = any(attributes.get("pads", ())) or attributes.get("auto_pad", b"").startswith(
            b"SAME"
        )
        if node.op_type == "AveragePool" and attributes.get("count_include_pad") and padded:
            raise UnsupportedError(
                f"OpenVINO computes AveragePool {node.name!r}, which counts its padding "
                "(count_include_pad), wrong in 8 bits; export the model without it, or use "
                "another runtime"
            )


def options(compute: str, threads: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Always set: without it, OpenVINO computes an f32 model in bf16 where the CPU can.
        "INFERENCE_PRECISION_HINT": compute,
    }


def describe(path: str) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs of an IR file."""
    from onmetal.converters.openvino_ir.quiet import openvino

    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        raise UnsupportedError(reason(error)) from None

    def tensors(kind: str, ports: Any) -> list[dict[str, Any]]:
        descriptions = []
        for number, port in enumerate(ports):
            name = min(port.names) if port.names else f"{kind}{number}"
            dtype = port.element_type.to_dtype().name
            descriptions.append({"name": name, "dtype": dtype, "shape": _shape(port.partial_shape)})
        return descriptions

    return {"inputs": tensors("input", model.inputs), "outputs": tensors("output", model.outputs)}


def _shape(shape: Any) -> list[int] | None:
    if shape.rank.is_dynamic:
        return None
    return [axis.get_length() if axis.is_static else -1 for axis in shape]
