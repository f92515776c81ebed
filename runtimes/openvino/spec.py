"""OpenVINO, as it is known before it is imported."""

from typing import TYPE_CHECKING

from onmetal.runtimes.protocol import (
    Converter,
    Inner,
    Profiler,
    Quantizer,
    Runtime,
    SessionModule,
    Spec,
)

if TYPE_CHECKING:
    from onmetal.converters.onnx.rules import Rule


class OpenVINO(Runtime):
    spec = Spec(
        title="OpenVINO",
        packages=("openvino",),
        reads="onnx",
        also_reads=("openvino_ir", "saved_model", "tflite"),
        defines="openvino_ir",
        runs={
            "float": ("f32", "f16", "bf16"),
            "weights": ("f32",),
            "static": ("i8",),
            "nncf": ("i8",),
            "mixed": ("i8",),
        },
        own_suffixes=(".xml", ".bin"),
        quantizer_package="nncf",
        # OpenVINO's own switch for its telemetry.
        home_files={"intel/openvino_telemetry": "0"},
    )

    def converter(self) -> Converter:
        from onmetal.runtimes.openvino import convert

        return convert

    def session(self) -> SessionModule:
        from onmetal.runtimes.openvino import session

        return session

    def profiler(self) -> Profiler:
        from onmetal.runtimes.openvino import profile

        return profile

    def wrong_in_8_bits(self) -> "tuple[Rule, ...]":
        from onmetal.runtimes.openvino import wrong_in_8_bits

        return wrong_in_8_bits.RULES

    def inner(self) -> Inner:
        from onmetal.runtimes.openvino import inner

        return inner

    def quantizer(self) -> Quantizer:
        from onmetal.runtimes.openvino import nncf_int8

        return nncf_int8


RUNTIME: Runtime = OpenVINO()
