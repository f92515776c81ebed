"""ONNX Runtime, as it is known before it is imported."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmetal.runtimes.protocol import Converter, Profiler, Programs, Runtime, SessionModule, Spec

if TYPE_CHECKING:
    from onmetal.converters.onnx.rules import Rule


class OnnxRuntime(Runtime):
    spec = Spec(
        title="ONNX Runtime",
        packages=("onnxruntime",),
        reads="onnx",
        runs={
            "float": ("f32",),
            "weights": ("f32",),
            "dynamic": ("i8",),
            "static": ("i8",),
            "mixed": ("i8",),
        },
        other_floats="whose CPU kernels on x86 compute {type} by casting to f32, "
        "which is no {type}",
        defines="onnx",
        library="onnxruntime/capi/libonnxruntime.so",
    )

    def converter(self) -> Converter:
        from onmetal.runtimes.onnxruntime import convert

        return convert

    def session(self) -> SessionModule:
        from onmetal.runtimes.onnxruntime import session

        return session

    def profiler(self) -> Profiler:
        from onmetal.runtimes.onnxruntime import profile

        return profile

    def shares(self, text: str, runs: int, artifact: Path) -> dict[str, Any]:
        from onmetal.runtimes.onnxruntime import text_profile

        return text_profile.shares(text, runs)

    def wrong_in_8_bits(self) -> "tuple[Rule, ...]":
        from onmetal.runtimes.onnxruntime import wrong_in_8_bits

        return wrong_in_8_bits.RULES

    def programs(self) -> Programs:
        from onmetal.runtimes.onnxruntime import programs

        return programs


RUNTIME: Runtime = OnnxRuntime()
