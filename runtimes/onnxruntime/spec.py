"""ONNX Runtime, as it is known before it is imported."""

from onmetal.runtimes import Spec

SPEC = Spec(
    title="ONNX Runtime",
    packages=("onnxruntime",),
    reads="onnx",
)
