"""What a runtime's profile on a device says, by the runtime's own reader of it."""

from typing import Any

from onmetal.runtimes.litert import text_profile as litert
from onmetal.runtimes.onnxruntime import text_profile as onnxruntime


def shares_of_text(runtime: str, text: str, runs: int, kinds: dict[str, str]) -> dict[str, Any]:
    """`kinds`: of a .tflite file, what each kind of operator computes in."""
    if runtime == "litert":
        return litert.shares(text, kinds)
    return onnxruntime.shares(text, runs)
