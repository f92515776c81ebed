"""ONNX -> OpenVINO's IR in 8 bits by NNCF (extra `[nncf]`), after its own rules."""

from pathlib import Path

from onmetal.converters.openvino_ir.quiet import openvino
from onmetal.errors import UnsupportedError, reason
from onmetal.records import Model
from onmetal.samples import Samples


def convert(prepared: str, samples: Samples, model: Model, folder: str) -> list[str]:
    """Write the IR to `folder`, calibrated on all samples. -> the names of its files.

    NNCF keeps running statistics, so that memory does not grow with the samples. Raises
    UnsupportedError, with NNCF's or OpenVINO's reason, where it cannot be done.
    """
    try:
        import nncf
    except ImportError as error:
        raise UnsupportedError(
            f"NNCF cannot be imported ({reason(error)}); pip install 'onmetal[nncf]'"
        ) from None
    data, of = samples, model
    batches = [
        [min(start + place, data.count - 1) for place in range(of.batch)]
        for start in range(0, data.count, of.batch)
    ]
    try:
        quantized = nncf.quantize(
            openvino.Core().read_model(prepared),
            nncf.Dataset(batches, lambda indices: data.feed(of, indices)),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if of.matmul_share > 0.5 else None,
        )
        openvino.save_model(quantized, str(Path(folder) / "model.xml"), compress_to_fp16=False)
    except Exception as error:
        raise UnsupportedError(f"NNCF: {reason(error)}") from None
    return ["model.xml", "model.bin"]
