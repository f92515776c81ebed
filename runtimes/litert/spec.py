"""LiteRT, as it is known before it is imported."""

from pathlib import Path
from typing import Any

from onmetal.runtimes.protocol import Converter, Profiler, Programs, Runtime, SessionModule, Spec


class LiteRT(Runtime):
    spec = Spec(
        title="LiteRT",
        packages=("ai-edge-litert", "tflite-runtime"),
        reads="tflite",
        runs={
            "float": ("f32",),
            "half": ("f32", "f16"),
            "dynamic": ("i8",),
            "static": ("i8", "i16"),
        },
        defines="tflite",
        benchmark_model=True,
        library="ai_edge_litert/libLiteRt.so",
    )

    def converter(self) -> Converter:
        from onmetal.runtimes.litert import convert

        return convert

    def session(self) -> SessionModule:
        from onmetal.runtimes.litert import session

        return session

    def profiler(self) -> Profiler:
        from onmetal.runtimes.litert import profile

        return profile

    def shares(self, text: str, runs: int, artifact: Path) -> dict[str, Any]:
        from onmetal.runtimes.litert import convert, text_profile

        is_operator_list = text.startswith("{")  # which the Python runner writes, types and all
        return text_profile.shares(
            text, {} if is_operator_list else convert.precisions(str(artifact))
        )

    def programs(self) -> Programs:
        from onmetal.runtimes.litert import programs

        return programs


RUNTIME: Runtime = LiteRT()
